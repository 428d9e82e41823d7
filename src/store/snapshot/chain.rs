//! Chains of layers (OCI image specification, "Layer ChainID"). Pure.

use crate::image::{DiffId, Digest};

/// The chain of a layer on top of another chain.
pub(super) fn of(below: Option<&Digest>, layer: &DiffId) -> Digest {
    match below {
        None => layer.0.clone(),
        Some(below) => Digest::sha256(format!("{below} {layer}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_follow_the_specification() {
        let layer = |text: &str| DiffId(Digest::sha256(text.as_bytes()));
        let (a, b) = (layer("a"), layer("b"));
        let base = of(None, &a);
        assert_eq!(base, a.0);
        let both = Digest::sha256(format!("{} {}", a.0, b.0).as_bytes());
        assert_eq!(of(Some(&base), &b), both);
    }
}

//! What the node holds, as questions about units.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::prepull::{Terms, Unit};
use super::seam::HeldImage;

/// What a pull of a unit ended with. Kept over restarts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct PulledUnit {
    /// The image's id.
    pub(super) id: String,
    /// When.
    pub(super) at: Timestamp,
}

/// What pulls ended with, by unit.
pub(super) type Pulls = BTreeMap<Unit, PulledUnit>;

/// Every image held, by its names.
#[derive(Clone, Debug, Default)]
pub(super) struct Inventory {
    ids: BTreeSet<String>,
    staged: BTreeSet<String>,
    tags: BTreeSet<String>,
    digests: BTreeMap<String, String>,
    /// Over sorted ids, names and pins.
    pub(super) hash: String,
    /// Images.
    pub(super) images: u64,
}

impl Inventory {
    /// Of a list.
    pub(super) fn new(images: &[HeldImage]) -> Self {
        let mut out = Inventory {
            images: images.len() as u64,
            ..Inventory::default()
        };
        let mut sorted: Vec<_> = images.iter().collect();
        sorted.sort_by(|a, b| a.id.cmp(&b.id));
        let mut hasher = blake3::Hasher::new();
        for image in sorted {
            hasher.update(image.id.as_bytes());
            hasher.update(&[u8::from(image.pinned)]);
            out.ids.insert(image.id.clone());
            if image.staged {
                out.staged.insert(image.id.clone());
            }
            for tag in &image.tags {
                hasher.update(tag.as_bytes());
                hasher.update(b"\n");
                out.tags.insert(tag.clone());
            }
            for digest in &image.digests {
                hasher.update(digest.as_bytes());
                hasher.update(b"\n");
                out.digests.insert(digest.clone(), image.id.clone());
            }
        }
        out.hash = hasher.finalize().to_hex().chars().take(32).collect();
        out
    }

    /// The image that holds a unit's content, as far as it is known.
    pub(super) fn id<'a>(&'a self, unit: &Unit, pulls: &'a Pulls) -> Option<&'a str> {
        if let Some(pulled) = pulls.get(unit) {
            return self.ids.contains(&pulled.id).then_some(&pulled.id);
        }
        let parsed = unit.parse().ok()?;
        let name = parsed.reference.digested(parsed.digest.as_ref()?);
        self.digests.get(&name).map(String::as_str)
    }

    /// Whether a unit is held: its content, and, where it has a tag, some image under that tag. Which image that is
    /// does not matter: a pod may have pulled a newer one, and taking the name back would start a quarrel. For terms
    /// that show it to everybody it must not be one that others pulled for some only.
    pub(super) fn holds(&self, terms: &Terms, unit: &Unit, pulls: &Pulls) -> bool {
        let Ok(parsed) = unit.parse() else {
            return false;
        };
        if terms.node_wide && !self.staged.is_empty() {
            let digest = parsed.digest.as_ref();
            let id = pulls
                .get(unit)
                .map(|pulled| &pulled.id)
                .or_else(|| self.digests.get(&parsed.reference.digested(digest?)));
            if id.is_some_and(|id| self.staged.contains(id)) {
                return false;
            }
        }
        let tagged = match parsed.reference.tagged() {
            Some(tag) => self.tags.contains(&tag),
            None => true,
        };
        let by_pull = pulls
            .get(unit)
            .is_some_and(|pulled| self.ids.contains(&pulled.id));
        let content = match &parsed.digest {
            None => true,
            // Images of several platforms share the index's digest: only the pull knows which is which.
            Some(_) if parsed.platform.is_some() => by_pull,
            Some(digest) => {
                by_pull
                    || self
                        .digests
                        .contains_key(&parsed.reference.digested(digest))
            }
        };
        tagged && content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn unit(image: &str, digest: &str, platform: &str) -> Unit {
        Unit {
            image: image.to_owned(),
            digest: digest.to_owned(),
            platform: platform.to_owned(),
        }
    }

    #[test]
    fn content_and_name_must_be_there() {
        let image = |id: &str, tags: &[&str], digests: &[String]| HeldImage {
            id: id.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: digests.to_vec(),
            pinned: false,
            staged: false,
            size: 1,
        };
        let digest = format!("r.io/app@{DIGEST}");
        let inventory = Inventory::new(&[image("sha256:1", &["r.io/app:1"], &[digest])]);
        let none = Pulls::new();
        assert!(inventory.holds(&Terms::default(), &unit("r.io/app:1", DIGEST, ""), &none));
        assert!(inventory.holds(
            &Terms::default(),
            &unit(&format!("r.io/app@{DIGEST}"), "", ""),
            &none
        ));
        assert!(inventory.holds(&Terms::default(), &unit("r.io/app:1", "", ""), &none));
        assert!(!inventory.holds(&Terms::default(), &unit("r.io/app:2", DIGEST, ""), &none));
        assert!(!inventory.holds(
            &Terms::default(),
            &unit("r.io/app:1", &DIGEST.replace('a', "b"), ""),
            &none
        ));
        assert!(!inventory.holds(&Terms::default(), &unit("NOT A NAME", "", ""), &none));
        // Of another platform: not known before it was pulled.
        let arm = unit("r.io/app:1", DIGEST, "linux/arm64");
        assert!(!inventory.holds(&Terms::default(), &arm, &none));
        let pulled = |id: &str| PulledUnit {
            id: id.to_owned(),
            at: Timestamp::UNIX_EPOCH,
        };
        assert!(inventory.holds(
            &Terms::default(),
            &arm,
            &Pulls::from([(arm.clone(), pulled("sha256:1"))])
        ));
        assert!(!inventory.holds(
            &Terms::default(),
            &arm,
            &Pulls::from([(arm.clone(), pulled("sha256:2"))])
        ));
    }

    #[test]
    fn what_is_staged_is_not_held_for_everybody() {
        let digested = unit("r.io/app:1", DIGEST, "");
        let mut image = HeldImage {
            id: "sha256:1".to_owned(),
            tags: vec!["r.io/app:1".to_owned()],
            digests: vec![format!("r.io/app@{DIGEST}")],
            pinned: false,
            staged: true,
            size: 1,
        };
        let wide = Terms {
            node_wide: true,
            ..Terms::default()
        };
        let staged = Inventory::new(&[image.clone()]);
        assert!(staged.holds(&Terms::default(), &digested, &Pulls::new()));
        assert!(!staged.holds(&wide, &digested, &Pulls::new()));
        image.staged = false;
        assert!(Inventory::new(&[image]).holds(&wide, &digested, &Pulls::new()));
    }

    #[test]
    fn the_hash_does_not_depend_on_the_order() {
        let image = |id: &str, pinned| HeldImage {
            id: id.to_owned(),
            tags: Vec::new(),
            digests: Vec::new(),
            pinned,
            staged: false,
            size: 1,
        };
        let (a, b) = (image("sha256:1", false), image("sha256:2", false));
        let hash = Inventory::new(&[a.clone(), b.clone()]).hash;
        assert_eq!(hash, Inventory::new(&[b.clone(), a]).hash);
        assert_ne!(hash, Inventory::new(&[b, image("sha256:1", true)]).hash);
        assert_eq!(hash.len(), 32);
    }
}

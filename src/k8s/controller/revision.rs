//! What a revision is, and when there is a new one. Pure.

use std::collections::BTreeMap;

use crate::k8s::api::{NOBODY, PrepullStatus, ResolvedImage};

/// 16 hexadecimal digits over what nodes are to hold: images with their digests, in any order, and platforms. Nothing
/// else makes a revision, so that a changed limit or pin moves no image.
pub(super) fn revision(resolved: &[ResolvedImage], platforms: &[String]) -> String {
    let mut images: Vec<(&str, &str)> = resolved
        .iter()
        .map(|resolved| (resolved.image.as_str(), resolved.digest.as_str()))
        .collect();
    images.sort_unstable();
    let mut platforms: Vec<&str> = platforms.iter().map(String::as_str).collect();
    platforms.sort_unstable();
    platforms.dedup();
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for (image, digest) in images {
        part(image);
        part(digest);
    }
    // An empty image cannot be: what follows are platforms.
    part("");
    platforms.into_iter().for_each(&mut part);
    hasher.finalize().to_hex().chars().take(16).collect()
}

/// What becomes of a prepull's revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing moves.
    Keep,
    /// The spec changed, and means the same images.
    Observe,
    /// Nodes are to hold something else.
    New(String),
}

/// Compares what the status has with what was resolved for a generation of the spec.
pub(super) fn next(
    status: &PrepullStatus,
    generation: i64,
    resolved: &[ResolvedImage],
    platforms: &[String],
) -> Next {
    let revision = revision(resolved, platforms);
    match &status.rollout {
        Some(rollout) if rollout.revision == revision => {
            if rollout.observed_generation == generation {
                Next::Keep
            } else {
                Next::Observe
            }
        }
        _ => Next::New(revision),
    }
}

/// A tag that stands for something else than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) image: String,
    pub(super) from: String,
    pub(super) to: String,
}

/// Images of two revisions whose digests differ.
pub(super) fn moved(before: &[ResolvedImage], after: &[ResolvedImage]) -> Vec<Moved> {
    let before: BTreeMap<&str, &str> = before
        .iter()
        .map(|resolved| (resolved.image.as_str(), resolved.digest.as_str()))
        .collect();
    after
        .iter()
        .filter_map(|after| {
            let from = *before.get(after.image.as_str())?;
            (from != after.digest).then(|| Moved {
                image: after.image.clone(),
                from: from.to_owned(),
                to: after.digest.clone(),
            })
        })
        .collect()
}

/// Whether nodes may act on what the status says: it is about this generation of the spec.
pub(super) fn is_current(status: &PrepullStatus, generation: i64) -> bool {
    status
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.observed_generation == generation)
}

/// Up to which slot nodes are admitted.
pub(super) fn admitted(status: &PrepullStatus) -> u64 {
    status
        .rollout
        .as_ref()
        .map_or(NOBODY, |rollout| rollout.admitted)
}

#[cfg(test)]
mod tests {
    use crate::k8s::api::RolloutStatus;

    use super::*;

    fn resolved(pairs: &[(&str, &str)]) -> Vec<ResolvedImage> {
        pairs
            .iter()
            .map(|(image, digest)| ResolvedImage {
                image: (*image).to_owned(),
                digest: (*digest).to_owned(),
            })
            .collect()
    }

    #[test]
    fn a_revision_is_its_contents_in_any_order() {
        let one = resolved(&[("a", "1"), ("b", "2")]);
        let other = resolved(&[("b", "2"), ("a", "1")]);
        let platforms = ["linux/amd64".to_owned(), "linux/arm64".to_owned()];
        let name = revision(&one, &platforms);
        assert_eq!(name.len(), 16);
        assert!(name.bytes().all(|b| b.is_ascii_hexdigit()));
        let backwards = ["linux/arm64".to_owned(), "linux/amd64".to_owned()];
        assert_eq!(name, revision(&other, &backwards));
        for other in [
            revision(&one, &[]),
            revision(&one[..1], &platforms),
            revision(&resolved(&[("a", "2"), ("b", "1")]), &platforms),
            revision(&resolved(&[("a", "1"), ("b", "3")]), &platforms),
            revision(&[], &platforms),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn an_edit_that_means_the_same_images_is_no_new_revision() {
        let images = resolved(&[("a", "1")]);
        let mut status = PrepullStatus::default();
        let Next::New(name) = next(&status, 1, &images, &[]) else {
            panic!("a first revision is new")
        };
        status.rollout = Some(RolloutStatus {
            revision: name,
            observed_generation: 1,
            ..RolloutStatus::default()
        });
        assert_eq!(next(&status, 1, &images, &[]), Next::Keep);
        assert_eq!(next(&status, 2, &images, &[]), Next::Observe);
        let moved = resolved(&[("a", "2")]);
        assert!(matches!(next(&status, 1, &moved, &[]), Next::New(_)));
    }

    #[test]
    fn moved_tags_are_named() {
        let before = resolved(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let after = resolved(&[("a", "1"), ("b", "9"), ("d", "4")]);
        let moved = moved(&before, &after);
        assert_eq!(moved.len(), 1);
        assert_eq!(
            (
                moved[0].image.as_str(),
                moved[0].from.as_str(),
                moved[0].to.as_str()
            ),
            ("b", "2", "9")
        );
    }
}

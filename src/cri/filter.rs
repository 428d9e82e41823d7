//! Which images a list filter names. Pure.

use crate::cache::ImageView;
use crate::image::{Digest, Reference};

/// The images that `wanted` names, in the order given; all where it is empty. By name first: a repository (all its
/// images), a tag, a digest; where no image has the name, by id, whole or its beginning.
pub(super) fn apply(images: Vec<ImageView>, wanted: &str) -> Vec<ImageView> {
    let wanted = wanted.trim();
    if wanted.is_empty() {
        return images;
    }
    let (named, others): (Vec<_>, Vec<_>) = match named(wanted) {
        Some(name) => images.into_iter().partition(|image| name.matches(image)),
        None => (Vec::new(), images),
    };
    if !named.is_empty() {
        return named;
    }
    others
        .into_iter()
        .filter(|image| by_id(image, wanted))
        .collect()
}

enum Named {
    /// Of an id or of what was pulled.
    Digest(Digest),
    /// Without tag and digest.
    Repository(String),
    Tag(String),
    Digested(String),
}

fn named(wanted: &str) -> Option<Named> {
    if let Ok(digest) = wanted.parse::<Digest>() {
        return Some(Named::Digest(digest));
    }
    let reference: Reference = wanted.parse().ok()?;
    if let Some(digest) = reference.digest() {
        return Some(Named::Digested(reference.digested(digest)));
    }
    // A colon after the last slash begins a tag; one before is a port.
    let last = wanted.rsplit('/').next().unwrap_or(wanted);
    match reference.tagged() {
        Some(tagged) if last.contains(':') => Some(Named::Tag(tagged)),
        _ => Some(Named::Repository(reference.repository())),
    }
}

impl Named {
    fn matches(&self, image: &ImageView) -> bool {
        match self {
            Named::Digest(digest) => {
                image.id.0 == *digest
                    || image.repo_digests.iter().any(|name| {
                        name.rsplit_once('@')
                            .is_some_and(|(_, of)| of == digest.to_string())
                    })
            }
            Named::Repository(repository) => {
                image.repo_tags.iter().any(|name| {
                    name.rsplit_once(':')
                        .is_some_and(|(of, _)| of == repository)
                }) || image
                    .repo_digests
                    .iter()
                    .any(|name| name.split_once('@').is_some_and(|(of, _)| of == repository))
            }
            Named::Tag(tag) => image.repo_tags.contains(tag),
            Named::Digested(digest) => image.repo_digests.contains(digest),
        }
    }
}

fn by_id(image: &ImageView, wanted: &str) -> bool {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    !digits.is_empty() && image.id.0.hex().starts_with(digits)
}

#[cfg(test)]
mod tests {
    use super::super::convert::tests::view;
    use super::*;

    #[test]
    fn by_name_then_by_id() {
        let top = format!("sha256:{}", "e".repeat(64));
        let digested = format!("docker.io/library/busybox@{top}");
        let images = || {
            vec![
                view(
                    '1',
                    &[
                        "docker.io/library/busybox:1",
                        "docker.io/library/busybox:latest",
                    ],
                    &[&digested],
                ),
                view('2', &["docker.io/library/busybox:2"], &[]),
                view('a', &["127.0.0.1:5000/app:v1"], &[]),
                view('b', &["docker.io/library/aaa:latest"], &[]),
            ]
        };
        let check = |wanted: &str, expected: &str| {
            let found: String = apply(images(), wanted)
                .iter()
                .map(|image| &image.id.0.hex()[..1])
                .collect();
            assert_eq!(found, expected, "{wanted:?}");
        };
        check("", "12ab");
        check("  ", "12ab");
        check("busybox", "12");
        check("docker.io/library/busybox", "12");
        check("busybox:2", "2");
        check("busybox:latest", "1");
        check("busybox:3", "");
        check("127.0.0.1:5000/app", "a");
        check("127.0.0.1:5000/app:v1", "a");
        check("127.0.0.1:5000/other", "");
        check(&digested, "1");
        check(&top, "1");
        check(&format!("sha256:{}", "2".repeat(64)), "2");
        check(&"2".repeat(64), "2");
        check("sha256:22", "2");
        check("2222", "2");
        check("aaa", "b");
        check("aaaa", "a");
        check("UPPER CASE", "");
    }
}

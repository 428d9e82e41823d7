//! What a name may mean: the forms crictl, kubelet and people use, in the order containerd tries them.
//! Pure: knows no store. Never resolves the digest of a manifest or index alone; only config digests are ids.

use crate::image::{Digest, ImageId, Reference};
use crate::store::Name;

use super::Error;

/// The lookups a name asks for, in order: the first that finds something wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// A full id; nothing else is tried then.
    pub(super) id: Option<ImageId>,
    /// A normalised name as the store has it.
    pub(super) name: Option<String>,
    /// The first digits of an id, with its algorithm.
    pub(super) prefix: Option<String>,
}

impl Query {
    /// Reads a name. One that can name nothing gives an empty query; only the empty name is an error.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::Invalid(
                "the image name is empty: give a reference such as busybox:1.36, or an image id"
                    .to_owned(),
            ));
        }
        if let Ok(digest) = text.parse::<Digest>() {
            return Ok(Query {
                id: Some(ImageId(digest)),
                ..Query::default()
            });
        }
        if text.len() == 64
            && let Ok(digest) = format!("sha256:{text}").parse::<Digest>()
        {
            return Ok(Query {
                id: Some(ImageId(digest)),
                ..Query::default()
            });
        }
        Ok(Query {
            id: None,
            name: text
                .parse::<Reference>()
                .ok()
                .and_then(|reference| lookup_name(&reference)),
            prefix: id_prefix(text),
        })
    }
}

/// A reference with a digest is found by that digest in its repository, whatever its tag says.
fn lookup_name(reference: &Reference) -> Option<String> {
    match reference.digest() {
        Some(digest) => Some(reference.digested(digest)),
        None => reference.tagged(),
    }
}

fn id_prefix(text: &str) -> Option<String> {
    let (algorithm, digits) = match text.split_once(':') {
        Some((algorithm @ ("sha256" | "sha512"), digits)) => (algorithm, digits),
        Some(_) => return None,
        None => ("sha256", text),
    };
    let most = if algorithm == "sha512" { 128 } else { 64 };
    let hex = !digits.is_empty()
        && digits.len() < most
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    hex.then(|| format!("{algorithm}:{digits}"))
}

/// The one id that begins with `prefix`.
pub(super) fn unique_id<'a>(
    prefix: &str,
    ids: impl Iterator<Item = &'a ImageId>,
) -> Result<Option<&'a ImageId>, Error> {
    let mut found = None;
    let mut count = 0usize;
    for id in ids {
        if id.to_string().starts_with(prefix) {
            count += 1;
            found = Some(id);
        }
    }
    if count > 1 {
        return Err(Error::Ambiguous {
            prefix: prefix.to_owned(),
            count,
        });
    }
    Ok(found)
}

/// The names a pull of `reference` gives to the image, when the registry says it is `target`: the tag if it has one,
/// and always the repository with the top-level digest.
pub(super) fn names_of(reference: &Reference, target: &Digest) -> Vec<Name> {
    reference
        .tagged()
        .into_iter()
        .chain([reference.digested(target)])
        .map(|name| Name {
            name,
            target: target.clone(),
        })
        .collect()
}

/// Patterns of names to keep: exact, or with a trailing `*`.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    exact: Vec<String>,
    prefixes: Vec<String>,
}

impl Patterns {
    /// Exact names are normalised as references are, so `busybox` keeps `docker.io/library/busybox:latest`.
    pub(super) fn new(patterns: &[String]) -> Self {
        let mut out = Patterns::default();
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(prefix) => out.prefixes.push(prefix.to_owned()),
                None => {
                    let name = pattern
                        .parse::<Reference>()
                        .ok()
                        .and_then(|reference| lookup_name(&reference));
                    out.exact.push(name.unwrap_or_else(|| pattern.clone()));
                }
            }
        }
        out
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.exact.iter().any(|exact| exact == name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

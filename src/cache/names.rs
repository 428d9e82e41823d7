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

/// Which images a name may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All.
    All,
    /// Those that are not staged.
    Shown,
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

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    fn query(text: &str) -> Query {
        Query::parse(text).unwrap()
    }

    fn id(hex: &str) -> ImageId {
        ImageId(format!("sha256:{hex}").parse().unwrap())
    }

    #[test]
    fn full_ids_are_ids_and_nothing_else() {
        for text in [
            HEX.to_owned(),
            format!("sha256:{HEX}"),
            format!(" sha256:{HEX} "),
        ] {
            assert_eq!(
                query(&text),
                Query {
                    id: Some(id(HEX)),
                    ..Query::default()
                },
                "{text}"
            );
        }
    }

    #[test]
    fn names_are_normalised() {
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            (
                "docker.io/library/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("library/busybox:latest", "docker.io/library/busybox:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ];
        for (text, name) in table {
            assert_eq!(query(text).name.as_deref(), Some(name), "{text}");
        }
    }

    #[test]
    fn a_digest_decides_whatever_the_tag() {
        let name = format!("docker.io/library/busybox@sha256:{HEX}");
        assert_eq!(
            query(&format!("busybox@sha256:{HEX}")).name,
            Some(name.clone())
        );
        assert_eq!(query(&format!("busybox:1@sha256:{HEX}")).name, Some(name));
    }

    #[test]
    fn prefixes_take_an_algorithm_or_none() {
        assert_eq!(query("2c26b4").prefix.as_deref(), Some("sha256:2c26b4"));
        assert_eq!(
            query("sha256:2c26b4").prefix.as_deref(),
            Some("sha256:2c26b4")
        );
        assert_eq!(query("sha512:2c").prefix.as_deref(), Some("sha512:2c"));
        for text in ["2C26B4", "xyz", "sha256:", "md5:2c", "a/2c26"] {
            assert_eq!(query(text).prefix, None, "{text}");
        }
    }

    #[test]
    fn nonsense_names_nothing_and_emptiness_is_an_error() {
        for text in ["::", "UPPER CASE", "a b", "@", "-x/", "\u{1f980}"] {
            assert_eq!(query(text), Query::default(), "{text}");
        }
        for text in ["", "  ", "\t"] {
            assert!(matches!(Query::parse(text), Err(Error::Invalid(_))));
        }
    }

    #[test]
    fn an_id_prefix_must_be_of_one_image() {
        let ids = ["aa11", "aa22", "bb33"].map(|start| id(&format!("{start}{}", "0".repeat(60))));
        let find = |prefix: &str| {
            unique_id(prefix, ids.iter()).map(|id| id.map(|id| id.0.hex()[..4].to_owned()))
        };
        assert_eq!(find("sha256:aa1").unwrap().as_deref(), Some("aa11"));
        assert_eq!(find("sha256:b").unwrap().as_deref(), Some("bb33"));
        assert_eq!(find("sha256:c").unwrap(), None);
        assert_eq!(find("sha512:aa").unwrap(), None);
        assert!(matches!(
            find("sha256:aa"),
            Err(Error::Ambiguous { count: 2, .. })
        ));
    }

    #[test]
    fn a_pull_gives_the_tag_if_any_and_always_the_digest() {
        let target: Digest = format!("sha256:{HEX}").parse().unwrap();
        let names = |text: &str| -> Vec<String> {
            names_of(&text.parse().unwrap(), &target)
                .into_iter()
                .map(|name| name.name)
                .collect()
        };
        let digested = format!("docker.io/library/busybox@sha256:{HEX}");
        let latest = "docker.io/library/busybox:latest".to_owned();
        assert_eq!(names("busybox"), [latest.clone(), digested.clone()]);
        assert_eq!(
            names(&format!("busybox@sha256:{HEX}")),
            std::slice::from_ref(&digested)
        );
        assert_eq!(
            names(&format!("busybox:latest@sha256:{HEX}")),
            [latest, digested]
        );
    }

    #[test]
    fn pins_are_exact_or_end_in_a_star() {
        let pins = Patterns::new(&[
            "busybox".into(),
            "registry.k8s.io/pause*".into(),
            "a b".into(),
        ]);
        let table = [
            ("docker.io/library/busybox:latest", true),
            ("docker.io/library/busybox:1", false),
            ("docker.io/library/busybox2:latest", false),
            ("registry.k8s.io/pause:3.9", true),
            ("registry.k8s.io/pause-arm:3.9", true),
            ("mirror/registry.k8s.io/pause:3.9", false),
        ];
        for (name, pinned) in table {
            assert_eq!(pins.matches(name), pinned, "{name}");
        }
        assert!(Patterns::new(&["*".into()]).matches("anything:1"));
        assert!(!Patterns::new(&[]).matches("anything:1"));
    }

    proptest::proptest! {
        #[test]
        fn no_name_panics(text in "\\PC{0,200}", hexish in "(sha256:)?[0-9a-fA-F]{0,140}") {
            for text in [text, hexish] {
                let _ = Query::parse(&text);
                Patterns::new(std::slice::from_ref(&text)).matches(&text);
            }
        }
    }
}

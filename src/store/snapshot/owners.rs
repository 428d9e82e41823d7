//! Owners in user namespaces: a container whose root is another user of the host sees files as its own by a mapped mount
//! of the layers below, which the runtime makes of two options; what it writes belongs to the user of the host.

use std::collections::BTreeMap;

use super::SnapshotError;

/// Labels of the runtime: `container:host:length`, several with commas.
const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";
/// The kernel takes no more.
const MAX_RANGES: usize = 340;

/// How a snapshot's owners are mapped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owners {
    /// Of mounts, for the runtime.
    pub(super) options: [String; 2],
    /// User and group of the host that are root in the container.
    pub(super) root: (u32, u32),
}

/// What the labels of a snapshot say; both or none must be there.
pub(super) fn mapped(labels: &BTreeMap<String, String>) -> Result<Option<Owners>, SnapshotError> {
    let (Some(uids), Some(gids)) = (labels.get(UIDS), labels.get(GIDS)) else {
        let lonely = [UIDS, GIDS]
            .into_iter()
            .find(|name| labels.contains_key(*name));
        return match lonely {
            None => Ok(None),
            Some(name) => Err(SnapshotError::Invalid(format!(
                "label {name} is there alone: owners are mapped with both {UIDS} and {GIDS}"
            ))),
        };
    };
    let root = |name: &str, ranges: &str| {
        root(ranges).ok_or_else(|| {
            let shown: String = ranges.chars().take(64).collect();
            SnapshotError::Invalid(format!(
                "label {name} is {shown:?}: it needs CONTAINER:HOST:LENGTH, with commas between, and a range with the container's 0"
            ))
        })
    };
    Ok(Some(Owners {
        root: (root(UIDS, uids)?, root(GIDS, gids)?),
        options: [format!("uidmap={uids}"), format!("gidmap={gids}")],
    }))
}

/// The host's id of the container's 0, where all of it can be.
fn root(ranges: &str) -> Option<u32> {
    let mut root = None;
    for (at, range) in ranges.split(',').enumerate() {
        let mut fields = range.split(':').map(number);
        let (inner, outer, length) = (fields.next()??, fields.next()??, fields.next()??);
        if fields.next().is_some() || length == 0 || at >= MAX_RANGES {
            return None;
        }
        // The last id of all is nobody's.
        inner.checked_add(length)?;
        outer.checked_add(length)?;
        if inner == 0 {
            root = Some(outer);
        }
    }
    root
}

/// Digits, and nothing else: the text goes on to who makes the mount.
fn number(field: &str) -> Option<u32> {
    let digits = !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit());
    field.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        let of = of.iter();
        of.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn root_is_who_the_ranges_say() {
        let found = mapped(&labels(&[
            (UIDS, "1:200000:9,0:100000:1"),
            (GIDS, "0:7:65536"),
        ]));
        let found = found.unwrap().unwrap();
        assert_eq!(found.root, (100_000, 7));
        assert_eq!(
            found.options,
            ["uidmap=1:200000:9,0:100000:1", "gidmap=0:7:65536"]
        );
        assert_eq!(mapped(&labels(&[("other", "0:0:0")])).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_label() {
        let many = vec!["0:1:1"; MAX_RANGES + 1].join(",");
        for wrong in [
            "",
            "0",
            "0:1",
            "0:1:1:1",
            "0:1:0",
            "1:1:1",
            "+0:1:1",
            "0:-1:1",
            "0:4294967295:1",
            "0:1:1,",
            "0:1:1 ",
            "0:1:1,x:y:z",
            many.as_str(),
        ] {
            let error = mapped(&labels(&[(UIDS, "0:1:1"), (GIDS, wrong)])).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(&format!("label {GIDS} is ")), "{text}");
            assert!(text.len() < 300, "{text}");
        }
        let text = mapped(&labels(&[(UIDS, "0:1:1")])).unwrap_err().to_string();
        assert!(text.contains("is there alone"), "{text}");
    }
}

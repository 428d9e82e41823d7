//! The format of a root: a version and three lists of feature flags.
//!
//! A program that does not know a feature may still write the root if the feature is compatible, only read it if it is
//! read-only compatible, and must refuse it otherwise. larder always writes, so it refuses the last two.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;

const VERSION: u32 = 1;
const KNOWN_RO_COMPAT: &[&str] = &[];
const KNOWN_INCOMPAT: &[&str] = &["erofs-packs"];

/// `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    version: u32,
    #[serde(default)]
    compat: Vec<String>,
    #[serde(default)]
    ro_compat: Vec<String>,
    #[serde(default)]
    incompat: Vec<String>,
}

impl Meta {
    /// What this program writes into an empty root.
    pub(super) fn current() -> Self {
        Meta {
            version: VERSION,
            compat: Vec::new(),
            ro_compat: Vec::new(),
            incompat: KNOWN_INCOMPAT.iter().map(ToString::to_string).collect(),
        }
    }

    /// Reads `meta.json` and refuses what this program must not write to.
    pub(super) fn check(root: &Path, text: &[u8]) -> Result<(), Error> {
        let refuse = |found: String| Error::Format {
            root: root.to_path_buf(),
            found,
            known: format!("version {VERSION}, features {}", KNOWN_INCOMPAT.join(", ")),
        };
        // The version alone first: a newer format may have a shape that is not ours.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(text)
            .map_err(|error| refuse(format!("a meta.json that is not readable ({error})")))?;
        if version != VERSION {
            return Err(refuse(format!("version {version}")));
        }
        let meta: Meta = serde_json::from_slice(text)
            .map_err(|error| refuse(format!("a meta.json that is not readable ({error})")))?;
        let unknown = |found: &[String], known: &[&str]| {
            found
                .iter()
                .find(|feature| !known.contains(&feature.as_str()))
                .cloned()
        };
        let strange = unknown(&meta.incompat, KNOWN_INCOMPAT)
            .or_else(|| unknown(&meta.ro_compat, KNOWN_RO_COMPAT));
        match strange {
            Some(feature) => Err(refuse(format!("feature {feature:?}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        Meta::check(Path::new("/r"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn opens_what_it_knows() {
        check(&serde_json::to_string(&Meta::current()).unwrap()).unwrap();
        check(r#"{"version":1,"compat":["something-new"]}"#).unwrap();
    }

    #[test]
    fn refuses_what_it_does_not() {
        for (text, reason) in [
            (r#"{"version":2,"shape":{}}"#, "version 2"),
            (r#"{"version":1,"incompat":["chunks"]}"#, "chunks"),
            (r#"{"version":1,"roCompat":["log"]}"#, "log"),
            ("{}", "not readable"),
            ("", "not readable"),
        ] {
            assert!(check(text).unwrap_err().contains(reason), "{text}");
        }
    }
}

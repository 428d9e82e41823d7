//! JSON shapes that manifests and configs have in common, read within limits.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Platform;

/// Most entries of a map of labels or annotations.
const MAX_STRINGS: usize = 10_000;

/// A platform as documents write it: any field may be missing.
#[derive(Default, Deserialize)]
pub(super) struct RawPlatform {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, rename = "os.version")]
    os_version: Option<String>,
}

impl From<RawPlatform> for Platform {
    fn from(raw: RawPlatform) -> Self {
        let text = Option::unwrap_or_default;
        Platform {
            os_version: text(raw.os_version),
            ..Platform::new(&text(raw.os), &text(raw.architecture), &text(raw.variant))
        }
    }
}

/// Reads a map of strings with at most [`MAX_STRINGS`] entries. `null` is empty, both as map and as value,
/// as Go programs write it.
pub(super) fn strings<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Strings;
    impl<'de> Visitor<'de> for Strings {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of strings")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, Option<String>>()? {
                found.insert(key, value.unwrap_or_default());
                if found.len() > MAX_STRINGS {
                    return Err(A::Error::custom(format_args!(
                        "a map has more than {MAX_STRINGS} entries"
                    )));
                }
            }
            Ok(found)
        }
    }
    deserializer.deserialize_any(Strings)
}

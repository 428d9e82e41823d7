//! View of an image config (OCI image specification, "config").

use std::collections::BTreeMap;

use serde::Deserialize;

use super::manifest::MAX_LAYERS;
use super::{DiffId, Platform};

/// History lines kept; the rest are dropped.
const MAX_HISTORY: usize = 2000;

/// What larder reads of an image config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the image was built for.
    pub platform: Platform,
    /// RFC 3339, as written.
    pub created: Option<String>,
    /// One per layer, base first.
    pub diff_ids: Vec<DiffId>,
    /// `User` of the config, split.
    pub user: Option<User>,
    /// Labels of the config.
    pub labels: BTreeMap<String, String>,
    /// Build history, oldest first; bounded.
    pub history: Vec<History>,
}

/// The user an image runs as (CRI `Image.uid` / `Image.username`). A group after `:` is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A numeric user.
    Uid(i64),
    /// A named user.
    Name(String),
}

/// One line of build history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct History {
    /// RFC 3339.
    pub created: Option<String>,
    /// The build command.
    pub created_by: String,
    /// Free text.
    pub comment: String,
    /// True where the step added no layer.
    pub empty_layer: bool,
}

/// Why a config is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image config is malformed: {0}")]
pub struct ConfigError(pub String);

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
    #[serde(default, rename = "os.version")]
    os_version: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    user: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<DiffId>>,
}

impl User {
    /// Reads `User` of a config: `1000`, `1000:1000`, `app`, `app:staff`; empty is none.
    pub fn parse(text: &str) -> Option<Self> {
        let user = text.split(':').next().unwrap_or_default();
        if user.is_empty() {
            return None;
        }
        Some(match user.parse() {
            Ok(uid) => User::Uid(uid),
            Err(_) => User::Name(user.to_owned()),
        })
    }
}

impl Config {
    /// Parses a config blob.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| ConfigError(error.to_string()))?;
        if raw.rootfs.kind != "layers" {
            return Err(ConfigError(format!(
                "rootfs type is {:?}, not \"layers\"",
                super::digest::shorten(&raw.rootfs.kind)
            )));
        }
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return Err(ConfigError(format!(
                "it has {} diff_ids, the limit is {MAX_LAYERS}",
                diff_ids.len()
            )));
        }
        let run = raw.config.unwrap_or_default();
        let mut platform = Platform::new(&raw.os, &raw.architecture, &raw.variant);
        platform.os_version = raw.os_version;
        let mut history = raw.history.unwrap_or_default();
        history.truncate(MAX_HISTORY);
        Ok(Config {
            platform,
            created: raw.created,
            diff_ids,
            user: User::parse(&run.user),
            labels: run.labels.unwrap_or_default(),
            history,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_shows() {
        let id = format!("sha256:{}", "1".repeat(64));
        let text = format!(
            r#"{{"architecture":"arm64","variant":"v8","os":"linux","created":"2026-01-02T03:04:05Z",
            "config":{{"User":"1000:1000","Labels":{{"a":"b"}},"Env":null}},
            "rootfs":{{"type":"layers","diff_ids":["{id}"]}},
            "history":[{{"created_by":"COPY","comment":"c"}},{{"empty_layer":true}}]}}"#
        );
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!(config.diff_ids[0].to_string(), id);
        assert_eq!(config.user, Some(User::Uid(1000)));
        assert_eq!(config.labels["a"], "b");
        assert!(config.history[1].empty_layer);
    }

    #[test]
    fn splits_users() {
        for (text, user) in [
            ("", None),
            ("0", Some(User::Uid(0))),
            ("1003:users", Some(User::Uid(1003))),
            ("www-data:www", Some(User::Name("www-data".into()))),
            (":0", None),
        ] {
            assert_eq!(User::parse(text), user, "{text}");
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        let id = format!("\"sha256:{}\"", "1".repeat(64));
        let many = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            vec![id; 501].join(",")
        );
        for (text, reason) in [
            ("{}", "rootfs"),
            ("", "EOF"),
            (r#"{"rootfs":{"type":"layers+x"}}"#, "not \"layers\""),
            (
                r#"{"rootfs":{"type":"layers","diff_ids":["sha256:0"]}}"#,
                "64",
            ),
            (many.as_str(), "501"),
        ] {
            let error = Config::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}

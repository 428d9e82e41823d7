//! View of an image config (OCI image specification, "config").

use std::collections::BTreeMap;

use serde::Deserialize;

use super::raw::{self, RawPlatform};
use super::{DiffId, MAX_LAYERS, Platform, excerpt};

/// A larger config is refused.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Lines of build history that are kept.
const MAX_HISTORY: usize = 1000;

/// What larder reads of an image config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the image was built for. The architecture is empty where the config names none, which serves any.
    pub platform: Platform,
    /// RFC 3339, as written.
    pub created: Option<String>,
    /// One per layer, base first.
    pub diff_ids: Vec<DiffId>,
    /// `User` of the config, split.
    pub user: Option<User>,
    /// Labels of the config.
    pub labels: BTreeMap<String, String>,
    /// Build history, oldest first; what follows the first 1000 lines is dropped.
    pub history: Vec<History>,
}

/// The user an image runs as (CRI `Image.uid` / `Image.username`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A numeric user.
    Uid(i64),
    /// A named user.
    Name(String),
}

/// One line of build history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
#[error("the image config is malformed: {0}; push the image again, with a current tool")]
pub struct ConfigError(pub String);

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: RawPlatform,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawExecution>,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
    #[serde(default)]
    history: Option<Vec<RawHistory>>,
}

#[derive(Default, Deserialize)]
struct RawExecution {
    #[serde(default, rename = "User")]
    user: Option<String>,
    #[serde(default, rename = "Labels", deserialize_with = "raw::strings")]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    diff_ids: Option<Vec<DiffId>>,
}

#[derive(Deserialize)]
struct RawHistory {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    empty_layer: Option<bool>,
}

impl Config {
    /// Parses a config blob.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let refuse = |reason: String| Err(ConfigError(reason));
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_CONFIG_BYTES) {
            return refuse(format!(
                "it has {} bytes, the limit is {MAX_CONFIG_BYTES}",
                bytes.len()
            ));
        }
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|error| ConfigError(excerpt(&error.to_string())))?;
        let Some(rootfs) = raw.rootfs else {
            return refuse("it has no rootfs, so it is not the config of an image".to_owned());
        };
        if let Some(kind) = rootfs
            .kind
            .filter(|kind| !kind.is_empty() && kind != "layers")
        {
            return refuse(format!(
                "rootfs.type is {:?}, only \"layers\" is known",
                excerpt(&kind)
            ));
        }
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return refuse(format!(
                "it has {} diff_ids, the limit is {MAX_LAYERS}",
                diff_ids.len()
            ));
        }
        let execution = raw.config.unwrap_or_default();
        Ok(Config {
            platform: Platform::from(raw.platform),
            created: raw.created.filter(|created| !created.is_empty()),
            diff_ids,
            user: execution.user.as_deref().and_then(User::parse),
            labels: execution.labels,
            history: raw
                .history
                .unwrap_or_default()
                .into_iter()
                .take(MAX_HISTORY)
                .map(History::from)
                .collect(),
        })
    }
}

impl User {
    /// The user of `user[:group]`; `None` where there is none.
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

impl From<RawHistory> for History {
    fn from(raw: RawHistory) -> Self {
        History {
            created: raw.created,
            created_by: raw.created_by.unwrap_or_default(),
            comment: raw.comment.unwrap_or_default(),
            empty_layer: raw.empty_layer.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const A: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn parse(value: &Value) -> Result<Config, ConfigError> {
        Config::parse(value.to_string().as_bytes())
    }

    fn with_user(user: &str) -> Value {
        json!({"architecture": "amd64", "os": "linux", "config": {"User": user}, "rootfs": {"type": "layers", "diff_ids": []}})
    }

    #[test]
    fn reads_what_docker_writes() {
        let config = parse(&json!({
            "architecture": "arm64", "variant": "v8", "os": "linux", "os.version": "",
            "created": "2024-05-01T12:00:00.123456789Z", "author": "x", "docker_version": "20.10",
            "config": {
                "User": "1000:100", "Env": ["PATH=/bin"], "Labels": {"a": "b"}, "Volumes": null,
            },
            "container_config": {"Labels": null},
            "rootfs": {"type": "layers", "diff_ids": [A]},
            "history": [
                {"created": "2024-05-01T11:00:00Z", "created_by": "COPY . /", "comment": "buildkit"},
                {"created_by": "CMD sh", "empty_layer": true},
            ],
        }))
        .unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!(
            config.created.as_deref(),
            Some("2024-05-01T12:00:00.123456789Z")
        );
        assert_eq!(config.diff_ids, [DiffId(A.parse().unwrap())]);
        assert_eq!(config.user, Some(User::Uid(1000)));
        assert_eq!(config.labels.get("a").map(String::as_str), Some("b"));
        assert_eq!(config.history.len(), 2);
        assert!(
            config
                .history
                .iter()
                .any(|h| h.empty_layer && h.created.is_none())
        );
    }

    #[test]
    fn reads_the_least_there_can_be() {
        let config = parse(&json!({
            "architecture": "amd64", "os": "linux", "config": null, "history": null, "created": null,
            "rootfs": {"type": "layers", "diff_ids": null},
        }))
        .unwrap();
        assert_eq!((config.user, config.diff_ids.len()), (None, 0));
    }

    #[test]
    fn splits_the_user() {
        for (text, want) in [
            ("", None),
            (":5", None),
            ("0", Some(User::Uid(0))),
            ("65532:65532", Some(User::Uid(65532))),
            ("-1", Some(User::Uid(-1))),
            ("nobody", Some(User::Name("nobody".into()))),
            ("nobody:nogroup", Some(User::Name("nobody".into()))),
            (
                "99999999999999999999",
                Some(User::Name("99999999999999999999".into())),
            ),
        ] {
            assert_eq!(parse(&with_user(text)).unwrap().user, want, "{text:?}");
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        for (value, reason) in [
            (json!({}), "no rootfs"),
            (json!([]), "invalid type"),
            (
                json!({"architecture": "amd64", "rootfs": {"type": "tar"}}),
                "rootfs.type is \"tar\"",
            ),
            (
                json!({"architecture": "amd64", "rootfs": {"diff_ids": ["sha256:1"]}}),
                "exactly 64",
            ),
            (
                json!({"architecture": "amd64", "rootfs": {"diff_ids": vec![A; 501]}}),
                "501 diff_ids",
            ),
            (json!({"architecture": 5, "rootfs": {}}), "invalid type"),
        ] {
            let error = parse(&value).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(Config::parse(b"").is_err());
        assert!(Config::parse(&[b'['; 100_000]).is_err());
        let large = " ".repeat(5 << 20);
        assert!(
            Config::parse(large.as_bytes())
                .unwrap_err()
                .0
                .contains("limit")
        );
        let long = json!({"architecture": ["x".repeat(1 << 20)], "rootfs": {}});
        assert!(parse(&long).unwrap_err().0.len() < 300);
    }

    #[test]
    fn bounds_labels_and_history() {
        let mut value = with_user("");
        value["history"] = json!(vec![json!({"created_by": "RUN"}); 3000]);
        assert_eq!(parse(&value).unwrap().history.len(), MAX_HISTORY);
        let labels: BTreeMap<_, _> = (0..20_000).map(|n| (n.to_string(), "x")).collect();
        value["config"]["Labels"] = json!(labels);
        assert!(parse(&value).unwrap_err().0.contains("entries"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), user in ".{0,20}") {
            let _ = Config::parse(&bytes);
            let _ = parse(&with_user(&user));
        }
    }
}

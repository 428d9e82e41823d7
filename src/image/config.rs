//! View of an image config (OCI image specification, "config").

use std::collections::BTreeMap;

use super::{DiffId, Platform};

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
#[error("the image config is malformed: {0}")]
pub struct ConfigError(pub String);

impl Config {
    /// Parses a config blob.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let _ = bytes;
        todo!()
    }
}

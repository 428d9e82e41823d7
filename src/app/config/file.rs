//! The configuration file: TOML. Unknown keys are errors; errors name file, line and key. The environment has the same
//! keys, and its own file.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Larger than any sensible file.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) root: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
    pub(super) hosts_dirs: Option<Vec<PathBuf>>,
    pub(super) http: Option<String>,
    pub(super) control: Option<String>,
    pub(super) mirror: Option<String>,
    pub(super) images: Option<String>,
    pub(super) runtime_endpoint: Option<PathBuf>,
    pub(super) containerd: Option<PathBuf>,
    pub(super) authfile: Option<PathBuf>,
    pub(super) platform: Option<String>,
    pub(super) pinned: Option<Vec<String>>,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) node_name: Option<String>,
    pub(super) manifests: Option<PathBuf>,
    pub(super) drain_timeout: Option<String>,
    pub(super) scrub_interval: Option<String>,
    pub(super) log: Log,
    pub(super) pull: Pull,
    pub(super) registry: Registry,
    pub(super) limits: FileLimits,
    pub(super) keep: FileKeep,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileKeep {
    pub(super) images: Option<Vec<String>>,
    pub(super) max_bytes: Option<u64>,
    pub(super) min_free: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: Option<String>,
    pub(super) level: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Pull {
    pub(super) max_layers: Option<usize>,
    pub(super) orphan_grace: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Registry {
    pub(super) max_per_host: Option<usize>,
    pub(super) stall_timeout: Option<String>,
    pub(super) attempts: Option<u32>,
    pub(super) max_retry_after: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileLimits {
    pub(super) max_entries: Option<u64>,
    pub(super) max_layer_bytes: Option<u64>,
    pub(super) max_ratio: Option<u64>,
    pub(super) max_path: Option<usize>,
    pub(super) reserved_bytes: Option<u64>,
    pub(super) reserved: Option<String>,
    pub(super) background_layers: Option<usize>,
    pub(super) background_layers_per_registry: Option<usize>,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) throttle_all: Option<bool>,
}

pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |error: std::io::Error| ConfigError::new(path.display().to_string(), error);
    let mut text = String::new();
    let length = fs::File::open(path)
        .map_err(failed)?
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if length as u64 > MAX_BYTES {
        return Err(ConfigError::new(
            path.display().to_string(),
            "larger than 1 MiB: this is no configuration",
        ));
    }
    Ok(text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let Some(span) = error.span() else {
            return ConfigError::new(path.display().to_string(), error.message());
        };
        let before = text.get(..span.start).unwrap_or(text);
        let number = before.matches('\n').count() + 1;
        let key = keys(text).take_while(|(line, _)| *line <= number).last();
        // A key is named only where the fault is on its line: the table's or the value's before tells nothing.
        let cause = match key {
            Some((line, key)) if line == number => format!("{key}: {}", error.message()),
            _ => error.message().to_owned(),
        };
        ConfigError::new(
            format!("{}: line {number}", path.display()),
            one_line(&cause),
        )
    })
}

/// The line that sets a key, if one does.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    keys(text)
        .find(|(_, known)| known == key)
        .map(|(line, _)| line)
}

/// Lines (from 1) with the full name of the key that each sets. Good enough for messages: a line within a multi-line
/// text that looks like a key is taken for one.
fn keys(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let mut table = String::new();
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            table = name.trim().to_owned();
            return None;
        }
        let (key, _) = line.split_once('=')?;
        let key = key.trim().trim_matches(['"', '\'']);
        if line.starts_with('#')
            || key.is_empty()
            || !key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        {
            return None;
        }
        let full = if table.is_empty() {
            key.to_owned()
        } else {
            format!("{table}.{key}")
        };
        Some((index + 1, full))
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

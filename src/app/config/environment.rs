//! The environment: every key of the file as `LARDER_` and its name in capitals, `registry.attempts` as
//! `LARDER_REGISTRY_ATTEMPTS`. Knows no key by itself: names and types are those of [`File`].

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::Deserialize;
use toml::{Table, Value};

use super::ConfigError;
use super::file::File;

const PREFIX: &str = "LARDER_";
/// Names the file itself.
const CONFIG: &str = "LARDER_CONFIG";
/// Named as the flags are; the names by the rule win.
const FLAGS: [(&str, &str); 2] = [
    ("LARDER_HOSTS_DIR", "hosts_dirs"),
    ("LARDER_MAX_LAYERS", "pull.max_layers"),
];
/// Of other verbs.
const OTHERS: [&str; 1] = ["LARDER_PASSWORD"];

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// `LARDER_CONFIG`.
    pub(super) config: Option<String>,
    /// As a file would say it.
    pub(super) table: Table,
    /// Variables that begin as ours and mean nothing.
    pub(super) unknown: Vec<String>,
    /// Which variable set which key.
    names: BTreeMap<String, String>,
}

impl Environment {
    /// # Errors
    /// A value that is not of its key's type.
    pub(super) fn read(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut all = BTreeMap::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let value = value
                .into_string()
                .map_err(|_| ConfigError::new(name, "the value is not UTF-8"))?;
            all.insert(name.to_owned(), value);
        }
        let mut environment = Environment {
            config: all.remove(CONFIG).filter(|path| !path.is_empty()),
            ..Environment::default()
        };
        for (alias, key) in FLAGS {
            if let Some(value) = all.remove(alias) {
                environment.set(alias, key, &value)?;
            }
        }
        for key in keys() {
            let name = variable(&key);
            if let Some(value) = all.remove(&name) {
                environment.set(&name, &key, &value)?;
            }
        }
        let strange = all.into_keys();
        environment.unknown = strange
            .filter(|name| !OTHERS.contains(&name.as_str()) && !is_service(name))
            .collect();
        Ok(environment)
    }

    /// The variable that a key comes from.
    pub(super) fn origin(&self, key: &str) -> Option<&str> {
        self.names.get(key).map(String::as_str)
    }

    fn set(&mut self, name: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        let value = typed(key, text).map_err(|cause| ConfigError::new(name, cause))?;
        overlay(&mut self.table, nested(key, value));
        self.names.insert(key.to_owned(), name.to_owned());
        Ok(())
    }
}

/// Every key of the file, as `registry.attempts`.
pub(super) fn keys() -> Vec<String> {
    let tables = serde_json::to_value(File::default()).unwrap_or_default();
    let mut keys = Vec::new();
    for (name, value) in tables.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(table) => keys.extend(table.keys().map(|key| format!("{name}.{key}"))),
            None => keys.push(name.clone()),
        }
    }
    keys
}

/// The variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Puts one table over another.
pub(in crate::app) fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Kubernetes tells containers of each service of their namespace; one named larder is no mistake.
fn is_service(name: &str) -> bool {
    name.ends_with("_PORT") || name.contains("_PORT_") || name.contains("_SERVICE_")
}

fn nested(key: &str, value: Value) -> Table {
    let mut table = Table::new();
    match key.split_once('.') {
        Some((section, key)) => {
            table.insert(section.to_owned(), Value::Table(nested(key, value)));
        }
        None => {
            table.insert(key.to_owned(), value);
        }
    }
    table
}

/// The text as the type that the key has.
fn typed(key: &str, text: &str) -> Result<Value, String> {
    let takes = |sample: Value| File::deserialize(Value::Table(nested(key, sample))).is_ok();
    if takes(Value::String(String::new())) {
        return Ok(Value::String(text.to_owned()));
    }
    if takes(Value::Integer(1)) {
        let number: Result<u32, _> = text.parse();
        let number = number.map(i64::from).or_else(|_| text.parse::<i64>());
        return match number {
            Ok(number) if number >= 0 => Ok(Value::Integer(number)),
            _ => Err(format!("{text:?} is no whole number")),
        };
    }
    if takes(Value::Boolean(true)) {
        let value = text
            .parse()
            .map_err(|_| format!("{text:?} is neither true nor false"))?;
        return Ok(Value::Boolean(value));
    }
    // Paths as in PATH; names of images have colons.
    let separator = if key.ends_with("dirs") { ':' } else { ',' };
    let items = text.split(separator).map(str::trim);
    let items = items.filter(|item| !item.is_empty());
    Ok(Value::Array(
        items.map(|item| Value::String(item.to_owned())).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, String> {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Environment::read(variables).map_err(|error| error.to_string())
    }

    #[test]
    fn each_key_has_a_variable() {
        let keys = keys();
        for (key, name) in [
            ("root", "LARDER_ROOT"),
            ("registry.stall_timeout", "LARDER_REGISTRY_STALL_TIMEOUT"),
            ("limits.max_path", "LARDER_LIMITS_MAX_PATH"),
        ] {
            assert!(keys.iter().any(|known| known == key), "{key}");
            assert_eq!(variable(key), name);
        }
        let mut names: Vec<_> = keys.iter().map(|key| variable(key)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), keys.len());
    }

    #[test]
    fn types_are_those_of_the_file() {
        let environment = read(&[
            ("LARDER_ROOT", "/r"),
            ("LARDER_HOSTS_DIRS", "/a:/b"),
            ("LARDER_PINNED", "r.io:5000/a*, b:1"),
            ("LARDER_REGISTRY_ATTEMPTS", "7"),
            ("LARDER_REGISTRY_STALL_TIMEOUT", "5s"),
            ("LARDER_LOG_LEVEL", "warn"),
            ("LARDER_HTTP", ""),
            ("LARDER_CONFIG", "/etc/x.toml"),
        ])
        .unwrap();
        let expected: Table =
            "root = '/r'\nhosts_dirs = ['/a', '/b']\npinned = ['r.io:5000/a*', 'b:1']\n\
             http = ''\nregistry = {attempts = 7, stall_timeout = '5s'}\nlog = {level = 'warn'}"
                .parse()
                .unwrap();
        assert_eq!(environment.table, expected);
        assert_eq!(environment.config.as_deref(), Some("/etc/x.toml"));
        assert_eq!(
            environment.origin("registry.attempts"),
            Some("LARDER_REGISTRY_ATTEMPTS")
        );
        assert_eq!(environment.origin("registry.max_per_host"), None);
        for (name, value) in [
            ("LARDER_REGISTRY_ATTEMPTS", "many"),
            ("LARDER_REGISTRY_ATTEMPTS", "-1"),
            ("LARDER_MAX_LAYERS", ""),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
    }

    #[test]
    fn the_names_of_flags_mean_the_same() {
        let environment = read(&[("LARDER_MAX_LAYERS", "2"), ("LARDER_HOSTS_DIR", "/a")]).unwrap();
        assert_eq!(
            environment.origin("pull.max_layers"),
            Some("LARDER_MAX_LAYERS")
        );
        let environment =
            read(&[("LARDER_MAX_LAYERS", "2"), ("LARDER_PULL_MAX_LAYERS", "3")]).unwrap();
        assert_eq!(
            environment.origin("pull.max_layers"),
            Some("LARDER_PULL_MAX_LAYERS")
        );
        assert_eq!(
            environment.table["pull"]["max_layers"].as_integer(),
            Some(3)
        );
    }

    #[test]
    fn misspelt_names_are_kept_and_services_are_not() {
        let environment = read(&[
            ("LARDER_ROOTS", "/r"),
            ("LARDER_REGISTRY_ATTEMPT", "2"),
            ("LARDER_PASSWORD", "x"),
            ("LARDER_SERVICE_HOST", "10.0.0.1"),
            ("LARDER_PORT", "tcp://10.0.0.1:9640"),
            ("LARDER_METRICS_PORT_9640_TCP_ADDR", "10.0.0.1"),
            ("OTHER", "x"),
        ])
        .unwrap();
        assert_eq!(
            environment.unknown,
            ["LARDER_REGISTRY_ATTEMPT", "LARDER_ROOTS"]
        );
    }
}

//! The contents of a pull secret (`.dockerconfigjson`), from memory. Never asks credential helpers: a secret that
//! comes from outside must not start programs.

use std::collections::HashMap;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::registry::{Credentials, Secret};

/// `auth` is written with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Larger than any secret may be.
const MAX_BYTES: usize = 1 << 20;

/// A secret is malformed. Never quotes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DockerConfigError {
    #[error(".dockerconfigjson is larger than 1 MiB")]
    TooLarge,
    #[error(".dockerconfigjson is no docker config.json (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error(".dockerconfigjson has an \"auth\" that is not base64 of user:password")]
    Auth,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Credentials for a registry domain, if the secret has any.
pub(super) fn credentials(
    config: &[u8],
    domain: &str,
) -> Result<Option<Credentials>, DockerConfigError> {
    if config.len() > MAX_BYTES {
        return Err(DockerConfigError::TooLarge);
    }
    // The parser's own words may quote a value.
    let config: Config =
        serde_json::from_slice(config).map_err(|error| DockerConfigError::Json {
            line: error.line(),
            column: error.column(),
        })?;
    let wanted = canonical(domain);
    // Keys may be URLs with paths; of several the first by name.
    let mut keys: Vec<(&String, &Entry)> = config
        .auths
        .iter()
        .filter(|(key, _)| canonical(key) == wanted)
        .collect();
    keys.sort_by_key(|(key, _)| key.as_str());
    match keys.first() {
        Some((_, entry)) => read(entry),
        None => Ok(None),
    }
}

/// The host of a key; all of Docker Hub's are one.
fn canonical(key: &str) -> String {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = key.split(['/', '?', '#']).next().unwrap_or_default();
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

fn read(entry: &Entry) -> Result<Option<Credentials>, DockerConfigError> {
    if !entry.registrytoken.is_empty() {
        return Ok(Some(Credentials::Bearer(Secret::from(
            entry.registrytoken.clone(),
        ))));
    }
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credentials::Identity(Secret::from(
            entry.identitytoken.clone(),
        ))));
    }
    if !entry.auth.is_empty() {
        let bytes = BASE64
            .decode(entry.auth.trim())
            .map_err(|_| DockerConfigError::Auth)?;
        let text = String::from_utf8(bytes).map_err(|_| DockerConfigError::Auth)?;
        let (username, password) = text.split_once(':').ok_or(DockerConfigError::Auth)?;
        return Ok(Some(Credentials::Basic {
            username: username.to_owned(),
            password: Secret::from(password.trim_matches('\0').to_owned()),
        }));
    }
    if entry.username.is_empty() && entry.password.is_empty() {
        return Ok(None);
    }
    Ok(Some(Credentials::Basic {
        username: entry.username.clone(),
        password: Secret::from(entry.password.clone()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic {
            username: username.to_owned(),
            password: Secret::from(password.to_owned()),
        })
    }

    #[test]
    fn finds_the_registrys_entry() {
        let config = br#"{"auths": {
            "r.io": {"auth": "YW5uOnMzY3JldA=="},
            "https://index.docker.io/v1/": {"username": "bob", "password": "pw"},
            "https://two.io:5000/v2": {"identitytoken": "t"}
        }}"#;
        let of = |domain| credentials(config, domain).unwrap();
        assert_eq!(of("r.io"), basic("ann", "s3cret"));
        assert_eq!(of("docker.io"), basic("bob", "pw"));
        assert_eq!(
            of("two.io:5000"),
            Some(Credentials::Identity(Secret::from("t".to_owned())))
        );
        assert_eq!(of("two.io"), None);
    }

    #[test]
    fn malformed_secrets_are_not_quoted() {
        for config in [
            &b"hunter2"[..],
            br#"{"auths": "hunter2"}"#,
            br#"{"auths": {"r.io": {"auth": "hunter2"}}}"#,
        ] {
            let error = credentials(config, "r.io").unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert_eq!(credentials(b"{}", "r.io"), Ok(None));
    }
}

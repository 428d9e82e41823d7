//! Credentials in a Kubernetes pull secret (`kubernetes.io/dockerconfigjson`).
//!
//! A secret comes from whoever may write it, so nothing in it is run: credential helpers and stores are ignored.

use std::path::Path;

use super::Credentials;
use super::credentials::{DockerConfig, fit, from_entry};
use crate::image::Reference;
use crate::registry::{Error, ErrorClass};

/// Credentials of one secret that are offered for one image at most.
const MAX_ENTRIES: usize = 8;
const MAX_BYTES: usize = 1 << 20;

/// The credentials in a pull secret for an image, the most specific entry first, as the kubelet chooses them: a key is a
/// host, whose labels may be `*`, with or without the beginning of a repository. `secret` names it in errors.
///
/// # Errors
/// The bytes are no docker configuration, or an entry that fits is malformed.
pub fn secret_credentials(
    docker_config: &[u8],
    secret: &str,
    image: &Reference,
) -> Result<Vec<Credentials>, Error> {
    let wrong = |what: String| Error::new(ErrorClass::Config, format!("secret {secret} {what}"));
    if docker_config.len() > MAX_BYTES {
        return Err(wrong("is larger than 1 MiB".to_owned()));
    }
    // The parser's error may quote a value, so only its place is told.
    let parsed: DockerConfig = serde_json::from_slice(docker_config).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        wrong(format!(
            "is not a docker config.json (line {line}, column {column})"
        ))
    })?;
    let (domain, path) = (image.domain(), image.path());
    let mut fitting: Vec<_> = parsed
        .auths
        .iter()
        .filter(|(key, _)| fits(key, domain, path))
        .collect();
    fitting.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then(a.cmp(b)));
    let file = format!("of secret {secret}");
    let mut found = Vec::new();
    for (_, entry) in fitting.into_iter().take(MAX_ENTRIES) {
        found.extend(from_entry(entry, Path::new(&file), domain)?);
    }
    Ok(found)
}

fn fits(key: &str, domain: &str, path: &str) -> bool {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, below) = bare.split_once('/').unwrap_or((bare, ""));
    if matches_labels(host, domain) {
        return fit(&format!("{domain}/{below}"), domain, path).is_some();
    }
    fit(key, domain, path).is_some()
}

/// `*.example.com` is `a.example.com`, not `a.b.example.com`.
fn matches_labels(pattern: &str, host: &str) -> bool {
    pattern.contains('*')
        && pattern.split('.').count() == host.split('.').count()
        && pattern
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, label)| pattern == "*" || pattern == label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(json: &str, image: &str) -> Vec<String> {
        let found = secret_credentials(json.as_bytes(), "team/pull", &image.parse().unwrap());
        let name = |credentials| match credentials {
            Credentials::Basic { username, .. } => username,
            other => format!("{other:?}"),
        };
        found.unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn the_most_specific_entry_comes_first() {
        let json = r#"{"auths":{
            "reg.example":{"username":"host","password":"p"},
            "https://reg.example/team":{"username":"team","password":"p"},
            "reg.example/team/app":{"username":"app","password":"p"},
            "*.example":{"username":"wild","password":"p"},
            "https://index.docker.io/v1/":{"username":"hub","password":"p"}
        }, "credsStore": "evil", "credHelpers": {"reg.example": "evil"}}"#;
        assert_eq!(
            users(json, "reg.example/team/app:1"),
            ["team", "app", "host", "wild"]
        );
        assert_eq!(users(json, "reg.example/team2/app"), ["host", "wild"]);
        assert_eq!(users(json, "other.example/x/y"), ["wild"]);
        assert_eq!(users(json, "a.b.example/x/y"), [""; 0]);
        assert_eq!(users(json, "busybox"), ["hub"]);
    }

    #[test]
    fn a_malformed_secret_is_named_and_not_shown() {
        let image = "reg.example/a".parse().unwrap();
        for json in [
            r#"{"auths": {"reg.example": "hunter2"}}"#,
            r#"{"auths": {"reg.example": {"auth": "hunter2%"}}}"#,
            "hunter2",
        ] {
            let error = secret_credentials(json.as_bytes(), "team/pull", &image).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Config);
            assert!(error.to_string().contains("secret team/pull"), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error}");
        }
    }
}

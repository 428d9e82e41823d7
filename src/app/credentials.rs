//! Credentials for a pull, from where docker and podman keep them. For the terminal: an agent asks its own file itself.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::control::proto;
use crate::registry::{Credentials, docker_credentials};

/// A docker `config.json`, and whether somebody named it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AuthFile {
    path: PathBuf,
    named_by: Option<&'static str>,
}

/// What was found for a registry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// As `larder.v1` carries them; `None` where there are none.
    pub credentials: Option<proto::Credentials>,
    /// The default file could not be used, and why. Most images are public, so this is no error.
    pub warning: Option<String>,
}

/// Credentials for a repository, `domain/path`, as `larder.v1` carries them: from `authfile`, else `$REGISTRY_AUTH_FILE`, else
/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
///
/// # Errors
/// A file that somebody named is absent, unreadable or malformed, or its credential helper fails.
pub async fn credentials_for(authfile: Option<&Path>, repository: &str) -> anyhow::Result<Found> {
    let Some(file) = pick(authfile, |name| env::var_os(name), env::home_dir()) else {
        return Ok(Found::default());
    };
    match read(&file, repository).await {
        Ok(found) => Ok(Found {
            credentials: found.as_ref().and_then(wire),
            warning: None,
        }),
        Err(error) if file.named_by.is_some() => Err(error),
        Err(error) => Ok(Found {
            credentials: None,
            warning: Some(format!("{error:#}")),
        }),
    }
}

async fn read(file: &AuthFile, repository: &str) -> anyhow::Result<Option<Credentials>> {
    if let Some(name) = file.named_by {
        // An absent file would be read as one without credentials.
        tokio::fs::metadata(&file.path)
            .await
            .map_err(|error| anyhow!("{}: {error}; {name} names it", file.path.display()))?;
    }
    docker_credentials(&file.path, repository)
        .await
        .with_context(|| format!("credentials for {repository}"))
}

fn pick(
    flag: Option<&Path>,
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    home: Option<PathBuf>,
) -> Option<AuthFile> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let named = |path: PathBuf, name| AuthFile {
        path,
        named_by: Some(name),
    };
    if let Some(flag) = flag {
        return Some(named(flag.to_owned(), "--authfile"));
    }
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return Some(named(file.into(), "$REGISTRY_AUTH_FILE"));
    }
    // Docker itself takes a folder without the file.
    let folder = variable("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(home?.join(".docker")))?;
    Some(AuthFile {
        path: folder.join("config.json"),
        named_by: None,
    })
}

fn wire(credentials: &Credentials) -> Option<proto::Credentials> {
    let mut out = proto::Credentials::default();
    match credentials {
        Credentials::Anonymous => return None,
        Credentials::Basic { username, password } => {
            out.username = username.clone();
            out.password = password.expose().to_owned();
        }
        Credentials::Identity(token) => out.identity_token = token.expose().to_owned(),
        Credentials::Bearer(token) => out.registry_token = token.expose().to_owned(),
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn flag_then_variables_then_home() {
        let set = |names: &'static [&'static str]| {
            move |name: &str| names.contains(&name).then(|| OsString::from("/set"))
        };
        let home = || Some(PathBuf::from("/home/ann"));
        let path = |file: Option<AuthFile>| file.map(|file| file.path);
        let all = &["REGISTRY_AUTH_FILE", "DOCKER_CONFIG"];
        let flag = pick(Some(Path::new("/flag")), set(all), home()).unwrap();
        assert_eq!(
            (flag.path.as_path(), flag.named_by),
            (Path::new("/flag"), Some("--authfile"))
        );
        assert_eq!(path(pick(None, set(all), home())), Some("/set".into()));
        let docker = pick(None, set(&["DOCKER_CONFIG"]), home()).unwrap();
        assert_eq!(
            (docker.path.as_path(), docker.named_by),
            (Path::new("/set/config.json"), None)
        );
        assert_eq!(
            path(pick(None, set(&[]), home())),
            Some("/home/ann/.docker/config.json".into())
        );
        assert_eq!(pick(None, set(&[]), None), None);
        assert_eq!(
            path(pick(None, |_| Some(OsString::new()), home())),
            Some("/home/ann/.docker/config.json".into())
        );
    }

    #[tokio::test]
    async fn a_named_file_must_be_there_and_well_formed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        let error = credentials_for(Some(&file), "r.io").await.unwrap_err();
        assert!(
            error.to_string().ends_with("--authfile names it"),
            "{error}"
        );
        std::fs::write(&file, "{").unwrap();
        let error = credentials_for(Some(&file), "r.io").await.unwrap_err();
        assert!(format!("{error:#}").contains("auth.json"), "{error:#}");
        // "ann:secret"
        std::fs::write(&file, r#"{"auths":{"r.io":{"auth":"YW5uOnNlY3JldA=="}}}"#).unwrap();
        let found = credentials_for(Some(&file), "r.io").await.unwrap();
        let found = found.credentials.unwrap();
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("ann", "secret")
        );
        assert!(
            credentials_for(Some(&file), "other.io")
                .await
                .unwrap()
                .credentials
                .is_none()
        );
    }
}

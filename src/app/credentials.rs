//! Credentials that lie where docker and podman keep them.

use std::path::{Path, PathBuf};

use crate::control::proto;
use crate::registry::{self, Credentials};

/// What a terminal user has for a registry domain: `file`, else the first of `$REGISTRY_AUTH_FILE`,
/// `$DOCKER_CONFIG/config.json`, `~/.docker/config.json` that is there.
pub async fn credentials_for(
    file: Option<&Path>,
    domain: &str,
) -> Result<Option<proto::Credentials>, registry::Error> {
    let Some(file) = file.map(Path::to_owned).or_else(usual_file) else {
        return Ok(None);
    };
    let found = registry::docker_credentials(&file, domain).await?;
    Ok(found.and_then(|credentials| to_wire(&credentials)))
}

fn usual_file() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let candidates = [
        of("REGISTRY_AUTH_FILE").map(PathBuf::from),
        of("DOCKER_CONFIG").map(|folder| PathBuf::from(folder).join("config.json")),
        of("HOME").map(|home| PathBuf::from(home).join(".docker/config.json")),
    ];
    candidates.into_iter().flatten().find(|file| file.is_file())
}

fn to_wire(credentials: &Credentials) -> Option<proto::Credentials> {
    let mut wire = proto::Credentials::default();
    match credentials {
        Credentials::Anonymous => return None,
        Credentials::Basic { username, password } => {
            wire.username.clone_from(username);
            wire.password = password.expose().to_owned();
        }
        Credentials::Identity(token) => wire.identity_token = token.expose().to_owned(),
        Credentials::Bearer(token) => wire.registry_token = token.expose().to_owned(),
    }
    Some(wire)
}

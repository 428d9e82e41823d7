//! Pull secrets: one GET by name when a pull needs it, kept in memory for a short time. Never listed, watched, written
//! or logged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::ByteString;
use kube::core::Request;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::seam::WantCredentials;
use crate::k8s::api::SecretRef;
use crate::k8s::connect::{Connection, REQUEST_TIMEOUT};

/// Long enough for one prepull's images, short enough for a rotation.
const KEPT: Duration = Duration::from_secs(300);
/// Secrets kept at once.
const MOST: usize = 256;
/// What a docker config with a hundred registries needs.
const MAX_BYTES: usize = 256 << 10;
const KEY: &str = ".dockerconfigjson";

/// Why a secret is not to be had, without what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pull secret {namespace}/{name}: {cause}")]
pub(super) struct SecretFault {
    namespace: String,
    name: String,
    cause: &'static str,
}

/// Secrets by name.
#[derive(Debug)]
pub(super) struct Secrets {
    connection: Arc<Connection>,
    kept: Mutex<BTreeMap<SecretRef, Kept>>,
}

struct Kept {
    until: Instant,
    config: Arc<[u8]>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// As much of a Secret as is needed. Not the whole type: what does not fit would be quoted in an error.
#[derive(Deserialize)]
struct Secret {
    #[serde(default)]
    data: BTreeMap<String, ByteString>,
}

impl Secrets {
    /// None yet.
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Secrets {
            connection,
            kept: Mutex::default(),
        }
    }

    /// What can be had of `wanted`, in order, and why the rest cannot.
    pub(super) async fn get(
        &self,
        wanted: &[SecretRef],
    ) -> (Vec<WantCredentials>, Vec<SecretFault>) {
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        for secret in wanted {
            match self.one(secret).await {
                Ok(docker_config) => found.push(WantCredentials {
                    source: format!("{}/{}", secret.namespace, secret.name),
                    docker_config,
                }),
                Err(cause) => faults.push(SecretFault {
                    namespace: secret.namespace.clone(),
                    name: secret.name.clone(),
                    cause,
                }),
            }
        }
        (found, faults)
    }

    /// Forgets a secret whose credentials did not work: it may have been rotated.
    pub(super) fn forget(&self, secrets: &[SecretRef]) {
        let mut kept = self.lock();
        for secret in secrets {
            kept.remove(secret);
        }
    }

    async fn one(&self, secret: &SecretRef) -> Result<Arc<[u8]>, &'static str> {
        let now = Instant::now();
        {
            let mut kept = self.lock();
            kept.retain(|_, kept| kept.until > now);
            if let Some(kept) = kept.get(secret) {
                return Ok(kept.config.clone());
            }
        }
        let config: Arc<[u8]> = self.fetch(secret).await?.into();
        let mut kept = self.lock();
        if kept.len() < MOST {
            let until = now + KEPT;
            let config = config.clone();
            kept.insert(secret.clone(), Kept { until, config });
        }
        Ok(config)
    }

    async fn fetch(&self, secret: &SecretRef) -> Result<Vec<u8>, &'static str> {
        let path = format!("/api/v1/namespaces/{}/secrets", secret.namespace);
        if !plain(&secret.namespace) || !plain(&secret.name) {
            return Err("its name is none");
        }
        let request = Request::new(path)
            .get(&secret.name, &kube::api::GetParams::default())
            .map_err(|_| "its name is none")?;
        // As text: a client that decodes answers logs those it cannot decode.
        let asked = async { self.connection.client().await?.request_text(request).await };
        let text = match timeout(REQUEST_TIMEOUT, asked).await {
            Ok(Ok(text)) => text,
            Ok(Err(kube::Error::Api(status))) => {
                return Err(match status.code {
                    401 => "the API server refuses this agent's credentials",
                    403 => "this agent may not get it: a RoleBinding for it is missing",
                    404 => "there is none",
                    _ => "the API server refuses",
                });
            }
            Ok(Err(_)) | Err(_) => return Err("the API server is not reached"),
        };
        let mut secret: Secret =
            serde_json::from_str(&text).map_err(|_| "the answer cannot be read")?;
        match secret.data.remove(KEY) {
            Some(ByteString(config)) if config.len() <= MAX_BYTES => Ok(config),
            Some(_) => Err("it is larger than 256 KiB"),
            None => {
                Err("it has no .dockerconfigjson: its type must be kubernetes.io/dockerconfigjson")
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SecretRef, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name of Kubernetes, so that nothing but one object is asked for.
fn plain(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for (name, good) in [
            ("regcred", true),
            ("a.b-c", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a?b", false),
            ("A", false),
        ] {
            assert_eq!(plain(name), good, "{name}");
        }
    }
}

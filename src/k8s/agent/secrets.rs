//! Pull secrets: one GET by name when a pull needs it, kept in memory for a short time. Never listed, watched, written
//! or logged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::seam::WantCredentials;
use crate::k8s::api::SecretRef;
use crate::k8s::connect::{Connection, REQUEST_TIMEOUT};
use crate::k8s::pull_secret::{self, Cause};

/// Long enough for one prepull's images, short enough for a rotation.
const KEPT: Duration = Duration::from_secs(300);
/// Secrets kept at once.
const MOST: usize = 256;

/// Why a secret is not to be had, without what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pull secret {namespace}/{name}: {cause}")]
pub(super) struct SecretFault {
    namespace: String,
    name: String,
    cause: Cause,
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

    async fn one(&self, secret: &SecretRef) -> Result<Arc<[u8]>, Cause> {
        let now = Instant::now();
        {
            let mut kept = self.lock();
            kept.retain(|_, kept| kept.until > now);
            if let Some(kept) = kept.get(secret) {
                return Ok(kept.config.clone());
            }
        }
        let client = self.connection.client().await;
        let client = client.map_err(|_| Cause::Unreachable)?;
        let config = pull_secret::read(&client, secret, REQUEST_TIMEOUT).await?;
        let mut kept = self.lock();
        if kept.len() < MOST {
            let until = now + KEPT;
            let config = config.clone();
            kept.insert(secret.clone(), Kept { until, config });
        }
        Ok(config)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SecretRef, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

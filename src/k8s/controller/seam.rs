//! What the controller needs of registries. `app` has it, over the registry client.

use std::sync::Arc;
use std::time::Duration;

use crate::image::{Digest, Reference};
use crate::k8s::agent::{BoxFuture, WantCredentials};

/// Finds out what a tag stands for.
pub trait Resolver: Send + Sync + 'static {
    /// The digest of a tag's index or manifest, by one round trip where the registry allows it. A reference with a
    /// digest is only checked to exist.
    fn resolve(
        &self,
        reference: Reference,
        credentials: Arc<[WantCredentials]>,
    ) -> BoxFuture<'_, Result<Resolution, ResolveFailure>>;
}

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Of the index or manifest.
    pub digest: Digest,
}

/// Why a reference has no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ResolveFailure {
    /// One of [`crate::k8s::api::reason`].
    pub reason: &'static str,
    /// For people; nothing that a registry sent, no secret.
    pub message: String,
    /// The registry's own wish.
    pub retry_after: Option<Duration>,
}

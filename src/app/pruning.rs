//! Pruning for the agent: who uses images, told by the container runtime; and larder's own cache as what policies remove
//! images from.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::{Cache, Cause, Error, ImageUser, ImageUsers};
use crate::k8s::agent::{BoxFuture, PruneFault, Pruning};
use crate::k8s::api::reason;
use crate::lifecycle::Shutdown;
use crate::prune::{Candidate, Disk};
use crate::runtime::{self, RuntimeContainers};

/// Between two looks of the cache at its disk.
const ROUND: Duration = Duration::from_secs(10);

/// The containers and pods of the runtime at a socket.
pub(super) fn users(endpoint: &Path, metrics: runtime::Metrics) -> ImageUsers {
    let containers = RuntimeContainers::new(endpoint, metrics);
    Arc::new(move || {
        let containers = containers.clone();
        Box::pin(async move {
            let users = containers
                .users()
                .await
                .map_err(|error| error.to_string())?;
            let users = users.into_iter().map(|user| ImageUser {
                by: user.by,
                images: user.images,
                sandbox: user.sandbox,
            });
            Ok(users.collect())
        })
    })
}

/// larder's own cache, as policies remove images from it.
#[derive(Clone, Debug)]
pub(super) struct LarderPruning {
    cache: Cache,
}

impl LarderPruning {
    pub(super) fn new(cache: Cache) -> Self {
        LarderPruning { cache }
    }
}

impl Pruning for LarderPruning {
    fn candidates(&self) -> BoxFuture<'_, Result<(Vec<Candidate>, Disk), PruneFault>> {
        Box::pin(async {
            let candidates = self.cache.candidates(Cause::Policy).await;
            candidates.map_err(|error| fault(&error))
        })
    }

    fn remove(&self, id: String) -> BoxFuture<'_, Result<Option<u64>, PruneFault>> {
        Box::pin(async move {
            let removed = self.cache.prune_image(&id, Cause::Policy).await;
            removed.map_err(|error| fault(&error))
        })
    }

    fn reserve(&self, bytes: u64) {
        self.cache.reserve(bytes);
    }
}

fn fault(error: &Error) -> PruneFault {
    let reason = match error {
        Error::UsersUnknown { .. } => reason::RUNTIME_UNAVAILABLE,
        Error::Store { .. } => reason::STORE_ERROR,
        _ => reason::UNKNOWN,
    };
    PruneFault {
        reason,
        message: error.to_string(),
    }
}

/// Has the cache look after itself until shutdown is asked for.
pub(super) async fn tend(cache: Cache, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = cache.tend() => {}
            () = shutdown.wait() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = shutdown.wait() => return,
        }
    }
}

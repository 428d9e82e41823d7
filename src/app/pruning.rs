//! Pruning for the agent: who uses images, told by the container runtime; and larder's own cache as what policies remove
//! images from.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::{Cache, ImageUser, ImageUsers};
use crate::lifecycle::Shutdown;
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

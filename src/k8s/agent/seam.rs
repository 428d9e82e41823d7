//! What the agent needs of whatever holds images on this node: larder's own cache, or the image service of the node's
//! container runtime. `app` has both, for holding images and for removing them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::image::{Digest, Platform, Reference};
use crate::prune::{Candidate, Disk};

/// A future of a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What holds images on this node.
pub trait Images: Send + Sync + 'static {
    /// Every image held. May be asked often: answered from memory or by one call.
    fn list(&self) -> BoxFuture<'_, Result<Vec<HeldImage>, PullFailure>>;

    /// Holds an image, in the background: after, and slower than, what pods wait for. Ends when the image is durable
    /// and listed. Dropping the future gives the pull up.
    fn pull(&self, want: Want) -> BoxFuture<'_, Result<HeldImage, PullFailure>>;

    /// Replaces the whole set of declared images: what is in it is protected, and pinned where it says so.
    fn declare(&self, declared: Vec<Declared>) -> BoxFuture<'_, Result<(), PullFailure>>;

    /// Bytes and counts.
    fn figures(&self) -> BoxFuture<'_, Result<Figures, PullFailure>>;
}

/// What removes images on this node. Declared images are known from [`Images::declare`].
pub trait Pruning: Send + Sync + 'static {
    /// Every image with all that decides whether it may go, and the file system that images are on. An error means that
    /// this is not known, and that nothing may go: a runtime that is configured and not reached is one.
    fn candidates(&self) -> BoxFuture<'_, Result<(Vec<Candidate>, Disk), PruneFault>>;

    /// Removes an image with all its names, unless something protects it at this moment: then, and where it is gone
    /// already, the answer is `None`. Else the bytes that this freed. What is removed when this ends stays so.
    fn remove(&self, id: String) -> BoxFuture<'_, Result<Option<u64>, PruneFault>>;

    /// The band of the disk that pulls never enter from now on, in bytes.
    fn reserve(&self, bytes: u64);
}

/// Why nothing is known of what may go, or an image did not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PruneFault {
    /// One of [`crate::k8s::api::reason`]: `RuntimeUnavailable`, `StoreError`, `Timeout`, `Unknown`.
    pub reason: &'static str,
    /// For people: subject, cause, remedy.
    pub message: String,
}

/// An image to hold.
#[derive(Clone, Debug)]
pub struct Want {
    /// As the prepull names it; the name under which pods will ask for it.
    pub reference: Reference,
    /// The digest that the revision says. `None` without a controller: whatever the tag stands for.
    pub digest: Option<Digest>,
    /// `None`: the node's own.
    pub platform: Option<Platform>,
    /// Higher is first among background pulls.
    pub priority: i32,
    /// Tried in order after an anonymous attempt, before the node's own credentials.
    pub credentials: Vec<WantCredentials>,
    /// Whether an image that needed `credentials` may be shown to every pod.
    pub node_wide: bool,
}

/// Credentials from a pull secret: for any registry it has an entry for.
#[derive(Clone)]
pub struct WantCredentials {
    /// Namespace and name of the secret, for messages.
    pub source: String,
    /// The secret's `.dockerconfigjson`, as it is. Never logged.
    pub docker_config: Arc<[u8]>,
}

impl std::fmt::Debug for WantCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WantCredentials")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// An image that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldImage {
    /// `sha256:` and the config's digest.
    pub id: String,
    /// `repository:tag`, canonical.
    pub tags: Vec<String>,
    /// `repository@digest`, canonical.
    pub digests: Vec<String>,
    /// Reported as pinned.
    pub pinned: bool,
    /// Pulled with a pull secret, and shown to nobody who has not proven that he may have it.
    pub staged: bool,
    /// Bytes, as the holder counts them.
    pub size: u64,
}

/// An image that a prepull declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// As the prepull names it.
    pub reference: Reference,
    /// The digest that the revision says.
    pub digest: Option<Digest>,
    /// Report it as pinned.
    pub pinned: bool,
    /// Who declares it, for people: `ClusterImagePrepull base`.
    pub by: String,
}

/// Bytes and counts of what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Size of the file system.
    pub capacity_bytes: u64,
    /// Free for us on it.
    pub available_bytes: u64,
    /// What images occupy on disk.
    pub stored_bytes: u64,
    /// Sum of the layers' contents.
    pub logical_bytes: u64,
    /// Contents of pinned images.
    pub pinned_bytes: u64,
    /// Images.
    pub images: u64,
    /// Layers.
    pub layers: u64,
    /// The last check of the store found no damage.
    pub healthy: bool,
    /// The last time since the start that images went, or should have gone, because the disk was nearly full.
    pub emergency: Option<Emergency>,
}

/// What was done for the sake of a disk that was nearly full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emergency {
    /// When it began: two that began at the same time are one, which goes on.
    pub began: Timestamp,
    /// When something was done last.
    pub at: Timestamp,
    /// Images removed.
    pub images: u64,
    /// What that gave back.
    pub freed_bytes: u64,
    /// What a pod's pull, or the band of the disk, wanted besides, and nothing could give.
    pub short_bytes: u64,
}

/// Why an image is not held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PullFailure {
    /// One of [`crate::k8s::api::reason`].
    pub reason: &'static str,
    /// For people: subject, cause, remedy. Nothing that a registry sent, no secret.
    pub message: String,
    /// The registry's own wish.
    pub retry_after: Option<Duration>,
}

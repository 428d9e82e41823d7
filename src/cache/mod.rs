//! Use cases: what a node does with images. Knows image, registry and store; no wire format.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::image::{Config as ImageConfig, DiffId, Digest, ImageId, Platform, Reference, User};
use crate::registry::{self, Credentials};
use crate::store;

/// Behaviour of the cache.
#[derive(Clone, Debug)]
pub struct Config {
    /// Platform of pulls that name none.
    pub platform: Platform,
    /// Layers ingested at once, over all pulls.
    pub max_layers: usize,
    /// How long a pull outlives its last waiter.
    pub orphan_grace: Duration,
    /// Patterns (exact, or with a trailing `*`) of names that are reported as pinned.
    pub pinned: Vec<String>,
}

/// A pull, as any door asks for it.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// What to pull.
    pub reference: Reference,
    /// `None` is the configured platform.
    pub platform: Option<Platform>,
    /// What to show to the registry.
    pub credentials: Credentials,
    /// Plain HTTP to the reference's own host.
    pub plain_http: bool,
}

/// Where a layer's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerSource {
    /// Not decided yet.
    Unknown,
    /// Already in the store.
    Present,
    /// From the registry or mirror.
    Registry,
    /// Another pull was already fetching it.
    Shared,
}

/// State of one layer in a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// Of the compressed blob.
    pub blob: Digest,
    /// Compressed bytes in all.
    pub size: u64,
    /// Compressed bytes received.
    pub fetched: u64,
    /// Uncompressed bytes processed.
    pub inflated: u64,
    /// Content bytes that were already in the store.
    pub deduplicated: u64,
    /// Content bytes written.
    pub written: u64,
    /// Where from.
    pub source: LayerSource,
    /// Durable in the store.
    pub done: bool,
}

/// State of a pull. Sampled, not logged: a watcher sees the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// `resolving`, `fetching`, `committing`, `done`, `failed`.
    pub phase: Phase,
    /// The top-level digest, once resolved.
    pub digest: Option<Digest>,
    /// The host that answered.
    pub host: String,
    /// Base first; empty until the manifest is read.
    pub layers: Vec<LayerProgress>,
}

/// Where a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Asking the registry.
    #[default]
    Resolving,
    /// Layers under way.
    Fetching,
    /// Making the image visible.
    Committing,
    /// Visible.
    Done,
    /// Given up.
    Failed,
}

/// The outcome of a pull.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image, visible now.
    pub image: ImageView,
    /// The top-level digest pulled.
    pub digest: Digest,
    /// Bytes that came over the network for layers.
    pub fetched_bytes: u64,
    /// True when nothing had to be fetched.
    pub up_to_date: bool,
}

/// A pull under way, shared by all who asked for the same.
#[derive(Debug)]
pub struct Pull {}

impl Pull {
    /// Progress: the newest state, and a wake-up when it changes (at most ten times a second).
    pub fn progress(&self) -> watch::Receiver<PullProgress> {
        todo!()
    }
    /// Waits for the outcome. Dropping the `Pull` before lets the work go on for the grace period, then cancels it
    /// unless others wait.
    pub async fn wait(self) -> Result<Pulled, Arc<Error>> {
        todo!()
    }
}

/// An image as doors show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageView {
    /// Config digest.
    pub id: ImageId,
    /// `docker.io/library/busybox:latest`, sorted.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:…` with the top-level digest, sorted.
    pub repo_digests: Vec<String>,
    /// Uncompressed content bytes, at least 1.
    pub size: u64,
    /// RFC 3339.
    pub created: Option<String>,
    /// Of the config.
    pub user: Option<User>,
    /// Of the config.
    pub platform: Platform,
    /// By record or by configured pattern.
    pub pinned: bool,
    /// Of this platform's manifest.
    pub manifest: Digest,
    /// Milliseconds since the epoch.
    pub pulled_at: i64,
    /// Base first.
    pub layers: Vec<store::LayerRef>,
}

/// Everything `inspect` shows.
#[derive(Clone, Debug)]
pub struct ImageDetails {
    /// The image.
    pub image: ImageView,
    /// Parsed config.
    pub config: ImageConfig,
    /// The config blob as received.
    pub config_json: Bytes,
    /// The manifest as received.
    pub manifest_json: Bytes,
    /// Per layer: facts and how many images use it.
    pub layers: Vec<LayerView>,
    /// Of all layers (OCI image specification, "Layer ChainID").
    pub chain_id: Digest,
}

/// A layer as `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerView {
    /// Of the uncompressed tar.
    pub diff_id: DiffId,
    /// Of the compressed blob.
    pub blob: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Uncompressed tar bytes.
    pub tar_bytes: u64,
    /// Images that use it, this one included.
    pub users: u64,
}

/// The cache. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {}

impl Cache {
    /// A cache over a store and a registry client. Needs a tokio runtime.
    pub fn new(
        config: Config,
        store: store::Store,
        registry: registry::Client,
        metrics: Metrics,
    ) -> Self {
        let _ = (config, store, registry, metrics);
        todo!()
    }
    /// Starts or joins a pull. Authorises at the registry always, even when everything is local.
    pub fn pull(&self, request: PullRequest) -> Pull {
        let _ = request;
        todo!()
    }
    /// All images, stable order. From memory.
    pub fn list(&self) -> Vec<ImageView> {
        todo!()
    }
    /// An image by any form: full id, id prefix, reference with tag and/or digest, familiar names. From memory.
    /// Absent is `Ok(None)`; an id prefix of several images is `Ambiguous`.
    pub fn status(&self, name: &str) -> Result<Option<ImageView>, Error> {
        let _ = name;
        todo!()
    }
    /// Config, manifest and layers of an image.
    pub async fn inspect(&self, name: &str) -> Result<Option<ImageDetails>, Error> {
        let _ = name;
        todo!()
    }
    /// Removes the whole image a name of any form finds, with all its names. Absent is `Ok(None)`.
    pub async fn remove(&self, name: &str) -> Result<Option<store::Removed>, Error> {
        let _ = name;
        todo!()
    }
    /// From counters.
    pub fn usage(&self) -> store::Usage {
        todo!()
    }
    /// Verifies the store. `progress(done, total)` in bytes.
    pub async fn fsck(
        &self,
        repair: bool,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<store::FsckReport, Error> {
        let _ = (repair, progress);
        todo!()
    }
    /// Writes an image's merged tree below `dir`.
    pub async fn unpack(&self, name: &str, dir: &Path) -> Result<ImageView, Error> {
        let _ = (name, dir);
        todo!()
    }
    /// Mounts an image read-only.
    pub async fn mount(&self, name: &str, dir: &Path) -> Result<ImageView, Error> {
        let _ = (name, dir);
        todo!()
    }
    /// Unmounts it.
    pub async fn umount(&self, dir: &Path) -> Result<(), Error> {
        let _ = dir;
        todo!()
    }
    /// The store's directory.
    pub fn root(&self) -> &Path {
        todo!()
    }
    /// Cancels pulls and waits until their work has stopped.
    pub async fn shutdown(&self) {
        todo!()
    }
}

/// What a use case can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry said no, or nothing.
    #[error("{reference}: {source}")]
    Registry {
        /// What was pulled.
        reference: String,
        /// Why.
        source: registry::Error,
    },
    /// The manifest or config is not acceptable.
    #[error("{reference}: {cause}")]
    Image {
        /// What was pulled.
        reference: String,
        /// Why.
        cause: String,
    },
    /// No image for the platform.
    #[error("{reference}: {cause}")]
    Platform {
        /// What was pulled.
        reference: String,
        /// Lists what is offered.
        cause: String,
    },
    /// A layer is not what the config says.
    #[error(
        "{reference}: layer {blob} unpacks to {found}, the config says {expected}; the image is broken, push it again"
    )]
    DiffIdMismatch {
        /// What was pulled.
        reference: String,
        /// The layer.
        blob: Digest,
        /// Per config.
        expected: DiffId,
        /// Computed.
        found: DiffId,
    },
    /// The store said no.
    #[error("{subject}: {source}")]
    Store {
        /// Image or path.
        subject: String,
        /// Why.
        source: store::Error,
    },
    /// An id prefix names several images.
    #[error("{prefix} is the beginning of {count} image ids: give more digits")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// No such image.
    #[error("{name}: no such image; larder images lists what is here")]
    NotFound {
        /// What was given.
        name: String,
    },
    /// The pull was given up: nobody waits, or the agent stops.
    #[error("{reference}: the pull was cancelled")]
    Cancelled {
        /// What was pulled.
        reference: String,
    },
    /// A caller's argument cannot be.
    #[error("{0}")]
    Invalid(String),
}

/// Counters of this room.
#[derive(Clone, Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// Registers this room's metrics.
    pub fn register(registry: &mut prometheus_client::registry::Registry) -> Self {
        let _ = registry;
        Self::default()
    }
}

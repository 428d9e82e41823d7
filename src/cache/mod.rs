//! Use cases: what a node does with images. Knows image, registry and store; no wire format.
//!
//! Owns the pulls under way, who waits for them and the leases that protect them. Never touches the data directory or
//! the network itself: that is what store and registry are for.

mod declared;
mod emergency;
mod error;
mod gate;
mod inspect;
mod keep;
mod leases;
mod metrics;
mod names;
mod prune;
mod pull;
mod relay;
mod request;
mod room;
mod settle;
mod shown;
mod snapshots;
mod tend;
mod threads;
mod users;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::image::{Digest, ImageId, Platform, User};
use crate::prune::Amount;
use crate::registry;
use crate::store;

use declared::Declared;
use gate::Gate;
use keep::Keeping;
use leases::{HeldLease, Parked};
use names::{Patterns, Query, Scope};
use threads::Threads;

pub use crate::registry::{Credentials, Secret};
pub use crate::store::{
    Damage, FsckReport, LayerRef, NewSnapshot, Removed, SnapshotError, SnapshotInfo, SnapshotKind,
    SnapshotMount, SnapshotUsage, Usage,
};
pub use declared::Declaration;
pub use emergency::Emergency;
pub use error::{Error, ErrorKind};
pub use inspect::{ImageDetails, LayerView};
pub use keep::Keep;
pub use metrics::Metrics;
pub use prune::{Cause, Pruned, starts_pods};
pub use pull::Pull;
pub use relay::{Asked, Grant, Origin, Relay, Relayed, RelayedManifest};
pub use request::{Background, Priority, PullRequest, Traffic, Visibility};
pub use settle::{Settle, Settled};
pub use shown::Shown;
pub use snapshots::{Failure as SnapshotFailure, Snapshots};
pub use users::{ImageUser, ImageUsers};

/// Pulls under way at once; more wait for their turn. Each holds a manifest and an index, 4 MiB each at most.
const MAX_PULLS: usize = 64;
/// Background pulls at once, of their own: they never take a foreground pull's turn.
const MAX_BACKGROUND_PULLS: usize = 16;

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
    /// A docker `config.json`, asked for credentials when a request has none. Read for each pull.
    pub authfile: Option<PathBuf>,
    /// What background pulls may take.
    pub background: Background,
    /// The band of the disk that pulls never enter; `None` for none.
    pub reserved: Option<Amount>,
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
    /// By record, by configured pattern, by declaration or by the runtime.
    pub pinned: bool,
    /// The same without the runtime's own pins.
    pub pinned_here: bool,
    /// Not in [`Shown`]: nobody but a prepull has proven that he may have it.
    pub staged: bool,
    /// Who declares it, sorted; see [`Cache::declare`].
    pub declared_by: Vec<String>,
    /// Of this platform's manifest.
    pub manifest: Digest,
    /// Milliseconds since the epoch.
    pub pulled_at: i64,
    /// Base first.
    pub layers: Vec<LayerRef>,
}

/// The cache. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    pinned: Patterns,
    declared: RwLock<Arc<Declared>>,
    /// What the runtime wants to keep.
    runtime_pins: RwLock<Arc<BTreeSet<String>>>,
    store: store::Store,
    registry: registry::Client,
    metrics: Metrics,
    handle: Handle,
    tracker: TaskTracker,
    threads: Threads,
    shutdown: CancellationToken,
    flights: pull::Flights,
    downloads: pull::Downloads,
    keeping: Keeping,
    /// Says which layer may be fetched now.
    gate: Gate,
    pulls: Semaphore,
    background_pulls: Semaphore,
    parked: Parked<pull::Key>,
    /// Makes the container runtime know what is here.
    settle: settle::Hook,
    /// Verification reads everything: one at a time.
    fsck: tokio::sync::Mutex<()>,
    /// The last verification found damage that is still there.
    damaged: AtomicBool,
    /// Who is asked for the users of images, and whether the last answer was one.
    users: users::Source,
    users_known: AtomicBool,
    /// Removals that nobody asked for by name: one run at a time.
    pruning: tokio::sync::Mutex<()>,
    /// The last use of each image as of the last look at all of them.
    use_marks: Mutex<BTreeMap<ImageId, u64>>,
    rounds: Mutex<tend::Rounds>,
    /// What pulls under way still write.
    room: room::Room,
    disk: Mutex<emergency::Watch>,
    /// Size of the file system, and the band of it that policies reserve.
    capacity: AtomicU64,
    wanted_reserve: AtomicU64,
}

impl Cache {
    /// A cache over a store and a registry client. Needs a tokio runtime.
    pub fn new(
        config: Config,
        store: store::Store,
        registry: registry::Client,
        metrics: Metrics,
    ) -> Self {
        let handle = Handle::current();
        let tracker = TaskTracker::new();
        let shutdown = CancellationToken::new();
        let threads = Threads::new(tracker.clone(), handle.clone());
        let background = config.background;
        let gate = Gate::new(
            gate::Limits {
                layers: config.max_layers,
                background: background.layers,
                per_registry: background.per_registry,
            },
            background.bytes_per_second,
            background.throttle_all,
            metrics.clone(),
        );
        let keeping = Keeping::default();
        let inner = Inner {
            pinned: Patterns::new(&config.pinned),
            declared: RwLock::default(),
            runtime_pins: RwLock::default(),
            flights: pull::Flights::default(),
            downloads: pull::Downloads::new(
                store.clone(),
                threads.clone(),
                tracker.clone(),
                shutdown.clone(),
                gate.clone(),
                keeping.clone(),
            ),
            keeping,
            gate,
            pulls: Semaphore::new(MAX_PULLS),
            background_pulls: Semaphore::new(MAX_BACKGROUND_PULLS),
            parked: Parked::new(tracker.clone(), handle.clone(), shutdown.clone()),
            settle: settle::Hook::default(),
            fsck: tokio::sync::Mutex::new(()),
            damaged: AtomicBool::new(false),
            users: users::Source::default(),
            users_known: AtomicBool::new(true),
            pruning: tokio::sync::Mutex::new(()),
            use_marks: Mutex::default(),
            rounds: Mutex::default(),
            room: room::Room::default(),
            disk: Mutex::default(),
            capacity: AtomicU64::new(0),
            wanted_reserve: AtomicU64::new(0),
            config,
            store,
            registry,
            metrics,
            handle,
            tracker,
            threads,
            shutdown,
        };
        let cache = Cache {
            inner: Arc::new(inner),
        };
        // One that cannot be measured now is by the next look at the disk.
        let space = cache.inner.store.space().unwrap_or_default();
        cache.apply_reserve(space.capacity);
        cache
    }

    /// Starts or joins a pull. Authorises at the registry always, even when everything is local.
    pub fn pull(&self, request: PullRequest) -> Pull {
        pull::start(&self.inner, request)
    }

    /// Who fetches layers now: the newest state, and a wake-up when it changes.
    pub fn traffic(&self) -> watch::Receiver<Traffic> {
        self.inner.gate.traffic()
    }

    /// All images, stable order. From memory.
    pub fn list(&self) -> Vec<ImageView> {
        let marks = self.inner.marks();
        let images = self.inner.store.images();
        images
            .iter()
            .map(|image| view::view(image, &marks))
            .collect()
    }

    /// The images without those that are staged.
    pub fn shown(&self) -> Shown<'_> {
        Shown { cache: self }
    }

    /// Replaces the whole set of images that are declared to be held, at once. Kept in memory only: whoever declares
    /// does so again after a start, before anybody can ask.
    pub fn declare(&self, set: Vec<Declaration>) {
        let declared = Arc::new(Declared::new(set));
        let mut slot = self
            .inner
            .declared
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = declared;
        drop(slot);
        self.inner.store.changed();
    }

    /// The declarations of an image; none where nobody declares it.
    pub fn declared(&self, image: &ImageView) -> Vec<Declaration> {
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        let marks = self.inner.marks();
        marks
            .declared
            .of(names.map(String::as_str))
            .cloned()
            .collect()
    }

    /// An image by any form: full id, id prefix, reference with tag and/or digest, familiar names. From memory.
    /// Absent is `Ok(None)`; an id prefix of several images is `Ambiguous`.
    pub fn status(&self, name: &str) -> Result<Option<ImageView>, Error> {
        self.status_in(name, Scope::All)
    }

    fn status_in(&self, name: &str, scope: Scope) -> Result<Option<ImageView>, Error> {
        let image = self.find(name, scope)?;
        Ok(image.map(|image| view::view(&image, &self.inner.marks())))
    }

    /// Config, manifest and layers of an image.
    pub async fn inspect(&self, name: &str) -> Result<Option<ImageDetails>, Error> {
        self.inspect_in(name, Scope::All).await
    }

    async fn inspect_in(&self, name: &str, scope: Scope) -> Result<Option<ImageDetails>, Error> {
        match self.find(name, scope)? {
            Some(image) => inspect::details(&self.inner, &image).await.map(Some),
            None => Ok(None),
        }
    }

    /// Removes the whole image a name of any form finds, with all its names. Absent is `Ok(None)`.
    /// Returns after its space is free; layers that a failed pull keeps for its retry go too.
    pub async fn remove(&self, name: &str) -> Result<Option<Removed>, Error> {
        self.remove_in(name, Scope::All).await
    }

    async fn remove_in(&self, name: &str, scope: Scope) -> Result<Option<Removed>, Error> {
        let Some(image) = self.find(name, scope)? else {
            return Ok(None);
        };
        let began = std::time::Instant::now();
        let id = image.record.id.clone();
        let before = self.usage().stored_bytes;
        let inner = self.inner.clone();
        let done = self.inner.threads.block(name, move || {
            drop(inner.parked.take_all());
            inner.store.remove_image(&id)
        });
        let mut removed = done.await?.map_err(|error| Error::store(name, error))?;
        if let Some(removed) = &mut removed {
            // Layers that the runtime knew as parts of this image go only when it has forgotten it.
            if let Err(error) = self.settle(&image.record.id).await {
                tracing::warn!(err = %error, "The container runtime has not forgotten a removed image yet");
            }
            let freed = before.saturating_sub(self.usage().stored_bytes);
            removed.freed_bytes = removed.freed_bytes.max(freed);
            self.inner.metrics.image_removed();
            tracing::info!(
                reference = name,
                image = %image.record.id,
                freed_bytes = removed.freed_bytes,
                duration_seconds = began.elapsed().as_secs_f64(),
                "Image removed"
            );
        }
        Ok(removed)
    }

    /// From counters.
    pub fn usage(&self) -> Usage {
        self.inner.store.usage()
    }

    /// Verifies the store. `progress(done, total)` in bytes.
    pub async fn fsck(
        &self,
        repair: bool,
        mut progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<FsckReport, Error> {
        let _one = self.inner.fsck.lock().await;
        let store = self.inner.store.clone();
        let done = self
            .inner
            .threads
            .dedicated("fsck", move || store.fsck(repair, &mut progress))?;
        let report = done.await.map_err(|_| Error::Internal {
            subject: self.root().display().to_string(),
            cause: "the verification panicked".to_owned(),
        })?;
        let report =
            report.map_err(|error| Error::store(self.root().display().to_string(), error))?;
        let damaged = report.damaged.iter().any(|damage| !damage.repaired);
        self.inner.damaged.store(damaged, Ordering::Relaxed);
        Ok(report)
    }

    /// False from a verification that found damage which it did not repair to the next one.
    pub fn is_healthy(&self) -> bool {
        !self.inner.damaged.load(Ordering::Relaxed)
    }

    /// Writes an image's merged tree below `dir`.
    pub async fn unpack(&self, name: &str, dir: &Path) -> Result<ImageView, Error> {
        self.with_image(name, dir, |store, image, dir| {
            let layers: Vec<_> = image
                .record
                .layers
                .iter()
                .map(|layer| layer.diff_id.clone())
                .collect();
            store.unpack(&layers, dir)
        })
        .await
    }

    /// Mounts an image read-only.
    pub async fn mount(&self, name: &str, dir: &Path) -> Result<ImageView, Error> {
        self.with_image(name, dir, |store, image, dir| {
            store.mount(&image.record.id, dir)
        })
        .await
    }

    /// Unmounts it.
    pub async fn umount(&self, dir: &Path) -> Result<(), Error> {
        let (store, target) = (self.inner.store.clone(), dir.to_owned());
        let subject = dir.display().to_string();
        let done = self
            .inner
            .threads
            .block(&subject, move || store.umount(&target))
            .await?;
        done.map_err(|error| Error::store(subject, error))
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        self.inner.store.root()
    }

    /// Cancels pulls and waits until their work has stopped.
    pub async fn shutdown(&self) {
        self.inner.shutdown.cancel();
        let inner = self.inner.clone();
        self.inner.threads.dispose(inner.parked.take_all());
        self.flush_uses().await;
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
    }

    fn find(&self, name: &str, scope: Scope) -> Result<Option<Arc<store::Image>>, Error> {
        let store = &self.inner.store;
        let query = Query::parse(name)?;
        let seen = |image: &Arc<store::Image>| scope == Scope::All || !image.record.staged;
        if let Some(id) = &query.id {
            return Ok(store.image(id).filter(seen));
        }
        if let Some(image) = query
            .name
            .as_deref()
            .and_then(|name| store.image_named(name))
            .filter(seen)
        {
            return Ok(Some(image));
        }
        let Some(prefix) = &query.prefix else {
            return Ok(None);
        };
        let images = store.images();
        let ids = images
            .iter()
            .filter(|image| seen(image))
            .map(|image| &image.record.id);
        let id = names::unique_id(prefix, ids)?;
        Ok(id.and_then(|id| store.image(id)))
    }

    /// Long work on an image and a directory, on a thread of its own, with the image's layers protected.
    async fn with_image(
        &self,
        name: &str,
        dir: &Path,
        work: impl FnOnce(&store::Store, &store::Image, &Path) -> Result<(), store::Error>
        + Send
        + 'static,
    ) -> Result<ImageView, Error> {
        let image = self
            .find(name, Scope::All)?
            .ok_or_else(|| Error::NotFound {
                name: name.to_owned(),
            })?;
        let shown = view::view(&image, &self.inner.marks());
        let store = self.inner.store.clone();
        store.touch_image(&image.record.id, now_ms());
        let held = HeldLease::new(store.lease(), self.inner.threads.clone());
        let dir = dir.to_owned();
        let done = self.inner.threads.dedicated("image", move || {
            if let Some(lease) = held.share() {
                for layer in &image.record.layers {
                    store.layer(&layer.diff_id, &lease);
                }
            }
            work(&store, &image, &dir)
        })?;
        let result = done.await.map_err(|_| Error::Internal {
            subject: name.to_owned(),
            cause: "its worker thread panicked".to_owned(),
        })?;
        result.map_err(|error| Error::store(name, error))?;
        Ok(shown)
    }
}

/// Milliseconds since the epoch.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

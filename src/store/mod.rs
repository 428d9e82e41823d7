//! The only owner of the data directory: packs, layers, image records, leases, collection, fsck, mounts.
//!
//! ```text
//! <root>/
//!   meta.json                format version and feature flags
//!   lock                     one process per root
//!   larder.redb              rows: images, names, layers, blobs, segments, mounts
//!   packs/<n>.pack           file contents, 4 KiB-aligned extents, append-only
//!   layers/<diffid>.erofs    the layer's tree; chunk indexes point into packs
//!   layers/<diffid>.idx      the extents the layer uses, and the recipe of its tar
//!   blobs/<algorithm>/<hex>  manifests, indexes, configs
//!   mounts/  staging/        mount points; work in progress, wiped at start
//! ```
//!
//! What is visible is durable and verified: extents, then trees and indexes, then one transaction that names them.
//! Locks: `commit` serialises whoever changes the records and is held across disk writes; `state` guards memory and is
//! held for moments only. Whoever takes both takes `commit` first.

mod blobs;
mod commit;
mod contents;
mod db;
mod error;
mod export;
mod files;
mod fsck;
mod idx;
mod ingest;
mod layout;
mod lease;
mod lock;
mod meta;
mod metrics;
mod mount;
mod pack;
mod records;
mod recover;
mod remove;
mod staging;
mod types;
mod unpack;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::{DiffId, ImageId};

use contents::Contents;
use layout::Layout;
use records::{Change, Records};

pub use error::Error;
pub use lease::Lease;
pub use metrics::Metrics;
pub use types::{
    Damage, FsckReport, Image, ImageCommit, ImageRecord, Layer, LayerCounters, LayerRef,
    LayerSource, Limits, Mount, Name, Options, Removed, Usage,
};

/// The store. Cheap to clone. All operations that touch the disk block: call them on threads that may.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    limits: Limits,
    metrics: Metrics,
    db: db::Db,
    commit: Mutex<()>,
    state: Mutex<State>,
    recovered: AtomicBool,
    /// Why the database was replaced at start, until somebody was told.
    database_damage: Mutex<Option<String>>,
    // Last: released when everything else is closed.
    _lock: lock::Lock,
}

#[derive(Debug, Default)]
struct State {
    records: Records,
    contents: Contents,
    /// Segments that no ingest appends to, with their lengths.
    idle_segments: BTreeMap<u32, u64>,
    /// Layers that live leases protect, and how many do.
    leases: HashMap<DiffId, u32>,
    /// Layers whose removal is being made durable: nobody can lease them any more.
    doomed: HashSet<DiffId>,
    /// Images used since their row was written.
    touched: BTreeSet<ImageId>,
    usage: Usage,
    /// The layer whose turn it is to be scrubbed, and how many of its contents were.
    scrub: (Option<DiffId>, usize),
}

impl Store {
    /// Takes the root's lock, checks its format, recovers from a crash. Blocking. The root is made if absent.
    pub fn open(options: Options, metrics: Metrics) -> Result<Self, Error> {
        let root = &options.root;
        let make = |path: &Path| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| Error::io("create", path, error))
        };
        make(root)?;
        let root = fs::canonicalize(root).map_err(|error| Error::io("resolve", root, error))?;
        // It holds files of private images. A root made by somebody else may be wider.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))
            .map_err(|error| Error::io("set the mode of", &root, error))?;
        let layout = Layout::new(root.clone());
        let lock = lock::Lock::take(&layout)?;
        let meta = layout.meta();
        match fs::read(&meta) {
            Ok(text) => meta::Meta::check(&root, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = serde_json::to_vec_pretty(&meta::Meta::current())
                    .map_err(|error| Error::Invalid(error.to_string()))?;
                files::write_durable(&root.join("meta.json.new"), &meta, &text)?;
                files::sync_folder(&root)?;
            }
            Err(error) => return Err(Error::io("read", &meta, error)),
        }
        for folder in layout.folders() {
            make(&folder)?;
        }
        // Guards the folders: what is durable in them must be reachable.
        files::sync_folder(&layout.blobs())?;
        files::sync_folder(&root)?;
        let (db, records, damage) = recover::open_database(&layout)?;
        let inner = Inner {
            layout,
            limits: options.limits,
            metrics,
            db,
            commit: Mutex::default(),
            state: Mutex::new(State {
                records,
                ..State::default()
            }),
            recovered: AtomicBool::new(false),
            database_damage: Mutex::new(damage),
            _lock: lock,
        };
        inner.recover()?;
        inner.recovered.store(true, Ordering::Release);
        Ok(Store {
            inner: Arc::new(inner),
        })
    }

    /// Whether a folder holds a store, of whatever format. Changes nothing; blocking.
    ///
    /// # Errors
    /// It cannot be told, for lack of permission perhaps.
    pub fn is_at(root: &Path) -> Result<bool, Error> {
        let meta = Layout::new(root.to_path_buf()).meta();
        meta.try_exists()
            .map_err(|error| Error::io("look for", &meta, error))
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// All visible images, ordered by id. From memory.
    pub fn images(&self) -> Vec<Arc<Image>> {
        let state = self.inner.state();
        state.records.visible().values().cloned().collect()
    }

    /// One image. From memory.
    pub fn image(&self, id: &ImageId) -> Option<Arc<Image>> {
        self.inner.state().records.visible().get(id).cloned()
    }

    /// The image a name points at. From memory.
    pub fn image_named(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.state().records.named(name)
    }

    /// Whether an image's layers are all there, by a look at their files' lengths; one that is not is taken out of
    /// use. Blocking, but short: two look-ups a layer.
    pub fn check_image(&self, id: &ImageId) -> Result<bool, Error> {
        let rows: Vec<_> = {
            let state = self.inner.state();
            let Some(image) = state.records.visible().get(id) else {
                return Ok(false);
            };
            let layers = image.record.layers.iter();
            layers
                .filter_map(|layer| state.records.layers.get(&layer.diff_id).cloned())
                .collect()
        };
        let mut whole = true;
        for row in rows {
            if !self.inner.has_files(&row) {
                whole = false;
                let _commits = self.inner.commits();
                self.inner
                    .quarantine(&row.diff_id, "its files are missing or cut short")?;
            }
        }
        Ok(whole)
    }

    /// Sets or clears the pin. Blocking. An absent image is as good.
    pub fn pin_image(&self, id: &ImageId, pinned: bool) -> Result<(), Error> {
        let _commits = self.inner.commits();
        let row = self.inner.state().records.images.get(id).cloned();
        match row {
            Some(mut row) if row.record.pinned != pinned => {
                row.record.pinned = pinned;
                self.inner.apply(vec![Change::PutImage(row)])
            }
            _ => Ok(()),
        }
    }

    /// Records a use. In memory at once, on disk with the next transaction or when the store closes.
    pub fn touch_image(&self, id: &ImageId, at_ms: i64) {
        let mut state = self.inner.state();
        if state.records.touch(id, at_ms) {
            state.touched.insert(id.clone());
        }
    }

    /// What the store holds and occupies. From counters.
    pub fn usage(&self) -> Usage {
        self.inner.state().usage.clone()
    }
}

impl Inner {
    /// Memory. Held for moments, never across a disk write.
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state whole: each critical section is a few assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to change the records.
    fn commits(&self) -> MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes changes durable, then visible. The caller has the commit lock, or is alone.
    fn apply(&self, changes: Vec<Change>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let (touched, rows) = {
            let mut state = self.state();
            let touched = std::mem::take(&mut state.touched);
            let rows: Vec<Change> = touched
                .iter()
                .filter_map(|id| state.records.images.get(id).cloned())
                .map(Change::PutImage)
                .collect();
            (touched, rows)
        };
        // Uses first: what the caller says of the same image wins.
        let outcome = self.db.commit(rows.iter().chain(&changes));
        let mut state = self.state();
        match outcome {
            Ok(()) => {
                state.records.apply(changes);
                Ok(())
            }
            Err(error) => {
                state.touched.extend(touched);
                Err(error)
            }
        }
    }

    /// Runs `forget`, which makes the removal of layers durable, while nobody can lease them.
    fn while_doomed(
        &self,
        layers: &[DiffId],
        forget: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let outcome = forget();
        let mut state = self.state();
        for layer in layers {
            state.doomed.remove(layer);
        }
        outcome
    }

    fn recovered(&self) -> bool {
        self.recovered.load(Ordering::Acquire)
    }

    fn take_database_damage(&self) -> Option<String> {
        let mut damage = self
            .database_damage
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        damage.take()
    }

    /// Counts anew what the store occupies, after a change. A few look-ups per layer and segment.
    fn measure(&self) {
        let mut usage = Usage::default();
        let mut folders = vec![self.layout.root().to_path_buf()];
        let (mounts, staging) = (self.layout.mounts(), self.layout.staging());
        let device = fs::symlink_metadata(self.layout.root()).map_or(0, |meta| meta.dev());
        while let Some(folder) = folders.pop() {
            // What is mounted there is not the store's to count.
            let own = fs::symlink_metadata(&folder).ok();
            let Some(own) = own.filter(|meta| meta.dev() == device) else {
                continue;
            };
            usage.stored_bytes += own.blocks() * 512;
            usage.inodes += 1;
            // Nor is what a pull stages: it goes before the pull ends.
            if folder.parent() == Some(mounts.as_path()) || folder == staging {
                continue;
            }
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    folders.push(entry.path());
                } else {
                    usage.stored_bytes += meta.blocks() * 512;
                    usage.inodes += 1;
                }
            }
        }
        let mut state = self.state();
        usage.images = state.records.visible().len() as u64;
        usage.layers = state.records.layers.len() as u64;
        usage.segments = state.records.segments.len() as u64;
        let layers = state.records.layers.values();
        usage.logical_bytes = layers.map(|row| row.content_bytes).sum();
        self.metrics.usage(&usage);
        state.usage = usage;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let touched = std::mem::take(&mut self.state().touched);
        let rows: Vec<Change> = {
            let state = self.state();
            let rows = touched.iter().filter_map(|id| state.records.images.get(id));
            rows.cloned().map(Change::PutImage).collect()
        };
        if !rows.is_empty()
            && let Err(error) = self.db.commit(&rows)
        {
            tracing::warn!(err = %error, "The last uses of images are forgotten");
        }
    }
}

#[cfg(test)]
mod tests;

//! The only owner of the data directory: packs, layers, image records, leases, collection, fsck, mounts.
//!
//! ```text
//! <root>/
//!   meta.json                format version and feature flags
//!   lock                     one process per root
//!   larder.redb              rows: images, names, layers, blobs, segments, mounts, snapshots
//!   packs/<n>.pack           file contents, 4 KiB-aligned extents, append-only
//!   layers/<diffid>.erofs    the layer's tree; chunk indexes point into packs
//!   layers/<diffid>.idx      the extents the layer uses, and the recipe of its tar
//!   blobs/<algorithm>/<hex>  manifests, indexes, configs
//!   kept/<algorithm>/<name>  blobs as registries serve them, where a policy keeps them
//!   snapshots/<id>/{fs,work} what containers write, and what a runtime unpacked itself
//!   mounts/  staging/        mount points; work in progress, wiped at start
//! ```
//!
//! What is visible is durable and verified: extents, then trees and indexes, then one transaction that names them.
//! Locks: `commit` serialises whoever changes the records and is held across disk writes; `state` guards memory and is
//! held for moments only. Whoever takes both takes `commit` first.

mod blobs;
mod clock;
mod commit;
mod contents;
mod db;
mod error;
mod export;
mod files;
mod fsck;
mod idx;
mod ingest;
mod kept;
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
mod sharing;
mod snapshot;
mod space;
mod staging;
mod types;
mod unpack;
mod usage;
mod verify;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::image::{DiffId, Digest, ImageId};

use clock::Reading;
use contents::Contents;
use layout::Layout;
use records::{Change, Records};

pub use clock::{Clock, ClockRow};
pub use error::Error;
pub use kept::{KeptBlob, KeptName, KeptWriter};
pub use lease::Lease;
pub use metrics::Metrics;
pub use mount::unescaped;
pub use sharing::{SharedPart, Sharing};
pub use snapshot::{
    NewSnapshot, SnapshotError, SnapshotInfo, SnapshotKind, SnapshotMount, SnapshotUsage,
};
pub use space::Space;
pub use types::{
    Age, Damage, FsckReport, Hold, Image, ImageCommit, ImageRecord, Layer, LayerCounters, LayerRef,
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
    occupied: Mutex<usage::Occupied>,
    kept: Mutex<kept::Kept>,
    /// Moves with what is visible.
    changes: watch::Sender<u64>,
    clock: Mutex<Clock>,
    /// Bytes that must stay free, where somebody wants more of them than the limits say.
    reserve: AtomicU64,
    recovered: AtomicBool,
    fetcher: OnceLock<mount::Fetcher>,
    /// Why the database was replaced at start.
    database_damage: Option<String>,
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
    /// Layers whose files were verified, as they were then.
    verified: HashMap<DiffId, verify::Stamp>,
    usage: Usage,
    stacks: mount::Stacks,
    /// The first folder of a snapshot that was never used.
    next_snapshot: u64,
    told: snapshot::Told,
    /// Contents by their users, as they were last counted.
    units: Option<Arc<sharing::Units>>,
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
        files::sync_folder(&layout.kept_blobs())?;
        files::sync_folder(&root)?;
        let (db, records, damage) = recover::open_database(&layout)?;
        let clock = Clock::resume(records.clock, Reading::take());
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
            occupied: Mutex::default(),
            kept: Mutex::default(),
            changes: watch::Sender::default(),
            clock: Mutex::new(clock),
            reserve: AtomicU64::new(0),
            recovered: AtomicBool::new(false),
            fetcher: OnceLock::new(),
            database_damage: damage,
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

    /// Wakes when images, their names or what is known of them may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Wakes whoever waits for changes: something is known of images that is not the store's.
    pub fn changed(&self) {
        self.inner
            .changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// One image. From memory.
    pub fn image(&self, id: &ImageId) -> Option<Arc<Image>> {
        self.inner.state().records.visible().get(id).cloned()
    }

    /// The image a name points at. From memory.
    pub fn image_named(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.state().records.named(name)
    }

    /// Verifies the trees and indexes of what the store has of an image: the layers of its record, and those that
    /// `blobs` are known as. What is damaged or gone is taken out of use, so that a pull fetches it. Blocking; files that
    /// nobody touched since they were last verified are not read again. Contents of files are left to
    /// [`Store::fsck`] and [`Store::scrub_step`].
    pub fn verify_layers(&self, image: &ImageId, blobs: &[Digest]) -> Result<(), Error> {
        let rows: Vec<_> = {
            let state = self.inner.state();
            let records = &state.records;
            let image = records.visible().get(image);
            let layers = image.iter().flat_map(|image| &image.record.layers);
            let known = blobs.iter().filter_map(|blob| records.blobs.get(blob));
            let ids: BTreeSet<&DiffId> = layers.map(|layer| &layer.diff_id).chain(known).collect();
            ids.into_iter()
                .filter_map(|id| records.layers.get(id))
                .filter(|row| row.damaged.is_none() && !state.doomed.contains(&row.diff_id))
                .cloned()
                .collect()
        };
        for row in rows {
            let cause = match self.inner.verify_once(&row) {
                Ok(()) => continue,
                Err(Error::Damaged { subject, cause }) => format!("{subject}: {cause}"),
                Err(error) => return Err(error),
            };
            let _commits = self.inner.commits();
            // A removal, or another pull, may have been quicker.
            let now = self.inner.state().records.layers.get(&row.diff_id).cloned();
            if now.as_ref() == Some(&row) {
                self.inner.quarantine(&row.diff_id, &cause)?;
            }
        }
        Ok(())
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

    /// Records a use. In memory at once, on disk with the next transaction, with [`Store::flush_uses`], or when the store
    /// closes.
    pub fn touch_image(&self, id: &ImageId, at_ms: i64) {
        self.inner.touch(id, at_ms, Duration::ZERO);
    }

    /// As [`Store::touch_image`], of an image that is seen in use again and again: on disk at most once an hour before the
    /// store closes.
    pub fn saw_image(&self, id: &ImageId, at_ms: i64) {
        self.inner.touch(id, at_ms, clock::STEP);
    }

    /// Writes uses that are in memory only, and the store's clock now and then. Blocking; mostly there is nothing to do.
    pub fn flush_uses(&self) -> Result<(), Error> {
        let due = {
            let state = self.inner.state();
            let written = state.records.clock.unwrap_or_default().observed;
            let step = u64::try_from(clock::STEP.as_millis()).unwrap_or(u64::MAX);
            !state.touched.is_empty() || self.inner.tick().saturating_sub(written) >= step
        };
        if !due {
            return Ok(());
        }
        let _commits = self.inner.commits();
        let clock = Change::Clock(self.inner.clock().row());
        self.inner.apply(vec![clock])
    }

    /// Keeps with an image the namespaces that declare it. In memory at once, on disk as uses are; the first 64 count.
    pub fn note_namespaces(&self, id: &ImageId, namespaces: &BTreeSet<String>) {
        let mut state = self.inner.state();
        let Some(row) = state.records.images.get_mut(id) else {
            return;
        };
        let known = row.namespaces.len();
        let room = records::MAX_NAMESPACES.saturating_sub(known);
        let new = namespaces.difference(&row.namespaces).take(room);
        let new: Vec<String> = new.cloned().collect();
        row.namespaces.extend(new);
        if row.namespaces.len() > known {
            state.touched.insert(id.clone());
        }
    }

    /// Namespaces that declare an image, or did.
    pub fn namespaces(&self, id: &ImageId) -> BTreeSet<String> {
        let state = self.inner.state();
        let row = state.records.images.get(id);
        row.map_or_else(BTreeSet::new, |row| row.namespaces.clone())
    }

    /// How long ago images were pulled and used, by the store's own clock, which counts only while a machine is up and
    /// which no change of the wall clock moves. From memory.
    pub fn ages(&self) -> BTreeMap<ImageId, Age> {
        let now = self.inner.tick();
        let ago = |tick: u64| Duration::from_millis(now.saturating_sub(tick));
        let state = self.inner.state();
        let images = state.records.images.iter();
        images
            .map(|(id, row)| {
                let age = Age {
                    pulled: ago(row.seen.pulled),
                    used: ago(row.seen.used),
                    mark: row.seen.used,
                };
                (id.clone(), age)
            })
            .collect()
    }

    /// What an operator should know before anything else: that a damaged database took all images along.
    pub fn warning(&self) -> Option<String> {
        let lost = self.inner.lost_database()?;
        let database = self.inner.layout.database();
        Some(format!("database {}: {lost}", database.display()))
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
        let clock = [Change::Clock(self.clock().row())];
        let snapshot =
            |change: &Change| matches!(change, Change::PutSnapshot(..) | Change::DeleteSnapshot(_));
        let counted = !changes.iter().all(snapshot);
        // Uses first: what the caller says of the same image wins.
        let outcome = self.db.commit(rows.iter().chain(&clock).chain(&changes));
        {
            let mut state = self.state();
            match &outcome {
                Ok(()) => {
                    state.records.stored(&rows);
                    state.records.apply(clock.into());
                    if state.records.apply(changes) {
                        self.changes
                            .send_modify(|count| *count = count.wrapping_add(1));
                    }
                }
                Err(_) => state.touched.extend(touched),
            }
        }
        if counted {
            self.measure_again([]);
        } else {
            self.measure_database();
        }
        outcome
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

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's clock now, in milliseconds.
    fn tick(&self) -> u64 {
        self.clock().now()
    }

    /// Records a use, to be written with the next transaction if the last one written is older than `step`.
    fn touch(&self, id: &ImageId, at_ms: i64, step: Duration) {
        let now = self.tick();
        let mut state = self.state();
        if let Some(behind) = state.records.touch(id, at_ms, now)
            && u128::from(behind) >= step.as_millis()
        {
            state.touched.insert(id.clone());
        }
    }

    fn recovered(&self) -> bool {
        self.recovered.load(Ordering::Acquire)
    }

    /// Why there are no records, where a damaged database is the reason: until something was pulled again, or a repair
    /// removed what is left of it.
    fn lost_database(&self) -> Option<String> {
        let aside = self.layout.damaged_database();
        if !self.state().records.images.is_empty() || !aside.exists() {
            return None;
        }
        let cause = self.database_damage.as_deref().unwrap_or("damaged");
        let aside = self.layout.relative(&aside);
        Some(format!(
            "{cause}; it was moved aside as {aside} and the store began anew: pull the images again"
        ))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let clock = Change::Clock(self.clock().row());
        let rows: Vec<Change> = {
            let state = self.state();
            let rows = state.records.images.values();
            let unwritten = rows.filter(|row| row.seen.used > row.seen.stored);
            let rows = unwritten.cloned().map(Change::PutImage);
            rows.chain([clock]).collect()
        };
        // One that was never opened to its end has nothing to say.
        if self.recovered()
            && let Err(error) = self.db.commit(&rows)
        {
            tracing::warn!(err = %error, "The last uses of images are forgotten");
        }
    }
}

#[cfg(test)]
mod tests;

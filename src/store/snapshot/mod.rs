//! Snapshots: the directories that a container runtime mounts for its containers, in the terms of containerd's
//! snapshotters.
//!
//! A *committed* snapshot is a layer: one of the store's, or a folder that the runtime unpacked itself because the store
//! had no such layer. An *active* one is what a container writes, on top of committed ones, and a *view* is a look at
//! them. Nothing here is mounted but the store's own layers, once each ([`super::mount`]): the runtime is told what to
//! mount and does it. Its mounts are never touched, so containers run on whatever becomes of the agent.
//!
//! Rows are durable when a call returns. What containers write is not synced: it does not outlive them. What was unpacked
//! is, before the row that says so.

mod adopt;
mod chain;
mod folder;
mod owners;
mod stack;
mod told;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};
pub(super) use told::Told;

use super::records::{Change, SnapshotRow};
use super::{Error, Inner, Store};

/// Names the chain that a runtime is about to unpack.
const REF: &str = "containerd.io/snapshot.ref";
/// Begins the names of snapshots that show layers of the store; the chain follows.
const OURS: &str = "larder/";

/// Longest name of a snapshot, in bytes.
const MAX_NAME: usize = 1024;
/// Labels of a snapshot.
const MAX_LABELS: usize = 256;
/// Longest label with its value, in bytes: containerd's own limit.
const MAX_LABEL: usize = 4096;
/// Snapshots in all; a node has some for each container and for each layer of its images.
const MAX_SNAPSHOTS: usize = 100_000;

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// To be looked at.
    View,
    /// Written by a container.
    Active,
    /// Unchanging; others may stand on it.
    Committed,
}

/// What a snapshot occupies by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotUsage {
    /// On disk.
    pub bytes: u64,
    /// Of the host's file system.
    pub inodes: u64,
}

/// A snapshot as the runtime sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The runtime's own, or ours for a layer of the store.
    pub name: String,
    /// The one below.
    pub parent: Option<String>,
    /// What it is.
    pub kind: SnapshotKind,
    /// The runtime's.
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Milliseconds since the epoch.
    pub updated_at: i64,
}

/// A mount for the runtime to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMount {
    /// `overlay` or `bind`.
    pub kind: &'static str,
    /// A folder, or a name.
    pub source: String,
    /// As mount(8) takes them.
    pub options: Vec<String>,
}

/// What a new snapshot is made of.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Its name.
    pub key: String,
    /// A committed one to stand on; empty for none.
    pub parent: String,
    /// The runtime's.
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since the epoch.
    pub now_ms: i64,
}

/// Why a call on a snapshot came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none of that name.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// There is one of that name, or of the chain that was to be made.
    #[error("snapshot {0:?} already exists")]
    Exists(String),
    /// It is not of the kind, or not in the state, for that.
    #[error("snapshot {name:?} {cause}")]
    Precondition {
        /// Which.
        name: String,
        /// Why not.
        cause: String,
    },
    /// An argument cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] Error),
}

type Result<T> = std::result::Result<T, SnapshotError>;

impl Store {
    /// Makes an active snapshot, and says what to mount. Blocking.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`] also where the labels name a chain whose layer the store has: a committed snapshot that
    /// shows it is there then, and nothing is to be unpacked.
    pub fn prepare_snapshot(&self, new: &NewSnapshot) -> Result<Vec<SnapshotMount>> {
        let began = Instant::now();
        let outcome = self.inner.create_snapshot(SnapshotKind::Active, new);
        self.inner.metrics.took("prepare_snapshot", began.elapsed());
        outcome
    }

    /// Makes a snapshot to look at, and says what to mount. Blocking.
    pub fn view_snapshot(&self, new: &NewSnapshot) -> Result<Vec<SnapshotMount>> {
        self.inner.create_snapshot(SnapshotKind::View, new)
    }

    /// What was last said of a snapshot's mounts, where that is known to be true still. From memory, but for a look at
    /// each mount point; `None` says nothing: ask [`Store::snapshot_mounts`].
    pub fn told_snapshot_mounts(&self, key: &str) -> Option<Vec<SnapshotMount>> {
        let began = Instant::now();
        let told = self.inner.told(key)?;
        self.inner.metrics.took("mount_snapshot", began.elapsed());
        Some(told)
    }

    /// What to mount for a snapshot that was prepared or is viewed; what it stands on is mounted again where it is not.
    /// Blocking.
    pub fn snapshot_mounts(&self, key: &str) -> Result<Vec<SnapshotMount>> {
        let inner = &self.inner;
        let began = Instant::now();
        let _commits = inner.commits();
        let mut row = inner.snapshot_row(key)?;
        if row.kind == SnapshotKind::Committed {
            return Err(SnapshotError::Precondition {
                name: key.to_owned(),
                cause: "is committed: it is not mounted by itself".to_owned(),
            });
        }
        let parent = row.parent.as_deref();
        let owners = owners::mapped(&row.labels)?;
        let stack = inner.snapshot_stack(parent)?;
        // After a power cut they may be gone; what was in them was a container's.
        inner.make_snapshot_folders(row.id, row.kind, stack.owner(owners.as_ref())?)?;
        if stack.fixup != row.fixup {
            row.fixup = stack.fixup.clone();
            inner.apply(vec![Change::PutSnapshot(key.to_owned(), row.clone())])?;
        }
        let mounts = inner.snapshot_mount_options(row.kind, row.id, &stack, owners.as_ref())?;
        inner.tell(key, row, stack, &mounts);
        inner.metrics.took("mount_snapshot", began.elapsed());
        Ok(mounts)
    }

    /// Makes an active snapshot a committed one of another name. Its files are synced first. Blocking.
    ///
    /// # Errors
    /// [`SnapshotError::Invalid`] where `parent` is given and not the one that it stands on.
    pub fn commit_snapshot(&self, key: &str, new: &NewSnapshot) -> Result<()> {
        let inner = &self.inner;
        let name = &new.key;
        check(new)?;
        let active = |inner: &Inner| -> Result<SnapshotRow> {
            let row = inner.snapshot_row(key)?;
            if row.kind != SnapshotKind::Active {
                return Err(SnapshotError::Precondition {
                    name: key.to_owned(),
                    cause: "is not active: it cannot be committed".to_owned(),
                });
            }
            if inner.state().records.snapshots.contains_key(name) {
                return Err(SnapshotError::Exists(name.clone()));
            }
            let below = row.parent.as_deref().unwrap_or_default();
            if !new.parent.is_empty() && new.parent != below {
                return Err(SnapshotError::Invalid(format!(
                    "snapshot {key:?} stands on {below:?}, it cannot be committed on {:?}",
                    new.parent
                )));
            }
            Ok(row)
        };
        let before = active(inner)?;
        let began = Instant::now();
        // Nobody writes it any more, and this may take long: not under the lock.
        let usage = folder::usage(&inner.layout.snapshot_fs(before.id))?;
        inner.sync_snapshot(before.id)?;
        let _commits = inner.commits();
        let row = active(inner)?;
        let row = SnapshotRow {
            kind: SnapshotKind::Committed,
            labels: new.labels.clone(),
            created_at: new.now_ms,
            updated_at: new.now_ms,
            usage,
            fixup: None,
            ..row
        };
        inner.apply(vec![
            Change::DeleteSnapshot(key.to_owned()),
            Change::PutSnapshot(name.clone(), row),
        ])?;
        inner.count_snapshots();
        inner.metrics.took("commit_snapshot", began.elapsed());
        Ok(())
    }

    /// Removes a snapshot that nothing stands on, and what it wrote. The layer that it showed goes if nobody else needs it.
    ///
    /// Not left to [`Store::clean_snapshots`], though containerd prepares no snapshot meanwhile: what is removed in
    /// containerd while it waits for that one is not collected before something else is removed there. Blocking.
    pub fn remove_snapshot(&self, key: &str) -> Result<()> {
        let inner = &self.inner;
        let began = Instant::now();
        let row = {
            let _commits = inner.commits();
            let row = inner.snapshot_row(key)?;
            {
                let state = inner.state();
                let mut rows = state.records.snapshots.iter();
                if let Some((child, _)) = rows.find(|(_, row)| row.parent.as_deref() == Some(key)) {
                    return Err(SnapshotError::Precondition {
                        name: key.to_owned(),
                        cause: format!("has snapshots on top of it, such as {child:?}"),
                    });
                }
            }
            inner.apply(vec![Change::DeleteSnapshot(key.to_owned())])?;
            if row.layer.is_some() || row.fixup.is_some() {
                inner.unmount_unused();
            }
            row
        };
        match &row.layer {
            Some(layer) => inner.sweep(&[layer.diff_id.clone()].into())?,
            None => inner.remove_snapshot_folder(row.id),
        }
        inner.count_snapshots();
        inner.metrics.took("remove_snapshot", began.elapsed());
        Ok(())
    }

    /// One snapshot. Blocking where its row was lost and is made anew; else from memory.
    pub fn snapshot(&self, key: &str) -> Result<SnapshotInfo> {
        let row = self.inner.snapshot_row(key).or_else(|error| {
            if !key.starts_with(OURS) {
                return Err(error);
            }
            let _commits = self.inner.commits();
            self.inner.revive(key)
        })?;
        Ok(info(key, &row))
    }

    /// All snapshots, by name. From memory.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let state = self.inner.state();
        let rows = state.records.snapshots.iter();
        rows.map(|(name, row)| info(name, row)).collect()
    }

    /// Changes labels: all of them, or those that are named, of which one without a value goes. Blocking.
    pub fn label_snapshot(
        &self,
        key: &str,
        labels: &BTreeMap<String, String>,
        named: Option<&[String]>,
        now_ms: i64,
    ) -> Result<SnapshotInfo> {
        let inner = &self.inner;
        let _commits = inner.commits();
        let mut row = inner.snapshot_row(key)?;
        match named {
            None => row.labels = labels.clone(),
            Some(names) => {
                for name in names {
                    match labels.get(name).filter(|value| !value.is_empty()) {
                        Some(value) => row.labels.insert(name.clone(), value.clone()),
                        None => row.labels.remove(name),
                    };
                }
            }
        }
        check_labels(&row.labels)?;
        row.updated_at = now_ms;
        let changed = info(key, &row);
        inner.apply(vec![Change::PutSnapshot(key.to_owned(), row)])?;
        Ok(changed)
    }

    /// What a snapshot occupies. Of an active one its own files are counted, and nothing of what it stands on. Blocking.
    pub fn snapshot_usage(&self, key: &str) -> Result<SnapshotUsage> {
        let inner = &self.inner;
        let row = inner.snapshot_row(key)?;
        if let Some(layer) = &row.layer {
            let state = inner.state();
            let layer = state.records.layers.get(&layer.diff_id);
            return Ok(SnapshotUsage {
                bytes: layer.map_or(0, |layer| layer.added_bytes),
                // Its tree and its index.
                inodes: 2,
            });
        }
        match row.kind {
            SnapshotKind::Active => Ok(folder::usage(&inner.layout.snapshot_fs(row.id))?),
            SnapshotKind::View | SnapshotKind::Committed => Ok(row.usage),
        }
    }

    /// Removes what removals and crashes left. Blocking.
    pub fn clean_snapshots(&self) -> Result<()> {
        let inner = &self.inner;
        {
            let _commits = inner.commits();
            inner.remove_orphan_snapshots();
            inner.unmount_unused();
        }
        let layers = inner.state().records.layers.keys().cloned().collect();
        inner.sweep(&layers)?;
        Ok(())
    }
}

fn info(name: &str, row: &SnapshotRow) -> SnapshotInfo {
    SnapshotInfo {
        name: name.to_owned(),
        parent: row.parent.clone(),
        kind: row.kind,
        labels: row.labels.clone(),
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

fn check(new: &NewSnapshot) -> Result<()> {
    let name = &new.key;
    if name.is_empty() {
        return Err(SnapshotError::Invalid("a snapshot needs a name".to_owned()));
    }
    for name in [name, &new.parent] {
        if name.len() > MAX_NAME {
            return Err(SnapshotError::Invalid(format!(
                "the name of the snapshot is {} bytes long, at most {MAX_NAME} are allowed",
                name.len()
            )));
        }
    }
    check_labels(&new.labels)
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    if labels.len() > MAX_LABELS {
        return Err(SnapshotError::Invalid(format!(
            "{} labels, at most {MAX_LABELS} are allowed on a snapshot",
            labels.len()
        )));
    }
    for (name, value) in labels {
        let bytes = name.len().saturating_add(value.len());
        if bytes > MAX_LABEL {
            let shown: String = name.chars().take(64).collect();
            return Err(SnapshotError::Invalid(format!(
                "label {shown:?} has {bytes} bytes with its value, at most {MAX_LABEL} are allowed"
            )));
        }
    }
    Ok(())
}

impl Inner {
    fn snapshot_row(&self, key: &str) -> Result<SnapshotRow> {
        let row = self.state().records.snapshots.get(key).cloned();
        row.ok_or_else(|| SnapshotError::NotFound(key.chars().take(MAX_NAME).collect()))
    }

    fn create_snapshot(&self, kind: SnapshotKind, new: &NewSnapshot) -> Result<Vec<SnapshotMount>> {
        check(new)?;
        let owners = owners::mapped(&new.labels)?;
        let _commits = self.commits();
        let parent = Some(new.parent.as_str()).filter(|parent| !parent.is_empty());
        {
            let state = self.state();
            let rows = &state.records.snapshots;
            if rows.contains_key(&new.key) {
                return Err(SnapshotError::Exists(new.key.clone()));
            }
            if rows.len() >= MAX_SNAPSHOTS {
                return Err(SnapshotError::Precondition {
                    name: new.key.clone(),
                    cause: format!("would be one more than {MAX_SNAPSHOTS}: remove some first"),
                });
            }
        }
        if let Some(parent) = parent
            && self
                .snapshot_row(parent)
                .or_else(|_| self.revive(parent))?
                .kind
                != SnapshotKind::Committed
        {
            return Err(SnapshotError::Invalid(format!(
                "snapshot {parent:?} is not committed: nothing can stand on it"
            )));
        }
        if kind == SnapshotKind::Active
            && let Some(target) = new.labels.get(REF)
            && self.adopt(target, parent, new)?
        {
            return Err(SnapshotError::Exists(target.clone()));
        }
        let mut stack = self.snapshot_stack(parent)?;
        self.fetch_first(&stack.trees);
        let id = self.new_snapshot_folder(kind, stack.owner(owners.as_ref())?)?;
        let row = SnapshotRow {
            id,
            kind,
            parent: parent.map(str::to_owned),
            labels: new.labels.clone(),
            created_at: new.now_ms,
            updated_at: new.now_ms,
            layer: None,
            usage: SnapshotUsage::default(),
            fixup: stack.fixup.clone(),
        };
        let made = self
            .snapshot_mount_options(kind, id, &stack, owners.as_ref())
            .and_then(|mounts| {
                self.apply(vec![Change::PutSnapshot(new.key.clone(), row.clone())])?;
                Ok(mounts)
            });
        match &made {
            // Whoever asks for the mounts again later has a container that is about to be made, too: once is enough.
            Ok(mounts) => {
                self.fetch(std::mem::take(&mut stack.trees));
                self.tell(&new.key, row, stack, mounts);
            }
            Err(_) => self.remove_snapshot_folder(id),
        }
        self.count_snapshots();
        made
    }

    fn count_snapshots(&self) {
        let state = self.state();
        let mut counts = [
            (SnapshotKind::View, 0),
            (SnapshotKind::Active, 0),
            (SnapshotKind::Committed, 0),
        ];
        for row in state.records.snapshots.values() {
            for (kind, count) in &mut counts {
                *count += u64::from(*kind == row.kind);
            }
        }
        self.metrics.snapshots(&counts);
    }

    /// Makes folders and rows agree, after the store was opened.
    pub(super) fn recover_snapshots(&self) {
        {
            let mut state = self.state();
            let rows = state.records.snapshots.values();
            let last = rows.map(|row| row.id).max().unwrap_or_default();
            state.next_snapshot = last.saturating_add(1);
        }
        self.remove_orphan_snapshots();
        self.count_snapshots();
        self.count_mounts();
    }
}

#[cfg(test)]
mod tests;

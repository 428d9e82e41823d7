//! The folders of snapshots: made, counted, synced, removed. `<id>/fs` is what containers see of it, `<id>/work` is
//! overlayfs' own.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use super::{SnapshotKind, SnapshotUsage};
use crate::store::{Error, Inner, files};

/// What the files below a folder occupy, the folder itself included. Files with several names count once; what goes
/// while it is counted is not counted.
pub(super) fn usage(root: &Path) -> Result<SnapshotUsage, Error> {
    let mut sum = SnapshotUsage::default();
    let mut seen = BTreeSet::new();
    let mut todo: Vec<PathBuf> = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if passes(&error) => continue,
            Err(error) => return Err(Error::io("look at", &path, error)),
        };
        if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        sum.bytes = sum.bytes.saturating_add(meta.blocks().saturating_mul(512));
        sum.inodes = sum.inodes.saturating_add(1);
        if meta.is_dir() {
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if passes(&error) => continue,
                Err(error) => return Err(Error::io("list", &path, error)),
            };
            todo.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    Ok(sum)
}

/// A container removes files while they are counted, or makes paths that are too long to name.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    )
}

impl Inner {
    /// A folder for a new snapshot, whose root belongs to `owner`. The caller holds the commit lock.
    pub(super) fn new_snapshot_folder(
        &self,
        kind: SnapshotKind,
        owner: Option<(u32, u32)>,
    ) -> Result<u64, Error> {
        loop {
            let id = {
                let mut state = self.state();
                let id = state.next_snapshot;
                state.next_snapshot = id.saturating_add(1);
                id
            };
            let path = self.layout.snapshot(id);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    return self
                        .make_snapshot_folders(id, kind, owner)
                        .map(|()| id)
                        .inspect_err(|_| self.remove_snapshot_folder(id));
                }
                // Left by somebody whose row was lost.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &path, error)),
            }
        }
    }

    /// The folders that a snapshot's mounts name; those that are there stay as they are.
    pub(super) fn make_snapshot_folders(
        &self,
        id: u64,
        kind: SnapshotKind,
        owner: Option<(u32, u32)>,
    ) -> Result<(), Error> {
        let make = |path: PathBuf, mode: u32, owner: Option<(u32, u32)>| {
            let (user, group) = owner.unzip();
            let mut builder = DirBuilder::new();
            match builder.recursive(false).mode(mode).create(&path) {
                // The process's own mask does not count: a container sees this as its root.
                Ok(()) => fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                    .and_then(|()| lchown(&path, user, group)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
            .map_err(|error| Error::io("create", &path, error))
        };
        let folder = self.layout.snapshot(id);
        if !folder.is_dir() {
            make(folder, 0o700, None)?;
        }
        make(self.layout.snapshot_fs(id), 0o755, owner)?;
        if kind == SnapshotKind::Active {
            make(self.layout.snapshot_work(id), 0o711, None)?;
        }
        Ok(())
    }

    /// Makes what was unpacked durable, its names too: a row is about to promise it. One call for the whole file system,
    /// since a sync of each of many thousand files takes much longer.
    pub(super) fn sync_snapshot(&self, id: u64) -> Result<(), Error> {
        let path = self.layout.snapshot_fs(id);
        File::open(&path)
            .and_then(|folder| rustix::fs::syncfs(&folder).map_err(io::Error::from))
            .map_err(|error| Error::io("sync", &path, error))
    }

    /// What cannot be removed now is left to the next cleaning.
    pub(super) fn remove_snapshot_folder(&self, id: u64) {
        remove(&self.layout.snapshot(id));
    }

    /// Removes folders without a row. Not those that are mounted, nor any as long as a damaged database lies aside: then
    /// the rows are gone, and containers may run.
    pub(super) fn remove_orphan_snapshots(&self) {
        if self.layout.damaged_database().exists() {
            return;
        }
        let known: BTreeSet<u64> = {
            let state = self.state();
            let rows = state.records.snapshots.values();
            let rows = rows.filter(|row| row.layer.is_none());
            rows.map(|row| row.id).collect()
        };
        let folder = self.layout.snapshots();
        let names = match files::names(&folder) {
            Ok(names) => names,
            Err(error) => return tracing::warn!(err = %error, "Snapshots were not cleaned"),
        };
        let orphans: Vec<u64> = names
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter(|id| !known.contains(id))
            .collect();
        if orphans.is_empty() {
            return;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for id in orphans {
            let used = format!("upperdir={}", self.layout.snapshot_fs(id).display());
            let uses = |line: &str| {
                let mut options = line.split([' ', ',']);
                options.any(|option| option == used)
            };
            if mounts.lines().any(uses) {
                tracing::warn!(
                    snapshot = id,
                    "Kept the folder of an unknown snapshot: it is mounted"
                );
                continue;
            }
            tracing::info!(
                snapshot = id,
                "Removed the folder of a snapshot that is gone"
            );
            self.remove_snapshot_folder(id);
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let folder = path.display();
            tracing::warn!(%folder, err = %error, "Kept the folder of a removed snapshot");
        }
    }
}

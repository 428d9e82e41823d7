//! What the store occupies on disk: every file is looked at once, at start, and again when a change may have touched it.
//!
//! A file's blocks are what the file system says, never a sum of lengths: packs have holes, and file systems have
//! bookkeeping of their own.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::Inner;
use super::types::Usage;

/// Bytes on disk by file and folder, and their sum.
#[derive(Debug, Default)]
pub(super) struct Occupied {
    bytes_of: HashMap<PathBuf, u64>,
    sum: u64,
}

impl Occupied {
    /// Bytes of a file that was looked at.
    pub(super) fn of(&self, path: &Path) -> u64 {
        self.bytes_of.get(path).copied().unwrap_or(0)
    }

    /// Looks at a file; one that is absent counts nothing.
    fn look_at(&mut self, path: PathBuf, device: u64) {
        let meta = fs::symlink_metadata(&path).ok();
        // What is mounted there is not the store's to count.
        let bytes = meta
            .filter(|meta| meta.dev() == device)
            .map(|meta| meta.blocks() * 512);
        let before = match bytes {
            Some(bytes) => self.bytes_of.insert(path, bytes),
            None => self.bytes_of.remove(&path),
        };
        self.sum = self.sum.saturating_sub(before.unwrap_or_default());
        self.sum = self.sum.saturating_add(bytes.unwrap_or_default());
    }
}

impl Inner {
    /// Looks at every file of the store.
    pub(super) fn measure(&self) {
        let mut found = Vec::new();
        for folder in self.layout.folders() {
            // What a pull stages goes before the pull ends, mounts are not kept here, and what containers write is theirs.
            let others = [
                self.layout.staging(),
                self.layout.mounts(),
                self.layout.snapshots(),
            ];
            if others.contains(&folder) {
                continue;
            }
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path()));
        }
        *self.occupied() = Occupied::default();
        self.measure_again(found);
    }

    /// Looks at files that a change touched, and at the few that any change may.
    pub(super) fn measure_again(&self, touched: impl IntoIterator<Item = PathBuf>) {
        let device = device_of(self.layout.root());
        let mut occupied = self.occupied();
        for path in touched.into_iter().chain(self.layout.always()) {
            occupied.look_at(path, device);
        }
        let kept_bytes = self.kept_bytes();
        let mut state = self.state();
        let layers = state.records.layers.values();
        let usage = Usage {
            logical_bytes: layers.map(|row| row.content_bytes).sum(),
            stored_bytes: occupied.sum,
            kept_bytes,
            inodes: occupied.bytes_of.len() as u64,
            images: state.records.visible().len() as u64,
            layers: state.records.layers.len() as u64,
            segments: state.records.segments.len() as u64,
        };
        self.metrics.usage(&usage);
        state.usage = usage;
    }

    /// Looks at what may have grown with rows that are not counted.
    pub(super) fn measure_database(&self) {
        let mut occupied = self.occupied();
        let device = device_of(self.layout.root());
        occupied.look_at(self.layout.database(), device);
        let mut state = self.state();
        state.usage.stored_bytes = occupied.sum;
        self.metrics.usage(&state.usage);
    }

    pub(super) fn measure_segments(&self, mut segments: Vec<u32>) {
        segments.sort_unstable();
        segments.dedup();
        self.measure_again(segments.into_iter().map(|id| self.layout.pack(id)));
    }

    /// Taken before the state.
    pub(super) fn occupied(&self) -> std::sync::MutexGuard<'_, Occupied> {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn device_of(root: &Path) -> u64 {
    fs::symlink_metadata(root).map_or(0, |meta| meta.dev())
}

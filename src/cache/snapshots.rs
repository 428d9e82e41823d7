//! Snapshots for a container runtime: the store's, off the runtime's workers. Never fetches anything.

use std::collections::BTreeMap;

use crate::store::{NewSnapshot, SnapshotError, SnapshotInfo, SnapshotMount, SnapshotUsage, Store};

use super::threads::Threads;
use super::{Cache, Error, ErrorKind};

/// Snapshots of a cache. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshots {
    store: Store,
    threads: Threads,
}

impl Cache {
    /// The snapshots that stand on this cache's layers.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots {
            store: self.inner.store.clone(),
            threads: self.inner.threads.clone(),
        }
    }
}

impl Snapshots {
    /// Makes an active snapshot, and says what to mount.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`] also where the labels name a chain that the cache has.
    pub async fn prepare(&self, new: NewSnapshot) -> Result<Vec<SnapshotMount>, Failure> {
        self.block(move |store| store.prepare_snapshot(&new)).await
    }

    /// Makes a snapshot to look at, and says what to mount.
    pub async fn view(&self, new: NewSnapshot) -> Result<Vec<SnapshotMount>, Failure> {
        self.block(move |store| store.view_snapshot(&new)).await
    }

    /// What to mount for a snapshot that is not committed.
    pub async fn mounts(&self, key: String) -> Result<Vec<SnapshotMount>, Failure> {
        if let Some(told) = self.store.told_snapshot_mounts(&key) {
            return Ok(told);
        }
        self.block(move |store| store.snapshot_mounts(&key)).await
    }

    /// Makes of an active snapshot a committed one.
    pub async fn commit(&self, key: String, new: NewSnapshot) -> Result<(), Failure> {
        self.block(move |store| store.commit_snapshot(&key, &new))
            .await
    }

    /// Removes a snapshot and what it wrote.
    pub async fn remove(&self, key: String) -> Result<(), Failure> {
        self.block(move |store| store.remove_snapshot(&key)).await
    }

    /// One snapshot.
    pub async fn stat(&self, key: String) -> Result<SnapshotInfo, Failure> {
        self.block(move |store| store.snapshot(&key)).await
    }

    /// All snapshots, by name. From memory.
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.store.snapshots()
    }

    /// Changes labels: all, or those that are named.
    pub async fn label(
        &self,
        key: String,
        labels: BTreeMap<String, String>,
        named: Option<Vec<String>>,
        now_ms: i64,
    ) -> Result<SnapshotInfo, Failure> {
        self.block(move |store| store.label_snapshot(&key, &labels, named.as_deref(), now_ms))
            .await
    }

    /// What a snapshot occupies by itself.
    pub async fn usage(&self, key: String) -> Result<SnapshotUsage, Failure> {
        self.block(move |store| store.snapshot_usage(&key)).await
    }

    /// Removes what removals and crashes left.
    pub async fn cleanup(&self) -> Result<(), Failure> {
        self.block(|store| store.clean_snapshots()).await
    }

    async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = self.store.clone();
        let done = self.threads.block("snapshots", move || work(&store)).await;
        match done {
            Ok(outcome) => outcome.map_err(Failure::from),
            Err(error) => Err(Failure::Other {
                kind: error.kind(),
                text: error.to_string(),
            }),
        }
    }
}

/// Why a call on a snapshot came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It concerns the snapshot.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// The store or the machine.
    #[error("{text}")]
    Other {
        /// What kind of failure.
        kind: ErrorKind,
        /// In words.
        text: String,
    },
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Store(error) => Failure::Other {
                kind: Error::of_store(&error),
                text: error.to_string(),
            },
            error => Failure::Snapshot(error),
        }
    }
}

//! Leases as pulls hold them: released off the runtime, and parked for a while after a failure that a retry may heal,
//! so that the retry does not fetch finished layers again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::store::Lease;

use super::threads::Threads;

/// How long the layers of a failed pull wait for a retry: kubelet's longest back-off.
const PARKED_FOR: Duration = Duration::from_secs(300);
/// Failed pulls whose layers wait at once; the oldest gives way.
const MAX_PARKED: usize = 8;

/// A lease that is dropped on a blocking thread, since releasing may reclaim space.
#[derive(Debug)]
pub(super) struct HeldLease {
    lease: Option<Arc<Lease>>,
    threads: Threads,
}

impl HeldLease {
    pub(super) fn new(lease: Lease, threads: Threads) -> Self {
        HeldLease {
            lease: Some(Arc::new(lease)),
            threads,
        }
    }

    /// The lease, for work that may outlive this holder.
    pub(super) fn share(&self) -> Option<Arc<Lease>> {
        self.lease.clone()
    }

    /// Releases the lease before it returns.
    pub(super) async fn release(mut self) {
        if let Some(lease) = self.lease.take() {
            let threads = self.threads.clone();
            // An error is an agent that stops: the runtime has dropped the lease then.
            let _ = threads.block("lease", move || drop(lease)).await;
        }
    }

    /// Takes the lease out, to be dropped in place by a caller that may block.
    fn into_inner(mut self) -> Option<Arc<Lease>> {
        self.lease.take()
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.threads.dispose(lease);
        }
    }
}

#[derive(Debug)]
struct Entry<K> {
    key: K,
    number: u64,
    lease: HeldLease,
    _timer: DropGuard,
}

#[derive(Debug)]
struct Shelf<K> {
    next: u64,
    entries: VecDeque<Entry<K>>,
}

/// Leases of failed pulls, bounded in number and time.
#[derive(Debug)]
pub(super) struct Parked<K> {
    shelf: Arc<Mutex<Shelf<K>>>,
    tracker: TaskTracker,
    handle: Handle,
    shutdown: CancellationToken,
}

impl<K: PartialEq + Send + 'static> Parked<K> {
    pub(super) fn new(tracker: TaskTracker, handle: Handle, shutdown: CancellationToken) -> Self {
        Parked {
            shelf: Arc::new(Mutex::new(Shelf {
                next: 0,
                entries: VecDeque::new(),
            })),
            tracker,
            handle,
            shutdown,
        }
    }

    /// Keeps a lease for a retry of `key`.
    pub(super) fn park(&self, key: K, lease: HeldLease) {
        if self.shutdown.is_cancelled() {
            return;
        }
        let over = CancellationToken::new();
        let mut shelf = lock(&self.shelf);
        let number = shelf.next;
        shelf.next += 1;
        shelf.entries.push_back(Entry {
            key,
            number,
            lease,
            _timer: over.clone().drop_guard(),
        });
        let oldest = if shelf.entries.len() > MAX_PARKED {
            shelf.entries.pop_front()
        } else {
            None
        };
        drop(shelf);
        drop(oldest);

        let (shelf, shutdown) = (self.shelf.clone(), self.shutdown.clone());
        let timer = async move {
            tokio::select! {
                () = over.cancelled() => return,
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(PARKED_FOR) => {}
            }
            let mut shelf = lock(&shelf);
            let found = shelf
                .entries
                .iter()
                .position(|entry| entry.number == number);
            let entry = found.and_then(|at| shelf.entries.remove(at));
            drop(shelf);
            drop(entry);
        };
        drop(self.tracker.spawn_on(timer, &self.handle));
    }

    /// The lease an earlier try of `key` left.
    pub(super) fn take(&self, key: &K) -> Option<HeldLease> {
        let mut shelf = lock(&self.shelf);
        let found = shelf.entries.iter().position(|entry| entry.key == *key)?;
        shelf.entries.remove(found).map(|entry| entry.lease)
    }

    /// All leases, for a caller that wants their space back now and may block.
    pub(super) fn take_all(&self) -> Vec<Arc<Lease>> {
        let entries = std::mem::take(&mut lock(&self.shelf).entries);
        entries
            .into_iter()
            .filter_map(|entry| entry.lease.into_inner())
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! One download per blob, however many pulls wait for it.
//!
//! A download belongs to the cache, not to the pull that began it: it goes on while anybody holds a [`Ticket`], and is
//! cancelled with the last one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Error;
use crate::cache::leases::HeldLease;
use crate::cache::threads::Threads;
use crate::image::Digest;
use crate::registry::{self, Repository};
use crate::store::{self, Layer, LayerCounters, Store};

use super::pipe::pipe;
use super::plan::Fetch;

/// A layer in the store, protected while this lives.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) layer: Layer,
    _lease: HeldLease,
}

/// Why a download came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    Registry(registry::Error),
    Store(Arc<store::Error>),
    Internal(String),
    Cancelled,
}

impl Failure {
    /// True where a pull that only joined should try with its own credentials and hosts.
    pub(super) fn is_of_the_source(&self) -> bool {
        match self {
            Failure::Registry(_) | Failure::Cancelled => true,
            Failure::Store(error) => matches!(
                **error,
                store::Error::DigestMismatch { .. }
                    | store::Error::SizeMismatch { .. }
                    | store::Error::Source { .. }
            ),
            Failure::Internal(_) => false,
        }
    }

    pub(super) fn error(&self, reference: &str) -> Error {
        let reference = reference.to_owned();
        match self {
            Failure::Registry(source) => Error::Registry {
                reference,
                source: source.clone(),
            },
            Failure::Store(source) => Error::Store {
                subject: reference,
                source: source.clone(),
            },
            Failure::Internal(cause) => Error::Internal {
                subject: reference,
                cause: cause.clone(),
            },
            Failure::Cancelled => Error::Cancelled { reference },
        }
    }
}

pub(super) type Outcome = Result<Arc<Landed>, Arc<Failure>>;

/// A transfer under way with its live counters.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) counters: Arc<LayerCounters>,
    /// Compressed bytes received.
    pub(super) received: AtomicU64,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
}

#[derive(Debug)]
struct Entry {
    download: Arc<Download>,
    waiters: usize,
}

type Table = Mutex<HashMap<Digest, Entry>>;

/// All downloads under way. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Downloads {
    table: Arc<Table>,
    store: Store,
    threads: Threads,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

/// Interest in a download; the last one dropped cancels it.
#[derive(Debug)]
pub(super) struct Ticket {
    table: Arc<Table>,
    blob: Digest,
    pub(super) download: Arc<Download>,
}

impl Ticket {
    pub(super) async fn wait(self) -> (Digest, Arc<Download>, Outcome) {
        let mut outcome = self.download.outcome.clone();
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        let result = result.unwrap_or_else(|| {
            Err(Arc::new(Failure::Internal(
                "the download's task ended early".to_owned(),
            )))
        });
        (self.blob.clone(), self.download.clone(), result)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(entry) = table.get_mut(&self.blob)
            && Arc::ptr_eq(&entry.download, &self.download)
        {
            entry.waiters = entry.waiters.saturating_sub(1);
            if entry.waiters == 0 {
                // Out of the table first: who comes now begins anew instead of joining what is being given up.
                table.remove(&self.blob);
                self.download.cancel.cancel();
            }
        }
    }
}

impl Downloads {
    pub(in crate::cache) fn new(
        store: Store,
        threads: Threads,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Downloads {
            table: Arc::default(),
            store,
            threads,
            tracker,
            shutdown,
        }
    }

    /// Joins a download that is under way.
    pub(super) fn join(&self, blob: &Digest) -> Option<Ticket> {
        self.join_in(&mut lock(&self.table), blob)
    }

    fn join_in(&self, table: &mut HashMap<Digest, Entry>, blob: &Digest) -> Option<Ticket> {
        let entry = table.get_mut(blob)?;
        entry.waiters += 1;
        Some(Ticket {
            table: self.table.clone(),
            blob: blob.clone(),
            download: entry.download.clone(),
        })
    }

    /// Starts a download, or joins it if somebody was quicker. `slot` is held until the layer is ingested.
    /// The flag tells whether it was joined.
    pub(super) fn start(
        &self,
        repository: &Repository,
        fetch: Fetch,
        slot: OwnedSemaphorePermit,
    ) -> (Ticket, bool) {
        let blob = fetch.descriptor.digest.clone();
        let mut table = lock(&self.table);
        if let Some(ticket) = self.join_in(&mut table, &blob) {
            return (ticket, true);
        }
        let (publish, outcome) = watch::channel(None);
        let download = Arc::new(Download {
            counters: Arc::default(),
            received: AtomicU64::new(0),
            cancel: self.shutdown.child_token(),
            outcome,
        });
        table.insert(
            blob.clone(),
            Entry {
                download: download.clone(),
                waiters: 1,
            },
        );
        let ticket = Ticket {
            table: self.table.clone(),
            blob,
            download: download.clone(),
        };
        drop(table);

        let (store, threads, table, repository) = (
            self.store.clone(),
            self.threads.clone(),
            self.table.clone(),
            repository.clone(),
        );
        drop(self.tracker.spawn(async move {
            let blob = fetch.descriptor.digest.clone();
            let result = transfer(store, threads, repository, fetch, slot, &download).await;
            {
                let mut table = lock(&table);
                if table
                    .get(&blob)
                    .is_some_and(|entry| Arc::ptr_eq(&entry.download, &download))
                {
                    table.remove(&blob);
                }
            }
            // Nobody left to tell is fine.
            let _ = publish.send(Some(result.map(Arc::new).map_err(Arc::new)));
        }));
        (ticket, false)
    }
}

/// Reads the blob from the registry into an ingest on a thread of its own.
async fn transfer(
    store: Store,
    threads: Threads,
    repository: Repository,
    fetch: Fetch,
    slot: OwnedSemaphorePermit,
    download: &Download,
) -> Result<Landed, Failure> {
    let mut stream = tokio::select! {
        biased;
        () = download.cancel.cancelled() => return Err(Failure::Cancelled),
        stream = repository.blob(&fetch.descriptor) => stream.map_err(Failure::Registry)?,
    };
    let source = store::LayerSource {
        blob: fetch.descriptor.digest.clone(),
        size: fetch.descriptor.size,
        compression: fetch.compression,
    };
    let held = HeldLease::new(store.lease(), threads.clone());
    let Some(lease) = held.share() else {
        return Err(Failure::Cancelled);
    };
    let counters = download.counters.clone();
    let (feed, mut drain) = pipe();
    let ingest = threads
        .dedicated("ingest", move || {
            // The slot counts threads, not transfers: it is given back when this thread is through.
            let _slot = slot;
            store.ingest(&source, &mut drain, &counters, &lease)
        })
        .map_err(|error| Failure::Internal(error.to_string()))?;

    let feeding = async move {
        loop {
            match stream.next().await {
                Some(Ok(bytes)) => {
                    download
                        .received
                        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    if !feed.send(bytes).await {
                        return None;
                    }
                }
                Some(Err(error)) => {
                    feed.fail(error.clone()).await;
                    return Some(error);
                }
                None => {
                    feed.end().await;
                    return None;
                }
            }
        }
    };
    // On cancellation the feed is dropped, so that the reader fails and the ingest takes back what it wrote.
    let broken = tokio::select! {
        biased;
        () = download.cancel.cancelled() => None,
        broken = feeding => broken,
    };
    match ingest.await {
        Ok(Ok(layer)) => Ok(Landed {
            layer,
            _lease: held,
        }),
        Ok(Err(_)) if download.cancel.is_cancelled() => Err(Failure::Cancelled),
        Ok(Err(error)) => {
            Err(broken.map_or_else(|| Failure::Store(Arc::new(error)), Failure::Registry))
        }
        Err(_) => Err(Failure::Internal(format!(
            "the ingest of layer {} panicked",
            fetch.descriptor.digest
        ))),
    }
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<Digest, Entry>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

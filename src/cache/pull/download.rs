//! One download per blob, however many pulls wait for it.
//!
//! A download belongs to the cache, not to the pull that began it: it goes on while anybody holds a [`Ticket`], and is
//! cancelled with the last one.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Error;
use crate::cache::gate::{Gate, LayerPass};
use crate::cache::keep::{Keeping, Tee, not_kept};
use crate::cache::threads::Threads;
use crate::image::{DiffId, Digest};
use crate::registry::{self, Repository};
use crate::store::{self, KeptName, Layer, LayerCounters, Lease, Store};

use super::pipe::pipe;
use super::plan::Fetch;

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

/// On success the layer is protected by the leases of all who waited.
pub(super) type Outcome = Result<Layer, Arc<Failure>>;

/// A transfer under way with its live counters.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) counters: Arc<LayerCounters>,
    /// Compressed bytes received.
    pub(super) received: AtomicU64,
    /// Its number at the gate.
    pass: u64,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Download {
    /// Waits until a cancelled download has taken back what it wrote. One that others wait for is left alone.
    pub(super) async fn wound_down(&self) {
        if self.cancel.is_cancelled() {
            // An error is a task that ended, which is as good.
            let _ = self.outcome.clone().wait_for(Option::is_some).await;
        }
    }
}

#[derive(Debug)]
struct Entry {
    download: Arc<Download>,
    /// The leases of those who wait, by the number of their ticket.
    waiters: HashMap<u64, Arc<Lease>>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Digest, Entry>,
    tickets: u64,
}

type Table = Mutex<State>;

/// All downloads under way. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Downloads {
    table: Arc<Table>,
    store: Store,
    threads: Threads,
    tracker: TaskTracker,
    shutdown: CancellationToken,
    gate: Gate,
    keeping: Keeping,
}

/// Interest in a download; the last one dropped cancels it.
#[derive(Debug)]
pub(super) struct Ticket {
    table: Arc<Table>,
    gate: Gate,
    blob: Digest,
    number: u64,
    /// The pull that waits.
    pull: u64,
    pub(super) download: Arc<Download>,
}

/// What became of a wish to download.
pub(super) enum Begun {
    Started(Ticket),
    /// Somebody was quicker.
    Joined(Ticket),
    /// Somebody was quicker and is through.
    Present(DiffId),
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
        self.gate.leave(self.download.pass, self.pull);
        let mut table = lock(&self.table);
        let Some(entry) = table.entries.get_mut(&self.blob) else {
            return;
        };
        if !Arc::ptr_eq(&entry.download, &self.download) {
            return;
        }
        entry.waiters.remove(&self.number);
        if entry.waiters.is_empty() {
            // Out of the table first: who comes now begins anew instead of joining what is being given up.
            table.entries.remove(&self.blob);
            self.download.cancel.cancel();
        }
    }
}

impl Downloads {
    pub(in crate::cache) fn new(
        store: Store,
        threads: Threads,
        tracker: TaskTracker,
        shutdown: CancellationToken,
        gate: Gate,
        keeping: Keeping,
    ) -> Self {
        Downloads {
            table: Arc::default(),
            store,
            threads,
            tracker,
            shutdown,
            gate,
            keeping,
        }
    }

    /// Joins a download that is under way; `lease` will protect its layer. It becomes as urgent as `pull` is.
    pub(super) fn join(&self, blob: &Digest, lease: &Arc<Lease>, pull: u64) -> Option<Ticket> {
        self.join_in(&mut lock(&self.table), blob, lease, pull)
    }

    fn join_in(
        &self,
        table: &mut State,
        blob: &Digest,
        lease: &Arc<Lease>,
        pull: u64,
    ) -> Option<Ticket> {
        let entry = table.entries.get_mut(blob)?;
        table.tickets += 1;
        entry.waiters.insert(table.tickets, lease.clone());
        self.gate.join(entry.download.pass, pull);
        Some(Ticket {
            table: self.table.clone(),
            blob: blob.clone(),
            gate: self.gate.clone(),
            number: table.tickets,
            pull,
            download: entry.download.clone(),
        })
    }

    /// Starts a download, unless somebody was quicker. `here` tells whether the layer is in the store by now; it is
    /// asked under the table's lock, since a download leaves the table only after its layer is stored.
    /// `slot` is held until the layer is ingested. The last two are the pull's lease and number.
    pub(super) fn start(
        &self,
        repository: &Repository,
        fetch: Fetch,
        slot: LayerPass,
        (lease, pull): (&Arc<Lease>, u64),
        here: impl FnOnce() -> Option<DiffId>,
    ) -> Begun {
        let blob = fetch.descriptor.digest.clone();
        let mut table = lock(&self.table);
        if let Some(ticket) = self.join_in(&mut table, &blob, lease, pull) {
            return Begun::Joined(ticket);
        }
        if let Some(diff_id) = here() {
            return Begun::Present(diff_id);
        }
        let (publish, outcome) = watch::channel(None);
        let download = Arc::new(Download {
            counters: Arc::default(),
            received: AtomicU64::new(0),
            pass: slot.number(),
            cancel: self.shutdown.child_token(),
            outcome,
        });
        table.tickets += 1;
        let number = table.tickets;
        let waiters = HashMap::from([(number, lease.clone())]);
        table.entries.insert(
            blob.clone(),
            Entry {
                download: download.clone(),
                waiters,
            },
        );
        let ticket = Ticket {
            table: self.table.clone(),
            gate: self.gate.clone(),
            blob,
            number,
            pull,
            download: download.clone(),
        };
        drop(table);

        let (downloads, repository) = (self.clone(), repository.clone());
        drop(self.tracker.spawn(async move {
            let blob = fetch.descriptor.digest.clone();
            let result = downloads.transfer(repository, fetch, slot, &download).await;
            drop(downloads.leave(&blob, &download));
            // Nobody left to tell is fine.
            let _ = publish.send(Some(result.map_err(Arc::new)));
        }));
        Begun::Started(ticket)
    }

    /// Takes a download out of the table.
    fn leave(&self, blob: &Digest, download: &Download) -> Option<Entry> {
        let mut table = lock(&self.table);
        let ours = table
            .entries
            .get(blob)
            .is_some_and(|entry| std::ptr::eq(&*entry.download, download));
        if ours {
            table.entries.remove(blob)
        } else {
            None
        }
    }

    /// Passes a new layer on to the leases of those who wait. Who comes later finds it in the store.
    fn hand_over(&self, blob: &Digest, download: &Download, layer: &Layer) {
        let mut table = lock(&self.table);
        let ours = table
            .entries
            .get(blob)
            .is_some_and(|entry| std::ptr::eq(&*entry.download, download));
        if ours && let Some(entry) = table.entries.remove(blob) {
            for lease in entry.waiters.values() {
                self.store.layer(&layer.diff_id, lease);
            }
        }
    }

    /// Ingests a blob that is kept as it came; gives the slot back where it is not.
    async fn ingest_kept(
        &self,
        fetch: &Fetch,
        name: KeptName,
        slot: LayerPass,
        download: &Arc<Download>,
    ) -> Result<Result<Layer, LayerPass>, Failure> {
        if self.store.kept_size(&name) != Some(fetch.descriptor.size) {
            return Ok(Err(slot));
        }
        let (downloads, ours) = (self.clone(), download.clone());
        let source = source(fetch);
        let ingest = self
            .threads
            .dedicated("ingest", move || {
                let Some(blob) = downloads.store.kept(&name)? else {
                    return Ok(Err(slot));
                };
                let _slot = slot;
                let layer = downloads.take_in(&source, &mut blob.reader(), &ours)?;
                Ok(Ok(layer))
            })
            .map_err(|error| Failure::Internal(error.to_string()))?;
        match ingest.await {
            Ok(outcome) => outcome.map_err(|error| Failure::Store(Arc::new(error))),
            Err(_) => Err(panicked(fetch)),
        }
    }

    /// Ingests a blob for all who wait. Blocking.
    fn take_in(
        &self,
        source: &store::LayerSource,
        from: &mut (dyn Read + Send),
        download: &Download,
    ) -> Result<Layer, store::Error> {
        // Of this thread alone, and released on it: whoever learns of the outcome finds no trace of this lease.
        let lease = self.store.lease();
        let layer = self
            .store
            .ingest(source, from, &download.counters, &lease)?;
        self.hand_over(&source.blob, download, &layer);
        Ok(layer)
    }

    /// Reads the blob from the registry into an ingest on a thread of its own.
    async fn transfer(
        &self,
        repository: Repository,
        fetch: Fetch,
        slot: LayerPass,
        download: &Arc<Download>,
    ) -> Result<Layer, Failure> {
        let name = KeptName::new(&fetch.descriptor.digest, repository.domain());
        let slot = match self
            .ingest_kept(&fetch, name.clone(), slot, download)
            .await?
        {
            Ok(layer) => return Ok(layer),
            Err(slot) => slot,
        };
        let keep = self.keeping.get();
        let keep = keep.filter(|keep| keep.wants(&repository.name()));
        let keep = keep.filter(|keep| fetch.descriptor.size <= keep.max_bytes);
        let keep = keep.cloned();
        let mut stream = tokio::select! {
            biased;
            () = download.cancel.cancelled() => return Err(Failure::Cancelled),
            stream = repository.blob(&fetch.descriptor) => stream.map_err(Failure::Registry)?,
        };
        let source = source(&fetch);
        let (feed, drain) = pipe();
        let (downloads, ours) = (self.clone(), download.clone());
        let ingest = self
            .threads
            .dedicated("ingest", move || {
                // The slot counts threads, not transfers: it is given back when this thread is through.
                let _slot = slot;
                let store = &downloads.store;
                let begun = keep
                    .as_ref()
                    .map(|keep| keep.begin(store, &name, source.size));
                let writer = begun.and_then(|begun| begun.inspect_err(not_kept).ok());
                let mut reader = Tee::new(drain, writer);
                let layer = downloads.take_in(&source, &mut reader, &ours)?;
                if let Some((writer, keep)) = reader.kept().zip(keep) {
                    // The image does not wait until this is durable.
                    let store = store.clone();
                    downloads.threads.aside(move || {
                        let _ = keep.finish(writer, &store).inspect_err(not_kept);
                    });
                }
                Ok(layer)
            })
            .map_err(|error| Failure::Internal(error.to_string()))?;

        let feeding = async move {
            loop {
                match stream.next().await {
                    Some(Ok(bytes)) => {
                        download
                            .received
                            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        self.gate.pace(download.pass, bytes.len()).await;
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
            Ok(Ok(layer)) => Ok(layer),
            Ok(Err(_)) if download.cancel.is_cancelled() => Err(Failure::Cancelled),
            Ok(Err(error)) => {
                Err(broken.map_or_else(|| Failure::Store(Arc::new(error)), Failure::Registry))
            }
            Err(_) => Err(panicked(&fetch)),
        }
    }
}

fn source(fetch: &Fetch) -> store::LayerSource {
    store::LayerSource {
        blob: fetch.descriptor.digest.clone(),
        size: fetch.descriptor.size,
        compression: fetch.compression,
    }
}

fn panicked(fetch: &Fetch) -> Failure {
    let digest = &fetch.descriptor.digest;
    Failure::Internal(format!("the ingest of layer {digest} panicked"))
}

fn lock(table: &Table) -> MutexGuard<'_, State> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

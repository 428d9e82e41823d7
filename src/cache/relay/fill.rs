//! Blobs on their way into the store that are given out meanwhile: one download for whoever wants it, and to keep.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::pull::pipe;
use crate::cache::threads::Threads;
use crate::cache::{Error, Keep};
use crate::registry::Repository;
use crate::store::{self, KeptBlob, KeptName, KeptWriter, Store};

/// Blobs on their way at once; more are given out without being kept.
const MAX_FILLS: usize = 16;
/// Bytes written at once.
const PIECE: usize = 256 << 10;

/// How far a download is.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// The registry has not answered yet.
    Opening,
    /// So many bytes may be read.
    Moving(u64),
    /// All of them, and they are what the digest says.
    Done,
    /// No more will come.
    Failed(Arc<Error>),
}

/// One download.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) size: u64,
    pub(super) file: Arc<KeptBlob>,
    pub(super) state: watch::Receiver<State>,
}

/// All downloads to keep. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Fills {
    table: Arc<Mutex<HashMap<KeptName, Arc<Fill>>>>,
    places: Arc<Semaphore>,
    store: Store,
    threads: Threads,
    tracker: TaskTracker,
    shutdown: CancellationToken,
    keep: Keep,
}

/// A blob, as `domain/path@digest` for messages, and where it comes from.
pub(super) struct Source {
    pub(super) subject: String,
    pub(super) repository: Repository,
    pub(super) name: KeptName,
    pub(super) size: u64,
    /// What somebody else fetches is given, too: he may have it.
    pub(super) may_join: bool,
}

impl Fills {
    pub(super) fn new(
        store: Store,
        threads: Threads,
        tracker: TaskTracker,
        shutdown: CancellationToken,
        keep: Keep,
    ) -> Self {
        Fills {
            table: Arc::default(),
            places: Arc::new(Semaphore::new(MAX_FILLS)),
            store,
            threads,
            tracker,
            shutdown,
            keep,
        }
    }

    /// One that is under way.
    pub(super) fn under_way(&self, name: &KeptName) -> Option<Arc<Fill>> {
        self.table().get(name).cloned()
    }

    /// Begins to fetch and keep a blob, or joins who did. `None` where it cannot be kept, or not be joined: it can still be
    /// given out.
    pub(super) async fn begin(&self, source: Source) -> Result<Option<Arc<Fill>>, Error> {
        if source.size > self.keep.max_bytes {
            return Ok(None);
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return Ok(None);
        };
        let (store, name, size) = (self.store.clone(), source.name.clone(), source.size);
        let keep = self.keep.clone();
        let opened = self.threads.block(&source.subject, move || {
            let writer = keep.begin(&store, &name, size)?;
            let file = writer.reader()?;
            Ok::<_, store::Error>((writer, file))
        });
        let (writer, file) = match opened.await? {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(blob = %source.name.digest(), err = %error, "A blob is given out and not kept");
                return Ok(None);
            }
        };
        let (publish, state) = watch::channel(State::Opening);
        let fill = Arc::new(Fill {
            size: source.size,
            file: Arc::new(file),
            state,
        });
        {
            let mut table = self.table();
            if let Some(other) = table.get(&source.name) {
                return Ok(source.may_join.then(|| other.clone()));
            }
            table.insert(source.name.clone(), fill.clone());
        }
        let fills = self.clone();
        drop(self.tracker.spawn(async move {
            let name = source.name.clone();
            let outcome = tokio::select! {
                biased;
                () = fills.shutdown.cancelled() => Err(Error::Cancelled { reference: source.subject.clone() }),
                outcome = fills.fetch(&source, writer, &publish, place) => outcome,
            };
            // Out of the table first: who comes now finds it kept, or begins anew.
            fills.table().remove(&name);
            // Nobody left to tell is fine.
            let _ = publish.send(match outcome {
                Ok(()) => State::Done,
                Err(error) => State::Failed(Arc::new(error)),
            });
        }));
        Ok(Some(fill))
    }

    async fn fetch(
        &self,
        source: &Source,
        writer: KeptWriter,
        publish: &watch::Sender<State>,
        place: OwnedSemaphorePermit,
    ) -> Result<(), Error> {
        let failed = |error| Error::Registry {
            reference: source.subject.clone(),
            source: error,
        };
        let opened = source
            .repository
            .blob_from(source.name.digest(), source.size, 0);
        let mut stream = opened.await.map_err(failed)?;
        let (feed, drain) = pipe::pipe();
        let told = publish.clone();
        let last = source.size.saturating_sub(1);
        let (store, keep) = (self.store.clone(), self.keep.clone());
        let written = self.threads.dedicated("keep", move || {
            // Counts threads, not transfers.
            let _place = place;
            let writer = write(writer, drain, |bytes| {
                // The last byte is not given out before the digest is known to be right.
                told.send_replace(State::Moving(bytes.min(last)));
            })?;
            keep.finish(writer, &store)
        })?;
        publish.send_replace(State::Moving(0));
        let mut broken = None;
        loop {
            match stream.next().await {
                Some(Ok(bytes)) => {
                    if !feed.send(bytes).await {
                        break;
                    }
                }
                Some(Err(error)) => {
                    feed.fail(error.clone()).await;
                    broken = Some(error);
                    break;
                }
                None => {
                    feed.end().await;
                    break;
                }
            }
        }
        let outcome = written.await.map_err(|_| Error::Internal {
            subject: source.subject.clone(),
            cause: "the thread that keeps it panicked".to_owned(),
        })?;
        match (outcome, broken) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(error)) => Err(failed(error)),
            (Err(error), None) => Err(Error::store(source.subject.clone(), error)),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<KeptName, Arc<Fill>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(
    mut writer: KeptWriter,
    mut drain: pipe::Drain,
    mut told: impl FnMut(u64),
) -> Result<KeptWriter, store::Error> {
    let mut buffer = vec![0; PIECE];
    let mut written = 0_u64;
    loop {
        let count = match drain.read(&mut buffer) {
            Ok(0) => return Ok(writer),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // Told by the feeding side already, and with more words.
            Err(error) => return Err(store::Error::Invalid(error.to_string())),
        };
        writer.write(buffer.get(..count).unwrap_or_default())?;
        written = written.saturating_add(count as u64);
        told(written);
    }
}

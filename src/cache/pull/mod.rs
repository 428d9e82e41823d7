//! Pulls: shared by all who ask for the same, owned by the cache, given up when nobody waits any more.

mod documents;
mod download;
pub(super) mod pipe;
mod plan;
mod progress;
mod run;
mod space;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{SemaphorePermit, watch};
use tokio::time::Instant;
use tracing::Instrument;

use crate::image::Platform;

use super::gate::PullPass;
use super::leases::HeldLease;
use super::{Error, ErrorKind, Inner, Phase, PullProgress, PullRequest, Pulled, Visibility};

pub(super) use documents::stored;
pub(super) use download::Downloads;
use progress::Board;
use run::Run;

/// How long a failed pull waits for its downloads to take back what they wrote.
const WIND_DOWN: Duration = Duration::from_secs(2);

/// What makes two requests the same: they share one pull.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    reference: String,
    platform: Platform,
    /// Hashes of the credentials: two callers share a registry's answer only if they showed it the same.
    credentials: Vec<Fingerprint>,
    visibility: Visibility,
    plain_http: bool,
}

/// Hash of credentials. Not printed: a weak password could be guessed from it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Fingerprint([u8; 32]);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[fingerprint]")
    }
}

impl Key {
    fn new(request: &PullRequest, platform: &Platform) -> Self {
        Key {
            reference: request.reference.to_string(),
            platform: platform.clone(),
            credentials: [&request.credentials]
                .into_iter()
                .chain(&request.secrets)
                .map(|credentials| Fingerprint(credentials.fingerprint()))
                .collect(),
            visibility: request.visibility,
            plain_http: request.plain_http,
        }
    }
}

type Outcome = Result<Pulled, Arc<Error>>;

/// One pull under way.
#[derive(Debug)]
pub(super) struct Flight {
    reference: String,
    progress: watch::Receiver<PullProgress>,
    outcome: watch::Receiver<Option<Outcome>>,
    waiters: watch::Sender<usize>,
    /// Its number at the gate.
    pass: u64,
}

/// All pulls under way.
pub(super) type Flights = Mutex<HashMap<Key, Arc<Flight>>>;

/// A pull under way, shared by all who asked for the same.
#[derive(Debug)]
pub struct Pull {
    flight: Arc<Flight>,
}

impl Pull {
    /// Progress: the newest state, and a wake-up when it changes (at most ten times a second).
    pub fn progress(&self) -> watch::Receiver<PullProgress> {
        self.flight.progress.clone()
    }

    /// Waits for the outcome. Dropping the `Pull` before lets the work go on for the grace period, then cancels it
    /// unless others wait.
    pub async fn wait(self) -> Result<Pulled, Arc<Error>> {
        let mut outcome = self.flight.outcome.clone();
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        result.unwrap_or_else(|| {
            Err(Arc::new(Error::Cancelled {
                reference: self.flight.reference.clone(),
            }))
        })
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.flight
            .waiters
            .send_modify(|waiters| *waiters = waiters.saturating_sub(1));
    }
}

/// Takes a flight out of the table when its task ends, however it ends.
struct Landing {
    inner: Arc<Inner>,
    key: Key,
    flight: Arc<Flight>,
}

impl Landing {
    fn clear(&self) {
        remove(&mut lock(&self.inner.flights), &self.key, &self.flight);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Starts or joins a pull.
pub(super) fn start(inner: &Arc<Inner>, request: PullRequest) -> Pull {
    let platform = request
        .platform
        .clone()
        .unwrap_or_else(|| inner.config.platform.clone());
    let key = Key::new(&request, &platform);
    let mut flights = lock(&inner.flights);
    if let Some(flight) = flights.get(&key) {
        // Under the table's lock: a flight that was given up is not in the table any more.
        flight.waiters.send_modify(|waiters| *waiters += 1);
        inner.gate.promote(flight.pass, request.priority);
        return Pull {
            flight: flight.clone(),
        };
    }
    let (to_progress, progress) = watch::channel(PullProgress::default());
    let (to_outcome, outcome) = watch::channel(None);
    let (waiters, _) = watch::channel(1);
    let pass = inner.gate.enter(request.priority);
    let flight = Arc::new(Flight {
        reference: key.reference.clone(),
        progress,
        outcome,
        waiters,
        pass: pass.number(),
    });
    flights.insert(key.clone(), flight.clone());
    drop(flights);

    let landing = Landing {
        inner: inner.clone(),
        key,
        flight: flight.clone(),
    };
    let task = async move {
        let outcome = fly(&landing, &request, &platform, &pass, to_progress).await;
        // Whoever asks from now on asks the registry anew.
        landing.clear();
        drop(pass);
        // Nobody left to tell is fine.
        let _ = to_outcome.send(Some(outcome.map_err(Arc::new)));
    };
    // What it logs belongs to the trace of whoever began it.
    let task = task.in_current_span();
    drop(inner.tracker.spawn_on(task, &inner.handle));
    Pull { flight }
}

async fn fly(
    landing: &Landing,
    request: &PullRequest,
    platform: &Platform,
    pass: &PullPass,
    to_progress: watch::Sender<PullProgress>,
) -> Result<Pulled, Error> {
    let inner = &landing.inner;
    let reference = landing.key.reference.clone();
    let begun = Instant::now();
    inner.metrics.pull_started();
    let lease = inner
        .parked
        .take(&landing.key)
        .unwrap_or_else(|| HeldLease::new(inner.store.lease(), inner.threads.clone()));
    let mut board = Board::new(to_progress);

    let work = async {
        let Some(_turn) = turn(inner, pass).await else {
            return Err(Error::Cancelled {
                reference: reference.clone(),
            });
        };
        let Some(shared) = lease.share() else {
            return Err(Error::Cancelled {
                reference: reference.clone(),
            });
        };
        Run {
            inner,
            request,
            platform,
            reference: reference.clone(),
            lease: shared,
            pass: pass.number(),
        }
        .pull(&mut board)
        .await
    };
    let outcome = tokio::select! {
        biased;
        () = inner.shutdown.cancelled() => Err(Error::Cancelled { reference: reference.clone() }),
        outcome = work => outcome,
        () = abandoned(landing) => Err(Error::Cancelled { reference: reference.clone() }),
    };

    // Whoever learns of the outcome finds nothing of a failed pull, and nothing that holds back the space of an image
    // removed at once.
    let parked = outcome.as_ref().is_err_and(Error::is_transient) && board.holds_layers();
    if outcome.is_err() {
        // A stuck disk must not keep the caller: what is left then goes by itself, later.
        let _ = tokio::time::timeout(WIND_DOWN, board.wound_down()).await;
    }
    if parked {
        inner.parked.park(landing.key.clone(), lease);
    } else {
        lease.release().await;
    }

    let took = begun.elapsed();
    inner.metrics.pull_ended(
        outcome.as_ref().map(|pulled| pulled.fetched_bytes == 0),
        took,
    );
    match &outcome {
        Ok(pulled) => {
            board.phase(Phase::Done);
            tracing::info!(
                reference,
                digest = %pulled.digest,
                image = %pulled.image.id,
                fetched_bytes = pulled.fetched_bytes,
                up_to_date = pulled.up_to_date,
                duration_seconds = took.as_secs_f64(),
                "Image pulled"
            );
        }
        Err(error) => {
            board.phase(Phase::Failed);
            let (duration_seconds, reason) = (took.as_secs_f64(), error.kind().as_str());
            if error.kind() == ErrorKind::Cancelled {
                tracing::info!(reference, duration_seconds, "Pull cancelled");
            } else {
                tracing::warn!(reference, err = %error, reason, duration_seconds, "Pull failed");
            }
        }
    }
    outcome
}

/// A turn among the pulls; `None` when the agent stops.
async fn turn<'a>(inner: &'a Inner, pass: &PullPass) -> Option<SemaphorePermit<'a>> {
    if !pass.is_foreground() {
        tokio::select! {
            turn = inner.background_pulls.acquire() => return turn.ok(),
            () = pass.promoted() => {}
        }
    }
    inner.pulls.acquire().await.ok()
}

/// Ends when nobody has waited for the grace period; the flight is out of the table then.
async fn abandoned(landing: &Landing) {
    let mut waiters = landing.flight.waiters.subscribe();
    let grace: Duration = landing.inner.config.orphan_grace;
    loop {
        // The sender lives in the flight, which the landing holds.
        if waiters.wait_for(|waiters| *waiters == 0).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(grace) => {
                let mut flights = lock(&landing.inner.flights);
                if *landing.flight.waiters.borrow() == 0 {
                    remove(&mut flights, &landing.key, &landing.flight);
                    return;
                }
            }
            _ = waiters.wait_for(|waiters| *waiters > 0) => {}
        }
    }
}

fn remove(flights: &mut HashMap<Key, Arc<Flight>>, key: &Key, flight: &Arc<Flight>) {
    if flights
        .get(key)
        .is_some_and(|found| Arc::ptr_eq(found, flight))
    {
        flights.remove(key);
    }
}

fn lock(flights: &Flights) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Credentials, Secret};

    #[test]
    fn requests_are_the_same_only_in_all_that_matters() {
        let basic = |password: &str| Credentials::Basic {
            username: "ann".into(),
            password: Secret::from(password.to_owned()),
        };
        let request = |reference: &str, credentials: &Credentials, plain_http: bool| PullRequest {
            credentials: credentials.clone(),
            plain_http,
            ..PullRequest::new(reference.parse().unwrap())
        };
        let key =
            |request: &PullRequest, platform: &str| Key::new(request, &platform.parse().unwrap());
        let one = key(&request("busybox", &basic("a"), false), "linux/amd64");
        let same = request("docker.io/library/busybox:latest", &basic("a"), false);
        assert_eq!(one, key(&same, "linux/amd64"));
        for (other, platform) in [
            (request("busybox:1", &basic("a"), false), "linux/amd64"),
            (request("busybox", &basic("b"), false), "linux/amd64"),
            (
                request("busybox", &Credentials::Anonymous, false),
                "linux/amd64",
            ),
            (request("busybox", &basic("a"), true), "linux/amd64"),
            (request("busybox", &basic("a"), false), "linux/arm64"),
        ] {
            assert_ne!(one, key(&other, platform), "{other:?}");
        }
        assert!(format!("{one:?}").contains("[fingerprint]"));
    }
}

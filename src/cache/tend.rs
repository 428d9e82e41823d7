//! What a cache does from time to time without being asked: it writes down uses, looks who uses images, and looks at the
//! disk.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Cache, Error};

/// Between two looks at who uses images.
const SIGHTINGS: Duration = Duration::from_secs(60);

/// When what was done last.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    sighted: Option<Instant>,
}

impl Cache {
    /// One round; to be called every few seconds while the cache is open.
    pub async fn tend(&self) {
        let now = Instant::now();
        let due = {
            let mut rounds = self.rounds();
            let due = rounds
                .sighted
                .is_none_or(|last| now.duration_since(last) >= SIGHTINGS);
            if due {
                rounds.sighted = Some(now);
            }
            due
        };
        if due {
            // What is wrong is said where it is found; the next round asks again.
            let _ = self.uses().await;
            self.note_namespaces();
        }
        self.shrink_kept().await;
        self.watch_disk().await;
        self.flush_uses().await;
    }

    /// Writes uses that are in memory only.
    pub async fn flush_uses(&self) {
        let store = self.inner.store.clone();
        let subject = self.root().display().to_string();
        let done = self
            .inner
            .threads
            .block(&subject, move || store.flush_uses());
        let done = match done.await {
            Ok(done) => done.map_err(|error| Error::store(subject, error)),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(err = %error, "Uses of images are not on disk yet");
        }
    }

    fn rounds(&self) -> std::sync::MutexGuard<'_, Rounds> {
        let rounds = &self.inner.rounds;
        rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

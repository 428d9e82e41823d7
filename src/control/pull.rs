//! Pull: the newest state of a pull as long as it runs, then its outcome.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tonic::Status;

use super::proto::{PullEvent, PullPhase};
use super::{convert, status};
use crate::cache::{Error, Pull, PullProgress, Pulled};

/// States, then one message with the result or an error.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<PullEvent, Status>> + Send>>;

type Outcome = Pin<Box<dyn Future<Output = Result<Pulled, Arc<Error>>> + Send>>;

/// The events of a pull. Dropping the stream drops the pull's waiter; the cache decides what becomes of the work.
/// A slow reader holds nothing up: it misses states and sees the newest.
pub(super) fn events(pull: Pull) -> Events {
    let progress = pull.progress();
    of(progress, Box::pin(pull.wait()))
}

struct State {
    progress: watch::Receiver<PullProgress>,
    /// Nobody will change `progress` any more.
    closed: bool,
    outcome: Outcome,
    first: bool,
}

fn of(progress: watch::Receiver<PullProgress>, outcome: Outcome) -> Events {
    let state = State {
        progress,
        closed: false,
        outcome,
        first: true,
    };
    Box::pin(stream::unfold(Some(state), |state| async move {
        Some(next(state?).await)
    }))
}

async fn next(mut state: State) -> (Result<PullEvent, Status>, Option<State>) {
    if std::mem::take(&mut state.first) {
        let event = convert::progress(&state.progress.borrow_and_update());
        return (Ok(event), Some(state));
    }
    loop {
        tokio::select! {
            biased;
            outcome = &mut state.outcome => {
                let event = outcome.map(|pulled| last(&state.progress.borrow(), &pulled)).map_err(|error| status::of(&error));
                return (event, None);
            }
            changed = state.progress.changed(), if !state.closed => match changed {
                Ok(()) => {
                    let event = convert::progress(&state.progress.borrow_and_update());
                    return (Ok(event), Some(state));
                }
                Err(_) => state.closed = true,
            },
        }
    }
}

fn last(progress: &PullProgress, pulled: &Pulled) -> PullEvent {
    PullEvent {
        phase: PullPhase::Done.into(),
        digest: pulled.digest.to_string(),
        result: Some(convert::pulled(pulled)),
        ..convert::progress(progress)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::sync::oneshot;

    use super::*;
    use crate::cache::Phase;

    #[tokio::test]
    async fn the_newest_state_then_the_error() {
        let (progress, receiver) = watch::channel(PullProgress::default());
        let (fail, failed) = oneshot::channel::<()>();
        let mut events = of(
            receiver,
            Box::pin(async move {
                let _ = failed.await;
                Err(Arc::new(Error::Cancelled {
                    reference: "busybox".to_owned(),
                }))
            }),
        );
        let phase = |event: Option<Result<PullEvent, Status>>| event.unwrap().unwrap().phase();
        assert_eq!(phase(events.next().await), PullPhase::Resolving);
        progress.send_modify(|state| state.phase = Phase::Fetching);
        progress.send_modify(|state| state.phase = Phase::Committing);
        assert_eq!(phase(events.next().await), PullPhase::Committing);
        // The end of the progress is not the end of the pull.
        drop(progress);
        fail.send(()).unwrap();
        assert_eq!(
            events.next().await.unwrap().unwrap_err().code(),
            tonic::Code::Cancelled
        );
        assert!(events.next().await.is_none());
    }
}

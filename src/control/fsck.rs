//! Fsck: how far it is, then what it found.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use super::proto::FsckEvent;
use super::{convert, status};
use crate::cache::{Cache, Error, FsckReport};

/// Between two messages about progress.
const INTERVAL: Duration = Duration::from_millis(100);

/// Progress, then one message with the report or an error.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<FsckEvent, Status>> + Send>>;

type Outcome = Pin<Box<dyn Future<Output = Result<FsckReport, Error>> + Send>>;

pub(super) fn events(cache: Cache, repair: bool) -> Events {
    let (progress, receiver) = watch::channel((0, 0));
    let outcome = async move {
        cache
            .fsck(repair, move |done, total| {
                progress.send_replace((done, total));
            })
            .await
    };
    of(receiver, Box::pin(outcome))
}

struct State {
    progress: watch::Receiver<(u64, u64)>,
    closed: bool,
    outcome: Outcome,
    /// Nothing about progress before.
    quiet: Instant,
}

fn of(progress: watch::Receiver<(u64, u64)>, outcome: Outcome) -> Events {
    let state = State {
        progress,
        closed: false,
        outcome,
        quiet: Instant::now(),
    };
    Box::pin(stream::unfold(Some(state), |state| async move {
        Some(next(state?).await)
    }))
}

async fn next(mut state: State) -> (Result<FsckEvent, Status>, Option<State>) {
    loop {
        let State {
            progress,
            outcome,
            quiet,
            closed,
        } = &mut state;
        tokio::select! {
            biased;
            outcome = outcome => {
                let (done, total) = *progress.borrow();
                let event = outcome
                    .map(|report| FsckEvent {
                        done_bytes: done.max(total),
                        total_bytes: total,
                        report: Some(convert::report(report)),
                    })
                    .map_err(|error| status::of(&error));
                return (event, None);
            }
            changed = changed_after(progress, *quiet), if !*closed => match changed {
                Ok((done_bytes, total_bytes)) => {
                    state.quiet = Instant::now() + INTERVAL;
                    return (Ok(FsckEvent { done_bytes, total_bytes, report: None }), Some(state));
                }
                Err(_) => state.closed = true,
            },
        }
    }
}

async fn changed_after(
    progress: &mut watch::Receiver<(u64, u64)>,
    quiet: Instant,
) -> Result<(u64, u64), watch::error::RecvError> {
    tokio::time::sleep_until(quiet).await;
    progress.changed().await?;
    Ok(*progress.borrow_and_update())
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn progress_then_the_report() {
        let (progress, receiver) = watch::channel((0, 0));
        let (finish, finished) = oneshot::channel::<()>();
        let mut events = of(
            receiver,
            Box::pin(async move {
                let _ = finished.await;
                Ok(FsckReport {
                    layers: 4,
                    ..FsckReport::default()
                })
            }),
        );
        progress.send_replace((1, 9));
        let event = events.next().await.unwrap().unwrap();
        assert_eq!(
            (event.done_bytes, event.total_bytes, event.report),
            (1, 9, None)
        );
        progress.send_replace((9, 9));
        drop(progress);
        finish.send(()).unwrap();
        let mut event = events.next().await.unwrap().unwrap();
        if event.report.is_none() {
            event = events.next().await.unwrap().unwrap();
        }
        assert_eq!(event.done_bytes, 9);
        assert_eq!(event.report.unwrap().layers, 4);
        assert!(events.next().await.is_none());
    }
}

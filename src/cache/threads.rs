//! Blocking work off the runtime's workers, tracked so that shutdown can wait for it.

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::Error;

/// Starts blocking work. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Threads {
    tracker: TaskTracker,
    handle: Handle,
}

impl Threads {
    pub(super) fn new(tracker: TaskTracker, handle: Handle) -> Self {
        Threads { tracker, handle }
    }

    /// Runs short blocking work to its end, even if the caller goes away.
    pub(super) async fn block<T: Send + 'static>(
        &self,
        subject: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let task = self.tracker.spawn_blocking_on(work, &self.handle);
        task.await.map_err(|error| Error::Internal {
            subject: subject.to_owned(),
            cause: if error.is_panic() {
                "its worker thread panicked".to_owned()
            } else {
                "the agent is stopping".to_owned()
            },
        })
    }

    /// Runs blocking work that nobody waits for.
    pub(super) fn aside(&self, work: impl FnOnce() + Send + 'static) {
        drop(self.tracker.spawn_blocking_on(work, &self.handle));
    }

    /// Lets go of something whose drop may block.
    pub(super) fn dispose(&self, thing: impl Send + 'static) {
        self.aside(move || drop(thing));
    }

    /// Runs long blocking work on an OS thread of its own. The receiver errs if the thread panics.
    pub(super) fn dedicated<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Error> {
        let (done, result) = oneshot::channel();
        let running = self.tracker.token();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _running = running;
                // Nobody to tell is fine: the work itself is what counts.
                let _ = done.send(work());
            })
            .map_err(|error| Error::Internal {
                subject: name.to_owned(),
                cause: format!("no thread to be had: {error}"),
            })?;
        Ok(result)
    }
}

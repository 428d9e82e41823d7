//! Tasks that are known by name until they end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// Spawns tasks and knows which still run. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    names: BTreeMap<u64, &'static str>,
}

/// Takes the name off the list however the task ends: by return, panic or abort.
struct Entry {
    id: u64,
    running: Arc<Mutex<Running>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.running).names.remove(&self.id);
    }
}

fn lock(running: &Mutex<Running>) -> std::sync::MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tasks {
    /// No tasks.
    pub fn new() -> Self {
        Self::default()
    }
    /// Runs a task under a name.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let id = {
            let mut running = lock(&self.running);
            running.next += 1;
            let id = running.next;
            running.names.insert(id, name);
            id
        };
        let entry = Entry {
            id,
            running: self.running.clone(),
        };
        self.tracker.spawn(async move {
            let _entry = entry;
            task.await
        })
    }
    /// Names of what runs, oldest first.
    pub fn running(&self) -> Vec<&'static str> {
        lock(&self.running).names.values().copied().collect()
    }
    /// Waits until all tasks have ended, at most so long. The error is what still runs then.
    pub async fn wait(&self, limit: Duration) -> Result<(), Vec<&'static str>> {
        self.tracker.close();
        match tokio::time::timeout(limit, self.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.running()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_still_runs_is_named() {
        let tasks = Tasks::new();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let quick = tasks.spawn("quick", async {});
        tasks.spawn("stuck", async move {
            let _ = stopped.await;
        });
        quick.await.unwrap();
        assert_eq!(
            tasks.wait(Duration::from_millis(1)).await,
            Err(vec!["stuck"])
        );
        drop(stop);
        assert_eq!(tasks.wait(Duration::from_secs(30)).await, Ok(()));
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_panic_takes_the_name_off_too() {
        let tasks = Tasks::new();
        let task = tasks.spawn("broken", async { panic!("on purpose") });
        assert!(task.await.is_err());
        assert!(tasks.running().is_empty());
    }
}

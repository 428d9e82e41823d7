//! What has to be in place before the process may be called ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Named conditions; ready when all are met and nobody stops. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    checks: Arc<Mutex<Vec<Check>>>,
    stopping: Arc<AtomicBool>,
}

/// One condition. Cheap to clone: all clones are one.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    met: Arc<AtomicBool>,
}

impl Check {
    /// Says whether the condition is met.
    pub fn set(&self, met: bool) {
        self.met.store(met, Ordering::Release);
    }
    /// What it is about.
    pub fn name(&self) -> &'static str {
        self.name
    }
    /// Whether it is met.
    pub fn met(&self) -> bool {
        self.met.load(Ordering::Acquire)
    }
}

impl Readiness {
    /// No conditions: ready.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds a condition that is not met yet.
    pub fn check(&self, name: &'static str) -> Check {
        let check = Check {
            name,
            met: Arc::new(AtomicBool::new(false)),
        };
        self.lock().push(check.clone());
        check
    }
    /// Never ready again: the process stops.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
    /// All conditions with their state; `stopping` is one while the process stops.
    pub fn state(&self) -> Vec<(&'static str, bool)> {
        let mut state: Vec<_> = self
            .lock()
            .iter()
            .map(|check| (check.name(), check.met()))
            .collect();
        if self.stopping.load(Ordering::Acquire) {
            state.push(("stopping", false));
        }
        state
    }
    /// Whether the process may be used.
    pub fn ready(&self) -> bool {
        self.state().iter().all(|(_, met)| *met)
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Check>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_all_are_met_and_nobody_stops() {
        let readiness = Readiness::new();
        let (store, socket) = (readiness.check("store"), readiness.check("socket"));
        assert!(!readiness.ready());
        store.set(true);
        assert_eq!(readiness.state(), [("store", true), ("socket", false)]);
        socket.set(true);
        assert!(readiness.ready());
        readiness.stop();
        assert!(!readiness.ready());
        assert_eq!(readiness.state().last(), Some(&("stopping", false)));
    }
}

//! What has to be in place before the process may be called ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Named conditions; ready when all are met and nobody stops. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    checks: Arc<Mutex<Vec<Check>>>,
    advice: Arc<Mutex<Vec<Check>>>,
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
        lock(&self.checks).push(check.clone());
        check
    }
    /// Adds a condition that is told and does not count: without it the process is of use all the same.
    pub fn advice(&self, name: &'static str) -> Check {
        let check = Check {
            name,
            met: Arc::new(AtomicBool::new(false)),
        };
        lock(&self.advice).push(check.clone());
        check
    }
    /// Those conditions, with their state.
    pub fn advised(&self) -> Vec<(&'static str, bool)> {
        states(&lock(&self.advice))
    }
    /// Never ready again: the process stops.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
    /// All conditions with their state; `stopping` is one while the process stops.
    pub fn state(&self) -> Vec<(&'static str, bool)> {
        let mut state = states(&lock(&self.checks));
        if self.stopping.load(Ordering::Acquire) {
            state.push(("stopping", false));
        }
        state
    }
    /// Whether the process may be used.
    pub fn ready(&self) -> bool {
        self.state().iter().all(|(_, met)| *met)
    }
}

fn lock(checks: &Mutex<Vec<Check>>) -> std::sync::MutexGuard<'_, Vec<Check>> {
    checks.lock().unwrap_or_else(PoisonError::into_inner)
}

fn states(checks: &[Check]) -> Vec<(&'static str, bool)> {
    let checks = checks.iter();
    checks.map(|check| (check.name(), check.met())).collect()
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
        let api = readiness.advice("api");
        assert!(readiness.ready());
        assert_eq!(readiness.advised(), [("api", false)]);
        api.set(true);
        assert_eq!(readiness.advised(), [("api", true)]);
        readiness.stop();
        assert!(!readiness.ready());
        assert_eq!(readiness.state().last(), Some(&("stopping", false)));
    }
}

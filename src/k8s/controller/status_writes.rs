//! The writes of one object's status: whether one is under way, how the last one ended, and when the next may begin.
//! Pure.

use std::time::{Duration, Instant};

use super::pace;
use crate::k8s::backoff::backoff;

/// Changes that come so soon after each other are answered together.
pub(super) const TOGETHER: Duration = Duration::from_millis(200);
/// Pauses after a write that was refused or lost.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// How a write ended, with the object as it is now.
#[derive(Debug)]
pub(super) enum Written<T> {
    /// It is what was written.
    Done(Box<T>),
    /// Somebody else wrote first; the object, if it could be read.
    Conflict(Option<Box<T>>),
    /// The object is gone.
    Gone,
    /// Refused or lost.
    Failed,
}

impl<T> Written<T> {
    /// For metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Written::Done(_) => "done",
            Written::Conflict(_) => "conflict",
            Written::Gone => "gone",
            Written::Failed => "failed",
        }
    }

    /// The same with the object as the board knows it.
    pub(super) fn of<U: From<T>>(self) -> Written<U> {
        let of = |object: Box<T>| Box::new(U::from(*object));
        match self {
            Written::Done(object) => Written::Done(of(object)),
            Written::Conflict(object) => Written::Conflict(object.map(of)),
            Written::Gone => Written::Gone,
            Written::Failed => Written::Failed,
        }
    }
}

/// What this process knows of its writes to one object.
#[derive(Debug, Default)]
pub(super) struct StatusWrites {
    pub(super) under_way: bool,
    /// When the last one was done.
    pub(super) last: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
}

impl StatusWrites {
    /// When a changed status of an object with so many nodes is written. `urgent`: not only numbers moved.
    pub(super) fn due(&self, now: Instant, nodes: u64, urgent: bool) -> Instant {
        let due = pace::due(self.last, now, nodes, urgent);
        self.not_before
            .map_or(due, |not_before| due.max(not_before))
    }

    /// One ended. `jitter` is within 0..1.
    pub(super) fn ended<T>(&mut self, written: &Written<T>, jitter: f64, now: Instant) {
        self.under_way = false;
        let pause = match written {
            Written::Done(_) => {
                self.last = Some(now);
                self.failures = 0;
                self.not_before = None;
                return;
            }
            Written::Conflict(_) => TOGETHER.mul_f64(0.5 + jitter),
            Written::Gone => LAST_RETRY,
            Written::Failed => {
                self.failures = self.failures.saturating_add(1);
                backoff(self.failures, FIRST_RETRY, LAST_RETRY, jitter)
            }
        };
        self.not_before = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_waits_for_what_became_of_the_last() {
        let now = Instant::now();
        let mut writes = StatusWrites::default();
        assert_eq!(writes.due(now, 3, true), now);
        writes.ended(&Written::<()>::Failed, 1.0, now);
        assert_eq!(writes.due(now, 3, true), now + FIRST_RETRY);
        writes.ended(&Written::<()>::Failed, 1.0, now);
        assert_eq!(writes.due(now, 3, true), now + FIRST_RETRY * 2);
        writes.ended(&Written::<()>::Gone, 1.0, now);
        assert_eq!(writes.due(now, 3, true), now + LAST_RETRY);
        writes.ended(&Written::<()>::Conflict(None), 0.5, now);
        assert_eq!(writes.due(now, 3, true), now + TOGETHER);
        writes.ended(&Written::Done(Box::new(())), 0.5, now);
        assert_eq!(writes.due(now, 3, true), pace::due(Some(now), now, 3, true));
        writes.ended(&Written::<()>::Failed, 1.0, now);
        let first_again = now + FIRST_RETRY;
        assert_eq!(writes.due(now, 3, true), first_again);
    }
}

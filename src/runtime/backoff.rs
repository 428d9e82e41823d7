//! When to knock again at a runtime that did not answer. Pure.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Failures to connect since the last success.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    /// How long to leave the runtime alone; `None` when it may be asked.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        let pause = self.not_before?.saturating_duration_since(now);
        (!pause.is_zero()).then_some(pause)
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let factor = 1u32 << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.checked_add(FIRST.saturating_mul(factor).min(LONGEST));
    }

    pub(super) fn answered(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_end_with_an_answer() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(now), None);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            backoff.failed(now);
            pauses.push(backoff.pause(now).unwrap());
        }
        assert_eq!(pauses[..3], [250, 500, 1000].map(Duration::from_millis));
        assert_eq!(pauses[9], LONGEST);
        assert_eq!(backoff.pause(now + LONGEST), None);
        for _ in 0..100 {
            backoff.failed(now);
        }
        backoff.answered();
        assert_eq!(backoff.pause(now), None);
    }
}

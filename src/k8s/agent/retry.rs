//! When a failed pull, or a lost connection, is tried again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::prepull::{Unit, later};
use super::seam::PullFailure;
use crate::k8s::api::reason;
use crate::k8s::backoff::backoff;

/// Pause after the first failure; each further one doubles it.
const FIRST: Duration = Duration::from_secs(2);
/// Longest pause between pulls of one image.
const LONGEST: Duration = Duration::from_secs(300);
/// Longest wish of a registry that is followed.
const LONGEST_WISH: Duration = Duration::from_secs(3600);
/// Failures after which an image counts as failed, where trying again may help.
const RETRIES: u32 = 4;
/// The same, where it hardly helps.
const RETRIES_FINAL: u32 = 2;
/// What the time between two attempts to reach the API server is drawn from, at most.
const LONGEST_RECONNECT: Duration = Duration::from_secs(60);
/// The same, of few nodes.
const LONGEST_RECONNECT_FEW: Duration = Duration::from_secs(10);
/// Writes, and reconnects, of all nodes together.
const NODES_PER_SECOND: u64 = 50;

/// The failures of one unit, since it was last held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempts {
    /// In a row.
    pub(super) failures: u32,
    /// When the last one was.
    pub(super) last: Timestamp,
    /// Not before.
    pub(super) next: Timestamp,
    /// Of the last one, from a closed set.
    pub(super) reason: &'static str,
    /// Of the last one, for people.
    pub(super) message: String,
}

/// Failures by unit.
pub(super) type Failures = BTreeMap<Unit, Attempts>;

impl Attempts {
    /// After one more failure. `roll` is within 0..1.
    pub(super) fn after(
        before: Option<&Attempts>,
        failure: &PullFailure,
        now: Timestamp,
        roll: f64,
    ) -> Self {
        let failures = before.map_or(0, |before| before.failures).saturating_add(1);
        let pause = backoff(failures, FIRST, LONGEST, roll);
        let wish = failure.retry_after.unwrap_or_default().min(LONGEST_WISH);
        Attempts {
            failures,
            last: now,
            next: later(now, pause.max(wish)),
            reason: failure.reason,
            message: failure.message.chars().take(256).collect(),
        }
    }

    /// Whether it may be tried again. A clock that was set back does not make anybody wait for years.
    pub(super) fn due(&self, now: Timestamp) -> bool {
        now >= self.next || now < self.last
    }

    /// Whether the unit counts as failed. It is tried on.
    pub(super) fn exhausted(&self) -> bool {
        let hopeless = matches!(
            self.reason,
            reason::NOT_FOUND
                | reason::UNAUTHORIZED
                | reason::PLATFORM_MISSING
                | reason::INVALID_IMAGE
                | reason::INVALID_REFERENCE
                | reason::SECRET_MISSING
        );
        self.failures >= if hopeless { RETRIES_FINAL } else { RETRIES }
    }
}

/// Time over which `nodes` nodes spread what each of them does once.
pub(super) fn spread(nodes: u64) -> Duration {
    Duration::from_millis(nodes.saturating_mul(1000) / NODES_PER_SECOND).max(Duration::from_secs(1))
}

/// Pause before attempt `attempt` (the first is 1) to reach the API server again, when all nodes may have lost it at
/// the same moment. The whole pause is drawn: 5,000 nodes come back spread over a minute. A server that asks for patience
/// knows better than a node how many there are.
pub(super) fn reconnect(attempt: u32, nodes: u64, overloaded: bool, roll: f64) -> Duration {
    let many = spread(nodes).min(LONGEST_RECONNECT);
    let grown = Duration::from_secs(1).saturating_mul(1 << attempt.saturating_sub(1).min(6));
    let longest = match overloaded {
        true => LONGEST_RECONNECT,
        false => many.max(LONGEST_RECONNECT_FEW),
    };
    let most = grown.min(longest).max(many);
    most.mul_f64(roll.clamp(0.0, 1.0))
        .max(Duration::from_millis(50))
}

/// A number within 0..1 that differs between nodes and calls.
pub(super) fn roll() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let drawn = std::hash::RandomState::new().build_hasher().finish() >> 40;
    f64::from(u32::try_from(drawn).unwrap_or(0)) / f64::from(1_u32 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: &'static str, wish: Option<u64>) -> PullFailure {
        PullFailure {
            reason,
            message: "m".repeat(1000),
            retry_after: wish.map(Duration::from_secs),
        }
    }

    #[test]
    fn pauses_double_to_a_limit_and_follow_wishes() {
        let now = Timestamp::UNIX_EPOCH;
        let mut attempts = None;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let next =
                Attempts::after(attempts.as_ref(), &failure(reason::TIMEOUT, None), now, 1.0);
            pauses.push(next.next.as_second());
            attempts = Some(next);
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]);
        let halved = Attempts::after(None, &failure(reason::TIMEOUT, None), now, 0.0);
        assert_eq!(halved.next.as_second(), 1);
        assert_eq!(halved.message.len(), 256);
        let wish = Attempts::after(None, &failure(reason::RATE_LIMITED, Some(90)), now, 0.0);
        assert_eq!(wish.next.as_second(), 90);
        assert!(!wish.due(Timestamp::from_second(89).unwrap()));
        assert!(wish.due(Timestamp::from_second(90).unwrap()));
        assert!(wish.due(Timestamp::from_second(-1).unwrap()), "set back");
    }

    #[test]
    fn what_is_not_there_fails_sooner() {
        let now = Timestamp::UNIX_EPOCH;
        for (reason, needed) in [(reason::NOT_FOUND, 2), (reason::TIMEOUT, 4)] {
            let mut attempts: Option<Attempts> = None;
            for number in 1..=5 {
                let next = Attempts::after(attempts.as_ref(), &failure(reason, None), now, 0.5);
                assert_eq!(next.exhausted(), number >= needed, "{reason} {number}");
                attempts = Some(next);
            }
        }
    }

    #[test]
    fn reconnects_spread_with_the_number_of_nodes() {
        for (attempt, nodes, overloaded, roll, seconds) in [
            (1, 3, false, 1.0, 1),
            (9, 3, false, 1.0, 10),
            (1, 3, true, 1.0, 1),
            (9, 3, true, 1.0, 60),
            (1, 5000, false, 1.0, 60),
            (9, 5000, true, 1.0, 60),
            (1, 5000, false, 0.5, 30),
        ] {
            let pause = reconnect(attempt, nodes, overloaded, roll);
            assert_eq!(
                pause,
                Duration::from_secs(seconds),
                "{attempt} {nodes} {overloaded}"
            );
        }
        assert_eq!(spread(5000), Duration::from_secs(100));
        assert_eq!(spread(0), Duration::from_secs(1));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&roll())));
    }
}

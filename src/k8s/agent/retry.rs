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
/// Reconnects of all nodes together, until that would take longer than the longest pause.
const RECONNECTS_PER_SECOND: u64 = 50;
/// Writes of all nodes together. Times are drawn, so the busiest second has more: 30 keep it below 50, for 5,000 nodes
/// as for 100 (three times the root above the mean).
const WRITES_PER_SECOND: u64 = 30;
/// Reads of reports by all nodes together.
const LOOKS_PER_SECOND: u64 = 5;
/// Longest pause of a node between two of them, where there are few nodes.
const LOOKS_OF_FEW: Duration = Duration::from_secs(10);
/// The least that writes are spread over.
const SHORTEST_SPREAD: Duration = Duration::from_secs(1);

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

/// Time over which `nodes` nodes spread a write of each.
pub(super) fn spread(nodes: u64) -> Duration {
    over(nodes, WRITES_PER_SECOND).max(SHORTEST_SPREAD)
}

/// When a report that is new since `now` is written: drawn from the time over which all who may have news spread, and
/// never sooner than that time after the last write. So however often something changes, all nodes together do not
/// write more often than their rate. What merely began waits for as long again: mostly it ends by then, and is one
/// write instead of two.
fn due<I>(news: News, last: Option<I>, now: I, roll: f64) -> I
where
    I: Copy + Ord + std::ops::Add<Duration, Output = I>,
{
    let spread = spread(news.nodes);
    let wait = spread.mul_f64(roll.clamp(0.0, 1.0));
    let drawn = now + if news.begun { spread + wait } else { wait };
    last.map_or(drawn, |last| drawn.max(last + spread))
}

/// A write that was decided on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Draw<I> {
    pub(super) due: I,
    begun: bool,
    roll: f64,
}

impl<I> Draw<I>
where
    I: Copy + Ord + std::ops::Add<Duration, Output = I>,
{
    pub(super) fn new(news: News, last: Option<I>, now: I, roll: f64) -> Self {
        Draw {
            due: due(news, last, now, roll),
            begun: news.begun,
            roll,
        }
    }

    /// What ended is told sooner than what merely began. The number stays the one that was drawn: the sooner one of two
    /// draws would have all nodes crowd at the beginning of the time over which they spread.
    pub(super) fn hurried(self, news: News, last: Option<I>, now: I) -> Self {
        if !self.begun || news.begun {
            return self;
        }
        let ended = Draw::new(news, last, now, self.roll);
        Draw {
            due: ended.due.min(self.due),
            ..ended
        }
    }

    /// As a failed write is tried again, at a time of its own.
    pub(super) fn at(due: I) -> Self {
        Draw {
            due,
            begun: false,
            roll: 0.0,
        }
    }
}

/// What is new in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    /// Nodes that may have the like at the same moment.
    pub(super) nodes: u64,
    /// Nothing ended: the node only began to work on something.
    pub(super) begun: bool,
}

/// Before an agent asks the API server for the first time, when `nodes` nodes may have started at the same moment.
pub(super) fn start(nodes: u64, roll: f64) -> Duration {
    let spread = over(nodes, RECONNECTS_PER_SECOND).min(LONGEST_RECONNECT);
    if spread <= SHORTEST_SPREAD {
        return Duration::ZERO;
    }
    spread.mul_f64(roll.clamp(0.0, 1.0))
}

/// Pause before a node looks again whether its report is as it wrote it: 5 to 10 s for a few nodes, and for many so much
/// longer that all together read 5 to 10 a second, from the API server's memory.
pub(super) fn look_again(nodes: u64, roll: f64) -> Duration {
    over(nodes, LOOKS_PER_SECOND)
        .max(LOOKS_OF_FEW)
        .mul_f64(0.5 + 0.5 * roll.clamp(0.0, 1.0))
}

fn over(nodes: u64, per_second: u64) -> Duration {
    Duration::from_millis(nodes.saturating_mul(1000) / per_second.max(1))
}

/// Pause before attempt `attempt` (the first is 1) to reach the API server again, when all nodes may have lost it at
/// the same moment. The whole pause is drawn: 5,000 nodes come back spread over a minute. A server that asks for patience
/// knows better than a node how many there are.
pub(super) fn reconnect(attempt: u32, nodes: u64, overloaded: bool, roll: f64) -> Duration {
    let many = over(nodes, RECONNECTS_PER_SECOND).clamp(SHORTEST_SPREAD, LONGEST_RECONNECT);
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
    fn what_ended_is_told_sooner_and_as_evenly() {
        let nodes = 1000;
        let (begun, ended) = [true, false].map(|begun| News { nodes, begun }).into();
        for at in [0, 5, 17, 40, 60].map(Duration::from_secs) {
            let mut seconds = BTreeMap::new();
            for node in 0..1000 {
                let roll = f64::from(node) / 1000.0;
                let before = Draw::new(begun, None, Duration::ZERO, roll);
                if before.due < at {
                    continue;
                }
                let after = before.hurried(ended, None, at);
                assert!(after.due <= before.due && after.due >= at);
                assert_eq!(after.hurried(ended, None, at), after);
                *seconds.entry(after.due.as_secs()).or_insert(0) += 1;
            }
            assert!(seconds.values().all(|writes| *writes <= 31), "{seconds:?}");
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
        assert_eq!(start(5000, 0.5), Duration::from_secs(30));
        assert_eq!(start(50, 0.5), Duration::ZERO);
        assert_eq!(look_again(3, 0.0), Duration::from_secs(5));
        assert_eq!(look_again(5000, 1.0), Duration::from_secs(1000));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&roll())));
    }

    #[test]
    fn a_report_waits_for_its_turn() {
        let second = Duration::from_secs;
        let news = |nodes, begun| News { nodes, begun };
        // Since some beginning.
        let (now, none) = (second(1000), None);
        assert_eq!(due(news(3, false), none, now, 0.5), now + second(1) / 2);
        assert_eq!(due(news(3, true), none, now, 0.5), now + second(3) / 2);
        assert_eq!(due(news(3000, false), none, now, 0.5), now + second(50));
        let before = Some(now - second(20));
        assert_eq!(due(news(3000, false), before, now, 0.5), now + second(80));
        assert_eq!(due(news(3, false), before, now, 1.0), now + second(1));
    }

    /// Every node's images change all the time, and the busiest second still has no more than fifty writes.
    #[test]
    fn all_nodes_together_keep_to_their_rate() {
        for nodes in [100_u64, 300, 2000] {
            let mut number = 0u64;
            let mut roll = || {
                number += 1;
                let hash = *blake3::hash(&number.to_le_bytes()).as_bytes();
                let drawn = u16::from_le_bytes([hash[0], hash[1]]);
                f64::from(drawn) / f64::from(u16::MAX)
            };
            let mut writes = BTreeMap::<u64, u64>::new();
            for _ in 0..nodes {
                let mut now = Duration::from_secs(1000);
                let mut last = None;
                for _ in 0..4 {
                    let news = News {
                        nodes,
                        begun: roll() < 0.5,
                    };
                    let at = due(news, last, now, roll());
                    *writes.entry(at.as_secs()).or_default() += 1;
                    last = Some(at);
                    now = at + Duration::from_secs(5).mul_f64(roll());
                }
            }
            let busiest = writes.values().max().copied().unwrap_or(0);
            assert!(busiest <= 50, "{nodes} nodes: {busiest}");
        }
    }
}

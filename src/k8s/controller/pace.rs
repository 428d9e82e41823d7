//! When a status is written, and what may be sent in a second. Pure: instants in, instants out.
//!
//! Each write of a prepull goes to every agent of the cluster, so a status is worth less than it costs unless somebody
//! waits for it.

use std::time::{Duration, Instant};

/// Even what is urgent waits so long after the last write, so that what happens at once is told at once.
const URGENT_GAP: Duration = Duration::from_millis(200);
/// Nodes per second of pause between two writes of counts.
const NODES_PER_SECOND: u64 = 250;
/// Messages to agents that the statuses of all prepulls may cause in a second: about one core of an API server.
const DELIVERIES_PER_SECOND: f64 = 20_000.0;
/// Writes in a second, however few agents there are: with the 30 of all agents no more than 50.
const WRITES_PER_SECOND: f64 = 20.0;
/// Seconds of quiet that a burst may use up.
const BURST_SECONDS: f64 = 1.0;

/// Pause between two writes of one prepull's counts: `max(1 s, desired / 250 s)`.
pub(super) fn interval(desired: u64) -> Duration {
    Duration::from_secs(1).max(Duration::from_millis(
        desired.saturating_mul(1000) / NODES_PER_SECOND,
    ))
}

/// When a changed status is written. `urgent`: a condition or the rollout moved, not only numbers.
pub(super) fn due(last: Option<Instant>, now: Instant, desired: u64, urgent: bool) -> Instant {
    let pause = if urgent {
        URGENT_GAP
    } else {
        interval(desired)
    };
    last.map_or(now, |last| last + pause)
}

/// A bucket of tokens that fills by itself.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    tokens: f64,
    size: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    /// Full.
    pub(super) fn new(per_second: f64, size: f64, now: Instant) -> Self {
        Bucket {
            tokens: size,
            size,
            per_second,
            filled: now,
        }
    }

    /// For writes of statuses, of which each costs [`write_cost`].
    pub(super) fn for_writes(now: Instant) -> Self {
        Bucket::new(WRITES_PER_SECOND, WRITES_PER_SECOND * BURST_SECONDS, now)
    }

    /// Takes so many tokens, or says when to ask again. What is dearer than the whole bucket costs the whole bucket.
    pub(super) fn take(&mut self, cost: f64, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.size);
        self.filled = self.filled.max(now);
        let cost = cost.clamp(0.0, self.size);
        if self.tokens >= cost {
            self.tokens -= cost;
            return Ok(());
        }
        let missing = (cost - self.tokens) / self.per_second;
        Err(now + Duration::from_secs_f64(missing.clamp(0.001, 3600.0)))
    }
}

/// Of one write, in tokens of [`Bucket::for_writes`]: each agent of the cluster gets a copy.
pub(super) fn write_cost(nodes: usize) -> f64 {
    (nodes as f64 * WRITES_PER_SECOND / DELIVERIES_PER_SECOND).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_wait_longer_the_more_nodes_there_are() {
        assert_eq!(interval(0), Duration::from_secs(1));
        assert_eq!(interval(250), Duration::from_secs(1));
        assert_eq!(interval(5000), Duration::from_secs(20));
        let now = Instant::now();
        assert_eq!(due(None, now, 5000, false), now);
        assert_eq!(
            due(Some(now), now, 5000, false),
            now + Duration::from_secs(20)
        );
        assert_eq!(due(Some(now), now, 5000, true), now + URGENT_GAP);
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 2.0, start);
        assert_eq!(bucket.take(1.0, start), Ok(()));
        assert_eq!(bucket.take(1.0, start), Ok(()));
        let later = bucket.take(1.0, start).unwrap_err();
        assert_eq!(later, start + Duration::from_millis(100));
        assert_eq!(bucket.take(1.0, later), Ok(()));
        assert!(bucket.take(100.0, later).is_err());
        assert_eq!(bucket.take(100.0, later + Duration::from_secs(9)), Ok(()));
    }

    #[test]
    fn large_clusters_get_fewer_writes_in_a_second() {
        assert_eq!(write_cost(3), 1.0);
        assert_eq!(write_cost(400), 1.0);
        assert_eq!(write_cost(5000), 5.0);
    }
}

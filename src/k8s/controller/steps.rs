//! The thresholds of one revision, with the time that each was first seen.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::wave::Position;
use crate::k8s::api::{NOBODY, Slot};

/// How long an unreachable node holds its place after it was admitted.
pub(super) const SETTLE: Duration = Duration::from_secs(20);
/// Of remembered steps; more come together in less time than [`SETTLE`].
const MOST_STEPS: usize = 128;

/// Steps of the present revision.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps(VecDeque<(Instant, Slot)>);

impl Steps {
    /// Another revision begins.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The threshold is this now.
    pub(super) fn observe(&mut self, admitted: Slot, now: Instant) {
        let last = self.0.back().map(|(_, slot)| *slot);
        if last.is_some_and(|last| last > admitted) {
            self.0.clear();
        }
        if last != Some(admitted) {
            self.0.push_back((now, admitted));
        }
        // Of what is settled only the last counts.
        while self.0.len() > MOST_STEPS
            || self
                .0
                .get(1)
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SETTLE)
        {
            self.0.pop_front();
        }
    }

    /// Where the rollout stands.
    pub(super) fn position(&self, threshold: Slot, now: Instant) -> Position {
        let settled = self
            .0
            .iter()
            .rev()
            .find(|(at, _)| now.saturating_duration_since(*at) >= SETTLE)
            .map_or(NOBODY, |(_, slot)| *slot);
        Position {
            threshold,
            settled: settled.min(threshold),
        }
    }
}

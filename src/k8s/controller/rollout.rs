//! Where a rollout goes from here, whatever it rolls out: its limits, what holds it, and the next threshold.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::nodes::Nodes;
use super::pace;
use super::seats::Seats;
use super::steps::{SETTLE, Steps};
use super::wave::{self, Counts, Limits, Position};
use crate::k8s::api::{
    ALL, IntOrPercent, Opening, Rollout, RolloutStatus, TimeWindow, Window, parse_duration,
};

/// A share of the nodes that may work at once, which is worth a step.
const STEPS_IN_FLIGHT: u64 = 4;

/// Why no further node is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nodes are let in.
    None,
    Paused,
    /// The window is closed.
    OutsideWindow,
    /// More nodes failed than may.
    BudgetExceeded {
        failed: u64,
        budget: u64,
    },
    /// The revision took too long.
    DeadlineExceeded(Duration),
    /// The spec says nothing usable.
    Invalid(String),
}

/// The earliest of several instants.
pub(super) struct Wake(pub(super) Option<Instant>);

impl Wake {
    pub(super) fn at(&mut self, at: Instant) {
        self.0 = Some(self.0.map_or(at, |before| before.min(at)));
    }
}

/// By both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall: Timestamp,
}

/// What a rollout follows.
#[derive(Clone, Debug)]
pub(super) struct Terms<'a> {
    pub(super) rollout: &'a Rollout,
    pub(super) window: Option<&'a Window>,
    /// A value of the spec that means nothing.
    pub(super) invalid: Option<String>,
    /// Every node has answered this revision once.
    pub(super) complete: bool,
    pub(super) last_write: Option<Instant>,
}

/// What became of the spec since the rollout was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing that counts; the status is about this very spec.
    Current,
    /// It changed and means the same revision.
    Observed,
    /// It is another revision, or not looked at yet.
    New,
}

/// Who sits where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room<'a> {
    pub(super) seats: &'a Seats,
    pub(super) nodes: &'a Nodes,
    pub(super) steps: &'a Steps,
}

impl Room<'_> {
    /// Seats at a threshold.
    pub(super) fn count(&self, threshold: u64, now: Instant) -> Counts {
        self.count_at(self.steps.position(threshold, now))
    }

    fn count_at(&self, position: Position) -> Counts {
        wave::count(self.seats.iter(self.nodes), position)
    }
}

/// Moves the threshold of a rollout, or says why not.
pub(super) fn proceed(
    terms: &Terms<'_>,
    room: Room<'_>,
    rollout: &mut RolloutStatus,
    turn: Turn,
    moment: Moment,
    wake: &mut Wake,
) -> (Counts, Hold) {
    let now = moment.now;
    let seats = || room.seats.iter(room.nodes);
    let mut position = room.steps.position(rollout.admitted, now);
    let (mut limits, mut hold) = limits(terms, room.seats.len());
    if turn == Turn::Observed {
        let threshold = wave::resume(seats(), position, limits);
        position = room.steps.position(threshold, now);
    }
    if hold == Hold::None {
        let started = rollout.start_time.as_ref().map(|time| time.0);
        hold = holds(terms, room.count_at(position), started, moment, wake);
    }
    if hold == Hold::None && turn == Turn::Current {
        let rest = pace::interval(room.seats.len());
        let rested = terms
            .last_write
            .is_none_or(|last| now.saturating_duration_since(last) >= rest);
        if !rested {
            limits.min_step = (limits.max_in_flight / STEPS_IN_FLIGHT).max(1);
            // Small steps are due then.
            wake.at(terms.last_write.map_or(now, |last| last + rest));
        }
        position.threshold = wave::advance(seats(), position, limits);
        if position.threshold < ALL {
            // Unreachable nodes give their places away.
            wake.at(now + SETTLE);
        }
    }
    rollout.admitted = position.threshold;
    (room.count_at(position), hold)
}

/// What bounds a step; values that are none stop the rollout.
pub(super) fn limits(terms: &Terms<'_>, desired: u64) -> (Limits, Hold) {
    let mut limits = Limits {
        max_in_flight: 1,
        min_step: 1,
    };
    if let Some(fault) = &terms.invalid {
        return (limits, Hold::Invalid(fault.clone()));
    }
    let share = terms.rollout.max_in_flight.clone();
    match share.unwrap_or_else(Rollout::default_share).of(desired) {
        Ok(max) => limits.max_in_flight = max.max(1),
        Err(error) => {
            let fault = format!("rollout.maxInFlight: {error}");
            return (limits, Hold::Invalid(fault));
        }
    }
    (limits, Hold::None)
}

/// Why no further node is let in just now.
fn holds(
    terms: &Terms<'_>,
    counts: Counts,
    started: Option<Timestamp>,
    moment: Moment,
    wake: &mut Wake,
) -> Hold {
    let Moment { now, wall } = moment;
    let budget = terms.rollout.max_failures.clone();
    match budget
        .unwrap_or(IntOrPercent::Percent("10%".to_owned()))
        .of(counts.desired)
    {
        Ok(budget) if counts.failed > budget => {
            return Hold::BudgetExceeded {
                failed: counts.failed,
                budget,
            };
        }
        Ok(_) => {}
        Err(error) => return Hold::Invalid(format!("rollout.maxFailures: {error}")),
    }
    if let Some((deadline, started)) = deadline(terms.rollout).zip(started)
        && !terms.complete
        && !counts.answered()
    {
        let passed = wall
            .duration_since(started)
            .max(Default::default())
            .unsigned_abs();
        if passed >= deadline {
            return Hold::DeadlineExceeded(deadline);
        }
        wake.at(now + deadline.saturating_sub(passed));
    }
    if terms.rollout.paused {
        return Hold::Paused;
    }
    if let Some(window) = terms.window {
        let mut wake_at = |until: Option<Timestamp>| {
            let left = until.map(|until| until.duration_since(wall).max(Default::default()));
            left.into_iter()
                .for_each(|left| wake.at(now + left.unsigned_abs()));
        };
        match TimeWindow::new(window).map(|window| window.opening(wall)) {
            Ok(Opening::Open(until)) => wake_at(until),
            Ok(Opening::Closed(until)) => {
                wake_at(until);
                return Hold::OutsideWindow;
            }
            Err(error) => return Hold::Invalid(error.to_string()),
        }
    }
    Hold::None
}

fn deadline(rollout: &Rollout) -> Option<Duration> {
    parse_duration(rollout.deadline.as_deref()?).ok()
}

//! A prepull's status, from what is known. Pure: the same facts give the same status, whoever leads.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::lookups::{ImageFault, Known};
use super::revision::is_current;
use super::wave::Counts;
use crate::k8s::api::{
    NodeCounts, PrepullFailure, PrepullStatus, ResolvedImage, RolloutStatus, condition, reason,
};

/// Of a condition's message; the API allows 32 KiB.
const MAX_MESSAGE: usize = 1024;
/// Faults that a message spells out.
const SPELLED_OUT: usize = 3;

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

/// What a status is made of.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    pub(super) before: &'a PrepullStatus,
    pub(super) generation: i64,
    /// As it will be.
    pub(super) rollout: Option<RolloutStatus>,
    pub(super) resolved: Vec<ResolvedImage>,
    pub(super) known: &'a Known,
    pub(super) counts: Counts,
    pub(super) hold: Hold,
    pub(super) failures: Vec<PrepullFailure>,
    pub(super) now: Timestamp,
}

/// The status.
pub(super) fn status(facts: Facts<'_>) -> PrepullStatus {
    let conditions = [
        ready(&facts),
        progressing(&facts),
        stalled(&facts),
        resolved(&facts),
    ]
    .into_iter()
    .map(|verdict| verdict.condition(&facts))
    .collect();
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    PrepullStatus {
        observed_generation: Some(facts.generation),
        nodes: NodeCounts {
            desired: count(facts.counts.desired),
            admitted: count(facts.counts.admitted),
            ready: count(facts.counts.ready),
            failed: count(facts.counts.failed),
            unreachable: count(facts.counts.unreachable),
        },
        rollout: facts.rollout,
        resolved: facts.resolved,
        failures: facts.failures,
        conditions,
    }
}

/// How two statuses differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    None,
    /// Numbers and messages.
    Detail,
    /// A condition, the revision or who is admitted: somebody waits for that.
    Turn,
}

/// Compares what the API server has with what it should have.
pub(super) fn difference(before: &PrepullStatus, after: &PrepullStatus) -> Difference {
    let turns = |status: &PrepullStatus| -> Vec<(String, String, String)> {
        let turn = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone());
        status.conditions.iter().map(turn).collect()
    };
    let rollout = |status: &PrepullStatus| {
        // When tags were last looked up rides along and causes no write.
        let rollout = status.rollout.clone();
        rollout.map(|rollout| RolloutStatus {
            refresh_time: None,
            ..rollout
        })
    };
    if turns(before) != turns(after)
        || rollout(before) != rollout(after)
        || before.resolved != after.resolved
        || before.observed_generation != after.observed_generation
    {
        return Difference::Turn;
    }
    let refreshed =
        |status: &PrepullStatus| status.rollout.as_ref().and_then(|r| r.refresh_time.clone());
    let mut after = after.clone();
    if let Some(rollout) = &mut after.rollout {
        rollout.refresh_time = refreshed(before);
    }
    if *before == after {
        Difference::None
    } else {
        Difference::Detail
    }
}

/// Reason of a condition in a status; empty where it has none.
pub(super) fn reason_of<'a>(status: &'a PrepullStatus, type_: &str) -> &'a str {
    find(status, type_).map_or("", |condition| &condition.reason)
}

/// Whether a condition is `True` in a status.
pub(super) fn is_true(status: &PrepullStatus, type_: &str) -> bool {
    find(status, type_).is_some_and(|condition| condition.status == "True")
}

fn find<'a>(status: &'a PrepullStatus, type_: &str) -> Option<&'a Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
}

struct Verdict {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    /// The time is that of the last change of status, not of reason or message.
    fn condition(self, facts: &Facts<'_>) -> Condition {
        let before = find(facts.before, self.type_).filter(|before| before.status == self.status);
        Condition {
            type_: self.type_.to_owned(),
            status: self.status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.chars().take(MAX_MESSAGE).collect(),
            last_transition_time: before.map_or_else(
                || Time(facts.now),
                |before| before.last_transition_time.clone(),
            ),
            observed_generation: Some(facts.generation),
        }
    }
}

impl Facts<'_> {
    /// Whether the rollout is of the present spec.
    fn is_current(&self) -> bool {
        let rollout = self.rollout.as_ref();
        rollout.is_some_and(|rollout| rollout.observed_generation == self.generation)
    }

    fn is_complete(&self) -> bool {
        self.is_current() && self.counts.answered()
    }
}

fn ready(facts: &Facts<'_>) -> Verdict {
    let Counts {
        desired,
        ready,
        failed,
        unreachable,
        ..
    } = facts.counts;
    let mut message = format!("{ready} of {desired} nodes hold the images");
    if failed > 0 {
        message.push_str(&format!(", {failed} failed"));
    }
    if unreachable > 0 {
        message.push_str(&format!(", {unreachable} unreachable"));
    }
    let (status, reason) = if desired == 0 {
        message = "no node is chosen".to_owned();
        ("True", reason::NO_NODES)
    } else if !facts.known.missing.is_empty() {
        message.push_str(&format!(
            "; without a digest: {}",
            list(&facts.known.missing)
        ));
        ("False", reason::NODES_FAILED)
    } else if !facts.is_current() {
        message = "the images' digests are not known yet".to_owned();
        ("False", reason::NODES_PENDING)
    } else if ready == desired {
        ("True", reason::ALL_NODES_READY)
    } else if failed > 0 {
        ("False", reason::NODES_FAILED)
    } else {
        ("False", reason::NODES_PENDING)
    };
    Verdict {
        type_: condition::READY,
        status,
        reason,
        message,
    }
}

fn progressing(facts: &Facts<'_>) -> Verdict {
    let Counts {
        desired,
        admitted,
        in_flight,
        ..
    } = facts.counts;
    let so_far = format!("{admitted} of {desired} nodes are admitted, {in_flight} at work");
    let (status, reason, message) = match &facts.hold {
        _ if !facts.is_current() => (
            "True",
            reason::RESOLVING,
            format!(
                "{} of {} images have a digest",
                facts.known.resolved.len(),
                facts.known.total
            ),
        ),
        _ if facts.is_complete() => (
            "False",
            reason::COMPLETE,
            match facts.counts.unreachable {
                0 => format!("all {desired} nodes were admitted and answered"),
                some => format!("all {desired} nodes were admitted; {some} are unreachable"),
            },
        ),
        Hold::None => ("True", reason::ROLLING_OUT, so_far),
        Hold::Paused => (
            "False",
            reason::PAUSED,
            format!("{so_far}; rollout.paused is set"),
        ),
        Hold::OutsideWindow => (
            "False",
            reason::OUTSIDE_WINDOW,
            format!("{so_far}; the window is closed"),
        ),
        Hold::BudgetExceeded { .. } => ("False", reason::FAILURE_BUDGET_EXCEEDED, so_far),
        Hold::DeadlineExceeded(_) => ("False", reason::DEADLINE_EXCEEDED, so_far),
        Hold::Invalid(_) => ("False", reason::INVALID_SPEC, so_far),
    };
    Verdict {
        type_: condition::PROGRESSING,
        status,
        reason,
        message,
    }
}

fn stalled(facts: &Facts<'_>) -> Verdict {
    let (status, reason, message) = match &facts.hold {
        Hold::Invalid(message) => ("True", reason::INVALID_SPEC, message.clone()),
        Hold::BudgetExceeded { failed, budget } => (
            "True",
            reason::FAILURE_BUDGET_EXCEEDED,
            format!(
                "{failed} nodes failed and {budget} may; no further node is admitted until they recover, or rollout.maxFailures is raised"
            ),
        ),
        Hold::DeadlineExceeded(deadline) => (
            "True",
            reason::DEADLINE_EXCEEDED,
            format!(
                "the revision is not everywhere after {} s; no further node is admitted until rollout.deadline is raised",
                deadline.as_secs()
            ),
        ),
        Hold::None | Hold::Paused | Hold::OutsideWindow => {
            ("False", reason::AS_EXPECTED, String::new())
        }
    };
    Verdict {
        type_: condition::STALLED,
        status,
        reason,
        message,
    }
}

fn resolved(facts: &Facts<'_>) -> Verdict {
    let known = facts.known;
    let fault = known.missing.first().or(known.stale.first());
    let (status, reason, message) = match fault {
        Some(fault) => {
            let mut message = format!(
                "{} of {} images have a digest",
                known.resolved.len(),
                known.total
            );
            if !known.missing.is_empty() {
                message.push_str(&format!("; without: {}", list(&known.missing)));
            }
            if !known.stale.is_empty() {
                message.push_str(&format!("; not refreshed: {}", list(&known.stale)));
            }
            ("False", fault.reason, message)
        }
        None if known.waiting > 0 => (
            "Unknown",
            reason::RESOLVING,
            format!(
                "{} of {} images have a digest",
                known.resolved.len(),
                known.total
            ),
        ),
        None => (
            "True",
            reason::ALL_RESOLVED,
            format!("{} images have a digest", known.total),
        ),
    };
    Verdict {
        type_: condition::RESOLVED,
        status,
        reason,
        message,
    }
}

fn list(faults: &[ImageFault]) -> String {
    let mut text = faults
        .iter()
        .take(SPELLED_OUT)
        .map(|fault| format!("{} ({}: {})", fault.image, fault.reason, fault.message))
        .collect::<Vec<_>>()
        .join(", ");
    if faults.len() > SPELLED_OUT {
        text.push_str(&format!(" and {} more", faults.len() - SPELLED_OUT));
    }
    text
}

/// Whether a status has a rollout of the spec's generation that every node answered.
pub(super) fn is_complete(status: &PrepullStatus, generation: i64) -> bool {
    is_current(status, generation) && reason_of(status, condition::PROGRESSING) == reason::COMPLETE
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;

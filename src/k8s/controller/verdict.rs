//! Conditions of everything that is rolled out. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::rollout::Hold;
use super::wave::Counts;
use crate::k8s::api::{condition, reason};

/// Of a condition's message; the API allows 32 KiB.
pub(super) const MAX_MESSAGE: usize = 1024;

/// What is claimed.
pub(super) struct Verdict {
    pub(super) type_: &'static str,
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Verdict {
    /// The time is that of the last change of status, not of reason or message.
    pub(super) fn condition(
        self,
        before: &[Condition],
        generation: i64,
        now: Timestamp,
    ) -> Condition {
        let before = find(before, self.type_).filter(|before| before.status == self.status);
        Condition {
            type_: self.type_.to_owned(),
            status: self.status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.chars().take(MAX_MESSAGE).collect(),
            last_transition_time: before
                .map_or_else(|| Time(now), |before| before.last_transition_time.clone()),
            observed_generation: Some(generation),
        }
    }
}

/// A condition by its type.
pub(super) fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Types, statuses and reasons: somebody waits for a change of these.
pub(super) fn turns(conditions: &[Condition]) -> Vec<(String, String, String)> {
    let turn = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone());
    conditions.iter().map(turn).collect()
}

/// How many nodes did what was asked for, and what of the others.
pub(super) fn counted(counts: &Counts, did: &str) -> String {
    let mut text = format!("{} of {} nodes {did}", counts.ready, counts.desired);
    for (number, word) in [
        (counts.failed, "failed"),
        (counts.unreachable, "unreachable"),
    ] {
        if number > 0 {
            text.push_str(&format!(", {number} {word}"));
        }
    }
    text
}

/// `Progressing` of a rollout that is of the present spec.
pub(super) fn progressing(counts: &Counts, hold: &Hold) -> Verdict {
    let Counts {
        desired,
        admitted,
        in_flight,
        ..
    } = *counts;
    let so_far = format!("{admitted} of {desired} nodes are admitted, {in_flight} at work");
    let (status, reason, message) = match hold {
        _ if counts.answered() => (
            "False",
            reason::COMPLETE,
            match counts.unreachable {
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

/// `Stalled`.
pub(super) fn stalled(hold: &Hold) -> Verdict {
    let (status, reason, message) = match hold {
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

//! A prepull's status, from what is known. Pure: the same facts give the same status, whoever leads.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use super::lookups::{ImageFault, Known};
use super::revision::is_current;
use super::rollout::Hold;
use super::verdict::{self, Verdict, counted, stalled, turns};
use super::wave::Counts;
use crate::k8s::api::{
    NodeCounts, PrepullFailure, PrepullStatus, ResolvedImage, RolloutStatus, condition, reason,
};

/// Faults that a message spells out.
const SPELLED_OUT: usize = 3;

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
        stalled(&facts.hold),
        resolved(&facts),
    ]
    .into_iter()
    .map(|verdict| verdict.condition(&facts.before.conditions, facts.generation, facts.now))
    .collect();
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    PrepullStatus {
        observed_generation: Some(facts.generation),
        images: match facts.known.unlisted {
            true => facts.before.images,
            false => i64::try_from(facts.known.total).unwrap_or(i64::MAX),
        },
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
    let rollout = |status: &PrepullStatus| {
        // When tags were last looked up rides along and causes no write.
        let rollout = status.rollout.clone();
        rollout.map(|rollout| RolloutStatus {
            refresh_time: None,
            ..rollout
        })
    };
    if turns(&before.conditions) != turns(&after.conditions)
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
    verdict::find(&status.conditions, type_)
}

impl Facts<'_> {
    /// Whether the rollout is of the present spec.
    fn is_current(&self) -> bool {
        let rollout = self.rollout.as_ref();
        rollout.is_some_and(|rollout| rollout.observed_generation == self.generation)
    }
}

fn ready(facts: &Facts<'_>) -> Verdict {
    let Counts {
        desired,
        ready,
        failed,
        ..
    } = facts.counts;
    let mut message = counted(&facts.counts, "hold the images");
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
    if facts.is_current() {
        return verdict::progressing(&facts.counts, &facts.hold);
    }
    Verdict {
        type_: condition::PROGRESSING,
        status: "True",
        reason: reason::RESOLVING,
        message: format!(
            "{} of {} images have a digest",
            facts.known.resolved.len(),
            facts.known.total
        ),
    }
}

fn resolved(facts: &Facts<'_>) -> Verdict {
    let known = facts.known;
    if known.unlisted {
        return Verdict {
            type_: condition::RESOLVED,
            status: "Unknown",
            reason: reason::RESOLVING,
            message: "the workloads are being read".to_owned(),
        };
    }
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

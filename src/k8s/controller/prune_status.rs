//! A prune policy's status, from what its nodes report, and what people are told of it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::failures::Failures;
use super::nodes::{Id, Nodes};
use super::notes::Note;
use super::prune::Declared;
use super::rollout::Hold;
use super::seats::Seats;
use super::status::Difference;
use super::verdict::{self, Verdict, counted, find, stalled, turns};
use super::wave::{Counts, Progress};
use crate::k8s::api::{
    ImagePrunePolicyStatus, PruneCounts, PruneMode, PrunedImage, RolloutStatus, condition, reason,
};

/// Images that a status names.
const TOP: usize = 10;

/// What a status is made of.
pub(super) struct Facts<'a> {
    pub(super) declared: &'a Declared,
    pub(super) id: Id,
    /// As it will be.
    pub(super) rollout: RolloutStatus,
    pub(super) counts: Counts,
    pub(super) hold: Hold,
    pub(super) seats: &'a Seats,
    pub(super) nodes: &'a Nodes,
    pub(super) now: Timestamp,
}

/// The status.
pub(super) fn status(facts: &Facts<'_>) -> ImagePrunePolicyStatus {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let counts = &facts.counts;
    let mut status = ImagePrunePolicyStatus {
        observed_generation: Some(facts.declared.generation),
        nodes: PruneCounts {
            desired: count(counts.desired),
            admitted: count(counts.admitted),
            done: count(counts.ready),
            failed: count(counts.failed),
            unreachable: count(counts.unreachable),
        },
        rollout: Some(facts.rollout.clone()),
        ..ImagePrunePolicyStatus::default()
    };
    add_up(facts, &mut status);
    status.conditions = [
        ready(facts, &status),
        verdict::progressing(counts, &facts.hold),
        stalled(&facts.hold),
    ]
    .into_iter()
    .map(|verdict| {
        let before = &facts.declared.status.conditions;
        verdict.condition(before, facts.declared.generation, facts.now)
    })
    .collect();
    status
}

/// What the nodes did, and would do.
fn add_up(facts: &Facts<'_>, status: &mut ImagePrunePolicyStatus) {
    let mut failures = Failures::default();
    let mut images: BTreeMap<(&str, &str), PrunedImage> = BTreeMap::new();
    for (number, _, progress) in facts.seats.nodes() {
        let Some(entry) = facts.nodes.get(number) else {
            continue;
        };
        let (Some(node), Some(report)) = (&entry.node, entry.own_report()) else {
            continue;
        };
        let Some(pruned) = report.pruned(facts.id) else {
            continue;
        };
        let add = |sum: &mut i64, number: i64| *sum = sum.saturating_add(number.max(0));
        add(&mut status.removed_images, pruned.removed_images);
        add(&mut status.freed_bytes, pruned.freed_bytes);
        add(&mut status.would_remove_images, pruned.would_remove_images);
        add(&mut status.would_free_bytes, pruned.would_free_bytes);
        let last = pruned.last_run.map(Time);
        if last.as_ref().map(|t| t.0) > status.last_run_time.as_ref().map(|t| t.0) {
            status.last_run_time = last;
        }
        for top in &pruned.top {
            let image = images
                .entry((&top.image, &top.rule))
                .or_insert_with(|| PrunedImage {
                    image: top.image.to_string(),
                    rule: top.rule.to_string(),
                    ..PrunedImage::default()
                });
            image.nodes = image.nodes.saturating_add(1);
            add(&mut image.bytes, top.bytes);
        }
        if progress == Progress::Failed {
            failures.add(&node.facts.name, "", pruned.reason, &pruned.message);
        }
    }
    let mut top: Vec<PrunedImage> = images.into_values().collect();
    // The sort is stable, and the map was in order.
    top.sort_by_key(|image| std::cmp::Reverse(image.bytes));
    top.truncate(TOP);
    status.top = top;
    status.failures = failures.top();
}

fn ready(facts: &Facts<'_>, status: &ImagePrunePolicyStatus) -> Verdict {
    let Counts {
        desired,
        ready,
        failed,
        ..
    } = facts.counts;
    let mut message = counted(&facts.counts, "finished a run");
    match facts.declared.spec.mode {
        PruneMode::DryRun => message.push_str(&format!(
            "; mode DryRun removes nothing, {} images would go",
            status.would_remove_images
        )),
        PruneMode::Enforce => {
            message.push_str(&format!("; {} images went", status.removed_images));
            if status.would_remove_images > 0 {
                let more = format!(", {} more would go", status.would_remove_images);
                message.push_str(&more);
            }
        }
    }
    let (status, reason) = if desired == 0 {
        message = "no node is chosen".to_owned();
        ("True", reason::NO_NODES)
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

/// Compares what the API server has with what it should have.
pub(super) fn difference(
    before: &ImagePrunePolicyStatus,
    after: &ImagePrunePolicyStatus,
) -> Difference {
    if turns(&before.conditions) != turns(&after.conditions)
        || before.rollout != after.rollout
        || before.observed_generation != after.observed_generation
    {
        Difference::Turn
    } else if before == after {
        Difference::None
    } else {
        Difference::Detail
    }
}

/// Whether every node has answered the revision of a status.
pub(super) fn is_complete(status: &ImagePrunePolicyStatus, generation: i64) -> bool {
    let current = status
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.observed_generation == generation);
    let progressing = find(&status.conditions, condition::PROGRESSING);
    current && progressing.is_some_and(|condition| condition.reason == reason::COMPLETE)
}

/// What a written status says that the one before did not.
pub(super) fn notes(
    old: &ImagePrunePolicyStatus,
    after: &Declared,
    completed: Option<&str>,
) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |warning, reason, text: &str| {
        notes.push(Note {
            kind: "ImagePrunePolicy",
            namespace: String::new(),
            name: after.name.clone(),
            uid: after.uid.clone(),
            version: after.version.clone(),
            warning,
            reason,
            action: "Rollout",
            text: text.chars().take(900).collect(),
            at: None,
        });
    };
    let new = &after.status;
    let revision = |status: &ImagePrunePolicyStatus| {
        let rollout = status.rollout.as_ref();
        rollout.map(|rollout| rollout.revision.clone())
    };
    if let Some(name) = revision(new).filter(|_| revision(old) != revision(new)) {
        let text = format!(
            "revision {name}: mode {:?} on {} nodes",
            after.spec.mode, new.nodes.desired
        );
        note(false, "RolloutStarted", &text);
    }
    let first = completed.map(str::to_owned) != revision(new);
    if first && is_complete(new, after.generation) && !is_complete(old, after.generation) {
        let text = match after.spec.mode {
            PruneMode::DryRun => format!(
                "{} images of {} nodes would go",
                new.would_remove_images, new.nodes.done
            ),
            PruneMode::Enforce => format!(
                "{} images went from {} nodes, {} failed",
                new.removed_images, new.nodes.done, new.nodes.failed
            ),
        };
        note(new.nodes.failed > 0, "RolloutComplete", &text);
    }
    let stalled = |status: &ImagePrunePolicyStatus| {
        let found = find(&status.conditions, condition::STALLED);
        let found = found.filter(|condition| condition.status == "True");
        found.map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    if let Some((why, message)) = stalled(new)
        && stalled(old).map(|(why, _)| why) != Some(why)
    {
        note(true, "RolloutStalled", &message);
    }
    notes
}

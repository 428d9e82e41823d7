//! What people are told by events: turns of a rollout, each once. Pure.

use k8s_openapi::jiff::Timestamp;

use super::declared::Declared;
use super::revision::{is_current, moved};
use super::status::{is_complete, is_true, reason_of};
use crate::k8s::api::{PrepullStatus, condition};

/// Of one note; the API allows 1 kB.
const MAX_NOTE: usize = 900;
/// Moved tags that are named one by one.
const NAMED: usize = 5;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// The object that it is about.
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) action: &'static str,
    pub(super) text: String,
    /// When it happened, where others may tell the same: one event of an object, a reason and a time is enough.
    pub(super) at: Option<Timestamp>,
}

impl Note {
    /// The one kind that is not ours.
    pub(super) const NODE: &str = "Node";

    pub(super) fn new(
        about: &Declared,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        text: &str,
    ) -> Self {
        Note {
            kind: about.key.kind.name(),
            namespace: about.key.namespace.clone(),
            name: about.key.name.clone(),
            uid: about.uid.clone(),
            version: about.version.clone(),
            warning,
            reason,
            action,
            text: text.chars().take(MAX_NOTE).collect(),
            at: None,
        }
    }
}

/// What a written status says that the one before did not. `completed` is the last revision whose rollout ended before.
pub(super) fn notes(old: &PrepullStatus, after: &Declared, completed: Option<&str>) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |warning, reason, action, text: &str| {
        notes.push(Note::new(after, warning, reason, action, text));
    };
    let new = &after.status;
    let revision = |status: &PrepullStatus| status.rollout.as_ref().map(|r| r.revision.clone());
    if let Some(name) = revision(new).filter(|_| revision(old) != revision(new)) {
        // An edit of the spec that moves digests is no tag that moved.
        let images = if is_current(old, after.generation) {
            moved(&old.resolved, &new.resolved)
        } else {
            Vec::new()
        };
        for moved in images.iter().take(NAMED) {
            let text = format!("{} moved from {} to {}", moved.image, moved.from, moved.to);
            note(false, "TagMoved", "Resolve", &text);
        }
        if images.len() > NAMED {
            let text = format!("{} more tags moved", images.len() - NAMED);
            note(false, "TagMoved", "Resolve", &text);
        }
        let text = format!(
            "revision {name}: {} images for {} nodes",
            new.resolved.len(),
            new.nodes.desired
        );
        note(false, "RolloutStarted", "Rollout", &text);
    }
    let generation = after.generation;
    let first = completed.map(str::to_owned) != revision(new);
    if first && is_complete(new, generation) && !is_complete(old, generation) {
        let text = format!(
            "{} of {} nodes hold the images, {} failed",
            new.nodes.ready, new.nodes.desired, new.nodes.failed
        );
        note(new.nodes.failed > 0, "RolloutComplete", "Rollout", &text);
    }
    let message = |type_: &str| {
        let found = new.conditions.iter().find(|c| c.type_ == type_);
        found.map_or("", |condition| condition.message.as_str())
    };
    if is_true(new, condition::STALLED)
        && reason_of(new, condition::STALLED) != reason_of(old, condition::STALLED)
    {
        note(
            true,
            "RolloutStalled",
            "Rollout",
            message(condition::STALLED),
        );
    }
    let failed = |status: &PrepullStatus| {
        let found = status
            .conditions
            .iter()
            .find(|c| c.type_ == condition::RESOLVED);
        let failed = found.filter(|condition| condition.status == "False");
        failed.map(|condition| condition.reason.clone())
    };
    if let Some(reason) = failed(new)
        && failed(old) != Some(reason)
    {
        note(
            true,
            "ResolveFailed",
            "Resolve",
            message(condition::RESOLVED),
        );
    }
    notes
}

//! What the agent tells people: everything, where the report to the API server is a summary.

use jiff::Timestamp;

use super::assign::{Assignment, Hold, Why};
use super::prepull::{Identity, Origin, Unit};
use super::prune::{self, Told};
use super::report::Facts;
use super::seam::Emergency;
use super::watch::{Link, Watched};
use crate::k8s::api::{HoldState, PruneReport};

/// Of one node.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Name of the node.
    pub node: String,
    /// The API server, if there is to be one.
    pub api: Option<ApiView>,
    /// The folder of manifests, if there is one, and what is wrong there by file.
    pub manifests: Option<(String, Vec<(String, String)>)>,
    /// Sorted by identity.
    pub prepulls: Vec<PrepullView>,
    /// By name.
    pub prunes: Vec<PruneView>,
    /// The last time since the start that the disk was nearly full.
    pub emergency: Option<Emergency>,
}

/// The connection to the API server.
#[derive(Clone, Debug, Default)]
pub struct ApiView {
    /// All kinds were listed and are followed.
    pub synced: bool,
    /// What is wrong with the credentials, if they were looked at.
    pub fault: Option<String>,
    /// Each kind.
    pub links: Vec<(Watched, Link)>,
}

/// One prepull on this node.
#[derive(Clone, Debug, Default)]
pub struct PrepullView {
    /// Which one.
    pub identity: Identity,
    /// The file it is from; empty for the API server.
    pub file: String,
    /// The revision held, and the one that is being pulled; both may be empty.
    pub held: String,
    /// See `held`.
    pub next: String,
    /// How far.
    pub state: HoldState,
    /// Held images of the revision worked on.
    pub ready: usize,
    /// All of them.
    pub total: usize,
    /// From a closed set; empty where there is nothing to say.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Pinned.
    pub pinned: bool,
    /// Set while it is only retained: until when.
    pub retained_until: Option<Timestamp>,
    /// Its images.
    pub images: Vec<ImageView>,
}

/// One prune policy on this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PruneView {
    /// How far it is, and what its last run did.
    pub report: PruneReport,
    /// The file it is from; empty for the API server.
    pub file: String,
    /// Its mode is `Enforce`.
    pub enforces: bool,
    /// Why it removes nothing, from a closed set; empty where it does its work.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When it looks next, where a schedule says so.
    pub next: Option<Timestamp>,
}

/// One image of a prepull.
#[derive(Clone, Debug, Default)]
pub struct ImageView {
    /// What.
    pub unit: Unit,
    /// Held, pulling, pending or failed.
    pub state: ImageState,
    /// Of the last failure.
    pub reason: String,
    /// Of the last failure.
    pub message: String,
    /// Failures in a row.
    pub attempts: u32,
    /// When it is tried again.
    pub next: Option<Timestamp>,
}

/// How far one image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageState {
    /// Missing, not started.
    #[default]
    Pending,
    /// Being pulled.
    Pulling,
    /// Held.
    Held,
    /// Missing after its retries; tried on.
    Failed,
}

/// Reasons for people only.
mod view_reason {
    pub(super) const NOT_RESOLVED: &str = "NotResolved";
    pub(super) const NOT_ADMITTED: &str = "NotAdmitted";
    pub(super) const DELETED: &str = "Deleted";
    pub(super) const DESELECTED: &str = "Deselected";
    pub(super) const DRY_RUN: &str = "DryRun";
}

/// Every prepull that means something to this node.
pub(super) fn prepulls(
    assignment: &Assignment,
    facts: &Facts<'_>,
    now: Timestamp,
) -> Vec<PrepullView> {
    let mut views: Vec<_> = assignment
        .holds
        .iter()
        .map(|hold| held(hold, facts, now))
        .collect();
    for waiting in &assignment.waiting {
        let (reason, message) = match waiting.revision.as_str() {
            "" => (
                view_reason::NOT_RESOLVED,
                "the controller has made no revision of it yet".to_owned(),
            ),
            revision => (view_reason::NOT_ADMITTED, not_admitted(revision)),
        };
        let mut faults = waiting.faults.clone();
        faults.insert(0, message);
        views.push(PrepullView {
            identity: waiting.identity.clone(),
            reason: reason.to_owned(),
            message: faults.join("; "),
            ..PrepullView::default()
        });
    }
    views.sort_by(|a, b| a.identity.cmp(&b.identity));
    views
}

/// Every prune policy that chooses this node.
pub(super) fn prunes(pruned: &prune::Output) -> Vec<PruneView> {
    let view = |told: &Told| {
        let report = told.now.clone();
        let (reason, message) = if !report.reason.is_empty() {
            (report.reason.clone(), report.message.clone())
        } else if !told.enforces {
            (view_reason::DRY_RUN.to_owned(), String::new())
        } else if !told.acts {
            let message = not_admitted(&report.revision);
            (view_reason::NOT_ADMITTED.to_owned(), message)
        } else {
            Default::default()
        };
        PruneView {
            report,
            file: told.file.clone(),
            enforces: told.enforces,
            reason,
            message,
            next: told.next,
        }
    };
    pruned.reports.iter().map(view).collect()
}

fn not_admitted(revision: &str) -> String {
    format!("revision {revision} has not reached this node")
}

fn held(hold: &Hold, facts: &Facts<'_>, now: Timestamp) -> PrepullView {
    let progress = facts.progress(hold, now);
    let id = |revision: &Option<super::assign::HeldRevision>| {
        revision
            .as_ref()
            .map(|revision| revision.id.clone())
            .unwrap_or_default()
    };
    let (reason, message) = match hold.released {
        None => (progress.reason, String::new()),
        Some(released) => {
            let reason = match released.why {
                Why::Deleted => view_reason::DELETED,
                Why::Deselected => view_reason::DESELECTED,
            };
            (reason, "its images are protected until then".to_owned())
        }
    };
    let units = hold.working().map(|revision| revision.units.as_slice());
    PrepullView {
        identity: hold.identity.clone(),
        file: match &hold.identity.origin {
            Origin::Api => String::new(),
            Origin::File(file) => file.clone(),
        },
        held: id(&hold.held),
        next: id(&hold.next),
        state: progress.state,
        ready: progress.ready,
        total: progress.total,
        reason: reason.to_owned(),
        message,
        pinned: hold.terms.pin,
        retained_until: hold.released_at(),
        images: units
            .unwrap_or_default()
            .iter()
            .map(|unit| image(hold, unit, facts))
            .collect(),
    }
}

fn image(hold: &Hold, unit: &Unit, facts: &Facts<'_>) -> ImageView {
    let held = facts.holds(hold, unit);
    let failures = facts.work.failures.get(unit).filter(|_| !held);
    let running = facts.work.running.contains(unit);
    ImageView {
        unit: unit.clone(),
        state: match failures {
            _ if held => ImageState::Held,
            _ if running => ImageState::Pulling,
            Some(failures) if failures.exhausted() => ImageState::Failed,
            _ => ImageState::Pending,
        },
        reason: failures
            .map(|failures| failures.reason.to_owned())
            .unwrap_or_default(),
        message: failures
            .map(|failures| failures.message.clone())
            .unwrap_or_default(),
        attempts: failures.map_or(0, |failures| failures.failures),
        next: failures.filter(|_| !running).map(|failures| failures.next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::{PruneState, reason};

    #[test]
    fn a_policy_that_removes_nothing_says_why() {
        let told = |enforces, acts, reason: &str| Told {
            now: PruneReport {
                revision: "abc".to_owned(),
                reason: reason.to_owned(),
                state: PruneState::Done,
                ..PruneReport::default()
            },
            enforces,
            acts,
            ..Told::default()
        };
        for (told, expected) in [
            (told(true, true, ""), ""),
            (told(false, false, ""), "DryRun"),
            (told(true, false, ""), "NotAdmitted"),
            (
                told(false, false, reason::RUNTIME_UNAVAILABLE),
                reason::RUNTIME_UNAVAILABLE,
            ),
        ] {
            let output = prune::Output {
                reports: vec![told],
                ready: None,
            };
            assert_eq!(prunes(&output)[0].reason, expected);
        }
    }
}

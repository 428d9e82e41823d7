//! What the agent tells people: everything, where the report to the API server is a summary.

use jiff::Timestamp;

use super::assign::{Assignment, Hold, Why};
use super::prepull::{Identity, Origin, Unit};
use super::report::Facts;
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
    /// By name, with the file that each is from; empty for the API server.
    pub prunes: Vec<(PruneReport, String)>,
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
            revision => (
                view_reason::NOT_ADMITTED,
                format!("revision {revision} has not reached this node"),
            ),
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

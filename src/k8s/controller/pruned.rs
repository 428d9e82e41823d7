//! What a node reports of prune policies, kept as small as it can be.

use k8s_openapi::jiff::Timestamp;

use super::nodes::{Id, MAX_MESSAGE, id, known_reason};
use crate::k8s::api::PruneReport;

/// Prune policies of one report, and images of each; the schema has the same limits.
pub(super) const MAX_PRUNES: usize = 64;
const MAX_TOP: usize = 5;

/// What a node reports of one prune policy besides how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pruned {
    pub(super) policy: Id,
    pub(super) reason: &'static str,
    pub(super) message: Box<str>,
    pub(super) last_run: Option<Timestamp>,
    pub(super) removed_images: i64,
    pub(super) freed_bytes: i64,
    pub(super) would_remove_images: i64,
    pub(super) would_free_bytes: i64,
    pub(super) top: Box<[PrunedTop]>,
}

/// An image that went, or would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrunedTop {
    pub(super) image: Box<str>,
    pub(super) rule: Box<str>,
    pub(super) bytes: i64,
}

/// Sorted by policy, within the limits of the schema.
pub(super) fn all(reports: Vec<PruneReport>) -> Box<[Pruned]> {
    let mut all: Vec<Pruned> = reports.into_iter().take(MAX_PRUNES).map(pruned).collect();
    all.sort_by_key(|pruned| pruned.policy);
    all.dedup_by_key(|pruned| pruned.policy);
    all.into_boxed_slice()
}

fn pruned(report: PruneReport) -> Pruned {
    Pruned {
        policy: id(&report.uid),
        reason: known_reason(&report.reason),
        message: report
            .message
            .chars()
            .take(MAX_MESSAGE)
            .collect::<String>()
            .into(),
        last_run: report.last_run_time.map(|time| time.0),
        removed_images: report.removed_images,
        freed_bytes: report.freed_bytes,
        would_remove_images: report.would_remove_images,
        would_free_bytes: report.would_free_bytes,
        top: report
            .top
            .into_iter()
            .take(MAX_TOP)
            .map(|top| PrunedTop {
                image: top.image.into(),
                rule: top.rule.into(),
                bytes: top.bytes,
            })
            .collect(),
    }
}

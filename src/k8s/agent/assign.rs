//! What this node holds, as a pure function of the declared prepulls, the node and what was held before.
//!
//! Absence is not deletion: a hold whose prepull is not among those seen stays as it is, until somebody says that the
//! object is gone. A revision is given up only for another one that is complete.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::prepull::{Identity, Prepull, Terms, Unit, later};
use crate::k8s::api::{NodeFacts, slot};

/// What one prepull makes this node hold. Kept over restarts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Hold {
    /// Whose it is.
    #[serde(flatten)]
    pub(super) identity: Identity,
    /// How units are held; the newest that was seen.
    pub(super) terms: Terms,
    /// Nodes that the prepull chooses.
    #[serde(default)]
    pub(super) desired: u64,
    /// The revision that was complete once: kept, and healed while there is no next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) held: Option<HeldRevision>,
    /// The revision to which this node was admitted and which is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<HeldRevision>,
    /// Set while the units are only retained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) released: Option<Released>,
}

/// A revision and when this node got it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct HeldRevision {
    /// 16 hexadecimal digits.
    pub(super) id: String,
    /// When it was admitted; once it is complete, when that was.
    pub(super) since: Timestamp,
    /// What to hold.
    pub(super) units: Vec<Unit>,
}

/// A release that takes effect after the prepull's retention.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Released {
    /// From when retention counts.
    pub(super) since: Timestamp,
    /// Why.
    pub(super) why: Why,
}

/// Why a prepull no longer counts here.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) enum Why {
    /// The object is gone.
    Deleted,
    /// It chooses other nodes.
    Deselected,
}

/// What the decision is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    /// The node; `None` until it was seen.
    pub(super) node: Option<&'a NodeFacts>,
    /// Every prepull that was seen last, by uid.
    pub(super) prepulls: &'a BTreeMap<String, Prepull>,
    /// Prepulls that are known to be gone, and since when.
    pub(super) gone: &'a BTreeMap<String, Timestamp>,
}

/// Why a prepull that chooses this node has nothing held for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Whose.
    pub(super) identity: Identity,
    /// The revision it waits to be admitted to; empty where the controller has not made one.
    pub(super) revision: String,
    /// What is wrong with the object, where something is.
    pub(super) faults: Vec<String>,
}

/// What this node holds and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Assignment {
    /// Sorted by identity.
    pub(super) holds: Vec<Hold>,
    /// Prepulls that choose this node, without a hold. Not kept over restarts.
    pub(super) waiting: Vec<Waiting>,
}

impl Hold {
    /// The revision to speak of: the next one, else the held one.
    pub(super) fn working(&self) -> Option<&HeldRevision> {
        self.next.as_ref().or(self.held.as_ref())
    }

    /// Units that are to be pulled where they are missing. A held revision is not healed while the next one is pulled.
    pub(super) fn wanted(&self) -> &[Unit] {
        match (&self.released, &self.next, &self.held) {
            (Some(_), ..) => &[],
            (None, Some(next), _) => &next.units,
            (None, None, Some(held)) if !self.terms.once => &held.units,
            _ => &[],
        }
    }

    /// Units that nothing may remove. With `Once` that is only what is being collected.
    pub(super) fn protected(&self) -> impl Iterator<Item = &Unit> {
        let held = self.held.iter().filter(|_| !self.terms.once);
        held.chain(&self.next).flat_map(|revision| &revision.units)
    }

    /// When a release takes effect.
    pub(super) fn released_at(&self) -> Option<Timestamp> {
        self.released
            .map(|released| later(released.since, self.terms.retain()))
    }
}

/// Decides. `complete` says whether a unit is held now as the terms ask for.
pub(super) fn assign(
    seen: Seen<'_>,
    before: &[Hold],
    complete: impl Fn(&Terms, &Unit) -> bool,
    now: Timestamp,
) -> Assignment {
    let mut holds: BTreeMap<&str, Hold> = before
        .iter()
        .map(|hold| (hold.identity.uid.as_str(), hold.clone()))
        .collect();
    for hold in holds.values_mut() {
        match seen.prepulls.get(&hold.identity.uid) {
            Some(prepull) => follow(hold, prepull, seen.node, now),
            None => {
                if let Some(since) = seen.gone.get(&hold.identity.uid) {
                    release(hold, Why::Deleted, (*since).min(now));
                }
            }
        }
    }
    let mut waiting = Vec::new();
    for prepull in seen.prepulls.values() {
        let uid = prepull.identity.uid.as_str();
        let Some(node) = seen.node.filter(|node| prepull.selects(node)) else {
            continue;
        };
        if holds.contains_key(uid) {
            continue;
        }
        match admitted(prepull, node) {
            Some(next) => {
                let hold = Hold {
                    identity: prepull.identity.clone(),
                    terms: prepull.terms.clone(),
                    desired: prepull.desired,
                    next: Some(revision(next, now)),
                    ..Hold::default()
                };
                holds.insert(uid, hold);
            }
            None => waiting.push(Waiting {
                identity: prepull.identity.clone(),
                revision: prepull
                    .revision
                    .as_ref()
                    .map(|revision| revision.id.clone())
                    .unwrap_or_default(),
                faults: prepull.faults.clone(),
            }),
        }
    }
    let mut holds: Vec<Hold> = holds
        .into_values()
        .filter_map(|hold| settle(hold, &complete, now))
        .collect();
    holds.sort_by(|a, b| a.identity.cmp(&b.identity));
    waiting.sort_by(|a, b| a.identity.cmp(&b.identity));
    Assignment { holds, waiting }
}

/// Brings a hold up to its prepull.
fn follow(hold: &mut Hold, prepull: &Prepull, node: Option<&NodeFacts>, now: Timestamp) {
    hold.identity = prepull.identity.clone();
    hold.terms = prepull.terms.clone();
    hold.desired = prepull.desired;
    let Some(node) = node else { return };
    if !prepull.selects(node) {
        release(hold, Why::Deselected, now);
        return;
    }
    hold.released = None;
    let Some(current) = &prepull.revision else {
        // An edit that the controller has not seen yet says nothing about what to hold.
        return;
    };
    if hold.held.as_ref().is_some_and(|held| held.id == current.id) {
        hold.next = None;
        return;
    }
    match admitted(prepull, node) {
        Some(next) => {
            if hold.next.as_ref().is_none_or(|old| old.id != next.id) {
                hold.next = Some(revision(next, now));
            }
        }
        // What was begun of a revision that is no longer current would be one node too many in flight.
        None => hold.next = None,
    }
}

fn admitted<'a>(prepull: &'a Prepull, node: &NodeFacts) -> Option<&'a super::prepull::Revision> {
    let revision = prepull.revision.as_ref()?;
    (slot(&node.uid, &prepull.identity.uid, &revision.id) <= revision.admitted).then_some(revision)
}

fn revision(revision: &super::prepull::Revision, now: Timestamp) -> HeldRevision {
    HeldRevision {
        id: revision.id.clone(),
        since: now,
        units: revision.units.clone(),
    }
}

/// Starts retention; what was begun is not gone on with.
fn release(hold: &mut Hold, why: Why, since: Timestamp) {
    hold.next = None;
    if hold.released.is_none_or(|released| released.since > since) {
        hold.released = Some(Released { since, why });
    }
}

/// A complete next revision becomes the held one; a release that is due, or a hold of nothing, ends.
fn settle(
    mut hold: Hold,
    complete: &impl Fn(&Terms, &Unit) -> bool,
    now: Timestamp,
) -> Option<Hold> {
    if hold.released_at().is_some_and(|end| end <= now) {
        return None;
    }
    let terms = &hold.terms;
    let is_complete = |next: &mut HeldRevision| next.units.iter().all(|unit| complete(terms, unit));
    if let Some(next) = hold.next.take_if(is_complete) {
        hold.held = Some(HeldRevision { since: now, ..next });
    }
    hold.working().is_some().then_some(hold)
}

#[cfg(test)]
#[path = "assign_tests.rs"]
mod tests;

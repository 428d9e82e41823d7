//! What this node reports, as pure functions: the status of its `NodeImageCache`, and whether a new one is worth a
//! write. Bytes, counts of attempts and times never are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::assign::Hold;
use super::inventory::{Inventory, Pulls};
use super::metrics::ImageCounts;
use super::plan::Work;
use super::prepull::{Unit, later};
use super::prune;
use super::prune_record::{seconds, signed};
use super::retry::{Attempts, News};
use super::seam::{Emergency, Figures};
use crate::k8s::api::{
    self, EmergencyReport, HeldPrepull, HoldState, ImageFailure, MAX_REPORTED,
    NodeImageCacheStatus, PruneReport, StoreFigures, condition, reason,
};

/// Failures that a report lists.
const MAX_FAILURES: usize = 10;
/// Prune policies that a report lists,
const MAX_PRUNES: usize = 64;
/// and those of which it names images: more would be too large an object.
const MAX_PRUNES_WITH_TOP: usize = 16;
/// Below this share of free space, in percent, the disk is short;
const SHORT: u64 = 8;
/// it is not any more above this one.
const ENOUGH: u64 = 10;
/// So long it counts that nothing gave the room that was wanted: whoever wants it still has tried again by then.
const SHORTAGE: Duration = Duration::from_secs(600);

/// Reasons of conditions of a node.
mod node_reason {
    pub(super) const ALL_HELD: &str = "AllImagesHeld";
    pub(super) const MISSING: &str = "ImagesMissing";
    pub(super) const FAILED: &str = "ImagesFailed";
    pub(super) const NO_DAMAGE: &str = "NoDamageFound";
    pub(super) const DAMAGED: &str = "DamageFound";
    pub(super) const SPACE: &str = "SufficientSpace";
    pub(super) const NO_SPACE: &str = "LittleSpace";
}

/// How far one prepull is on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// How far.
    pub(super) state: HoldState,
    /// Images held.
    pub(super) ready: usize,
    /// Images in all.
    pub(super) total: usize,
    /// Why it is not ready; from a closed set, may be empty.
    pub(super) reason: &'static str,
}

/// Whether the API server's objects are known, for the condition `ApiSynced`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Synced {
    /// All kinds were listed and are followed.
    pub(super) synced: bool,
    /// CamelCase.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
}

/// What a report is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// Holds, failures and running pulls.
    pub(super) work: Work<'a>,
    /// What is held; `None` where it could not be asked.
    pub(super) inventory: Option<&'a Inventory>,
    /// What pulls ended with.
    pub(super) pulls: &'a Pulls,
    /// Of the store.
    pub(super) figures: Option<&'a Figures>,
    /// Of the API server.
    pub(super) synced: &'a Synced,
    /// Of prune policies.
    pub(super) pruned: &'a prune::Output,
}

impl Facts<'_> {
    /// Whether a unit is held as a hold asks for.
    pub(super) fn holds(&self, hold: &Hold, unit: &Unit) -> bool {
        self.inventory
            .is_some_and(|inventory| inventory.holds(&hold.terms, unit, self.pulls))
    }

    /// How far a hold is. Failed means that everything missing was tried as often as it is worth.
    pub(super) fn progress(&self, hold: &Hold, now: Timestamp) -> Progress {
        let Some(revision) = hold.working() else {
            return Progress::default();
        };
        let total = revision.units.len();
        // Once collected, what became of it is nobody's business.
        if hold.next.is_none() && hold.terms.once {
            return Progress {
                state: HoldState::Ready,
                ready: total,
                total,
                reason: "",
            };
        }
        let missing: Vec<&Unit> = revision
            .units
            .iter()
            .filter(|unit| !self.holds(hold, unit))
            .collect();
        let ready = total - missing.len();
        let failures = |unit: &&Unit| self.work.failures.get(*unit);
        let exhausted = |unit: &&&Unit| failures(unit).is_some_and(Attempts::exhausted);
        let gave_up = missing.iter().filter(exhausted).count();
        let begun = ready > 0
            || missing
                .iter()
                .any(|unit| self.work.running.contains(*unit) || failures(unit).is_some());
        let closed = hold.terms.window.is_some_and(|window| !window.is_open(now));
        let (state, reason) = if missing.is_empty() {
            (HoldState::Ready, "")
        } else if gave_up == missing.len() {
            let first = missing.iter().find_map(failures);
            (HoldState::Failed, first.map_or("", |first| first.reason))
        } else if closed && !missing.iter().any(|unit| self.work.running.contains(*unit)) {
            (HoldState::Pending, reason::OUTSIDE_WINDOW)
        } else if begun {
            (HoldState::Pulling, "")
        } else {
            (HoldState::Pending, "")
        };
        Progress {
            state,
            ready,
            total,
            reason,
        }
    }

    /// Distinct units by state.
    pub(super) fn counts(&self) -> ImageCounts {
        let mut counts = ImageCounts::default();
        let mut seen = BTreeSet::new();
        for hold in self.work.holds {
            let retained = hold.released.is_some();
            for unit in hold.protected() {
                if !seen.insert(unit) {
                    continue;
                }
                let failures = self.work.failures.get(unit);
                *match () {
                    () if retained => &mut counts.retained,
                    () if self.holds(hold, unit) => &mut counts.ready,
                    () if failures.is_some_and(Attempts::exhausted) => &mut counts.failed,
                    () if self.work.running.contains(unit) => &mut counts.pulling,
                    () => &mut counts.pending,
                } += 1;
            }
        }
        counts
    }
}

/// The whole status. Transition times of conditions that did not change are those of `before`.
pub(super) fn report(
    facts: &Facts<'_>,
    before: &NodeImageCacheStatus,
    now: Timestamp,
) -> NodeImageCacheStatus {
    let live: Vec<&Hold> = facts
        .work
        .holds
        .iter()
        .filter(|hold| hold.released.is_none() && hold.working().is_some())
        .collect();
    let progress: Vec<(&Hold, Progress)> = live
        .iter()
        .map(|hold| (*hold, facts.progress(hold, now)))
        .collect();
    let prepulls: Vec<HeldPrepull> = progress
        .iter()
        .filter(|(hold, _)| hold.identity.origin == super::prepull::Origin::Api)
        .map(|(hold, progress)| HeldPrepull {
            uid: hold.identity.uid.clone(),
            name: hold.identity.path(),
            revision: hold
                .working()
                .map(|revision| revision.id.clone())
                .unwrap_or_default(),
            state: progress.state,
            ready: number(progress.ready),
            total: number(progress.total),
            reason: progress.reason.to_owned(),
        })
        .collect();
    let omitted = prepulls.len().saturating_sub(MAX_REPORTED);
    NodeImageCacheStatus {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        observed_time: Some(Time(now)),
        store: facts.figures.map(figures),
        inventory: facts.inventory.map(|inventory| api::Inventory {
            hash: inventory.hash.clone(),
            images: i64::try_from(inventory.images).unwrap_or(i64::MAX),
        }),
        prepulls: prepulls.into_iter().take(MAX_REPORTED).collect(),
        prepulls_omitted: i64::try_from(omitted).unwrap_or(i64::MAX),
        failures: failures(facts, &live),
        prunes: facts
            .pruned
            .reports
            .iter()
            .filter(|told| told.file.is_empty())
            .take(MAX_PRUNES)
            .enumerate()
            .map(|(place, told)| PruneReport {
                top: match place < MAX_PRUNES_WITH_TOP {
                    true => told.report.top.clone(),
                    false => Vec::new(),
                },
                ..told.report.clone()
            })
            .collect(),
        emergency: match facts.figures.and_then(|figures| figures.emergency) {
            Some(emergency) => Some(emergency_report(&emergency)),
            // Of an earlier run of this agent.
            None => before.emergency.clone(),
        },
        conditions: conditions(facts, &progress, before, now),
    }
}

/// Images that failed, those that were given up first. A single failure that the next attempt may mend is not told.
fn failures(facts: &Facts<'_>, live: &[&Hold]) -> Vec<ImageFailure> {
    let mut told: BTreeSet<(bool, &Unit)> = BTreeSet::new();
    let wanted = live
        .iter()
        .flat_map(|hold| hold.wanted().iter().map(move |unit| (hold, unit)));
    for (hold, unit) in wanted {
        if let Some(attempts) = facts.work.failures.get(unit)
            && (attempts.failures > 1 || attempts.exhausted())
            && !facts.holds(hold, unit)
        {
            told.insert((!attempts.exhausted(), unit));
        }
    }
    told.into_iter()
        .filter_map(|(_, unit)| {
            let attempts = facts.work.failures.get(unit)?;
            let whose = live.iter().find(|hold| hold.wanted().contains(unit));
            Some(ImageFailure {
                image: unit.image.clone(),
                prepull: whose
                    .map(|hold| hold.identity.uid.clone())
                    .unwrap_or_default(),
                reason: attempts.reason.to_owned(),
                message: attempts.message.clone(),
                attempts: i32::try_from(attempts.failures).unwrap_or(i32::MAX),
                time: Some(Time(attempts.last)),
            })
        })
        .take(MAX_FAILURES)
        .collect()
}

fn conditions(
    facts: &Facts<'_>,
    progress: &[(&Hold, Progress)],
    before: &NodeImageCacheStatus,
    now: Timestamp,
) -> Vec<Condition> {
    let old = |kind: &str| {
        before
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)
    };
    let of = |kind: &str, met: Option<bool>, reason: &str, message: String| {
        let status = match met {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let since = old(kind)
            .filter(|old| old.status == status)
            .map_or(Time(now), |old| old.last_transition_time.clone());
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since,
            observed_generation: None,
        }
    };
    let count = |state| {
        progress
            .iter()
            .filter(|(_, progress)| progress.state == state)
            .count()
    };
    let (all, failed) = (progress.len(), count(HoldState::Failed));
    let ready = count(HoldState::Ready) + count(HoldState::Skipped);
    let ready = if ready == all {
        of(
            condition::READY,
            Some(true),
            node_reason::ALL_HELD,
            format!("{all} prepulls"),
        )
    } else {
        let reason = if failed > 0 {
            node_reason::FAILED
        } else {
            node_reason::MISSING
        };
        let message = format!("{ready} of {all} prepulls are held, {failed} failed");
        of(condition::READY, Some(false), reason, message)
    };
    let healthy = facts.figures.map(|figures| figures.healthy);
    let healthy = of(
        condition::STORE_HEALTHY,
        healthy,
        match healthy {
            Some(true) => node_reason::NO_DAMAGE,
            Some(false) => node_reason::DAMAGED,
            None => reason::UNKNOWN,
        },
        match healthy {
            Some(false) => "see: larder fsck".to_owned(),
            _ => String::new(),
        },
    );
    let was_short = old(condition::DISK_PRESSURE).is_some_and(|old| old.status == "True");
    let short = facts.figures.filter(|figures| figures.capacity_bytes > 0);
    let short = short.map(|figures| {
        let free = u128::from(figures.available_bytes) * 100;
        let limit = if was_short { ENOUGH } else { SHORT };
        free < u128::from(figures.capacity_bytes) * u128::from(limit)
    });
    let emergency = facts.figures.and_then(|figures| figures.emergency);
    let shortage = emergency.filter(|emergency| {
        // Nor by a clock that was set back since.
        let lasts = emergency.at <= now && now <= later(emergency.at, SHORTAGE);
        emergency.short_bytes > 0 && lasts
    });
    let pressure = match (shortage, short) {
        (Some(shortage), _) => of(
            condition::DISK_PRESSURE,
            Some(true),
            reason::INSUFFICIENT_SPACE,
            format!(
                "{} bytes are wanted that no image may go for; see: larder prune -a --dry-run --explain",
                shortage.short_bytes
            ),
        ),
        (None, short) => of(
            condition::DISK_PRESSURE,
            short,
            match short {
                Some(true) => node_reason::NO_SPACE,
                Some(false) => node_reason::SPACE,
                None => reason::UNKNOWN,
            },
            String::new(),
        ),
    };
    let synced = of(
        condition::API_SYNCED,
        Some(facts.synced.synced),
        facts.synced.reason,
        facts.synced.message.clone(),
    );
    let mut conditions = vec![ready, healthy, pressure, synced];
    if let Some(ready) = &facts.pruned.ready {
        conditions.push(of(
            condition::PRUNE_READY,
            Some(ready.met),
            ready.reason,
            ready.message.clone(),
        ));
    }
    conditions
}

fn emergency_report(emergency: &Emergency) -> EmergencyReport {
    EmergencyReport {
        time: Some(seconds(emergency.began)),
        removed_images: signed(emergency.images),
        freed_bytes: signed(emergency.freed_bytes),
        short_bytes: signed(emergency.short_bytes),
    }
}

fn figures(figures: &Figures) -> StoreFigures {
    // No file system is this small: it is another's, in a place that this agent does not see.
    let known = figures.capacity_bytes > 0;
    StoreFigures {
        capacity_bytes: known.then(|| signed(figures.capacity_bytes)),
        available_bytes: known.then(|| signed(figures.available_bytes)),
        stored_bytes: signed(figures.stored_bytes),
        logical_bytes: signed(figures.logical_bytes),
        pinned_bytes: signed(figures.pinned_bytes),
        images: signed(figures.images),
        layers: signed(figures.layers),
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What makes a report worth a write.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Essence {
    /// Revision and state. Not begun and begun are one: to the controller both mean that the node works.
    prepulls: BTreeMap<String, (String, HoldState)>,
    failing: BTreeSet<String>,
    conditions: BTreeMap<String, String>,
    pruned: BTreeMap<String, PruneReport>,
    /// When it began, and whether it fell short: how much went meanwhile is told with the next report.
    emergency: Option<(Option<Time>, bool)>,
    version: String,
}

impl Essence {
    /// Of a status, new or read back.
    pub(super) fn of(status: &NodeImageCacheStatus) -> Self {
        Essence {
            prepulls: status
                .prepulls
                .iter()
                .map(|held| {
                    (
                        held.uid.clone(),
                        (held.revision.clone(), settled(held.state)),
                    )
                })
                .collect(),
            failing: status
                .failures
                .iter()
                .map(|failure| failure.image.clone())
                .collect(),
            conditions: status
                .conditions
                .iter()
                .map(|condition| (condition.type_.clone(), condition.status.clone()))
                .collect(),
            // What is told of runs is chosen where they are recorded.
            pruned: status
                .prunes
                .iter()
                .map(|prune| (prune.uid.clone(), prune.clone()))
                .collect(),
            emergency: status
                .emergency
                .as_ref()
                .map(|emergency| (emergency.time.clone(), emergency.short_bytes > 0)),
            version: status.agent_version.clone(),
        }
    }

    /// What is new, and how many nodes may have the like: those of the largest prepull that changed, or `everybody`.
    /// `None` where nothing changed.
    pub(super) fn change(
        &self,
        new: &Essence,
        desired: &BTreeMap<String, u64>,
        everybody: u64,
    ) -> Option<News> {
        if self == new {
            return None;
        }
        let of = |uid: &String| desired.get(uid).copied().unwrap_or(0);
        let uids = self.prepulls.keys().chain(new.prepulls.keys());
        let changed: Vec<&String> = uids
            .filter(|uid| self.prepulls.get(*uid) != new.prepulls.get(*uid))
            .collect();
        let policies = self.pruned.keys().chain(new.pruned.keys());
        let pruned: Vec<&String> = policies
            .filter(|uid| self.pruned.get(*uid) != new.pruned.get(*uid))
            .collect();
        let works = |uid: &&String| {
            let state = new.prepulls.get(*uid).map(|(_, state)| *state);
            state == Some(HoldState::Pending)
        };
        // Conditions and failing images go along with what they are about.
        Some(
            match changed.iter().chain(&pruned).map(|uid| of(uid)).max() {
                Some(nodes) if self.version == new.version => News {
                    nodes,
                    begun: pruned.is_empty() && changed.iter().all(works),
                },
                _ => News {
                    nodes: everybody,
                    begun: false,
                },
            },
        )
    }
}

fn settled(state: HoldState) -> HoldState {
    match state {
        HoldState::Pending | HoldState::Pulling => HoldState::Pending,
        HoldState::Ready | HoldState::Failed | HoldState::Skipped => state,
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;

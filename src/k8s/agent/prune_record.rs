//! What became of each policy on this node, and what of that is told. Kept over restarts, so that no run is done twice
//! and none is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use super::prepull::later;
use super::prune_policy::PrunePolicy;
use super::seam::PruneFault;
use crate::k8s::api::{PruneReport, PruneState, PruneTop};
use crate::prune::{Plan, Removal};

/// Images that a report names.
const TOP: usize = 5;
/// Texts of a report, as its schema has them.
const MAX_IMAGE: usize = 512;
const MAX_RULE: usize = 128;
const MAX_MESSAGE: usize = 256;
/// How many images would go changes now and then; so often it is told, at most.
const TOLD_APART: Duration = Duration::from_secs(600);
/// The rest rides along: bytes, and times of runs that had nothing to do.
const TOLD_ANYWAY: Duration = Duration::from_secs(6 * 3600);
/// Images whose namespaces are remembered.
const MAX_DECLARED: usize = 10_000;

/// Everything that outlives a restart.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Memory {
    /// By uid of the policy.
    pub(super) records: BTreeMap<String, Record>,
    /// Namespaces whose `ImagePrepull`s declared an image, by the image's id.
    pub(super) namespaces: BTreeMap<String, BTreeSet<String>>,
    /// The band of the disk that pulls do not enter.
    pub(super) reserved: u64,
}

/// What became of one policy.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Record {
    /// As it is now.
    pub(super) now: PruneReport,
    /// As it was told last, and when that was.
    pub(super) told: PruneReport,
    told_at: Option<Timestamp>,
    /// When the last run, or dry run, of the revision ended.
    pub(super) last: Option<Timestamp>,
    /// The end of the window that it was in.
    pub(super) window: Option<Timestamp>,
    /// A run that has begun, and not ended.
    pub(super) run: Option<Run>,
}

/// A run under way.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Run {
    /// So far.
    pub(super) removed: u32,
    /// So far.
    pub(super) freed: u64,
    /// The largest so far.
    pub(super) top: Vec<PruneTop>,
    /// What is being removed: whether it was is seen after a restart.
    pub(super) current: Option<Current>,
}

/// A removal under way.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Current {
    /// Of the image.
    pub(super) id: String,
    /// What it is to free.
    pub(super) entry: PruneTop,
}

impl Memory {
    /// Forgets policies that do not choose this node any more, and takes new revisions up.
    pub(super) fn follow(&mut self, policies: &[PrunePolicy]) {
        self.records
            .retain(|uid, _| policies.iter().any(|policy| policy.uid == *uid));
        for policy in policies {
            let record = self.records.entry(policy.uid.clone()).or_default();
            if record.now.revision != policy.revision {
                // What the last revision removed stays told until this one removes something.
                record.now = PruneReport {
                    uid: policy.uid.clone(),
                    policy: policy.name.chars().take(253).collect(),
                    revision: policy.revision.clone(),
                    removed_images: record.now.removed_images,
                    freed_bytes: record.now.freed_bytes,
                    last_run_time: record.now.last_run_time.clone(),
                    ..PruneReport::default()
                };
                record.last = None;
                record.window = None;
                record.run = None;
            }
        }
    }

    /// Remembers who declared images, and forgets what is known of images that are gone.
    pub(super) fn declared(
        &mut self,
        declared: &BTreeMap<String, BTreeSet<String>>,
        held: &BTreeSet<&str>,
    ) {
        self.namespaces.retain(|id, _| held.contains(id.as_str()));
        for (id, namespaces) in declared {
            let known = self.namespaces.contains_key(id);
            if held.contains(id.as_str()) && (known || self.namespaces.len() < MAX_DECLARED) {
                let all = self.namespaces.entry(id.clone()).or_default();
                all.extend(namespaces.iter().cloned());
            }
        }
    }
}

impl Record {
    /// Nothing is known of what may go.
    pub(super) fn faulted(&mut self, fault: &PruneFault) {
        self.now.state = PruneState::Failed;
        self.now.reason = fault.reason.to_owned();
        self.now.message = fault.message.chars().take(MAX_MESSAGE).collect();
    }

    /// What would go.
    pub(super) fn rehearsed(&mut self, plan: &Plan, policy: &str, done: bool, now: Timestamp) {
        let mine: Vec<&Removal> = removals(plan, policy).collect();
        self.now.would_remove_images = i64::try_from(mine.len()).unwrap_or(i64::MAX);
        let bytes = mine.iter().map(|removal| removal.bytes);
        self.now.would_free_bytes = signed(bytes.fold(0, u64::saturating_add));
        self.now.top = Vec::new();
        for removal in mine {
            keep_largest(&mut self.now.top, entry(removal));
        }
        self.now.reason = String::new();
        self.now.message = String::new();
        self.last = Some(now);
        if done {
            self.now.state = PruneState::Done;
            self.now.last_run_time = Some(seconds(now));
        } else {
            self.now.state = PruneState::Pending;
        }
    }

    /// A run ended.
    pub(super) fn ended(&mut self, fault: Option<&PruneFault>, now: Timestamp) {
        let run = self.run.take().unwrap_or_default();
        self.last = Some(now);
        self.now.last_run_time = Some(seconds(now));
        self.now.would_remove_images = 0;
        self.now.would_free_bytes = 0;
        if run.removed > 0 {
            self.now.removed_images = run.removed.into();
            self.now.freed_bytes = signed(run.freed);
            self.now.top = run.top;
        } else if self.now.state != PruneState::Done {
            self.now.top = Vec::new();
        }
        match fault {
            Some(fault) => self.faulted(fault),
            None => {
                self.now.state = PruneState::Done;
                self.now.reason = String::new();
                self.now.message = String::new();
            }
        }
    }

    /// What to tell. Something that removed images, or a new state, is told at once; what would go, and runs without
    /// anything to do, seldom.
    pub(super) fn tell(&mut self, now: Timestamp) -> PruneReport {
        let turn = |report: &PruneReport| {
            (
                report.revision.clone(),
                report.state,
                report.reason.clone(),
                report.removed_images,
                report.freed_bytes,
            )
        };
        let rested = |pause| {
            self.told_at
                .is_none_or(|at| at > now || later(at, pause) <= now)
        };
        let due = turn(&self.told) != turn(&self.now)
            || rested(TOLD_ANYWAY)
            || (rested(TOLD_APART)
                && self.told.would_remove_images != self.now.would_remove_images);
        if self.told != self.now && due {
            self.told = self.now.clone();
            self.told_at = Some(now);
        }
        self.told.clone()
    }
}

impl Run {
    /// One more is removed.
    pub(super) fn removed(&mut self, mut entry: PruneTop, freed: u64) {
        self.current = None;
        self.removed = self.removed.saturating_add(1);
        self.freed = self.freed.saturating_add(freed);
        entry.bytes = signed(freed);
        keep_largest(&mut self.top, entry);
    }

    /// After a restart: whether the removal under way had happened.
    pub(super) fn resume(&mut self, held: &BTreeSet<&str>) {
        if let Some(current) = self.current.take()
            && !held.contains(current.id.as_str())
        {
            let freed = u64::try_from(current.entry.bytes).unwrap_or(0);
            self.removed(current.entry, freed);
        }
    }
}

/// Removals of one policy.
pub(super) fn removals<'a>(plan: &'a Plan, policy: &str) -> impl Iterator<Item = &'a Removal> {
    let all = plan.remove.iter();
    all.filter(move |removal| removal.policy == policy)
}

/// As reports name it.
pub(super) fn entry(removal: &Removal) -> PruneTop {
    let name = removal.names.first().unwrap_or(&removal.id);
    PruneTop {
        image: name.chars().take(MAX_IMAGE).collect(),
        rule: removal.rule.chars().take(MAX_RULE).collect(),
        bytes: signed(removal.bytes),
    }
}

fn keep_largest(top: &mut Vec<PruneTop>, entry: PruneTop) {
    let place = top.partition_point(|other| other.bytes >= entry.bytes);
    if place < TOP {
        top.insert(place, entry);
        top.truncate(TOP);
    }
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The API keeps whole seconds: what is read back must be what was written.
pub(super) fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::reason;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn removal(id: &str, policy: &str, bytes: u64) -> Removal {
        Removal {
            id: id.to_owned(),
            names: vec![format!("r.io/{id}:1")],
            policy: policy.to_owned(),
            rule: "keepLast 1".to_owned(),
            reason: String::new(),
            bytes,
        }
    }

    #[test]
    fn a_rehearsal_counts_one_policys_removals_and_names_the_largest() {
        let mut plan = Plan::default();
        for (number, bytes) in [3, 9, 1, 7, 5, 8, 2].into_iter().enumerate() {
            plan.remove.push(removal(&number.to_string(), "p", bytes));
        }
        plan.remove.push(removal("other", "q", 100));
        let mut record = Record::default();
        record.rehearsed(&plan, "p", true, at(5));
        assert_eq!(record.now.would_remove_images, 7);
        assert_eq!(record.now.would_free_bytes, 35);
        let bytes: Vec<i64> = record.now.top.iter().map(|top| top.bytes).collect();
        assert_eq!(bytes, [9, 8, 7, 5, 3]);
        assert_eq!(record.now.state, PruneState::Done);
        record.rehearsed(&Plan::default(), "p", false, at(6));
        assert_eq!(record.now.state, PruneState::Pending);
        assert!(record.now.top.is_empty());
    }

    #[test]
    fn a_killed_run_goes_on_where_it_was() {
        let mut run = Run::default();
        run.removed(entry(&removal("a", "p", 10)), 11);
        run.current = Some(Current {
            id: "b".to_owned(),
            entry: entry(&removal("b", "p", 20)),
        });
        let mut gone = run.clone();
        gone.resume(&BTreeSet::from(["c"]));
        assert_eq!((gone.removed, gone.freed), (2, 31));
        let mut still = run;
        still.resume(&BTreeSet::from(["b", "c"]));
        assert_eq!((still.removed, still.freed), (1, 11));
        assert_eq!(still.current, None);
    }

    #[test]
    fn what_matters_is_told_at_once_and_the_rest_seldom() {
        let mut record = Record::default();
        record.now.revision = "r".to_owned();
        assert_eq!(record.tell(at(0)).revision, "r");
        record.now.would_remove_images = 5;
        assert_eq!(record.tell(at(10)).would_remove_images, 0);
        assert_eq!(record.tell(at(600)).would_remove_images, 5);
        record.now.would_free_bytes = 5;
        assert_eq!(record.tell(at(1200)).would_free_bytes, 0);
        assert_eq!(record.tell(at(600 + 6 * 3600)).would_free_bytes, 5);
        record.run = Some(Run {
            removed: 2,
            freed: 9,
            ..Run::default()
        });
        record.ended(None, at(30_001));
        assert_eq!(record.tell(at(30_001)).removed_images, 2);
        record.ended(None, at(30_010));
        let told = record.tell(at(30_010));
        assert_eq!(told.last_run_time, Some(Time(at(30_001))));
        assert_eq!((told.removed_images, told.freed_bytes), (2, 9));
        record.faulted(&PruneFault {
            reason: reason::RUNTIME_UNAVAILABLE,
            message: "m".repeat(1000),
        });
        let told = record.tell(at(30_011));
        assert_eq!(told.state, PruneState::Failed);
        assert_eq!(told.message.len(), MAX_MESSAGE);
        // A clock that was set back keeps nothing from being told.
        record.now.would_free_bytes = 77;
        assert_eq!(record.tell(at(-5)).would_free_bytes, 77);
    }

    #[test]
    fn namespaces_are_remembered_as_long_as_the_image_is_there() {
        let mut memory = Memory::default();
        let declared = |id: &str, namespace: &str| {
            BTreeMap::from([(id.to_owned(), BTreeSet::from([namespace.to_owned()]))])
        };
        let held = BTreeSet::from(["a", "b"]);
        memory.declared(&declared("a", "one"), &held);
        memory.declared(&declared("a", "two"), &held);
        memory.declared(&declared("c", "one"), &held);
        assert_eq!(memory.namespaces.len(), 1);
        assert_eq!(memory.namespaces["a"].len(), 2);
        memory.declared(&BTreeMap::new(), &BTreeSet::from(["b"]));
        assert!(memory.namespaces.is_empty());
    }
}

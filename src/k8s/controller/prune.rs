//! Prune policies on the board: revisions, waves and counts as prepulls have them, without anything to resolve.
//!
//! Policies are few: all of them are walked over where prepulls would be searched.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;

use super::board::Effect;
use super::declared::is_newer_or_same;
use super::nodes::{Id, Nodes, id};
use super::pace::{Bucket, write_cost};
use super::prune_status::{self, Facts, difference, is_complete, notes};
use super::rollout::{self, Hold, Moment, Room, Terms, Turn, Wake};
use super::seats::Seats;
use super::status::Difference;
use super::status_writes::{StatusWrites, TOGETHER, Written};
use super::steps::Steps;
use crate::k8s::api::{
    ALL, ImagePrunePolicy, ImagePrunePolicySpec, ImagePrunePolicyStatus, NOBODY, Rollout,
    RolloutStatus, SharedPrepullSpec, parse_duration,
};

/// Writes under way.
const MOST_WRITES: usize = 8;
/// Pause where too much is under way already.
const BUSY: Duration = Duration::from_millis(250);
/// The shortest pause between two looks that nothing caused.
const AGAIN: Duration = Duration::from_millis(50);

/// A policy as it was last read.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) version: String,
    /// Being deleted: left alone.
    ending: bool,
    pub(super) spec: ImagePrunePolicySpec,
    pub(super) status: ImagePrunePolicyStatus,
}

impl From<ImagePrunePolicy> for Declared {
    fn from(object: ImagePrunePolicy) -> Self {
        let meta = object.meta();
        Declared {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            ending: meta.deletion_timestamp.is_some(),
            spec: object.spec,
            status: object.status.unwrap_or_default(),
        }
    }
}

/// A status to write.
#[derive(Clone, Debug)]
pub(super) struct PolicyWrite {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) status: ImagePrunePolicyStatus,
    /// The status that it replaces, and the last revision that every node had answered.
    before: ImagePrunePolicyStatus,
    completed: Option<String>,
}

/// A policy, and what this process adds to it.
#[derive(Debug)]
struct Policy {
    declared: Declared,
    id: Id,
    revision: String,
    /// Which nodes, in the words of seats.
    selector: SharedPrepullSpec,
    seats: Seats,
    steps: Steps,
    /// The revision that every node has answered at least once.
    completed: Option<String>,
    writes: StatusWrites,
    due: Option<Instant>,
    looked: Option<Instant>,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PruneTotals {
    pub(super) policies: u64,
    pub(super) desired: u64,
    pub(super) admitted: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) unreachable: u64,
}

/// All policies, by name.
#[derive(Debug, Default)]
pub(super) struct Policies {
    all: BTreeMap<String, Policy>,
    pub(super) writing: usize,
}

impl Policies {
    /// Takes a policy in, unless what is known of it is newer.
    pub(super) fn apply(&mut self, declared: Declared, nodes: &Nodes, now: Instant) {
        if let Some(known) = self.all.get_mut(&declared.name) {
            let (old, new) = (&known.declared, &declared);
            if !is_newer_or_same((&new.uid, &new.version), (&old.uid, &old.version)) {
                return;
            }
            if known.declared.uid == declared.uid {
                known.replace(declared, nodes, now);
                known.mark(now);
                return;
            }
        }
        // New, or deleted and made again while nobody looked.
        let mut policy = Policy::new(declared, nodes, now);
        policy.mark(now);
        self.all.insert(policy.declared.name.clone(), policy);
    }

    /// A policy is gone.
    pub(super) fn remove(&mut self, name: &str) {
        self.all.remove(name);
    }

    /// Names of all.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.all.keys().map(String::as_str)
    }

    /// A node appeared, changed or went; `replaced` is the uid that it had before.
    pub(super) fn node_changed(
        &mut self,
        number: u32,
        replaced: Option<&str>,
        nodes: &Nodes,
        now: Instant,
    ) {
        for policy in self.all.values_mut() {
            let removed = replaced.is_some_and(|uid| policy.seats.remove(number, uid));
            if policy.seats.update(number, &policy.selector, nodes) || removed {
                policy.mark_soon(now);
            }
        }
    }

    /// A node reported something else on these, or its report is gone.
    pub(super) fn report_changed(
        &mut self,
        number: u32,
        changed: &[Id],
        nodes: &Nodes,
        now: Instant,
    ) {
        for policy in self.all.values_mut() {
            if changed.contains(&policy.id) {
                policy.seats.update(number, &policy.selector, nodes);
                policy.mark_soon(now);
            }
        }
    }

    /// All are to be looked at.
    pub(super) fn mark_all(&mut self, now: Instant) {
        for policy in self.all.values_mut() {
            policy.mark_soon(now);
        }
    }

    /// When the next one is to be looked at.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.all.values().filter_map(|policy| policy.due).min()
    }

    /// Looks at those that are due.
    pub(super) fn step(
        &mut self,
        nodes: &Nodes,
        writes: &mut Bucket,
        moment: Moment,
    ) -> Vec<Effect> {
        let now = moment.now;
        let mut effects = Vec::new();
        for policy in self.all.values_mut() {
            if policy.due.is_none_or(|due| due > now) {
                continue;
            }
            policy.due = None;
            policy.looked = Some(now);
            if policy.declared.ending || policy.writes.under_way {
                continue;
            }
            let mut wake = Wake(None);
            let (status, difference) = policy.look(nodes, moment, &mut wake);
            if difference != Difference::None {
                let urgent = difference == Difference::Turn;
                let due = policy.writes.due(now, policy.seats.len(), urgent);
                if due > now {
                    wake.at(due);
                } else if self.writing >= MOST_WRITES {
                    wake.at(now + BUSY);
                } else if let Err(later) = writes.take(write_cost(nodes.len()), now) {
                    wake.at(later);
                } else {
                    self.writing += 1;
                    policy.writes.under_way = true;
                    effects.push(Effect::WritePolicy(Box::new(PolicyWrite {
                        name: policy.declared.name.clone(),
                        uid: policy.declared.uid.clone(),
                        version: policy.declared.version.clone(),
                        status,
                        before: policy.declared.status.clone(),
                        completed: policy.completed.clone(),
                    })));
                }
            }
            if let Some(at) = wake.0 {
                policy.mark(at.max(now + AGAIN));
            }
        }
        effects
    }

    /// A write ended.
    pub(super) fn written(
        &mut self,
        write: &PolicyWrite,
        written: Written<Declared>,
        nodes: &Nodes,
        jitter: f64,
        now: Instant,
    ) -> Vec<Effect> {
        self.writing = self.writing.saturating_sub(1);
        let known = self.all.get_mut(&write.name);
        let Some(policy) = known.filter(|policy| policy.declared.uid == write.uid) else {
            return Vec::new();
        };
        policy.writes.ended(&written, jitter, now);
        let mut effects = Vec::new();
        let fresh = match written {
            Written::Done(declared) => {
                let told = notes(&write.before, &declared, write.completed.as_deref());
                effects.extend(told.into_iter().map(Effect::Note));
                Some(declared)
            }
            Written::Conflict(declared) => declared,
            Written::Gone | Written::Failed => None,
        };
        policy.mark(now);
        if let Some(declared) = fresh {
            self.apply(*declared, nodes, now);
        }
        effects
    }

    /// Numbers for metrics, as the statuses have them.
    pub(super) fn totals(&self) -> PruneTotals {
        let mut totals = PruneTotals::default();
        for policy in self.all.values() {
            let nodes = &policy.declared.status.nodes;
            let add = |total: &mut u64, number: i64| *total += u64::try_from(number).unwrap_or(0);
            totals.policies += 1;
            add(&mut totals.desired, nodes.desired);
            add(&mut totals.admitted, nodes.admitted);
            add(&mut totals.done, nodes.done);
            add(&mut totals.failed, nodes.failed);
            add(&mut totals.unreachable, nodes.unreachable);
        }
        totals
    }
}

impl Policy {
    fn new(declared: Declared, nodes: &Nodes, now: Instant) -> Self {
        let revision = declared.spec.revision();
        let selector = selector(&declared.spec);
        let mut policy = Policy {
            id: id(&declared.uid),
            seats: Seats::new(&declared.uid, &revision, &selector, nodes),
            revision,
            selector,
            steps: Steps::default(),
            completed: None,
            writes: StatusWrites::default(),
            due: None,
            looked: None,
            declared,
        };
        policy.observe(now);
        policy
    }

    /// The object changed.
    fn replace(&mut self, declared: Declared, nodes: &Nodes, now: Instant) {
        let revision = declared.spec.revision();
        let selector = selector(&declared.spec);
        if revision != self.revision {
            self.steps.clear();
        }
        if revision != self.revision || selector != self.selector {
            self.seats = Seats::new(&declared.uid, &revision, &selector, nodes);
        }
        self.revision = revision;
        self.selector = selector;
        self.declared = declared;
        self.observe(now);
    }

    /// Remembers what the status says of the past.
    fn observe(&mut self, now: Instant) {
        let status = &self.declared.status;
        let rollout = status.rollout.as_ref();
        if let Some(rollout) = rollout.filter(|rollout| rollout.revision == self.revision) {
            if is_complete(status, self.declared.generation) {
                self.completed = Some(rollout.revision.clone());
            }
            self.steps.observe(rollout.admitted, now);
        }
    }

    /// The status as it should be.
    fn look(
        &self,
        nodes: &Nodes,
        moment: Moment,
        wake: &mut Wake,
    ) -> (ImagePrunePolicyStatus, Difference) {
        let (spec, before) = (&self.declared.spec, &self.declared.status);
        let generation = self.declared.generation;
        let held = before.rollout.clone();
        let (mut rollout, turn) = match held.filter(|held| held.revision == self.revision) {
            Some(held) if held.observed_generation == generation => (held, Turn::Current),
            Some(held) => (held, Turn::Observed),
            None => {
                let new = RolloutStatus {
                    revision: self.revision.clone(),
                    admitted: NOBODY,
                    start_time: Some(Time(moment.wall)),
                    ..RolloutStatus::default()
                };
                (new, Turn::New)
            }
        };
        rollout.observed_generation = generation;
        let room = Room {
            seats: &self.seats,
            nodes,
            steps: &self.steps,
        };
        let default = Rollout::default();
        let terms = Terms {
            rollout: spec.rollout.as_ref().unwrap_or(&default),
            window: spec.schedule.as_ref().and_then(|s| s.window.as_ref()),
            invalid: self.invalid(),
            complete: self.completed.as_ref() == Some(&self.revision),
            last_write: self.writes.last,
        };
        let (counts, hold) = if spec.enforces() {
            rollout::proceed(&terms, room, &mut rollout, turn, moment, wake)
        } else {
            // Nothing is removed, so nobody has to wait.
            rollout.admitted = ALL;
            let hold = terms.invalid.map_or(Hold::None, Hold::Invalid);
            (room.count(ALL, moment.now), hold)
        };
        let after = prune_status::status(&Facts {
            declared: &self.declared,
            id: self.id,
            rollout,
            counts,
            hold,
            seats: &self.seats,
            nodes,
            now: moment.wall,
        });
        let difference = difference(before, &after);
        (after, difference)
    }

    /// A value that passed the schema of an older version, or of none, and means nothing.
    fn invalid(&self) -> Option<String> {
        let spec = &self.declared.spec;
        if let Err(fault) = spec.policy(&self.declared.name) {
            return Some(fault.to_string());
        }
        let deadline = spec.rollout.as_ref().and_then(|r| r.deadline.as_deref());
        let interval = spec.schedule.as_ref().and_then(|s| s.interval.as_deref());
        for (field, text) in [
            ("rollout.deadline", deadline),
            ("schedule.interval", interval),
        ] {
            if let Some(Err(error)) = text.map(parse_duration) {
                return Some(format!("{field}: {error}"));
            }
        }
        None
    }

    /// To be looked at again, together with what else changes just now.
    fn mark_soon(&mut self, now: Instant) {
        let last = self.looked;
        self.mark(last.map_or(now, |last| now.max(last + TOGETHER)));
    }

    fn mark(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |before| before.min(at)));
    }
}

fn selector(spec: &ImagePrunePolicySpec) -> SharedPrepullSpec {
    SharedPrepullSpec {
        node_selector: spec.node_selector.clone(),
        ..SharedPrepullSpec::default()
    }
}

//! Everything the controller knows, and what follows from it. Does no io and reads no clock: changes and instants go
//! in, [`Effect`]s come out, and whoever runs it carries them out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::declared::{Declared, Key};
use super::desk::{Answer, Desk, Errand, Question};
use super::emergencies::Emergencies;
use super::gate::Opening;
use super::lookups::ImageFault;
use super::malformed::{Fault, Malformed};
use super::nodes::{Change, Id, NodeView, Nodes, id};
use super::notes::{Note, notes};
use super::pace::Bucket;
use super::prepull::Prepull;
use super::prune::{self, Policies, PolicyWrite};
use super::rollout::Moment;
use super::status_writes::{TOGETHER, Written};
use crate::image::Digest;
use crate::k8s::agent::WantCredentials;
use crate::k8s::api::{
    ClusterWorkload, NodeFacts, NodeImageCache, PrepullStatus, SecretRef, condition,
};

/// How often the clock is asked who became unreachable.
const REFRESH: Duration = Duration::from_secs(15);
/// Writes under way.
const MOST_WRITES: usize = 16;
/// Readings of workloads and secrets under way.
const MOST_GATHERINGS: usize = 8;

/// Something to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Write a status, if the object is still the version that it was made from.
    Write(Box<Write>),
    /// The same, of a prune policy.
    WritePolicy(Box<PolicyWrite>),
    /// Read workloads and secrets.
    Gather(Gather),
    /// Ask a registry.
    Ask(Errand),
    /// Let pods onto a node.
    Open(Opening),
    /// Tell people.
    Note(Note),
    /// Say in an object's status that it cannot be read.
    Condemn(Fault),
}

/// A status to write.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) prepull: u32,
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) status: PrepullStatus,
    /// The status that it replaces, and the last revision that every node had answered: what is news is told once the
    /// write is done, and by then the watch may have brought it back.
    pub(super) before: PrepullStatus,
    pub(super) completed: Option<String>,
}

/// Objects to read for a prepull.
#[derive(Clone, Debug)]
pub(super) struct Gather {
    pub(super) prepull: u32,
    pub(super) uid: Id,
    pub(super) generation: i64,
    pub(super) workloads: Vec<ClusterWorkload>,
    pub(super) secrets: Vec<SecretRef>,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathered {
    /// Images of the workloads.
    pub(super) images: Vec<String>,
    /// Workloads that are not there.
    pub(super) faults: Vec<ImageFault>,
    /// In the order of the spec.
    pub(super) credentials: Vec<WantCredentials>,
    /// Secrets that could not be used, with the reason for people.
    pub(super) missing: Vec<String>,
    /// Something could not be read for a reason that may pass.
    pub(super) again: bool,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) prepulls: u64,
    pub(super) stalled: u64,
    pub(super) unresolved: u64,
    pub(super) desired: u64,
    pub(super) admitted: u64,
    pub(super) ready: u64,
    pub(super) failed: u64,
    pub(super) unreachable: u64,
}

/// The board.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) nodes: Nodes,
    prepulls: Vec<Option<Prepull>>,
    by_key: HashMap<Key, u32>,
    by_uid: HashMap<Id, u32>,
    due: BTreeSet<(Instant, u32)>,
    pub(super) policies: Policies,
    pub(super) desk: Desk,
    pub(super) malformed: Malformed,
    emergencies: Emergencies,
    pub(super) writes: Bucket,
    pub(super) writing: usize,
    pub(super) gathering: usize,
    refreshed: Instant,
    leading: bool,
    random: u64,
}

impl Board {
    /// Knows nothing yet. `seed` makes its pauses differ from those of other replicas.
    pub(super) fn new(now: Instant, seed: u64) -> Self {
        Board {
            nodes: Nodes::default(),
            prepulls: Vec::new(),
            by_key: HashMap::new(),
            by_uid: HashMap::new(),
            due: BTreeSet::new(),
            policies: Policies::default(),
            desk: Desk::default(),
            malformed: Malformed::default(),
            emergencies: Emergencies::default(),
            writes: Bucket::for_writes(now),
            writing: 0,
            gathering: 0,
            refreshed: now,
            leading: false,
            random: seed | 1,
        }
    }

    /// Between 0 and 1.
    pub(super) fn jitter(&mut self) -> f64 {
        // Xorshift: pauses need no better randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether to act, or only to follow.
    pub(super) fn lead(&mut self, leading: bool, now: Instant) {
        if std::mem::replace(&mut self.leading, leading) != leading && leading {
            self.mark_all(now);
            self.malformed.again(now);
        }
    }

    pub(super) fn is_leading(&self) -> bool {
        self.leading
    }

    /// A prepull cannot be read. It is left alone until it can be: a status would be made of an old spec.
    pub(super) fn malformed_prepull(&mut self, fault: Fault, now: Instant) {
        if let Some(number) = self.by_key.get(&fault.key).copied()
            && let Some(prepull) = self.get_mut(number)
        {
            prepull.unreadable = true;
        }
        self.malformed.found(fault, now);
    }

    /// Takes a prepull in, unless what is known of it is newer.
    pub(super) fn apply_prepull(&mut self, declared: Declared, now: Instant) {
        let known = self.by_key.get(&declared.key).copied();
        if let Some(number) = known
            && let Some(prepull) = self.get(number)
        {
            if !declared.is_newer_or_same(&prepull.declared) {
                return;
            }
            if prepull.declared.uid != declared.uid {
                // Deleted and made again while nobody looked.
                self.remove_prepull(&declared.key);
            }
        }
        self.malformed.forget(&declared.key);
        let number = match self.by_key.get(&declared.key) {
            Some(number) => {
                let number = *number;
                let nodes = &self.nodes;
                if let Some(Some(prepull)) = self.prepulls.get_mut(number as usize) {
                    prepull.replace(declared, nodes, now);
                }
                number
            }
            None => self.insert(declared, now),
        };
        self.mark(number, now);
    }

    fn insert(&mut self, declared: Declared, now: Instant) -> u32 {
        let (key, uid) = (declared.key.clone(), id(&declared.uid));
        let prepull = Prepull::new(declared, &self.nodes, now);
        let free = self.prepulls.iter().position(Option::is_none);
        let at = free.unwrap_or(self.prepulls.len());
        match self.prepulls.get_mut(at) {
            Some(place) => *place = Some(prepull),
            None => self.prepulls.push(Some(prepull)),
        }
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        self.by_key.insert(key, number);
        self.by_uid.insert(uid, number);
        number
    }

    /// A prepull is gone.
    pub(super) fn remove_prepull(&mut self, key: &Key) {
        self.malformed.forget(key);
        let Some(number) = self.by_key.remove(key) else {
            return;
        };
        if let Some(place) = self.prepulls.get_mut(number as usize)
            && let Some(prepull) = place.take()
        {
            self.by_uid.remove(&prepull.id);
            if let Some(due) = prepull.due {
                self.due.remove(&(due, number));
            }
        }
    }

    /// Keys of all prepulls of a kind.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.by_key.keys().cloned().collect()
    }

    /// Takes a Node in.
    pub(super) fn apply_node(&mut self, view: NodeView, now: Instant, wall: Timestamp) {
        let (number, change, before) = self.nodes.apply_node(view, now, wall);
        match change {
            Change::Facts => self.node_changed(number, before.as_ref(), now),
            Change::Reach => self.reach_changed(now),
            Change::None | Change::Report => {}
        }
    }

    /// A Node is gone.
    pub(super) fn remove_node(&mut self, name: &str, now: Instant) {
        if let Some((number, facts)) = self.nodes.remove_node(name) {
            self.node_changed(number, Some(&facts), now);
        }
    }

    fn node_changed(&mut self, number: u32, before: Option<&NodeFacts>, now: Instant) {
        let uid = self
            .nodes
            .get(number)
            .and_then(|entry| Some(entry.node.as_ref()?.facts.uid.clone()));
        let replaced = before.filter(|before| uid.as_ref() != Some(&before.uid));
        let before_uid = replaced.map(|before| before.uid.as_str());
        self.policies
            .node_changed(number, before_uid, &self.nodes, now);
        let mut marked = Vec::new();
        for (at, place) in self.prepulls.iter_mut().enumerate() {
            let Some(prepull) = place else { continue };
            let removed = replaced.is_some_and(|before| prepull.seats.remove(number, &before.uid));
            let updated = prepull
                .seats
                .update(number, &prepull.declared.spec, &self.nodes);
            // A gate looks at labels and taints that choose nothing.
            if removed || updated || prepull.declared.gate.is_some() {
                marked.extend(u32::try_from(at));
            }
        }
        for number in marked {
            self.mark_soon(number, now);
        }
    }

    fn reach_changed(&mut self, now: Instant) {
        self.policies.mark_all(now);
        for number in self.numbers() {
            self.mark_soon(number, now);
        }
    }

    /// Takes a report in.
    pub(super) fn apply_report(&mut self, object: NodeImageCache, now: Instant) {
        self.emergencies.seen(&object);
        let mut changed = Vec::new();
        let (number, change) = self.nodes.apply_report(object, now, |id| changed.push(id));
        self.report_changed(number, &changed, now);
        if change == Change::Reach {
            self.reach_changed(now);
        }
    }

    /// A report is gone.
    pub(super) fn remove_report(&mut self, name: &str, now: Instant) {
        self.emergencies.forget(name);
        let mut changed = Vec::new();
        if let Some(number) = self.nodes.remove_report(name, |id| changed.push(id)) {
            self.report_changed(number, &changed, now);
        }
    }

    fn report_changed(&mut self, number: u32, changed: &[Id], now: Instant) {
        self.policies
            .report_changed(number, changed, &self.nodes, now);
        for id in changed {
            let Some(at) = self.by_uid.get(id).copied() else {
                continue;
            };
            if let Some(Some(prepull)) = self.prepulls.get_mut(at as usize) {
                prepull
                    .seats
                    .update(number, &prepull.declared.spec, &self.nodes);
                self.mark_soon(at, now);
            }
        }
    }

    /// Workloads and secrets were read.
    pub(super) fn gathered(&mut self, gather: &Gather, gathered: Gathered, now: Instant) {
        self.gathering = self.gathering.saturating_sub(1);
        let jitter = self.jitter();
        if let Some(prepull) = self.get_mut(gather.prepull)
            && prepull.id == gather.uid
        {
            prepull.gathered(gather.generation, gathered, now, jitter);
            self.mark(gather.prepull, now);
        }
    }

    /// A registry answered.
    pub(super) fn answered(&mut self, question: &Question, answer: &Answer, now: Instant) {
        for (number, image) in self.desk.done(question, answer, now) {
            self.tell(number, &image, answer, now);
        }
    }

    pub(super) fn tell(
        &mut self,
        number: u32,
        image: &str,
        answer: &Result<Digest, super::seam::ResolveFailure>,
        now: Instant,
    ) {
        let jitter = self.jitter();
        if let Some(prepull) = self.get_mut(number) {
            prepull.answer(image, answer, now, jitter);
            self.mark(number, now);
        }
    }

    /// A write ended.
    pub(super) fn written(
        &mut self,
        write: &Write,
        written: Written<Declared>,
        now: Instant,
    ) -> Vec<Effect> {
        self.writing = self.writing.saturating_sub(1);
        let jitter = self.jitter();
        let Some(prepull) = self
            .get_mut(write.prepull)
            .filter(|prepull| prepull.declared.uid == write.uid)
        else {
            return Vec::new();
        };
        prepull.writes.ended(&written, jitter, now);
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
        let number = write.prepull;
        if let Some(declared) = fresh {
            self.apply_prepull(*declared, now);
        }
        self.mark(number, now);
        effects
    }

    /// Takes a prune policy in, unless what is known of it is newer.
    pub(super) fn apply_policy(&mut self, declared: prune::Declared, now: Instant) {
        self.policies.apply(declared, &self.nodes, now);
    }

    /// A write of a prune policy ended.
    pub(super) fn policy_written(
        &mut self,
        write: &PolicyWrite,
        written: Written<prune::Declared>,
        now: Instant,
    ) -> Vec<Effect> {
        let jitter = self.jitter();
        self.policies
            .written(write, written, &self.nodes, jitter, now)
    }

    /// Everything that is to be done now.
    pub(super) fn step(&mut self, now: Instant, wall: Timestamp) -> Vec<Effect> {
        if now.saturating_duration_since(self.refreshed) >= REFRESH {
            self.refreshed = now;
            if self.nodes.refresh(now) {
                self.reach_changed(now);
            }
        }
        let mut effects = Vec::new();
        while let Some((at, number)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, number));
            if let Some(prepull) = self.get_mut(number) {
                prepull.due = None;
            }
            if self.leading {
                self.reconcile(number, now, wall, &mut effects);
            }
        }
        if self.leading {
            let moment = Moment { now, wall };
            effects.extend(self.policies.step(&self.nodes, &mut self.writes, moment));
        }
        effects.extend(self.desk.start(now).into_iter().map(Effect::Ask));
        if self.leading {
            effects.extend(self.malformed.due(now).into_iter().map(Effect::Condemn));
            effects.extend(self.emergencies.take(wall).map(Effect::Note));
        }
        effects
    }

    /// When to step next, if nothing happens before.
    pub(super) fn wake(&self) -> Instant {
        let refresh = self.refreshed + REFRESH;
        self.due
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(self.desk.wake())
            .chain(self.policies.wake())
            .chain(self.malformed.wake())
            .fold(refresh, Instant::min)
    }

    /// Numbers for metrics, as the statuses have them.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for prepull in self.prepulls.iter().flatten() {
            let status = &prepull.declared.status;
            let nodes = &status.nodes;
            let is = |type_: &str, value: &str| {
                let mut conditions = status.conditions.iter();
                conditions.any(|one| one.type_ == type_ && one.status == value)
            };
            totals.stalled += u64::from(is(condition::STALLED, "True"));
            totals.unresolved += u64::from(is(condition::RESOLVED, "False"));
            let add = |total: &mut u64, number: i64| *total += u64::try_from(number).unwrap_or(0);
            totals.prepulls += 1;
            add(&mut totals.desired, nodes.desired);
            add(&mut totals.admitted, nodes.admitted);
            add(&mut totals.ready, nodes.ready);
            add(&mut totals.failed, nodes.failed);
            add(&mut totals.unreachable, nodes.unreachable);
        }
        totals
    }

    pub(super) fn may_write(&self) -> bool {
        self.writing < MOST_WRITES
    }

    pub(super) fn may_gather(&self) -> bool {
        self.gathering < MOST_GATHERINGS
    }

    pub(super) fn get(&self, number: u32) -> Option<&Prepull> {
        self.prepulls.get(number as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Prepull> {
        self.prepulls.get_mut(number as usize)?.as_mut()
    }

    /// Takes a prepull out, so that it and the rest can both be changed; to be put back.
    pub(super) fn take(&mut self, number: u32) -> Option<Prepull> {
        self.prepulls.get_mut(number as usize)?.take()
    }

    pub(super) fn put_back(&mut self, number: u32, prepull: Prepull) {
        if let Some(place) = self.prepulls.get_mut(number as usize) {
            *place = Some(prepull);
        }
    }

    fn numbers(&self) -> Vec<u32> {
        self.by_key.values().copied().collect()
    }

    fn mark_all(&mut self, now: Instant) {
        self.policies.mark_all(now);
        for number in self.numbers() {
            self.mark(number, now);
        }
    }

    /// To be looked at again, together with what else changes just now.
    fn mark_soon(&mut self, number: u32, now: Instant) {
        let last = self.get(number).and_then(|prepull| prepull.reconciled);
        let at = last.map_or(now, |last| now.max(last + TOGETHER));
        self.mark(number, at);
    }

    /// To be looked at again at `at`, or before.
    pub(super) fn mark(&mut self, number: u32, at: Instant) {
        let Some(prepull) = self.get_mut(number) else {
            return;
        };
        let before = prepull.due;
        if before.is_some_and(|before| before <= at) {
            return;
        }
        prepull.due = Some(at);
        if let Some(before) = before {
            self.due.remove(&(before, number));
        }
        self.due.insert((at, number));
    }
}

/// No credentials.
pub(super) fn anonymous() -> Arc<[WantCredentials]> {
    Arc::from([])
}

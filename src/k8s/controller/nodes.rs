//! Nodes and their reports, kept as small as they can be: what a rollout must know of 5,000 of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde::Deserialize;

use super::pruned::{self, MAX_PRUNES, Pruned};
use super::wave::Progress;
use crate::k8s::api::{
    HoldState, MAX_REPORTED, NodeFacts, NodeImageCache, PruneState, Taint, reason,
};

/// A node that is not ready for so long is unreachable, unless its agent spoke meanwhile.
pub(super) const UNREACHABLE_AFTER: Duration = Duration::from_secs(600);
/// Failures of one report; the schema has the same limit.
const MAX_FAULTS: usize = 10;
pub(super) const MAX_MESSAGE: usize = 256;

/// A number that stands for a uid, or a revision.
pub(super) type Id = u64;

/// Uids and revisions are only ever compared: 64 bits of a hash tell millions of them apart.
pub(super) fn id(text: &str) -> Id {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes()
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The part of a Node that is read: its images, addresses and capacity are never decoded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeView {
    pub(super) metadata: ObjectMeta,
    spec: SpecView,
    status: StatusView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SpecView {
    taints: Vec<TaintView>,
    unschedulable: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TaintView {
    key: String,
    effect: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct StatusView {
    conditions: Vec<ConditionView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConditionView {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    last_transition_time: Option<Timestamp>,
}

impl Resource for NodeView {
    type DynamicType = ();
    type Scope = kube::core::ClusterResourceScope;
    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        Node::kind(&())
    }
    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        Node::group(&())
    }
    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        Node::version(&())
    }
    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        Node::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct NodeInfo {
    pub(super) facts: NodeFacts,
    pub(super) created: Option<Timestamp>,
    /// Since when it is not ready.
    unready_since: Option<Instant>,
    first_seen: Instant,
}

/// What a node reports of one prepull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) prepull: Id,
    pub(super) revision: Id,
    pub(super) progress: Progress,
    /// Place in [`REASONS`], to keep this small.
    reason: u8,
}

/// An image that a node could not pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// 0 where the report names no prepull.
    pub(super) prepull: Id,
    pub(super) image: Box<str>,
    pub(super) reason: &'static str,
    pub(super) message: Box<str>,
}

/// What a node reports.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// Uid of the Node that owns it, where it has an owner.
    owner: Option<Box<str>>,
    /// Of prepulls and prune policies; sorted by `prepull`, which is the uid of either.
    held: Box<[Held]>,
    /// Sorted by policy.
    pruned: Box<[Pruned]>,
    pub(super) faults: Box<[Fault]>,
    changed: Instant,
}

/// What is known under one node's name.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) node: Option<NodeInfo>,
    pub(super) report: Option<Report>,
    /// As of the last [`Nodes::refresh`].
    pub(super) unreachable: bool,
}

/// All of them. Numbers of entries are stable as long as either half of an entry is there.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    by_name: HashMap<Box<str>, u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl NodeInfo {
    /// From a Node. Readiness counts by this process's clock from when it was seen to change; only for a node seen for
    /// the first time the API server's word on the past is taken.
    fn new(view: NodeView, before: Option<&NodeInfo>, now: Instant, wall: Timestamp) -> Self {
        let NodeView {
            metadata,
            spec,
            status,
        } = view;
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let uid = metadata.uid.unwrap_or_default();
        let before = before.filter(|before| before.facts.uid == uid);
        let unready_since = match (ready, before) {
            (Some(condition), _) if condition.status == "True" => None,
            (_, Some(before)) => Some(before.unready_since.unwrap_or(now)),
            (Some(condition), None) => {
                let past = condition
                    .last_transition_time
                    .map(|time| wall.duration_since(time))
                    .and_then(|past| Duration::try_from(past).ok())
                    .unwrap_or_default();
                Some(now.checked_sub(past).unwrap_or(now))
            }
            // A Node that nobody reports on yet.
            (None, None) => Some(now),
        };
        NodeInfo {
            facts: NodeFacts {
                name: metadata.name.unwrap_or_default(),
                uid,
                labels: metadata.labels.unwrap_or_default(),
                taints: spec
                    .taints
                    .into_iter()
                    .map(|taint| Taint {
                        key: taint.key,
                        effect: taint.effect,
                    })
                    .collect(),
                unschedulable: spec.unschedulable,
            },
            created: metadata.creation_timestamp.map(|time| time.0),
            unready_since,
            first_seen: before.map_or(now, |before| before.first_seen),
        }
    }
}

impl Report {
    /// From a NodeImageCache, within the limits of its schema.
    fn new(object: NodeImageCache, now: Instant) -> Self {
        let owner = object
            .metadata
            .owner_references
            .unwrap_or_default()
            .into_iter()
            .find(|owner| owner.kind == "Node")
            .map(|owner| owner.uid.into_boxed_str());
        let status = object.status.unwrap_or_default();
        let mut held: Vec<Held> = status
            .prepulls
            .iter()
            .take(MAX_REPORTED)
            .map(|held| Held {
                prepull: id(&held.uid),
                revision: id(&held.revision),
                progress: match held.state {
                    HoldState::Ready | HoldState::Skipped => Progress::Ready,
                    HoldState::Failed => Progress::Failed,
                    HoldState::Pending | HoldState::Pulling => Progress::Working,
                },
                reason: REASONS
                    .iter()
                    .position(|known| *known == held.reason)
                    .and_then(|at| u8::try_from(at).ok())
                    .unwrap_or(u8::MAX),
            })
            .collect();
        held.extend(status.prunes.iter().take(MAX_PRUNES).map(|prune| Held {
            prepull: id(&prune.uid),
            revision: id(&prune.revision),
            progress: match prune.state {
                PruneState::Done => Progress::Ready,
                PruneState::Failed => Progress::Failed,
                PruneState::Pending => Progress::Working,
            },
            // The rest of the report says it.
            reason: u8::MAX,
        }));
        held.sort_by_key(|held| held.prepull);
        held.dedup_by_key(|held| held.prepull);
        let faults = status
            .failures
            .into_iter()
            .take(MAX_FAULTS)
            .map(|failure| Fault {
                prepull: match failure.prepull.as_str() {
                    "" => 0,
                    uid => id(uid),
                },
                image: failure.image.into_boxed_str(),
                reason: known_reason(&failure.reason),
                message: failure
                    .message
                    .chars()
                    .take(MAX_MESSAGE)
                    .collect::<String>()
                    .into(),
            })
            .collect();
        Report {
            owner,
            held: held.into_boxed_slice(),
            pruned: pruned::all(status.prunes),
            faults,
            changed: now,
        }
    }

    pub(super) fn held(&self, prepull: Id) -> Option<&Held> {
        let at = self
            .held
            .binary_search_by_key(&prepull, |held| held.prepull);
        self.held.get(at.ok()?)
    }

    pub(super) fn pruned(&self, policy: Id) -> Option<&Pruned> {
        let at = self
            .pruned
            .binary_search_by_key(&policy, |pruned| pruned.policy);
        self.pruned.get(at.ok()?)
    }

    fn same(&self, other: &Report) -> bool {
        self.owner == other.owner
            && self.held == other.held
            && self.pruned == other.pruned
            && self.faults == other.faults
    }
}

/// The closed set of what nodes report.
const REASONS: [&str; 12] = [
    reason::NOT_FOUND,
    reason::UNAUTHORIZED,
    reason::RATE_LIMITED,
    reason::REGISTRY_UNAVAILABLE,
    reason::TIMEOUT,
    reason::INSUFFICIENT_SPACE,
    reason::PLATFORM_MISSING,
    reason::INVALID_IMAGE,
    reason::SECRET_MISSING,
    reason::STORE_ERROR,
    reason::RUNTIME_UNAVAILABLE,
    reason::INVALID_SPEC,
];

impl Held {
    /// Why it is not ready.
    pub(super) fn reason(&self) -> &'static str {
        REASONS
            .get(usize::from(self.reason))
            .copied()
            .unwrap_or(reason::UNKNOWN)
    }
}

/// A reason of the closed set; agents may be newer than we are.
pub(super) fn known_reason(text: &str) -> &'static str {
    REASONS
        .into_iter()
        .find(|known| *known == text)
        .unwrap_or(reason::UNKNOWN)
}

impl Entry {
    /// The report, if it is of this very node and not of one that had its name before.
    pub(super) fn own_report(&self) -> Option<&Report> {
        let (node, report) = (self.node.as_ref()?, self.report.as_ref()?);
        let own = report
            .owner
            .as_deref()
            .is_none_or(|owner| owner == node.facts.uid);
        own.then_some(report)
    }

    /// How far the node is with a revision of a prepull.
    pub(super) fn progress(&self, prepull: Id, revision: Id) -> Progress {
        self.own_report()
            .and_then(|report| report.held(prepull))
            .filter(|held| held.revision == revision)
            .map_or(Progress::Working, |held| held.progress)
    }

    fn is_unreachable(&self, now: Instant) -> bool {
        let Some(node) = &self.node else {
            return false;
        };
        let long = |since: Instant| now.saturating_duration_since(since) >= UNREACHABLE_AFTER;
        match self.own_report() {
            Some(report) => node.unready_since.is_some_and(long) && long(report.changed),
            None => node.unready_since.is_some_and(long) || long(node.first_seen),
        }
    }
}

/// What a change means to prepulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// Which prepulls choose the node may have changed.
    Facts,
    /// Whether it is reachable may have changed.
    Reach,
    /// The report may count otherwise now.
    Report,
}

impl Nodes {
    pub(super) fn get(&self, number: u32) -> Option<&Entry> {
        self.entries.get(usize::try_from(number).ok()?)
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(number).ok()?)
    }

    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Names under which anything is known.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.by_name.iter().map(|(name, number)| (&**name, *number))
    }

    /// Nodes that exist.
    pub(super) fn existing(&self) -> impl Iterator<Item = (u32, &Entry, &NodeInfo)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(number, entry)| {
                Some((u32::try_from(number).ok()?, entry, entry.node.as_ref()?))
            })
    }

    /// How many exist, or are reported on.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    fn entry(&mut self, name: &str) -> u32 {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_name.insert(name.into(), number);
        number
    }

    fn tidy(&mut self, name: &str, number: u32) {
        let empty = self
            .get(number)
            .is_some_and(|entry| entry.node.is_none() && entry.report.is_none());
        if empty {
            self.by_name.remove(name);
            self.free.push(number);
            if let Some(entry) = self.get_mut(number) {
                entry.unreachable = false;
            }
        }
    }

    /// Takes a Node in. The first is its number, the second the facts that were known before, if they changed.
    pub(super) fn apply_node(
        &mut self,
        view: NodeView,
        now: Instant,
        wall: Timestamp,
    ) -> (u32, Change, Option<NodeFacts>) {
        let number = self.entry(view.metadata.name.as_deref().unwrap_or_default());
        let Some(entry) = self.get_mut(number) else {
            return (number, Change::None, None);
        };
        let node = NodeInfo::new(view, entry.node.as_ref(), now, wall);
        let before = entry.node.replace(node);
        let unreachable = entry.is_unreachable(now);
        let reach = std::mem::replace(&mut entry.unreachable, unreachable) != unreachable;
        let facts = entry.node.as_ref().map(|node| &node.facts);
        if before.as_ref().map(|before| &before.facts) != facts {
            return (number, Change::Facts, before.map(|before| before.facts));
        }
        let change = if reach { Change::Reach } else { Change::None };
        (number, change, None)
    }

    /// A Node is gone.
    pub(super) fn remove_node(&mut self, name: &str) -> Option<(u32, NodeFacts)> {
        let number = self.number(name)?;
        let entry = self.get_mut(number)?;
        let node = entry.node.take()?;
        entry.unreachable = false;
        self.tidy(name, number);
        Some((number, node.facts))
    }

    /// Takes a report in. Prepulls of which it says something else than before are told to `changed`.
    pub(super) fn apply_report(
        &mut self,
        object: NodeImageCache,
        now: Instant,
        changed: impl FnMut(Id),
    ) -> (u32, Change) {
        let number = self.entry(object.metadata.name.as_deref().unwrap_or_default());
        let Some(entry) = self.get_mut(number) else {
            return (number, Change::None);
        };
        let report = Report::new(object, now);
        if entry.report.as_ref().is_some_and(|old| old.same(&report)) {
            // Written again all the same: the agent lives.
            entry.report = Some(report);
        } else {
            let old = entry.report.replace(report);
            differences(old.as_ref(), entry.report.as_ref(), changed);
        }
        let unreachable = entry.is_unreachable(now);
        let reach = std::mem::replace(&mut entry.unreachable, unreachable) != unreachable;
        (number, if reach { Change::Reach } else { Change::Report })
    }

    /// A report is gone.
    pub(super) fn remove_report(&mut self, name: &str, changed: impl FnMut(Id)) -> Option<u32> {
        let number = self.number(name)?;
        let entry = self.get_mut(number)?;
        let old = entry.report.take()?;
        differences(Some(&old), None, changed);
        self.tidy(name, number);
        Some(number)
    }

    /// Looks at the clock: who is unreachable now. True if anybody's state changed.
    pub(super) fn refresh(&mut self, now: Instant) -> bool {
        let mut any = false;
        for entry in &mut self.entries {
            let unreachable = entry.is_unreachable(now);
            any |= std::mem::replace(&mut entry.unreachable, unreachable) != unreachable;
        }
        any
    }
}

/// Prepulls of which two reports differ. Faults count for the prepull that they name, or for all.
fn differences(old: Option<&Report>, new: Option<&Report>, mut changed: impl FnMut(Id)) {
    let held = |report: Option<&Report>| report.map_or(&[][..], |report| &report.held).to_vec();
    let faults = |report: Option<&Report>| report.map_or(&[][..], |report| &report.faults).to_vec();
    let (old_held, new_held) = (held(old), held(new));
    let owner = |report: Option<&Report>| report.and_then(|report| report.owner.clone());
    let all = owner(old) != owner(new);
    let (old_faults, new_faults) = (faults(old), faults(new));
    let mut ids: Vec<Id> = Vec::new();
    let differing = |one: &[Held], other: &[Held], ids: &mut Vec<Id>| {
        for held in one {
            let same = other
                .binary_search_by_key(&held.prepull, |held| held.prepull)
                .ok()
                .and_then(|at| other.get(at))
                .is_some_and(|other| other == held);
            if all || !same {
                ids.push(held.prepull);
            }
        }
    };
    differing(&old_held, &new_held, &mut ids);
    differing(&new_held, &old_held, &mut ids);
    let of = |report: Option<&Report>, policy| report.and_then(|r| r.pruned(policy)).cloned();
    for report in [old, new].into_iter().flatten() {
        let policies = report.pruned.iter().map(|pruned| pruned.policy);
        ids.extend(policies.filter(|policy| all || of(old, *policy) != of(new, *policy)));
    }
    for (one, other) in [(&old_faults, &new_faults), (&new_faults, &old_faults)] {
        for fault in one.iter().filter(|fault| !other.contains(fault)) {
            match fault.prepull {
                0 => ids.extend(new_held.iter().chain(&old_held).map(|held| held.prepull)),
                prepull => ids.push(prepull),
            }
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().for_each(&mut changed);
}

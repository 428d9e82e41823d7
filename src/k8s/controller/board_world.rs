//! A server, registries and agents in memory around a board, with a clock that is turned by hand.
#![allow(clippy::needless_pass_by_value)]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::board::{Board, Effect, Gathered, Write};
use super::declared::Declared;
use super::desk::Answer;
use super::malformed::Fault;
use super::nodes::NodeView;
use super::notes::Note;
use super::seam::ResolveFailure;
use super::status_writes::Written;
use crate::image::Digest;
use crate::k8s::api::{
    ClusterImagePrepull, HeldPrepull, HoldState, NodeImageCache, PrepullStatus, reason, slot,
};

/// Everything outside the board.
pub(super) struct World {
    pub(super) board: Board,
    pub(super) now: Instant,
    pub(super) wall: Timestamp,
    pub(super) version: u64,
    pub(super) objects: BTreeMap<String, ClusterImagePrepull>,
    /// Node's uid by name.
    pub(super) nodes: BTreeMap<String, String>,
    pub(super) reports: BTreeMap<String, BTreeMap<String, HeldPrepull>>,
    pub(super) tags: HashMap<String, Answer>,
    pub(super) writes: Vec<Write>,
    pub(super) notes: Vec<Note>,
    pub(super) condemned: Vec<Fault>,
    pub(super) opened: Vec<(String, bool)>,
    pub(super) asked: usize,
    /// Writes are lost.
    pub(super) broken: bool,
}

impl World {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let mut board = Board::new(now, 7);
        board.lead(true, now);
        World {
            board,
            now,
            wall: "2026-11-21T12:00:00Z".parse().unwrap(),
            version: 0,
            objects: BTreeMap::new(),
            nodes: BTreeMap::new(),
            reports: BTreeMap::new(),
            tags: HashMap::new(),
            writes: Vec::new(),
            notes: Vec::new(),
            condemned: Vec::new(),
            opened: Vec::new(),
            asked: 0,
            broken: false,
        }
    }

    pub(super) fn tag(&mut self, image: &str, content: &str) {
        let digest = Digest::sha256(content.as_bytes());
        self.tags.insert(image.to_owned(), Ok(digest));
    }

    pub(super) fn fail(&mut self, image: &str, reason: &'static str) {
        let failure = ResolveFailure {
            reason,
            message: "no".to_owned(),
            retry_after: None,
        };
        self.tags.insert(image.to_owned(), Err(failure));
    }

    pub(super) fn apply(&mut self, name: &str, spec: serde_json::Value) {
        self.version += 1;
        let before = self.objects.get(name);
        let generation = before.map_or(1, |object| object.metadata.generation.unwrap() + 1);
        let mut object: ClusterImagePrepull = serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull",
            "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": generation,
                "resourceVersion": self.version.to_string()},
            "spec": spec,
        }))
        .unwrap();
        object.status = before.and_then(|object| object.status.clone());
        self.objects.insert(name.to_owned(), object.clone());
        self.board.apply_prepull(object.into(), self.now);
    }

    pub(super) fn view(&self, name: &str, uid: &str, more: serde_json::Value) -> NodeView {
        let mut node = json!({
            "metadata": {"name": name, "uid": uid, "labels": {"pool": "a"}, "creationTimestamp": self.wall},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (key, value) in more.as_object().unwrap() {
            node[key.as_str()] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    pub(super) fn node(&mut self, name: &str, uid: &str, more: serde_json::Value) {
        let view = self.view(name, uid, more);
        self.nodes.insert(name.to_owned(), uid.to_owned());
        self.board.apply_node(view, self.now, self.wall);
    }

    pub(super) fn nodes(&mut self, count: usize) {
        for number in 0..count {
            let name = format!("n{number}");
            self.node(&name, &format!("node-{number}"), json!({}));
            // Its agent lives, and has nothing to tell.
            self.reports.entry(name.clone()).or_default();
            self.send_report(&name, json!([]));
        }
    }

    pub(super) fn unready(&mut self, name: &str) {
        let uid = self.nodes[name].clone();
        let more = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        let view = self.view(name, &uid, more);
        self.board.apply_node(view, self.now, self.wall);
    }

    pub(super) fn report(&mut self, node: &str, prepull: &str, state: HoldState) {
        let revision = self.status(prepull).rollout.unwrap().revision;
        let held = HeldPrepull {
            uid: format!("uid-{prepull}"),
            revision,
            state,
            ..HeldPrepull::default()
        };
        let reports = self.reports.entry(node.to_owned()).or_default();
        reports.insert(prepull.to_owned(), held);
        self.send_report(node, json!([]));
    }

    pub(super) fn send_report(&mut self, node: &str, failures: serde_json::Value) {
        let held: Vec<&HeldPrepull> = self.reports[node].values().collect();
        let report: NodeImageCache = serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "NodeImageCache",
            "metadata": {"name": node, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": node, "uid": self.nodes[node]}]},
            "status": {"prepulls": held, "failures": failures},
        }))
        .unwrap();
        self.board.apply_report(report, self.now);
    }

    pub(super) fn status(&self, name: &str) -> PrepullStatus {
        self.objects[name].status.clone().unwrap_or_default()
    }

    /// Nodes that may work on the present revision of a prepull and have not reported an end.
    pub(super) fn working(&self, name: &str) -> Vec<String> {
        let object = &self.objects[name];
        let Some(rollout) = self.status(name).rollout else {
            return Vec::new();
        };
        if Some(rollout.observed_generation) != object.metadata.generation {
            return Vec::new();
        }
        let ended = |node: &String| {
            let held = self.reports.get(node).and_then(|held| held.get(name));
            held.is_some_and(|held| held.revision == rollout.revision)
        };
        let uid = format!("uid-{name}");
        self.nodes
            .iter()
            .filter(|(_, node)| slot(node, &uid, &rollout.revision) <= rollout.admitted)
            .map(|(node, _)| node.clone())
            .filter(|node| !ended(node))
            .collect()
    }

    /// Carries out everything until nothing is due at this instant.
    pub(super) fn settle(&mut self) {
        for _ in 0..1000 {
            let effects = self.board.step(self.now, self.wall);
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
        panic!("the board does not come to rest");
    }

    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Write(write) => {
                let written = self.write(&write);
                let more = self.board.written(&write, written, self.now);
                self.writes.push(*write);
                more.into_iter().for_each(|effect| self.carry_out(effect));
            }
            Effect::Gather(gather) => {
                self.board.gathered(&gather, Gathered::default(), self.now);
            }
            Effect::Ask(errand) => {
                self.asked += 1;
                let image = errand.question.reference.familiar();
                let answer = self.tags.get(&image).cloned().unwrap_or_else(|| {
                    Err(ResolveFailure {
                        reason: reason::NOT_FOUND,
                        message: "no such tag".to_owned(),
                        retry_after: None,
                    })
                });
                self.board.answered(&errand.question, &answer, self.now);
            }
            Effect::Open(opening) => self.opened.push((opening.node, opening.late)),
            // Policies have a world of their own.
            Effect::WritePolicy(_) => {}
            Effect::Note(note) => self.notes.push(note),
            Effect::Condemn(fault) => self.condemned.push(fault),
        }
    }

    pub(super) fn write(&mut self, write: &Write) -> Written<Declared> {
        if self.broken {
            return Written::Failed;
        }
        let Some(object) = self.objects.get_mut(&write.key.name) else {
            return Written::Gone;
        };
        if object.metadata.resource_version.as_ref() != Some(&write.version) {
            return Written::Conflict(Some(Box::new(object.clone().into())));
        }
        self.version += 1;
        object.metadata.resource_version = Some(self.version.to_string());
        object.status = Some(write.status.clone());
        Written::Done(Box::new(object.clone().into()))
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let wake = self.board.wake();
            if wake > end {
                break;
            }
            let step = wake.saturating_duration_since(self.now);
            self.now += step;
            self.wall += SignedDuration::try_from(step).unwrap();
        }
        self.wall += SignedDuration::try_from(end - self.now).unwrap();
        self.now = end;
        self.settle();
    }

    /// Another replica takes over, which has only what the server has.
    pub(super) fn fail_over(&mut self) {
        let mut board = Board::new(self.now, 99);
        for object in self.objects.values() {
            board.apply_prepull(object.clone().into(), self.now);
        }
        std::mem::swap(&mut self.board, &mut board);
        for (name, uid) in self.nodes.clone() {
            self.node(&name, &uid, json!({}));
        }
        for node in self.reports.keys().cloned().collect::<Vec<_>>() {
            self.send_report(&node, json!([]));
        }
        self.board.lead(true, self.now);
    }

    pub(super) fn reasons(&self) -> Vec<&'static str> {
        self.notes.iter().map(|note| note.reason).collect()
    }
}

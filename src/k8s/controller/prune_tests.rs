//! Prune policies from the object to the last node, with a clock that is turned by hand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::board::{Board, Effect};
use super::notes::Note;
use super::status_writes::Written;
use crate::k8s::api::{
    ALL, ImagePrunePolicy, ImagePrunePolicyStatus, NodeImageCache, PruneReport, PruneState, slot,
};

const NODES: usize = 20;

struct World {
    board: Board,
    now: Instant,
    wall: Timestamp,
    version: u64,
    objects: BTreeMap<String, ImagePrunePolicy>,
    reports: BTreeMap<String, BTreeMap<String, PruneReport>>,
    notes: Vec<Note>,
    writes: usize,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut board = Board::new(now, 7);
        board.lead(true, now);
        let mut world = World {
            board,
            now,
            wall: "2026-11-21T12:00:00Z".parse().unwrap(),
            version: 0,
            objects: BTreeMap::new(),
            reports: BTreeMap::new(),
            notes: Vec::new(),
            writes: 0,
        };
        for number in 0..NODES {
            let pool = if number < 5 { "a" } else { "b" };
            let view = json!({
                "metadata": {"name": format!("n{number}"), "uid": format!("node-{number}"), "labels": {"pool": pool}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            });
            world
                .board
                .apply_node(serde_json::from_value(view).unwrap(), world.now, world.wall);
            world.send(&format!("n{number}"));
        }
        world
    }

    fn apply(&mut self, name: &str, spec: &Value) {
        self.version += 1;
        let before = self.objects.get(name);
        let generation = before.map_or(1, |object| object.metadata.generation.unwrap() + 1);
        let mut object: ImagePrunePolicy = serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrunePolicy",
            "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": generation,
                "resourceVersion": self.version.to_string()},
            "spec": spec,
        }))
        .unwrap();
        object.status = before.and_then(|object| object.status.clone());
        self.objects.insert(name.to_owned(), object.clone());
        self.board.apply_policy(object.into(), self.now);
    }

    fn status(&self, name: &str) -> ImagePrunePolicyStatus {
        self.objects[name].status.clone().unwrap_or_default()
    }

    fn send(&mut self, node: &str) {
        let number = node.trim_start_matches('n');
        let reports = self.reports.entry(node.to_owned()).or_default();
        let report: NodeImageCache = serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "NodeImageCache",
            "metadata": {"name": node, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": node, "uid": format!("node-{number}")}]},
            "status": {"prunes": reports.values().collect::<Vec<_>>()},
        }))
        .unwrap();
        self.board.apply_report(report, self.now);
    }

    fn report(&mut self, node: &str, policy: &str, more: impl FnOnce(&mut PruneReport)) {
        let revision = self.objects[policy].spec.revision();
        let report = self
            .reports
            .entry(node.to_owned())
            .or_default()
            .entry(policy.to_owned())
            .or_default();
        report.uid = format!("uid-{policy}");
        report.revision = revision;
        more(report);
        self.send(node);
    }

    /// Nodes that may act.
    fn admitted(&self, policy: &str) -> Vec<String> {
        let object = &self.objects[policy];
        let status = self.status(policy);
        let Some(rollout) = status.rollout else {
            return Vec::new();
        };
        if Some(rollout.observed_generation) != object.metadata.generation {
            return Vec::new();
        }
        let uid = format!("uid-{policy}");
        (0..NODES)
            .filter(|n| slot(&format!("node-{n}"), &uid, &rollout.revision) <= rollout.admitted)
            .map(|n| format!("n{n}"))
            .collect()
    }

    /// Admitted nodes that did not answer.
    fn working(&self, policy: &str) -> Vec<String> {
        let revision = self.objects[policy].spec.revision();
        let mut admitted = self.admitted(policy);
        admitted.retain(|node| {
            let report = self.reports.get(node).and_then(|all| all.get(policy));
            report.is_none_or(|report| {
                report.revision != revision || report.state == PruneState::Pending
            })
        });
        admitted
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for effect in self.board.step(self.now, self.wall) {
                self.carry_out(effect);
            }
            let wake = self.board.wake().max(self.now + Duration::from_millis(1));
            if wake > end {
                break;
            }
            self.wall += SignedDuration::try_from(wake - self.now).unwrap();
            self.now = wake;
        }
        self.wall += SignedDuration::try_from(end - self.now).unwrap();
        self.now = end;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::WritePolicy(write) => {
                self.writes += 1;
                self.version += 1;
                let object = self.objects.get_mut(&write.name).unwrap();
                let written = if object.metadata.resource_version.as_ref() == Some(&write.version) {
                    object.metadata.resource_version = Some(self.version.to_string());
                    object.status = Some(write.status.clone());
                    Written::Done(Box::new(object.clone().into()))
                } else {
                    Written::Conflict(Some(Box::new(object.clone().into())))
                };
                let more = self.board.policy_written(&write, written, self.now);
                more.into_iter().for_each(|effect| self.carry_out(effect));
            }
            Effect::Note(note) => self.notes.push(note),
            other => panic!("{other:?}"),
        }
    }

    fn condition(&self, policy: &str, type_: &str) -> String {
        let status = self.status(policy);
        let found = status.conditions.iter().find(|c| c.type_ == type_);
        found.map_or(String::new(), |c| format!("{} {}", c.status, c.reason))
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_dry_run_asks_all_nodes_at_once_and_adds_up_what_would_go() {
    let mut world = World::new();
    world.apply("all", &json!({"rules": [{"unusedFor": "1m"}]}));
    world.pass(SECOND);
    let status = world.status("all");
    assert_eq!(status.rollout.unwrap().admitted, ALL);
    assert_eq!(status.nodes.desired, NODES as i64);
    assert_eq!(
        world.condition("all", "Progressing"),
        "True RollingOut",
        "{:?}",
        world.status("all").conditions
    );
    for number in 0..NODES {
        world.report(&format!("n{number}"), "all", |report| {
            report.state = PruneState::Done;
            report.would_remove_images = 3;
            report.would_free_bytes = 300;
            report.top = serde_json::from_value(json!([
                {"image": "r.io/a:1", "rule": "unusedFor 1m", "bytes": 200},
                {"image": format!("r.io/{number}:1"), "rule": "unusedFor 1m", "bytes": 100},
            ]))
            .unwrap();
        });
    }
    world.pass(SECOND * 5);
    let status = world.status("all");
    assert_eq!(status.nodes.done, NODES as i64);
    assert_eq!(status.would_remove_images, 60);
    assert_eq!(status.would_free_bytes, 6000);
    assert_eq!(status.removed_images, 0);
    assert_eq!(status.top.len(), 10);
    assert_eq!(
        (status.top[0].nodes, status.top[0].bytes),
        (NODES as i64, 4000)
    );
    assert_eq!(world.condition("all", "Ready"), "True AllNodesReady");
    assert_eq!(world.condition("all", "Progressing"), "False Complete");
    let reasons: Vec<&str> = world.notes.iter().map(|note| note.reason).collect();
    assert_eq!(reasons, ["RolloutStarted", "RolloutComplete"]);
    assert!(world.notes[1].text.contains("60 images"));
    let before = world.writes;
    world.pass(SECOND * 3600);
    assert_eq!(world.writes, before, "nothing changed");
}

#[test]
fn enforcement_is_held_by_max_in_flight_and_the_failure_budget() {
    let mut world = World::new();
    world.apply(
        "all",
        &json!({"mode": "Enforce", "rules": [{"unusedFor": "1m"}], "rollout": {"maxInFlight": 2, "maxFailures": 1}}),
    );
    world.pass(SECOND * 5);
    assert_eq!(world.admitted("all").len(), 2);
    let mut failed = 0;
    for round in 0..100 {
        let working = world.working("all");
        assert!(working.len() <= 2, "{working:?}");
        let Some(node) = working.first() else { break };
        let fails = round % 4 == 3;
        failed += usize::from(fails);
        world.report(node, "all", |report| {
            report.removed_images = 2;
            report.freed_bytes = 20;
            report.state = PruneState::Done;
            if fails {
                report.state = PruneState::Failed;
                report.reason = "RuntimeUnavailable".to_owned();
                report.message = "not reached".to_owned();
            }
        });
        world.pass(SECOND * 5);
    }
    assert_eq!(failed, 2);
    let admitted = world.admitted("all").len();
    assert!(admitted <= 10, "{admitted}");
    assert_eq!(
        world.condition("all", "Stalled"),
        "True FailureBudgetExceeded"
    );
    let status = world.status("all");
    assert_eq!(status.failures[0].reason, "RuntimeUnavailable");
    assert_eq!(status.failures[0].nodes, 2);
    assert_eq!(status.removed_images, 2 * (admitted as i64));
    // They recover, and the rollout goes on to the end.
    for _ in 0..100 {
        for node in world.admitted("all") {
            world.report(&node, "all", |report| report.state = PruneState::Done);
        }
        world.pass(SECOND * 5);
    }
    assert_eq!(world.status("all").nodes.done, NODES as i64);
    assert_eq!(world.condition("all", "Stalled"), "False AsExpected");
    assert_eq!(world.condition("all", "Ready"), "True AllNodesReady");
}

#[test]
fn a_changed_rule_starts_over_and_a_pause_or_another_mode_holds_everybody() {
    let mut world = World::new();
    let spec = |mode: &str, unused: &str, paused: bool| {
        json!({"mode": mode, "nodeSelector": {"matchLabels": {"pool": "a"}}, "rules": [{"unusedFor": unused}],
            "rollout": {"maxInFlight": 5, "paused": paused}})
    };
    world.apply("one", &spec("Enforce", "1m", false));
    world.pass(SECOND * 5);
    assert_eq!(world.status("one").nodes.desired, 5);
    for node in world.admitted("one") {
        world.report(&node, "one", |report| report.state = PruneState::Done);
    }
    world.pass(SECOND * 5);
    assert_eq!(world.status("one").rollout.unwrap().admitted, ALL);
    // Nobody acts on the new rule before the controller lets them.
    world.apply("one", &spec("Enforce", "2m", true));
    assert!(world.admitted("one").is_empty());
    world.pass(SECOND * 60);
    assert!(world.admitted("one").is_empty());
    assert_eq!(world.condition("one", "Progressing"), "False Paused");
    world.apply("one", &spec("Enforce", "2m", false));
    world.pass(SECOND * 5);
    assert_eq!(
        world
            .admitted("one")
            .iter()
            .filter(|n| n.len() == 2 && n.as_str() < "n5")
            .count(),
        5
    );
    // Back to a rehearsal: another revision, which removes nothing.
    let enforced = world.status("one").rollout.unwrap().revision;
    world.apply("one", &spec("DryRun", "2m", false));
    world.pass(SECOND * 5);
    assert_ne!(world.status("one").rollout.unwrap().revision, enforced);
}

#[test]
fn a_spec_that_means_nothing_stalls_and_says_why() {
    let mut world = World::new();
    world.apply(
        "wrong",
        &json!({"mode": "Enforce", "rules": [{"minFree": "0%"}]}),
    );
    world.pass(SECOND * 5);
    assert!(world.admitted("wrong").is_empty());
    assert_eq!(world.condition("wrong", "Stalled"), "True InvalidSpec");
    let status = world.status("wrong");
    let stalled = status.conditions.iter().find(|c| c.type_ == "Stalled");
    assert!(stalled.unwrap().message.contains("rules[0].minFree"));
}

#[test]
fn policies_keep_out_of_each_others_way() {
    let mut world = World::new();
    let rule = json!([{"unusedFor": "1m"}]);
    let pool = |pool: &str| json!({"matchLabels": {"pool": pool}});
    let spec = |one: &str| json!({"mode": "Enforce", "nodeSelector": pool(one), "rules": rule, "rollout": {"maxInFlight": 1}});
    world.apply("a", &spec("a"));
    world.apply("b", &spec("b"));
    world.pass(SECOND * 5);
    assert_eq!(world.status("a").nodes.desired, 5);
    assert_eq!(world.status("b").nodes.desired, 15);
    assert_eq!(world.status("a").nodes.admitted, 1);
    assert_eq!(world.status("b").nodes.admitted, 1);
    world.board.policies.remove("a");
    world.pass(SECOND * 5);
    assert_eq!(world.board.policies.names().collect::<Vec<_>>(), ["b"]);
}

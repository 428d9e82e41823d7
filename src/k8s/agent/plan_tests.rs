//! What starts, in which order, and what waits.

use proptest::prelude::*;

use super::super::assign::{HeldRevision, Released, Why};
use super::super::prepull::{Identity, Terms};
use super::super::retry::Attempts;
use super::super::seam::PullFailure;
use super::*;
use crate::k8s::api;

fn unit(image: &str) -> Unit {
    Unit {
        image: image.to_owned(),
        ..Unit::default()
    }
}

fn hold(uid: &str, priority: i32, images: &[&str]) -> Hold {
    Hold {
        identity: Identity {
            uid: uid.to_owned(),
            ..Identity::default()
        },
        terms: Terms {
            priority,
            ..Terms::default()
        },
        next: Some(HeldRevision {
            units: images.iter().map(|image| unit(image)).collect(),
            ..HeldRevision::default()
        }),
        ..Hold::default()
    }
}

const LIMITS: Limits = Limits {
    per_node: 3,
    per_registry: 2,
};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-11-21T10:00:00Z")
}

struct Node {
    holds: Vec<Hold>,
    failures: Failures,
    running: BTreeSet<Unit>,
    held: BTreeSet<Unit>,
}

impl Node {
    fn new(holds: Vec<Hold>) -> Self {
        Node {
            holds,
            failures: Failures::new(),
            running: BTreeSet::new(),
            held: BTreeSet::new(),
        }
    }

    fn plan(&self) -> Plan {
        let work = Work {
            holds: &self.holds,
            failures: &self.failures,
            running: &self.running,
            limits: LIMITS,
        };
        plan(work, |_, unit| self.held.contains(unit), |_, _| None, now())
    }

    fn started(&self) -> Vec<String> {
        let plan = self.plan();
        plan.start
            .into_iter()
            .map(|start| start.unit.image)
            .collect()
    }

    fn fail(&mut self, image: &str, times: u32) {
        let failure = PullFailure {
            reason: api::reason::TIMEOUT,
            message: String::new(),
            retry_after: None,
        };
        for _ in 0..times {
            let before = self.failures.get(&unit(image));
            let after = Attempts::after(before, &failure, now(), 1.0);
            self.failures.insert(unit(image), after);
        }
    }
}

#[test]
fn priority_goes_first_and_limits_hold() {
    let mut node = Node::new(vec![
        hold("low", 0, &["a.io/1", "a.io/2", "b.io/1"]),
        hold("high", 5, &["c.io/1", "c.io/2", "c.io/3"]),
    ]);
    // Two of c.io at most, three in all.
    assert_eq!(node.started(), ["c.io/1", "c.io/2", "a.io/1"]);
    node.running = ["c.io/1", "c.io/2"].map(unit).into();
    assert_eq!(node.started(), ["a.io/1"]);
    node.running.insert(unit("a.io/1"));
    assert_eq!(node.started(), [""; 0]);
    node.running.clear();
    node.held = ["c.io/1", "c.io/2", "c.io/3", "a.io/1"].map(unit).into();
    assert_eq!(node.started(), ["a.io/2", "b.io/1"]);
}

#[test]
fn a_failed_image_waits_and_lets_others_go_first() {
    let mut node = Node::new(vec![hold("p", 0, &["a.io/1", "a.io/2", "a.io/3"])]);
    node.fail("a.io/1", 1);
    let plan = node.plan();
    assert_eq!(node.started(), ["a.io/2", "a.io/3"]);
    assert_eq!(plan.wake, Some(at("2026-11-21T10:00:02Z")));
    // Its time has come, but it is the last one.
    if let Some(attempts) = node.failures.get_mut(&unit("a.io/1")) {
        attempts.next = now();
    }
    assert_eq!(node.started(), ["a.io/2", "a.io/3"]);
    node.held = ["a.io/2", "a.io/3"].map(unit).into();
    assert_eq!(node.started(), ["a.io/1"]);
}

#[test]
fn each_attempt_shows_the_secrets_of_another_prepull_and_only_its() {
    let secret = |name: &str| api::SecretRef {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
    };
    let mut with = hold("a", 5, &["a.io/1"]);
    with.terms.secrets = vec![secret("mine")];
    let mut wide = hold("b", 0, &["a.io/1"]);
    wide.terms.node_wide = true;
    let mut node = Node::new(vec![wide, with]);
    let first = node.plan().start.remove(0);
    assert_eq!(
        (first.priority, first.secrets, first.node_wide),
        (5, vec![secret("mine")], false)
    );
    node.fail("a.io/1", 1);
    node.failures.get_mut(&unit("a.io/1")).unwrap().next = now();
    let second = node.plan().start.remove(0);
    assert_eq!(
        (second.priority, second.secrets, second.node_wide),
        (5, vec![], true)
    );
}

#[test]
fn windows_hold_back_what_has_not_begun() {
    let mut night = hold("p", 0, &["a.io/1", "a.io/2"]);
    let window = api::Window {
        start: "22:00".to_owned(),
        duration: "2h".to_owned(),
        days: Vec::new(),
    };
    night.terms.window = Some(api::TimeWindow::new(&window).unwrap());
    let mut node = Node::new(vec![night]);
    node.running.insert(unit("a.io/1"));
    let plan = node.plan();
    assert!(plan.start.is_empty() && plan.cancel.is_empty());
    assert_eq!(plan.wake, Some(at("2026-11-21T22:00:00Z")));
}

#[test]
fn nobody_pulls_for_a_release_and_its_end_wakes() {
    let mut released = hold("p", 0, &[]);
    released.held = hold("p", 0, &["a.io/1"]).next;
    released.next = None;
    released.terms.retain_seconds = 60;
    released.released = Some(Released {
        since: now(),
        why: Why::Deleted,
    });
    let mut node = Node::new(vec![released]);
    node.running.insert(unit("a.io/1"));
    let plan = node.plan();
    assert!(plan.start.is_empty());
    assert_eq!(plan.cancel, [unit("a.io/1")]);
    assert_eq!(plan.wake, Some(at("2026-11-21T10:01:00Z")));
}

#[test]
fn tags_of_files_are_pulled_again_digests_never() {
    let mut hold = hold("p", 0, &[]);
    let pulled = at("2026-11-21T09:00:00Z");
    let mut with = |seconds: u64, unit: Unit| {
        hold.terms.refresh_seconds = seconds;
        stale_at(&hold, &unit, pulled, 0.5)
    };
    assert_eq!(with(0, unit("a.io/1")), None);
    assert_eq!(with(3600, unit("a.io/1@sha256:0")), None);
    assert_eq!(with(3600, unit("a.io/1")), Some(at("2026-11-21T10:03:00Z")));
    let digest = Unit {
        digest: "sha256:0".to_owned(),
        ..unit("a.io/1")
    };
    assert_eq!(with(3600, digest), None);
}

proptest! {
    #[test]
    fn never_more_than_the_limits(
        wanted in proptest::collection::vec((0..4u8, 0..9u8, -3..3i32), 0..40),
        running in proptest::collection::btree_set((0..4u8, 0..9u8), 0..5),
        per_node in 0..4usize,
        per_registry in 0..4usize,
    ) {
        let name = |(registry, image): (u8, u8)| unit(&format!("r{registry}.io/{image}"));
        let holds: Vec<Hold> = wanted
            .iter()
            .enumerate()
            .map(|(at, (registry, image, priority))| {
                hold(&format!("p{at}"), *priority, &[&name((*registry, *image)).image])
            })
            .collect();
        let running: BTreeSet<Unit> = running.into_iter().map(name).collect();
        let failures = Failures::new();
        let limits = Limits { per_node, per_registry };
        let work = Work { holds: &holds, failures: &failures, running: &running, limits };
        let plan = plan(work, |_, _| false, |_, _| None, now());
        let going: Vec<&Unit> = running
            .iter()
            .filter(|unit| !plan.cancel.contains(unit))
            .chain(plan.start.iter().map(|start| &start.unit))
            .collect();
        prop_assert!(plan.start.len() <= per_node.saturating_sub(running.len()));
        for start in &plan.start {
            prop_assert!(!running.contains(&start.unit));
            let of_registry = |unit: &&&Unit| unit.registry() == start.unit.registry();
            prop_assert!(going.iter().filter(of_registry).count() <= per_registry);
        }
        let distinct: BTreeSet<&Unit> = plan.start.iter().map(|start| &start.unit).collect();
        prop_assert_eq!(distinct.len(), plan.start.len());
    }
}

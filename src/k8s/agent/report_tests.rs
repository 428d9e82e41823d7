//! What is reported, and what is worth a write.

use super::super::assign::{HeldRevision, Released, Why};
use super::super::plan::Limits;
use super::super::prepull::{Identity, Origin, Terms};
use super::super::retry::Failures;
use super::super::seam::{HeldImage, PullFailure};
use super::*;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn unit(image: &str) -> Unit {
    Unit {
        image: format!("r.io/{image}:1"),
        digest: DIGEST.to_owned(),
        platform: String::new(),
    }
}

fn hold(uid: &str, images: &[&str]) -> Hold {
    Hold {
        identity: Identity {
            uid: uid.to_owned(),
            name: uid.to_owned(),
            ..Identity::default()
        },
        desired: 100,
        next: Some(HeldRevision {
            id: "0123456789abcdef".to_owned(),
            units: images.iter().map(|image| unit(image)).collect(),
            ..HeldRevision::default()
        }),
        ..Hold::default()
    }
}

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

struct Node {
    holds: Vec<Hold>,
    failures: Failures,
    running: BTreeSet<Unit>,
    inventory: Inventory,
    figures: Figures,
    synced: Synced,
    pulls: Pulls,
    pruned: prune::Output,
}

impl Node {
    fn new(holds: Vec<Hold>) -> Self {
        Node {
            holds,
            failures: Failures::new(),
            running: BTreeSet::new(),
            inventory: Inventory::default(),
            figures: Figures {
                capacity_bytes: 1000,
                available_bytes: 500,
                healthy: true,
                ..Figures::default()
            },
            synced: Synced {
                synced: true,
                reason: "Synced",
                message: String::new(),
            },
            pulls: Pulls::new(),
            pruned: prune::Output::default(),
        }
    }

    fn has(&mut self, images: &[&str]) {
        let images: Vec<HeldImage> = images
            .iter()
            .map(|image| HeldImage {
                id: format!("sha256:{image}"),
                tags: vec![format!("r.io/{image}:1")],
                digests: vec![format!("r.io/{image}@{DIGEST}")],
                pinned: false,
                staged: false,
                size: 1,
            })
            .collect();
        self.inventory = Inventory::new(&images);
    }

    fn fail(&mut self, image: &str, reason: &'static str, times: u32) {
        let failure = PullFailure {
            reason,
            message: "m".to_owned(),
            retry_after: None,
        };
        for _ in 0..times {
            let before = self.failures.get(&unit(image));
            let after = Attempts::after(before, &failure, now(), 0.5);
            self.failures.insert(unit(image), after);
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            work: Work {
                holds: &self.holds,
                failures: &self.failures,
                running: &self.running,
                limits: Limits::default(),
            },
            inventory: Some(&self.inventory),
            pulls: &self.pulls,
            figures: Some(&self.figures),
            synced: &self.synced,
            pruned: &self.pruned,
        }
    }

    fn report(&self, before: &NodeImageCacheStatus, at: Timestamp) -> NodeImageCacheStatus {
        report(&self.facts(), before, at)
    }

    fn state(&self) -> (HoldState, usize, &'static str) {
        let progress = self.facts().progress(&self.holds[0], now());
        (progress.state, progress.ready, progress.reason)
    }
}

#[test]
fn states_follow_the_work() {
    let mut node = Node::new(vec![hold("p", &["a", "b"])]);
    assert_eq!(node.state(), (HoldState::Pending, 0, ""));
    node.running.insert(unit("a"));
    assert_eq!(node.state(), (HoldState::Pulling, 0, ""));
    node.running.clear();
    node.fail("a", reason::NOT_FOUND, 2);
    assert_eq!(node.state(), (HoldState::Pulling, 0, ""), "b is to come");
    node.has(&["b"]);
    assert_eq!(node.state(), (HoldState::Failed, 1, reason::NOT_FOUND));
    node.running.insert(unit("a"));
    assert_eq!(
        node.state(),
        (HoldState::Failed, 1, reason::NOT_FOUND),
        "until it is held"
    );
    node.has(&["a", "b"]);
    assert_eq!(node.state(), (HoldState::Ready, 2, ""));
    // Collected once is ready for good.
    let revision = node.holds[0].next.take();
    node.holds[0].held = revision;
    node.has(&[]);
    assert_eq!(node.state(), (HoldState::Pulling, 0, ""), "it is healed");
    node.holds[0].terms = Terms {
        once: true,
        ..Terms::default()
    };
    assert_eq!(node.state(), (HoldState::Ready, 2, ""));
}

#[test]
fn a_report_is_about_live_prepulls_of_the_api_server() {
    let mut file = hold("f", &["a"]);
    file.identity.origin = Origin::File("a.yaml".to_owned());
    let mut released = hold("r", &["a"]);
    released.released = Some(Released {
        since: now(),
        why: Why::Deleted,
    });
    let mut node = Node::new(vec![hold("p", &["a", "b"]), file, released]);
    node.has(&["a"]);
    node.fail("b", reason::UNAUTHORIZED, 2);
    let status = node.report(&NodeImageCacheStatus::default(), now());
    assert_eq!(status.prepulls.len(), 1);
    let held = &status.prepulls[0];
    assert_eq!(
        (
            held.uid.as_str(),
            held.ready,
            held.total,
            held.reason.as_str()
        ),
        ("p", 1, 2, "Unauthorized")
    );
    assert_eq!(status.failures.len(), 1);
    assert_eq!(status.failures[0].image, "r.io/b:1");
    assert_eq!(status.failures[0].prepull, "p");
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|c| (c.type_.as_str(), c.status.as_str()))
        .collect();
    assert_eq!(
        conditions,
        [
            ("Ready", "False"),
            ("StoreHealthy", "True"),
            ("DiskPressure", "False"),
            ("ApiSynced", "True")
        ]
    );
    let counts = node.facts().counts();
    assert_eq!((counts.ready, counts.failed), (1, 1));
}

#[test]
fn lists_are_bounded() {
    let many: Vec<Hold> = (0..MAX_REPORTED + 44)
        .map(|n| hold(&format!("p{n:04}"), &["a"]))
        .collect();
    let mut node = Node::new(many);
    let images: Vec<String> = (0..20).map(|n| format!("x{n}")).collect();
    let names: Vec<&str> = images.iter().map(String::as_str).collect();
    node.holds.push(hold("q", &names));
    for image in &images {
        node.fail(image, reason::TIMEOUT, 9);
    }
    let status = node.report(&NodeImageCacheStatus::default(), now());
    assert_eq!(status.prepulls.len(), MAX_REPORTED);
    assert_eq!(status.prepulls_omitted, 45);
    assert_eq!(status.failures.len(), MAX_FAILURES);
}

#[test]
fn a_transition_keeps_its_time_until_the_next() {
    let mut node = Node::new(vec![hold("p", &["a"])]);
    let later: Timestamp = "2026-11-21T11:00:00Z".parse().unwrap();
    let first = node.report(&NodeImageCacheStatus::default(), now());
    node.has(&["a"]);
    let second = node.report(&first, later);
    let time = |status: &NodeImageCacheStatus, kind: &str| {
        let mut conditions = status.conditions.iter();
        conditions
            .find(|condition| condition.type_ == kind)
            .map(|condition| condition.last_transition_time.0)
    };
    assert_eq!(time(&second, "Ready"), Some(later));
    assert_eq!(time(&second, "ApiSynced"), Some(now()));
}

#[test]
fn a_disk_is_short_until_it_has_clearly_enough() {
    let mut node = Node::new(Vec::new());
    let mut before = NodeImageCacheStatus::default();
    for (available, status) in [(90, "False"), (79, "True"), (90, "True"), (100, "False")] {
        node.figures.available_bytes = available;
        before = node.report(&before, now());
        let condition = before
            .conditions
            .iter()
            .find(|condition| condition.type_ == "DiskPressure");
        assert_eq!(condition.unwrap().status, status, "{available}");
    }
    // Nobody is told that a disk is full which the agent does not see.
    assert_eq!(before.store.unwrap().available_bytes, Some(100));
    node.figures.capacity_bytes = 0;
    let unseen = node.report(&before, now()).store.unwrap();
    assert_eq!(
        (unseen.capacity_bytes, unseen.available_bytes),
        (None, None)
    );
}

#[test]
fn an_emergency_is_told_once_and_again_where_it_falls_short() {
    let mut node = Node::new(Vec::new());
    let quiet = node.report(&NodeImageCacheStatus::default(), now());
    assert_eq!(quiet.emergency, None);
    let mut emergency = Emergency {
        began: now(),
        at: now(),
        images: 3,
        freed_bytes: 500,
        short_bytes: 0,
    };
    node.figures.emergency = Some(emergency);
    let minute = |n: u64| later(now(), Duration::from_secs(60 * n));
    let first = node.report(&quiet, minute(1));
    let change = |one: &NodeImageCacheStatus, other: &NodeImageCacheStatus| {
        Essence::of(one)
            .change(&Essence::of(other), &BTreeMap::new(), 50)
            .is_some()
    };
    assert!(change(&quiet, &first));
    let pressure = |status: &NodeImageCacheStatus| {
        let mut conditions = status.conditions.iter();
        let found = conditions.find(|condition| condition.type_ == "DiskPressure");
        let found = found.unwrap();
        format!("{} {}", found.status, found.reason)
    };
    assert_eq!(pressure(&first), "False SufficientSpace");
    // It goes on: no news.
    emergency = Emergency {
        at: minute(2),
        images: 5,
        ..emergency
    };
    node.figures.emergency = Some(emergency);
    let second = node.report(&first, minute(2));
    assert_eq!(second.emergency.as_ref().unwrap().removed_images, 5);
    assert!(!change(&first, &second));
    // Nothing more may go.
    emergency.short_bytes = 70;
    node.figures.emergency = Some(emergency);
    let third = node.report(&second, minute(3));
    assert!(change(&second, &third));
    assert_eq!(pressure(&third), "True InsufficientSpace");
    assert_eq!(
        pressure(&node.report(&third, minute(13))),
        "False SufficientSpace"
    );
    // What an earlier run of the agent did stays told; written and read back, it is the same.
    node.figures.emergency = None;
    let restarted = node.report(&third, minute(14));
    assert_eq!(restarted.emergency, third.emergency);
    let json = serde_json::to_string(&third).unwrap();
    let read: NodeImageCacheStatus = serde_json::from_str(&json).unwrap();
    assert_eq!(Essence::of(&read), Essence::of(&third));
}

#[test]
fn bytes_and_attempts_are_not_worth_a_write() {
    let mut node = Node::new(vec![hold("p", &["a", "b"]), hold("q", &["c"])]);
    node.holds[1].desired = 5000;
    let desired: BTreeMap<String, u64> = node
        .holds
        .iter()
        .map(|hold| (hold.identity.uid.clone(), hold.desired))
        .collect();
    node.fail("a", reason::TIMEOUT, 2);
    let first = node.report(&NodeImageCacheStatus::default(), now());
    let essence = Essence::of(&first);
    node.figures.stored_bytes = 7;
    node.figures.available_bytes = 400;
    node.fail("a", reason::TIMEOUT, 1);
    let later: Timestamp = "2026-11-21T11:00:00Z".parse().unwrap();
    let second = node.report(&first, later);
    assert_ne!(first, second);
    assert_eq!(essence.change(&Essence::of(&second), &desired, 5000), None);
    // What is read back is the same.
    let json = serde_json::to_string(&second).unwrap();
    let read: NodeImageCacheStatus = serde_json::from_str(&json).unwrap();
    assert_eq!(Essence::of(&read), Essence::of(&second));
    // A state is worth one, spread over the nodes of that prepull.
    node.running.insert(unit("b"));
    node.has(&["b"]);
    node.holds[0].next.as_mut().unwrap().id = "fedcba9876543210".to_owned();
    let third = node.report(&second, later);
    let news = |nodes, begun| Some(News { nodes, begun });
    let third = Essence::of(&third);
    assert_eq!(essence.change(&third, &desired, 5000), news(100, true));
    // A condition over all of them.
    node.synced.synced = false;
    let fourth = Essence::of(&node.report(&second, later));
    assert_eq!(third.change(&fourth, &desired, 5000), news(5000, false));
}

//! What the board decides, in a world in memory.
#![allow(clippy::needless_pass_by_value)]

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::board_world::World;
use super::declared::{Declared, Key, Kind};
use super::malformed::Fault;
use super::status::{is_true, reason_of};
use crate::k8s::api::{ALL, HoldState, NOBODY, condition, reason};

const SECOND: Duration = Duration::from_secs(1);

fn spec(images: &[&str], max_in_flight: serde_json::Value) -> serde_json::Value {
    json!({"images": images, "rollout": {"maxInFlight": max_in_flight}})
}

#[test]
fn a_rollout_from_the_first_write_to_the_last() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(3);
    world.apply("base", spec(&["app:1"], json!(1)));
    world.pass(SECOND);
    // The first write has revision and digests and lets nobody in.
    let first = &world.writes[0].status;
    assert_eq!(first.rollout.as_ref().unwrap().admitted, NOBODY);
    assert_eq!(first.resolved.len(), 1);
    for done in 1..=3 {
        let working = world.working("base");
        assert_eq!(working.len(), 1, "{done}");
        world.report(&working[0], "base", HoldState::Ready);
        world.pass(SECOND * 2);
        let nodes = world.status("base").nodes;
        assert_eq!((nodes.ready, nodes.desired), (done, 3));
    }
    let status = world.status("base");
    assert_eq!(status.rollout.as_ref().unwrap().admitted, ALL);
    assert!(is_true(&status, condition::READY));
    assert_eq!(world.reasons(), ["RolloutStarted", "RolloutComplete"]);
    // At rest nothing is written.
    let writes = world.writes.len();
    world.pass(SECOND * 3600);
    assert_eq!(world.writes.len(), writes);
    assert_eq!(world.asked, 1);
}

#[test]
fn a_wrong_image_is_named_and_the_others_are_rolled_out() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(2);
    world.apply("base", spec(&["app:1", "typo:1"], json!("100%")));
    world.pass(SECOND);
    for node in world.working("base") {
        world.report(&node, "base", HoldState::Ready);
    }
    world.pass(SECOND * 2);
    let status = world.status("base");
    assert_eq!(status.nodes.ready, 2);
    assert!(!is_true(&status, condition::READY));
    assert_eq!(reason_of(&status, condition::RESOLVED), reason::NOT_FOUND);
    let failure = &status.failures[0];
    assert_eq!(
        (failure.image.as_str(), failure.reason.as_str()),
        ("typo:1", "NotFound")
    );
    assert!(failure.node.starts_with('n'));
    assert_eq!(
        world
            .reasons()
            .iter()
            .filter(|r| **r == "ResolveFailed")
            .count(),
        1
    );
    // Somebody pushes it.
    world.tag("typo:1", "late");
    world.pass(SECOND * 40);
    assert_eq!(world.status("base").resolved.len(), 2);
}

#[test]
fn a_moved_tag_is_followed_at_its_interval_and_an_unreachable_registry_changes_nothing() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(1);
    let mut with_refresh = spec(&["app:1"], json!(1));
    with_refresh["refreshInterval"] = json!("10m");
    world.apply("base", with_refresh);
    world.pass(SECOND);
    world.report("n0", "base", HoldState::Ready);
    world.pass(SECOND * 5);
    let first = world.status("base");
    assert!(is_true(&first, condition::READY));

    world.fail("app:1", reason::REGISTRY_UNAVAILABLE);
    world.pass(SECOND * 660);
    let second = world.status("base");
    assert_eq!(second.resolved, first.resolved);
    assert!(is_true(&second, condition::READY));
    assert_eq!(
        reason_of(&second, condition::RESOLVED),
        reason::REGISTRY_UNAVAILABLE
    );

    world.tag("app:1", "two");
    world.pass(SECOND * 660);
    let third = world.status("base");
    assert_ne!(third.resolved, first.resolved);
    assert!(is_true(&third, condition::RESOLVED));
    assert!(!is_true(&third, condition::READY));
    assert_eq!(world.working("base"), ["n0"]);
    assert!(world.reasons().contains(&"TagMoved"));
}

#[test]
fn the_failure_budget_stops_a_rollout_until_nodes_recover() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(10);
    let mut strict = spec(&["app:1"], json!(1));
    strict["rollout"]["maxFailures"] = json!(1);
    world.apply("base", strict);
    world.pass(SECOND);
    let mut failed = Vec::new();
    for _ in 0..2 {
        let working = world.working("base");
        world.report(&working[0], "base", HoldState::Failed);
        failed.extend(working);
        world.pass(SECOND * 2);
    }
    let status = world.status("base");
    assert_eq!(
        reason_of(&status, condition::STALLED),
        reason::FAILURE_BUDGET_EXCEEDED
    );
    assert!(world.working("base").is_empty());
    assert_eq!(status.nodes.failed, 2);
    assert!(world.reasons().contains(&"RolloutStalled"));
    world.pass(SECOND * 600);
    assert!(world.working("base").is_empty());
    world.report(&failed[0], "base", HoldState::Ready);
    world.pass(SECOND * 2);
    assert!(!is_true(&world.status("base"), condition::STALLED));
    assert_eq!(world.working("base").len(), 1);
}

#[test]
fn pause_window_and_deadline_hold_nodes_back() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(4);
    let mut paused = spec(&["app:1"], json!(1));
    paused["rollout"]["paused"] = json!(true);
    world.apply("base", paused);
    world.pass(SECOND * 5);
    assert!(world.working("base").is_empty());
    assert_eq!(
        reason_of(&world.status("base"), condition::PROGRESSING),
        reason::PAUSED
    );
    // It is noon; the window opens in an hour.
    let mut window = spec(&["app:1"], json!(1));
    window["window"] = json!({"start": "13:00", "duration": "2h"});
    world.apply("base", window);
    world.pass(SECOND * 5);
    assert!(world.working("base").is_empty());
    assert_eq!(
        reason_of(&world.status("base"), condition::PROGRESSING),
        reason::OUTSIDE_WINDOW
    );
    world.pass(SECOND * 3600);
    assert_eq!(world.working("base").len(), 1);
    let mut deadline = spec(&["app:1"], json!(1));
    deadline["rollout"]["deadline"] = json!("2h");
    world.apply("base", deadline);
    world.pass(SECOND * 3700);
    assert_eq!(
        reason_of(&world.status("base"), condition::STALLED),
        reason::DEADLINE_EXCEEDED
    );
    world.report(&world.working("base")[0].clone(), "base", HoldState::Ready);
    world.pass(SECOND * 60);
    assert!(world.working("base").is_empty(), "frozen");
}

#[test]
fn a_wider_selector_and_an_edit_do_not_stampede() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.tag("app:2", "two");
    world.nodes(10);
    let mut one = spec(&["app:1"], json!(1));
    one["nodeNames"] = json!(["n3"]);
    world.apply("base", one);
    world.pass(SECOND);
    world.report("n3", "base", HoldState::Ready);
    world.pass(SECOND * 2);
    let before = world.status("base");
    assert_eq!(before.rollout.as_ref().unwrap().admitted, ALL);
    // Same images, more nodes.
    world.apply("base", spec(&["app:1"], json!(1)));
    world.pass(SECOND * 2);
    assert_eq!(
        world.status("base").rollout.unwrap().revision,
        before.rollout.unwrap().revision
    );
    assert_eq!(world.working("base").len(), 1);
    while let Some(node) = world.working("base").first().cloned() {
        assert_eq!(world.working("base").len(), 1);
        world.report(&node, "base", HoldState::Ready);
        world.pass(SECOND * 2);
    }
    assert_eq!(world.status("base").nodes.ready, 10);
    // Other images.
    world.apply("base", spec(&["app:2"], json!(2)));
    world.pass(SECOND * 2);
    assert_eq!(world.working("base").len(), 2);
    assert_eq!(world.status("base").nodes.ready, 0);
}

#[test]
fn nodes_come_go_and_come_back_as_others() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(3);
    world.apply("base", spec(&["app:1"], json!(3)));
    world.pass(SECOND);
    for node in ["n0", "n1", "n2"] {
        world.report(node, "base", HoldState::Ready);
    }
    world.pass(SECOND * 2);
    assert_eq!(world.status("base").nodes.ready, 3);
    world.nodes.remove("n1");
    world.board.remove_node("n1", world.now);
    world.pass(SECOND * 2);
    let nodes = world.status("base").nodes;
    assert_eq!((nodes.desired, nodes.ready), (2, 2));
    // The same name, another node: the old report does not count for it.
    world.node("n1", "node-new", json!({}));
    world.pass(SECOND * 2);
    let nodes = world.status("base").nodes;
    assert_eq!((nodes.desired, nodes.ready, nodes.admitted), (3, 2, 3));
    world.report("n1", "base", HoldState::Ready);
    world.pass(SECOND * 2);
    assert_eq!(world.status("base").nodes.ready, 3);
    // And without a sign that the old one went.
    world.node("n2", "node-newer", json!({}));
    world.pass(SECOND * 2);
    assert_eq!(world.status("base").nodes.ready, 2);
    // A label moves a node out.
    let more = json!({"metadata": {"name": "n0", "uid": "node-0", "labels": {"pool": "b"}}});
    let mut chosen = spec(&["app:1"], json!(3));
    chosen["nodeSelector"] = json!({"matchLabels": {"pool": "a"}});
    world.apply("base", chosen);
    world.pass(SECOND * 2);
    assert_eq!(world.status("base").nodes.desired, 3);
    world.node("n0", "node-0", more);
    world.pass(SECOND * 2);
    assert_eq!(world.status("base").nodes.desired, 2);
}

#[test]
fn an_unreachable_node_holds_up_nobody() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(3);
    for node in ["n0", "n1", "n2"] {
        world.unready(node);
    }
    world.pass(SECOND * 300);
    // Two of the three come back.
    world.nodes(2);
    world.pass(SECOND * 301);
    world.apply("base", spec(&["app:1"], json!(1)));
    world.pass(SECOND);
    assert_eq!(world.status("base").nodes.unreachable, 1);
    for _ in 0..3 {
        for node in world
            .working("base")
            .into_iter()
            .filter(|node| node != "n2")
        {
            world.report(&node, "base", HoldState::Ready);
        }
        world.pass(SECOND * 25);
    }
    let nodes = world.status("base").nodes;
    assert_eq!(
        (
            nodes.desired,
            nodes.admitted,
            nodes.ready,
            nodes.unreachable
        ),
        (3, 3, 2, 1)
    );
    // Its agent speaks.
    world.report("n2", "base", HoldState::Ready);
    world.pass(SECOND * 2);
    let status = world.status("base");
    assert_eq!(status.nodes.unreachable, 0);
    assert!(is_true(&status, condition::READY));
}

#[test]
fn a_gate_opens_for_nodes_that_are_ready_or_late() {
    let mut world = World::new();
    world.tag("app:1", "one");
    let tainted = json!({"spec": {"taints": [{"key": "larder.dev/cold", "effect": "NoSchedule"}]}});
    world.node("n0", "node-0", tainted.clone());
    world.node("n1", "node-1", tainted);
    let mut gated = spec(&["app:1"], json!("100%"));
    gated["gate"] = json!({"startupTaint": "larder.dev/cold", "deadline": "5m"});
    world.apply("base", gated);
    world.pass(SECOND);
    assert!(world.opened.is_empty());
    world.report("n0", "base", HoldState::Ready);
    world.pass(SECOND);
    assert_eq!(world.opened, [("n0".to_owned(), false)]);
    world.node("n0", "node-0", json!({}));
    world.pass(SECOND * 300);
    assert_eq!(world.opened.last(), Some(&("n1".to_owned(), true)));
}

#[test]
fn what_means_nothing_stops_the_rollout_and_is_told() {
    for (path, value, part) in [
        ("/rollout", json!({"maxInFlight": "0%"}), "maxInFlight"),
        ("/rollout", json!({"maxFailures": -4}), "maxFailures"),
        ("/rollout", json!({"deadline": "1 day"}), "deadline"),
        ("/refreshInterval", json!("soon"), "refreshInterval"),
        (
            "/window",
            json!({"start": "noon", "duration": "1h"}),
            "window",
        ),
        ("/platforms", json!(["%%%"]), "platforms"),
    ] {
        let mut world = World::new();
        world.tag("app:1", "one");
        world.nodes(3);
        let mut hostile = json!({"images": ["app:1", "../../etc:passwd", ""]});
        hostile[path.trim_start_matches('/')] = value;
        world.apply("base", hostile);
        world.pass(SECOND * 60);
        let status = world.status("base");
        let stalled = status
            .conditions
            .iter()
            .find(|c| c.type_ == condition::STALLED)
            .unwrap();
        assert_eq!(
            (stalled.status.as_str(), stalled.reason.as_str()),
            ("True", "InvalidSpec"),
            "{path}"
        );
        assert!(stalled.message.contains(part), "{}", stalled.message);
        assert!(world.working("base").is_empty());
        assert_eq!(
            reason_of(&status, condition::RESOLVED),
            reason::INVALID_REFERENCE
        );
    }
}

#[test]
fn a_lost_write_is_tried_again_with_pauses_and_a_stale_leader_is_refused() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(2);
    world.broken = true;
    world.apply("base", spec(&["app:1"], json!(1)));
    world.pass(SECOND * 120);
    let tries = world.writes.len();
    assert!((3..20).contains(&tries), "{tries}");
    world.broken = false;
    world.pass(SECOND * 60);
    assert_eq!(world.working("base").len(), 1);
    // Somebody else wrote: this board has not seen it.
    let object = world.objects.get_mut("base").unwrap();
    object.metadata.resource_version = Some("1000".to_owned());
    world.version = 1000;
    let rollout = object.status.as_mut().unwrap().rollout.as_mut().unwrap();
    rollout.admitted = ALL;
    world.report(&world.working("base")[0].clone(), "base", HoldState::Ready);
    world.pass(SECOND * 5);
    assert_eq!(world.status("base").rollout.unwrap().admitted, ALL);
}

#[test]
fn nothing_is_done_by_who_does_not_lead() {
    let mut world = World::new();
    world.board.lead(false, world.now);
    world.tag("app:1", "one");
    world.nodes(3);
    world.apply("base", spec(&["app:1"], json!(1)));
    world.pass(SECOND * 60);
    assert!(world.writes.is_empty());
    assert_eq!(world.asked, 0);
    world.board.lead(true, world.now);
    world.pass(SECOND);
    assert_eq!(world.working("base").len(), 1);
}

#[test]
fn five_hundred_prepulls_at_once_cost_few_lookups_and_bounded_writes() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(20);
    for number in 0..500 {
        world.apply(&format!("p{number}"), spec(&["app:1"], json!("100%")));
    }
    world.pass(SECOND * 90);
    assert_eq!(world.asked, 1);
    assert!((0..500).all(|number| world.working(&format!("p{number}")).len() == 20));
    assert!(world.writes.len() <= 1500, "{}", world.writes.len());
}

#[test]
fn an_older_version_of_an_object_is_not_taken_in() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(1);
    world.apply("base", spec(&["app:1"], json!(1)));
    let old: Declared = world.objects["base"].clone().into();
    world.pass(SECOND * 2);
    let status = world.status("base");
    world.board.apply_prepull(old, world.now);
    world.pass(SECOND * 2);
    assert_eq!(world.status("base"), status);
    // Deleted and made again.
    world.board.remove_prepull(&Key {
        kind: Kind::Cluster,
        namespace: String::new(),
        name: "base".to_owned(),
    });
    world.objects.clear();
    world.apply("base", spec(&["app:1"], json!(1)));
    world.pass(SECOND * 2);
    assert_eq!(world.working("base").len(), 1);
}

#[test]
fn what_cannot_be_read_is_told_and_left_alone_until_it_can() {
    let mut world = World::new();
    world.tag("app:1", "one");
    world.nodes(2);
    world.apply("base", spec(&["app:1"], json!(1)));
    world.pass(SECOND * 2);
    let key = Key {
        kind: Kind::Cluster,
        namespace: String::new(),
        name: "base".to_owned(),
    };
    let metadata = world.objects["base"].metadata.clone();
    let fault = Fault::new(key, &metadata, "images: invalid type");
    world.board.malformed_prepull(fault.clone(), world.now);
    let writes = world.writes.len();
    world.report("n0", "base", HoldState::Ready);
    world.report("n1", "base", HoldState::Ready);
    world.pass(SECOND * 60);
    assert_eq!(world.condemned, [fault]);
    assert_eq!(world.writes.len(), writes);
    world.apply("base", spec(&["app:1"], json!(2)));
    world.pass(SECOND * 2);
    assert_eq!(world.status("base").nodes.ready, 2);
}

#[derive(Clone, Debug)]
enum Move {
    Finish(u8, bool),
    Wait(u8),
    FailOver,
    Edit(u8),
    Break(bool),
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => (any::<u8>(), prop::bool::weighted(0.1)).prop_map(|(node, fail)| Move::Finish(node, fail)),
        3 => (0..40u8).prop_map(Move::Wait),
        1 => Just(Move::FailOver),
        1 => (0..4u8).prop_map(Move::Edit),
        1 => any::<bool>().prop_map(Move::Break),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, agents that follow the threshold never work on more nodes than may, counts are in order, and
    /// within a revision and a generation the threshold never goes back.
    #[test]
    fn never_more_in_flight_than_may(nodes in 1..25usize, max in 1..5u64, moves in prop::collection::vec(moves(), 1..60)) {
        let mut world = World::new();
        world.nodes(nodes);
        for number in 0..4 {
            world.tag(&format!("app:{number}"), &format!("{number}"));
        }
        let lenient = |image: u8| json!({
            "images": [format!("app:{image}")], "rollout": {"maxInFlight": max, "maxFailures": "100%"}});
        world.apply("base", lenient(0));
        let mut seen = (String::new(), 0, NOBODY);
        for one in moves {
            match one {
                Move::Finish(pick, fail) => {
                    let working = world.working("base");
                    if let Some(node) = working.get(usize::from(pick) % working.len().max(1)).cloned() {
                        world.report(&node, "base", if fail { HoldState::Failed } else { HoldState::Ready });
                    }
                }
                Move::Wait(seconds) => world.pass(SECOND * u32::from(seconds)),
                Move::FailOver => world.fail_over(),
                Move::Edit(image) => world.apply("base", lenient(image)),
                Move::Break(broken) => world.broken = broken,
            }
            world.settle();
            prop_assert!(world.working("base").len() as u64 <= max);
            let status = world.status("base");
            let counts = status.nodes;
            prop_assert!(counts.ready <= counts.admitted && counts.admitted <= counts.desired);
            if let Some(rollout) = status.rollout {
                if (&rollout.revision, rollout.observed_generation) == (&seen.0, seen.1) {
                    prop_assert!(rollout.admitted >= seen.2);
                }
                seen = (rollout.revision, rollout.observed_generation, rollout.admitted);
            }
        }
        // In the end everybody gets there.
        world.broken = false;
        for _ in 0..2 * nodes + 2 {
            world.pass(SECOND * 120);
            for node in world.working("base") {
                world.report(&node, "base", HoldState::Ready);
            }
        }
        world.pass(SECOND * 60);
        let nodes = world.status("base").nodes;
        prop_assert_eq!(nodes.admitted, nodes.desired);
        prop_assert_eq!(nodes.ready + nodes.failed, nodes.desired);
    }
}

#[test]
fn only_who_leads_tells_of_emergencies() {
    let mut world = World::new();
    world.nodes(1);
    world.settle();
    let report = |second: u32| {
        serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "NodeImageCache",
            "metadata": {"name": "n0", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n0", "uid": "node-0"}]},
            "status": {"emergency": {"time": format!("2026-11-21T11:59:{second:02}Z"), "removedImages": 1}},
        }))
        .unwrap()
    };
    let now = world.now;
    world.board.apply_report(report(1), now);
    world.settle();
    assert_eq!(world.reasons(), ["EmergencyPrune"]);
    world.board.lead(false, now);
    world.board.apply_report(report(2), now);
    world.settle();
    assert_eq!(world.notes.len(), 1);
    // Whoever led may have gone before he told it.
    world.board.lead(true, now);
    world.settle();
    assert_eq!(world.notes.len(), 2);
    assert_eq!(world.notes[1].kind, "Node");
    assert_eq!(world.notes[1].uid, "node-0");
}

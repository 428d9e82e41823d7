//! What is held, and what never lets go.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::prepull::{Kind, Origin, Revision};
use super::*;
use crate::k8s::api::{ALL, LabelSelector, NOBODY, SharedPrepullSpec};

fn unit(image: &str) -> Unit {
    Unit {
        image: format!("r.io/{image}:1"),
        digest: format!("sha256:{}", "a".repeat(64)),
        platform: String::new(),
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        name: "n1".to_owned(),
        uid: "node-uid".to_owned(),
        labels: BTreeMap::from([("pool".to_owned(), "gpu".to_owned())]),
        ..NodeFacts::default()
    }
}

fn prepull(uid: &str, id: &str, admitted: u64, images: &[&str]) -> Prepull {
    Prepull {
        identity: Identity {
            uid: uid.to_owned(),
            kind: Kind::ClusterImagePrepull,
            namespace: String::new(),
            name: uid.to_owned(),
            origin: Origin::Api,
        },
        revision: Some(Revision {
            id: id.to_owned(),
            admitted,
            units: images.iter().map(|image| unit(image)).collect(),
        }),
        ..Prepull::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A node over time.
#[derive(Default)]
struct World {
    node: Option<NodeFacts>,
    prepulls: BTreeMap<String, Prepull>,
    gone: BTreeMap<String, Timestamp>,
    held: BTreeSet<Unit>,
    holds: Vec<Hold>,
}

impl World {
    fn new() -> Self {
        World {
            node: Some(node()),
            ..World::default()
        }
    }

    fn see(&mut self, prepull: Prepull) -> &mut Self {
        self.prepulls.insert(prepull.identity.uid.clone(), prepull);
        self
    }

    fn hold(&mut self, images: &[&str]) -> &mut Self {
        self.held.extend(images.iter().map(|image| unit(image)));
        self
    }

    fn step(&mut self, now: i64) -> Assignment {
        let seen = Seen {
            node: self.node.as_ref(),
            prepulls: &self.prepulls,
            gone: &self.gone,
        };
        let out = assign(
            seen,
            &self.holds,
            |_, unit| self.held.contains(unit),
            at(now),
        );
        self.holds = out.holds.clone();
        out
    }

    fn ids(&self) -> (Option<&str>, Option<&str>) {
        let hold = self.holds.first();
        (
            hold.and_then(|hold| hold.held.as_ref())
                .map(|revision| revision.id.as_str()),
            hold.and_then(|hold| hold.next.as_ref())
                .map(|revision| revision.id.as_str()),
        )
    }
}

#[test]
fn nothing_starts_before_this_node_is_admitted() {
    let mut world = World::new();
    let mine = slot("node-uid", "p", "r1");
    let out = world.see(prepull("p", "r1", NOBODY, &["a"])).step(0);
    assert!(out.holds.is_empty());
    assert_eq!(out.waiting[0].revision, "r1");
    assert!(
        world
            .see(prepull("p", "r1", mine - 1, &["a"]))
            .step(1)
            .holds
            .is_empty()
    );
    world.see(prepull("p", "r1", mine, &["a"])).step(2);
    assert_eq!(world.ids(), (None, Some("r1")));
    world.hold(&["a"]).step(3);
    assert_eq!(world.ids(), (Some("r1"), None));
}

#[test]
fn the_old_revision_stays_until_the_new_one_is_admitted_and_complete() {
    let mut world = World::new();
    world
        .see(prepull("p", "r1", ALL, &["a"]))
        .hold(&["a"])
        .step(0);
    world.see(prepull("p", "r2", NOBODY, &["b", "c"])).step(1);
    assert_eq!(world.ids(), (Some("r1"), None));
    // Heals the old one while it waits.
    assert_eq!(world.holds[0].wanted(), [unit("a")]);
    world.see(prepull("p", "r2", ALL, &["b", "c"])).step(2);
    assert_eq!(world.ids(), (Some("r1"), Some("r2")));
    let protected: Vec<_> = world.holds[0].protected().cloned().collect();
    assert_eq!(protected, [unit("a"), unit("b"), unit("c")]);
    world.hold(&["b"]).step(3);
    assert_eq!(world.ids(), (Some("r1"), Some("r2")));
    world.hold(&["c"]).step(4);
    assert_eq!(world.ids(), (Some("r2"), None));
    // An image that goes away later does not bring the old one back.
    world.held.clear();
    world.step(5);
    assert_eq!(world.ids(), (Some("r2"), None));
    assert_eq!(world.holds[0].wanted().len(), 2);
}

#[test]
fn what_was_begun_of_an_outdated_revision_is_given_up() {
    let mut world = World::new();
    world.see(prepull("p", "r1", ALL, &["a"])).step(0);
    world.see(prepull("p", "r2", NOBODY, &["b"])).step(1);
    assert!(world.holds.is_empty());
    world.see(prepull("p", "r3", ALL, &["c"])).step(2);
    assert_eq!(world.ids(), (None, Some("r3")));
    // The old one again: there is nothing left to do.
    world.hold(&["c"]).step(3);
    world.see(prepull("p", "r4", ALL, &["d"])).step(4);
    world.see(prepull("p", "r3", NOBODY, &["c"])).step(5);
    assert_eq!(world.ids(), (Some("r3"), None));
}

#[test]
fn a_spec_without_a_revision_of_its_own_changes_nothing() {
    let mut world = World::new();
    world.see(prepull("p", "r1", ALL, &["a"])).step(0);
    let mut edited = prepull("p", "r2", ALL, &["b"]);
    edited.revision = None;
    edited.terms.pin = true;
    world.see(edited).step(1);
    assert_eq!(world.ids(), (None, Some("r1")));
    assert!(world.holds[0].terms.pin);
}

#[test]
fn absence_is_not_deletion() {
    let mut world = World::new();
    world
        .see(prepull("p", "r1", ALL, &["a"]))
        .hold(&["a"])
        .step(0);
    world.prepulls.clear();
    world.node = None;
    let before = world.holds.clone();
    for now in [1, 3600, 86_400 * 365] {
        world.step(now);
        assert_eq!(world.holds, before);
    }
}

#[test]
fn a_deletion_takes_effect_after_its_retention_and_counts_from_when_it_was_seen() {
    let mut world = World::new();
    let mut kept = prepull("p", "r1", ALL, &["a"]);
    kept.terms.retain_seconds = 100;
    world.see(kept).hold(&["a"]).step(0);
    world.prepulls.clear();
    world.gone.insert("p".to_owned(), at(10));
    world.step(15);
    assert_eq!(world.holds[0].released_at(), Some(at(110)));
    assert!(world.holds[0].wanted().is_empty(), "not healed any more");
    assert_eq!(world.holds[0].protected().count(), 1, "but protected");
    // The fact is forgotten with a restart, the release is not.
    world.gone.clear();
    world.step(109);
    assert_eq!(world.holds.len(), 1);
    world.step(110);
    assert!(world.holds.is_empty());
}

#[test]
fn a_node_that_is_chosen_again_in_time_keeps_all() {
    let mut world = World::new();
    let mut gpu = prepull("p", "r1", ALL, &["a"]);
    gpu.terms.retain_seconds = 100;
    gpu.selector = SharedPrepullSpec {
        node_selector: Some(LabelSelector {
            match_labels: node().labels,
            ..LabelSelector::default()
        }),
        ..SharedPrepullSpec::default()
    };
    world.see(gpu).hold(&["a"]).step(0);
    world.node.as_mut().unwrap().labels.clear();
    world.step(10);
    let since = Released {
        since: at(10),
        why: Why::Deselected,
    };
    assert_eq!(world.holds[0].released, Some(since));
    world.step(50);
    assert_eq!(world.holds[0].released, Some(since), "it counts on");
    world.node = Some(node());
    world.step(90);
    assert_eq!(world.holds[0].released, None);
    assert_eq!(world.ids(), (Some("r1"), None));
    world.node.as_mut().unwrap().labels.clear();
    world.step(100);
    world.step(200);
    assert!(world.holds.is_empty());
}

#[test]
fn once_is_collected_and_not_held() {
    let mut world = World::new();
    let mut once = prepull("p", "r1", ALL, &["a"]);
    once.terms.once = true;
    world.see(once).step(0);
    assert_eq!(world.holds[0].protected().count(), 1);
    world.hold(&["a"]).step(1);
    world.held.clear();
    world.step(2);
    assert_eq!(world.ids(), (Some("r1"), None));
    assert!(world.holds[0].wanted().is_empty());
    assert_eq!(world.holds[0].protected().count(), 0);
}

#[test]
fn a_node_made_anew_waits_for_its_new_slot() {
    let mut world = World::new();
    let mine = slot("node-uid", "p", "r1");
    world.see(prepull("p", "r1", mine, &["a"])).step(0);
    assert_eq!(world.ids(), (None, Some("r1")));
    let mut other = 0;
    // A uid whose slot comes later.
    while slot(&format!("u{other}"), "p", "r1") <= mine {
        other += 1;
    }
    world.node.as_mut().unwrap().uid = format!("u{other}");
    world.step(1);
    assert!(world.holds.is_empty());
}

/// What can happen to a node.
#[derive(Clone, Debug)]
enum Event {
    /// A prepull with a revision, admitted or not, of some images.
    See(u8, u8, bool, Vec<u8>),
    /// A prepull whose controller has not spoken.
    Edit(u8),
    /// The view of the API server is lost.
    Forget,
    Gone(u8),
    Label(bool),
    NodeUnknown,
    Held(u8),
    Evicted(u8),
    Wait(u16),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..3u8, 0..4u8, any::<bool>(), proptest::collection::vec(0..5u8, 0..3))
            .prop_map(|(p, r, a, i)| Event::See(p, r, a, i)),
        1 => (0..3u8).prop_map(Event::Edit),
        1 => Just(Event::Forget),
        1 => (0..3u8).prop_map(Event::Gone),
        1 => any::<bool>().prop_map(Event::Label),
        1 => Just(Event::NodeUnknown),
        3 => (0..5u8).prop_map(Event::Held),
        1 => (0..5u8).prop_map(Event::Evicted),
        2 => (0..300u16).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 1..40)
}

proptest! {
    /// Whatever happens: a complete revision goes only for a complete one or by a release that ran out, the same
    /// facts give the same answer, and nothing is released that is not known to be gone or deselected.
    #[test]
    fn lets_go_only_for_a_reason(events in events()) {
        const RETAIN: i64 = 100;
        let mut world = World::new();
        let mut now = 0i64;
        let selector = SharedPrepullSpec {
            node_selector: Some(LabelSelector { match_labels: node().labels, ..LabelSelector::default() }),
            ..SharedPrepullSpec::default()
        };
        for event in events {
            match event {
                Event::See(p, r, admitted, images) => {
                    let uid = format!("p{p}");
                    if world.gone.contains_key(&uid) {
                        continue;
                    }
                    let names: Vec<String> = images.iter().map(|i| format!("i{i}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    // A revision's name stands for its contents.
                    let id = format!("r{r}-{names:?}");
                    let mut prepull = prepull(&uid, &id, if admitted { ALL } else { NOBODY }, &names);
                    prepull.terms.retain_seconds = RETAIN as u64;
                    prepull.selector = selector.clone();
                    world.see(prepull);
                }
                Event::Edit(p) => {
                    if let Some(prepull) = world.prepulls.get_mut(&format!("p{p}")) {
                        prepull.revision = None;
                    }
                }
                Event::Forget => world.prepulls.clear(),
                Event::Gone(p) => {
                    let uid = format!("p{p}");
                    world.prepulls.remove(&uid);
                    world.gone.entry(uid).or_insert(at(now));
                }
                Event::Label(set) => {
                    let mut facts = node();
                    if !set {
                        facts.labels.clear();
                    }
                    world.node = Some(facts);
                }
                Event::NodeUnknown => world.node = None,
                Event::Held(i) => {
                    world.held.insert(unit(&format!("i{i}")));
                }
                Event::Evicted(i) => {
                    world.held.remove(&unit(&format!("i{i}")));
                }
                Event::Wait(seconds) => now += i64::from(seconds),
            }
            let before = world.holds.clone();
            let out = world.step(now);
            let again = assign(
                Seen { node: world.node.as_ref(), prepulls: &world.prepulls, gone: &world.gone },
                &before,
                |_, unit| world.held.contains(unit),
                at(now),
            );
            prop_assert_eq!(&out, &again);
            for old in &before {
                let uid = &old.identity.uid;
                let new = out.holds.iter().find(|hold| hold.identity.uid == *uid);
                let gone = world.gone.contains_key(uid);
                let deselected = world.node.as_ref().is_some_and(|node| {
                    world.prepulls.get(uid).is_some_and(|prepull| !prepull.selects(node))
                });
                match new {
                    None => {
                        let due = old.released.is_some_and(|r| r.since.as_second() + RETAIN <= now);
                        let late = gone && world.gone[uid].as_second() + RETAIN <= now;
                        prop_assert!(due || late || old.held.is_none(), "{old:?} went");
                    }
                    Some(new) => {
                        if let (Some(was), Some(is)) = (&old.held, &new.held)
                            && was.id != is.id
                        {
                            prop_assert!(is.units.iter().all(|unit| world.held.contains(unit)));
                        }
                        prop_assert!(old.held.is_none() || new.held.is_some());
                        if new.released.is_some() && old.released.is_none() {
                            prop_assert!(gone || deselected, "{new:?} was released");
                        }
                    }
                }
            }
        }
    }
}

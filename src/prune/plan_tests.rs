//! What goes, why, and what the planner never does.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::prune::{
    Amount, EMERGENCY, Match, Operator, Part, Pattern, Protection, Requirement, Selector, emergency,
};

const HOUR: i64 = 3600;

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() - seconds).unwrap()
}

/// An image pulled and last used so many hours ago.
fn image(name: &str, pulled: i64, used: Option<i64>, parts: &[(&str, u64)]) -> Candidate {
    Candidate {
        id: format!("sha256:{name}"),
        names: vec![format!("r.io/{name}")],
        size: parts.iter().map(|(_, bytes)| bytes).sum(),
        layers: parts
            .iter()
            .map(|(id, bytes)| Part {
                id: (*id).to_owned(),
                bytes: *bytes,
            })
            .collect(),
        pulled_at: ago(pulled * HOUR),
        last_used: used.map(|hours| ago(hours * HOUR)),
        ..Candidate::default()
    }
}

fn protected(mut image: Candidate, protection: Protection) -> Candidate {
    image.protections.push(protection);
    image
}

fn policy(name: &str, rules: Vec<Rule>) -> Policy {
    Policy {
        name: name.to_owned(),
        rules,
        max_removals: None,
    }
}

fn about(patterns: &[&str]) -> Match {
    Match {
        images: patterns.iter().map(|text| Pattern::new(*text)).collect(),
        ..Match::default()
    }
}

fn unused_for(hours: u64) -> Rule {
    Rule {
        unused_for: Some(Duration::from_secs(hours * 3600)),
        ..Rule::default()
    }
}

fn min_free(amount: Amount) -> Rule {
    Rule {
        min_free: Some(amount),
        ..Rule::default()
    }
}

fn disk(capacity: u64, available: u64) -> Disk {
    Disk {
        capacity,
        available,
        images: capacity - available,
    }
}

fn gone(plan: &Plan) -> Vec<(&str, u64)> {
    let removals = plan.remove.iter();
    removals
        .map(|removal| (removal.id.trim_start_matches("sha256:"), removal.bytes))
        .collect()
}

fn why<'a>(plan: &'a Plan, name: &str) -> &'a str {
    let id = format!("sha256:{name}");
    let kept = plan.keep.iter().find(|kept| kept.id == id);
    kept.map_or("", |kept| &kept.reason)
}

#[test]
fn unused_for_counts_from_the_last_use_else_from_the_pull() {
    let images = [
        image("used:1", 100, Some(3), &[("a", 10)]),
        image("old:1", 100, Some(30), &[("b", 20)]),
        image("never:1", 24, None, &[("c", 30)]),
        image("new:1", 23, None, &[("d", 40)]),
        image("ahead:1", -5, Some(-9), &[("e", 50)]),
    ];
    let plan = plan(
        &images,
        &[policy("default", vec![unused_for(24)])],
        &disk(100, 50),
        now(),
    );
    assert_eq!(gone(&plan), [("old:1", 20), ("never:1", 30)]);
    assert_eq!(plan.free_bytes, 50);
    let [old, never] = plan.remove.as_slice() else {
        panic!("{plan:?}");
    };
    assert_eq!(old.rule, "unusedFor 24h");
    assert_eq!(old.policy, "default");
    assert_eq!(old.reason, "not used for 30h");
    assert_eq!(never.reason, "not used since it was pulled 24h ago");
    assert_eq!(
        why(&plan, "used:1"),
        "not used for 3h, less than unusedFor 24h"
    );
    assert_eq!(
        why(&plan, "ahead:1"),
        "not used for 0s, less than unusedFor 24h"
    );
}

#[test]
fn keep_last_keeps_the_newest_of_each_repository_in_use_or_not() {
    let in_use = Protection::InUse {
        by: "container web".to_owned(),
    };
    let mut two = image("a:4", 40, None, &[("4", 1)]);
    two.names.push("r.io/b:4".to_owned());
    let images = [
        protected(image("a:1", 10, None, &[("1", 1)]), in_use),
        image("a:2", 20, None, &[("2", 1)]),
        image("a:3", 30, None, &[("3", 1)]),
        two,
        image("b:1", 50, None, &[("5", 1)]),
        Candidate {
            names: Vec::new(),
            ..image("untagged", 1, None, &[("6", 1)])
        },
    ];
    let rule = Rule {
        keep_last: Some(2),
        ..Rule::default()
    };
    let plan = plan(
        &images,
        &[policy("default", vec![rule.clone()])],
        &disk(100, 50),
        now(),
    );
    // The third of `a`, and the one without a repository. The fourth of `a` is the newest of `b`.
    assert_eq!(gone(&plan), [("a:3", 1), ("untagged", 1)]);
    assert_eq!(why(&plan, "a:1"), "in use by container web");
    assert_eq!(why(&plan, "a:2"), "among the newest 2 of r.io/a");
    assert_eq!(why(&plan, "a:4"), "among the newest 2 of r.io/b");
    assert_eq!(
        plan.remove[0].reason,
        "not used since it was pulled 30h ago, and not among the newest 2 of r.io/a"
    );
    assert_eq!(
        plan.remove[1].reason,
        "not used since it was pulled 60m ago, and in no repository"
    );
    // Only what the rule is about counts.
    let rule = Rule {
        images: about(&["r.io/a:2", "r.io/a:3"]),
        keep_last: Some(1),
        ..rule
    };
    let plan = super::plan(
        &images,
        &[policy("default", vec![rule])],
        &disk(100, 50),
        now(),
    );
    assert_eq!(gone(&plan), [("a:3", 1)]);
    assert_eq!(why(&plan, "b:1"), "no rule is about it");
}

#[test]
fn the_contracts_policy() {
    let ci = Rule {
        images: about(&["r.io/ci/*"]),
        keep_last: Some(2),
        ..unused_for(24)
    };
    let policies = [policy("default", vec![ci, min_free(Amount::Percent(15))])];
    let images = [
        image("ci/app:1", 90, Some(80), &[("base", 30), ("1", 5)]),
        image("ci/app:2", 80, Some(1), &[("base", 30), ("2", 5)]),
        image("ci/app:3", 70, Some(60), &[("base", 30), ("3", 5)]),
        image("ci/app:4", 60, Some(50), &[("base", 30), ("4", 5)]),
        image("db:1", 500, Some(400), &[("db", 20)]),
        image("db:2", 400, Some(300), &[("db", 20), ("db2", 20)]),
    ];
    // 15% are free once the first rule did its part.
    let plan = |available| super::plan(&images, &policies, &disk(100, available), now());
    let enough = plan(10);
    assert_eq!(gone(&enough), [("ci/app:1", 5)]);
    assert_eq!(enough.remove[0].rule, "unusedFor 24h, keepLast 2");
    assert_eq!(
        why(&enough, "db:1"),
        "minFree 15% is satisfied without its removal"
    );
    let more = plan(5);
    assert_eq!(gone(&more), [("ci/app:1", 5), ("db:2", 20)]);
    assert_eq!(more.remove[1].rule, "minFree 15%");
    assert_eq!(
        more.remove[1].reason,
        "not used for 12d; 5 B of 100 B are free, and 15 B must be"
    );
    // The first of two that share all it has frees nothing by itself, and is needed no less.
    let most = super::plan(
        &images,
        &policies,
        &Disk {
            available: 0,
            ..disk(300, 0)
        },
        now(),
    );
    assert_eq!(gone(&most), [("ci/app:1", 5), ("db:1", 0), ("db:2", 40),]);
}

#[test]
fn a_disk_rule_takes_the_longest_unused_and_spares_what_is_not_needed() {
    let images = [
        image("small:1", 9, Some(9), &[("s", 1)]),
        image("large:1", 5, Some(5), &[("l", 50)]),
        image("recent:1", 2, Some(2), &[("r", 50)]),
    ];
    let run = |wanted: u64| {
        let rule = min_free(Amount::Bytes(wanted));
        plan(&images, &[policy("p", vec![rule])], &disk(1000, 100), now())
    };
    assert_eq!(gone(&run(100)), []);
    assert_eq!(gone(&run(101)), [("small:1", 1)]);
    assert_eq!(gone(&run(150)), [("large:1", 50)]);
    assert_eq!(gone(&run(151)), [("small:1", 1), ("large:1", 50)]);
    let short = run(300);
    assert_eq!(short.remove.len(), 3);
    assert_eq!((short.free_bytes, short.short_bytes), (101, 99));

    let rule = Rule {
        max_used: Some(Amount::Bytes(860)),
        ..Rule::default()
    };
    let plan = plan(&images, &[policy("p", vec![rule])], &disk(1000, 100), now());
    assert_eq!(gone(&plan), [("large:1", 50)]);
    assert_eq!(
        plan.remove[0].reason,
        "not used for 5h; images use 900 B, and may use 860 B"
    );
}

#[test]
fn a_disk_rule_with_an_age_takes_nothing_younger() {
    let images = [
        image("old:1", 90, None, &[("a", 10)]),
        image("new:1", 2, None, &[("b", 10)]),
    ];
    let rule = Rule {
        min_free: Some(Amount::Bytes(30)),
        ..unused_for(24)
    };
    let run = |available| {
        plan(
            &images,
            &[policy("p", vec![rule.clone()])],
            &disk(100, available),
            now(),
        )
    };
    assert_eq!(gone(&run(30)), []);
    assert_eq!(gone(&run(10)), [("old:1", 10)]);
    assert_eq!(run(10).short_bytes, 10);
}

#[test]
fn policies_add_up_and_the_first_names_what_both_select() {
    let declared = Protection::Declared {
        by: "ClusterImagePrepull base".to_owned(),
        pinned: false,
    };
    let images = [
        image("a:1", 90, None, &[("a", 10)]),
        image("b:1", 80, None, &[("b", 10)]),
        protected(image("c:1", 70, None, &[("c", 10)]), declared),
    ];
    let one = policy(
        "one",
        vec![Rule {
            images: about(&["r.io/b:*"]),
            ..unused_for(1)
        }],
    );
    let two = policy("two", vec![unused_for(1)]);
    let plan = plan(&images, &[two, one], &disk(100, 50), now());
    let named: Vec<(&str, &str)> = plan
        .remove
        .iter()
        .map(|removal| (removal.policy.as_str(), removal.id.as_str()))
        .collect();
    assert_eq!(named, [("one", "sha256:b:1"), ("two", "sha256:a:1")]);
    assert_eq!(why(&plan, "c:1"), "declared by ClusterImagePrepull base");
}

#[test]
fn a_limit_cuts_the_tail_and_only_of_its_own_policy() {
    let images: Vec<Candidate> = (1..=4)
        .map(|i| image(&format!("a:{i}"), 100 - i, None, &[(&i.to_string(), 10)]))
        .collect();
    let limited = Policy {
        max_removals: Some(2),
        ..policy("one", vec![unused_for(1)])
    };
    let run = |policies: &[Policy]| plan(&images, policies, &disk(100, 50), now());
    let alone = run(std::slice::from_ref(&limited));
    assert_eq!(gone(&alone), [("a:1", 10), ("a:2", 10)]);
    assert_eq!(why(&alone, "a:3"), "limit of 2 removals in a run");
    let another = policy(
        "two",
        vec![Rule {
            images: about(&["r.io/a:4"]),
            ..unused_for(1)
        }],
    );
    let both = run(&[limited, another]);
    assert_eq!(gone(&both), [("a:1", 10), ("a:2", 10), ("a:4", 10)]);
    // What the disk wants is cut too, and what is left still goes: the next run sees less in the way.
    let disk_rule = Policy {
        max_removals: Some(1),
        ..policy("one", vec![min_free(Amount::Bytes(80))])
    };
    let cut = run(&[disk_rule]);
    assert_eq!(gone(&cut), [("a:1", 10)]);
    assert_eq!(why(&cut, "a:2"), "limit of 1 removals in a run");
    assert_eq!(cut.short_bytes, 20);
}

#[test]
fn what_is_not_known_of_a_disk_or_an_image_removes_nothing() {
    let mut unlabelled = image("a:1", 90, None, &[("a", 10)]);
    unlabelled.labels_unknown = true;
    let images = [unlabelled];
    let unseen = Disk {
        capacity: 0,
        available: 0,
        images: 10,
    };
    let max_used = |amount| Rule {
        max_used: Some(amount),
        ..Rule::default()
    };
    let labelled = Rule {
        images: Match {
            labels: Selector {
                requirements: vec![Requirement {
                    key: "keep".to_owned(),
                    operator: Operator::DoesNotExist,
                    values: Vec::new(),
                }],
            },
            ..Match::default()
        },
        ..unused_for(1)
    };
    for (rule, count) in [
        (min_free(Amount::Bytes(1 << 40)), 0),
        (min_free(Amount::Percent(90)), 0),
        (max_used(Amount::Percent(1)), 0),
        (max_used(Amount::Bytes(9)), 1),
        (labelled, 0),
        (unused_for(1), 1),
    ] {
        let plan = plan(&images, &[policy("p", vec![rule.clone()])], &unseen, now());
        assert_eq!(plan.remove.len(), count, "{rule:?}");
    }
}

#[test]
fn reserved_alone_selects_nothing() {
    let images = [image("a:1", 90, None, &[("a", 10)])];
    let band = |amount| Rule {
        reserved: Some(amount),
        ..Rule::default()
    };
    let policies = [
        policy("one", vec![band(Amount::Bytes(7))]),
        policy("two", vec![band(Amount::Percent(10)), unused_for(1000)]),
    ];
    let full = disk(100, 0);
    assert_eq!(gone(&plan(&images, &policies, &full, now())), []);
    assert_eq!(reserve(&policies, &full), 10);
    assert_eq!(reserve(&[], &full), 0);
}

#[test]
fn an_emergency_breaks_the_weak_protections_last_and_the_strong_ones_never() {
    let declared = |pinned| Protection::Declared {
        by: "ImagePrepull team-a/app".to_owned(),
        pinned,
    };
    let grace = Protection::Grace { until: now() };
    let images = [
        protected(image("declared:1", 90, None, &[("a", 10)]), declared(false)),
        protected(image("pinned:1", 80, None, &[("b", 10)]), declared(true)),
        protected(image("new:1", 0, None, &[("c", 10)]), grace.clone()),
        image("free:1", 5, None, &[("d", 10)]),
        protected(
            protected(image("used:1", 70, None, &[("e", 10)]), grace),
            Protection::Mounted,
        ),
    ];
    let run = |target| emergency(&images, &disk(100, 5), target, now());
    assert_eq!(gone(&run(5)), []);
    assert_eq!(gone(&run(15)), [("free:1", 10)]);
    assert_eq!(gone(&run(16)), [("free:1", 10), ("declared:1", 10)]);
    let all = run(100);
    assert_eq!(
        gone(&all),
        [("free:1", 10), ("declared:1", 10), ("new:1", 10)]
    );
    assert_eq!(all.short_bytes, 65);
    assert!(all.remove.iter().all(|removal| removal.rule == EMERGENCY));
    assert_eq!(why(&all, "pinned:1"), "declared by ImagePrepull team-a/app");
    assert_eq!(why(&all, "used:1"), "mounted");
}

fn protections() -> impl Strategy<Value = Vec<Protection>> {
    let one = prop_oneof![
        Just(Protection::InUse { by: "c".to_owned() }),
        Just(Protection::Pinned),
        any::<bool>().prop_map(|pinned| Protection::Declared {
            by: "p".to_owned(),
            pinned
        }),
        Just(Protection::Sandbox),
        Just(Protection::Mounted),
        Just(Protection::Leased),
        Just(Protection::Grace { until: now() }),
    ];
    prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::vec(one, 1..3),
    ]
}

/// Images that share a handful of parts.
fn images() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (
        0usize..4,
        0i64..200,
        prop::option::of(-5i64..200),
        prop::collection::vec(0usize..8, 0..5),
        0u64..20,
        protections(),
    );
    prop::collection::vec(one, 0..14).prop_map(|all| {
        let all = all.into_iter().enumerate();
        all.map(|(i, (repository, pulled, used, parts, own, protections))| {
            let parts: Vec<(String, u64)> = parts
                .into_iter()
                .map(|part| (format!("part{part}"), 7 * part as u64))
                .collect();
            let parts: Vec<(&str, u64)> = parts
                .iter()
                .map(|(id, bytes)| (id.as_str(), *bytes))
                .collect();
            Candidate {
                own_bytes: own,
                protections,
                ..image(&format!("r{repository}:{i}"), pulled, used, &parts)
            }
        })
        .collect()
    })
}

fn rules() -> impl Strategy<Value = Rule> {
    let amount = || {
        prop::option::of(prop_oneof![
            (0u64..400).prop_map(Amount::Bytes),
            (1u8..=100).prop_map(Amount::Percent),
        ])
    };
    (
        prop::option::of(0usize..4),
        prop::option::of(0u64..200),
        prop::option::of(0u32..4),
        amount(),
        amount(),
        amount(),
    )
        .prop_map(
            |(repository, unused, keep_last, max_used, min_free, reserved)| Rule {
                images: match repository {
                    Some(repository) => about(&[&format!("r.io/r{repository}:*")]),
                    None => Match::default(),
                },
                unused_for: unused.map(|hours| Duration::from_secs(hours * 3600)),
                keep_last,
                max_used,
                min_free,
                reserved,
            },
        )
}

fn policies(limits: bool) -> impl Strategy<Value = Vec<Policy>> {
    let limit = prop::option::of(0u32..4).prop_map(move |limit| limit.filter(|_| limits));
    let one = (prop::collection::vec(rules(), 0..4), limit);
    prop::collection::vec(one, 0..4).prop_map(|all| {
        let all = all.into_iter().enumerate();
        all.map(|(i, (rules, max_removals))| Policy {
            name: format!("policy{i}"),
            rules,
            max_removals,
        })
        .collect()
    })
}

/// Bytes freed by removing these, counted anew from what stays.
fn freed(images: &[Candidate], gone: &BTreeSet<&str>) -> u64 {
    let disk = |keep: &dyn Fn(&Candidate) -> bool| -> u64 {
        let kept = images.iter().filter(|image| keep(image));
        let parts: BTreeSet<(&str, u64)> = kept
            .clone()
            .flat_map(|image| {
                image
                    .layers
                    .iter()
                    .map(|part| (part.id.as_str(), part.bytes))
            })
            .collect();
        kept.map(|image| image.own_bytes).sum::<u64>() + parts.iter().map(|(_, b)| b).sum::<u64>()
    };
    disk(&|_| true) - disk(&|image| !gone.contains(image.id.as_str()))
}

fn ids(plan: &Plan) -> BTreeSet<&str> {
    plan.remove
        .iter()
        .map(|removal| removal.id.as_str())
        .collect()
}

proptest! {
    #[test]
    fn every_image_goes_or_stays_and_none_that_is_protected_goes(
        images in images(), policies in policies(true), available in 0u64..400,
    ) {
        let plan = plan(&images, &policies, &disk(400, available), now());
        let kept: BTreeSet<&str> = plan.keep.iter().map(|kept| kept.id.as_str()).collect();
        prop_assert_eq!(plan.remove.len() + plan.keep.len(), images.len());
        prop_assert!(ids(&plan).is_disjoint(&kept));
        for image in &images {
            prop_assert!(image.protections.is_empty() || kept.contains(image.id.as_str()));
        }
        for kept in &plan.keep {
            prop_assert!(!kept.reason.is_empty());
        }
    }

    #[test]
    fn every_removal_has_a_rule_that_is_about_the_image_and_old_enough(
        images in images(), policies in policies(true), available in 0u64..400,
    ) {
        let plan = plan(&images, &policies, &disk(400, available), now());
        for removal in &plan.remove {
            let image = images.iter().find(|image| image.id == removal.id).unwrap();
            let policy = policies.iter().find(|p| p.name == removal.policy).unwrap();
            let rule = policy.rules.iter().any(|rule| {
                wording::rule(rule) == removal.rule
                    && rule.selects()
                    && rule.images.matches(image)
                    && rule.unused_for.is_none_or(|least| image.unused(now()) >= least)
            });
            prop_assert!(rule, "{:?}", removal);
        }
        for policy in &policies {
            let count = plan.remove.iter().filter(|r| r.policy == policy.name).count();
            prop_assert!(policy.max_removals.is_none_or(|most| count <= most as usize));
        }
    }

    #[test]
    fn bytes_are_those_that_only_the_removed_have(
        images in images(), policies in policies(true), available in 0u64..400,
    ) {
        let plan = plan(&images, &policies, &disk(400, available), now());
        let mut gone = BTreeSet::new();
        let mut before = 0;
        for removal in &plan.remove {
            gone.insert(removal.id.as_str());
            let after = freed(&images, &gone);
            prop_assert_eq!(removal.bytes, after - before);
            before = after;
        }
        prop_assert_eq!(plan.free_bytes, before);
    }

    #[test]
    fn without_any_one_removal_its_disk_rule_would_be_unsatisfied(
        images in images(), policies in policies(false), available in 0u64..400,
    ) {
        let disk = disk(400, available);
        let plan = plan(&images, &policies, &disk, now());
        let all = ids(&plan);
        for removal in &plan.remove {
            let policy = policies.iter().find(|p| p.name == removal.policy).unwrap();
            let rule = policy.rules.iter().find(|rule| wording::rule(rule) == removal.rule).unwrap();
            if !rule.follows_disk() {
                continue;
            }
            let mut without = all.clone();
            without.remove(removal.id.as_str());
            let (with, without) = (freed(&images, &all), freed(&images, &without));
            // Unsatisfied, and further from it than with the removal.
            prop_assert!(without < rule.wants(&disk), "{:?}", removal);
            prop_assert!(without < with, "{:?}", removal);
        }
    }

    #[test]
    fn a_disk_rule_that_can_be_satisfied_is(
        images in images(), rule in rules(), available in 0u64..400,
    ) {
        let disk = disk(400, available);
        let rule = Rule { min_free: Some(Amount::Bytes(200)), ..rule };
        let everything = Rule { min_free: Some(Amount::Bytes(u64::MAX)), ..rule.clone() };
        let run = |rule: &Rule| plan(&images, &[policy("p", vec![rule.clone()])], &disk, now());
        let (most, got) = (run(&everything).free_bytes, run(&rule));
        prop_assert_eq!(got.short_bytes, rule.wants(&disk).saturating_sub(got.free_bytes));
        prop_assert_eq!(got.short_bytes > 0, most < rule.wants(&disk));
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(
        images in images(), policies in policies(true), available in 0u64..400, turn in 0usize..14,
    ) {
        let disk = disk(400, available);
        let (mut shuffled, mut turned) = (images.clone(), policies.clone());
        shuffled.reverse();
        let turn = turn.checked_rem(shuffled.len()).unwrap_or(0);
        shuffled.rotate_left(turn);
        turned.reverse();
        prop_assert_eq!(
            plan(&images, &policies, &disk, now()),
            plan(&shuffled, &turned, &disk, now())
        );
    }

    #[test]
    fn an_emergency_frees_what_it_can_and_no_more(images in images(), target in 0u64..400) {
        let disk = disk(400, 0);
        let plan = emergency(&images, &disk, target, now());
        let all = ids(&plan);
        for removal in &plan.remove {
            let image = images.iter().find(|image| image.id == removal.id).unwrap();
            for protection in &image.protections {
                let weak = matches!(
                    protection,
                    Protection::Grace { .. } | Protection::Declared { pinned: false, .. }
                );
                prop_assert!(weak);
            }
            let mut without = all.clone();
            without.remove(removal.id.as_str());
            prop_assert!(freed(&images, &without) < target);
        }
        prop_assert_eq!(plan.short_bytes, target.saturating_sub(plan.free_bytes));
    }
}

//! Statuses from facts, and how two of them differ.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::verdict::MAX_MESSAGE;
use super::*;

fn known(resolved: usize, missing: usize, waiting: usize) -> Known {
    let fault = |at: usize| ImageFault {
        image: format!("wrong:{at}"),
        reason: reason::NOT_FOUND,
        message: "no such tag".to_owned(),
    };
    Known {
        resolved: (0..resolved)
            .map(|at| ResolvedImage {
                image: format!("app:{at}"),
                digest: "sha256:0".to_owned(),
            })
            .collect(),
        missing: (0..missing).map(fault).collect(),
        stale: Vec::new(),
        waiting,
        asking: 0,
        unlisted: false,
        total: resolved + missing + waiting,
    }
}

fn counts(desired: u64, admitted: u64, ready: u64, failed: u64, in_flight: u64) -> Counts {
    Counts {
        desired,
        admitted,
        ready,
        failed,
        unreachable: 0,
        in_flight,
    }
}

fn make(
    before: &PrepullStatus,
    known: &Known,
    counts: Counts,
    hold: Hold,
    current: bool,
    now: i64,
) -> PrepullStatus {
    status(Facts {
        before,
        generation: 3,
        rollout: current.then(|| RolloutStatus {
            observed_generation: 3,
            ..RolloutStatus::default()
        }),
        resolved: known.resolved.clone(),
        known,
        counts,
        hold,
        failures: Vec::new(),
        now: Timestamp::from_second(now).unwrap(),
    })
}

fn turn(status: &PrepullStatus, type_: &str) -> String {
    let condition = find(status, type_).unwrap();
    format!("{} {}", condition.status, condition.reason)
}

#[test]
fn conditions_say_where_a_rollout_is() {
    let before = PrepullStatus::default();
    let budget = Hold::BudgetExceeded {
        failed: 2,
        budget: 1,
    };
    for (known, counts, hold, current, expected) in [
        (
            known(0, 0, 2),
            counts(3, 0, 0, 0, 0),
            Hold::None,
            false,
            [
                "False NodesPending",
                "True Resolving",
                "False AsExpected",
                "Unknown Resolving",
            ],
        ),
        (
            known(2, 0, 0),
            counts(3, 1, 0, 0, 1),
            Hold::None,
            true,
            [
                "False NodesPending",
                "True RollingOut",
                "False AsExpected",
                "True AllResolved",
            ],
        ),
        (
            known(2, 0, 0),
            counts(3, 3, 3, 0, 0),
            Hold::None,
            true,
            [
                "True AllNodesReady",
                "False Complete",
                "False AsExpected",
                "True AllResolved",
            ],
        ),
        (
            known(2, 0, 0),
            counts(3, 3, 2, 1, 0),
            Hold::None,
            true,
            [
                "False NodesFailed",
                "False Complete",
                "False AsExpected",
                "True AllResolved",
            ],
        ),
        (
            known(1, 1, 0),
            counts(3, 3, 3, 0, 0),
            Hold::None,
            true,
            [
                "False NodesFailed",
                "False Complete",
                "False AsExpected",
                "False NotFound",
            ],
        ),
        (
            known(0, 1, 0),
            counts(3, 0, 0, 0, 0),
            Hold::None,
            false,
            [
                "False NodesFailed",
                "True Resolving",
                "False AsExpected",
                "False NotFound",
            ],
        ),
        (
            known(2, 0, 0),
            counts(0, 0, 0, 0, 0),
            Hold::None,
            true,
            [
                "True NoNodes",
                "False Complete",
                "False AsExpected",
                "True AllResolved",
            ],
        ),
        (
            known(2, 0, 0),
            counts(3, 1, 1, 0, 0),
            Hold::Paused,
            true,
            [
                "False NodesPending",
                "False Paused",
                "False AsExpected",
                "True AllResolved",
            ],
        ),
        (
            known(2, 0, 0),
            counts(3, 1, 1, 0, 0),
            Hold::OutsideWindow,
            true,
            [
                "False NodesPending",
                "False OutsideWindow",
                "False AsExpected",
                "True AllResolved",
            ],
        ),
        (
            known(2, 0, 0),
            counts(9, 3, 1, 2, 0),
            budget,
            true,
            [
                "False NodesFailed",
                "False FailureBudgetExceeded",
                "True FailureBudgetExceeded",
                "True AllResolved",
            ],
        ),
        (
            known(2, 0, 0),
            counts(9, 3, 1, 0, 2),
            Hold::DeadlineExceeded(Duration::from_secs(60)),
            true,
            [
                "False NodesPending",
                "False DeadlineExceeded",
                "True DeadlineExceeded",
                "True AllResolved",
            ],
        ),
    ] {
        let status = make(&before, &known, counts, hold, current, 0);
        let got = ["Ready", "Progressing", "Stalled", "Resolved"].map(|type_| turn(&status, type_));
        assert_eq!(got, expected);
    }
}

#[test]
fn a_time_of_transition_moves_with_the_status_only() {
    let known = known(1, 0, 0);
    let first = make(
        &PrepullStatus::default(),
        &known,
        counts(2, 1, 0, 0, 1),
        Hold::None,
        true,
        10,
    );
    let second = make(&first, &known, counts(2, 1, 0, 1, 0), Hold::None, true, 20);
    let third = make(&second, &known, counts(2, 2, 2, 0, 0), Hold::None, true, 30);
    let time = |status: &PrepullStatus| {
        find(status, "Ready")
            .unwrap()
            .last_transition_time
            .0
            .as_second()
    };
    assert_eq!([&first, &second, &third].map(time), [10, 10, 30]);
    // The reason changed.
    assert_eq!(difference(&first, &second), Difference::Turn);
}

#[test]
fn numbers_can_wait_and_turns_cannot() {
    let known = known(1, 0, 0);
    let before = PrepullStatus::default();
    let one = make(&before, &known, counts(9, 3, 1, 0, 2), Hold::None, true, 10);
    let two = make(&one, &known, counts(9, 3, 2, 0, 1), Hold::None, true, 20);
    assert_eq!(difference(&one, &one), Difference::None);
    assert_eq!(difference(&one, &two), Difference::Detail);
    let mut three = two.clone();
    three.rollout.as_mut().unwrap().admitted = 7;
    assert_eq!(difference(&two, &three), Difference::Turn);
    let mut four = two.clone();
    four.rollout.as_mut().unwrap().refresh_time = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(difference(&two, &four), Difference::None);
}

#[test]
fn a_message_spells_out_three_faults_and_is_bounded() {
    let mut many = known(0, 200, 0);
    for fault in &mut many.missing {
        fault.image = "x".repeat(512);
    }
    let status = make(
        &PrepullStatus::default(),
        &many,
        counts(1, 0, 0, 0, 0),
        Hold::None,
        false,
        0,
    );
    for condition in &status.conditions {
        assert!(condition.message.chars().count() <= MAX_MESSAGE);
    }
}

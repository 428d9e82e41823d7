//! Which prune policies look now, and when the others do. Pure.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::prune_policy::{Due, PrunePolicy};
use super::prune_record::Record;
use crate::k8s::api::{PruneState, reason};

/// Longest sleep; a clock may be set.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// When a policy without a schedule looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneTiming {
    /// After images or the disk changed: more may change just now.
    pub settle: Duration,
    /// Between two looks, at least.
    pub apart: Duration,
    /// Between two looks, at most: time alone makes images old.
    pub most: Duration,
}

impl Default for PruneTiming {
    fn default() -> Self {
        PruneTiming {
            settle: Duration::from_secs(5),
            apart: Duration::from_secs(60),
            most: Duration::from_secs(300),
        }
    }
}

/// What is known of looks at the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looks {
    /// The last one, or the start.
    pub(super) looked: Instant,
    /// Since when images or the disk differ from what it saw.
    pub(super) changed: Option<Instant>,
    /// After one that was not possible: when it is tried again.
    pub(super) retry: Option<Instant>,
}

impl Looks {
    pub(super) fn new(now: Instant) -> Self {
        Looks {
            looked: now,
            changed: None,
            retry: None,
        }
    }
}

/// Now, by the clock that nobody sets and by the one on the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall: Timestamp,
}

/// A policy whose time has come.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) policy: PrunePolicy,
    /// It removes images; otherwise it tells what would go.
    pub(super) acts: bool,
    /// The end of the window that it is in.
    pub(super) window: Option<Timestamp>,
}

/// A policy whose time has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// When to ask again.
    pub(super) at: Instant,
    /// When it looks next, where a schedule says so.
    pub(super) run: Option<Timestamp>,
}

impl Wait {
    fn until(at: Instant) -> Self {
        Wait { at, run: None }
    }
}

/// Whether it is a policy's turn.
pub(super) fn turn(
    policy: &PrunePolicy,
    acts: bool,
    record: &Record,
    looks: &Looks,
    timing: &PruneTiming,
    Moment { now, wall }: Moment,
) -> Result<Turn, Wait> {
    let turn = |window| {
        Ok(Turn {
            policy: policy.clone(),
            acts,
            window,
        })
    };
    if let Err(fault) = &policy.rules {
        let known = record.now.reason == reason::INVALID_SPEC && record.now.message == *fault;
        return match known {
            true => Err(Wait::until(now + LONGEST)),
            false => turn(None),
        };
    }
    if let Some(retry) = looks.retry.filter(|retry| *retry > now) {
        return Err(Wait::until(retry));
    }
    let failed = record.now.state == PruneState::Failed;
    // The first look of a revision, and the first one since the node was admitted.
    let pending = acts && record.now.state == PruneState::Pending;
    let begun = record.run.is_some();
    if policy.schedule.is_continuous() {
        if record.last.is_none() || pending || begun || failed {
            return turn(None);
        }
        let mut at = looks.looked + timing.most;
        if let Some(changed) = looks.changed {
            at = at.min((changed + timing.settle).max(looks.looked + timing.apart));
        }
        return match at <= now {
            true => turn(None),
            false => Err(Wait::until(at)),
        };
    }
    // What would go is told at once; what goes, goes when the schedule says.
    if !acts && record.last.is_none() {
        return turn(None);
    }
    let last = record.last.filter(|_| !pending && !begun && !failed);
    match policy.schedule.due(last, record.window, wall) {
        Due::Now(window) => turn(window),
        Due::At(None) => Err(Wait::until(now + LONGEST)),
        Due::At(Some(at)) => {
            let pause = Duration::try_from(at.duration_since(wall)).unwrap_or_default();
            Err(Wait {
                at: now + pause.min(LONGEST) + Duration::from_millis(1),
                run: Some(at),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::ImagePrunePolicy;

    fn policy(spec: &str) -> PrunePolicy {
        let object: ImagePrunePolicy = serde_saphyr::from_str(&format!(
            "apiVersion: larder.dev/v1alpha1\nkind: ImagePrunePolicy\nmetadata: {{name: p, uid: u}}\nspec: {spec}"
        ))
        .unwrap();
        PrunePolicy::of_api(&object)
    }

    #[test]
    fn a_policy_without_a_schedule_looks_when_something_changed_and_now_and_then() {
        let continuous = policy("{mode: Enforce, rules: [{keepLast: 1}]}");
        let timing = PruneTiming::default();
        let start = Instant::now() + Duration::from_secs(10_000);
        let wall = Timestamp::now();
        let mut record = Record::default();
        record.now.state = PruneState::Done;
        let mut looks = Looks::new(start);
        let at = |record: &Record, looks: &Looks, second: u64| {
            let moment = Moment {
                now: start + Duration::from_secs(second),
                wall,
            };
            turn(&continuous, true, record, looks, &timing, moment).map_err(|wait| wait.at - start)
        };
        let seconds = |turn: Result<Turn, Duration>| turn.map_err(|at| at.as_secs()).map(|_| ());
        assert_eq!(seconds(at(&record, &looks, 0)), Ok(()), "it never ran");
        record.last = Some(wall);
        assert_eq!(seconds(at(&record, &looks, 0)), Err(300));
        looks.changed = Some(start + Duration::from_secs(100));
        assert_eq!(seconds(at(&record, &looks, 101)), Err(105));
        looks.changed = Some(start);
        assert_eq!(seconds(at(&record, &looks, 1)), Err(60));
        assert_eq!(seconds(at(&record, &looks, 60)), Ok(()));
        looks.retry = Some(start + Duration::from_secs(70));
        assert_eq!(seconds(at(&record, &looks, 60)), Err(70));
        looks.retry = None;
        record.now.state = PruneState::Failed;
        assert_eq!(seconds(at(&record, &looks, 1)), Ok(()));
    }

    #[test]
    fn a_schedule_says_when_what_goes_goes_and_a_rehearsal_is_told_at_once() {
        let hourly = policy("{mode: Enforce, rules: [{keepLast: 1}], schedule: {interval: 1h}}");
        let moment = Moment {
            now: Instant::now(),
            wall: "2026-11-21T12:00:00Z".parse().unwrap(),
        };
        let looks = Looks::new(moment.now);
        let timing = PruneTiming::default();
        let mut record = Record::default();
        let ask = |acts, record: &Record| turn(&hourly, acts, record, &looks, &timing, moment);
        assert!(ask(false, &record).is_ok());
        record.last = Some("2026-11-21T11:30:00Z".parse().unwrap());
        let wait = ask(false, &record).unwrap_err();
        assert_eq!(wait.run, Some("2026-11-21T12:30:00Z".parse().unwrap()));
        assert!(wait.at <= moment.now + LONGEST + Duration::from_millis(1));
        // Admitted since.
        assert!(ask(true, &record).is_ok_and(|turn| turn.acts));
        record.now.state = PruneState::Done;
        assert!(ask(true, &record).is_err());
        // What cannot be read is said once.
        let wrong = policy("{rules: [{minFree: 0%}]}");
        let fault = wrong.rules.clone().unwrap_err();
        assert!(turn(&wrong, false, &record, &looks, &timing, moment).is_ok());
        record.now.reason = reason::INVALID_SPEC.to_owned();
        record.now.message = fault;
        assert!(turn(&wrong, false, &record, &looks, &timing, moment).is_err());
    }
}

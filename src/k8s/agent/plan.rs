//! What to pull next, as a pure function: which units are missing, which may start now, and when to look again.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::assign::Hold;
use super::prepull::{Terms, Unit, later};
use super::retry::Failures;
use crate::k8s::api::{Opening, SecretRef};

/// Pulls at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// On this node.
    pub per_node: usize,
    /// From one registry.
    pub per_registry: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            per_node: 2,
            per_registry: 2,
        }
    }
}

/// What the plan is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    /// What to hold.
    pub(super) holds: &'a [Hold],
    /// Failures so far.
    pub(super) failures: &'a Failures,
    /// Pulls that run.
    pub(super) running: &'a BTreeSet<Unit>,
    /// How many may.
    pub(super) limits: Limits,
}

/// A pull to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// What.
    pub(super) unit: Unit,
    /// Highest of those who want it.
    pub(super) priority: i32,
    /// Of one of those who want it: after a failure, of the next one.
    pub(super) secrets: Vec<SecretRef>,
    /// Of the same one; nobody's secret makes an image public because another one is generous.
    pub(super) node_wide: bool,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Pulls to start, the most urgent first.
    pub(super) start: Vec<Start>,
    /// Pulls that nobody wants any more.
    pub(super) cancel: Vec<Unit>,
    /// When to plan again, if nothing happens before.
    pub(super) wake: Option<Timestamp>,
}

/// Everyone who wants a unit.
struct Wanted<'a> {
    holds: Vec<&'a Hold>,
    missing: bool,
}

/// Plans. `held` says whether a unit is held as the terms ask for, `stale` when a held one is to be pulled again.
pub(super) fn plan(
    work: Work<'_>,
    held: impl Fn(&Terms, &Unit) -> bool,
    stale: impl Fn(&Hold, &Unit) -> Option<Timestamp>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut wake = |at: Timestamp| {
        if at > now {
            plan.wake = Some(plan.wake.map_or(at, |before: Timestamp| before.min(at)));
        }
    };
    let mut wanted: BTreeMap<&Unit, Wanted<'_>> = BTreeMap::new();
    for hold in work.holds {
        if let Some(end) = hold.released_at() {
            wake(end);
        }
        let opening = hold.terms.window.map(|window| window.opening(now));
        for unit in hold.wanted() {
            let is_held = held(&hold.terms, unit);
            let again = stale(hold, unit).filter(|_| is_held);
            if let Some(at) = again {
                wake(at);
            }
            let missing = !is_held || again.is_some_and(|at| at <= now);
            let running = work.running.contains(unit);
            if !missing && !running {
                continue;
            }
            if let Some(Opening::Closed(until)) = opening
                && !running
            {
                until.into_iter().for_each(&mut wake);
                continue;
            }
            let entry = wanted.entry(unit).or_insert(Wanted {
                holds: Vec::new(),
                missing: false,
            });
            entry.holds.push(hold);
            entry.missing |= missing;
        }
    }
    for unit in work.running {
        if !wanted.contains_key(unit) {
            plan.cancel.push(unit.clone());
        }
    }

    // Units are in order already, which settles what priorities leave open.
    let mut ready: Vec<(&Unit, Start)> = Vec::new();
    for (unit, wanted) in &wanted {
        if !wanted.missing || work.running.contains(*unit) {
            continue;
        }
        let failures = work.failures.get(*unit);
        if let Some(failures) = failures
            && !failures.due(now)
        {
            wake(failures.next);
            continue;
        }
        let mut holds = wanted.holds.clone();
        holds.sort_by_key(|hold| std::cmp::Reverse(hold.terms.priority));
        let turn = failures.map_or(0, |failures| failures.failures as usize);
        let Some(hold) = turn
            .checked_rem(holds.len())
            .and_then(|turn| holds.get(turn))
        else {
            continue;
        };
        let priority = holds.first().map_or(0, |hold| hold.terms.priority);
        ready.push((
            unit,
            Start {
                unit: (*unit).clone(),
                priority,
                secrets: hold.terms.secrets.clone(),
                node_wide: hold.terms.node_wide,
            },
        ));
    }
    ready.sort_by_key(|(unit, start)| {
        let failed = work.failures.contains_key(*unit);
        // What failed before waits behind what did not: one bad image holds up no good one.
        (std::cmp::Reverse(start.priority), failed)
    });

    let running = || work.running.iter().filter(|unit| wanted.contains_key(unit));
    let mut places = work.limits.per_node.saturating_sub(work.running.len());
    let mut registries: BTreeMap<String, usize> = BTreeMap::new();
    for unit in running() {
        *registries.entry(unit.registry()).or_default() += 1;
    }
    for (unit, start) in ready {
        if places == 0 {
            break;
        }
        let of_registry = registries.entry(unit.registry()).or_default();
        if *of_registry >= work.limits.per_registry {
            continue;
        }
        *of_registry += 1;
        places -= 1;
        plan.start.push(start);
    }
    plan
}

/// When a tag that is held is to be pulled again: without a controller, each node follows tags by itself. `share` of
/// the interval, within 0..1, keeps nodes apart.
pub(super) fn stale_at(
    hold: &Hold,
    unit: &Unit,
    pulled: Timestamp,
    share: f64,
) -> Option<Timestamp> {
    if hold.terms.refresh_seconds == 0 || !unit.digest.is_empty() || unit.image.contains('@') {
        return None;
    }
    let interval = std::time::Duration::from_secs(hold.terms.refresh_seconds);
    Some(later(
        pulled,
        interval.mul_f64(1.0 + share.clamp(0.0, 1.0) / 10.0),
    ))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

//! One look at one prepull: what to ask, whether there is a new revision, who is let in, what the status should be,
//! and whether it is written now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::board::{Board, Effect, Gather, Write, anonymous};
use super::desk::Asked;
use super::failures::Failures;
use super::gate;
use super::lookups::Known;
use super::nodes::Nodes;
use super::pace::{self, write_cost};
use super::prepull::{Prepull, SETTLE};
use super::revision::{Next, admitted, is_current, next};
use super::seats::Seats;
use super::status::{self, Difference, Facts, Hold, difference};
use super::wave::{self, Counts, Limits, Position, Progress};
use crate::image::Platform;
use crate::k8s::api::{
    ALL, IntOrPercent, NOBODY, Opening, PrepullFailure, PrepullStatus, ResolvedImage, Rollout,
    RolloutStatus, TimeWindow, parse_duration,
};

/// Pause where too much is under way already.
const BUSY: Duration = Duration::from_millis(250);
/// The shortest pause between two looks that nothing caused.
const AGAIN: Duration = Duration::from_millis(50);
/// A first status waits so long for answers, so that it has something to say.
const FIRST_STATUS: Duration = Duration::from_secs(1);
/// A share of the nodes that may work at once, which is worth a step.
const STEPS_IN_FLIGHT: u64 = 4;

impl Board {
    /// Looks at a prepull, and marks when to look again.
    pub(super) fn reconcile(
        &mut self,
        number: u32,
        now: Instant,
        wall: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut prepull) = self.take(number) else {
            return;
        };
        prepull.reconciled = Some(now);
        let wake = if prepull.declared.ending {
            None
        } else {
            self.look(number, &mut prepull, now, wall, effects)
        };
        self.put_back(number, prepull);
        if let Some(wake) = wake {
            // Never at once: what could not be done now cannot be done a moment later.
            self.mark(number, wake.max(now + AGAIN));
        }
    }

    fn look(
        &mut self,
        number: u32,
        prepull: &mut Prepull,
        now: Instant,
        wall: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Option<Instant> {
        let mut wake = Wake(None);
        self.ask(number, prepull, now, effects, &mut wake);
        if prepull.writing {
            return wake.0;
        }
        let known = prepull.lookups.known();
        let since = prepull.lookups.since();
        let waited = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let listed = prepull.listed == Some(prepull.declared.generation);
        if listed && known.waiting + known.asking > 0 {
            wake.at(now + super::lookups::PATIENCE.saturating_sub(waited).max(BUSY));
            if prepull.declared.status.conditions.is_empty() && waited < FIRST_STATUS {
                wake.at(now + FIRST_STATUS.saturating_sub(waited));
                return wake.0;
            }
        }

        let plan = plan(
            prepull,
            &self.nodes,
            &known,
            listed && known.is_usable(waited),
            now,
            wall,
            &mut wake,
        );
        gate::openings(prepull, &self.nodes, now, wall, effects, &mut |at| {
            wake.at(at);
        });
        let after = assemble(prepull, &self.nodes, &known, plan, wall);
        let before = &prepull.declared.status;
        let difference = difference(before, &after);
        if difference == Difference::None {
            return wake.0;
        }
        let due = pace::due(
            prepull.last_write,
            now,
            prepull.seats.len(),
            difference == Difference::Turn,
        );
        let due = prepull
            .not_before
            .map_or(due, |not_before| due.max(not_before));
        if due > now {
            wake.at(due);
            return wake.0;
        }
        if !self.may_write() {
            wake.at(now + BUSY);
            return wake.0;
        }
        if let Err(later) = self.writes.take(write_cost(self.nodes.len()), now) {
            wake.at(later);
            return wake.0;
        }
        self.writing += 1;
        prepull.writing = true;
        effects.push(Effect::Write(Box::new(Write {
            prepull: number,
            key: prepull.declared.key.clone(),
            uid: prepull.declared.uid.clone(),
            version: prepull.declared.version.clone(),
            status: after,
            before: prepull.declared.status.clone(),
            completed: prepull.completed.clone(),
        })));
        wake.0
    }

    /// Workloads, secrets and registries.
    fn ask(
        &mut self,
        number: u32,
        prepull: &mut Prepull,
        now: Instant,
        effects: &mut Vec<Effect>,
        wake: &mut Wake,
    ) {
        let jitter = self.jitter();
        prepull.list(now);
        let interval = prepull.refresh_interval();
        prepull.lookups.refresh_every(interval, now, jitter);
        if prepull.must_gather(now) {
            if self.may_gather() {
                self.gathering += 1;
                prepull.gathering = true;
                effects.push(Effect::Gather(Gather {
                    prepull: number,
                    uid: prepull.id,
                    generation: prepull.declared.generation,
                    workloads: prepull.declared.workloads.clone(),
                    secrets: prepull.declared.secrets.clone(),
                }));
            } else {
                wake.at(now + BUSY);
            }
        }
        if !prepull.gathering && prepull.lookups.is_due(now) {
            let credentials = match (&prepull.credentials, prepull.declared.secrets.is_empty()) {
                (Some(credentials), _) => Arc::clone(credentials),
                (None, true) => anonymous(),
                // They are read first.
                (None, false) => return,
            };
            for (image, reference) in prepull.lookups.due(now, jitter) {
                let waiter = (number, image.clone());
                match self
                    .desk
                    .ask(reference, Arc::clone(&credentials), waiter, now)
                {
                    Asked::Answered(answer) => prepull.answer(&image, &answer, now, jitter),
                    Asked::Waiting => {}
                    Asked::Full => prepull.lookups.postpone(&image, now + BUSY * 20),
                }
            }
        }
        if !prepull.lookups.is_asking() && !prepull.lookups.is_due(now) {
            // Secrets stay in memory for one round only.
            prepull.credentials = None;
        }
        if !prepull.gathering {
            prepull
                .lookups
                .wake()
                .into_iter()
                .for_each(|at| wake.at(at));
            prepull
                .workloads_at()
                .into_iter()
                .for_each(|at| wake.at(at));
        }
    }
}

/// The earliest of several instants.
struct Wake(Option<Instant>);

impl Wake {
    fn at(&mut self, at: Instant) {
        self.0 = Some(self.0.map_or(at, |before| before.min(at)));
    }
}

/// Revision, threshold and counts, as they should be.
struct Plan {
    rollout: Option<RolloutStatus>,
    resolved: Vec<ResolvedImage>,
    counts: Counts,
    hold: Hold,
}

fn plan(
    prepull: &mut Prepull,
    nodes: &Nodes,
    known: &Known,
    usable: bool,
    now: Instant,
    wall: Timestamp,
    wake: &mut Wake,
) -> Plan {
    let (spec, generation) = (&prepull.declared.spec, prepull.declared.generation);
    let status = &prepull.declared.status;
    let mut rollout = status.rollout.clone();
    let mut resolved = status.resolved.clone();
    let step = if usable {
        next(status, generation, &known.resolved, &spec.platforms)
    } else {
        Next::Keep
    };
    if let Next::New(revision) = &step {
        resolved.clone_from(&known.resolved);
        rollout = Some(RolloutStatus {
            revision: revision.clone(),
            observed_generation: generation,
            admitted: NOBODY,
            start_time: Some(Time(wall)),
            refresh_time: Some(Time(wall)),
        });
    }
    let revision = rollout.as_ref().map_or("", |rollout| &rollout.revision);
    if prepull.seats.revision() != revision {
        prepull.seats = Seats::new(&prepull.declared.uid, revision, spec, nodes);
    }
    let seats = &prepull.seats;
    let counts = |position: Position| wave::count(seats.iter(nodes), position);

    let threshold = rollout.as_ref().map_or(NOBODY, |rollout| rollout.admitted);
    let mut position = prepull.position(threshold, now);
    let (mut limits, mut hold) = limits(&spec.rollout, seats.len());
    if let Some(fault) = invalid(prepull) {
        hold = Hold::Invalid(fault);
    }
    if let Some(rollout) = &mut rollout {
        if step == Next::Observe {
            rollout.observed_generation = generation;
            rollout.refresh_time = Some(Time(wall));
            position = prepull.position(wave::resume(seats.iter(nodes), position, limits), now);
        }
        if hold == Hold::None {
            let complete = prepull.completed.as_ref() == Some(&rollout.revision);
            hold = holds(
                prepull,
                rollout,
                counts(position),
                complete,
                now,
                wall,
                wake,
            );
        }
        let current = step == Next::Keep && is_current(status, generation);
        if hold == Hold::None && current {
            let rest = pace::interval(seats.len());
            let rested = prepull
                .last_write
                .is_none_or(|last| now.saturating_duration_since(last) >= rest);
            if !rested {
                limits.min_step = (limits.max_in_flight / STEPS_IN_FLIGHT).max(1);
                // Small steps are due then.
                wake.at(prepull.last_write.map_or(now, |last| last + rest));
            }
            let next = wave::advance(seats.iter(nodes), position, limits);
            position.threshold = next;
            if next < ALL {
                // Unreachable nodes give their places away.
                wake.at(now + SETTLE);
            }
        }
        rollout.admitted = position.threshold;
    }
    Plan {
        counts: counts(position),
        rollout,
        resolved,
        hold,
    }
}

/// What bounds a step; values that are none stop the rollout.
fn limits(rollout: &Rollout, desired: u64) -> (Limits, Hold) {
    let mut limits = Limits {
        max_in_flight: 1,
        min_step: 1,
    };
    let share = rollout.max_in_flight.clone();
    match share.unwrap_or_else(Rollout::default_share).of(desired) {
        Ok(max) => limits.max_in_flight = max.max(1),
        Err(error) => {
            return (
                limits,
                Hold::Invalid(format!("rollout.maxInFlight: {error}")),
            );
        }
    }
    (limits, Hold::None)
}

/// Why no further node is let in just now.
fn holds(
    prepull: &Prepull,
    rollout: &RolloutStatus,
    counts: Counts,
    complete: bool,
    now: Instant,
    wall: Timestamp,
    wake: &mut Wake,
) -> Hold {
    let spec = &prepull.declared.spec;
    let budget = spec.rollout.max_failures.clone();
    match budget
        .unwrap_or(IntOrPercent::Percent("10%".to_owned()))
        .of(counts.desired)
    {
        Ok(budget) if counts.failed > budget => {
            return Hold::BudgetExceeded {
                failed: counts.failed,
                budget,
            };
        }
        Ok(_) => {}
        Err(error) => return Hold::Invalid(format!("rollout.maxFailures: {error}")),
    }
    let started = rollout.start_time.as_ref().map(|time| time.0);
    if let Some((deadline, started)) = deadline(&spec.rollout).zip(started)
        && !complete
        && !counts.answered()
    {
        let passed = wall
            .duration_since(started)
            .max(Default::default())
            .unsigned_abs();
        if passed >= deadline {
            return Hold::DeadlineExceeded(deadline);
        }
        wake.at(now + deadline.saturating_sub(passed));
    }
    if spec.rollout.paused {
        return Hold::Paused;
    }
    if let Some(window) = &spec.window {
        let mut wake_at = |until: Option<Timestamp>| {
            let left = until.map(|until| until.duration_since(wall).max(Default::default()));
            left.into_iter()
                .for_each(|left| wake.at(now + left.unsigned_abs()));
        };
        match TimeWindow::new(window).map(|window| window.opening(wall)) {
            Ok(Opening::Open(until)) => wake_at(until),
            Ok(Opening::Closed(until)) => {
                wake_at(until);
                return Hold::OutsideWindow;
            }
            Err(error) => return Hold::Invalid(error.to_string()),
        }
    }
    Hold::None
}

fn deadline(rollout: &Rollout) -> Option<Duration> {
    parse_duration(rollout.deadline.as_deref()?).ok()
}

/// A value that passed the schema of an older version, or of none, and means nothing.
fn invalid(prepull: &Prepull) -> Option<String> {
    let spec = &prepull.declared.spec;
    for (field, text) in [
        ("refreshInterval", &spec.refresh_interval),
        ("rollout.deadline", &spec.rollout.deadline),
        ("retainAfterDeletion", &spec.retain_after_deletion),
    ] {
        if let Some(Err(error)) = text.as_deref().map(parse_duration) {
            return Some(format!("{field}: {error}"));
        }
    }
    spec.platforms.iter().find_map(|text| {
        let error = text.parse::<Platform>().err()?;
        Some(format!("platforms: {error}"))
    })
}

fn assemble(
    prepull: &Prepull,
    nodes: &Nodes,
    known: &Known,
    plan: Plan,
    wall: Timestamp,
) -> PrepullStatus {
    let failures = failures(prepull, nodes, known);
    status::status(Facts {
        before: &prepull.declared.status,
        generation: prepull.declared.generation,
        rollout: plan.rollout,
        resolved: plan.resolved,
        known,
        counts: plan.counts,
        hold: plan.hold,
        failures,
        now: wall,
    })
}

/// What keeps nodes from being ready: images without a digest, and what the nodes report.
fn failures(prepull: &Prepull, nodes: &Nodes, known: &Known) -> Vec<PrepullFailure> {
    let mut failures = Failures::default();
    let images = &prepull.declared.status.resolved;
    let threshold = admitted(&prepull.declared.status);
    for (number, slot, progress) in prepull.seats.nodes() {
        let Some(entry) = nodes.get(number) else {
            continue;
        };
        let (Some(node), Some(report)) = (&entry.node, entry.own_report()) else {
            continue;
        };
        if progress == Progress::Ready || slot > threshold {
            continue;
        }
        let mut any = false;
        for fault in &report.faults {
            let ours = fault.prepull == prepull.id
                || (fault.prepull == 0 && images.iter().any(|image| *image.image == *fault.image));
            if ours {
                any = true;
                failures.add(&node.facts.name, &fault.image, fault.reason, &fault.message);
            }
        }
        if !any && progress == Progress::Failed {
            let reason = report.held(prepull.id).map_or("", |held| held.reason());
            failures.add(
                &node.facts.name,
                "",
                reason,
                "the node names no image; ask its agent: larder status",
            );
        }
    }
    let first = prepull
        .seats
        .nodes()
        .next()
        .and_then(|(number, ..)| nodes.get(number));
    let first = first.and_then(|entry| Some(entry.node.as_ref()?.facts.name.as_str()));
    for fault in &known.missing {
        failures.add_unresolved(fault, first, prepull.seats.len());
    }
    failures.top()
}

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
use super::pace::write_cost;
use super::prepull::Prepull;
use super::revision::{Next, admitted, is_current, next};
use super::rollout::{self, Hold, Moment, Room, Terms, Turn, Wake};
use super::seats::Seats;
use super::status::{self, Difference, Facts, difference};
use super::wave::{Counts, Progress};
use crate::image::Platform;
use crate::k8s::api::{
    NOBODY, PrepullFailure, PrepullStatus, ResolvedImage, RolloutStatus, parse_duration,
};

/// Pause where too much is under way already.
const BUSY: Duration = Duration::from_millis(250);
/// The shortest pause between two looks that nothing caused.
const AGAIN: Duration = Duration::from_millis(50);
/// A first status waits so long for answers, so that it has something to say.
const FIRST_STATUS: Duration = Duration::from_secs(1);

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
        let wake = if prepull.declared.ending || prepull.unreadable {
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
        if prepull.writes.under_way {
            return wake.0;
        }
        let mut known = prepull.lookups.known();
        let since = prepull.lookups.since();
        let waited = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let listed = prepull.listed == Some(prepull.declared.generation);
        known.unlisted = !listed;
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
        let urgent = difference == Difference::Turn;
        let due = prepull.writes.due(now, prepull.seats.len(), urgent);
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
        prepull.writes.under_way = true;
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
    let room = Room {
        seats: &prepull.seats,
        nodes,
        steps: &prepull.steps,
    };
    let revision = rollout.as_ref().map(|rollout| &rollout.revision);
    let terms = Terms {
        rollout: &spec.rollout,
        window: spec.window.as_ref(),
        invalid: invalid(prepull),
        complete: revision.is_some() && prepull.completed.as_ref() == revision,
        last_write: prepull.writes.last,
    };
    let (counts, hold) = match &mut rollout {
        None => {
            let (_, hold) = rollout::limits(&terms, prepull.seats.len());
            (room.count(NOBODY, now), hold)
        }
        Some(rollout) => {
            if step == Next::Observe {
                rollout.observed_generation = generation;
                rollout.refresh_time = Some(Time(wall));
            }
            let turn = match step {
                Next::Observe => Turn::Observed,
                Next::Keep if is_current(status, generation) => Turn::Current,
                Next::Keep | Next::New(_) => Turn::New,
            };
            rollout::proceed(&terms, room, rollout, turn, Moment { now, wall }, wake)
        }
    };
    Plan {
        counts,
        rollout,
        resolved,
        hold,
    }
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

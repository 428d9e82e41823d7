//! Removes what policies select, and tells what they would: the shell around the planner.
//!
//! Decides nothing about images: `crate::prune` does. Owns when to look, carries plans out one removal after the other,
//! and writes down what it is about to do before it does it. While it is not known what is in use or declared, nothing
//! goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Message;
use super::metrics::Metrics;
use super::prune_policy::PrunePolicy;
use super::prune_record::{Current, Memory, Run, entry};
use super::prune_turns::{LONGEST, Looks, Moment, PruneTiming, Turn, turn};
use super::retry::roll;
use super::seam::{PruneFault, Pruning};
use super::state::StateFile;
use crate::k8s::api::{PruneReport, reason};
use crate::k8s::backoff::backoff;
use crate::prune::{self, Candidate, Disk, Plan};

/// Of a look at all images.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Of one removal.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(600);
/// Removals of one run that may fail before the rest is left for the next one.
const MOST_FAULTS: u32 = 3;
/// Pauses after a look that was not possible.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What the pruner is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Input {
    /// `metadata.uid` of the node.
    pub(super) node: String,
    /// Policies that choose the node, by name.
    pub(super) policies: Vec<PrunePolicy>,
    /// Everything that is declared was seen since the start, and is protected.
    pub(super) settled: bool,
    /// Namespaces that declare images, by id.
    pub(super) namespaces: BTreeMap<String, BTreeSet<String>>,
    /// Differs when images, what is declared or the disk did change.
    pub(super) stamp: Stamp,
}

/// Images, how often what is declared changed, and the disk in steps.
pub(super) type Stamp = (String, u64, u64);

/// What the pruner tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Output {
    /// By name of the policy. Those of files are not for the API server.
    pub(super) reports: Vec<Told>,
    /// Whether policies can do their work; `None` without any.
    pub(super) ready: Option<Ready>,
}

/// Of one policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    /// For the API server, which is not told everything at once.
    pub(super) report: PruneReport,
    /// As it is.
    pub(super) now: PruneReport,
    /// The file it is from; empty for the API server.
    pub(super) file: String,
    pub(super) desired: u64,
    /// Its mode is `Enforce`.
    pub(super) enforces: bool,
    /// It removes images here: besides, the node is admitted, and the rules can be read.
    pub(super) acts: bool,
    /// When it looks next, where a schedule says so.
    pub(super) next: Option<Timestamp>,
}

/// The condition `PruneReady`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) met: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The pruner, not running yet.
pub(super) struct Pruner {
    pub(super) pruning: Arc<dyn Pruning>,
    pub(super) state: StateFile,
    pub(super) timing: PruneTiming,
    pub(super) metrics: Metrics,
}

/// The pruner at work.
struct Work {
    pruning: Arc<dyn Pruning>,
    state: StateFile,
    timing: PruneTiming,
    metrics: Metrics,
    inputs: watch::Receiver<Arc<Input>>,
    memory: Memory,
    saved: Memory,
    save_fault: bool,
    ready: Option<Ready>,
    /// Of the last look.
    stamp: Stamp,
    looks: Looks,
    /// By uid of the policy, where a schedule says it.
    next: BTreeMap<String, Timestamp>,
    /// When images and their users were last asked for: who looks seldom sees little use.
    asked: Option<Instant>,
    failures: u32,
}

impl Pruner {
    /// Works until nobody tells it anything any more.
    pub(super) async fn run(
        self,
        inputs: watch::Receiver<Arc<Input>>,
        tell: fn(Arc<Output>) -> Message,
        to: mpsc::Sender<Message>,
    ) {
        let Pruner {
            pruning,
            state,
            timing,
            metrics,
        } = self;
        let loading = state.clone();
        let memory: Memory = match tokio::task::spawn_blocking(move || loading.read()).await {
            Ok(Ok(memory)) => memory.unwrap_or_default(),
            Ok(Err(error)) => {
                tracing::error!(err = %error, "What was pruned is forgotten; runs begin anew");
                Memory::default()
            }
            Err(error) => {
                tracing::error!(err = %error, "Loading what was pruned panicked");
                Memory::default()
            }
        };
        // Policies may not be known for a while, and pulls are under way.
        pruning.reserve(memory.reserved);
        let mut work = Work {
            pruning,
            state,
            timing,
            metrics,
            inputs,
            saved: memory.clone(),
            memory,
            save_fault: false,
            ready: None,
            stamp: Default::default(),
            looks: Looks::new(Instant::now()),
            next: BTreeMap::new(),
            asked: None,
            failures: 0,
        };
        let mut told = None;
        loop {
            let wake = work.settle().await;
            let output = work.output();
            work.save().await;
            if told.as_ref() != Some(&output) {
                told = Some(output.clone());
                if to.send(tell(Arc::new(output))).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = work.inputs.changed() => if changed.is_err() { return },
                () = sleep_until(wake) => {}
            }
        }
    }
}

impl Work {
    /// Looks, if it is time. The answer is when to come back at the latest.
    async fn settle(&mut self) -> Instant {
        let input = self.inputs.borrow_and_update().clone();
        let moment = Moment {
            now: Instant::now(),
            wall: Timestamp::now(),
        };
        let now = moment.now;
        if !input.settled {
            return now + LONGEST;
        }
        self.memory.follow(&input.policies);
        if self.stamp != input.stamp {
            self.stamp.clone_from(&input.stamp);
            self.looks.changed.get_or_insert(now);
        }
        let mut wake = now + LONGEST.min(self.timing.most);
        let mut turns = Vec::new();
        self.next.clear();
        for policy in &input.policies {
            let record = self.memory.records.get(&policy.uid);
            let record = record.cloned().unwrap_or_default();
            let acts = policy.acts(&input.node);
            match turn(policy, acts, &record, &self.looks, &self.timing, moment) {
                Ok(turn) => turns.push(turn),
                Err(wait) => {
                    wake = wake.min(wait.at);
                    let next = wait.run.map(|at| (policy.uid.clone(), at));
                    self.next.extend(next);
                }
            }
        }
        if turns.is_empty() {
            // A policy of tomorrow wants to know what was used today.
            let most = self.timing.most;
            let stale = self.asked.is_none_or(|asked| now - asked >= most);
            if stale && self.looks.retry.is_none_or(|retry| retry <= now) {
                let _ = self.ask(&input, &[]).await;
            }
            if input.policies.is_empty() {
                self.ready = None;
                self.reserve(0);
            }
            return wake;
        }
        self.look(&input, turns).await;
        // Whoever has to wait, waits from now on; nothing is due at once twice.
        Instant::now() + self.timing.settle.min(Duration::from_secs(1))
    }

    async fn look(&mut self, input: &Input, turns: Vec<Turn>) {
        let (wrong, turns): (Vec<Turn>, Vec<Turn>) = turns
            .into_iter()
            .partition(|turn| turn.policy.rules.is_err());
        for turn in wrong {
            if let Err(message) = turn.policy.rules {
                let fault = PruneFault {
                    reason: reason::INVALID_SPEC,
                    message,
                };
                if let Some(record) = self.memory.records.get_mut(&turn.policy.uid) {
                    tracing::warn!(policy = turn.policy.name, err = %fault, "Policy removes nothing: it cannot be read");
                    record.faulted(&fault);
                }
            }
        }
        if turns.is_empty() {
            return;
        }
        self.looks.looked = Instant::now();
        self.looks.changed = None;
        let Some((mut images, mut disk)) = self.ask(input, &turns).await else {
            return;
        };
        let acting = acting(input);

        let (runs, rehearsals): (Vec<Turn>, Vec<Turn>) =
            turns.into_iter().partition(|turn| turn.acts);
        if !runs.is_empty() {
            let removed = self.carry_out(input, &runs, images.clone(), disk).await;
            if removed && !rehearsals.is_empty() {
                (images, disk) = match self.ask(input, &rehearsals).await {
                    Some(found) => found,
                    None => return,
                };
            }
        }
        for turn in rehearsals {
            let Ok(rules) = &turn.policy.rules else {
                continue;
            };
            // Beside those that act already: what they take, this one does not.
            let mut policies = acting.clone();
            policies.push(rules.clone());
            let now = Timestamp::now();
            let Some(plan) = planned(images.clone(), policies, disk, now).await else {
                continue;
            };
            if let Some(record) = self.memory.records.get_mut(&turn.policy.uid) {
                record.rehearsed(&plan, &rules.name, !turn.policy.enforce, now);
                record.window = turn.window;
            }
        }
    }

    /// Asks for everything that may go. Where that is not known, the turns have failed.
    async fn ask(&mut self, input: &Input, turns: &[Turn]) -> Option<(Arc<Vec<Candidate>>, Disk)> {
        self.asked = Some(Instant::now());
        match self.candidates(input).await {
            Ok((images, disk)) => {
                if std::mem::take(&mut self.failures) > 0 {
                    tracing::info!("What may be pruned is known again");
                }
                self.looks.retry = None;
                self.ready = Some(Ready {
                    met: true,
                    reason: reason::AS_EXPECTED,
                    message: String::new(),
                });
                self.reserve(prune::reserve(&acting(input), &disk));
                Some((images, disk))
            }
            Err(fault) => {
                self.failed(turns, &fault);
                None
            }
        }
    }

    async fn candidates(
        &mut self,
        input: &Input,
    ) -> Result<(Arc<Vec<Candidate>>, Disk), PruneFault> {
        let (mut images, disk) = match timeout(LOOK_TIMEOUT, self.pruning.candidates()).await {
            Ok(found) => found?,
            Err(_) => {
                return Err(PruneFault {
                    reason: reason::TIMEOUT,
                    message: "what images are in use was not known within a minute".to_owned(),
                });
            }
        };
        let held: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.memory.declared(&input.namespaces, &held);
        for image in &mut images {
            if let Some(namespaces) = self.memory.namespaces.get(&image.id) {
                image.namespaces.extend(namespaces.iter().cloned());
            }
        }
        Ok((Arc::new(images), disk))
    }

    fn failed(&mut self, turns: &[Turn], fault: &PruneFault) {
        if self.failures == 0 {
            tracing::warn!(reason = fault.reason, err = %fault, "Nothing is pruned; tried again");
        }
        self.failures = self.failures.saturating_add(1);
        self.metrics.pruned(fault.reason);
        let pause = backoff(self.failures, FIRST_RETRY, LAST_RETRY, roll());
        self.looks.retry = Some(Instant::now() + pause.min(self.timing.apart));
        self.ready = Some(Ready {
            met: false,
            reason: fault.reason,
            message: fault.message.chars().take(256).collect(),
        });
        for turn in turns {
            if let Some(record) = self.memory.records.get_mut(&turn.policy.uid) {
                record.faulted(fault);
            }
        }
    }

    fn reserve(&mut self, bytes: u64) {
        if self.memory.reserved != bytes {
            tracing::info!(bytes, "Band of the disk that pulls do not enter");
            self.memory.reserved = bytes;
        }
        self.pruning.reserve(bytes);
    }

    /// Removes. True if anything went.
    async fn carry_out(
        &mut self,
        input: &Input,
        runs: &[Turn],
        images: Arc<Vec<Candidate>>,
        disk: Disk,
    ) -> bool {
        let held: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        let mut policies = Vec::new();
        for turn in runs {
            let (Ok(rules), Some(record)) = (
                &turn.policy.rules,
                self.memory.records.get_mut(&turn.policy.uid),
            ) else {
                continue;
            };
            let run = record.run.get_or_insert_default();
            run.resume(&held);
            let mut rules = rules.clone();
            // What a killed run removed counts.
            rules.max_removals = rules
                .max_removals
                .map(|most| most.saturating_sub(run.removed));
            policies.push(rules);
        }
        let plan = planned(images.clone(), policies, disk, Timestamp::now()).await;
        let plan = plan.unwrap_or_default();
        let mut faults: BTreeMap<&str, PruneFault> = BTreeMap::new();
        let (mut any, mut count) = (false, 0);
        for removal in &plan.remove {
            let turn = runs.iter().find(|turn| {
                let rules = turn.policy.rules.as_ref();
                rules.is_ok_and(|rules| rules.name == removal.policy)
            });
            let Some(turn) = turn else { continue };
            if count >= MOST_FAULTS || !self.still_wanted(&turn.policy, &input.node) {
                continue;
            }
            let entry = entry(removal);
            self.note(turn, |run| {
                run.current = Some(Current {
                    id: removal.id.clone(),
                    entry: entry.clone(),
                });
            });
            // A disk that is too full for this note is no reason to leave it so.
            self.save().await;
            let removing = self.pruning.remove(removal.id.clone());
            let result = timeout(REMOVE_TIMEOUT, removing).await.unwrap_or_else(|_| {
                Err(PruneFault {
                    reason: reason::TIMEOUT,
                    message: format!("{}: not removed within ten minutes", entry.image),
                })
            });
            match result {
                Ok(Some(freed)) => {
                    any = true;
                    self.metrics.removed(freed);
                    tracing::info!(
                        policy = turn.policy.name,
                        image = entry.image,
                        rule = removal.rule,
                        reason = removal.reason,
                        freed,
                        "Image was pruned"
                    );
                    self.note(turn, |run| run.removed(entry.clone(), freed));
                }
                // Somebody uses it by now, or took it away.
                Ok(None) => self.note(turn, |run| run.current = None),
                Err(fault) => {
                    count += 1;
                    tracing::warn!(policy = turn.policy.name, image = entry.image, err = %fault, "Image was not pruned");
                    self.note(turn, |run| run.current = None);
                    faults.entry(turn.policy.uid.as_str()).or_insert(fault);
                }
            }
        }
        for turn in runs {
            let fault = faults.get(turn.policy.uid.as_str());
            self.metrics
                .pruned(fault.map_or("ok", |fault| fault.reason));
            if let Some(record) = self.memory.records.get_mut(&turn.policy.uid) {
                record.ended(fault, Timestamp::now());
                record.window = turn.window;
            }
        }
        if !faults.is_empty() {
            self.looks.retry = Some(Instant::now() + self.timing.apart);
        }
        any
    }

    fn note(&mut self, turn: &Turn, change: impl FnOnce(&mut Run)) {
        if let Some(record) = self.memory.records.get_mut(&turn.policy.uid) {
            change(record.run.get_or_insert_default());
        }
    }

    /// Whether nobody has taken the policy back since the plan was made.
    fn still_wanted(&self, policy: &PrunePolicy, node: &str) -> bool {
        let input = self.inputs.borrow();
        let now = input.policies.iter().find(|now| now.uid == policy.uid);
        input.settled && now.is_some_and(|now| now.revision == policy.revision && now.acts(node))
    }

    fn output(&mut self) -> Output {
        let input = self.inputs.borrow().clone();
        let now = Timestamp::now();
        let records = &mut self.memory.records;
        let mut reports = Vec::new();
        for policy in &input.policies {
            if let Some(record) = records.get_mut(&policy.uid)
                && record.now.revision == policy.revision
            {
                reports.push(Told {
                    report: record.tell(now),
                    now: record.now.clone(),
                    file: policy.file.clone(),
                    desired: policy.desired,
                    enforces: policy.enforce,
                    acts: policy.acts(&input.node),
                    next: self.next.get(&policy.uid).copied(),
                });
            }
        }
        Output {
            reports,
            ready: self.ready.clone(),
        }
    }

    async fn save(&mut self) {
        if self.saved == self.memory {
            return;
        }
        let (state, memory) = (self.state.clone(), self.memory.clone());
        let saving = tokio::task::spawn_blocking(move || {
            let result = state.write(&memory);
            (result, memory)
        });
        match saving.await {
            Ok((Ok(()), memory)) => {
                self.saved = memory;
                self.save_fault = false;
            }
            Ok((Err(error), _)) => {
                if !std::mem::replace(&mut self.save_fault, true) {
                    tracing::error!(err = %error, "What was pruned is not written down; a restart would not know of it");
                }
            }
            Err(error) => tracing::error!(err = %error, "Writing down what was pruned panicked"),
        }
    }
}

/// Rules of the policies that remove images here.
fn acting(input: &Input) -> Vec<prune::Policy> {
    let acting = input.policies.iter().filter(|p| p.acts(&input.node));
    acting.filter_map(|p| p.rules.clone().ok()).collect()
}

/// Plans on a thread of its own: thousands of images and patterns take their time.
async fn planned(
    images: Arc<Vec<Candidate>>,
    policies: Vec<prune::Policy>,
    disk: Disk,
    now: Timestamp,
) -> Option<Plan> {
    let planning = tokio::task::spawn_blocking(move || prune::plan(&images, &policies, &disk, now));
    match planning.await {
        Ok(plan) => Some(plan),
        Err(error) => {
            tracing::error!(err = %error, "Planning what to prune panicked");
            None
        }
    }
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;

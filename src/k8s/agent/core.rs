//! The agent's state and its one loop's steps: take in what happened, decide, carry out, tell.
//!
//! Decides nothing itself: `assign`, `plan` and `report` do. What survives a restart is durable before it is acted on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::assign::{Assignment, Hold, Seen, assign};
use super::inventory::{Inventory, PulledUnit, Pulls};
use super::known::Known;
use super::plan::{self, Plan, Work};
use super::prepull::{Identity, Kind, Origin, Prepull, Terms, Unit};
use super::prune;
use super::report::{self, Facts, Synced};
use super::retry::{self, Attempts, Failures};
use super::seam::{Declared, Figures, HeldImage, PullFailure};
use super::view::{ApiView, View};
use super::watch::Watched;
use super::work::{self, Done};
use super::writer::Report;
use super::{Api, Message, Settings};
use crate::k8s::api::NodeImageCacheStatus;

/// Between two looks at what is held, when nothing happens: images that a garbage collector took are pulled again.
const LOOK: Duration = Duration::from_secs(15);
/// Longest wait for all kinds before the first report: many agents that start at once take a minute to begin.
const SETTLE: Duration = Duration::from_secs(120);

/// The agent.
pub(super) struct Core {
    settings: Settings,
    api: Option<Api>,
    started: Instant,
    known: Known,
    assignment: Assignment,
    saved: Option<(Vec<Hold>, Pulls)>,
    save_fault: bool,
    pulls: Pulls,
    failures: Failures,
    running: BTreeMap<Unit, AbortHandle>,
    protected: Option<Vec<Declared>>,
    /// How often that changed.
    declared: u64,
    inventory: Option<Inventory>,
    figures: Option<Figures>,
    looked: Option<Instant>,
    look_fault: bool,
    share: f64,
    pub(super) tasks: JoinSet<Done>,
    view: watch::Sender<Arc<View>>,
    reports: Option<watch::Sender<Arc<Report>>>,
    before: NodeImageCacheStatus,
    prune: Option<watch::Sender<Arc<prune::Input>>>,
    pruned: Arc<prune::Output>,
    /// Everything of the API server was seen once.
    was_synced: bool,
}

impl Core {
    pub(super) fn new(
        settings: Settings,
        api: Option<Api>,
        (holds, pulls): (Vec<Hold>, Pulls),
        view: watch::Sender<Arc<View>>,
        reports: Option<watch::Sender<Arc<Report>>>,
        prune: Option<watch::Sender<Arc<prune::Input>>>,
    ) -> Self {
        let mut known = Known::default();
        if settings.manifests.is_none() {
            // Who takes the folder out of the configuration means it.
            let filed = holds
                .iter()
                .filter(|hold| hold.identity.origin != Origin::Api);
            let now = Timestamp::now();
            known.gone = filed.map(|hold| (hold.identity.uid.clone(), now)).collect();
        }
        Core {
            share: retry::roll(),
            settings,
            started: Instant::now(),
            api,
            known,
            assignment: Assignment {
                holds: holds.clone(),
                waiting: Vec::new(),
            },
            saved: Some((holds, pulls.clone())),
            save_fault: false,
            pulls,
            failures: Failures::new(),
            running: BTreeMap::new(),
            protected: None,
            declared: 0,
            inventory: None,
            figures: None,
            looked: None,
            look_fault: false,
            tasks: JoinSet::new(),
            view,
            reports,
            before: NodeImageCacheStatus::default(),
            prune,
            pruned: Arc::default(),
            was_synced: false,
        }
    }

    /// Takes in a message. Deciding comes after a batch of them.
    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Reported(status) => {
                self.before.conditions = status.conditions;
                self.before.emergency = status.emergency;
            }
            Message::Pruned(output) => {
                self.pruned = output;
                // Images may have gone.
                self.looked = None;
            }
            other => self.known.take(other, &self.assignment.holds),
        }
    }

    /// Takes in the end of a task.
    pub(super) fn done(&mut self, done: Done) {
        let now = Timestamp::now();
        match done {
            Done::Checked(uid, verdict) => self.known.checked(uid, verdict),
            Done::Pulled(unit, result) => {
                self.running.remove(&unit);
                self.looked = None;
                match result {
                    Ok(image) => self.pulled(unit, &image, now),
                    Err(failure) => self.failed(unit, &failure, now),
                }
            }
        }
    }

    fn pulled(&mut self, unit: Unit, image: &HeldImage, now: Timestamp) {
        self.settings.metrics.pulled("ok");
        let failed = self.failures.remove(&unit);
        tracing::info!(
            image = unit.image,
            digest = unit.digest,
            id = image.id,
            failed_before = failed.map_or(0, |failed| failed.failures),
            "Declared image is held"
        );
        let pulled = PulledUnit {
            id: image.id.clone(),
            at: now,
        };
        self.pulls.insert(unit, pulled);
    }

    fn failed(&mut self, unit: Unit, failure: &PullFailure, now: Timestamp) {
        self.settings.metrics.pulled(failure.reason);
        let before = self.failures.get(&unit);
        let after = Attempts::after(before, failure, now, retry::roll());
        let news = before.is_none_or(|before| {
            before.reason != after.reason || before.exhausted() != after.exhausted()
        });
        if news {
            tracing::warn!(
                image = unit.image,
                digest = unit.digest,
                reason = after.reason,
                err = after.message,
                attempts = after.failures,
                gave_up = after.exhausted(),
                "Declared image was not pulled; tried again"
            );
        }
        self.failures.insert(unit, after);
    }

    /// Decides and carries out. The answer is when to do so again at the latest.
    pub(super) async fn settle(&mut self) -> Instant {
        self.look().await;
        let now = Timestamp::now();
        self.assign(now);
        self.save().await;
        self.protect().await;
        self.tell_pruner();
        let plan = self.plan(now);
        self.check();
        self.publish(now);
        self.wake(&plan, now)
    }

    async fn look(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        match self.settings.images.list().await {
            Ok(images) => {
                self.inventory = Some(Inventory::new(&images));
                if std::mem::take(&mut self.look_fault) {
                    tracing::info!("Images are listed again");
                }
            }
            Err(failure) => {
                if !std::mem::replace(&mut self.look_fault, true) {
                    tracing::warn!(err = %failure, "Images are not listed; nothing is started");
                }
            }
        }
        self.figures = self.settings.images.figures().await.ok();
        self.looked = Some(Instant::now());
    }

    fn assign(&mut self, now: Timestamp) {
        let inventory = self.inventory.as_ref();
        let pulls = &self.pulls;
        let complete = |terms: &Terms, unit: &Unit| {
            inventory.is_some_and(|inventory| inventory.holds(terms, unit, pulls))
        };
        let of_api = |identity: &Identity| identity.origin == Origin::Api;
        let (api, files): (Vec<Hold>, Vec<Hold>) = self
            .assignment
            .holds
            .drain(..)
            .partition(|hold| of_api(&hold.identity));
        let local = self.known.node.as_ref().or(Some(&self.settings.node));
        let mut holds = Vec::new();
        let mut waiting = Vec::new();
        // Apart: the one may be known while the other is not.
        for (before, prepulls, node) in [
            (api, &self.known.declared, self.known.node.as_ref()),
            (files, &self.known.filed, local),
        ] {
            let seen = Seen {
                node,
                prepulls,
                gone: &self.known.gone,
            };
            let part = assign(seen, &before, complete, now);
            holds.extend(part.holds);
            waiting.extend(part.waiting);
        }
        holds.sort_by(|a, b| a.identity.cmp(&b.identity));
        waiting.sort_by(|a, b| a.identity.cmp(&b.identity));
        self.assignment = Assignment { holds, waiting };
        let kept: BTreeSet<&Unit> = self
            .assignment
            .holds
            .iter()
            .flat_map(|hold| hold.held.iter().chain(&hold.next))
            .flat_map(|revision| &revision.units)
            .collect();
        self.pulls.retain(|unit, _| kept.contains(unit));
        self.failures.retain(|unit, _| kept.contains(unit));
        self.known.forget(&self.assignment.holds);
        if let Some(api) = &self.api {
            let holds = self.assignment.holds.iter().map(|hold| hold.desired);
            let nodes = holds.chain([self.known.nodes]).max().unwrap_or(0);
            // What an earlier run knew is still a good guess.
            if nodes > 0 {
                api.following.nodes.store(nodes, Ordering::Relaxed);
            }
        }
    }

    async fn save(&mut self) {
        let saved = self.saved.as_ref();
        if saved
            .is_some_and(|(holds, pulls)| *holds == self.assignment.holds && *pulls == self.pulls)
        {
            return;
        }
        let state = self.settings.state.clone();
        let (holds, pulls) = (self.assignment.holds.clone(), self.pulls.clone());
        let saving = tokio::task::spawn_blocking(move || {
            let result = state.save(&holds, &pulls);
            (result, holds, pulls)
        });
        match saving.await {
            Ok((Ok(()), holds, pulls)) => {
                self.saved = Some((holds, pulls));
                if std::mem::take(&mut self.save_fault) {
                    tracing::info!("Assignment is saved again");
                }
            }
            Ok((Err(error), ..)) => {
                if !std::mem::replace(&mut self.save_fault, true) {
                    tracing::error!(err = %error, "Assignment was not saved; a restart would go back to the last one");
                }
            }
            Err(error) => tracing::error!(err = %error, "Saving the assignment panicked"),
        }
    }

    /// Tells the holder of images what is declared.
    async fn protect(&mut self) {
        let mut declared = units(&self.assignment.holds);
        // A node that is not admitted yet keeps what it happens to have.
        for prepull in self.choosing().filter(|prepull| !prepull.terms.once) {
            let units = prepull.revision.iter().flat_map(|revision| &revision.units);
            for unit in units {
                if let Ok(parsed) = unit.parse() {
                    declared.entry(unit).or_insert(Declared {
                        reference: parsed.reference,
                        digest: parsed.digest,
                        pinned: false,
                        by: prepull.identity.to_string(),
                    });
                }
            }
        }
        let declared: Vec<Declared> = declared.into_values().collect();
        if self.protected.as_ref() == Some(&declared) {
            return;
        }
        match self.settings.images.declare(declared.clone()).await {
            Ok(()) => {
                self.protected = Some(declared);
                self.declared = self.declared.wrapping_add(1);
            }
            Err(failure) => {
                tracing::warn!(err = %failure, "Declared images are not protected; tried again");
                self.protected = None;
            }
        }
    }

    /// Prepulls that choose this node.
    fn choosing(&self) -> impl Iterator<Item = &Prepull> {
        let node = self.known.node.as_ref();
        let local = node.unwrap_or(&self.settings.node);
        let declared = self.known.declared.values();
        let declared = declared.filter(move |prepull| node.is_some_and(|n| prepull.selects(n)));
        let filed = self.known.filed.values();
        declared.chain(filed.filter(move |prepull| prepull.selects(local)))
    }

    fn tell_pruner(&mut self) {
        let Some(prune) = &self.prune else { return };
        self.was_synced |= self.api.is_some() && self.known.synced().synced;
        let folder = self.known.folder.as_ref();
        let files = self.settings.manifests.is_none() || folder.is_some_and(|f| f.complete);
        let settled = files
            && (self.api.is_none() || self.was_synced)
            && self.protected.is_some()
            && !self.look_fault;
        let inventory = self.inventory.as_ref();
        let figures = self.figures.unwrap_or_default();
        // A hundredth of the disk is worth a look.
        let step = (figures.capacity_bytes / 100).max(1);
        let input = prune::Input {
            node: match &self.known.node {
                Some(node) => node.uid.clone(),
                None => self.settings.node.uid.clone(),
            },
            policies: self.known.policies(&self.settings.node),
            settled: settled && inventory.is_some(),
            namespaces: self.namespaces(),
            stamp: (
                inventory.map_or_else(String::new, |inventory| inventory.hash.clone()),
                self.declared,
                figures.available_bytes / step,
            ),
        };
        prune.send_if_modified(|before| {
            let news = **before != input;
            if news {
                *before = Arc::new(input);
            }
            news
        });
    }

    /// Namespaces whose prepulls declare images that are held.
    fn namespaces(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut namespaces: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let Some(inventory) = &self.inventory else {
            return namespaces;
        };
        for prepull in self.choosing() {
            if prepull.identity.kind != Kind::ImagePrepull {
                continue;
            }
            let units = prepull.revision.iter().flat_map(|revision| &revision.units);
            for id in units.filter_map(|unit| inventory.id(unit, &self.pulls)) {
                let of_image = namespaces.entry(id.to_owned()).or_default();
                of_image.insert(prepull.identity.namespace.clone());
            }
        }
        namespaces
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let Some(inventory) = self.inventory.as_ref().filter(|_| !self.look_fault) else {
            return Plan::default();
        };
        let running: BTreeSet<Unit> = self.running.keys().cloned().collect();
        let work = Work {
            holds: &self.assignment.holds,
            failures: &self.failures,
            running: &running,
            limits: self.settings.limits,
        };
        let (pulls, share) = (&self.pulls, self.share);
        let held = |terms: &Terms, unit: &Unit| inventory.holds(terms, unit, pulls);
        let stale = |hold: &Hold, unit: &Unit| {
            let pulled = pulls.get(unit).map_or(now, |pulled| pulled.at);
            plan::stale_at(hold, unit, pulled, share)
        };
        let plan = plan::plan(work, held, stale, now);
        for unit in &plan.cancel {
            if let Some(handle) = self.running.remove(unit) {
                handle.abort();
                tracing::info!(
                    image = unit.image,
                    "Pull was given up: nobody wants it any more"
                );
            }
        }
        for start in &plan.start {
            let secrets = self.api.as_ref().map(|api| api.secrets.clone());
            let pull = work::pull(self.settings.images.clone(), secrets, start.clone());
            let handle = self.tasks.spawn(pull);
            self.running.insert(start.unit.clone(), handle);
        }
        plan
    }

    /// Asks about suspects whose time has come.
    fn check(&mut self) {
        let Some(api) = &self.api else { return };
        for identity in self.known.take_due(Instant::now()) {
            let connection = api.following.connection.clone();
            self.tasks.spawn(work::check(connection, identity));
        }
    }

    fn publish(&mut self, now: Timestamp) {
        let (synced, reported) = match &self.api {
            Some(_) => (
                self.known.synced(),
                self.known.lately_synced(Instant::now()),
            ),
            None => Default::default(),
        };
        let running: BTreeSet<Unit> = self.running.keys().cloned().collect();
        let facts = Facts {
            work: Work {
                holds: &self.assignment.holds,
                failures: &self.failures,
                running: &running,
                limits: self.settings.limits,
            },
            inventory: self.inventory.as_ref(),
            pulls: &self.pulls,
            figures: self.figures.as_ref(),
            synced: &reported,
            pruned: &self.pruned,
        };
        self.settings.metrics.set_images(facts.counts());
        self.settings.metrics.set_synced(synced.synced);
        let mut prepulls = super::view::prepulls(&self.assignment, &facts, now);
        for view in &mut prepulls {
            if view.message.is_empty() {
                view.message = self.known.faults(&view.identity.uid).join("; ");
            }
        }
        self.view.send_replace(Arc::new(View {
            node: self.settings.node.name.clone(),
            api: self.api.as_ref().map(|_| ApiView {
                synced: synced.synced,
                fault: self.known.fault().or_else(|| self.no_node(&synced)),
                links: Watched::ALL
                    .into_iter()
                    .map(|watched| (watched, self.known.link(watched)))
                    .collect(),
            }),
            manifests: self.settings.manifests.as_ref().map(|dir| {
                let folder = self.known.folder.iter();
                let faults = folder.flat_map(|folder| folder.faults.clone());
                (dir.display().to_string(), faults.collect())
            }),
            prepulls,
            prunes: super::view::prunes(&self.pruned),
            emergency: self.figures.and_then(|figures| figures.emergency),
        }));
        // What is not known is not reported.
        if let Some(reports) = self.reports.as_ref().filter(|_| self.inventory.is_some()) {
            let status = report::report(&facts, &self.before, now);
            self.before = status.clone();
            let desired = self.assignment.holds.iter();
            let desired = desired.map(|hold| (hold.identity.uid.clone(), hold.desired));
            let pruned = self.pruned.reports.iter();
            let pruned = pruned.map(|told| (told.report.uid.clone(), told.desired));
            let desired = desired.chain(pruned).collect();
            reports.send_replace(Arc::new(Report {
                status,
                desired,
                settled: reported.synced || self.started.elapsed() > SETTLE,
                node_uid: self.known.node.as_ref().map(|node| node.uid.clone()),
            }));
        }
    }

    /// An agent without a Node is chosen by nothing and reports nothing.
    fn no_node(&self, synced: &Synced) -> Option<String> {
        let absent = synced.synced && self.known.node.is_none();
        absent.then(|| {
            let name = &self.settings.node.name;
            format!("there is no Node {name}: give --node-name, or wait for its kubelet")
        })
    }

    fn wake(&self, plan: &Plan, now: Timestamp) -> Instant {
        let mut wake = Instant::now() + LOOK;
        if let Some(at) = plan.wake {
            let pause = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            wake = wake.min(Instant::now() + pause + Duration::from_millis(1));
        }
        if let Some(check) = self.known.next_check() {
            wake = wake.min(check);
        }
        wake
    }
}

/// Everything that holds protect.
pub(super) fn declared(holds: &[Hold]) -> Vec<Declared> {
    units(holds).into_values().collect()
}

fn units(holds: &[Hold]) -> BTreeMap<&Unit, Declared> {
    let mut declared: BTreeMap<&Unit, Declared> = BTreeMap::new();
    for hold in holds {
        for unit in hold.protected() {
            let Ok(parsed) = unit.parse() else { continue };
            declared
                .entry(unit)
                .and_modify(|declared| declared.pinned |= hold.terms.pin)
                .or_insert(Declared {
                    reference: parsed.reference,
                    digest: parsed.digest,
                    pinned: hold.terms.pin,
                    by: hold.identity.to_string(),
                });
        }
    }
    declared
}

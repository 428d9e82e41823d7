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
use super::files::Folder;
use super::inventory::{Inventory, PulledUnit, Pulls};
use super::plan::{self, Plan, Work};
use super::prepull::{Identity, Kind, Origin, Prepull, Unit};
use super::report::{self, Facts, Synced};
use super::retry::{self, Attempts, Failures};
use super::seam::{Declared, Figures, HeldImage, PullFailure};
use super::view::{ApiView, View};
use super::watch::{Delta, Link, Told, Trouble, Watched};
use super::work::{self, Done, Verdict};
use super::writer::Report;
use super::{Api, Message, Settings};
use crate::k8s::api::{ImagePrunePolicy, NodeFacts, NodeImageCacheStatus};

/// An object that is not there any more is looked for again after this: when a kind is uninstalled, its objects are
/// deleted first, and that is nobody's wish to release images.
const CONFIRM: Duration = Duration::from_secs(5);
/// Pause when there was no answer.
const CONFIRM_AGAIN: Duration = Duration::from_secs(30);
/// Between two looks at what is held, when nothing happens: images that a garbage collector took are pulled again.
const LOOK: Duration = Duration::from_secs(15);
/// Longest wait for all kinds before the first report.
const SETTLE: Duration = Duration::from_secs(60);

/// An object that was not there.
#[derive(Debug)]
struct Suspect {
    identity: Identity,
    since: Timestamp,
    check: Instant,
    asked: bool,
}

pub(super) struct Core {
    settings: Settings,
    api: Option<Api>,
    started: Instant,
    /// Of the API server and of files, apart: the one may be known while the other is not.
    declared: BTreeMap<String, Prepull>,
    unreadable: BTreeSet<String>,
    policies: BTreeMap<String, ImagePrunePolicy>,
    node: Option<NodeFacts>,
    links: BTreeMap<Watched, Link>,
    listed: BTreeSet<Watched>,
    suspects: BTreeMap<String, Suspect>,
    gone: BTreeMap<String, Timestamp>,
    folder: Option<Folder>,
    identity_fault: Option<String>,
    assignment: Assignment,
    saved: Option<(Vec<Hold>, Pulls)>,
    save_fault: bool,
    pulls: Pulls,
    failures: Failures,
    running: BTreeMap<Unit, AbortHandle>,
    protected: Option<Vec<Declared>>,
    inventory: Option<Inventory>,
    figures: Option<Figures>,
    looked: Option<Instant>,
    look_fault: bool,
    share: f64,
    pub(super) tasks: JoinSet<Done>,
    view: watch::Sender<Arc<View>>,
    reports: Option<watch::Sender<Arc<Report>>>,
    before: NodeImageCacheStatus,
}

impl Core {
    pub(super) fn new(
        settings: Settings,
        api: Option<Api>,
        (holds, pulls): (Vec<Hold>, Pulls),
        view: watch::Sender<Arc<View>>,
        reports: Option<watch::Sender<Arc<Report>>>,
    ) -> Self {
        Core {
            share: retry::roll(),
            settings,
            api,
            started: Instant::now(),
            declared: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            policies: BTreeMap::new(),
            node: None,
            links: BTreeMap::new(),
            listed: BTreeSet::new(),
            suspects: BTreeMap::new(),
            gone: BTreeMap::new(),
            folder: None,
            identity_fault: None,
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
            inventory: None,
            figures: None,
            looked: None,
            look_fault: false,
            tasks: JoinSet::new(),
            view,
            reports,
            before: NodeImageCacheStatus::default(),
        }
    }

    /// Takes in a message. Deciding comes after a batch of them.
    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Cluster(told) => {
                self.prepulls(
                    Watched::ClusterImagePrepulls,
                    Kind::ClusterImagePrepull,
                    told,
                );
            }
            Message::Namespaced(told) => {
                self.prepulls(Watched::ImagePrepulls, Kind::ImagePrepull, told);
            }
            Message::Policy(told) => self.policy(told),
            Message::Node(told) => self.node(told),
            Message::Folder(folder) => self.folder(folder),
            Message::Identity(fault) => self.identity_fault = fault,
            Message::Reported(status) => self.before.conditions = status.conditions,
        }
    }

    fn prepulls(&mut self, watched: Watched, kind: Kind, told: Told<Prepull>) {
        match told {
            Told::Link(link) => {
                if let Link::Lost {
                    trouble: Trouble::KindMissing,
                    ..
                } = link
                {
                    // Its objects went with it: that releases nothing.
                    self.suspects
                        .retain(|_, suspect| suspect.identity.kind != kind);
                }
                self.links.insert(watched, link);
            }
            Told::Objects(Delta::One(prepull)) => {
                let uid = prepull.identity.uid.clone();
                self.suspects.remove(&uid);
                self.unreadable.remove(&uid);
                let known = self.declared.contains_key(&uid);
                if known || self.declared.len() < super::watch::MAX_OBJECTS {
                    self.declared.insert(uid, prepull);
                }
            }
            Told::Objects(Delta::Gone { uid }) => {
                self.unreadable.remove(&uid);
                if let Some(prepull) = self.declared.remove(&uid) {
                    self.suspect(prepull.identity);
                } else if let Some(hold) = self.hold(&uid) {
                    let identity = hold.identity.clone();
                    self.suspect(identity);
                }
            }
            Told::Objects(Delta::All {
                objects,
                unreadable,
            }) => {
                self.listed.insert(watched);
                let of_kind =
                    |identity: &Identity| identity.kind == kind && identity.origin == Origin::Api;
                // One that was readable before keeps its last words.
                self.unreadable.extend(unreadable);
                let mut before: BTreeMap<String, Prepull> = BTreeMap::new();
                self.declared.retain(|uid, prepull| {
                    let old = of_kind(&prepull.identity);
                    if old {
                        before.insert(uid.clone(), prepull.clone());
                    }
                    !old
                });
                for prepull in objects {
                    let uid = prepull.identity.uid.clone();
                    before.remove(&uid);
                    self.suspects.remove(&uid);
                    self.unreadable.remove(&uid);
                    self.declared.insert(uid, prepull);
                }
                for (uid, prepull) in before {
                    if self.unreadable.contains(&uid) {
                        self.declared.insert(uid, prepull);
                    }
                }
                let absent: Vec<Identity> = self
                    .assignment
                    .holds
                    .iter()
                    .map(|hold| &hold.identity)
                    .filter(|identity| {
                        of_kind(identity)
                            && !self.declared.contains_key(&identity.uid)
                            && !self.unreadable.contains(&identity.uid)
                    })
                    .cloned()
                    .collect();
                for identity in absent {
                    self.suspect(identity);
                }
            }
        }
    }

    fn hold(&self, uid: &str) -> Option<&Hold> {
        let mut holds = self.assignment.holds.iter();
        holds.find(|hold| hold.identity.uid == uid)
    }

    fn suspect(&mut self, identity: Identity) {
        if self.hold(&identity.uid).is_none() || self.gone.contains_key(&identity.uid) {
            return;
        }
        self.suspects
            .entry(identity.uid.clone())
            .or_insert_with(|| Suspect {
                identity,
                since: Timestamp::now(),
                check: Instant::now() + CONFIRM,
                asked: false,
            });
    }

    fn policy(&mut self, told: Told<ImagePrunePolicy>) {
        let uid = |policy: &ImagePrunePolicy| policy.metadata.uid.clone().unwrap_or_default();
        match told {
            Told::Link(link) => {
                self.links.insert(Watched::ImagePrunePolicies, link);
            }
            Told::Objects(Delta::All { objects, .. }) => {
                self.listed.insert(Watched::ImagePrunePolicies);
                self.policies = objects
                    .into_iter()
                    .map(|policy| (uid(&policy), policy))
                    .collect();
            }
            Told::Objects(Delta::One(policy)) => {
                self.policies.insert(uid(&policy), policy);
            }
            Told::Objects(Delta::Gone { uid }) => {
                self.policies.remove(&uid);
            }
        }
    }

    fn node(&mut self, told: Told<NodeFacts>) {
        match told {
            Told::Link(link) => {
                self.links.insert(Watched::Node, link);
            }
            Told::Objects(Delta::All {
                objects,
                unreadable,
            }) => {
                self.listed.insert(Watched::Node);
                if unreadable.is_empty() {
                    self.node = objects.into_iter().next();
                }
            }
            Told::Objects(Delta::One(node)) => self.node = Some(node),
            Told::Objects(Delta::Gone { uid }) => {
                self.node.take_if(|node| node.uid == uid);
            }
        }
    }

    fn folder(&mut self, folder: Folder) {
        self.declared
            .retain(|_, prepull| prepull.identity.origin == Origin::Api);
        let declarations = folder.files.values().flatten();
        for prepull in declarations.flat_map(|declaration| &declaration.prepulls) {
            self.declared
                .insert(prepull.identity.uid.clone(), prepull.clone());
        }
        let now = Timestamp::now();
        for hold in &self.assignment.holds {
            let identity = &hold.identity;
            if let Origin::File(file) = &identity.origin {
                if self.declared.contains_key(&identity.uid) {
                    self.gone.remove(&identity.uid);
                } else if folder.lost(file, &identity.uid) {
                    self.gone.entry(identity.uid.clone()).or_insert(now);
                }
            }
        }
        self.folder = Some(folder);
    }

    /// Takes in the end of a task.
    pub(super) fn done(&mut self, done: Done) {
        let now = Timestamp::now();
        match done {
            Done::Checked(uid, verdict) => match verdict {
                Verdict::Present | Verdict::KindMissing => {
                    self.suspects.remove(&uid);
                }
                Verdict::Gone => {
                    if let Some(suspect) = self.suspects.remove(&uid) {
                        self.gone.insert(uid, suspect.since);
                    }
                }
                Verdict::Unsure => {
                    if let Some(suspect) = self.suspects.get_mut(&uid) {
                        suspect.asked = false;
                        suspect.check = Instant::now() + CONFIRM_AGAIN;
                    }
                }
            },
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
                self.inventory = None;
            }
        }
        self.figures = self.settings.images.figures().await.ok();
        self.looked = Some(Instant::now());
    }

    fn assign(&mut self, now: Timestamp) {
        let inventory = self.inventory.as_ref();
        let pulls = &self.pulls;
        let complete =
            |unit: &Unit| inventory.is_some_and(|inventory| inventory.holds(unit, pulls));
        let of_api = |identity: &Identity| identity.origin == Origin::Api;
        let (api, files): (Vec<Hold>, Vec<Hold>) = self
            .assignment
            .holds
            .drain(..)
            .partition(|hold| of_api(&hold.identity));
        let part = |of: bool| -> BTreeMap<String, Prepull> {
            self.declared
                .iter()
                .filter(|(_, prepull)| of_api(&prepull.identity) == of)
                .map(|(uid, prepull)| (uid.clone(), prepull.clone()))
                .collect()
        };
        let local = self.node.as_ref().or(Some(&self.settings.node));
        let mut holds = Vec::new();
        let mut waiting = Vec::new();
        for (before, of, node) in [(api, true, self.node.as_ref()), (files, false, local)] {
            let prepulls = part(of);
            let seen = Seen {
                node,
                prepulls: &prepulls,
                gone: &self.gone,
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
        let held: BTreeSet<&str> = self
            .assignment
            .holds
            .iter()
            .map(|hold| hold.identity.uid.as_str())
            .collect();
        self.gone.retain(|uid, _| held.contains(uid.as_str()));
        self.suspects.retain(|uid, _| held.contains(uid.as_str()));
        if let Some(api) = &self.api {
            let nodes = self.assignment.holds.iter().map(|hold| hold.desired);
            let nodes = nodes.max().unwrap_or(0);
            api.following.nodes.store(nodes, Ordering::Relaxed);
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
        let mut declared: BTreeMap<&Unit, Declared> = BTreeMap::new();
        for hold in &self.assignment.holds {
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
        let declared: Vec<Declared> = declared.into_values().collect();
        if self.protected.as_ref() == Some(&declared) {
            return;
        }
        match self.settings.images.declare(declared.clone()).await {
            Ok(()) => self.protected = Some(declared),
            Err(failure) => {
                tracing::warn!(err = %failure, "Declared images are not protected; tried again");
                self.protected = None;
            }
        }
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let Some(inventory) = &self.inventory else {
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
        let held = |unit: &Unit| inventory.holds(unit, pulls);
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
        let now = Instant::now();
        for suspect in self.suspects.values_mut() {
            if !suspect.asked && suspect.check <= now {
                suspect.asked = true;
                let connection = api.following.connection.clone();
                self.tasks
                    .spawn(work::check(connection, suspect.identity.clone()));
            }
        }
    }

    fn synced(&self) -> Synced {
        if self.api.is_none() {
            return Synced::default();
        }
        if let Some(fault) = &self.identity_fault {
            return Synced {
                synced: false,
                reason: "WrongCredentials",
                message: fault.clone(),
            };
        }
        for watched in Watched::ALL {
            match self.links.get(&watched) {
                Some(Link::Synced) => {}
                Some(Link::Lost { trouble, message }) => {
                    return Synced {
                        synced: false,
                        reason: trouble.as_str(),
                        message: format!("{}: {message}", watched.as_str()),
                    };
                }
                Some(Link::Starting) | None => {
                    return Synced {
                        synced: false,
                        reason: "Starting",
                        message: format!("{} are not listed yet", watched.as_str()),
                    };
                }
            }
        }
        Synced {
            synced: true,
            reason: "Synced",
            message: String::new(),
        }
    }

    fn publish(&mut self, now: Timestamp) {
        let synced = self.synced();
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
            synced: &synced,
        };
        self.settings.metrics.set_images(facts.counts());
        self.settings.metrics.set_synced(synced.synced);
        let mut prepulls = super::view::prepulls(&self.assignment, &facts, now);
        for view in &mut prepulls {
            let faults = self
                .declared
                .get(&view.identity.uid)
                .map(|prepull| prepull.faults.join("; "))
                .filter(|faults| !faults.is_empty() && view.message.is_empty());
            if let Some(faults) = faults {
                view.message = faults;
            }
        }
        self.view.send_replace(Arc::new(View {
            node: self.settings.node.name.clone(),
            api: self.api.as_ref().map(|_| ApiView {
                synced: synced.synced,
                fault: self.identity_fault.clone(),
                links: Watched::ALL
                    .into_iter()
                    .map(|watched| {
                        let link = self.links.get(&watched);
                        (watched, link.cloned().unwrap_or(Link::Starting))
                    })
                    .collect(),
            }),
            manifests: self.settings.manifests.as_ref().map(|dir| {
                let faults = self.folder.iter().flat_map(|folder| folder.faults.clone());
                (dir.display().to_string(), faults.collect())
            }),
            prepulls,
        }));
        if let Some(reports) = &self.reports {
            let status = report::report(&facts, &self.before, now);
            self.before = status.clone();
            let desired = self.assignment.holds.iter();
            let desired = desired
                .map(|hold| (hold.identity.uid.clone(), hold.desired))
                .collect();
            reports.send_replace(Arc::new(Report {
                status,
                desired,
                settled: synced.synced || self.started.elapsed() > SETTLE,
                node_uid: self.node.as_ref().map(|node| node.uid.clone()),
            }));
        }
    }

    fn wake(&self, plan: &Plan, now: Timestamp) -> Instant {
        let mut wake = Instant::now() + LOOK;
        if let Some(at) = plan.wake {
            let pause = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            wake = wake.min(Instant::now() + pause + Duration::from_millis(1));
        }
        for suspect in self.suspects.values() {
            if !suspect.asked {
                wake = wake.min(suspect.check);
            }
        }
        wake
    }
}

//! The controller's life: watches in, the board's effects out, until shutdown.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::board::{Board, Effect, Gather, Gathered, Write};
use super::declared::{Declared, Key, Kind};
use super::desk::{Answer, Errand, Question};
use super::gate::Opening;
use super::gather;
use super::leader::Election;
use super::malformed::Fault;
use super::metrics::Metrics;
use super::notes::Note;
use super::prune::{self, PolicyWrite};
use super::seam::{ResolveFailure, Resolver};
use super::send::{self, Herald};
use super::status_writes::Written;
use super::watch::{Name, Object, Seen, Source, watches};
use crate::k8s::api::reason;
use crate::lifecycle::{Check, Shutdown};

/// Changes that are taken in before anything is decided.
const AT_ONCE: usize = 256;
/// Of one lookup, all hosts and retries together.
const RESOLVE: Duration = Duration::from_secs(60);
/// Notes and openings that wait to be sent.
const QUEUE: usize = 256;
/// What writes under way may take when the controller stops.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// How often metrics are brought up to date, at most.
const METRICS: Duration = Duration::from_secs(1);
/// A malformed object, or a broken watch, is logged so often.
const QUIET: Duration = Duration::from_secs(60);

/// Where the controller works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of the lease.
    pub namespace: String,
    /// Names this replica, and no other: a host's name with something random behind it.
    pub identity: String,
}

/// The controller.
pub struct Controller {
    client: Client,
    resolver: Arc<dyn Resolver>,
    metrics: Metrics,
    options: Options,
}

/// Work under way that ended.
enum Done {
    Written(Box<Write>, Written<Declared>),
    PolicyWritten(Box<PolicyWrite>, Written<prune::Declared>),
    Gathered(Gather, Gathered),
    Condemned(Fault, bool),
    Answered(Question, Answer, Duration),
}

impl Controller {
    /// Starts nothing yet.
    pub fn new(
        client: Client,
        resolver: Arc<dyn Resolver>,
        metrics: Metrics,
        options: Options,
    ) -> Self {
        Controller {
            client,
            resolver,
            metrics,
            options,
        }
    }

    /// Watches, takes part in the election and acts while it leads, until shutdown is asked for. `synced` is met once
    /// everything was seen, on replicas that do not lead too.
    pub async fn run(self, synced: Check, shutdown: Shutdown) {
        let release = Shutdown::new();
        let (leading, leads) = watch::channel(false);
        let election = Election::new(
            &self.client,
            &self.options.namespace,
            self.options.identity.clone(),
        );
        // None of them outlives this future: who does not act must not hold the lease.
        let election = spawn(election.run(leading, release.clone()));
        let (notes, told) = mpsc::channel(QUEUE);
        let (openings, opened) = mpsc::channel(QUEUE);
        let herald = Herald::new(self.client.clone(), self.options.identity.clone());
        let herald = spawn(tell(herald, told, self.metrics.clone()));
        let gates = spawn(open(
            self.client.clone(),
            opened,
            notes.clone(),
            self.metrics.clone(),
        ));

        let mut work = Work {
            board: Board::new(Instant::now(), seed(&self.options.identity)),
            lists: HashMap::new(),
            complete: BTreeSet::new(),
            jobs: JoinSet::new(),
            measured: None,
            failed: false,
            logged: HashMap::new(),
            notes,
            openings,
            controller: self,
        };
        work.run(leads, &synced, &shutdown).await;
        work.drain().await;
        drop(work);
        release.request();
        // The herald ends with its queue, the election with its release; nobody waits for a server that is gone.
        let _ = timeout(LAST_WRITES, async {
            let _ = tokio::join!(election, herald, gates);
        })
        .await;
    }
}

struct Work {
    controller: Controller,
    board: Board,
    /// Names of a list that is being read.
    lists: HashMap<&'static str, BTreeSet<Name>>,
    /// Sources of which a whole list was seen.
    complete: BTreeSet<&'static str>,
    jobs: JoinSet<Done>,
    measured: Option<Instant>,
    /// Work was lost: a new process does better.
    failed: bool,
    logged: HashMap<&'static str, Instant>,
    notes: mpsc::Sender<Note>,
    openings: mpsc::Sender<Opening>,
}

impl Work {
    async fn run(&mut self, mut leads: watch::Receiver<bool>, synced: &Check, shutdown: &Shutdown) {
        let mut watches = Box::pin(watches(&self.controller.client));
        let mut elected = true;
        loop {
            let wake = tokio::time::Instant::from_std(self.board.wake());
            let ready = self.is_complete();
            tokio::select! {
                biased;
                () = shutdown.wait() => return,
                changed = leads.changed(), if elected => {
                    elected = changed.is_ok();
                    let leading = *leads.borrow_and_update() && elected;
                    self.controller.metrics.lead(leading);
                    self.board.lead(leading, Instant::now());
                }
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => self.done(done),
                seen = watches.next() => {
                    let mut next = seen;
                    let mut count = 0;
                    while let Some((source, seen)) = next {
                        self.see(source, seen);
                        count += 1;
                        next = if count < AT_ONCE { watches.next().now_or_never().flatten() } else { None };
                    }
                    if count == 0 {
                        // Watches do not end; if they did, a new process would be the remedy.
                        return;
                    }
                }
                () = tokio::time::sleep_until(wake), if ready && self.board.is_leading() => {}
            }
            if self.failed {
                return;
            }
            // Before everything was seen, absent nodes would count as gone.
            if self.is_complete() {
                synced.set(true);
                let begun = Instant::now();
                let effects = self.board.step(begun, Timestamp::now());
                if !effects.is_empty() {
                    self.controller
                        .metrics
                        .reconciled(begun.elapsed().as_secs_f64());
                }
                for effect in effects {
                    self.carry_out(effect);
                }
            }
            self.measure();
        }
    }

    /// Lets writes end that are under way; everything else is dropped.
    async fn drain(&mut self) {
        let drained = timeout(LAST_WRITES, async {
            while self.board.writing + self.board.policies.writing > 0 {
                let Some(done) = self.jobs.join_next().await else {
                    return;
                };
                self.done(done);
            }
        });
        if drained.await.is_err() {
            tracing::warn!(
                writes = self.board.writing,
                "Stopped before all writes ended"
            );
        }
        self.jobs.abort_all();
    }

    fn is_complete(&self) -> bool {
        self.complete.len() == Source::ALL.len()
    }

    fn see(&mut self, source: Source, seen: Seen) {
        let now = Instant::now();
        match seen {
            Seen::Begin => {
                self.lists.insert(source.name(), BTreeSet::new());
            }
            Seen::Complete => {
                self.forget_absent(source, now);
                if self.complete.insert(source.name()) {
                    tracing::info!(kind = source.name(), "Watching");
                }
            }
            Seen::Applied(name, object) => {
                self.list(source, name);
                match object {
                    Object::Prepull(declared) => self.board.apply_prepull(*declared, now),
                    Object::Policy(declared) => self.board.apply_policy(*declared, now),
                    Object::Node(node) => self.board.apply_node(*node, now, Timestamp::now()),
                    Object::Report(report) => self.board.apply_report(*report, now),
                }
            }
            Seen::Malformed(name, metadata, error) => {
                self.controller.metrics.malformed(source.name());
                if self.may_log("malformed") {
                    tracing::warn!(kind = source.name(), object = ?name, err = error, "Object was skipped");
                }
                if let Name::Prepull(key) = &name {
                    let fault = Fault::new(key.clone(), &metadata, &error);
                    self.board.malformed_prepull(fault, now);
                }
                self.list(source, name);
            }
            Seen::Deleted(name) => self.remove(&name, now),
            Seen::Broken(error) => {
                self.controller.metrics.broken(source.name());
                if self.may_log(source.name()) {
                    tracing::warn!(kind = source.name(), err = %error, "Watch broke and goes on after a pause");
                }
            }
        }
    }

    fn may_log(&mut self, what: &'static str) -> bool {
        let now = Instant::now();
        let before = self.logged.get(what);
        let may = before.is_none_or(|before| now.saturating_duration_since(*before) >= QUIET);
        if may {
            self.logged.insert(what, now);
        }
        may
    }

    fn list(&mut self, source: Source, name: Name) {
        if let Some(list) = self.lists.get_mut(source.name()) {
            list.insert(name);
        }
    }

    /// What a complete list does not have is gone.
    fn forget_absent(&mut self, source: Source, now: Instant) {
        let Some(list) = self.lists.remove(source.name()) else {
            return;
        };
        let of_kind = |kind: Kind, keys: Vec<Key>| -> Vec<Name> {
            let keys = keys.into_iter().filter(|key| key.kind == kind);
            keys.map(Name::Prepull).collect()
        };
        let known: Vec<Name> = match source {
            Source::ClusterPrepulls => of_kind(Kind::Cluster, self.board.keys()),
            Source::Prepulls => of_kind(Kind::Namespaced, self.board.keys()),
            Source::Policies => {
                let names = self.board.policies.names();
                names.map(|name| Name::Policy(name.to_owned())).collect()
            }
            Source::Nodes => self.names(Name::Node),
            Source::Reports => self.names(Name::Report),
        };
        for name in known.iter().filter(|name| !list.contains(name)) {
            self.remove(name, now);
        }
    }

    fn names(&self, name: impl Fn(String) -> Name) -> Vec<Name> {
        let names = self.board.nodes.names();
        names.map(|(text, _)| name(text.to_owned())).collect()
    }

    fn remove(&mut self, name: &Name, now: Instant) {
        match name {
            Name::Prepull(key) => self.board.remove_prepull(key),
            Name::Policy(name) => self.board.policies.remove(name),
            Name::Node(name) => self.board.remove_node(name, now),
            Name::Report(name) => self.board.remove_report(name, now),
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let client = self.controller.client.clone();
        match effect {
            Effect::Write(write) => {
                self.jobs.spawn(async move {
                    let written = send::write(&client, &write).await;
                    Done::Written(write, written)
                });
            }
            Effect::WritePolicy(write) => {
                self.jobs.spawn(async move {
                    let written = send::write_policy(&client, &write).await;
                    Done::PolicyWritten(write, written)
                });
            }
            Effect::Gather(gather) => {
                self.jobs.spawn(async move {
                    let gathered = gather::gather(&client, &gather).await;
                    Done::Gathered(gather, gathered)
                });
            }
            Effect::Ask(errand) => {
                let resolver = Arc::clone(&self.controller.resolver);
                self.jobs.spawn(async move { ask(resolver, errand).await });
            }
            Effect::Open(opening) => {
                // A full queue is no loss: the node is looked at again.
                let _ = self.openings.try_send(opening);
            }
            Effect::Note(note) => self.note(note),
            Effect::Condemn(fault) => {
                self.note(fault.note());
                self.jobs.spawn(async move {
                    let told = send::condemn(&client, &fault).await;
                    Done::Condemned(fault, told)
                });
            }
        }
    }

    fn note(&self, note: Note) {
        tracing::info!(
            kind = note.kind,
            namespace = note.namespace,
            name = note.name,
            reason = note.reason,
            "{}",
            note.text
        );
        if self.notes.try_send(note).is_err() {
            self.controller.metrics.wrote("events", "dropped");
        }
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let now = Instant::now();
        let metrics = &self.controller.metrics;
        match done {
            Ok(Done::Written(write, written)) => {
                metrics.wrote("prepulls", written.as_str());
                for effect in self.board.written(&write, written, now) {
                    self.carry_out(effect);
                }
            }
            Ok(Done::PolicyWritten(write, written)) => {
                metrics.wrote("imageprunepolicies", written.as_str());
                for effect in self.board.policy_written(&write, written, now) {
                    self.carry_out(effect);
                }
            }
            Ok(Done::Condemned(fault, told)) => self.board.malformed.sent(&fault, told, now),
            Ok(Done::Gathered(gather, gathered)) => self.board.gathered(&gather, gathered, now),
            Ok(Done::Answered(question, answer, took)) => {
                let result = answer
                    .as_ref()
                    .map_or_else(|failure| failure.reason, |_| "Resolved");
                metrics.resolved(result, took.as_secs_f64());
                self.board.answered(&question, &answer, now);
            }
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                tracing::error!(err = %error, "A task panicked");
                self.failed = true;
            }
        }
    }

    fn measure(&mut self) {
        let now = Instant::now();
        let due = |at: Instant| now.saturating_duration_since(at) >= METRICS;
        if self.measured.is_none_or(due) {
            self.measured = Some(now);
            let totals = self.board.totals();
            self.controller
                .metrics
                .totals(&totals, self.board.desk.len());
            let totals = self.board.policies.totals();
            self.controller.metrics.prune_totals(&totals);
        }
    }
}

fn spawn<F>(task: F) -> AbortOnDropHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(task))
}

async fn ask(resolver: Arc<dyn Resolver>, errand: Errand) -> Done {
    let begun = Instant::now();
    let Errand {
        question,
        credentials,
    } = errand;
    let lookup = resolver.resolve(question.reference.clone(), credentials);
    let answer = match timeout(RESOLVE, lookup).await {
        Ok(answer) => answer.map(|resolution| resolution.digest),
        Err(_) => Err(ResolveFailure {
            reason: reason::TIMEOUT,
            message: format!("the registry did not answer within {} s", RESOLVE.as_secs()),
            retry_after: None,
        }),
    };
    Done::Answered(question, answer, begun.elapsed())
}

async fn tell(mut herald: Herald, mut notes: mpsc::Receiver<Note>, metrics: Metrics) {
    while let Some(note) = notes.recv().await {
        let result = match herald.tell(note).await {
            Ok(true) => "done",
            Ok(false) => "dropped",
            Err(error) => {
                tracing::debug!(err = error, "Event was not written");
                "failed"
            }
        };
        metrics.wrote("events", result);
    }
}

/// One node at a time: a gate is no race.
async fn open(
    client: Client,
    mut openings: mpsc::Receiver<Opening>,
    notes: mpsc::Sender<Note>,
    metrics: Metrics,
) {
    while let Some(opening) = openings.recv().await {
        match send::open(&client, &opening).await {
            Ok(()) => {
                metrics.wrote("nodes", "done");
                let _ = notes.try_send(opening.note());
            }
            Err(error) => {
                metrics.wrote("nodes", "failed");
                tracing::warn!(node = opening.node, prepull = %opening.prepull, err = error, "Node was not opened; it is tried again");
            }
        }
    }
}

/// Differs between replicas, and between runs of one.
fn seed(identity: &str) -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(identity)
}

//! What this node should hold, and its report.
//!
//! Decisions are pure functions of the declared objects, the node and the clock; the shell around them watches, pulls
//! through [`Images`] and writes one object, the node's own `NodeImageCache`.
//!
//! ```text
//! watch, files -> core: assign -> plan -> pulls through the seam
//!                       |  \-> report -> writer -> NodeImageCache
//!                       |-> state (what a restart needs)
//!                       \-> prune: removals through the other seam, by policies
//! ```

mod assign;
mod core;
mod files;
mod inventory;
mod known;
mod metrics;
mod plan;
mod prepull;
mod prune;
mod prune_policy;
mod prune_record;
mod prune_turns;
mod report;
mod retry;
mod seam;
mod secrets;
mod state;
mod view;
mod watch;
mod work;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

pub use metrics::Metrics;
pub use plan::Limits;
pub use prepull::{Identity as PrepullIdentity, Kind, Unit};
pub use prune_turns::PruneTiming;
pub use seam::{
    BoxFuture, Declared, Emergency, Figures, HeldImage, Images, PruneFault, Pruning, PullFailure,
    Want, WantCredentials,
};
pub use view::{ApiView, ImageState, ImageView, PrepullView, PruneView, View};
pub use watch::{Link, Trouble, Watched};

use self::core::Core;
use crate::k8s::api::{
    ClusterImagePrepull, ImagePrepull, ImagePrunePolicy, NodeFacts, NodeImageCacheStatus,
};
use crate::k8s::connect::{Connection, Identity, REQUEST_TIMEOUT};
use crate::lifecycle::Shutdown;
use files::Folder;
use prepull::Prepull;
use prune::Pruner;
use prune_policy::PrunePolicy;
use state::StateFile;
use watch::{Following, Told, follow};
use writer::Writer;

/// Messages that wait for the loop.
const QUEUE: usize = 256;
/// Messages taken in before the next decision.
const BATCH: usize = 1024;

/// Everything an agent of prepulls is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node: String,
    /// Its labels, for manifests that choose by labels while no API server says them.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Where the assignment is kept; its folder exists.
    pub state: PathBuf,
    /// A folder of manifests.
    pub manifests: Option<PathBuf>,
    /// Pulls at once.
    pub limits: Limits,
    /// Where it is kept what was pruned; its folder exists.
    pub pruned: PathBuf,
    /// When prune policies look.
    pub prune_timing: PruneTiming,
}

/// The agent, not running yet.
pub struct Agent {
    config: Config,
    connection: Option<Arc<Connection>>,
    images: Arc<dyn Images>,
    pruning: Option<Arc<dyn Pruning>>,
    metrics: Metrics,
    view: cell::Sender<Arc<View>>,
    restored: Option<Restored>,
}

/// What the last run left.
type Restored = (Vec<assign::Hold>, inventory::Pulls);

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What the loop hears.
#[derive(Clone, Debug)]
enum Message {
    Cluster(Told<Prepull>),
    Namespaced(Told<Prepull>),
    Policy(Told<PrunePolicy>),
    /// What became of policies.
    Pruned(Arc<prune::Output>),
    Node(Told<NodeFacts>),
    Folder(Folder),
    /// What is wrong with the credentials.
    Identity(Option<String>),
    /// What an earlier run reported.
    Reported(NodeImageCacheStatus),
    /// Why reports are refused; `None` once they are not any more.
    Refused(Option<String>),
    /// How many nodes the cluster has.
    Nodes(u64),
}

/// What the core needs besides messages.
#[derive(Clone)]
struct Settings {
    node: NodeFacts,
    state: StateFile,
    manifests: Option<PathBuf>,
    limits: Limits,
    images: Arc<dyn Images>,
    metrics: Metrics,
}

/// What the core needs of the API server.
struct Api {
    following: Following,
    secrets: Arc<secrets::Secrets>,
}

impl Agent {
    /// An agent over what holds images. Without a connection only manifests count.
    pub fn new(
        config: Config,
        connection: Option<Arc<Connection>>,
        images: Arc<dyn Images>,
        metrics: Metrics,
    ) -> Self {
        let view = View {
            node: config.node.clone(),
            api: connection.is_some().then(ApiView::default),
            ..View::default()
        };
        Agent {
            config,
            connection,
            images,
            pruning: None,
            metrics,
            view: cell::Sender::new(Arc::new(view)),
            restored: None,
        }
    }

    /// Acts on prune policies, too. Without this they are not even reported on.
    pub fn with_pruning(mut self, pruning: Arc<dyn Pruning>) -> Self {
        self.pruning = Some(pruning);
        self
    }

    /// What people may ask at any time.
    pub fn view(&self) -> cell::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Takes up what the last run held, so that it is protected and pinned before anybody can list or remove images.
    pub async fn restore(&mut self) {
        let restored = load(&self.config).await;
        let declared = core::declared(&restored.0);
        if let Err(failure) = self.images.declare(declared).await {
            // The loop tries again.
            tracing::warn!(err = %failure, "Images of the last run are not protected yet");
        }
        self.restored = Some(restored);
    }

    /// Works until shutdown is asked for. Pulls under way are given up then; the next start goes on.
    pub async fn run(self, shutdown: Shutdown) {
        let Agent {
            config,
            connection,
            images,
            pruning,
            metrics,
            view,
            restored,
        } = self;
        let loaded = match restored {
            Some(restored) => restored,
            None => load(&config).await,
        };
        let state = StateFile::new(config.state);
        let (to, mut messages) = mpsc::channel(QUEUE);
        // Ended with this function, however it ends.
        let mut tasks = JoinSet::new();
        let settings = Settings {
            node: NodeFacts {
                name: config.node.clone(),
                uid: config.node.clone(),
                labels: config.labels,
                ..NodeFacts::default()
            },
            state,
            manifests: config.manifests.clone(),
            limits: config.limits,
            images,
            metrics: metrics.clone(),
        };
        if let Some(dir) = config.manifests {
            tasks.spawn(files::follow(dir, Message::Folder, to.clone()));
        }
        let (api, reports) = match connection {
            None => (None, None),
            Some(connection) => {
                let nodes = loaded.0.iter().map(|hold| hold.desired).max().unwrap_or(0);
                let (begin, begun) = cell::channel(None);
                let following = Following {
                    connection: connection.clone(),
                    nodes: Arc::new(AtomicU64::new(nodes)),
                    metrics: metrics.clone(),
                    begin: begun,
                };
                let reports = start(&mut tasks, &following, &config.node, &to, begin);
                let secrets = Arc::new(secrets::Secrets::new(connection));
                let api = Api { following, secrets };
                (Some(api), Some(reports))
            }
        };
        let prune = pruning.map(|pruning| {
            let (inputs, read) = cell::channel(Arc::default());
            let pruner = Pruner {
                pruning,
                state: StateFile::new(config.pruned),
                timing: config.prune_timing,
                metrics: metrics.clone(),
            };
            tasks.spawn(pruner.run(read, Message::Pruned, to.clone()));
            inputs
        });
        // The tasks have senders of their own; without any there is nothing to hear.
        let _to = to;
        let mut core = Core::new(settings, api, loaded, view, reports, prune);
        let mut wake = core.settle().await;
        loop {
            tokio::select! {
                () = shutdown.wait() => break,
                message = messages.recv() => {
                    let Some(message) = message else { break };
                    core.take(message);
                }
                Some(done) = core.tasks.join_next() => finished(&mut core, done),
                () = sleep_until(wake) => {}
            }
            for _ in 0..BATCH {
                match messages.try_recv() {
                    Ok(message) => core.take(message),
                    Err(_) => break,
                }
            }
            while let Some(done) = core.tasks.try_join_next() {
                finished(&mut core, done);
            }
            wake = core.settle().await;
        }
        core.tasks.shutdown().await;
    }
}

async fn load(config: &Config) -> Restored {
    let state = StateFile::new(config.state.clone());
    match tokio::task::spawn_blocking(move || state.load()).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => {
            tracing::error!(err = %error, "Assignment of the last run is lost");
            Default::default()
        }
        Err(error) => {
            tracing::error!(err = %error, "Loading the assignment panicked");
            Default::default()
        }
    }
}

fn finished(core: &mut Core, done: Result<work::Done, tokio::task::JoinError>) {
    match done {
        Ok(done) => core.done(done),
        Err(error) if error.is_cancelled() => {}
        Err(error) => tracing::error!(err = %error, "A pull panicked"),
    }
}

/// Starts everything that talks to the API server. The answer takes reports.
fn start(
    tasks: &mut JoinSet<()>,
    following: &Following,
    node: &str,
    to: &mpsc::Sender<Message>,
    begin: cell::Sender<Option<Instant>>,
) -> cell::Sender<Arc<writer::Report>> {
    tasks.spawn(follow::<ClusterImagePrepull, _, _>(
        following.clone(),
        watch::Kind {
            watched: Watched::ClusterImagePrepulls,
            fields: None,
            compile: Prepull::of_cluster,
        },
        Message::Cluster,
        to.clone(),
    ));
    tasks.spawn(follow::<ImagePrepull, _, _>(
        following.clone(),
        watch::Kind {
            watched: Watched::ImagePrepulls,
            fields: None,
            compile: Prepull::of_namespaced,
        },
        Message::Namespaced,
        to.clone(),
    ));
    tasks.spawn(follow::<ImagePrunePolicy, _, _>(
        following.clone(),
        watch::Kind {
            watched: Watched::ImagePrunePolicies,
            fields: None,
            compile: PrunePolicy::of_api,
        },
        Message::Policy,
        to.clone(),
    ));
    tasks.spawn(follow::<Node, _, _>(
        following.clone(),
        watch::Kind {
            watched: Watched::Node,
            fields: Some(format!("metadata.name={node}")),
            compile: |node| NodeFacts::from(node),
        },
        Message::Node,
        to.clone(),
    ));
    tasks.spawn(identify(
        following.clone(),
        node.to_owned(),
        to.clone(),
        begin,
    ));
    let (reports, read) = cell::channel(Arc::new(writer::Report::default()));
    let writer = Writer {
        to: to.clone(),
        connection: following.connection.clone(),
        node: node.to_owned(),
        metrics: following.metrics.clone(),
        nodes: following.nodes.clone(),
    };
    tasks.spawn(writer.run(read));
    reports
}

/// Asks how many nodes there are, which says when to begin, and then who this agent is for the API server, as often as it
/// takes to get an answer.
async fn identify(
    following: Following,
    node: String,
    to: mpsc::Sender<Message>,
    begin: cell::Sender<Option<Instant>>,
) {
    let counted = async { count_nodes(&following.connection.client().await?).await };
    match timeout(REQUEST_TIMEOUT, counted).await {
        Ok(Ok(nodes)) => {
            following.nodes.fetch_max(nodes, Ordering::Relaxed);
            let _ = to.send(Message::Nodes(nodes)).await;
        }
        // What the last run knew has to do; the watches say what is wrong.
        Ok(Err(error)) => tracing::debug!(err = %error, "Nodes were not counted"),
        Err(_) => tracing::debug!("Nodes were not counted in time"),
    }
    let nodes = following.nodes.load(Ordering::Relaxed);
    begin.send_replace(Some(Instant::now() + retry::start(nodes, retry::roll())));
    following.begun().await;
    let mut attempt = 0;
    loop {
        let asked = async { Identity::ask(&following.connection.client().await?).await };
        let trouble = match timeout(REQUEST_TIMEOUT, asked).await {
            Ok(Ok(identity)) => {
                let fault = identity.fault(&node);
                match &fault {
                    // A person's kubeconfig is fine where no admission policy asks for more.
                    Some(fault) => {
                        tracing::warn!(node, err = fault, "Credentials are not this node's");
                    }
                    None => {
                        tracing::info!(node, user = identity.user, "Credentials are this node's");
                    }
                }
                // Only what names another node is certain to be refused.
                let wrong = fault.filter(|_| identity.node.is_some());
                let _ = to.send(Message::Identity(wrong)).await;
                return;
            }
            Ok(Err(error)) => Trouble::of(&error),
            Err(_) => Trouble::Unreachable,
        };
        if trouble == Trouble::Unauthorized {
            let _ = following.connection.renew().await;
        }
        attempt += 1;
        let nodes = following.nodes.load(Ordering::Relaxed);
        let overloaded = trouble == Trouble::Overloaded;
        let pause = retry::reconnect(attempt, nodes, overloaded, retry::roll());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = to.closed() => return,
        }
    }
}

/// Nodes of the cluster, by the one request that costs next to nothing: the first of them, and how many more there are.
async fn count_nodes(client: &kube::Client) -> Result<u64, kube::Error> {
    let api: kube::Api<Node> = kube::Api::all(client.clone());
    let list = api.list_metadata(&ListParams::default().limit(1)).await?;
    let more = list.metadata.remaining_item_count.unwrap_or(0);
    Ok(u64::try_from(more).unwrap_or(0) + list.items.len() as u64)
}

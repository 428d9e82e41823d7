//! Wiring of what is declared: the API server or a folder of manifests, the agent that follows them, and its answer
//! to `larder status`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use prometheus_client::registry::Registry;

use super::config::DeclaredConfig;
use crate::control::StatusSource;
use crate::control::proto;
use crate::image::Platform;
use crate::k8s::agent::{
    self, Agent, ApiView, ImageState, ImageView, Images, Limits, Link, PrepullView, PruneTiming,
    PruneView, Pruning, View,
};
use crate::k8s::connect::{ApiServer, Connection};
use crate::lifecycle::{Readiness, Shutdown};

/// Name of the file that a restart needs, in the data directory.
const STATE: &str = "prepulls.json";
/// File below the data directory with what was pruned.
const PRUNED: &str = "prunes.json";
/// The user agent's name.
const ROLE: &str = "larder-agent";

/// Metrics, registered before there is an agent.
#[derive(Debug)]
pub(super) struct Metrics(agent::Metrics);

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Metrics(agent::Metrics::register(registry))
    }
}

/// An agent of declared images, not running yet.
#[derive(Debug)]
pub(super) struct Declared {
    agent: Agent,
}

impl Declared {
    /// `None` where nothing is declared to this agent. What the last run held is protected when this returns.
    pub(super) async fn build(
        config: &DeclaredConfig,
        root: &Path,
        images: Arc<dyn Images>,
        metrics: Metrics,
    ) -> anyhow::Result<Option<Self>> {
        let server = api_server(config, |name| std::env::var_os(name).is_some());
        if server.is_none() && config.manifests.is_none() {
            return Ok(None);
        }
        let node = match &config.node_name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        let connection = server.map(|server| Arc::new(Connection::new(server, ROLE)));
        let config = agent::Config {
            labels: labels(&node),
            node,
            state: root.join(STATE),
            manifests: config.manifests.clone(),
            limits: Limits::default(),
            pruned: root.join(PRUNED),
            prune_timing: PruneTiming::default(),
        };
        tracing::info!(
            node = config.node,
            api = connection.is_some(),
            manifests = config
                .manifests
                .as_ref()
                .map(|dir: &PathBuf| dir.display().to_string()),
            "Declared images are followed"
        );
        let mut agent = Agent::new(config, connection, images, metrics.0);
        agent.restore().await;
        Ok(Some(Declared { agent }))
    }

    /// Acts on prune policies, too.
    pub(super) fn with_pruning(self, pruning: Arc<dyn Pruning>) -> Self {
        Declared {
            agent: self.agent.with_pruning(pruning),
        }
    }

    /// Answers `larder status`.
    pub(super) fn status(&self) -> StatusSource {
        let view = self.agent.view();
        Arc::new(move || response(&view.borrow()))
    }

    /// Works until shutdown is asked for. Whether this agent and the API server get along is told with the probes, and
    /// does not count there: images are served without it.
    pub(super) fn run(
        self,
        shutdown: Shutdown,
        readiness: &Readiness,
    ) -> impl Future<Output = ()> + use<> {
        let mut view = self.agent.view();
        let synced = view.borrow().api.is_some().then(|| readiness.advice("api"));
        async move {
            let telling = async {
                let Some(synced) = synced else { return };
                // Ends with the agent.
                while view.changed().await.is_ok() {
                    let view = view.borrow_and_update();
                    let api = view.api.as_ref();
                    synced.set(api.is_some_and(|api| api.synced && api.fault.is_none()));
                }
            };
            tokio::join!(self.agent.run(shutdown), telling);
        }
    }
}

/// A service account alone is no wish to follow prepulls: many pods have one.
fn api_server(config: &DeclaredConfig, set: impl Fn(&str) -> bool) -> Option<ApiServer> {
    match &config.kubeconfig {
        Some(path) => Some(ApiServer::Kubeconfig(path.clone())),
        None if config.node_name.is_some() && set("KUBERNETES_SERVICE_HOST") => {
            Some(ApiServer::InCluster)
        }
        None => None,
    }
}

/// As a kubelet names its Node.
fn host_name() -> anyhow::Result<String> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_str().context("host name")?;
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("this machine has no host name: give --node-name");
    }
    Ok(name)
}

/// What every Node says of itself, for manifests that choose by labels.
fn labels(node: &str) -> BTreeMap<String, String> {
    let platform = Platform::host();
    [
        ("kubernetes.io/hostname", node),
        ("kubernetes.io/os", &platform.os),
        ("kubernetes.io/arch", &platform.architecture),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn response(view: &View) -> proto::StatusResponse {
    let (manifests, faults) = view.manifests.clone().unwrap_or_default();
    proto::StatusResponse {
        node: view.node.clone(),
        api: view.api.as_ref().map(api),
        manifests,
        manifest_faults: faults
            .into_iter()
            .map(|(file, message)| proto::ManifestFault { file, message })
            .collect(),
        prepulls: view.prepulls.iter().map(prepull).collect(),
        prunes: view.prunes.iter().map(prune).collect(),
        emergency: view.emergency.map(|emergency| proto::EmergencyStatus {
            began: emergency.began.to_string(),
            removed_images: emergency.images,
            freed_bytes: emergency.freed_bytes,
            short_bytes: emergency.short_bytes,
        }),
    }
}

fn prune(view: &PruneView) -> proto::PrunePolicyStatus {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    let report = &view.report;
    proto::PrunePolicyStatus {
        policy: report.policy.clone(),
        file: view.file.clone(),
        revision: report.revision.clone(),
        mode: if view.enforces { "Enforce" } else { "DryRun" }.to_owned(),
        state: format!("{:?}", report.state),
        reason: view.reason.clone(),
        message: view.message.clone(),
        last_run: match &report.last_run_time {
            Some(time) => time.0.to_string(),
            None => String::new(),
        },
        next_run: view.next.map(|at| at.to_string()).unwrap_or_default(),
        removed_images: unsigned(report.removed_images),
        freed_bytes: unsigned(report.freed_bytes),
        would_remove_images: unsigned(report.would_remove_images),
        would_free_bytes: unsigned(report.would_free_bytes),
        top: report
            .top
            .iter()
            .map(|top| proto::PrunedImage {
                image: top.image.clone(),
                rule: top.rule.clone(),
                bytes: unsigned(top.bytes),
            })
            .collect(),
    }
}

fn api(api: &ApiView) -> proto::ApiStatus {
    proto::ApiStatus {
        synced: api.synced,
        fault: api.fault.clone().unwrap_or_default(),
        watches: api
            .links
            .iter()
            .map(|(watched, link)| {
                let (state, message) = match link {
                    Link::Starting => ("Starting", ""),
                    Link::Synced => ("Synced", ""),
                    Link::Lost { trouble, message } => (trouble.as_str(), message.as_str()),
                };
                proto::WatchStatus {
                    resource: watched.as_str().to_owned(),
                    state: state.to_owned(),
                    message: message.to_owned(),
                }
            })
            .collect(),
    }
}

fn prepull(view: &PrepullView) -> proto::PrepullStatus {
    proto::PrepullStatus {
        kind: view.identity.kind.to_string(),
        namespace: view.identity.namespace.clone(),
        name: view.identity.name.clone(),
        uid: view.identity.uid.clone(),
        file: view.file.clone(),
        revision: view.held.clone(),
        next_revision: view.next.clone(),
        state: format!("{:?}", view.state),
        ready: view.ready as u64,
        total: view.total as u64,
        reason: view.reason.clone(),
        message: view.message.clone(),
        pinned: view.pinned,
        retained_until: view
            .retained_until
            .map(|at| at.to_string())
            .unwrap_or_default(),
        images: view.images.iter().map(image).collect(),
    }
}

fn image(view: &ImageView) -> proto::PrepullImage {
    let state = match view.state {
        ImageState::Held => "Held",
        ImageState::Pulling => "Pulling",
        ImageState::Pending => "Pending",
        ImageState::Failed => "Failed",
    };
    proto::PrepullImage {
        image: view.unit.image.clone(),
        digest: view.unit.digest.clone(),
        platform: view.unit.platform.clone(),
        state: state.to_owned(),
        reason: view.reason.clone(),
        message: view.message.clone(),
        attempts: view.attempts,
        next_try: view.next.map(|at| at.to_string()).unwrap_or_default(),
    }
}

//! Prune policies against a real API server: the controller, and twenty agents whose images are pretended.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use larder::image::Reference;
use larder::k8s::agent::{
    self, Agent, BoxFuture, Declared, Figures, HeldImage, Images, Limits, PruneFault, PruneTiming,
    Pruning, PullFailure, Want, WantCredentials,
};
use larder::k8s::api::{ImagePrunePolicy, ImagePrunePolicyStatus, NodeImageCache, reason};
use larder::k8s::connect::Connection;
use larder::k8s::controller::{Controller, Metrics, Options, Resolution, ResolveFailure, Resolver};
use larder::lifecycle::{Readiness, Shutdown};
use larder::prune::{Candidate, Disk, Part};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::cluster::Cluster;
use crate::support::fleet::until;
use crate::support::process::run;

const NODES: usize = 20;
/// Of them at once.
const IN_FLIGHT: usize = 4;
/// Of one image.
const BYTES: u64 = 100;

/// What all nodes have in common.
#[derive(Debug)]
struct Bed {
    /// Removals that may go ahead.
    leave: Semaphore,
    /// Nodes in the middle of a run, and the most there ever were.
    working: Mutex<BTreeSet<String>>,
    most: AtomicUsize,
}

/// Images of a node, which exist in memory.
#[derive(Debug)]
struct Pretended {
    node: String,
    bed: Arc<Bed>,
    images: Mutex<Vec<String>>,
    unreachable: Mutex<bool>,
}

impl Pretended {
    fn fill(&self) {
        *self.images.lock().unwrap() = (0..3).map(|n| format!("sha256:{n}")).collect();
    }

    fn held(&self) -> usize {
        self.images.lock().unwrap().len()
    }
}

impl Images for Pretended {
    fn list(&self) -> BoxFuture<'_, Result<Vec<HeldImage>, PullFailure>> {
        let images = self.images.lock().unwrap();
        let held = images.iter().map(|id| HeldImage {
            id: id.clone(),
            tags: Vec::new(),
            digests: Vec::new(),
            pinned: false,
            size: BYTES,
            staged: false,
        });
        Box::pin(std::future::ready(Ok(held.collect())))
    }

    fn pull(&self, _: Want) -> BoxFuture<'_, Result<HeldImage, PullFailure>> {
        Box::pin(std::future::pending())
    }

    fn declare(&self, _: Vec<Declared>) -> BoxFuture<'_, Result<(), PullFailure>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn figures(&self) -> BoxFuture<'_, Result<Figures, PullFailure>> {
        Box::pin(std::future::ready(Ok(Figures {
            capacity_bytes: 1000,
            available_bytes: 1000 - BYTES * self.held() as u64,
            healthy: true,
            ..Figures::default()
        })))
    }
}

impl Pruning for Pretended {
    fn candidates(&self) -> BoxFuture<'_, Result<(Vec<Candidate>, Disk), PruneFault>> {
        Box::pin(async {
            if *self.unreachable.lock().unwrap() {
                return Err(PruneFault {
                    reason: reason::RUNTIME_UNAVAILABLE,
                    message: "/run/containerd.sock: connection refused".to_owned(),
                });
            }
            let images = self.images.lock().unwrap();
            let pulled_at = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
            let candidates = images.iter().map(|id| Candidate {
                id: id.clone(),
                names: vec![format!(
                    "registry.example/app:{}",
                    id.trim_start_matches("sha256:")
                )],
                layers: vec![Part {
                    id: id.clone(),
                    bytes: BYTES,
                }],
                pulled_at,
                ..Candidate::default()
            });
            let used = BYTES * images.len() as u64;
            let disk = Disk {
                capacity: 1000,
                available: 1000 - used,
                images: used,
            };
            Ok((candidates.collect(), disk))
        })
    }

    fn remove(&self, id: String) -> BoxFuture<'_, Result<Option<u64>, PruneFault>> {
        Box::pin(async move {
            {
                let mut working = self.bed.working.lock().unwrap();
                working.insert(self.node.clone());
                self.bed.most.fetch_max(working.len(), Ordering::SeqCst);
            }
            self.bed.leave.acquire().await.unwrap().forget();
            let mut images = self.images.lock().unwrap();
            let before = images.len();
            images.retain(|image| *image != id);
            if images.is_empty() {
                self.bed.working.lock().unwrap().remove(&self.node);
            }
            Ok((images.len() < before).then_some(BYTES))
        })
    }

    fn reserve(&self, _: u64) {}
}

/// Nothing is to be resolved here.
struct NoTags;

impl Resolver for NoTags {
    fn resolve(
        &self,
        _: Reference,
        _: Arc<[WantCredentials]>,
    ) -> BoxFuture<'_, Result<Resolution, ResolveFailure>> {
        Box::pin(std::future::pending())
    }
}

async fn client(cluster: &Cluster) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

fn agent(client: &Client, node: &Arc<Pretended>, dir: &Path) -> Agent {
    let config = agent::Config {
        node: node.node.clone(),
        labels: Default::default(),
        state: dir.join(format!("{}.json", node.node)),
        manifests: None,
        limits: Limits::default(),
        pruned: dir.join(format!("{}-prunes.json", node.node)),
        prune_timing: PruneTiming {
            settle: Duration::from_millis(50),
            apart: Duration::from_millis(500),
            most: Duration::from_secs(2),
        },
    };
    let connection = Connection::of_client(client.clone());
    let metrics = agent::Metrics::default();
    Agent::new(config, Some(Arc::new(connection)), node.clone(), metrics).with_pruning(node.clone())
}

struct Policies(Api<ImagePrunePolicy>);

impl Policies {
    async fn apply(&self, name: &str, spec: &Value) {
        let object = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrunePolicy",
            "metadata": {"name": name}, "spec": spec,
        });
        let parameters = PatchParams::apply("person").force();
        let patch = Patch::Apply(&object);
        self.0.patch(name, &parameters, &patch).await.unwrap();
    }

    async fn status(
        &self,
        name: &str,
        wanted: impl Fn(&ImagePrunePolicyStatus) -> bool,
    ) -> ImagePrunePolicyStatus {
        let found = until(self.0.clone(), name, |policy| {
            let status = policy.status.as_ref();
            status.is_some_and(|status| {
                status.observed_generation == policy.metadata.generation && wanted(status)
            })
        });
        found.await.status.unwrap()
    }
}

fn condition(status: &ImagePrunePolicyStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == type_);
    found.map_or(String::new(), |c| format!("{} {}", c.status, c.reason))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_selects_everything_is_held_by_its_mode_its_rollout_and_its_budget() {
    let Some(cluster) = Cluster::own("prune_policies") else {
        return;
    };
    cluster.apply(&run(Command::new(env!("CARGO_BIN_EXE_larder")).arg("crds")).ok());
    for kind in [
        "clusterimageprepulls",
        "imageprepulls",
        "imageprunepolicies",
        "nodeimagecaches",
    ] {
        let crd = format!("crd/{kind}.larder.dev");
        cluster.wait_for("condition=Established", &[&crd]);
    }
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: larder}}");
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n:02}")).collect();
    let nodes: Vec<(&str, &[(&str, &str)])> = names
        .iter()
        .map(|name| (name.as_str(), &[("pool", "ci")][..]))
        .collect();
    cluster.create_nodes(&nodes);

    let client = client(&cluster).await;
    let dir = tempfile::tempdir().unwrap();
    let bed = Arc::new(Bed {
        leave: Semaphore::new(0),
        working: Mutex::default(),
        most: AtomicUsize::new(0),
    });
    let nodes: Vec<Arc<Pretended>> = names
        .iter()
        .map(|name| {
            let node = Arc::new(Pretended {
                node: name.clone(),
                bed: bed.clone(),
                images: Mutex::default(),
                unreachable: Mutex::new(false),
            });
            node.fill();
            node
        })
        .collect();
    let shutdown = Shutdown::new();
    let mut tasks = tokio::task::JoinSet::new();
    for node in &nodes {
        tasks.spawn(agent(&client, node, dir.path()).run(shutdown.clone()));
    }
    let options = Options {
        namespace: "larder".to_owned(),
        identity: "one".to_owned(),
    };
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let controller = Controller::new(client.clone(), Arc::new(NoTags), metrics, options);
    let readiness = Readiness::new();
    tasks.spawn(controller.run(readiness.check("watches"), shutdown.clone()));

    // By mistake, everywhere. The default removes nothing, and says what would have gone.
    let policies = Policies(Api::all(client.clone()));
    policies
        .apply("all", &json!({"rules": [{"keepLast": 0}]}))
        .await;
    let status = policies
        .status("all", |status| status.nodes.done == NODES as i64)
        .await;
    assert_eq!(status.would_remove_images, 3 * NODES as i64);
    assert_eq!(status.would_free_bytes, 300 * NODES as i64);
    assert_eq!(status.removed_images, 0);
    assert_eq!(condition(&status, "Ready"), "True AllNodesReady");
    assert_eq!(status.top[0].nodes, NODES as i64);
    assert!(nodes.iter().all(|node| node.held() == 3));
    assert_eq!(bed.most.load(Ordering::SeqCst), 0);
    let reports: Api<NodeImageCache> = Api::all(client.clone());
    let report = until(reports.clone(), "n00", |report| {
        let status = report.status.as_ref();
        status.is_some_and(|status| !status.prunes.is_empty())
    });
    let report = report.await.status.unwrap();
    assert_eq!(report.prunes[0].top.len(), 3);
    let ready = report.conditions.iter().find(|c| c.type_ == "PruneReady");
    assert_eq!(ready.unwrap().status, "True");

    // Enforced: four nodes at a time. Three have a runtime that does not answer.
    for node in &nodes[..3] {
        *node.unreachable.lock().unwrap() = true;
    }
    let enforce = |failures: i64| {
        json!({"mode": "Enforce", "rules": [{"keepLast": 0}],
            "rollout": {"maxInFlight": IN_FLIGHT, "maxFailures": failures}})
    };
    policies.apply("all", &enforce(2)).await;
    policies
        .status("all", |status| status.nodes.admitted >= IN_FLIGHT as i64)
        .await;
    while bed.working.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // Nobody may remove yet: whoever is working stays so, and the others wait.
    let waiting = nodes.iter().filter(|node| node.held() == 3).count();
    assert_eq!(waiting, NODES);
    bed.leave.add_permits(1000);
    let status = policies
        .status("all", |status| {
            condition(status, "Stalled") == "True FailureBudgetExceeded"
                || status.nodes.done + status.nodes.failed == NODES as i64
        })
        .await;
    assert_eq!(condition(&status, "Stalled"), "True FailureBudgetExceeded");
    assert_eq!(status.nodes.failed, 3);
    assert_eq!(status.failures[0].reason, reason::RUNTIME_UNAVAILABLE);
    assert!(status.nodes.admitted <= NODES as i64);
    for node in &nodes[..3] {
        assert_eq!(node.held(), 3);
    }
    let report = until(reports.clone(), "n00", |report| {
        let status = report.status.as_ref();
        status.is_some_and(|status| {
            let ready = status.conditions.iter().find(|c| c.type_ == "PruneReady");
            ready.is_some_and(|ready| ready.status == "False")
        })
    });
    let report = report.await.status.unwrap();
    let ready = report.conditions.iter().find(|c| c.type_ == "PruneReady");
    assert_eq!(ready.unwrap().reason, reason::RUNTIME_UNAVAILABLE);

    // They come back, all at once since they were let in before, and the rollout ends.
    assert!(bed.most.load(Ordering::SeqCst) <= IN_FLIGHT);
    for node in &nodes[..3] {
        *node.unreachable.lock().unwrap() = false;
    }
    let status = policies
        .status("all", |status| status.nodes.done == NODES as i64)
        .await;
    assert_eq!(status.removed_images, 3 * NODES as i64);
    assert_eq!(status.freed_bytes, 300 * NODES as i64);
    assert_eq!(status.would_remove_images, 0);
    assert!(nodes.iter().all(|node| node.held() == 0));

    // Two together: the one takes what is its own, the other what the disk still wants.
    policies.0.delete("all", &Default::default()).await.unwrap();
    nodes.iter().for_each(|node| node.fill());
    let wide = json!({"maxInFlight": NODES});
    policies
        .apply(
            "one",
            &json!({"mode": "Enforce", "rollout": wide,
                "rules": [{"match": {"images": ["registry.example/app:1"]}, "keepLast": 0}]}),
        )
        .await;
    policies
        .apply(
            "two",
            &json!({"mode": "Enforce", "rollout": wide, "rules": [{"minFree": 850}]}),
        )
        .await;
    // Which of them came first differs between nodes; what goes does not.
    let all = NODES as i64;
    let one = policies.status("one", |s| s.nodes.done == all).await;
    assert!(one.removed_images <= all);
    let two = policies.status("two", |s| {
        s.nodes.done == all && s.removed_images + one.removed_images == 2 * all
    });
    assert!(two.await.removed_images >= all);
    for node in &nodes {
        while node.held() != 1 {
            tokio::task::yield_now().await;
        }
    }

    // What makes no sense does not get in, and says why.
    for (name, spec, words) in [
        ("empty", json!({"rules": []}), "spec.rules"),
        (
            "nothing",
            json!({"rules": [{}]}),
            "a rule needs at least one of",
        ),
        (
            "amount",
            json!({"rules": [{"minFree": "lots"}]}),
            "must be bytes above 0",
        ),
        (
            "age",
            json!({"rules": [{"unusedFor": "5s"}]}),
            "must be a duration",
        ),
        (
            "often",
            json!({"rules": [{"keepLast": 1}], "schedule": {}}),
            "give interval, window, or both",
        ),
        (
            "mode",
            json!({"mode": "Delete", "rules": [{"keepLast": 1}]}),
            "DryRun",
        ),
        (
            "pattern",
            json!({"rules": [{"match": {"images": ["a b"]}, "keepLast": 1}]}),
            "must be a pattern",
        ),
    ] {
        let object = json!({"apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrunePolicy",
            "metadata": {"name": name}, "spec": spec});
        let flags = ["create", "--dry-run=server", "-f", "-"];
        let answer = cluster.kubectl_with(&flags, &object.to_string());
        assert!(answer.stderr.contains(words), "{name}: {}", answer.stderr);
    }
    shutdown.request();
    while tasks.join_next().await.is_some() {}
}

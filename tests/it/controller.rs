//! The controller against a real API server, with nodes and agents that exist only as objects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use larder::image::{Digest, Reference};
use larder::k8s::agent::{BoxFuture, WantCredentials};
use larder::k8s::api::{
    ALL, ClusterImagePrepull, HoldState, NodeFacts, NodeImageCache, PrepullStatus, reason,
};
use larder::k8s::controller::{Controller, Metrics, Options, Resolution, ResolveFailure, Resolver};
use larder::lifecycle::{Readiness, Shutdown};
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::fleet::{self, Fleet, until};

/// Tests take turns on one cluster: a controller acts on everything in it.
struct Turn {
    cluster: &'static Cluster,
    client: Client,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    async fn take(test: &str) -> Option<Self> {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // The notice of what is missing is printed for each test.
        let cluster = CLUSTER.get_or_init(|| Cluster::own(test)).as_ref();
        let Some(cluster) = cluster else {
            let _ = Cluster::own(test);
            return None;
        };
        let client = client(cluster).await;
        fleet::install_kinds(&client).await;
        let turn = Turn {
            cluster,
            client,
            _turn: turn,
        };
        turn.clear().await;
        Some(turn)
    }

    /// What the test before left.
    async fn clear(&self) {
        let prepulls: Api<ClusterImagePrepull> = self.prepulls();
        for prepull in prepulls.list(&ListParams::default()).await.unwrap() {
            prepulls
                .delete(&prepull.name_any(), &DeleteParams::default())
                .await
                .unwrap();
        }
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        for node in nodes.list(&ListParams::default()).await.unwrap() {
            fleet::delete_node(&self.client, &node.name_any()).await;
        }
        let reports: Api<NodeImageCache> = Api::all(self.client.clone());
        for report in reports.list(&ListParams::default()).await.unwrap() {
            let _ = reports
                .delete(&report.name_any(), &DeleteParams::default())
                .await;
        }
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client.clone(), "larder");
        let _ = leases
            .delete("larder-controller", &DeleteParams::default())
            .await;
    }

    fn prepulls(&self) -> Api<ClusterImagePrepull> {
        Api::all(self.client.clone())
    }

    async fn nodes(&self, count: usize) -> Vec<NodeFacts> {
        let mut nodes = Vec::new();
        for number in 0..count {
            let name = format!("n{number}");
            let uid = fleet::create_node(&self.client, &name, &[("pool", "test")]).await;
            nodes.push(NodeFacts {
                name,
                uid,
                labels: [("pool".to_owned(), "test".to_owned())].into(),
                ..NodeFacts::default()
            });
        }
        nodes
    }

    async fn apply(&self, name: &str, spec: Value) -> ClusterImagePrepull {
        let object = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull",
            "metadata": {"name": name}, "spec": spec,
        });
        let parameters = PatchParams::apply("person").force();
        self.prepulls()
            .patch(name, &parameters, &Patch::Apply(&object))
            .await
            .unwrap()
    }

    async fn status(&self, name: &str, wanted: impl Fn(&PrepullStatus) -> bool) -> PrepullStatus {
        let found = until(self.prepulls(), name, |prepull| {
            let status = prepull.status.as_ref();
            status.is_some_and(|status| {
                status.observed_generation == prepull.metadata.generation && wanted(status)
            })
        });
        found.await.status.unwrap()
    }
}

async fn client(cluster: &Cluster) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(file, &Default::default())
        .await
        .unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// A registry in memory.
#[derive(Clone, Default)]
struct Tags {
    tags: Arc<Mutex<HashMap<String, Result<Digest, &'static str>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tags {
    fn set(&self, image: &str, content: &str) {
        let image = image.parse::<Reference>().unwrap().to_string();
        self.tags
            .lock()
            .unwrap()
            .insert(image, Ok(Digest::sha256(content.as_bytes())));
    }
    fn fail(&self, image: &str, reason: &'static str) {
        let image = image.parse::<Reference>().unwrap().to_string();
        self.tags.lock().unwrap().insert(image, Err(reason));
    }
    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Resolver for Tags {
    fn resolve(
        &self,
        reference: Reference,
        _: Arc<[WantCredentials]>,
    ) -> BoxFuture<'_, Result<Resolution, ResolveFailure>> {
        let image = reference.to_string();
        self.asked.lock().unwrap().push(image.clone());
        let known = self.tags.lock().unwrap().get(&image).cloned();
        let answer = match known {
            Some(Ok(digest)) => Ok(Resolution { digest }),
            Some(Err(reason)) => Err(reason),
            None => Err(reason::NOT_FOUND),
        };
        let answer = answer.map_err(|reason| ResolveFailure {
            reason,
            message: "as the test says".to_owned(),
            retry_after: None,
        });
        Box::pin(std::future::ready(answer))
    }
}

/// A replica that ends with its handle.
struct Replica {
    task: tokio::task::JoinHandle<()>,
    shutdown: Shutdown,
    readiness: Readiness,
}

impl Replica {
    fn start(client: &Client, tags: &Tags, identity: &str) -> Self {
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        let options = Options {
            namespace: "larder".to_owned(),
            identity: identity.to_owned(),
        };
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let controller = Controller::new(client.clone(), Arc::new(tags.clone()), metrics, options);
        let task = tokio::spawn(controller.run(readiness.check("watches"), shutdown.clone()));
        Replica {
            task,
            shutdown,
            readiness,
        }
    }

    /// As SIGKILL does.
    fn kill(self) {
        self.task.abort();
    }

    async fn stop(mut self) {
        self.shutdown.request();
        (&mut self.task).await.unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn ready(_: &str, _: &ClusterImagePrepull) -> fleet::Outcome {
    (HoldState::Ready, Vec::new())
}

fn condition(status: &PrepullStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == type_);
    found.map_or(String::new(), |c| format!("{} {}", c.status, c.reason))
}

fn revision(status: &PrepullStatus) -> String {
    status
        .rollout
        .as_ref()
        .map_or(String::new(), |r| r.revision.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepull_gets_a_revision_and_nodes_one_at_a_time() {
    let Some(turn) = Turn::take("controller_rollout").await else {
        return;
    };
    let nodes = turn.nodes(5).await;
    let tags = Tags::default();
    tags.set("registry.example/app:1", "one");
    tags.set("registry.example/db:1", "db");
    let replica = Replica::start(&turn.client, &tags, "one");
    let fleet = Fleet::new(&turn.client, &nodes, ready);
    let log = Arc::clone(&fleet.log);
    let agents = tokio::spawn(fleet.run());
    let spec = |app: &str| {
        json!({
            "images": [app, "registry.example/db:1"],
            "nodeSelector": {"matchLabels": {"pool": "test"}},
            "rollout": {"maxInFlight": 1},
        })
    };
    turn.apply("base", spec("registry.example/app:1")).await;
    let first = turn
        .status("base", |s| condition(s, "Ready") == "True AllNodesReady")
        .await;
    assert_eq!(
        (first.nodes.desired, first.nodes.admitted, first.nodes.ready),
        (5, 5, 5)
    );
    assert_eq!(first.resolved.len(), 2);
    assert_eq!(first.rollout.as_ref().unwrap().admitted, ALL);
    assert_eq!(log.lock().unwrap().most, 1);

    // An edit begins anew, one at a time, and asks for what is new only.
    let asked = tags.asked();
    tags.set("registry.example/app:2", "two");
    turn.apply("base", spec("registry.example/app:2")).await;
    let second = turn
        .status("base", |s| {
            condition(s, "Ready") == "True AllNodesReady" && revision(s) != revision(&first)
        })
        .await;
    assert_ne!(revision(&first), revision(&second));
    assert_eq!(tags.asked(), asked + 1);
    {
        let log = log.lock().unwrap();
        assert_eq!(log.most, 1);
        assert_eq!(log.begun.len(), 10);
    }
    assert!(replica.readiness.ready());
    agents.abort();
    replica.stop().await;
}

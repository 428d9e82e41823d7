//! The controller against a real API server, with nodes and agents that exist only as objects.
#![allow(
    clippy::await_holding_lock,
    clippy::unwrap_used,
    clippy::needless_pass_by_value
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

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
    /// As a controller has it: retries nothing.
    strict: Client,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    async fn take(test: &str) -> Option<Self> {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // The notice of what is missing is printed for each test.
        let cluster = CLUSTER.get_or_init(|| Cluster::kept(test)).as_ref();
        let Some(cluster) = cluster else {
            let _ = Cluster::kept(test);
            return None;
        };
        let (client, strict) = (client(cluster, true).await, client(cluster, false).await);
        fleet::install_kinds(&client).await;
        let turn = Turn {
            cluster,
            client,
            strict,
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

async fn client(cluster: &Cluster, retry: bool) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(file, &Default::default())
        .await
        .unwrap();
    config.default_retry = retry;
    Client::try_from(config).unwrap()
}

/// A registry in memory.
#[derive(Clone, Default)]
struct Tags {
    tags: Arc<Mutex<HashMap<String, Digest>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tags {
    fn set(&self, image: &str, content: &str) {
        let image = image.parse::<Reference>().unwrap().to_string();
        self.tags
            .lock()
            .unwrap()
            .insert(image, Digest::sha256(content.as_bytes()));
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
        let answer = known
            .map(|digest| Resolution { digest })
            .ok_or_else(|| ResolveFailure {
                reason: reason::NOT_FOUND,
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
        Self::start_in(client, tags, identity, "larder")
    }

    fn start_in(client: &Client, tags: &Tags, identity: &str, namespace: &str) -> Self {
        let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
        let options = Options {
            namespace: namespace.to_owned(),
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
    let replica = Replica::start(&turn.strict, &tags, "one");
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

/// A prepull whose spec chooses the test's nodes.
fn spec(images: &[&str], max_in_flight: Value) -> Value {
    json!({
        "images": images,
        "nodeSelector": {"matchLabels": {"pool": "test"}},
        "rollout": {"maxInFlight": max_in_flight},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_image_is_named_a_moved_tag_followed_and_hostile_specs_reach_status() {
    let Some(turn) = Turn::take("controller_images").await else {
        return;
    };
    let nodes = turn.nodes(2).await;
    let tags = Tags::default();
    tags.set("registry.example/app:1", "one");
    let replica = Replica::start(&turn.strict, &tags, "one");
    let agents = tokio::spawn(Fleet::new(&turn.client, &nodes, ready).run());
    turn.apply(
        "wrong",
        spec(
            &["registry.example/app:1", "registry.example/typo:1"],
            json!(2),
        ),
    )
    .await;
    let status = turn.status("wrong", |s| s.nodes.ready == 2).await;
    assert_eq!(condition(&status, "Ready"), "False NodesFailed");
    assert_eq!(condition(&status, "Resolved"), "False NotFound");
    let failure = &status.failures[0];
    assert_eq!(
        (
            failure.image.as_str(),
            failure.reason.as_str(),
            failure.nodes
        ),
        ("registry.example/typo:1", "NotFound", 2)
    );
    assert!(!failure.node.is_empty());

    let mut refreshed = spec(&["registry.example/app:1"], json!(2));
    refreshed["refreshInterval"] = json!("1s");
    turn.apply("moving", refreshed).await;
    let before = turn
        .status("moving", |s| condition(s, "Ready") == "True AllNodesReady")
        .await;
    tags.set("registry.example/app:1", "moved");
    let after = turn
        .status("moving", |s| {
            revision(s) != revision(&before) && condition(s, "Ready") == "True AllNodesReady"
        })
        .await;
    assert_ne!(before.resolved, after.resolved);
    let events: Api<k8s_openapi::api::events::v1::Event> =
        Api::namespaced(turn.client.clone(), "default");
    until_listed(&events, |event| {
        event.reason.as_deref() == Some("TagMoved")
            && event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some("moving")
    })
    .await;

    let hostile = json!({
        "images": ["registry.example/app:1", "Not An Image", "https://x/y", "a@sha256:short"],
        "rollout": {"maxInFlight": "0%", "deadline": "1 day"}, "refreshInterval": "soon",
        "window": {"start": "25:00", "duration": "-1h"}, "platforms": ["%%%"],
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]}],
        "nodeSelector": {"matchLabels": {"pool": "test"}},
    });
    turn.apply("hostile", hostile).await;
    let status = turn
        .status("hostile", |s| condition(s, "Stalled") == "True InvalidSpec")
        .await;
    assert_eq!(status.rollout.map(|r| r.admitted), Some(0));
    // What cannot even be read leaves the others alone.
    turn.apply("base", spec(&["registry.example/app:1"], json!(1)))
        .await;
    turn.status("base", |s| condition(s, "Ready") == "True AllNodesReady")
        .await;
    agents.abort();
    replica.stop().await;
}

async fn until_listed<K>(api: &Api<K>, wanted: impl Fn(&K) -> bool)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    use futures_util::TryStreamExt;
    use kube::runtime::{WatchStreamExt, watcher};
    let mut events = Box::pin(watcher(api.clone(), watcher::Config::default()).applied_objects());
    let found = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(object) = events.try_next().await.unwrap() {
            if wanted(&object) {
                return;
            }
        }
    });
    found.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_over_in_the_middle_of_a_wave() {
    let Some(turn) = Turn::take("controller_takeover").await else {
        return;
    };
    let nodes = turn.nodes(6).await;
    let tags = Tags::default();
    tags.set("registry.example/app:1", "one");
    let first = Replica::start(&turn.strict, &tags, "first");
    turn.apply("base", spec(&["registry.example/app:1"], json!(1)))
        .await;
    let before = turn.status("base", |s| s.nodes.admitted == 1).await;
    let second = Replica::start(&turn.strict, &tags, "second");
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(turn.client.clone(), "larder");
    let holder = |lease: &k8s_openapi::api::coordination::v1::Lease| {
        lease
            .spec
            .clone()
            .and_then(|spec| spec.holder_identity)
            .unwrap_or_default()
    };
    until(leases.clone(), "larder-controller", |lease| {
        holder(lease) == "first"
    })
    .await;
    let killed = Instant::now();
    first.kill();
    until(leases.clone(), "larder-controller", |lease| {
        holder(lease) == "second"
    })
    .await;
    assert!(
        killed.elapsed() < Duration::from_secs(15),
        "{:?}",
        killed.elapsed()
    );
    // It goes on where the first was: the same revision, one at a time.
    let fleet = Fleet::new(&turn.client, &nodes, ready);
    let log = Arc::clone(&fleet.log);
    let agents = tokio::spawn(fleet.run());
    let after = turn
        .status("base", |s| condition(s, "Ready") == "True AllNodesReady")
        .await;
    assert_eq!(revision(&before), revision(&after));
    assert_eq!(log.lock().unwrap().most, 1);
    // A clean end gives the lease back at once.
    let third = Replica::start(&turn.strict, &tags, "third");
    let stopped = Instant::now();
    second.stop().await;
    until(leases, "larder-controller", |lease| {
        holder(lease) == "third"
    })
    .await;
    assert!(
        stopped.elapsed() < Duration::from_secs(5),
        "{:?}",
        stopped.elapsed()
    );
    agents.abort();
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_leaders_at_once_do_no_harm() {
    let Some(turn) = Turn::take("controller_two_leaders").await else {
        return;
    };
    let nodes = turn.nodes(6).await;
    let tags = Tags::default();
    tags.set("registry.example/app:1", "one");
    // Each has a lease of its own, so both act.
    let one = Replica::start(&turn.strict, &tags, "one");
    let other = Replica::start_in(&turn.strict, &tags, "other", "larder-other");
    let fleet = Fleet::new(&turn.client, &nodes, ready);
    let log = Arc::clone(&fleet.log);
    let agents = tokio::spawn(fleet.run());
    for name in ["a", "b", "c"] {
        turn.apply(name, spec(&["registry.example/app:1"], json!(1)))
            .await;
        turn.status(name, |s| condition(s, "Ready") == "True AllNodesReady")
            .await;
    }
    assert_eq!(log.lock().unwrap().most, 1);
    agents.abort();
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_go_and_come_back_with_the_same_name() {
    let Some(turn) = Turn::take("controller_nodes").await else {
        return;
    };
    let nodes = turn.nodes(3).await;
    let tags = Tags::default();
    tags.set("registry.example/app:1", "one");
    let replica = Replica::start(&turn.strict, &tags, "one");
    let agents = tokio::spawn(Fleet::new(&turn.client, &nodes, ready).run());
    turn.apply("base", spec(&["registry.example/app:1"], json!("100%")))
        .await;
    turn.status("base", |s| s.nodes.ready == 3).await;
    agents.abort();
    fleet::delete_node(&turn.client, "n1").await;
    let status = turn.status("base", |s| s.nodes.desired == 2).await;
    assert_eq!(status.nodes.ready, 2);
    let uid = fleet::create_node(&turn.client, "n1", &[("pool", "test")]).await;
    let status = turn.status("base", |s| s.nodes.desired == 3).await;
    assert_eq!((status.nodes.ready, status.nodes.admitted), (2, 3));
    assert_eq!(condition(&status, "Ready"), "False NodesPending");
    let mut node = nodes[1].clone();
    node.uid = uid;
    let agents = tokio::spawn(Fleet::new(&turn.client, &[node], ready).run());
    turn.status("base", |s| condition(s, "Ready") == "True AllNodesReady")
        .await;
    agents.abort();
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_survives_a_restart_of_the_api_server_and_a_slow_etcd() {
    let Some(turn) = Turn::take("controller_faults").await else {
        return;
    };
    let nodes = turn.nodes(8).await;
    let tags = Tags::default();
    tags.set("registry.example/app:1", "one");
    tags.set("registry.example/app:2", "two");
    let replica = Replica::start(&turn.strict, &tags, "one");
    turn.apply("base", spec(&["registry.example/app:1"], json!(1)))
        .await;
    turn.status("base", |s| s.nodes.admitted == 1).await;
    let fleet = Fleet::new(&turn.client, &nodes, ready);
    let log = Arc::clone(&fleet.log);
    turn.cluster.kill("apiserver");
    let agents = tokio::spawn(fleet.run());
    turn.cluster.start_part("apiserver");
    turn.status("base", |s| condition(s, "Ready") == "True AllNodesReady")
        .await;
    let slow = turn.cluster.slow_etcd(Duration::from_millis(200));
    turn.apply("base", spec(&["registry.example/app:2"], json!(2)))
        .await;
    turn.status("base", |s| {
        condition(s, "Ready") == "True AllNodesReady" && s.resolved[0].image.ends_with(":2")
    })
    .await;
    drop(slow);
    assert!(log.lock().unwrap().most <= 2);
    agents.abort();
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_prepulls_at_once() {
    let Some(turn) = Turn::take("controller_many").await else {
        return;
    };
    turn.nodes(3).await;
    let tags = Tags::default();
    tags.set("registry.example/app:1", "one");
    let replica = Replica::start(&turn.strict, &tags, "one");
    for number in 0..500 {
        turn.apply(
            &format!("p{number}"),
            spec(&["registry.example/app:1"], json!("100%")),
        )
        .await;
    }
    let api = turn.prepulls();
    for number in 0..500 {
        until(api.clone(), &format!("p{number}"), |prepull| {
            prepull
                .status
                .as_ref()
                .is_some_and(|s| s.nodes.admitted == 3)
        })
        .await;
    }
    // Lookups are shared: one for as long as its answer is fresh.
    assert!(tags.asked() < 20, "{}", tags.asked());
    replica.stop().await;
}

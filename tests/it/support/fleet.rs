//! Nodes and agents that exist only as objects: they follow a rollout's threshold as real agents do, and pull nothing.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, CustomResourceExt, ResourceExt};
use larder::k8s::api::{
    ClusterImagePrepull, HeldPrepull, HoldState, ImageFailure, ImagePrepull, ImagePrunePolicy,
    NodeFacts, NodeImageCache, slot,
};
use serde_json::json;

/// What a simulated agent makes of a revision: how it ends, and what it complains about.
pub(crate) type Outcome = (HoldState, Vec<ImageFailure>);

/// Installs the kinds without their rules, so that what should not get in does.
pub(crate) async fn install_kinds(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in [
        ClusterImagePrepull::crd(),
        ImagePrepull::crd(),
        ImagePrunePolicy::crd(),
        NodeImageCache::crd(),
    ] {
        let mut value = serde_json::to_value(&crd).unwrap();
        without_rules(&mut value);
        let parameters = PatchParams::apply("test").force();
        let name = crd.name_any();
        api.patch(&name, &parameters, &Patch::Apply(&value))
            .await
            .unwrap();
        await_condition(api.clone(), &name, conditions::is_crd_established())
            .await
            .unwrap();
    }
}

fn without_rules(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            for rule in [
                "x-kubernetes-validations",
                "enum",
                "pattern",
                "minimum",
                "maximum",
            ] {
                map.remove(rule);
            }
            map.values_mut().for_each(without_rules);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(without_rules),
        _ => {}
    }
}

/// Makes a Node that is ready; its uid.
pub(crate) async fn create_node(client: &Client, name: &str, labels: &[(&str, &str)]) -> String {
    let api: Api<Node> = Api::all(client.clone());
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    let node: Node = serde_json::from_value(node).unwrap();
    let made = api.create(&Default::default(), &node).await.unwrap();
    set_ready(client, name, true).await;
    made.uid().unwrap()
}

/// What the node's kubelet would report.
pub(crate) async fn set_ready(client: &Client, name: &str, ready: bool) {
    let api: Api<Node> = Api::all(client.clone());
    let now = k8s_openapi::jiff::Timestamp::now();
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": if ready { "True" } else { "False" }, "reason": "Test", "message": "",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}});
    let patch = Patch::Strategic(&status);
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

/// Removes a Node and its report, and waits until they are gone.
pub(crate) async fn delete_node(client: &Client, name: &str) {
    let api: Api<Node> = Api::all(client.clone());
    if let Ok(found) = api.get(name).await {
        let uid = found.uid().unwrap();
        api.delete(name, &DeleteParams::default()).await.unwrap();
        await_condition(api, name, conditions::is_deleted(&uid))
            .await
            .unwrap();
    }
}

/// Writes what a node reports.
pub(crate) async fn report(
    client: &Client,
    node: &str,
    uid: &str,
    held: Vec<HeldPrepull>,
    failures: Vec<ImageFailure>,
) -> Result<(), kube::Error> {
    let api: Api<NodeImageCache> = Api::all(client.clone());
    let parameters = PatchParams::apply("larder-agent").force();
    let object = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "NodeImageCache",
        "metadata": {"name": node, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]},
    });
    api.patch(node, &parameters, &Patch::Apply(&object)).await?;
    let object = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "NodeImageCache", "metadata": {"name": node},
        "status": {"prepulls": held, "failures": failures},
    });
    api.patch_status(node, &parameters, &Patch::Apply(&object))
        .await?;
    Ok(())
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct Log {
    working: HashSet<String>,
    /// The most nodes that ever worked at once.
    pub(crate) most: usize,
    /// Node and revision, in the order in which work began.
    pub(crate) begun: Vec<(String, String)>,
}

/// Tells how a node fares with a prepull.
type Judge = dyn Fn(&str, &ClusterImagePrepull) -> Outcome + Send + Sync;

/// Agents of several nodes.
#[derive(Clone)]
pub(crate) struct Fleet {
    client: Client,
    nodes: Arc<Mutex<BTreeMap<String, NodeFacts>>>,
    held: Arc<Mutex<HashMap<String, BTreeMap<String, HeldPrepull>>>>,
    writing: Arc<HashMap<String, tokio::sync::Mutex<()>>>,
    outcome: Arc<Judge>,
    pub(crate) log: Arc<Mutex<Log>>,
}

impl Fleet {
    /// Agents of these nodes (names and uids), which follow every `ClusterImagePrepull`.
    pub(crate) fn new(
        client: &Client,
        nodes: &[NodeFacts],
        outcome: impl Fn(&str, &ClusterImagePrepull) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        let nodes: BTreeMap<String, NodeFacts> = nodes
            .iter()
            .map(|node| (node.name.clone(), node.clone()))
            .collect();
        Fleet {
            client: client.clone(),
            writing: Arc::new(
                nodes
                    .keys()
                    .map(|name| (name.clone(), Default::default()))
                    .collect(),
            ),
            nodes: Arc::new(Mutex::new(nodes)),
            held: Arc::default(),
            outcome: Arc::new(outcome),
            log: Arc::default(),
        }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        let api: Api<ClusterImagePrepull> = Api::all(self.client.clone());
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let mut events = Box::pin(events.applied_objects());
        let mut work = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                prepull = events.next() => {
                    let Some(prepull) = prepull else { return };
                    // The watch broke, and goes on.
                    let Ok(prepull) = prepull else { continue };
                    for node in self.admitted(&prepull) {
                        work.spawn(self.clone().hold(node, prepull.clone()));
                    }
                }
                Some(done) = work.join_next(), if !work.is_empty() => done.unwrap(),
            }
        }
    }

    /// Nodes that may begin now, and have not yet.
    fn admitted(&self, prepull: &ClusterImagePrepull) -> Vec<NodeFacts> {
        let Some(rollout) = prepull
            .status
            .as_ref()
            .and_then(|status| status.rollout.as_ref())
        else {
            return Vec::new();
        };
        if Some(rollout.observed_generation) != prepull.metadata.generation {
            return Vec::new();
        }
        let uid = prepull.uid().unwrap();
        let held = self.held.lock().unwrap();
        let mut log = self.log.lock().unwrap();
        let mut nodes = Vec::new();
        for node in self.nodes.lock().unwrap().values() {
            let holds = held.get(&node.name).and_then(|held| held.get(&uid));
            let known = holds.is_some_and(|held| held.revision == rollout.revision);
            let key = format!("{} {uid} {}", node.name, rollout.revision);
            if known
                || log.working.contains(&key)
                || !prepull.spec.shared.selects(node)
                || slot(&node.uid, &uid, &rollout.revision) > rollout.admitted
            {
                continue;
            }
            log.working.insert(key);
            log.most = log.most.max(log.working.len());
            log.begun
                .push((node.name.clone(), rollout.revision.clone()));
            nodes.push(node.clone());
        }
        nodes
    }

    async fn hold(self, node: NodeFacts, prepull: ClusterImagePrepull) {
        let uid = prepull.uid().unwrap();
        let status = prepull.status.clone().unwrap();
        let revision = status.rollout.unwrap().revision;
        let (state, failures) = (self.outcome)(&node.name, &prepull);
        let _writing = self.writing.get(&node.name).unwrap().lock().await;
        let all: Vec<HeldPrepull> = {
            let mut held = self.held.lock().unwrap();
            let of_node = held.entry(node.name.clone()).or_default();
            of_node.insert(
                uid.clone(),
                HeldPrepull {
                    uid: uid.clone(),
                    name: prepull.name_any(),
                    revision: revision.clone(),
                    state,
                    ready: 1,
                    total: 1,
                    reason: failures
                        .first()
                        .map(|f| f.reason.clone())
                        .unwrap_or_default(),
                },
            );
            of_node.values().cloned().collect()
        };
        // It is done when its report is written: from then on the controller may let the next one in.
        self.log
            .lock()
            .unwrap()
            .working
            .remove(&format!("{} {uid} {revision}", node.name));
        while let Err(error) = report(
            &self.client,
            &node.name,
            &node.uid,
            all.clone(),
            failures.clone(),
        )
        .await
        {
            match error {
                // The API server is away; an agent waits as well.
                kube::Error::Api(status) if status.code < 500 => panic!("{status:?}"),
                _ => tokio::task::yield_now().await,
            }
        }
    }
}

/// The first state of an object that is as wanted.
pub(crate) async fn until<K>(api: Api<K>, name: &str, wanted: impl Fn(&K) -> bool) -> K
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = Box::pin(watcher(api, config).default_backoff().applied_objects());
    let mut last = None;
    let found = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        loop {
            match events.try_next().await {
                Ok(Some(object)) if wanted(&object) => return object,
                Ok(Some(object)) => last = Some(object),
                Ok(None) => panic!("the watch of {name} ended"),
                Err(_) => {}
            }
        }
    });
    match found.await {
        Ok(found) => found,
        Err(_) => panic!("{name} did not come to be as wanted: {last:#?}"),
    }
}

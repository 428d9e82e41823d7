//! What agents and controllers make of a control plane that is taken apart under them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::Command;

use larder::k8s::api::ALL;
use serde_json::{Value, json};

use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::cluster::{Cluster, OwnCluster};
use crate::support::hub::Hub;
use crate::support::node::{ControllerProcess, Node, folder, install_kinds, reported, told};
use crate::support::process::run;

/// Where the manifests put everything.
const NAMESPACE: &str = "larder";

fn image(seed: u64) -> BuiltImage {
    BuiltImage::new(&[gzip(&tar(&[("file", &noise(seed, 50_000))]))])
}

fn state(status: &Value) -> &str {
    status["prepulls"][0]["state"].as_str().unwrap_or_default()
}

fn watched(status: &Value, state: &str) -> bool {
    let watches = status["api"]["watches"].as_array().unwrap();
    watches.iter().any(|watch| watch["state"] == state)
}

fn prepull(name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull", "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    found.map_or(String::new(), |condition| {
        format!(
            "{} {}",
            condition["status"].as_str().unwrap(),
            condition["reason"].as_str().unwrap()
        )
    })
}

/// All of the manifests, on a cluster of the test's own.
fn installed(test: &str) -> Option<OwnCluster> {
    let cluster = Cluster::own(test)?;
    cluster
        .kubectl(&["apply", "--server-side", "-k", &folder("overlays/cache")])
        .ok();
    // Its pods never run: agents and controllers are processes here.
    for object in ["daemonset/larder-agent", "deployment/larder-controller"] {
        cluster.kubectl(&["delete", object, "-n", NAMESPACE]).ok();
    }
    cluster.wait_for("condition=Established", &["crd/nodeimagecaches.larder.dev"]);
    Some(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_is_taken_away_leaves_the_images() {
    let Some(cluster) = installed("faults_uninstall") else {
        return;
    };
    let cluster: &Cluster = &cluster;
    let hub = Hub::start().await;
    hub.push("app", "1", &image(1));
    let name = "taken-1";
    cluster.create_nodes(&[(name, &[("pool", "taken")])]);
    let credentials = || cluster.service_account(NAMESPACE, "larder-agent", Some(name));
    let file = credentials();
    let mut node = Node::of(name, &file);
    let controller = cluster.service_account(NAMESPACE, "larder-controller", None);
    let mut controller = ControllerProcess::start(&controller);
    let spec = json!({
        "images": [hub.reference("app:1")], "nodeSelector": {"matchLabels": {"pool": "taken"}}, "pin": true});
    cluster.apply(&prepull("taken", &spec));
    cluster.wait_for("condition=Ready", &["cipp/taken"]);
    let pinned = |node: &Node| node.images()[0]["pinned"] == true;
    assert!(pinned(&node));

    // Rights are taken away: everything is kept, and what is wrong is said. Rights come back: it goes on.
    let binding = cluster.json(&["get", "clusterrolebinding", "larder-agent"]);
    cluster
        .kubectl(&["delete", "clusterrolebinding", "larder-agent"])
        .ok();
    // Watches that are open go on; those of a new start do not.
    node.kill();
    node.again();
    // Before anything is heard of the API server.
    assert!(pinned(&node));
    let status = node
        .until("refused", |status| watched(status, "Forbidden"))
        .await;
    assert_eq!(state(&status), "Ready");
    assert!(node.http("/readyz?verbose").contains("200 OK"));
    let mut again = json!({"apiVersion": binding["apiVersion"], "kind": binding["kind"]});
    again["metadata"] = json!({"name": "larder-agent"});
    again["roleRef"] = binding["roleRef"].clone();
    again["subjects"] = binding["subjects"].clone();
    cluster.apply(&again.to_string());
    node.until("allowed again", |status| status["api"]["synced"] == true)
        .await;

    // The API server was away: versions of before are too old for its new cache.
    cluster.kill("apiserver");
    cluster.start_part("apiserver");
    cluster.kubectl(&["annotate", "cipp", "taken", "a=b"]).ok();
    let expired = || {
        let metrics = node.http("/metrics");
        let mut restarts = metrics
            .lines()
            .filter(|line| line.starts_with("larder_watch_restarts_total"));
        restarts.any(|line| line.contains("clusterimageprepulls") && line.contains("Expired"))
    };
    node.until("listed again", |status| {
        status["api"]["synced"] == true && expired()
    })
    .await;

    // The Node is made anew under the same name: old tokens end with the old one, and a new one is read from the file.
    cluster.delete_nodes(&[name]);
    let uids = cluster.create_nodes(&[(name, &[("pool", "taken")])]);
    assert_eq!(credentials(), file);
    let uid = cluster.json(&["get", "cipp", "taken"])["metadata"]["uid"].clone();
    told(cluster, name, |report| {
        report["metadata"]["ownerReferences"][0]["uid"] == uids[0]
            && reported(report, uid.as_str().unwrap())["state"] == "Ready"
    })
    .await;
    assert!(controller.runs(), "{}", controller.log());

    // The kinds are uninstalled and installed again, and the object made again: nothing is pulled twice.
    hub.take_log();
    let kind = "clusterimageprepulls.larder.dev";
    cluster.kubectl(&["delete", "crd", kind]).ok();
    node.until("kind missing", |status| watched(status, "KindMissing"))
        .await;
    assert_eq!(state(&node.status()), "Ready");
    assert!(pinned(&node));
    let crds = run(Command::new(env!("CARGO_BIN_EXE_larder")).arg("crds")).ok();
    install_kinds(cluster, &crds);
    cluster.apply(&prepull("taken", &spec));
    cluster.wait_for("condition=Ready", &["cipp/taken"]);
    node.until("held by the new object alone", |status| {
        status["prepulls"].as_array().unwrap().len() == 1 && state(status) == "Ready"
    })
    .await;
    assert!(pinned(&node));
    let fetched = hub
        .take_log()
        .into_iter()
        .filter(|line| line.contains("/blobs/"));
    assert_eq!(fetched.count(), 0);

    // All of it is uninstalled while agents run.
    drop(controller);
    cluster
        .kubectl(&[
            "delete",
            "-k",
            &folder("overlays/cache"),
            "--ignore-not-found",
        ])
        .ok();
    node.until("gone", |status| status["api"]["synced"] == false)
        .await;
    node.kill();
    node.again();
    assert_eq!((node.images().len(), pinned(&node)), (1, true));
    assert_eq!(state(&node.status()), "Ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_slips_through_the_schema_is_told_in_its_own_status() {
    let Some(cluster) = installed("faults_malformed") else {
        return;
    };
    let cluster: &Cluster = &cluster;
    cluster.create_nodes(&[("odd-1", &[])]);
    let node = Node::of("odd-1", &cluster.kubeconfig());
    let controller = cluster.service_account(NAMESPACE, "larder-controller", None);
    let mut controller = ControllerProcess::start(&controller);
    // A kind that anything is let into.
    let mut kind = cluster.json(&["get", "crd", "clusterimageprepulls.larder.dev"]);
    let schema = &mut kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"] = json!({
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"mode": {"type": "string"}}});
    let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}]);
    let flags = [
        "patch",
        "crd",
        "clusterimageprepulls.larder.dev",
        "--type=json",
        "-p",
        &patch.to_string(),
    ];
    cluster.kubectl(&flags).ok();
    for (name, spec) in [
        ("list", json!({"images": 5})),
        ("text", json!({"images": ["app:1"], "rollout": "fast"})),
        ("mode", json!({"images": ["app:1"], "mode": "Sometimes"})),
        (
            "deep",
            json!({"images": ["app:1"], "nodeSelector": {"matchLabels": {"a": {"b": [[[]]]}}}}),
        ),
    ] {
        let object = prepull(name, &spec);
        // The looser schema counts a moment after it was taken in.
        while !cluster.kubectl_with(&["apply", "-f", "-"], &object).success {}
        let object = cluster.watch(&["cipp", name], |object| {
            condition(object, "Stalled") == "True InvalidSpec"
        });
        assert_eq!(condition(&object, "Ready"), "False InvalidSpec");
        let text = object["status"]["conditions"].to_string();
        assert!(text.contains("cannot be read"), "{text}");
    }
    // Mended, it is as if nothing had been.
    let hub = Hub::start().await;
    hub.push("app", "1", &image(2));
    let good = json!({"images": [hub.reference("app:1")]});
    cluster
        .kubectl_with(&["replace", "-f", "-"], &prepull("mode", &good))
        .ok();
    cluster.wait_for("condition=Ready", &["cipp/mode"]);
    assert!(controller.runs() && !controller.log().contains("panicked"));
    let object = cluster.json(&["get", "cipp", "mode"]);
    assert_eq!(condition(&object, "Stalled"), "False AsExpected");
    assert_eq!(object["status"]["rollout"]["admitted"], ALL);
    assert_eq!(node.status()["api"]["synced"], true);

    // The controller's token is taken away; the one that replaces it in the file is read without a restart.
    let account = "larder-controller";
    cluster
        .kubectl(&["delete", "serviceaccount", account, "-n", NAMESPACE])
        .ok();
    cluster.service_account(NAMESPACE, account, None);
    cluster.apply(&prepull("later", &good));
    cluster.wait_for("condition=Ready", &["cipp/later"]);
    assert!(controller.runs(), "{}", controller.log());
}

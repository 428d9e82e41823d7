//! Agents that follow declared images: from a folder of manifests, and from a real API server.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use larder::k8s::api::{ALL, slot};
use serde_json::{Value, json};

use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::cluster::Cluster;
use crate::support::hub::{Hub, blob_path};
use crate::support::node::{Node, install, reported, told};

fn image(seed: u64) -> BuiltImage {
    BuiltImage::new(&[gzip(&tar(&[("file", &noise(seed, 200_000))]))])
}

/// The state of the only prepull.
fn state(status: &Value) -> &str {
    match status["prepulls"].as_array().map(Vec::as_slice) {
        Some([prepull]) => prepull["state"].as_str().unwrap(),
        _ => "",
    }
}

fn watch_state<'a>(status: &'a Value, resource: &str) -> &'a str {
    status["api"]["watches"]
        .as_array()
        .unwrap()
        .iter()
        .find(|watch| watch["resource"] == resource)
        .and_then(|watch| watch["state"].as_str())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_need_no_api_server() {
    let hub = Hub::start().await;
    hub.push("app", "1", &image(1));
    hub.push("db", "1", &image(2));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let manifest = |name: &str, image: &str| {
        format!(
            "apiVersion: larder.dev/v1alpha1\nkind: ClusterImagePrepull\nmetadata: {{name: {name}}}\n\
             spec: {{images: ['{}'], pin: true, nodeSelector: {{matchLabels: {{kubernetes.io/hostname: edge-1}}}}}}\n",
            hub.reference(image)
        )
    };
    write("app.yaml", &manifest("app", "app:1"));
    write("broken.yaml", "kind: [");
    let flags = [
        "--manifests",
        folder.path().to_str().unwrap(),
        "--node-name",
        "edge-1",
    ];
    let mut node = Node::start(&flags);
    let status = node.until("held", |status| state(status) == "Ready").await;
    assert_eq!(status["prepulls"][0]["file"], "app.yaml");
    assert_eq!(status["manifests"]["faults"][0]["file"], "broken.yaml");
    assert!(status["api"].is_null());

    // Another file is taken up without a restart; its end, and that of the broken one, too.
    write("broken.yaml", &manifest("db", "db:1"));
    node.until("both held", |status| {
        let prepulls = status["prepulls"].as_array().unwrap();
        prepulls.len() == 2 && prepulls.iter().all(|prepull| prepull["state"] == "Ready")
    })
    .await;
    std::fs::remove_file(folder.path().join("app.yaml")).unwrap();
    let status = node
        .until("released", |status| state(status) == "Ready")
        .await;
    assert_eq!(status["prepulls"][0]["name"], "db");
    // Nothing was removed: that is for pruning.
    assert_eq!(node.larder(&["images", "-q"]).lines().count(), 2);

    // A restart with the folder gone changes nothing.
    node.kill();
    folder.close().unwrap();
    node.again();
    let status = node
        .until("held on", |status| {
            !status["manifests"]["faults"].as_array().unwrap().is_empty()
        })
        .await;
    assert_eq!(state(&status), "Ready");
    assert_eq!(status["prepulls"][0]["name"], "db");
}

/// What agents may do; the least that they need.
fn grant(cluster: &Cluster, account: &str) {
    let name = format!("test-{account}");
    let rules = json!([
        {"apiGroups": ["larder.dev"], "resources": ["clusterimageprepulls", "imageprepulls", "imageprunepolicies"],
         "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["larder.dev"], "resources": ["nodeimagecaches", "nodeimagecaches/status"],
         "verbs": ["get", "create", "patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    ]);
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
         "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": account}]},
    ]});
    cluster.apply(&objects.to_string());
}

/// A prepull for nodes of a pool.
pub(crate) fn declare(cluster: &Cluster, name: &str, images: &[String]) -> String {
    let object = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull", "metadata": {"name": name},
        "spec": {"images": images, "nodeSelector": {"matchLabels": {"pool": name}}, "retainAfterDeletion": "1s"},
    });
    cluster.apply(&object.to_string());
    let object = cluster.json(&["get", "clusterimageprepull", name]);
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// What a controller would say.
pub(crate) fn resolve(
    cluster: &Cluster,
    name: &str,
    revision: &str,
    admitted: u64,
    images: &[(String, String)],
) {
    let object = cluster.json(&["get", "clusterimageprepull", name]);
    let resolved: Vec<Value> = images
        .iter()
        .map(|(image, digest)| json!({"image": image, "digest": digest}))
        .collect();
    let status = json!({"status": {
        "nodes": {"desired": 2, "admitted": 0, "ready": 0, "failed": 0, "unreachable": 0},
        "rollout": {"revision": revision, "observedGeneration": object["metadata"]["generation"], "admitted": admitted},
        "resolved": resolved,
    }});
    let patch = status.to_string();
    let flags = [
        "patch",
        "clusterimageprepull",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ];
    cluster.kubectl(&flags).ok();
}

fn kubeconfigs(cluster: &Cluster, account: &str, nodes: &[&str]) -> Vec<PathBuf> {
    nodes
        .iter()
        .map(|node| cluster.service_account("default", account, Some(node)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_hold_what_they_are_admitted_to() {
    let Some(cluster) = Cluster::get("prepulls_admitted") else {
        return;
    };
    install(cluster);
    grant(cluster, "agents-a");
    let pool: &[(&str, &str)] = &[("pool", "held")];
    let names = ["held-1", "held-2"];
    let uids = cluster.create_nodes(&[(names[0], pool), (names[1], pool)]);
    let hub = Hub::start().await;
    let (app, db) = (image(11), image(12));
    hub.push("app", "1", &app);
    hub.push("db", "1", &db);
    let (app_name, db_name) = (hub.reference("app:1"), hub.reference("db:1"));
    let configs = kubeconfigs(cluster, "agents-a", &names);
    let nodes = [
        Node::of(names[0], &configs[0]),
        Node::of(names[1], &configs[1]),
    ];
    let prepull = declare(cluster, "held", &[app_name.clone(), db_name.clone()]);

    // The threshold lets exactly one in.
    let revision = "00000000000000aa";
    let slots: Vec<u64> = uids
        .iter()
        .map(|uid| slot(uid, &prepull, revision))
        .collect();
    let (first, second) = if slots[0] < slots[1] { (0, 1) } else { (1, 0) };
    let contents = [
        (app_name.clone(), app.digest()),
        (db_name.clone(), db.digest()),
    ];
    resolve(cluster, "held", revision, slots[first], &contents);
    let report = told(cluster, names[first], |report| {
        reported(report, &prepull)["state"] == "Ready"
    })
    .await;
    let owner = &report["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("Node"), &json!(uids[first]))
    );
    assert_eq!(reported(&report, &prepull)["ready"], 2);
    let status = nodes[second].until("waiting", |status| {
        status["prepulls"][0]["reason"] == "NotAdmitted"
    });
    status.await;
    assert_eq!(nodes[second].larder(&["images", "-q"]), "");
    resolve(cluster, "held", revision, ALL, &contents);
    told(cluster, names[second], |report| {
        reported(report, &prepull)["state"] == "Ready"
    })
    .await;

    // A revision that cannot be had: the report names image and reason, and the old one stays.
    let bad = [
        (app_name.clone(), app.digest()),
        (db_name.clone(), format!("sha256:{}", "e".repeat(64))),
    ];
    resolve(cluster, "held", "00000000000000bb", ALL, &bad);
    let report = told(cluster, names[0], |report| {
        let held = reported(report, &prepull);
        held["state"] == "Failed" && held["revision"] == "00000000000000bb"
    })
    .await;
    let failure = &report["status"]["failures"][0];
    assert_eq!(
        (&failure["image"], &failure["reason"]),
        (&json!(db_name), &json!("NotFound"))
    );
    assert_eq!(failure["prepull"], prepull);
    let status = nodes[0].status();
    assert_eq!(status["prepulls"][0]["revision"], revision);

    // The Node is made anew: the report follows it.
    cluster.delete_nodes(&[names[1]]);
    let new = cluster.create_nodes(&[(names[1], pool)]);
    assert_ne!(new[0], uids[1]);
    let _ = first;

    // Deleted, and released after the retention.
    cluster
        .kubectl(&["delete", "clusterimageprepull", "held"])
        .ok();
    nodes[0]
        .until("released", |status| {
            status["prepulls"].as_array().unwrap().is_empty()
        })
        .await;
    told(cluster, names[0], |report| {
        reported(report, &prepull).is_null()
    })
    .await;
    assert_eq!(nodes[0].larder(&["images", "-q"]).lines().count(), 2);
    cluster.delete_nodes(&names);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_made_anew_gets_a_report_of_its_own() {
    let Some(cluster) = Cluster::get("prepulls_new_node") else {
        return;
    };
    install(cluster);
    let uids = cluster.create_nodes(&[("anew-1", &[])]);
    let _node = Node::of("anew-1", &cluster.kubeconfig());
    let owned = |uid: &str| {
        let uid = uid.to_owned();
        move |report: &Value| report["metadata"]["ownerReferences"][0]["uid"] == uid
    };
    told(cluster, "anew-1", owned(&uids[0])).await;
    cluster.delete_nodes(&["anew-1"]);
    let uids = cluster.create_nodes(&[("anew-1", &[])]);
    told(cluster, "anew-1", owned(&uids[0])).await;
    cluster.delete_nodes(&["anew-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_let_go_by_faults() {
    let Some(cluster) = Cluster::own("prepulls_faults") else {
        return;
    };
    let cluster: &Cluster = &cluster;
    install(cluster);
    cluster.create_nodes(&[("fault-1", &[("pool", "fault")])]);
    let hub = Hub::start().await;
    let (app, db) = (image(21), image(22));
    hub.push("app", "1", &app);
    hub.push("db", "1", &db);
    let (app_name, db_name) = (hub.reference("app:1"), hub.reference("db:1"));
    let gate = hub.gate(&blob_path("db", &db.layers[0].digest));
    let mut node = Node::of("fault-1", &cluster.kubeconfig());
    declare(cluster, "fault", &[app_name.clone(), db_name.clone()]);
    let contents = [(app_name, app.digest()), (db_name.clone(), db.digest())];
    resolve(cluster, "fault", "00000000000000cc", ALL, &contents);

    // Killed in the middle of a pull, while the API server goes away: the next start goes on by itself.
    gate.reached().await;
    node.kill();
    cluster.kill("apiserver");
    node.again();
    gate.open();
    let status = node
        .until("held without a server", |status| state(status) == "Ready")
        .await;
    assert_eq!(status["api"]["synced"], false);

    // What is evicted is pulled again.
    node.larder(&["rmi", &db_name]);
    node.until("healed", |_| {
        node.larder(&["images", "-q"]).lines().count() == 2
    })
    .await;

    cluster.start_part("apiserver");
    node.until("synced again", |status| status["api"]["synced"] == true)
        .await;
    told(cluster, "fault-1", |report| {
        report["status"]["prepulls"][0]["state"] == "Ready"
    })
    .await;

    // The kind is uninstalled: its objects are deleted with it, which nobody wished.
    cluster
        .kubectl(&["delete", "crd", "clusterimageprepulls.larder.dev"])
        .ok();
    node.until("kind missing", |status| {
        watch_state(status, "clusterimageprepulls") == "KindMissing"
    })
    .await;
    let log = node.agent.as_ref().unwrap();
    let status = node.status();
    assert_eq!(state(&status), "Ready", "{}", log.log());
    assert!(
        status["prepulls"][0]["retainedUntil"].is_null(),
        "{status:#}"
    );
    node.kill();
    node.again();
    node.until("kind missing after a start", |status| {
        watch_state(status, "clusterimageprepulls") == "KindMissing"
    })
    .await;
    assert_eq!(state(&node.status()), "Ready");
}

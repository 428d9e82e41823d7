//! larder's manifests on a real API server: they are what they seem, go in by one command, limit who may do what, and
//! come out again.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::cluster::Cluster;

const OVERLAYS: [&str; 8] = [
    "base",
    "overlays/cache",
    "overlays/containerd",
    "overlays/crio",
    "overlays/kind",
    "overlays/systemd",
    "optional/kubectl-larder",
    "optional/tenant-limits",
];
const AGENT: &str = "system:serviceaccount:larder:larder-agent";
const CONTROLLER: &str = "system:serviceaccount:larder:larder-controller";
/// Admission policies count some seconds after they were made.
const PATIENCE: Duration = Duration::from_secs(60);

fn folder(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("manifests")
        .join(name);
    path.to_str().unwrap().to_owned()
}

/// The objects of an overlay.
fn built(cluster: &Cluster, overlay: &str) -> Vec<Value> {
    let text = cluster.kubectl(&["kustomize", &folder(overlay)]).ok();
    text.split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect()
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object:#}"))
}

#[test]
fn every_overlay_is_made_of_known_objects() {
    let Some(cluster) = Cluster::get("kube_overlays") else {
        return;
    };
    for overlay in OVERLAYS {
        for object in built(cluster, overlay) {
            match object["kind"].as_str().unwrap() {
                "Namespace" => drop(typed::<Namespace>(&object)),
                "ServiceAccount" => drop(typed::<ServiceAccount>(&object)),
                "ConfigMap" => drop(typed::<ConfigMap>(&object)),
                "ClusterRole" => drop(typed::<ClusterRole>(&object)),
                "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(&object)),
                "Role" => drop(typed::<Role>(&object)),
                "RoleBinding" => drop(typed::<RoleBinding>(&object)),
                "NetworkPolicy" => drop(typed::<NetworkPolicy>(&object)),
                "PodDisruptionBudget" => drop(typed::<PodDisruptionBudget>(&object)),
                "FlowSchema" => drop(typed::<FlowSchema>(&object)),
                "PriorityLevelConfiguration" => drop(typed::<PriorityLevelConfiguration>(&object)),
                "CustomResourceDefinition" => drop(typed::<CustomResourceDefinition>(&object)),
                "ValidatingAdmissionPolicy" => drop(typed::<ValidatingAdmissionPolicy>(&object)),
                "ValidatingAdmissionPolicyBinding" => {
                    drop(typed::<ValidatingAdmissionPolicyBinding>(&object));
                }
                "Deployment" => drop(typed::<Deployment>(&object)),
                "DaemonSet" => {
                    let agent: DaemonSet = typed(&object);
                    let pod = agent.spec.template.spec.unwrap();
                    let container = pod.containers.first().unwrap();
                    let security = container.security_context.as_ref().unwrap();
                    let privileged = security.privileged == Some(true);
                    assert_eq!(privileged, overlay == "overlays/cache", "{overlay}");
                    assert!(pod.host_network.is_none() && pod.host_pid.is_none());
                }
                kind => panic!("{overlay}: {kind} is new here"),
            }
        }
    }
    // In the order of its list: the agents come last.
    let kinds = built(cluster, "overlays/cache");
    assert_eq!(kinds.first().unwrap()["kind"], "Namespace");
    assert_eq!(kinds.last().unwrap()["kind"], "DaemonSet");
}

/// A `kubeconfig` of the administrator who speaks for somebody else.
fn acting(cluster: &Cluster, file: &str, user: &str, groups: &[&str], extra: &Value) -> PathBuf {
    let text = std::fs::read(cluster.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["users"][0]["user"]["as"] = json!(user);
    config["users"][0]["user"]["as-groups"] = json!(groups);
    config["users"][0]["user"]["as-user-extra"] = extra.clone();
    let path = cluster.dir().join(file);
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// What somebody is told who creates an object: nothing if it went well.
fn create(cluster: &Cluster, who: &Path, object: &Value, flags: &[&str]) -> Option<String> {
    let file = cluster.dir().join("object.json");
    std::fs::write(&file, object.to_string()).unwrap();
    let base = ["create", "-f", file.to_str().unwrap()];
    let ended = cluster.kubectl_as(who, &[&base, flags].concat());
    (!ended.success).then_some(ended.stderr)
}

fn report(node: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "NodeImageCache",
        "metadata": {
            "name": node,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}],
        },
    })
}

/// Repeats what shall be refused until the policy counts.
fn until_refused(mut attempt: impl FnMut() -> Option<String>, words: &str) {
    let begun = Instant::now();
    loop {
        match attempt() {
            Some(said) if said.contains(words) => return,
            said => assert!(
                begun.elapsed() < PATIENCE,
                "not refused by {words:?}: {said:?}"
            ),
        }
    }
}

#[test]
fn installs_limits_and_uninstalls() {
    let Some(cluster) = Cluster::own("kube_install") else {
        return;
    };
    let cluster: &Cluster = &cluster;
    let overlay = folder("overlays/cache");
    let uids = cluster.create_nodes(&[("node-a", &[]), ("node-b", &[]), ("node-gone", &[])]);
    // Twice: an upgrade applies over what is there.
    for _ in 0..2 {
        cluster
            .kubectl(&["apply", "--server-side", "-k", &overlay])
            .ok();
    }
    for overlay in [
        "overlays/containerd",
        "overlays/crio",
        "overlays/kind",
        "overlays/systemd",
    ] {
        let flags = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "-k",
            &folder(overlay),
        ];
        cluster.kubectl(&flags).ok();
    }
    cluster.wait_for("condition=Established", &["crd/nodeimagecaches.larder.dev"]);

    own_reports_only(cluster, &uids);
    rights(cluster);
    tenant_limits(cluster);
    controller_is_restricted(cluster);

    cluster
        .kubectl(&[
            "delete",
            "--ignore-not-found",
            "-k",
            &folder("optional/tenant-limits"),
        ])
        .ok();
    cluster.kubectl(&["delete", "-k", &overlay]).ok();
    let left = cluster.json(&[
        "get",
        "crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding,flowschema,prioritylevelconfiguration,namespace",
        "-l",
        "app.kubernetes.io/part-of=larder",
    ]);
    assert_eq!(left["items"], json!([]));
    let node = cluster.json(&["get", "node", "node-a"]);
    assert!(!node.to_string().contains("larder.dev"), "{node:#}");
}

/// The admission policy, case by case.
fn own_reports_only(cluster: &Cluster, uids: &[String]) {
    let [a_uid, b_uid, _] = uids else {
        panic!("three nodes")
    };
    let agent = |node| cluster.service_account("larder", "larder-agent", node);
    let (a, unbound, gone) = (agent(Some("node-a")), agent(None), agent(Some("node-gone")));
    let (own, other) = (report("node-a", a_uid), report("node-b", b_uid));
    let foreign = "the agent of node node-a may not write NodeImageCache node-b";
    until_refused(
        || create(cluster, &a, &other, &["--dry-run=server"]),
        foreign,
    );

    let no_node = "the caller's token names no node";
    assert!(
        create(cluster, &unbound, &own, &[])
            .unwrap()
            .contains(no_node)
    );
    let name = json!({"authentication.kubernetes.io/node-name": ["node-a"]});
    let nameless = acting(cluster, "nameless", AGENT, &[], &name);
    assert!(
        create(cluster, &nameless, &own, &[])
            .unwrap()
            .contains(no_node)
    );
    cluster.delete_nodes(&["node-gone"]);
    let absent = create(cluster, &gone, &report("node-gone", a_uid), &[]).unwrap();
    assert!(absent.contains("provide credentials"), "{absent}");

    let owner =
        "a NodeImageCache has exactly one owner, its own Node (name and uid), and no finalizers";
    let mut wrong = own.clone();
    wrong["metadata"]["ownerReferences"][0]["uid"] = json!(b_uid);
    assert!(create(cluster, &a, &wrong, &[]).unwrap().contains(owner));
    let mut orphan = own.clone();
    orphan["metadata"]["ownerReferences"] = json!([]);
    assert!(create(cluster, &a, &orphan, &[]).unwrap().contains(owner));
    let mut held = own.clone();
    held["metadata"]["finalizers"] = json!(["larder.dev/never"]);
    assert!(create(cluster, &a, &held, &[]).unwrap().contains(owner));
    let mut generated = own.clone();
    generated["metadata"] = json!({"generateName": "node-a"});
    assert!(
        create(cluster, &a, &generated, &[])
            .unwrap()
            .contains("may not write NodeImageCache")
    );

    assert_eq!(create(cluster, &a, &own, &[]), None);
    assert_eq!(create(cluster, &cluster.kubeconfig(), &other, &[]), None);
    let patch = |who: &Path, node: &str, more: &[&str], patch: Value| {
        let patch = patch.to_string();
        let base = ["patch", "nimg", node, "--type=merge", "-p", &patch];
        let ended = cluster.kubectl_as(who, &[&base, more].concat());
        (!ended.success).then_some(ended.stderr)
    };
    let status = json!({"status": {"agentVersion": "1"}});
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let sub = ["--subresource=status"];
    assert_eq!(patch(&a, "node-a", &sub, status.clone()), None);
    assert_eq!(patch(&a, "node-a", &[], label.clone()), None);
    assert!(
        patch(&a, "node-b", &sub, status.clone())
            .unwrap()
            .contains(foreign)
    );
    assert!(patch(&a, "node-b", &[], label).unwrap().contains(foreign));
    assert!(
        patch(&unbound, "node-a", &sub, status.clone())
            .unwrap()
            .contains(no_node)
    );
    // One row per node.
    let rows = cluster.kubectl(&["get", "nimg", "--no-headers"]).ok();
    assert_eq!(rows.lines().count(), 2, "{rows}");

    // RBAC lets no agent delete; whoever grants it that runs into the policy.
    let delete = |args: &[&str]| {
        let ended = cluster.kubectl_as(&a, &[&["delete", "nimg"], args].concat());
        ended.failure()
    };
    assert!(delete(&["node-a"]).contains("forbidden"));
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "careless"},
             "rules": [{"apiGroups": ["larder.dev"], "resources": ["nodeimagecaches", "nodeimagecaches/status"], "verbs": ["*"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "careless"},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "careless"},
             "subjects": [
                {"kind": "ServiceAccount", "namespace": "larder", "name": "larder-agent"},
                {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:nodes"},
             ]},
        ]})
        .to_string(),
    );
    let never = "an agent never deletes a NodeImageCache: it goes with its Node";
    until_refused(|| Some(delete(&["node-a"])), never);
    let collection = [
        "delete",
        "--raw",
        "/apis/larder.dev/v1alpha1/nodeimagecaches",
    ];
    let said = cluster.kubectl_as(&a, &collection).failure();
    assert!(said.contains(never), "{said}");
    let groups = ["system:nodes"];
    let kubelet = acting(
        cluster,
        "kubelet",
        "system:node:node-a",
        &groups,
        &json!({}),
    );
    let mine = patch(&kubelet, "node-a", &sub, status.clone());
    assert_eq!(mine, None);
    let said = patch(&kubelet, "node-b", &sub, status).unwrap();
    assert!(said.contains(foreign), "{said}");
    cluster
        .kubectl(&[
            "delete",
            "clusterrolebinding/careless",
            "clusterrole/careless",
        ])
        .ok();

    // With the Node goes the report.
    cluster.delete_nodes(&["node-b"]);
    cluster.wait_for("delete", &["nimg/node-b"]);
}

/// Who may do what: everything else is denied by the API server already.
fn rights(cluster: &Cluster) {
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "v", "namespace": "team-a"},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
             "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "viewer"}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "e", "namespace": "team-a"},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
             "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tenant"}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "root-a"},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
             "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "platform"}]},
        ]})
        .to_string(),
    );
    let aggregated = |role: &Value| role.to_string().contains("larder.dev");
    for role in ["view", "edit", "admin"] {
        cluster.watch(&["clusterrole", role], aggregated);
    }
    let l = "larder.dev";
    // Who, verb, group, resource, namespace, name, whether.
    let table: &[(&str, &str, &str, &str, &str, &str, bool)] = &[
        (AGENT, "watch", l, "imageprepulls", "", "", true),
        (AGENT, "watch", l, "clusterimageprepulls", "", "", true),
        (AGENT, "list", l, "imageprunepolicies", "", "", true),
        (AGENT, "watch", l, "imageprunepolicies", "", "", true),
        (AGENT, "patch", l, "imageprunepolicies", "", "x", false),
        (
            AGENT,
            "patch",
            l,
            "imageprunepolicies/status",
            "",
            "x",
            false,
        ),
        (AGENT, "watch", "", "nodes", "", "node-a", true),
        (AGENT, "create", l, "nodeimagecaches", "", "", true),
        (
            AGENT,
            "patch",
            l,
            "nodeimagecaches/status",
            "",
            "node-a",
            true,
        ),
        (AGENT, "delete", l, "nodeimagecaches", "", "node-a", false),
        (AGENT, "list", l, "nodeimagecaches", "", "", false),
        (AGENT, "update", l, "nodeimagecaches", "", "node-a", false),
        (AGENT, "patch", l, "imageprepulls", "team-a", "x", false),
        (
            AGENT,
            "patch",
            l,
            "imageprepulls/status",
            "team-a",
            "x",
            false,
        ),
        (
            AGENT,
            "patch",
            l,
            "clusterimageprepulls/status",
            "",
            "x",
            false,
        ),
        (AGENT, "patch", "", "nodes", "", "node-a", false),
        (AGENT, "get", "", "secrets", "team-a", "registry", false),
        (AGENT, "list", "", "secrets", "larder", "", false),
        (AGENT, "get", "", "pods", "team-a", "x", false),
        (
            AGENT,
            "create",
            "events.k8s.io",
            "events",
            "default",
            "",
            false,
        ),
        (
            AGENT,
            "create",
            "",
            "serviceaccounts/token",
            "larder",
            "larder-agent",
            false,
        ),
        (CONTROLLER, "watch", l, "nodeimagecaches", "", "", true),
        (CONTROLLER, "watch", l, "imageprunepolicies", "", "", true),
        (
            CONTROLLER,
            "patch",
            l,
            "imageprunepolicies/status",
            "",
            "x",
            true,
        ),
        (
            CONTROLLER,
            "delete",
            l,
            "imageprunepolicies",
            "",
            "x",
            false,
        ),
        (
            CONTROLLER,
            "patch",
            l,
            "clusterimageprepulls/status",
            "",
            "x",
            true,
        ),
        (
            CONTROLLER,
            "patch",
            l,
            "imageprepulls/status",
            "team-a",
            "x",
            true,
        ),
        (
            CONTROLLER,
            "patch",
            l,
            "imageprepulls",
            "team-a",
            "x",
            false,
        ),
        (
            CONTROLLER,
            "patch",
            l,
            "nodeimagecaches/status",
            "",
            "node-a",
            false,
        ),
        (
            CONTROLLER,
            "delete",
            l,
            "clusterimageprepulls",
            "",
            "x",
            false,
        ),
        (
            CONTROLLER,
            "get",
            "apps",
            "deployments",
            "team-a",
            "web",
            true,
        ),
        (
            CONTROLLER,
            "list",
            "apps",
            "deployments",
            "team-a",
            "",
            false,
        ),
        (CONTROLLER, "get", "batch", "cronjobs", "team-a", "x", true),
        (CONTROLLER, "get", "", "pods", "team-a", "x", false),
        (
            CONTROLLER, "get", "", "secrets", "team-a", "registry", false,
        ),
        (
            CONTROLLER,
            "create",
            "events.k8s.io",
            "events",
            "team-a",
            "",
            true,
        ),
        (
            CONTROLLER,
            "create",
            "coordination.k8s.io",
            "leases",
            "larder",
            "",
            true,
        ),
        (
            CONTROLLER,
            "update",
            "coordination.k8s.io",
            "leases",
            "larder",
            "larder-controller",
            true,
        ),
        (
            CONTROLLER,
            "update",
            "coordination.k8s.io",
            "leases",
            "larder",
            "another",
            false,
        ),
        (
            CONTROLLER,
            "update",
            "coordination.k8s.io",
            "leases",
            "kube-system",
            "larder-controller",
            false,
        ),
        (CONTROLLER, "patch", "", "nodes", "", "node-a", true),
        (
            CONTROLLER,
            "update",
            "",
            "nodes/status",
            "",
            "node-a",
            false,
        ),
        (CONTROLLER, "create", "", "pods", "larder", "", false),
        ("viewer", "get", l, "imageprepulls", "team-a", "x", true),
        ("viewer", "create", l, "imageprepulls", "team-a", "", false),
        ("viewer", "get", l, "imageprepulls", "larder", "x", false),
        ("viewer", "get", l, "nodeimagecaches", "", "node-a", false),
        ("tenant", "create", l, "imageprepulls", "team-a", "", true),
        (
            "tenant",
            "deletecollection",
            l,
            "imageprepulls",
            "team-a",
            "",
            true,
        ),
        (
            "tenant",
            "patch",
            l,
            "imageprepulls/status",
            "team-a",
            "x",
            false,
        ),
        ("tenant", "create", l, "imageprepulls", "larder", "", false),
        ("tenant", "create", l, "clusterimageprepulls", "", "", false),
        ("tenant", "create", l, "imageprunepolicies", "", "", false),
        (
            "platform",
            "create",
            l,
            "clusterimageprepulls",
            "",
            "",
            true,
        ),
        ("platform", "delete", l, "imageprunepolicies", "", "x", true),
        ("platform", "get", l, "nodeimagecaches", "", "node-a", true),
        (
            "platform",
            "patch",
            l,
            "nodeimagecaches",
            "",
            "node-a",
            false,
        ),
    ];
    let reviews: Vec<Value> = table
        .iter()
        .map(|(who, verb, group, resource, namespace, name, _)| {
            let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
            json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {"user": who, "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": sub,
                    "namespace": namespace, "name": name,
                }},
            })
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": reviews}).to_string();
    let answer = cluster
        .kubectl_with(&["create", "-o", "json", "-f", "-"], &list)
        .ok();
    // One document each, without anything between them.
    let answers = serde_json::Deserializer::from_str(&answer).into_iter::<Value>();
    let answers: Vec<Value> = answers
        .map(Result::unwrap)
        .flat_map(|answer| match answer["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![answer],
        })
        .collect();
    assert_eq!(answers.len(), table.len());
    let wrong: Vec<_> = table
        .iter()
        .zip(&answers)
        .filter(|(row, answer)| answer["status"]["allowed"] != json!(row.6))
        .map(|(row, _)| row)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The optional policy.
fn tenant_limits(cluster: &Cluster) {
    let limits = folder("optional/tenant-limits");
    cluster
        .kubectl(&["apply", "--server-side", "-k", &limits])
        .ok();
    let data = json!({"data": {
        "team-a.registries": "registry.example/team-a/, other.example",
        "team-a.nodeSelector": "pool=a",
        "team-b.pin": "true",
    }});
    let data = data.to_string();
    let flags = [
        "patch",
        "configmap",
        "larder-tenant-limits",
        "-n",
        "larder",
        "--type=merge",
        "-p",
        &data,
    ];
    cluster.kubectl(&flags).ok();
    cluster.kubectl(&["create", "namespace", "team-b"]).ok();
    let attempt = |namespace: &str, spec: Value| {
        let object = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrepull",
            "metadata": {"name": "limited", "namespace": namespace}, "spec": spec,
        });
        create(
            cluster,
            &cluster.kubeconfig(),
            &object,
            &["--dry-run=server"],
        )
    };
    let nodes = json!({"matchLabels": {"pool": "a", "disk": "fast"}});
    let images = |image: &str| json!({"images": [image], "nodeSelector": nodes});
    let stranger = "images of namespace team-a must come from registry.example/team-a, other.example: not evil.example/app";
    until_refused(|| attempt("team-a", images("evil.example/app")), stranger);
    for fine in [
        "registry.example/team-a/app:1",
        "registry.example/team-a:1",
        "other.example/a/b",
    ] {
        assert_eq!(attempt("team-a", images(fine)), None, "{fine}");
    }
    for wrong in [
        "registry.example/team-ab/app",
        "other.example:5000/app",
        "other.example.evil/app",
        "app",
    ] {
        let said = attempt("team-a", images(wrong)).unwrap();
        assert!(said.contains("must come from"), "{wrong}: {said}");
    }
    let fine = "other.example/app";
    for spec in [
        json!({"images": [fine]}),
        json!({"images": [fine], "nodeNames": ["node-a"]}),
        json!({"images": [fine], "nodeSelector": {"matchLabels": {"pool": "b"}}}),
    ] {
        let said = attempt("team-a", spec).unwrap();
        assert!(
            said.contains("are chosen by nodeSelector.matchLabels with pool=a"),
            "{said}"
        );
    }
    let from = json!({"imagesFrom": [{"kind": "Job", "name": "x"}], "nodeSelector": nodes});
    assert!(
        attempt("team-a", from)
            .unwrap()
            .contains("imagesFrom is not for namespace team-a")
    );
    let pin = json!({"images": ["app"], "pin": true});
    assert!(
        attempt("default", pin.clone())
            .unwrap()
            .contains("namespace default may not pin images")
    );
    assert_eq!(attempt("team-b", pin), None);
}

/// Its pod passes the restricted level, though the namespace cannot ask for that because of the agents.
fn controller_is_restricted(cluster: &Cluster) {
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": {
            "pod-security.kubernetes.io/enforce": "restricted",
        }}})
        .to_string(),
    );
    cluster.watch(&["serviceaccount", "default", "-n", "strict"], |_| true);
    let pod = |kind: &str| {
        let owner = cluster.json(&["get", kind, "-n", "larder"]);
        let mut spec = owner["spec"]["template"]["spec"].clone();
        for key in ["serviceAccount", "serviceAccountName"] {
            spec[key] = json!("default");
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": "strict"}, "spec": spec,
        });
        create(cluster, &cluster.kubeconfig(), &pod, &["--dry-run=server"])
    };
    assert_eq!(pod("deployment/larder-controller"), None);
    assert!(
        pod("daemonset/larder-agent")
            .unwrap()
            .contains("violates PodSecurity")
    );
}

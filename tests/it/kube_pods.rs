//! larder in pods: the shipped manifests on a real kubelet, as somebody installs, upgrades and uninstalls them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::process::run;

const LARDER: &str = env!("CARGO_BIN_EXE_larder");
/// As `manifests/base` names it.
const IMAGE: &str = "ghcr.io/larder-dev/larder:0.1.0";
/// What a kustomization of a user's own adds for a registry without TLS.
const HOSTS: &str = "/etc/larder/hosts.d";

/// A kustomization on top of an overlay, with the folders of the node below the cluster's own.
fn on_this_machine(cluster: &Cluster, overlay: &str) -> PathBuf {
    let node = cluster.dir().join("node");
    let folder = cluster.dir().join(format!("larder-{overlay}"));
    std::fs::create_dir_all(&folder).unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("manifests/overlays/{overlay}"));
    let built = cluster.kubectl(&["kustomize", base.to_str().unwrap()]).ok();
    let agent: Value = built
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .find(|object: &Value| object["kind"] == "DaemonSet")
        .unwrap_or_default();
    let pod = &agent["spec"]["template"]["spec"];
    let mut volumes = Vec::new();
    let mut mounts = Vec::new();
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let Some(path) = volume["hostPath"]["path"].as_str() else {
            continue;
        };
        let moved = match path {
            "/run/containerd" => node.join("run"),
            // The runtime tells the path that it has on the node.
            "/var/lib/containerd" => {
                let store = node.join("containerd");
                mounts.push(json!({"name": volume["name"], "mountPath": store}));
                store
            }
            path => node.join("host").join(path.trim_start_matches('/')),
        };
        volumes.push(json!({"name": volume["name"], "hostPath": {"path": moved}}));
    }
    let patch = |kind: &str, name: &str, spec: Value| {
        let spec = json!({"template": {"spec": spec}});
        let object = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "larder"}, "spec": spec,
        });
        json!({"patch": object.to_string()})
    };
    let hosts =
        json!({"name": "hosts", "mountPath": format!("{HOSTS}/bed.local"), "readOnly": true});
    let mut patches = vec![patch(
        "Deployment",
        "larder-controller",
        json!({
            "containers": [{"name": "controller", "volumeMounts": [hosts]}],
            "volumes": [{"name": "hosts", "configMap": {"name": "larder-hosts"}}],
        }),
    )];
    if agent.is_object() {
        let spec =
            json!({"containers": [{"name": "agent", "volumeMounts": mounts}], "volumes": volumes});
        patches.push(patch("DaemonSet", "larder-agent", spec));
    }
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "sortOptions": {"order": "fifo"},
        "resources": [relative(&base, &folder)],
        "configMapGenerator": [{"name": "larder-hosts", "namespace": "larder", "files": ["hosts.toml"]}],
        "patches": patches,
    });
    let text = std::fs::read_to_string(node.join("hosts.d/bed.local/hosts.toml")).unwrap();
    let own = node
        .join("host")
        .join(HOSTS.trim_start_matches('/'))
        .join("bed.local");
    std::fs::create_dir_all(&own).unwrap();
    for folder in [&folder, &own] {
        std::fs::write(folder.join("hosts.toml"), &text).unwrap();
    }
    std::fs::write(folder.join("kustomization.yaml"), kustomization.to_string()).unwrap();
    folder
}

/// Kustomizations are named relative to each other.
fn relative(path: &Path, from: &Path) -> PathBuf {
    let up = from.components().skip(1).map(|_| "..");
    up.collect::<PathBuf>()
        .join(path.strip_prefix("/").unwrap())
}

fn install(cluster: &Cluster, overlay: &str) -> PathBuf {
    let folder = on_this_machine(cluster, overlay);
    let path = folder.to_str().unwrap();
    cluster
        .kubectl(&["apply", "--server-side", "-k", path])
        .ok();
    for owner in ["daemonset/larder-agent", "deployment/larder-controller"] {
        let args = ["rollout", "status", "-n", "larder", "--timeout=90s", owner];
        let ended = cluster.kubectl(&args);
        if !ended.success {
            let pods = cluster.kubectl(&["describe", "pods", "-n", "larder"]).ok();
            let log = cluster.kubectl(&["logs", "-n", "larder", owner]);
            panic!("{overlay}: {}{pods}{}", ended.stderr, log.stdout);
        }
    }
    folder
}

/// The only agent's pod.
fn agent(cluster: &Cluster) -> Value {
    let selector = "app.kubernetes.io/component=agent";
    let pods = cluster.json(&["get", "pods", "-n", "larder", "-l", selector]);
    let running = pods["items"].as_array().unwrap().iter();
    let mut running = running.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    running.next().unwrap().clone()
}

/// The id of the process in a pod's only container.
fn process(pod: &Value) -> u32 {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let mut found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (groups.contains(uid) && program == Path::new("/larder")).then_some(pid)
    });
    found.next().unwrap()
}

/// What a client on the node is told.
fn larder(cluster: &Cluster, args: &[&str]) -> String {
    let socket = cluster.dir().join("node/host/run/larder/larder.sock");
    run(Command::new(LARDER).arg("--socket").arg(socket).args(args)).ok()
}

/// What `kubectl larder` answers.
fn plugin(cluster: &Cluster, args: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-larder"));
    let kubeconfig = cluster.kubeconfig();
    command.arg("--kubeconfig").arg(kubeconfig).args(args);
    let text = run(command.args(["-o", "json"])).ok();
    serde_json::from_str(&text).unwrap()
}

fn prepulls(cluster: &Cluster) {
    let name = json!({"name": "bed", "namespace": "team"});
    let meta = |name: &str| json!({"name": name, "namespace": "team"});
    let agent = json!({"kind": "ServiceAccount", "name": "larder-agent", "namespace": "larder"});
    let controller =
        json!({"kind": "ServiceAccount", "name": "larder-controller", "namespace": "larder"});
    let rbac = "rbac.authorization.k8s.io";
    // As manifests/examples/tenant-secret.yaml has it.
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}},
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": name, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": json!({"auths": {"bed.local": {"username": "bed", "password": "bed"}}}).to_string()},
        },
        {
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": meta("larder"),
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["bed"], "verbs": ["get"]}],
        },
        {
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": meta("larder"),
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "larder"}, "subjects": [agent, controller],
        },
        {
            "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull", "metadata": {"name": "base"},
            "spec": {"images": ["bed.local/server:1", "bed.local/server:2"], "refreshInterval": "1h"},
        },
        {
            "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrepull", "metadata": meta("app"),
            "spec": {"images": ["bed.local/private/server:1"], "pullSecrets": [{"name": "bed"}]},
        },
    ]});
    cluster.apply(&objects.to_string());
}

fn all_ready(cluster: &Cluster) {
    cluster.wait_for("condition=Ready", &["cipp/base"]);
    cluster.wait_for("condition=Ready", &["ipp/app", "-n", "team"]);
}

#[test]
fn runs_in_pods_changes_where_images_are_kept_and_goes_again() {
    let Some(cluster) = Cluster::own_with_node("kube_pods") else {
        return;
    };
    let cluster: &Cluster = &cluster;
    let node = cluster.node();
    cluster.image(IMAGE, LARDER);

    // Images in containerd.
    install(cluster, "containerd");
    prepulls(cluster);
    all_ready(cluster);
    let first = agent(cluster);
    let held = cluster.watch(&["nimg", &node], |nimg| {
        nimg["status"]["prepulls"]
            .as_array()
            .is_some_and(|held| held.len() == 2 && held.iter().all(|held| held["state"] == "Ready"))
    });
    assert_eq!(held["metadata"]["ownerReferences"][0]["name"], *node);
    let free = &held["status"]["store"]["availableBytes"];
    assert!(free.as_i64().unwrap() > 0, "{held:#}");
    // The plugin is told what containerd has.
    let images = plugin(cluster, &["images", "bed.local/server"]);
    let names: Vec<&Value> = images
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["names"][0])
        .collect();
    assert_eq!(
        names,
        ["bed.local/server:1", "bed.local/server:2"],
        "{images:#}"
    );
    // One row per node.
    let row = cluster.kubectl(&["get", "nimg", "--no-headers"]).ok();
    assert_eq!(
        (row.lines().count(), row.starts_with(&node)),
        (1, true),
        "{row}"
    );
    let server = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "server", "image": "bed.local/server:1", "imagePullPolicy": "Never"}],
        },
    });
    cluster.apply(&server.to_string());
    cluster.wait_for("condition=Ready", &["pod/server"]);
    // It sees the containers' file systems come, and does not keep them.
    let mounts = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let id =
        cluster.json(&["get", "pod", "server"])["status"]["containerStatuses"][0]["containerID"]
            .clone();
    let id = id
        .as_str()
        .unwrap()
        .trim_start_matches("containerd://")
        .to_owned();
    let pid = process(&first);
    assert!(mounts(pid).contains(&id));
    cluster.kubectl(&["delete", "pod", "server"]).ok();
    assert!(!mounts(pid).contains(&id));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");

    // Images in larder's own store.
    install(cluster, "cache");
    all_ready(cluster);
    let second = agent(cluster);
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    for text in [larder(cluster, &["images"]), larder(cluster, &["status"])] {
        assert!(text.contains("bed.local/server"), "{text}");
    }
    // The plugin asks the agent through the API server and the kubelet.
    let app = "bed.local/server:1";
    let images = plugin(cluster, &["images"]);
    let held = |image: &&Value| image["names"].to_string().contains(app);
    let image = images.as_array().unwrap().iter().find(held).unwrap();
    assert_eq!(image["nodeNames"], json!([node]), "{images:#}");
    let why = plugin(cluster, &["why", &node, app]);
    assert_eq!(why["held"]["here"], true, "{why:#}");
    let policy = cluster.dir().join("everything.yaml");
    let everything = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrunePolicy", "metadata": {"name": "everything"},
        "spec": {"mode": "Enforce", "rules": [{"keepLast": 0}]},
    });
    std::fs::write(&policy, everything.to_string()).unwrap();
    let rehearsal = ["prune", "--dry-run", "--policy", policy.to_str().unwrap()];
    let rehearsed = plugin(cluster, &rehearsal);
    // All that is there is declared.
    let stays = rehearsed[0]["keep"].to_string();
    assert!(
        stays.contains(app) && stays.contains("base"),
        "{rehearsed:#}"
    );
    assert_eq!(rehearsed[0]["remove"], json!([]), "{rehearsed:#}");
    // What it mounts is there for all of the node, and still there for the next agent.
    let place = cluster.dir().join("node/host/var/lib/larder/shown");
    larder(
        cluster,
        &["mount", "bed.local/server:1", "/var/lib/larder/shown"],
    );
    let page = place.join("www/index.html");
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "one\n");
    let name = second["metadata"]["name"].as_str().unwrap();
    cluster
        .kubectl(&["delete", "pod", "-n", "larder", name])
        .ok();
    install(cluster, "cache");
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "one\n");
    larder(cluster, &["umount", "/var/lib/larder/shown"]);
    assert!(!page.exists());
    let pods = cluster.json(&["get", "pods", "-n", "larder"]);
    for pod in pods["items"].as_array().unwrap() {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        assert_eq!(*restarts, 0, "{pod:#}");
    }

    // An agent that is a service of the node takes the store over, with the kubelet's credentials.
    let folder = install(cluster, "systemd");
    let pods = [
        "daemonset/larder-agent",
        "-n",
        "larder",
        "--cascade=foreground",
    ];
    cluster.kubectl(&[&["delete"][..], &pods].concat()).ok();
    let host = cluster.dir().join("node/host");
    let [root, socket] = ["var/lib/larder", "run/larder/larder.sock"].map(|path| host.join(path));
    let kubeconfig = cluster.dir().join("kubelet.kubeconfig");
    let mut service = vec![LARDER, "agent", "--node-name", &node, "--http", ""];
    let hosts = host.join(HOSTS.trim_start_matches('/'));
    for (flag, path) in [
        ("--root", &root),
        ("--socket", &socket),
        ("--kubeconfig", &kubeconfig),
        ("--hosts-dir", &hosts),
    ] {
        service.extend([flag, path.to_str().unwrap()]);
    }
    cluster.run("larder-agent", &service);
    let late = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull", "metadata": {"name": "late"},
        "spec": {"images": ["bed.local/busybox:1"]},
    });
    cluster.apply(&late.to_string());
    cluster.wait_for("condition=Ready", &["cipp/late"]);
    cluster.kill("larder-agent");

    // Nothing of it is left but the images.
    cluster
        .kubectl(&["delete", "-k", folder.to_str().unwrap()])
        .ok();
    let kinds = "crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,flowschema,namespace";
    let selector = "app.kubernetes.io/part-of=larder";
    let left = cluster.json(&["get", kinds, "-l", selector]);
    assert_eq!(left["items"], json!([]));
    let object = cluster.json(&["get", "node", &node]);
    assert!(
        !object["metadata"].to_string().contains("larder.dev"),
        "{object:#}"
    );
    let below = format!(" {}", root.display());
    assert!(!mounts(std::process::id()).contains(&below));
    let kept = run(Command::new(LARDER).arg("--root").arg(&root).arg("images")).ok();
    assert!(kept.contains("private/server"), "{kept}");
    cluster.apply(&server.to_string());
    cluster.wait_for("condition=Ready", &["pod/server"]);
}

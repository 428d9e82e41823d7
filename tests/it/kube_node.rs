//! A node on larder: the kubelet's image calls go to it, and containerd starts containers on its layers.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::cluster::Cluster;
use crate::support::hub::Hub;
use crate::support::node::{ControllerProcess, install, objects};
use crate::support::process::run;
use crate::support::program;

fn pod(name: &str, image: &str, policy: &str, more: &Value) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": image, "imagePullPolicy": policy}],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

/// Why a pod's container does not start, once it says so with these words.
fn waits(cluster: &Cluster, name: &str, reason: &str, words: &str) {
    let what = format!("involvedObject.name={name}");
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    cluster.watch(&["pod", name], |pod| waiting(pod)["reason"] == reason);
    let events = cluster.json(&["get", "events", "--field-selector", &what]);
    let mut told = events["items"].as_array().unwrap().iter();
    assert!(
        told.any(|event| event["message"]
            .as_str()
            .unwrap_or_default()
            .contains(words)),
        "{name}: no {words:?} in {events:#}"
    );
}

/// Lets agents and controller read the secret, and has an image pulled ahead with it, which nobody runs yet.
fn pull_ahead(cluster: &Cluster, image: &str) -> ControllerProcess {
    install(cluster);
    cluster.apply(&objects(cluster, "systemd"));
    // It looks for the kinds at once.
    cluster.restart("larder");
    let rbac = "rbac.authorization.k8s.io";
    let meta = json!({"name": "larder-bed", "namespace": "default"});
    let subjects = json!([
        {"apiGroup": rbac, "kind": "Group", "name": "system:nodes"},
        {"kind": "ServiceAccount", "name": "larder-controller", "namespace": "larder"},
    ]);
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": meta,
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["bed"], "verbs": ["get"]}],
        },
        {
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "larder-bed"}, "subjects": subjects,
        },
        {
            "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrepull", "metadata": {"name": "ahead", "namespace": "default"},
            "spec": {"images": [image], "pullSecrets": [{"name": "bed"}]},
        },
    ]});
    cluster.apply(&objects.to_string());
    let account = cluster.service_account("larder", "larder-controller", None);
    let hosts = cluster.dir().join("node/hosts.d");
    let controller = ControllerProcess::start_with(&account, Some(&hosts));
    cluster.wait_for("condition=Ready", &["ipp/ahead"]);
    controller
}

/// The names of images that the node's containerd has.
fn known(cluster: &Cluster) -> String {
    let mut ctr = Command::new(program("ctr").unwrap());
    let socket = cluster.dir().join("node/run/containerd.sock");
    ctr.arg("--address").arg(socket);
    run(ctr.args(["--namespace", "k8s.io", "images", "ls", "-q"])).ok()
}

/// What a client on the node is told.
fn larder(cluster: &Cluster, args: &[&str]) -> String {
    let socket = cluster.dir().join("node/host/run/larder/larder.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("--socket").arg(socket).args(args);
    tokio::task::block_in_place(|| run(&mut command)).ok()
}

/// Whether the agent holds an image that it shows to nobody; `None` where it has none of that name.
fn is_staged(cluster: &Cluster, name: &str) -> Option<bool> {
    let images = larder(cluster, &["images", "-o", "json"]);
    let images: Vec<Value> = serde_json::from_str(&images).unwrap();
    let mut images = images.into_iter();
    let found = images.find(|image| image["repoTags"].as_array().unwrap().contains(&json!(name)));
    found.map(|image| image["staged"] == true)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_from_the_store_as_their_policies_say() {
    let Some(cluster) = Cluster::own_on_larder("kube_node") else {
        return;
    };
    let cluster: &Cluster = &cluster;
    let apply = |pod: Value| cluster.apply(&pod.to_string());
    let runs = |name: &str| cluster.wait_for("condition=Ready", &["pod", name]);
    let (server, private) = ("bed.local/server:1", "bed.local/private/server:1");
    let none = json!({});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bed"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json!({"auths": {"bed.local": {"username": "bed", "password": "bed"}}}).to_string()},
    });
    cluster.apply(&secret.to_string());

    // Pulled ahead with a team's secret: it is here, and for nobody but who has the secret.
    let ahead = "bed.local/private/ahead:1";
    let _controller = pull_ahead(cluster, ahead);
    assert_eq!(is_staged(cluster, ahead), Some(true));
    assert!(!known(cluster).contains(ahead));
    apply(pod("outsider", ahead, "IfNotPresent", &none));
    apply(pod("blind", ahead, "Never", &none));

    // What each policy does, and what a person is told.
    apply(pod("always", server, "Always", &none));
    apply(pod("never", "bed.local/server:2", "Never", &none));
    apply(pod("absent", "bed.local/server:9", "IfNotPresent", &none));
    apply(pod("stranger", private, "IfNotPresent", &none));
    let secrets = json!({"imagePullSecrets": [{"name": "bed"}]});
    apply(pod("friend", private, "IfNotPresent", &secrets));
    runs("always");
    runs("friend");
    waits(
        cluster,
        "never",
        "ErrImageNeverPull",
        "is not present with pull policy of Never",
    );
    waits(
        cluster,
        "absent",
        "ImagePullBackOff",
        "check repository and tag",
    );
    waits(cluster, "stranger", "ImagePullBackOff", "add a pull secret");
    waits(cluster, "outsider", "ImagePullBackOff", "add a pull secret");
    waits(
        cluster,
        "blind",
        "ErrImageNeverPull",
        "is not present with pull policy of Never",
    );
    assert!(!known(cluster).contains(ahead));
    apply(pod("insider", ahead, "IfNotPresent", &secrets));
    runs("insider");
    assert_eq!(is_staged(cluster, ahead), Some(false));
    assert!(known(cluster).contains(ahead));
    // That an image is there by now is no right to it.
    apply(pod("late", private, "IfNotPresent", &none));
    apply(pod("later", ahead, "IfNotPresent", &none));
    waits(cluster, "late", "ImagePullBackOff", "add a pull secret");
    waits(cluster, "later", "ImagePullBackOff", "add a pull secret");

    // An image as a volume.
    let with_page = |own_root: bool, script: &str| {
        json!({
            "hostUsers": !own_root,
            "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": "bed.local/busybox:1", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "page", "mountPath": "/page"}],
            }],
            "volumes": [{"name": "page", "image": {"reference": "bed.local/server:2", "pullPolicy": "IfNotPresent"}}],
        })
    };
    let volume = with_page(false, "cat /page/www/index.html; ! touch /page/x 2>&1");
    apply(pod("volume", "", "", &volume));
    cluster.wait_for("jsonpath={.status.phase}=Succeeded", &["pod", "volume"]);
    let log = cluster.kubectl(&["logs", "volume"]).ok();
    assert!(
        log.starts_with("two\n") && log.contains("Read-only"),
        "{log}"
    );

    // Root of its own, which is nobody on the host: all of the image is its own, and so is what it writes.
    let script = "echo new > /bin/new && stat -c %u:%g / /bin /bin/busybox /bin/new /page/www | sort -u \
                  && awk '$2 > 0' /proc/self/uid_map && cat /page/www/index.html";
    let volume = with_page(true, script);
    for name in ["mapped", "mapped-otherwise"] {
        apply(pod(name, "", "", &volume));
    }
    let map = |name: &str| {
        cluster.wait_for("jsonpath={.status.phase}=Succeeded", &["pod", name]);
        let log = cluster.kubectl(&["logs", name]).ok();
        let lines: Vec<&str> = log.lines().collect();
        assert!(
            matches!(lines.as_slice(), ["0:0", map, "two"] if map.trim().starts_with("0 ")),
            "{log}"
        );
        log
    };
    assert_ne!(map("mapped"), map("mapped-otherwise"));

    // What is here starts without a registry.
    cluster.kill("registry");
    apply(pod("offline", "bed.local/server:2", "IfNotPresent", &none));
    apply(pod("asks", "bed.local/server:2", "Always", &none));
    runs("offline");
    waits(cluster, "asks", "RegistryUnavailable", "no answer from");
    // Now that it is there.
    runs("never");
    cluster.start_part("registry");

    // The one that waited for a registry gets on by itself; those that run survive the agent.
    cluster.kill("larder");
    let page = [
        "exec",
        "offline",
        "--",
        "wget",
        "-qO-",
        "http://127.0.0.1:8080",
    ];
    assert_eq!(cluster.kubectl(&page).ok(), "two\n");
    cluster.start_part("larder");
    assert_eq!(cluster.kubectl(&page).ok(), "two\n");
    apply(pod("after", server, "IfNotPresent", &none));
    runs("after");
    two_collectors(cluster).await;
}

/// The kubelet's collection of images and larder's own, beside each other.
async fn two_collectors(cluster: &Cluster) {
    let larder = |args: &[&str]| larder(cluster, args);
    let pressure = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|one| one["type"] == "DiskPressure");
        found.unwrap()["status"].clone()
    };
    let hub = Hub::start().await;
    let names = ["1", "2"].map(|tag| hub.reference(&format!("big:{tag}")));
    for (tag, seed) in [("1", 1), ("2", 2)] {
        let layer = gzip(&tar(&[("file", &noise(seed, 35 << 20))]));
        hub.push("big", tag, &BuiltImage::new(&[layer]));
    }
    let pull = |name: &String| drop(larder(&["pull", "-q", "--plain-http", name]));
    let big = hub.reference("big");
    let held = || larder(&["images", "-q", &big]).lines().count();
    names.iter().for_each(pull);
    assert_eq!(held(), 2);
    let settings = json!({
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "evictionHard": {"imagefs.available": "30%"}, "evictionPressureTransitionPeriod": "1s",
        // By default it spares what it has known for less than two minutes.
        "imageMinimumGCAge": "1s",
    });
    let place = cluster.dir().join("node/kubelet.d/20-full.conf");
    std::fs::write(place, settings.to_string()).unwrap();
    // It gets to know what is there when it starts.
    cluster.restart("kubelet");
    // The disk gets full. It learns of that by ImageFsInfo, removes what no container uses, and finds that enough.
    let store = cluster.dir().join("node/host/var/lib/larder");
    let stat = rustix::fs::statvfs(&store).unwrap();
    let (size, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
    assert!(free * 100 > size * 45, "{free} of {size}");
    let ballast = free - size / 5;
    std::fs::write(
        store.join("ballast"),
        noise(3, usize::try_from(ballast).unwrap()),
    )
    .unwrap();
    let began = Instant::now();
    while held() > 0 {
        assert!(began.elapsed() < Duration::from_secs(90), "{} stay", held());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Ours, which acts sooner, leaves it nothing to do.
    names.iter().take(1).for_each(pull);
    let policy = cluster.dir().join("free.yaml");
    let free = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrunePolicy", "metadata": {"name": "free"},
        "spec": {"mode": "Enforce", "rules": [{"match": {"images": ["**/big"]}, "minFree": "90%"}]},
    });
    std::fs::write(&policy, free.to_string()).unwrap();
    larder(&["prune", "--policy", policy.to_str().unwrap()]);
    assert_eq!(held(), 0);
    cluster.watch(&["node", &cluster.node()], |node| pressure(node) == "False");
    let pods = cluster.json(&["get", "pods"]);
    let mut pods = pods["items"].as_array().unwrap().iter();
    assert!(!pods.any(|pod| pod["status"]["reason"] == "Evicted"));
}

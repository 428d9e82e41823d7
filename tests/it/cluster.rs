//! The test bed itself: a real control plane starts, does what tests need of it, and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::cluster::{Cluster, script};
use crate::support::process::run;

/// Whether a process runs; one that ended and waits to be reaped does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    !state.is_empty() && !state.starts_with('Z')
}

/// Lines of mounts that lie below a folder.
fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = format!(" {}/", dir.display());
    let found = mounts.lines().filter(|line| line.contains(&below));
    found.map(str::to_owned).collect()
}

fn pod(name: &str, pool: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeSelector": {"pool": pool},
            "containers": [{
                "name": "shell", "image": "bed.local/busybox:1", "imagePullPolicy": "Never",
                "command": ["sh", "-c", "echo started; touch /started; sleep 1000"],
                "readinessProbe": {"exec": {"command": ["test", "-e", "/started"]}, "periodSeconds": 1},
            }],
        },
    })
    .to_string()
}

#[test]
fn nodes_are_objects_and_pods_find_them() {
    let Some(cluster) = Cluster::get("cluster_nodes") else {
        return;
    };
    assert!(cluster.kubectl(&["get", "--raw", "/readyz"]).success);
    let [a, b] = &cluster.create_nodes(&[
        ("bed-a", &[("pool", "bed"), ("zone", "one")]),
        ("bed-b", &[("pool", "bed")]),
    ])[..] else {
        panic!("two nodes")
    };
    assert_ne!(a, b);
    cluster.wait_for("condition=Ready", &["node", "-l", "pool=bed"]);
    let zone = cluster.json(&["get", "node", "bed-a"])["metadata"]["labels"]["zone"].clone();
    assert_eq!(zone, "one");

    // The work of the scheduler, which asks for nodes without taints and pods with a service account.
    cluster.apply(&pod("bed-pod", "bed"));
    let bound = cluster.watch(&["pod", "bed-pod"], |pod| {
        pod["spec"]["nodeName"].is_string()
    });
    let node = bound["spec"]["nodeName"].as_str().unwrap();
    assert!(["bed-a", "bed-b"].contains(&node), "{node}");

    cluster.set_ready(&["bed-b"], false);
    cluster.wait_for("condition=Ready=false", &["node", "bed-b"]);
    let flags = ["delete", "pod", "bed-pod", "--force", "--grace-period=0"];
    cluster.kubectl(&flags).ok();
    cluster.delete_nodes(&["bed-a", "bed-b"]);
    let gone = cluster.kubectl(&["get", "node", "bed-a"]).failure();
    assert!(gone.contains("NotFound"), "{gone}");
}

#[test]
fn a_token_names_the_node_it_is_bound_to() {
    let Some(cluster) = Cluster::get("cluster_tokens") else {
        return;
    };
    let uids = cluster.create_nodes(&[("bed-token", &[])]);
    let review = |node| {
        let config = cluster.service_account("bed-tokens", "agent", node);
        let answer = cluster.kubectl_as(&config, &["auth", "whoami", "-o", "json"]);
        let review: serde_json::Value = serde_json::from_str(&answer.ok()).unwrap();
        review["status"]["userInfo"].clone()
    };
    let bound = review(Some("bed-token"));
    assert_eq!(bound["username"], "system:serviceaccount:bed-tokens:agent");
    let claim =
        |name: &str| bound["extra"][format!("authentication.kubernetes.io/{name}")][0].clone();
    assert_eq!(claim("node-name"), "bed-token");
    assert_eq!(claim("node-uid"), *uids[0]);
    let unbound = review(None);
    assert!(!unbound.to_string().contains("node-name"), "{unbound}");
    cluster.delete_nodes(&["bed-token"]);
}

#[test]
fn an_api_server_that_was_killed_comes_back_with_its_objects() {
    let Some(cluster) = Cluster::own("cluster_restart") else {
        return;
    };
    let pid = |part: &str| {
        let processes = cluster.processes();
        processes.iter().find(|(name, _)| name == part).unwrap().1
    };
    cluster.kubectl(&["create", "configmap", "kept"]).ok();
    let first = pid("apiserver");
    cluster.kill("apiserver");
    let refused = cluster.kubectl(&["get", "configmap", "kept"]).failure();
    assert!(refused.contains("refused"), "{refused}");
    cluster.start_part("apiserver");
    let second = pid("apiserver");
    assert_ne!(first, second);
    cluster.kubectl(&["get", "configmap", "kept"]).ok();

    cluster.restart("apiserver");
    assert_ne!(second, pid("apiserver"));
    cluster.kill("etcd");
    cluster.start_part("etcd");
    cluster.kubectl(&["get", "configmap", "kept"]).ok();
}

#[test]
fn a_slow_etcd_slows_the_api_server_as_long_as_it_is_asked_to() {
    let Some(cluster) = Cluster::own("cluster_slow_etcd") else {
        return;
    };
    let delay = Duration::from_secs(3);
    let write = |name: &str| {
        let begun = Instant::now();
        cluster.kubectl(&["create", "configmap", name]).ok();
        begun.elapsed()
    };
    let slow = cluster.slow_etcd(delay);
    let took = write("slow");
    assert!(took >= delay, "{took:?}");
    drop(slow);
    let took = write("quick");
    assert!(took < delay, "{took:?}");
}

#[test]
fn what_was_interrupted_is_removed_by_down() {
    let Some(cluster) = Cluster::own("cluster_down") else {
        return;
    };
    let dir = cluster.dir().to_owned();
    let processes = cluster.processes();
    assert_eq!(processes.len(), 5, "{processes:?}");
    assert!(processes.iter().all(|(_, pid)| runs(*pid)));
    drop(cluster);
    for (name, pid) in processes {
        assert!(!runs(pid), "{name} runs on");
    }
    assert!(!dir.exists());

    // An `up` that dies as soon as it has started something.
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("bed");
    let mut up = script();
    up.arg("up").arg(&dir).stdin(Stdio::null());
    let mut up = up.spawn().unwrap();
    let record = dir.join("pids/etcd");
    let pid: u32 = loop {
        if let Ok(text) = std::fs::read_to_string(&record) {
            break text.split(' ').next().unwrap().parse().unwrap();
        }
        assert!(up.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    };
    kill_process(Pid::from_child(&up), Signal::KILL).unwrap();
    up.wait().unwrap();
    assert!(runs(pid));
    for _ in 0..2 {
        run(script().arg("down").arg(&dir)).ok();
        assert!(!runs(pid) && !dir.exists());
    }
    let status = run(script().arg("status").arg(&dir)).failure();
    assert!(status.contains("no cluster"), "{status}");

    // Not a cluster's folder: it stays as it is.
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("mine"), "x").unwrap();
    run(script().arg("up").arg(&dir)).failure();
    run(script().arg("down").arg(&dir)).ok();
    assert!(dir.join("mine").exists());
}

#[test]
fn a_pod_runs_on_a_real_kubelet_and_leaves_nothing_behind() {
    let Some(cluster) = Cluster::own_with_node("cluster_node") else {
        return;
    };
    let dir = cluster.dir().to_owned();
    let node = &cluster.node();
    cluster.kubectl(&["label", "node", node, "pool=real"]).ok();
    // One whose image is on the node, and one whose image is in the registry.
    cluster.apply(&pod("bed-real", "real"));
    let image = "--image=bed.local/server:1";
    cluster.kubectl(&["run", "bed-server", image]).ok();
    cluster.wait_for("condition=Ready", &["pod/bed-server"]);
    cluster.wait_for("condition=Ready", &["pod/bed-real"]);
    let log = cluster.kubectl(&["logs", "bed-real"]).ok();
    assert_eq!(log.trim(), "started");
    // A pod finds the API server without kube-proxy and without DNS.
    let call = "nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo found";
    let found = cluster.kubectl(&["exec", "bed-real", "--", "sh", "-c", call]);
    assert_eq!(found.ok().trim(), "found");
    assert!(!mounts_below(&dir).is_empty());

    let processes = cluster.processes();
    assert_eq!(processes.len(), 9, "{processes:?}");
    let key = node.strip_prefix("bed-").unwrap().to_owned();
    let bridge = format!("/sys/class/net/lb{key}");
    assert!(Path::new(&bridge).exists());
    drop(cluster);
    for (name, pid) in processes {
        assert!(!runs(pid), "{name} runs on");
    }
    assert_eq!(mounts_below(&dir), [""; 0]);
    assert!(!Path::new(&bridge).exists() && !dir.exists());
    let group = format!("larder-bed-{key}");
    assert!(!Path::new("/sys/fs/cgroup").join(&group).exists());
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
        let left = hierarchy.unwrap().path().join(&group);
        assert!(!left.exists(), "{}", left.display());
    }
}

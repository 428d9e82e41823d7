//! Prune policies from `kubectl apply` to free bytes on a node's disk: a real control plane, the controller and an agent
//! with larder's own cache as processes, images that share layers and contents.
#![allow(clippy::await_holding_lock, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rollout::Turn;
use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::cluster::Cluster;
use crate::support::containers::hosts;
use crate::support::disk::Disk;
use crate::support::hub::Hub;
use crate::support::node::{Node, told};
use crate::support::process::{Ended, run};
use crate::support::{need, skip};

const MIB: u64 = 1 << 20;
const NODE: &str = "prune-1";
/// Far more than anything takes; who waits longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(90);

/// A layer that all have (4 MiB), and one with a file that its neighbour has, too (2 MiB), and one of its own (3 MiB).
fn image(seed: u64) -> BuiltImage {
    let base = tar(&[("base", &noise(1, 4 << 20))]);
    let shared = noise(100 + seed / 2, 2 << 20);
    let own = tar(&[("shared", &shared), ("own", &noise(200 + seed, 3 << 20))]);
    BuiltImage::new(&[gzip(&base), gzip(&own)])
}

/// The node, with images of a registry.
struct Bed {
    cluster: &'static Cluster,
    hub: Hub,
    /// Below the node's folder, so it goes first.
    disk: Disk,
    node: Node,
}

impl Bed {
    /// Names and seeds.
    fn push(&self, images: &[(&str, u64)]) {
        for (name, seed) in images {
            let (repository, tag) = name.split_once(':').unwrap();
            self.hub.push(repository, tag, &image(*seed));
        }
    }

    fn try_pull(&self, name: &str) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command
            .arg("--socket")
            .arg(self.node.dir.path().join("s.sock"));
        run(command.args(["pull", "-q", &self.hub.reference(name)]))
    }

    fn pull(&self, names: &[&str]) {
        for name in names {
            tokio::task::block_in_place(|| self.try_pull(name)).ok();
        }
    }

    /// Tags on the node.
    fn held(&self) -> BTreeSet<String> {
        let images = self.node.images();
        let tags = images
            .iter()
            .flat_map(|image| image["repoTags"].as_array().unwrap());
        let prefix = self.hub.reference("");
        let short = |tag: &Value| tag.as_str().unwrap().trim_start_matches(&prefix).to_owned();
        tags.map(short).collect()
    }

    fn holds(&self, names: &[&str]) {
        let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(self.held(), names, "{}", self.node.log());
    }

    fn apply(&self, name: &str, mode: &str, rule: &Value) {
        let object = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrunePolicy", "metadata": {"name": name},
            "spec": {"mode": mode, "nodeSelector": {"matchLabels": {"pool": "prune"}}, "rules": [rule]},
        });
        self.cluster.apply(&object.to_string());
    }

    /// The status, once the node has answered this very spec.
    fn done(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let object = self.cluster.watch(&["iprune", name], |object| {
            let status = &object["status"];
            status["observedGeneration"] == object["metadata"]["generation"]
                && status["nodes"]["done"] == 1
                && wanted(status)
        });
        object["status"].clone()
    }

    fn delete(&self, names: &[&str]) {
        let args = [&["delete", "iprune"], names].concat();
        self.cluster.kubectl(&args).ok();
    }

    /// What an enforced policy of one rule does: the images that go, and that their bytes come back.
    fn removes(&self, name: &str, rule: &Value, images: i64, mebibytes: u64) {
        let before = self.disk.free();
        self.apply(name, "Enforce", rule);
        let status = self.done(name, |status| status["removedImages"] == images);
        let back = self.disk.free() - before;
        let expected = mebibytes * MIB;
        // Trees, indexes and manifests are small, and pages of the database come and go.
        assert!(
            back.abs_diff(expected) < MIB / 4,
            "{name}: {back} of {expected}"
        );
        let told = status["freedBytes"].as_u64().unwrap();
        assert!(
            told.abs_diff(back) < MIB / 4,
            "{name}: {told} told, {back} came back"
        );
        self.delete(&[name]);
    }

    /// The event of the Node, once there is one.
    async fn event(&self, reason: &str) -> Value {
        let selector =
            format!("reason={reason},involvedObject.kind=Node,involvedObject.name={NODE}");
        let began = Instant::now();
        loop {
            let events = self
                .cluster
                .json(&["get", "events", "--field-selector", &selector]);
            let events = events["items"].as_array().unwrap();
            if let Some(event) = events.first() {
                assert_eq!(events.len(), 1, "{events:#?}");
                return event.clone();
            }
            assert!(
                began.elapsed() < PATIENCE,
                "no event {reason}: {}",
                self.node.log()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_a_cluster_free_a_nodes_disk_and_emergencies_are_told() {
    const NAME: &str = "policies_of_a_cluster_free_a_nodes_disk_and_emergencies_are_told";
    if need(NAME, ["unshare"]).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(NAME, dir.path().join("disk"), 200 * MIB) else {
        return;
    };
    let Some(turn) = Turn::take(NAME) else {
        return;
    };
    let shifted =
        run(Command::new("unshare").args(["--time", "--monotonic", "1", "--fork", "true"]));
    if !shifted.success {
        return skip(NAME, &format!("no namespace of time: {}", shifted.stderr));
    }
    let _controller = turn.controller();
    let hub = Hub::start().await;
    hosts(dir.path(), &hub);
    turn.cluster.create_nodes(&[(NODE, &[("pool", "prune")])]);
    let credentials = turn.credentials(NODE);
    let flags = [
        "--node-name",
        NODE,
        "--kubeconfig",
        credentials.to_str().unwrap(),
    ];
    let root = disk.path.join("root");
    let node = Node::start_in(dir, Some(root), &flags);
    let mut bed = Bed {
        cluster: turn.cluster,
        hub,
        node,
        disk,
    };
    let apps = [("app:1", 2), ("app:2", 3), ("app:3", 4), ("app:4", 5)];
    let others = [("db:1", 6), ("db:2", 7), ("old:1", 8), ("old:2", 9)];
    bed.push(&apps);
    bed.push(&others);
    bed.pull(&["old:1", "old:2"]);
    // Two hours later.
    bed.node.kill();
    bed.node.ahead = Duration::from_secs(7200);
    bed.node.again();
    bed.pull(&["app:1", "app:2", "app:3", "app:4", "db:1", "db:2"]);

    // A rehearsal changes nothing and says what would go, to everybody who may ask.
    let of = |repository: &str| json!({"images": [bed.hub.reference(repository)]});
    let keep = json!({"match": of("app"), "keepLast": 2});
    bed.apply("keep", "DryRun", &keep);
    let status = bed.done("keep", |status| status["wouldRemoveImages"] == 2);
    assert_eq!(
        status["removedImages"].as_i64().unwrap_or(0),
        0,
        "{status:#}"
    );
    assert_eq!(bed.held().len(), 8);
    let local = bed.node.status();
    let local = &local["prunes"][0];
    assert_eq!(
        [
            &local["policy"],
            &local["mode"],
            &local["reason"],
            &local["wouldRemoveImages"]
        ],
        [
            &json!("keep"),
            &json!("DryRun"),
            &json!("DryRun"),
            &json!(2)
        ],
        "{local:#}"
    );
    let text = bed.node.larder(&["status"]);
    assert!(text.contains("2 would go"), "{text}");

    // Each rule alone: the neighbours share 2 MiB, which go with the second of them.
    bed.removes("keep", &keep, 2, 8);
    bed.holds(&["app:3", "app:4", "db:1", "db:2", "old:1", "old:2"]);
    bed.removes("old", &json!({"unusedFor": "1h"}), 2, 8);
    bed.holds(&["app:3", "app:4", "db:1", "db:2"]);
    // 20 MiB are left; as few go as will do, the longest unused first.
    bed.removes("most", &json!({"maxUsedBytes": "18Mi"}), 1, 3);
    bed.holds(&["app:4", "db:1", "db:2"]);
    let free = bed.disk.free();
    bed.removes("free", &json!({"minFree": free + 4 * MIB}), 1, 5);
    bed.holds(&["db:1", "db:2"]);

    // Two together: one takes what is its own, the other what the disk wants besides.
    bed.pull(&["app:1", "app:2", "app:3", "app:4"]);
    let free = bed.disk.free();
    bed.apply("own", "Enforce", &json!({"match": of("db"), "keepLast": 0}));
    bed.apply("rest", "Enforce", &json!({"minFree": free + 10 * MIB}));
    // Which of them came first may differ; what goes does not.
    let removed = |status: &Value| status["removedImages"].as_i64().unwrap_or(0);
    let own = removed(&bed.done("own", |_| true));
    bed.done("rest", |status| own + removed(status) == 3);
    bed.holds(&["app:2", "app:3", "app:4"]);
    assert!((bed.disk.free() - free).abs_diff(11 * MIB) < MIB / 4);
    bed.delete(&["own", "rest"]);

    // A band that pulls do not enter: what nothing needs makes room, and the Node says so.
    let band = bed.disk.free() - 2 * MIB;
    bed.apply("band", "Enforce", &json!({"reserved": band}));
    bed.done("band", |_| true);
    let metric = format!("larder_reserved_bytes {band}");
    while !bed.node.http("/metrics").contains(&metric) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bed.pull(&["db:1"]);
    bed.holds(&["app:3", "app:4", "db:1"]);
    // What could never fit is refused, and that nothing could mend it is told, too.
    let large = BuiltImage::new(&[gzip(&tar(&[("file", &noise(77, 30 << 20))]))]);
    bed.hub.push("large", "1", &large);
    let refused = tokio::task::block_in_place(|| bed.try_pull("large:1")).failure();
    assert!(refused.contains("InsufficientSpace"), "{refused}");
    // Both are one emergency, which is told once.
    let event = bed.event("InsufficientSpace").await;
    assert_eq!(event["type"], "Warning");
    let note = event["message"].as_str().unwrap();
    assert!(
        note.contains("removed, which freed") && note.contains("more are wanted"),
        "{note}"
    );
    let report = told(bed.cluster, NODE, |report| {
        let conditions = report["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|condition| {
            condition["type"] == "DiskPressure"
                && condition["status"] == "True"
                && condition["reason"] == "InsufficientSpace"
        })
    })
    .await;
    assert!(report["status"]["emergency"]["shortBytes"].as_u64() > Some(0));
    assert!(report["status"]["emergency"]["removedImages"].as_u64() > Some(0));
    let text = bed.node.larder(&["status"]);
    assert!(
        text.contains("FULL DISK") && text.contains(" short"),
        "{text}"
    );

    bed.delete(&["band"]);
    bed.node.kill();
    bed.cluster.delete_nodes(&[NODE]);
}

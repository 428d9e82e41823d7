//! Rollouts from `kubectl apply` to images on nodes: a real control plane, real controllers and agents with the rights
//! that the manifests give them.
#![allow(clippy::await_holding_lock, clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use larder::runtime::{self, RuntimeImages};
use serde_json::{Value, json};

use crate::support::build::{BuiltImage, MANIFEST, gzip, noise, tar};
use crate::support::cluster::Cluster;
use crate::support::hub::{Hub, blob_path};
use crate::support::node::{ControllerProcess, Node, install_kinds, objects};
use crate::support::process::run;

/// Far more than anything takes; who waits longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where the manifests put everything.
const NAMESPACE: &str = "larder";

fn image(seed: u64) -> BuiltImage {
    BuiltImage::new(&[gzip(&tar(&[("file", &noise(seed, 100_000))]))])
}

/// The tests take turns on one cluster: a controller acts on everything in it.
pub(crate) struct Turn {
    pub(crate) cluster: &'static Cluster,
    controller: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    pub(crate) fn take(test: &str) -> Option<Self> {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // The notice of what is missing is printed for each test.
        let cluster = CLUSTER.get_or_init(|| Cluster::kept(test)).as_ref();
        let Some(cluster) = cluster else {
            let _ = Cluster::kept(test);
            return None;
        };
        install(cluster);
        Some(Turn {
            cluster,
            controller: cluster.service_account(NAMESPACE, "larder-controller", None),
            _turn: turn,
        })
    }

    pub(crate) fn controller(&self) -> ControllerProcess {
        ControllerProcess::start(&self.controller)
    }

    /// Nodes of a pool, with an agent each.
    fn agents(&self, pool: &str, count: usize) -> Vec<(String, Node)> {
        let names: Vec<String> = (1..=count).map(|at| format!("{pool}-{at}")).collect();
        let labels: &[(&str, &str)] = &[("pool", pool)];
        let nodes: Vec<_> = names.iter().map(|name| (name.as_str(), labels)).collect();
        self.cluster.create_nodes(&nodes);
        names
            .into_iter()
            .map(|name| {
                let node = Node::of(&name, &self.credentials(&name));
                (name, node)
            })
            .collect()
    }

    /// Of the node's agent, as a pod on the node has them.
    pub(crate) fn credentials(&self, node: &str) -> PathBuf {
        self.cluster
            .service_account(NAMESPACE, "larder-agent", Some(node))
    }

    fn end(&self, pool: &str, agents: Vec<(String, Node)>) {
        let flags = ["delete", "cipp,ipp", "-A", "--all", "--ignore-not-found"];
        self.cluster.kubectl(&flags).ok();
        drop(agents);
        let selector = format!("pool={pool}");
        self.cluster
            .kubectl(&["delete", "node", "-l", &selector])
            .ok();
    }

    /// The object once its status is about its spec and as wanted.
    fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.cluster.watch(&["cipp", name], |object| {
            object["status"]["observedGeneration"] == object["metadata"]["generation"]
                && wanted(&object["status"])
        })
    }

    fn ready(&self, name: &str, revision_before: &Value) -> Value {
        self.until(name, |status| {
            condition(status, "Ready") == "True AllNodesReady"
                && status["rollout"]["revision"] != *revision_before
        })
    }
}

/// All that the manifests have, but for the pods: agents and controllers are processes here. Tags are looked up every
/// second where a spec says so.
fn install(cluster: &Cluster) {
    kinds(cluster);
    cluster.apply(&objects(cluster, "cache"));
}

fn kinds(cluster: &Cluster) {
    let crds = run(Command::new(env!("CARGO_BIN_EXE_larder")).arg("crds")).ok();
    install_kinds(cluster, &crds.replace("duration('5m')", "duration('1s')"));
}

fn prepull(name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull", "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

/// For the nodes of a pool.
fn spec(pool: &str, images: &[String], max_in_flight: &Value) -> Value {
    json!({
        "images": images, "nodeSelector": {"matchLabels": {"pool": pool}}, "retainAfterDeletion": "1s",
        "rollout": {"maxInFlight": max_in_flight, "maxFailures": "100%"},
    })
}

fn condition(status: &Value, kind: &str) -> String {
    let conditions = status["conditions"].as_array();
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

/// Asks until it is so.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn state(status: &Value) -> &str {
    status["prepulls"][0]["state"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepull_reaches_its_nodes_one_by_one_and_an_edit_does_not_stampede() {
    let Some(turn) = Turn::take("rollout_waves") else {
        return;
    };
    let _controller = turn.controller();
    let hub = Hub::start().await;
    let (one, two) = (image(1), image(2));
    hub.push("app", "1", &one);
    hub.push("app", "2", &two);
    hub.push("db", "1", &image(3));
    hub.push("web", "1", &image(4));
    let images = |app: &str| {
        [app, "db:1", "web:1"]
            .map(|name| hub.reference(name))
            .to_vec()
    };
    let agents = turn.agents("waves", 3);

    let gate = hub.gate(&blob_path("app", &one.layers[0].digest));
    let mut spec = spec("waves", &images("app:1"), &json!(1));
    turn.cluster.apply(&prepull("waves", &spec));
    gate.reached().await;
    let status = turn.until("waves", |status| status["nodes"]["desired"] == 3);
    assert_eq!(status["status"]["nodes"]["admitted"], 1, "{status:#}");
    assert_eq!(gate.waiting(), 1);
    gate.open();
    turn.cluster.wait_for("condition=Ready", &["cipp/waves"]);
    let status = turn.ready("waves", &Value::Null)["status"].clone();
    assert_eq!(
        status["nodes"],
        json!({"desired": 3, "admitted": 3, "ready": 3, "failed": 0, "unreachable": 0})
    );
    assert_eq!(status["images"], 3);
    let rows = turn.cluster.kubectl(&["get", "nimg", "--no-headers"]).ok();
    for (name, _) in &agents {
        let row = rows.lines().find(|row| row.starts_with(name.as_str()));
        assert!(row.unwrap().contains("True"), "{rows}");
    }

    // An edit: the others keep what they hold until it is their turn.
    let old = status["rollout"]["revision"].clone();
    let gate = hub.gate(&blob_path("app", &two.layers[0].digest));
    spec["images"] = json!(images("app:2"));
    turn.cluster.apply(&prepull("waves", &spec));
    gate.reached().await;
    let waiting = agents.iter().filter(|(_, node)| {
        let status = node.status();
        let prepull = &status["prepulls"][0];
        prepull["revision"] == old && prepull["nextRevision"].is_null() && state(&status) == "Ready"
    });
    assert_eq!((waiting.count(), gate.waiting()), (2, 1));
    gate.open();
    turn.ready("waves", &old);

    // A tag that moves is followed, and said.
    spec["refreshInterval"] = json!("1s");
    turn.cluster.apply(&prepull("waves", &spec));
    let before = turn.ready("waves", &Value::Null)["status"].clone();
    let moved = image(5);
    hub.push("db", "1", &moved);
    let after = turn.ready("waves", &before["rollout"]["revision"])["status"].clone();
    assert!(after["resolved"].to_string().contains(&moved.digest()));
    eventually("an event about the tag", || {
        let events = turn.cluster.kubectl(&["get", "events", "-o", "name"]).ok();
        events.contains("waves.")
            && turn
                .cluster
                .kubectl(&["get", "events", "--field-selector", "reason=TagMoved"])
                .ok()
                .contains("waves")
    })
    .await;

    // What cannot be had: one image that the registry does not know, one whose layer is missing.
    let hollow = image(6);
    hub.put_manifest("hollow", "1", &hollow.manifest, MANIFEST);
    let mut all = images("app:2");
    all.extend(["typo:1", "hollow:1"].map(|name| hub.reference(name)));
    spec["images"] = json!(all);
    turn.cluster.apply(&prepull("waves", &spec));
    let status = turn.until("waves", |status| status["nodes"]["failed"] == 3);
    let failures = status["status"]["failures"].as_array().unwrap();
    let of = |name: &str| {
        let name = hub.reference(name);
        failures
            .iter()
            .find(|failure| failure["image"] == name)
            .unwrap()
    };
    assert_eq!(of("typo:1")["reason"], "NotFound");
    assert_eq!(of("hollow:1")["nodes"], 3, "{failures:#?}");
    for name in ["typo:1", "hollow:1"] {
        let node = of(name)["node"].as_str().unwrap();
        assert!(node.starts_with("waves-"), "{failures:#?}");
    }

    // Deleted, and released; nothing is removed.
    turn.cluster.kubectl(&["delete", "cipp", "waves"]).ok();
    for (_, node) in &agents {
        let held = node.images().len();
        node.until("released", |status| {
            status["prepulls"].as_array().unwrap().is_empty()
        })
        .await;
        assert_eq!(node.images().len(), held);
    }
    turn.end("waves", agents);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_keeps_pods_away_until_a_node_is_warm_or_its_time_is_up() {
    let Some(turn) = Turn::take("rollout_gates") else {
        return;
    };
    let _controller = turn.controller();
    let hub = Hub::start().await;
    hub.push("app", "1", &image(11));
    let agents = turn.agents("gates", 1);
    // Nobody works on this one.
    turn.cluster
        .create_nodes(&[("gates-cold", &[("pool", "gates")])]);
    for node in ["gates-1", "gates-cold"] {
        let taint = "example.com/cold=true:NoSchedule";
        turn.cluster.kubectl(&["taint", "node", node, taint]).ok();
    }
    let mut spec = spec("gates", &[hub.reference("app:1")], &json!("100%"));
    spec["gate"] = json!({
        "nodeLabel": "example.com/warm", "startupTaint": "example.com/cold", "deadline": "15s"});
    turn.cluster.apply(&prepull("gates", &spec));
    let cold = |node: &Value| {
        node["spec"]["taints"]
            .to_string()
            .contains("example.com/cold")
    };
    let warm = |node: &Value| node["metadata"]["labels"]["example.com/warm"].clone();
    turn.cluster.watch(&["node", "gates-1"], |node| {
        !cold(node) && warm(node) == "true"
    });
    let late = turn
        .cluster
        .watch(&["node", "gates-cold"], |node| !cold(node));
    assert_eq!(warm(&late), Value::Null);
    eventually("an event about the node", || {
        let flags = [
            "get",
            "events",
            "--field-selector",
            "reason=GateOpened,type=Warning",
        ];
        turn.cluster.kubectl(&flags).ok().contains("gates-cold")
    })
    .await;
    turn.end("gates", agents);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_workloads_are_pulled_with_a_teams_secret_and_shown_to_who_may_see_them() {
    let Some(turn) = Turn::take("rollout_secrets") else {
        return;
    };
    let _controller = turn.controller();
    let hub = Hub::start().await;
    for (name, seed) in [("app", 21), ("init", 22), ("open", 23)] {
        hub.push(name, "1", &image(seed));
        hub.require(name, &["ann:pw"]);
    }
    let config = json!({"auths": {hub.host.as_str(): {"username": "ann", "password": "pw"}}});
    let template = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {
            "initContainers": [{"name": "i", "image": hub.reference("init:1")}],
            "containers": [{"name": "c", "image": hub.reference("app:1")}],
        },
    });
    let accounts: Vec<Value> = ["larder-agent", "larder-controller"]
        .map(|name| json!({"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}))
        .to_vec();
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app", "namespace": "team"},
         "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry", "namespace": "team"},
         "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config.to_string()}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
         "metadata": {"name": "larder-pull-secret", "namespace": "team"},
         "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["registry"], "verbs": ["get"]}]},
    ]});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "larder-pull-secret", "namespace": "team"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "larder-pull-secret"},
        "subjects": accounts});
    turn.cluster.apply(&objects.to_string());
    let agents = turn.agents("secrets", 1);
    let node = &agents[0].1;
    let namespaced = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ImagePrepull", "metadata": {"name": "app", "namespace": "team"},
        "spec": {"imagesFrom": [{"kind": "Deployment", "name": "app"}], "pullSecrets": [{"name": "registry"}],
                 "nodeSelector": {"matchLabels": {"pool": "secrets"}}}});
    turn.cluster.apply(&namespaced.to_string());
    // The team has not granted it yet, and is told what to do.
    let of_team = ["ipp", "app", "-n", "team"];
    let refused = turn.cluster.watch(&of_team, |object| {
        condition(&object["status"], "Resolved") == "False SecretMissing"
    });
    assert!(
        refused["status"].to_string().contains("RoleBinding"),
        "{refused:#}"
    );
    turn.cluster.apply(&binding.to_string());
    // An edit is looked at at once.
    let edit = r#"{"spec": {"priority": -1}}"#;
    let flags = [
        "patch",
        "ipp",
        "app",
        "-n",
        "team",
        "--type=merge",
        "-p",
        edit,
    ];
    turn.cluster.kubectl(&flags).ok();
    turn.cluster.watch(&of_team, |object| {
        condition(&object["status"], "Ready") == "True AllNodesReady"
    });
    let images = node.images();
    assert_eq!(images.len(), 2, "{images:#?}");
    assert!(images.iter().all(|image| image["staged"] == true));
    assert!(node.larder(&["images"]).contains("staged"));
    let cri = RuntimeImages::new(&node.dir.path().join("s.sock"), runtime::Metrics::default());
    let shown = async |name: &str| cri.status(&hub.reference(name)).await.unwrap().is_some();
    assert!(!shown("app:1").await && !shown("init:1").await);

    // For everybody on the node: another image, and one that was pulled for some only.
    let mut wide = spec(
        "secrets",
        &["open:1", "app:1"].map(|name| hub.reference(name)),
        &json!(1),
    );
    wide["visibility"] = json!("NodeWide");
    wide["pullSecrets"] = json!([{"namespace": "team", "name": "registry"}]);
    turn.cluster.apply(&prepull("secrets", &wide));
    turn.ready("secrets", &Value::Null);
    assert!(shown("open:1").await && shown("app:1").await && !shown("init:1").await);
    turn.end("secrets", agents);
    turn.cluster.kubectl(&["delete", "namespace", "team"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_on_after_kills_and_among_other_writers() {
    let Some(turn) = Turn::take("rollout_kills") else {
        return;
    };
    let first = turn.controller();
    let hub = Hub::start().await;
    let app = image(31);
    hub.push("app", "1", &app);
    hub.push("app", "2", &image(32));
    let mut agents = turn.agents("kills", 3);
    let gate = hub.gate(&blob_path("app", &app.layers[0].digest));
    let mut spec = spec("kills", &[hub.reference("app:1")], &json!(1));
    turn.cluster.apply(&prepull("kills", &spec));
    gate.reached().await;

    // The controller dies in the middle of a wave, the agent in the middle of its pull.
    let second = turn.controller();
    first.kill();
    let working = agents
        .iter_mut()
        .find(|(_, node)| node.status()["prepulls"][0]["reason"] != "NotAdmitted");
    let (_, node) = working.unwrap();
    node.kill();
    gate.left().await;
    node.again();
    gate.reached().await;
    assert_eq!(gate.waiting(), 1);
    gate.open();
    let status = turn.ready("kills", &Value::Null);
    let log = second.log();
    assert!(!log.contains("panicked"), "{log}");

    // Somebody else writes the same objects all the time.
    let writer = Storm::start(
        turn.cluster,
        &[
            "cipp/kills",
            "nodeimagecache/kills-1",
            "nodeimagecache/kills-2",
        ],
    );
    spec["images"] = json!([hub.reference("app:2")]);
    turn.cluster.apply(&prepull("kills", &spec));
    let revision = &status["status"]["rollout"]["revision"];
    turn.until("kills", |status| status["rollout"]["revision"] != *revision);
    eventually("many writes", || writer.count() > 50).await;
    // In the end what they say counts: agents find out that they were overwritten.
    writer.stop();
    turn.ready("kills", revision);
    turn.end("kills", agents);
}

/// Writes into objects and their statuses as fast as it can.
struct Storm {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Storm {
    fn start(cluster: &'static Cluster, objects: &[&str]) -> Self {
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = objects
            .iter()
            .map(|object| {
                let (stop, count, object) = (stop.clone(), count.clone(), (*object).to_owned());
                let status = match object.starts_with("cipp") {
                    true => r#"{"status": {"failures": [], "nodes": {"desired": 77}}}"#,
                    false => r#"{"status": {"prepulls": []}}"#,
                };
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let number = count.fetch_add(1, Ordering::Relaxed);
                        let note = json!({"metadata": {"annotations": {"n": number.to_string()}}});
                        for (patch, flags) in [
                            (note.to_string(), &["--type=merge"][..]),
                            (status.to_owned(), &["--type=merge", "--subresource=status"]),
                        ] {
                            let patch = ["patch", &object, "-p", &patch];
                            cluster.kubectl(&[&patch, flags].concat()).ok();
                        }
                    }
                })
            })
            .collect();
        Storm {
            stop,
            count,
            threads,
        }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_declares_and_asks_with_kubectl_larder() {
    let Some(turn) = Turn::take("rollout_kubectl_larder") else {
        return;
    };
    let _controller = turn.controller();
    let hub = Hub::start().await;
    hub.push("app", "1", &image(61));
    let agents = turn.agents("plugin", 2);
    let node = agents[0].0.as_str();
    let plugin = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-larder"));
        let kubeconfig = turn.cluster.kubeconfig();
        run(command.arg("--kubeconfig").arg(kubeconfig).args(args))
    };
    let read = |args: &[&str]| -> Value {
        let text = plugin(&[args, &["-o", "json"]].concat()).ok();
        serde_json::from_str(&text).unwrap()
    };

    let app = hub.reference("app:1");
    let asked = ["prepull", &app, "-l", "pool=plugin", "--max-in-flight", "1"];
    let made = plugin(&[&asked[..], &["--wait", "--timeout", "90s"]].concat()).ok();
    let name = made.split_whitespace().next().unwrap().to_owned();
    assert_eq!(made.trim(), format!("{name} is ready"));
    // The same again is the same object.
    assert_eq!(plugin(&asked).ok().trim(), format!("{name} declared"));

    let status = read(&["status"]);
    let prepull = &status["prepulls"][0];
    assert_eq!(
        (&prepull["state"], &prepull["ready"]),
        (&json!("Ready"), &json!(2)),
        "{status:#}"
    );
    let why = read(&["why", node, &app, "--offline"]);
    assert_eq!(why["prepulls"][0]["state"], "Ready", "{why:#}");
    let elsewhere = read(&["why", node, "other:1", "--offline"]);
    assert_eq!(elsewhere["prepulls"], json!([]));
    let top = read(&["top"]);
    let ours = |row: &&Value| row["node"].as_str().unwrap().starts_with("plugin-");
    let rows: Vec<_> = top.as_array().unwrap().iter().filter(ours).collect();
    assert!(
        rows.len() == 2 && rows.iter().all(|row| row["images"] == 1),
        "{top:#}"
    );
    assert_eq!(read(&["prune", "--dry-run"]), json!([]));

    let typo = hub.reference("typo:1");
    plugin(&["prepull", &typo, "--node", node, "--name", "typo"]).ok();
    turn.until("typo", |status| {
        condition(status, "Resolved") == "False NotFound"
    });
    let why = read(&["why", node, &typo, "--offline"]);
    let reason = why["prepulls"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("NotFound: "), "{why:#}");
    let text = plugin(&["status"]).ok();
    assert!(
        text.contains("Unresolved") && text.lines().all(|line| line.len() <= 100),
        "{text}"
    );

    // What is not there, what is mistyped, and agents that are no pods.
    for (args, code) in [
        (&["status", "nothing"][..], 3),
        (&["why", "no-such-node", &app], 3),
        (&["images"], 3),
        (&["prune"], 2),
        (&["prepull", "UPPER"], 2),
        (&["prepull", &app, "--secret", "s"], 2),
    ] {
        let ended = plugin(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        assert!(
            ended.stderr.starts_with("kubectl larder: "),
            "{}",
            ended.stderr
        );
    }
    turn.end("plugin", agents);
}

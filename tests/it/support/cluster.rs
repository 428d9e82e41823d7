//! A real Kubernetes control plane for tests, of `tests/bed/cluster.sh`, and what tests do with it by `kubectl`.
//!
//! It ends with the test process, however that ends: a guardian process holds the cluster as long as the pipe to it is
//! open.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{Ended, run};
use super::{need, skip};

/// As `kubectl` takes it; far more than anything takes.
const PATIENCE: &str = "120s";

/// A running control plane.
pub(crate) struct Cluster {
    dir: PathBuf,
    kubectl: PathBuf,
    guardian: Child,
    /// Its end is the end of the cluster.
    pipe: Option<ChildStdin>,
}

/// A cluster that is not shared. They run one after the other: each takes 500 MB and seconds of all processors.
pub(crate) struct OwnCluster {
    cluster: Cluster,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for OwnCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Cluster {
    /// The one that all tests of this process share; `None` after a notice that `test` was skipped. Tests keep to names
    /// of their own, and leave its parts alone.
    pub(crate) fn get(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let kubectl = Self::tools(test)?;
        match SHARED.get_or_init(|| Self::start(kubectl, &[])) {
            Ok(cluster) => Some(cluster),
            Err(reason) => panic!("the cluster does not start: {reason}"),
        }
    }

    /// One of its own for a test that kills, restarts or slows parts. It ends when it is dropped.
    pub(crate) fn own(test: &str) -> Option<OwnCluster> {
        let kubectl = Self::tools(test)?;
        Some(Self::alone(kubectl, &[]))
    }

    /// One of their own for the tests of a file, which take turns on it: it runs beside the others.
    pub(crate) fn kept(test: &str) -> Option<Self> {
        let kubectl = Self::tools(test)?;
        match Self::start(kubectl, &[]) {
            Ok(cluster) => Some(cluster),
            Err(reason) => panic!("the cluster does not start: {reason}"),
        }
    }

    /// As [`Self::own`], with a node: containerd and a kubelet. One at a time on a machine is enough.
    pub(crate) fn own_with_node(test: &str) -> Option<OwnCluster> {
        Self::node_of(test, &["--node"])
    }

    /// As [`Self::own_with_node`], on larder: containerd starts containers on its layers, and the kubelet's image calls
    /// go to it. Its store has a disk of 200 MiB.
    pub(crate) fn own_on_larder(test: &str) -> Option<OwnCluster> {
        if let Err(reason) = super::can_mount_erofs() {
            skip(test, &reason);
            return None;
        }
        let larder = ["--larder", env!("CARGO_BIN_EXE_larder")];
        Self::node_of(test, &[&larder[..], &["--larder-disk", "200"]].concat())
    }

    fn node_of(test: &str, flags: &[&str]) -> Option<OwnCluster> {
        if !super::is_root() {
            skip(test, "a kubelet needs root");
            return None;
        }
        let kubectl = Self::tools(test)?;
        need(
            test,
            [
                "containerd",
                "containerd-shim-runc-v2",
                "ctr",
                "runc",
                "kubelet",
                "cni/bridge",
                "busybox",
                "ip",
            ],
        )?;
        Some(Self::alone(kubectl, flags))
    }

    fn alone(kubectl: PathBuf, flags: &[&str]) -> OwnCluster {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        match Self::start(kubectl, flags) {
            Ok(cluster) => OwnCluster {
                cluster,
                _turn: turn,
            },
            Err(reason) => panic!("the cluster does not start: {reason}"),
        }
    }

    fn tools(test: &str) -> Option<PathBuf> {
        let [_, _, _, _, _, _, kubectl] = need(
            test,
            [
                "python3",
                "openssl",
                "etcd",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubectl",
            ],
        )?;
        Some(kubectl)
    }

    fn start(kubectl: PathBuf, flags: &[&str]) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("larder-bed-").tempdir();
        // The guardian removes it.
        let dir = dir.map_err(|fault| fault.to_string())?.keep();
        let mut guardian = script()
            .arg("hold")
            .arg(&dir)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A group of its own: ctrl-c is for the tests, and their end for the guardian.
            .process_group(0)
            .spawn()
            .map_err(|fault| fault.to_string())?;
        let mut line = String::new();
        let said = guardian.stdout.take();
        let _ = BufReader::new(said.unwrap()).read_line(&mut line);
        if line.trim() != "ready" {
            let status = guardian.wait().map_err(|fault| fault.to_string())?;
            let _ = std::fs::remove_dir(&dir);
            return Err(format!("cluster.sh hold: {status}; its reason is above"));
        }
        let pipe = guardian.stdin.take();
        Ok(Cluster {
            dir,
            kubectl,
            guardian,
            pipe,
        })
    }

    /// All of its state.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A `kubeconfig` of the administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// `kubectl ARGS` as the administrator.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Ended {
        self.kubectl_as(&self.kubeconfig(), args)
    }

    /// `kubectl ARGS` with a `kubeconfig`.
    pub(crate) fn kubectl_as(&self, kubeconfig: &Path, args: &[&str]) -> Ended {
        run(self.command(kubeconfig).args(args))
    }

    /// `kubectl ARGS` with `input`, for `-f -`.
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> Ended {
        let mut child = self
            .command(&self.kubeconfig())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let input = input.to_owned();
        // It may answer before it has read all.
        let writer = std::thread::spawn(move || {
            let _ = pipe.write_all(input.as_bytes());
        });
        let output = child.wait_with_output().unwrap();
        let _ = writer.join();
        Ended {
            success: output.status.success(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The answer of `kubectl ARGS -o json`.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let answer = self.kubectl(&[args, &["-o", "json"]].concat()).ok();
        serde_json::from_str(&answer).unwrap()
    }

    /// Creates or changes objects, given as YAML or JSON.
    pub(crate) fn apply(&self, manifest: &str) {
        let flags = ["apply", "--server-side", "-f", "-"];
        self.kubectl_with(&flags, manifest).ok();
    }

    fn command(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(kubeconfig);
        // What clients learn of the API is kept with the cluster that it is true of.
        command.arg("--cache-dir").arg(self.dir.join("kubectl"));
        command
    }

    /// Node objects with labels such as `pool=gpu`, Ready, without taints; their uids.
    pub(crate) fn create_nodes(&self, nodes: &[(&str, &[(&str, &str)])]) -> Vec<String> {
        let items: Vec<Value> = nodes
            .iter()
            .map(|(name, labels)| {
                let labels: serde_json::Map<String, Value> = labels
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), json!(value)))
                    .collect();
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        self.kubectl_with(&["create", "-f", "-"], &list).ok();
        let names: Vec<&str> = nodes.iter().map(|(name, _)| *name).collect();
        self.set_ready(&names, true);
        names
            .iter()
            .map(|name| {
                // A new node carries a taint until the controller manager has seen that it is ready. It looks at a node
                // when the node changes, and may have done so too early.
                let bare = |node: &Value| {
                    let taints = node["spec"]["taints"].as_array();
                    taints.is_none_or(Vec::is_empty)
                };
                let seen = (0..6).find_map(|_| {
                    let seen = self.watch_for("20s", &["node", name], bare).ok();
                    if seen.is_none() {
                        self.set_ready(&[name], true);
                    }
                    seen
                });
                let node = seen.unwrap_or_else(|| self.watch(&["node", name], bare));
                node["metadata"]["uid"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    /// What the kubelets of these nodes would report.
    pub(crate) fn set_ready(&self, nodes: &[&str], ready: bool) {
        let status = if ready { "True" } else { "False" };
        let now = jiff::Timestamp::now().to_string();
        for name in nodes {
            let condition = json!({
                "type": "Ready", "status": status, "reason": "Test", "message": "",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            });
            let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
            let status = json!({"conditions": [condition], "capacity": room, "allocatable": room});
            let patch = json!({ "status": status }).to_string();
            let flags = ["patch", "node", name, "--subresource=status", "-p", &patch];
            self.kubectl(&flags).ok();
        }
    }

    /// Deletes Node objects, and returns when they are gone.
    pub(crate) fn delete_nodes(&self, names: &[&str]) {
        self.kubectl(&[&["delete", "node"], names].concat()).ok();
    }

    /// A `kubeconfig` with a token of a service account, which is made if it is not there. A token bound to a node
    /// carries the name and uid of the node, as that of a pod on the node does.
    pub(crate) fn service_account(
        &self,
        namespace: &str,
        name: &str,
        node: Option<&str>,
    ) -> PathBuf {
        let account = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
        ]});
        self.apply(&account.to_string());
        let mut args = vec!["create", "token", name, "-n", namespace, "--duration=24h"];
        if let Some(node) = node {
            args.extend(["--bound-object-kind=Node", "--bound-object-name", node]);
        }
        let token = self.kubectl(&args).ok();
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(self.kubeconfig()).unwrap()).unwrap();
        config["users"][0]["user"]["token"] = json!(token.trim());
        let node = node.unwrap_or("unbound");
        let file = self
            .dir
            .join(format!("{namespace}.{name}.{node}.kubeconfig"));
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// Watches one object (`["node", "a"]`, `["prepull", "x", "-n", "y"]`) until `done`; the object as it was then.
    pub(crate) fn watch(&self, object: &[&str], done: impl Fn(&Value) -> bool) -> Value {
        self.watch_for(PATIENCE, object, done)
            .unwrap_or_else(|last| panic!("{object:?} did not come to be as expected: {last:#}"))
    }

    /// As [`Self::watch`], for so long; else the object as it was last.
    fn watch_for(
        &self,
        patience: &str,
        object: &[&str],
        done: impl Fn(&Value) -> bool,
    ) -> Result<Value, Value> {
        let timeout = format!("--request-timeout={patience}");
        let mut watching = self
            .command(&self.kubeconfig())
            .arg("get")
            .args(object)
            .args(["--watch", "-o", "json", &timeout])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut last = Value::Null;
        let states = BufReader::new(watching.stdout.take().unwrap());
        let mut found = false;
        for state in serde_json::Deserializer::from_reader(states).into_iter::<Value>() {
            let Ok(state) = state else { break };
            last = state;
            found = done(&last);
            if found {
                break;
            }
        }
        let _ = watching.kill();
        let _ = watching.wait();
        if found { Ok(last) } else { Err(last) }
    }

    /// `kubectl wait --for=FOR OBJECT`.
    pub(crate) fn wait_for(&self, what: &str, object: &[&str]) {
        let args = [&format!("--for={what}"), "--timeout", PATIENCE];
        self.kubectl(&[&["wait"], object, &args].concat()).ok();
    }

    /// SIGKILL to a part: `etcd`, `apiserver`, `controller-manager`, `scheduler`, `containerd`, `kubelet`.
    pub(crate) fn kill(&self, part: &str) {
        self.script("kill", &[part]);
    }

    /// Starts a part that was killed, and waits until it is ready.
    pub(crate) fn start_part(&self, part: &str) {
        self.script("start", &[part]);
    }

    /// Ends a part in good order and starts it again.
    pub(crate) fn restart(&self, part: &str) {
        self.script("restart", &[part]);
    }

    /// The answers of etcd take so much longer, until the result is dropped.
    pub(crate) fn slow_etcd(&self, delay: Duration) -> SlowEtcd<'_> {
        self.set_delay(delay);
        SlowEtcd(self)
    }

    fn set_delay(&self, delay: Duration) {
        let millis = delay.as_millis().to_string();
        run(script().arg("slow-etcd").arg(&self.dir).arg(millis)).ok();
    }

    fn script(&self, verb: &str, args: &[&str]) {
        run(script().arg(verb).args(args).arg(&self.dir)).ok();
    }

    /// A program as one more part, which ends with the cluster at the latest.
    pub(crate) fn run(&self, name: &str, command: &[&str]) {
        run(script().arg("run").arg(&self.dir).arg(name).args(command)).ok();
    }

    /// An image on the node whose only content is a program with its libraries.
    pub(crate) fn image(&self, name: &str, program: &str) {
        let mut image = script();
        run(image.arg("image").arg(&self.dir).args([name, program])).ok();
    }

    /// The name of its only node.
    pub(crate) fn node(&self) -> String {
        let nodes = self.json(&["get", "nodes"]);
        let name = nodes["items"][0]["metadata"]["name"].as_str();
        name.unwrap().to_owned()
    }

    /// The ids of its processes, by part.
    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        let status = run(script().arg("status").arg(&self.dir)).ok();
        status
            .lines()
            .filter_map(|line| {
                let (part, pid) = line.split_once('\t')?;
                Some((part.to_owned(), pid.parse().ok()?))
            })
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.guardian.wait();
    }
}

/// As long as it lives, etcd is slow.
pub(crate) struct SlowEtcd<'a>(&'a Cluster);

impl Drop for SlowEtcd<'_> {
    fn drop(&mut self) {
        self.0.set_delay(Duration::ZERO);
    }
}

/// `tests/bed/cluster.sh`.
pub(crate) fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/cluster.sh"))
}

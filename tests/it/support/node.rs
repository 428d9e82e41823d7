//! Agents and controllers as real processes, each on a folder of its own, and what they tell.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::process::{AgentProcess, agent_on, later, run};

/// Far more than anything takes; who waits longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(90);

/// An agent on a folder of its own.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    args: Vec<String>,
    pub(crate) agent: Option<AgentProcess>,
    /// Elsewhere than in `dir`.
    root: Option<PathBuf>,
    /// How far the clock of the next start is ahead.
    pub(crate) ahead: Duration,
}

impl Node {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), None, args)
    }

    /// In a folder that is there, with the store elsewhere.
    pub(crate) fn start_in(dir: tempfile::TempDir, root: Option<PathBuf>, args: &[&str]) -> Self {
        let mut node = Node {
            dir,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            agent: None,
            root,
            ahead: Duration::ZERO,
        };
        node.again();
        node
    }

    /// An agent of a Node of the API server.
    pub(crate) fn of(name: &str, kubeconfig: &Path) -> Self {
        Self::start(&[
            "--node-name",
            name,
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
        ])
    }

    pub(crate) fn again(&mut self) {
        let root = self.root.clone();
        let root = root.unwrap_or_else(|| self.dir.path().join("root"));
        let mut command = agent_on(self.dir.path(), &root);
        command.args(&self.args);
        if !self.ahead.is_zero() {
            command = later(&command, self.ahead);
        }
        let agent = AgentProcess::start_with(self.dir.path(), command)
            .unwrap_or_else(|(status, log)| panic!("the agent ended with {status}: {log}"));
        self.agent = Some(agent);
    }

    pub(crate) fn kill(&mut self) {
        self.agent.take().unwrap().kill();
    }

    pub(crate) fn log(&self) -> String {
        self.agent
            .as_ref()
            .map(AgentProcess::log)
            .unwrap_or_default()
    }

    pub(crate) fn larder(&self, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command
            .arg("--socket")
            .arg(self.dir.path().join("s.sock"))
            .args(args);
        run(&mut command).ok()
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.larder(&["status", "-o", "json"])).unwrap()
    }

    pub(crate) fn images(&self) -> Vec<Value> {
        serde_json::from_str(&self.larder(&["images", "-o", "json"])).unwrap()
    }

    /// What `/metrics` or `/readyz` answers.
    pub(crate) fn http(&self, path: &str) -> String {
        let log = self.log();
        let served = log.lines().find(|line| line.contains("probes served"));
        let line: Value = serde_json::from_str(served.unwrap()).unwrap();
        let address = find(&line, "http").unwrap().to_owned();
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// `larder status` once it is as expected.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let status = self.status();
            if done(&status) {
                return status;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{what}: {status:#}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A field of a line of a log, wherever it is.
fn find<'a>(line: &'a Value, key: &str) -> Option<&'a str> {
    match line.get(key) {
        Some(found) => found.as_str(),
        None => line
            .as_object()?
            .values()
            .find_map(|value| find(value, key)),
    }
}

/// `larder controller`, which ends with its test.
pub(crate) struct ControllerProcess {
    child: Child,
    dir: tempfile::TempDir,
}

impl ControllerProcess {
    pub(crate) fn start(kubeconfig: &Path) -> Self {
        Self::start_with(kubeconfig, None)
    }

    /// `hosts`: how registries are reached, one folder each.
    pub(crate) fn start_with(kubeconfig: &Path, hosts: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("hosts.d");
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command
            .arg("controller")
            .arg("--kubeconfig")
            .arg(kubeconfig);
        command.args(["--http", "127.0.0.1:0", "--log-format", "json"]);
        command.arg("--hosts-dir").arg(hosts.unwrap_or(&none));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        ControllerProcess { child, dir }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for ControllerProcess {
    /// In good order, so that the next one need not wait for the lease to end.
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// A folder of the manifests.
pub(crate) fn folder(name: &str) -> String {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    manifests.join(name).to_str().unwrap().to_owned()
}

/// All objects of an overlay of the manifests but its pods and kinds, for agents and controllers that are processes here.
pub(crate) fn objects(cluster: &Cluster, overlay: &str) -> String {
    let folder = folder(&format!("overlays/{overlay}"));
    let built = cluster.kubectl(&["kustomize", &folder]).ok();
    let objects: Vec<Value> = built
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document).unwrap())
        .filter(|object| {
            let kind = object["kind"].as_str().unwrap();
            !["DaemonSet", "Deployment", "CustomResourceDefinition"].contains(&kind)
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// The four kinds, as they are printed.
pub(crate) fn install(cluster: &Cluster) {
    let crds = run(Command::new(env!("CARGO_BIN_EXE_larder")).arg("crds")).ok();
    install_kinds(cluster, &crds);
}

/// The four kinds.
pub(crate) fn install_kinds(cluster: &Cluster, crds: &str) {
    cluster.apply(crds);
    for plural in [
        "clusterimageprepulls",
        "imageprepulls",
        "imageprunepolicies",
        "nodeimagecaches",
    ] {
        cluster.wait_for(
            "condition=Established",
            &["crd", &format!("{plural}.larder.dev")],
        );
    }
}

/// The report of a node, once it is as expected. There may be none yet, so there is nothing to watch.
pub(crate) async fn told(cluster: &Cluster, node: &str, done: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let found = cluster.kubectl(&["get", "nodeimagecache", node, "-o", "json"]);
        let found = match found.success {
            true => serde_json::from_str(&found.stdout).unwrap(),
            false => Value::Null,
        };
        if done(&found) {
            return found;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "the report of {node} is not as expected: {found:#}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What it says about one prepull.
pub(crate) fn reported<'a>(report: &'a Value, uid: &str) -> &'a Value {
    report["status"]["prepulls"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|prepull| prepull["uid"] == uid)
        .unwrap_or(&Value::Null)
}

//! A containerd of one's own, that runs containers where this machine can.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use larder::runtime::{self, RuntimeImages};
use serde_json::json;

use super::build::{BuiltImage, BuiltLayer, config, gzip};
use super::hub::Hub;
use super::{is_root, need, skip};

/// Repository and tag, at the hub, of what pods are started with.
const PAUSE: &str = "pause:1";

/// Ended with its test, its containers too.
pub(crate) struct Containerd {
    child: Option<Child>,
    root: PathBuf,
    pub(crate) socket: PathBuf,
}

/// Where a runtime learns that the hub speaks plain HTTP.
pub(crate) fn hosts(dir: &Path, hub: &Hub) -> PathBuf {
    let hosts = dir.join("hosts.d");
    let of_hub = hosts.join(&hub.host);
    std::fs::create_dir_all(&of_hub).unwrap();
    let text = format!("server = \"http://{}\"\n", hub.host);
    std::fs::write(of_hub.join("hosts.toml"), text).unwrap();
    hosts
}

impl Containerd {
    /// `None` where this machine has none: the test is skipped then. Pods are started with an image of the hub, if
    /// [`push_pause`] put it there.
    pub(crate) async fn start(test: &str, root: &Path, hub: &Hub) -> Option<Self> {
        let [containerd, runc] = need(test, ["containerd", "runc"])?;
        if !is_root() {
            skip(test, "containerd needs root");
            return None;
        }
        let socket = root.join("containerd.sock");
        let hosts = hosts(root, hub);
        let config = format!(
            "version = 3\nroot = '{root}/root'\nstate = '{root}/state'\n\
             [plugins.'io.containerd.server.v1.grpc']\naddress = '{socket}'\n\
             [plugins.'io.containerd.server.v1.ttrpc']\naddress = '{socket}.ttrpc'\n\
             [plugins.'io.containerd.shim.v1.manager']\nsocket_dir = '{root}/s'\n\
             [plugins.'io.containerd.internal.v1.opt']\npath = '{root}/opt'\n\
             [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{pause}'\n\
             [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{hosts}'\n\
             [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n\
             BinaryName = '{runc}'\nRoot = '{root}/runc'\nSystemdCgroup = false\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '{root}/cni'\n",
            root = root.display(),
            socket = socket.display(),
            hosts = hosts.display(),
            pause = hub.reference(PAUSE),
            runc = runc.display(),
        );
        std::fs::create_dir_all(root.join("cni")).unwrap();
        std::fs::write(root.join("config.toml"), config).unwrap();
        let log = std::fs::File::create(root.join("log")).unwrap();
        // It looks for its shim beside itself.
        let folder = containerd.parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new(&containerd)
            .arg("--config")
            .arg(root.join("config.toml"))
            .env("PATH", format!("{folder}:{path}"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut running = Containerd {
            child: Some(child),
            root: root.to_owned(),
            socket,
        };
        running.wait().await;
        Some(running)
    }

    async fn wait(&mut self) {
        let ready = async {
            // A client of its own each time: one that failed waits longer.
            while RuntimeImages::new(&self.socket, runtime::Metrics::default())
                .fs_info()
                .await
                .is_err()
            {
                let ended = self.child.as_mut().unwrap().try_wait().unwrap();
                let log = std::fs::read_to_string(self.root.join("log")).unwrap();
                assert!(ended.is_none(), "{ended:?}\n{log}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let ready = tokio::time::timeout(Duration::from_secs(60), ready);
        assert!(ready.await.is_ok(), "containerd never answered");
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = child.wait();
        }
    }

    /// What crictl says; its standard output on success.
    pub(crate) fn crictl(&self, args: &[&str]) -> Result<String, String> {
        let program = super::program("crictl").ok_or("crictl is not installed")?;
        let output = Command::new(program)
            .arg("--runtime-endpoint")
            .arg(format!("unix://{}", self.socket.display()))
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout).trim().to_owned())
        } else {
            Err(text(&output.stderr))
        }
    }

    /// Makes and starts a container of an image in a pod of its own, and returns its id.
    pub(crate) fn run(&self, name: &str, image: &str) -> Result<String, String> {
        let file = |kind: &str, text: serde_json::Value| {
            let path = self.root.join(format!("{name}-{kind}.json"));
            std::fs::write(&path, text.to_string()).unwrap();
            path.display().to_string()
        };
        let pod = json!({
            "metadata": { "name": name, "namespace": "team", "uid": name },
            "linux": {
                "cgroup_parent": "/larder-test",
                // The node's own, so that no CNI is needed.
                "security_context": { "namespace_options": { "network": 2 } },
            },
        });
        let container = json!({
            "metadata": { "name": "main" },
            "image": { "image": image },
            "linux": {},
        });
        let (pod, container) = (file("pod", pod), file("container", container));
        let sandbox = self.crictl(&["runp", &pod])?;
        let id = self.crictl(&["create", "--no-pull", &sandbox, &container, &pod])?;
        self.crictl(&["start", &id])?;
        Ok(id)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.crictl(&["rmp", "--force", "--all"]);
        }
        self.stop();
    }
}

/// An image that runs until it is stopped, with a file of its own.
pub(crate) fn sleeper(own: &[u8]) -> Option<BuiltImage> {
    let mut files = tar::Builder::new(Vec::new());
    let program = std::fs::read(super::program("busybox")?).unwrap();
    for (path, content, mode) in [("bin/sleep", &program[..], 0o755), ("own", own, 0o644)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        files.append_data(&mut header, path, content).unwrap();
    }
    let layer: BuiltLayer = gzip(&files.into_inner().unwrap());
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let mut config = config(architecture, &[&layer.diff_id]);
    config["config"] = json!({ "Entrypoint": ["/bin/sleep", "2147483647"] });
    Some(BuiltImage::with_config(&[layer], &config))
}

/// Puts the image that pods are started with on the hub.
pub(crate) fn push_pause(hub: &Hub) -> Option<BuiltImage> {
    let image = sleeper(b"pause")?;
    hub.push("pause", "1", &image);
    Some(image)
}

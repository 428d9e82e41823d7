//! A real containerd with larder as its proxy snapshotter, and pods on it that need no network of their own.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::build::{BuiltImage, BuiltLayer, gzip};
use super::process::{Ended, run};
use super::{can_mount_erofs, is_root, need, skip};

/// Far more than anything takes; who waits longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it needs, or a notice that the test was skipped.
pub(crate) struct Programs {
    containerd: PathBuf,
    ctr: PathBuf,
    crictl: PathBuf,
    runc: PathBuf,
    busybox: PathBuf,
}

pub(crate) fn programs(test: &str) -> Option<Programs> {
    let names = [
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "crictl",
        "runc",
        "busybox",
    ];
    let [containerd, _, ctr, crictl, runc, busybox] = need(test, names)?;
    if !is_root() {
        skip(test, "containerd needs root");
        return None;
    }
    if let Err(reason) = can_mount_erofs() {
        skip(test, &reason);
        return None;
    }
    Some(Programs {
        containerd,
        ctr,
        crictl,
        runc,
        busybox,
    })
}

impl Programs {
    /// A layer with a shell.
    pub(crate) fn shell(&self) -> BuiltLayer {
        shell(&self.busybox)
    }
}

/// A layer with a shell, which is this program.
pub(crate) fn shell(busybox: &Path) -> BuiltLayer {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mtime(1_700_000_000);
    header.set_mode(0o755);
    for folder in ["bin", "tmp", "etc", "proc", "sys", "dev"] {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(if folder == "tmp" { 0o1777 } else { 0o755 });
        tar.append_data(&mut header, folder, std::io::empty())
            .unwrap();
    }
    let program = fs::read(busybox).unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    tar.append_data(&mut header, "bin/busybox", program.as_slice())
        .unwrap();
    for applet in [
        "sh", "sleep", "cat", "ls", "find", "stat", "dd", "echo", "rm",
    ] {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let path = format!("bin/{applet}");
        tar.append_link(&mut header, path, "busybox").unwrap();
    }
    gzip(&tar.into_inner().unwrap())
}

/// An image that runs a command.
pub(crate) fn runs(layers: &[BuiltLayer], command: &[&str]) -> BuiltImage {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "os": "linux",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "config": { "Env": ["PATH=/bin"], "Entrypoint": command },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    BuiltImage::with_config(layers, &config)
}

/// containerd on a folder of its own. All that it started goes with it.
pub(crate) struct Containerd {
    programs: Programs,
    child: Option<Child>,
    dir: PathBuf,
    /// Name of the control group of its pods, which nobody else uses.
    group: String,
}

impl Containerd {
    /// `sandbox`: the image of pods' sandboxes; `larder`: the agent's socket.
    pub(crate) fn start(programs: Programs, dir: &Path, sandbox: &str, larder: &Path) -> Self {
        let mut containerd = Self::configured(programs, dir, sandbox, larder);
        containerd.again();
        containerd
    }

    /// With a configuration that says nothing of larder; not started yet.
    pub(crate) fn without_larder(programs: Programs, dir: &Path, sandbox: &str) -> Self {
        let containerd = Self::configured(programs, dir, sandbox, Path::new("larder.sock"));
        let config = fs::read_to_string(containerd.config()).unwrap();
        let ours = [
            "[[plugins.'io.containerd.transfer.v1.local'",
            "[proxy_plugins.larder]",
        ];
        let end = ours.iter().filter_map(|table| config.find(table)).min();
        let lines = config.get(..end.unwrap()).unwrap().lines();
        let lines =
            lines.filter(|line| !line.starts_with("config_path") && !line.ends_with("'larder'"));
        let lines: Vec<&str> = lines.collect();
        fs::write(containerd.config(), lines.join("\n")).unwrap();
        containerd
    }

    fn configured(programs: Programs, dir: &Path, sandbox: &str, larder: &Path) -> Self {
        let version = run(Command::new(&programs.containerd).arg("--version")).ok();
        let config = if version.contains(" v1.") || version.contains(" 1.") {
            config_of_1(&programs, dir, sandbox, larder)
        } else {
            config_of_2(&programs, dir, sandbox, larder)
        };
        fs::create_dir_all(dir.join("cni")).unwrap();
        fs::write(dir.join("config.toml"), config).unwrap();
        let name = dir.file_name().unwrap().to_string_lossy();
        Containerd {
            programs,
            child: None,
            group: format!("larder-it{}", name.replace('.', "-")),
            dir: dir.to_owned(),
        }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Starts it, or starts it anew after it was killed.
    pub(crate) fn again(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("containerd.log"))
            .unwrap();
        let programs = self.programs.containerd.parent().unwrap();
        let path = format!(
            "{}:{}",
            programs.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let child = Command::new(&self.programs.containerd)
            .arg("--config")
            .arg(self.config())
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
        self.until("it answers", |containerd| {
            containerd.try_crictl(&["version"]).success
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default()
    }

    /// SIGKILL; its shims and containers run on.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// In the namespace of CRI.
    pub(crate) fn ctr(&self, args: &[&str]) -> Ended {
        self.ctr_in("k8s.io", args)
    }

    pub(crate) fn ctr_in(&self, namespace: &str, args: &[&str]) -> Ended {
        let mut command = Command::new(&self.programs.ctr);
        command.arg("--address").arg(self.socket());
        command.args(["--namespace", namespace]).args(args);
        run(&mut command)
    }

    pub(crate) fn try_crictl(&self, args: &[&str]) -> Ended {
        let endpoint = format!("unix://{}", self.socket().display());
        let mut command = Command::new(&self.programs.crictl);
        command.args(["-r", &endpoint, "-i", &endpoint, "-t", "60s"]);
        run(command.args(args))
    }

    pub(crate) fn crictl(&self, args: &[&str]) -> String {
        let ended = self.try_crictl(args);
        assert!(
            ended.success,
            "crictl {args:?}: {}\n{}",
            ended.stderr,
            self.log()
        );
        ended.stdout.trim().to_owned()
    }

    /// References of the images that CRI lists.
    pub(crate) fn images(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.crictl(&["images", "-o", "json"])).unwrap();
        let images = list["images"].as_array().unwrap().iter();
        images
            .flat_map(|image| image["repoTags"].as_array().unwrap().clone())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until something holds.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            let ended = self.child.as_mut().map(|child| child.try_wait().unwrap());
            assert_eq!(ended, Some(None), "{what}: {}", self.log());
            assert!(started.elapsed() < PATIENCE, "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A pod with one container; their ids.
    pub(crate) fn pod(&self, name: &str, image: &str) -> (String, String) {
        let sandbox = json!({
            "metadata": { "name": name, "uid": name, "namespace": "it" },
            "log_directory": self.dir.join("logs"),
            "linux": {
                "cgroup_parent": format!("/{}", self.group),
                "security_context": { "namespace_options": { "network": 2 } },
            },
        });
        let container = json!({
            "metadata": { "name": "c" },
            "image": { "image": image },
            "log_path": format!("{name}.log"),
            "linux": {},
        });
        let file = |kind: &str, value: &Value| {
            let path = self.dir.join(format!("{name}-{kind}.json"));
            fs::write(&path, value.to_string()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (sandbox, container) = (file("pod", &sandbox), file("container", &container));
        let pod = self.crictl(&["runp", &sandbox]);
        let made = self.crictl(&["create", "--no-pull", &pod, &container, &sandbox]);
        self.crictl(&["start", &made]);
        (pod, made)
    }

    /// The snapshot that a container's own stands on.
    pub(crate) fn parent(&self, container: &str) -> String {
        let list = ["snapshots", "--snapshotter", "larder", "ls"];
        let list = self.ctr(&list).ok();
        let mut rows = list.lines().map(|line| line.split_whitespace());
        let own = rows.find_map(|mut row| {
            let (key, parent) = (row.next()?, row.next()?);
            (key == container).then(|| parent.to_owned())
        });
        own.unwrap()
    }

    /// What a command prints in a container.
    pub(crate) fn exec(&self, container: &str, script: &str) -> String {
        self.crictl(&["exec", container, "/bin/sh", "-c", script])
    }

    /// The root of a running container, as the host has it mounted.
    pub(crate) fn rootfs(&self, container: &str) -> PathBuf {
        self.dir
            .join("run/io.containerd.runtime.v2.task/k8s.io")
            .join(container)
            .join("rootfs")
    }

    /// Ends every process that it started, and unmounts all that is mounted below its folder: what a reboot does.
    pub(crate) fn lose_everything(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for kill in [self.shims(), self.members()] {
            for pid in kill {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let started = Instant::now();
        while !self.members().is_empty() || !self.shims().is_empty() {
            assert!(started.elapsed() < PATIENCE, "its processes do not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        for at in self.mounts().into_iter().rev() {
            let _ = unmount(&at, UnmountFlags::DETACH);
        }
    }

    fn shims(&self) -> Vec<Pid> {
        let socket = self.socket().display().to_string();
        pids(|folder| {
            let line = fs::read(folder.join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words
                .next()
                .is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"))
                && words.any(|word| word == socket.as_bytes())
        })
    }

    /// Processes of its pods.
    fn members(&self) -> Vec<Pid> {
        let group = format!(":/{}/", self.group);
        pids(|folder| {
            let groups = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
            groups.contains(&group)
        })
    }

    /// Mount points below its folder, in the order of mounting.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .map(PathBuf::from)
            .filter(|at| at.starts_with(&self.dir))
            .collect()
    }
}

fn config_of_2(programs: &Programs, dir: &Path, sandbox: &str, larder: &Path) -> String {
    format!(
        "version = 3\nroot = '{dir}/containerd'\nstate = '{dir}/run'\n\
         [plugins.'io.containerd.server.v1.grpc']\naddress = '{dir}/c.sock'\n\
         [plugins.'io.containerd.server.v1.ttrpc']\naddress = '{dir}/c.sock.ttrpc'\n\
         [plugins.'io.containerd.shim.v1.manager']\nsocket_dir = '{dir}/s'\n\
         [plugins.'io.containerd.internal.v1.opt']\npath = '{dir}/opt'\n\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
         [plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'larder'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{sandbox}'\n\
         [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{dir}/hosts.d'\n\
         [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '{dir}/cni'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n\
         BinaryName = '{runc}'\nRoot = '{dir}/runc'\nSystemdCgroup = false\n\
         [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux'\nsnapshotter = 'larder'\n\
         [proxy_plugins.larder]\ntype = 'snapshot'\naddress = '{larder}'\ncapabilities = ['remap-ids']\n\
         [proxy_plugins.larder.exports]\nroot = '{dir}/root'\n",
        dir = dir.display(),
        runc = programs.runc.display(),
        larder = larder.display(),
    )
}

/// Of containerd 1.7, for who has it in place of the newer one (`LARDER_BED`).
fn config_of_1(programs: &Programs, dir: &Path, sandbox: &str, larder: &Path) -> String {
    format!(
        "version = 2\nroot = '{dir}/containerd'\nstate = '{dir}/run'\n\
         [grpc]\naddress = '{dir}/c.sock'\n\
         [plugins.'io.containerd.internal.v1.opt']\npath = '{dir}/opt'\n\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
         [plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = '{sandbox}'\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '{dir}/hosts.d'\n\
         [plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '{dir}/cni'\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'larder'\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\n\
         BinaryName = '{runc}'\nRoot = '{dir}/runc'\nSystemdCgroup = false\n\
         [proxy_plugins.larder]\ntype = 'snapshot'\naddress = '{larder}'\ncapabilities = ['remap-ids']\n\
         [proxy_plugins.larder.exports]\nroot = '{dir}/root'\n",
        dir = dir.display(),
        runc = programs.runc.display(),
        larder = larder.display(),
    )
}

/// Processes whose folder below `/proc` is as wanted.
fn pids(wanted: impl Fn(&Path) -> bool) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| wanted(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log());
        }
        self.lose_everything();
        remove_control_groups(&self.group);
    }
}

/// Removes a control group of this name and those below it, wherever it is.
pub(crate) fn remove_control_groups(name: &str) {
    for hierarchy in fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        remove_groups(&hierarchy.path().join(name));
    }
    remove_groups(&Path::new("/sys/fs/cgroup").join(name));
}

/// A control group goes when those in it are gone, and the kernel may hold one for a moment.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    let started = Instant::now();
    while group.exists() && fs::remove_dir(group).is_err() && started.elapsed() < PATIENCE / 6 {
        std::thread::sleep(Duration::from_millis(10));
    }
}

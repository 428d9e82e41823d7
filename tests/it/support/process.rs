//! Real processes: the agent and a registry, each of which ends with its test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::build::{BuiltImage, MANIFEST};

/// Far more than anything takes; who waits longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// `larder agent` on a folder of its own.
pub(crate) struct AgentProcess {
    child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

/// A command for an agent on `dir/root` and `dir/s.sock`, with `dir/hosts.d`.
pub(crate) fn agent_command(dir: &Path) -> Command {
    agent_on(dir, &dir.join("root"))
}

/// As [`agent_command`], on another root.
pub(crate) fn agent_on(dir: &Path, root: &Path) -> Command {
    agent_with_logs(dir, root, "json")
}

/// As [`agent_on`], with logs of this form.
pub(crate) fn agent_with_logs(dir: &Path, root: &Path, format: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("agent");
    command.arg("--root").arg(root);
    for (flag, name) in [("--socket", "s.sock"), ("--hosts-dir", "hosts.d")] {
        command.arg(flag).arg(dir.join(name));
    }
    command.args(["--http", "127.0.0.1:0", "--log-format", format]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // What the tester's own shell has must not count.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command
}

/// The same command by a clock that is so much ahead, and that no wall clock shows; needs root.
pub(crate) fn later(command: &Command, by: Duration) -> Command {
    let mut later = Command::new("unshare");
    later.args(["--time", "--monotonic", &by.as_secs().to_string()]);
    later.args(["--fork", "--kill-child", "--"]);
    later.arg(command.get_program()).args(command.get_args());
    later.stdin(Stdio::null()).stdout(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => later.env(name, value),
            None => later.env_remove(name),
        };
    }
    later
}

impl AgentProcess {
    /// Starts an agent and waits until it says that it is ready.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, agent_command(dir)).unwrap_or_else(|(status, log)| {
            panic!("the agent ended with {status} before it was ready: {log}")
        })
    }

    /// As [`Self::start`]; the status and log of an agent that ends instead.
    pub(crate) fn start_with(
        dir: &Path,
        mut command: Command,
    ) -> Result<Self, (ExitStatus, String)> {
        let notify = dir.join("notify");
        let _ = std::fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify).unwrap();
        ready
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let log = dir.join("agent.log");
        let mut child = command
            .env("NOTIFY_SOCKET", &notify)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let mut buffer = [0; 64];
        loop {
            match ready.recv(&mut buffer) {
                Ok(len) if buffer.get(..len) == Some(b"READY=1") => break,
                Ok(_) | Err(_) => {}
            }
            if let Some(status) = child.try_wait().unwrap() {
                return Err((status, std::fs::read_to_string(&log).unwrap_or_default()));
            }
            if started.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!(
                    "the agent is not ready after {PATIENCE:?}: {}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
        }
        Ok(AgentProcess {
            child,
            socket: dir.join("s.sock"),
            log,
        })
    }

    /// As tools take it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how long it took to end with status 0.
    pub(crate) fn terminate(mut self) -> Duration {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}: {}", self.log());
                return asked.elapsed();
            }
            assert!(
                asked.elapsed() < PATIENCE,
                "the agent does not end: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The registry server of the distribution project, on loopback, with its files in a folder.
pub(crate) struct Distribution {
    child: Child,
    pub(crate) host: String,
}

impl Distribution {
    pub(crate) fn start(program: &Path, dir: &Path) -> Self {
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            dir.join("registry").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let host = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("the registry ended"))
                .unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address = rest.split(['"', ' ', ',']).next().unwrap_or_default();
                break address.to_owned();
            }
        };
        // It logs every request, and stops when nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        Distribution { child, host }
    }

    /// `host/repository:tag`.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    /// All of an image, under tags.
    pub(crate) async fn push(&self, repository: &str, tags: &[&str], image: &BuiltImage) {
        // Once per process; a second call finds it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://{}/v2/{repository}", self.host);
        let blobs = image
            .layers
            .iter()
            .map(|layer| (layer.digest.clone(), layer.blob.clone()))
            .chain([(image.id(), image.config.clone())]);
        for (digest, bytes) in blobs {
            let begun = client.post(format!("{base}/blobs/uploads/")).send().await;
            let begun = begun.unwrap().error_for_status().unwrap();
            let place = begun.headers()["location"].to_str().unwrap();
            let joint = if place.contains('?') { '&' } else { '?' };
            let put = client
                .put(format!("{place}{joint}digest={digest}"))
                .header("content-type", "application/octet-stream")
                .body(bytes);
            put.send().await.unwrap().error_for_status().unwrap();
        }
        for tag in tags {
            let put = client
                .put(format!("{base}/manifests/{tag}"))
                .header("content-type", MANIFEST)
                .body(image.manifest.clone());
            put.send().await.unwrap().error_for_status().unwrap();
        }
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A finished program.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ended {
        success: output.status.success(),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ended {
    /// What it printed, if it succeeded.
    pub(crate) fn ok(self) -> String {
        assert!(self.success, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// What it complained about, if it failed.
    pub(crate) fn failure(self) -> String {
        assert!(!self.success, "{}", self.stdout);
        self.stderr
    }
}

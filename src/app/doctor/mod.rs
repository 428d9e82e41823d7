//! What of this machine does not suit larder, and what to change. Reads, and changes nothing: the kernel's tables, the
//! configuration of containerd and of the kubelet, registries' hosts.toml, the agent's socket, the disk.
//!
//! [`gather`] looks; `checks` decides.

mod checks;
mod containerd;
mod gather;
mod kubelet;
mod mirror;

pub use gather::{Options, gather};

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::machine::Read;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less than there could be.
    Warn,
    /// It does not work.
    Bad,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, message: impl Into<String>) -> Self {
        Finding {
            check,
            verdict,
            message: message.into(),
            remedy: None,
        }
    }

    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, message)
    }

    fn warn(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding {
            remedy: Some(remedy.into()),
            ..Self::new(check, Verdict::Warn, message)
        }
    }

    fn bad(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding {
            remedy: Some(remedy.into()),
            ..Self::new(check, Verdict::Bad, message)
        }
    }
}

/// Everything that is decided upon.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Why the agent's configuration cannot be used.
    config: Option<String>,
    root: PathBuf,
    socket: PathBuf,
    pinned: Vec<String>,
    /// The agent asks containerd what to pin.
    follows: bool,
    superuser: bool,
    /// `uname -r`.
    kernel: String,
    /// `/proc/filesystems`.
    filesystems: String,
    /// Modules of file systems that could be loaded.
    modules: Vec<&'static str>,
    /// Type of the file system with the root, or with the nearest folder above it.
    root_type: String,
    /// Whether what is mounted there is seen elsewhere.
    root_shared: bool,
    disk: Option<Disk>,
    agent: Agent,
    /// HOST folders with what is wrong with them.
    hosts: Vec<(PathBuf, Option<String>)>,
    containerd: Option<Containerd>,
    /// containerd's `hosts.toml` files.
    registries: Vec<Read>,
    /// The agent's mirror, or where it would be.
    mirror: Option<Mirror>,
    kubelet: Option<Kubelet>,
}

/// A file system.
#[derive(Clone, Copy, Debug)]
struct Disk {
    capacity: u64,
    available: u64,
    /// 0 where there is no such limit.
    inodes: u64,
    inodes_available: u64,
}

/// The mirror that container runtimes pull through.
#[derive(Clone, Copy, Debug)]
struct Mirror {
    address: SocketAddr,
    /// By the agent's configuration.
    wanted: bool,
    /// Somebody listens there.
    answers: bool,
}

/// What is at the agent's socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Agent {
    #[default]
    Absent,
    /// Somebody answers, or nobody.
    Socket { mode: u32, answers: bool },
    /// We may not know.
    Unknown(String),
}

/// A containerd of this machine.
#[derive(Clone, Debug, Default)]
struct Containerd {
    /// As it says itself.
    version: Option<String>,
    /// Its configuration; what it imports comes after.
    files: Vec<Read>,
}

/// A kubelet of this machine.
#[derive(Clone, Debug, Default)]
struct Kubelet {
    /// Its command line.
    args: Vec<String>,
    /// Its configuration; later files count more.
    files: Vec<Read>,
}

/// What to say of these facts.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = checks::machine(facts);
    let image_service = kubelet::image_service(facts);
    findings.extend(containerd::check(facts, &image_service));
    findings.extend(kubelet::check(facts, &image_service));
    findings
}

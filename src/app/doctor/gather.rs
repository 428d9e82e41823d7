//! Looks at the machine, and changes nothing. Blocking.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Agent, Containerd, Disk, Facts, Kubelet, Mirror};
use crate::app::config::{AgentArgs, Config, ROOT, SOCKET};
use crate::app::machine::{
    self, Read, ask_version, command_line, containerd, flag, matching, read,
};
use crate::app::setup::{CERTS_DIR, MIRROR, config_paths};
use crate::cri::mount_point;
use crate::registry::check_hosts;

/// Files that a kubelet's configuration may consist of, and hosts that are looked at.
const MAX_FILES: usize = 64;
const MAX_HOSTS: usize = 1024;
/// Whoever listens on this machine answers within it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where to look, if not where things usually are.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The agent's settings, as it is started.
    pub agent: AgentArgs,
    /// Configuration of containerd.
    pub containerd_config: Option<PathBuf>,
    /// Configuration of the kubelet.
    pub kubelet_config: Option<PathBuf>,
}

/// Looks. Needs a tokio runtime for one question to containerd.
pub async fn gather(options: Options) -> Facts {
    let looking = tokio::task::spawn_blocking(move || look(&options));
    // It ends only with a panic otherwise, and then there is nothing to tell.
    let (mut facts, socket) = looking.await.unwrap_or_default();
    if let (Some(containerd), Some(socket)) = (&mut facts.containerd, socket) {
        containerd.version = ask_version(&socket).await;
    }
    facts
}

fn look(options: &Options) -> (Facts, Option<PathBuf>) {
    let (config, fault) = match Config::load(&options.agent) {
        Ok(config) => (Some(config), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let root = match &config {
        Some(config) => config.root.clone(),
        None => PathBuf::from(ROOT),
    };
    let place = existing(&root);
    let (root_type, root_shared) = mount(&mount_point(&place));
    let disk = rustix::fs::statvfs(&place).ok().map(|stat| Disk {
        capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_available: stat.f_favail,
    });
    let socket = match &config {
        Some(config) => config.socket.clone(),
        None => PathBuf::from(SOCKET),
    };
    let containerd = containerd(options.containerd_config.as_deref());
    let facts = Facts {
        mirror: Some(mirror(config.as_ref())),
        agent: at_socket(&socket),
        hosts: config
            .as_ref()
            .map(|config| hosts(&config.cache.hosts_dirs))
            .unwrap_or_default(),
        follows: config
            .as_ref()
            .is_some_and(|config| config.containerd.is_some()),
        pinned: config.map(|config| config.cache.pinned).unwrap_or_default(),
        config: fault,
        root,
        socket,
        superuser: rustix::process::geteuid().is_root(),
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        filesystems: fs::read_to_string("/proc/filesystems").unwrap_or_default(),
        modules: ["erofs", "overlay"]
            .into_iter()
            .filter(|name| is_module(name))
            .collect(),
        root_type,
        root_shared,
        disk,
        kubelet: kubelet(options),
        registries: registries(containerd.as_ref()),

        containerd: containerd.as_ref().map(|containerd| Containerd {
            version: None,
            files: containerd.files.clone(),
        }),
    };
    (facts, containerd.map(|containerd| containerd.socket))
}

/// containerd's hosts.toml files.
fn registries(containerd: Option<&machine::Containerd>) -> Vec<Read> {
    let Some(containerd) = containerd else {
        return Vec::new();
    };
    let tables = containerd.files.iter().filter_map(|(_, text)| {
        let text = text.as_ref().ok()?;
        text.parse::<toml::Table>().ok()
    });
    let mut dirs: Vec<PathBuf> = tables.flat_map(|table| config_paths(&table)).collect();
    if dirs.is_empty() {
        dirs.push(PathBuf::from(CERTS_DIR));
    }
    dirs.sort();
    dirs.dedup();
    let folders = dirs
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten();
    let mut files: Vec<PathBuf> = folders
        .filter_map(|entry| Some(entry.ok()?.path().join("hosts.toml")))
        .filter(|path| path.exists())
        .take(MAX_HOSTS)
        .collect();
    files.sort();
    files.iter().map(|path| read(path)).collect()
}

fn mirror(config: Option<&Config>) -> Mirror {
    let own = config.and_then(|config| config.mirror.as_ref());
    let address = own.map_or(MIRROR, |mirror| mirror.address);
    Mirror {
        address,
        wanted: own.is_some(),
        answers: TcpStream::connect_timeout(&address, PATIENCE).is_ok(),
    }
}

/// The folder, or the nearest above it that exists.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|path| path.is_dir());
    found.unwrap_or(Path::new("/")).to_owned()
}

/// Type of the file system at a mount point, and whether its mounts are shared (proc(5), mountinfo).
fn mount(point: &Path) -> (String, bool) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The last one is on top.
    let of_point = |line: &&str| line.split(' ').nth(4) == point.to_str();
    let Some(line) = table.lines().rev().find(of_point) else {
        return (String::new(), false);
    };
    let (before, after) = line.split_once(" - ").unwrap_or((line, ""));
    let kind = after.split(' ').next().unwrap_or_default().to_owned();
    let shared = before
        .split(' ')
        .skip(6)
        .any(|field| field.starts_with("shared:"));
    (kind, shared)
}

/// Whether the running kernel could load it; the file's name may have a compression at its end.
fn is_module(name: &str) -> bool {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let folder = Path::new("/lib/modules")
        .join(release)
        .join("kernel/fs")
        .join(name);
    ["ko", "ko.xz", "ko.zst", "ko.gz"]
        .iter()
        .any(|end| folder.join(format!("{name}.{end}")).exists())
}

fn at_socket(socket: &Path) -> Agent {
    let found = match fs::metadata(socket) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Agent::Absent,
        Err(error) => return Agent::Unknown(error.to_string()),
    };
    let answers = match UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Agent::Unknown(error.to_string());
        }
        Err(_) => false,
    };
    Agent::Socket {
        mode: found.permissions().mode() & 0o7777,
        answers,
    }
}

fn hosts(dirs: &[PathBuf]) -> Vec<(PathBuf, Option<String>)> {
    let folders = dirs
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten();
    let folders = folders.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut found: Vec<_> = folders
        .filter(|folder| folder.join("hosts.toml").exists())
        .take(MAX_HOSTS)
        .map(|folder| {
            let name = folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            // As containerd writes a port where a colon cannot be.
            let domain = match name
                .strip_suffix('_')
                .and_then(|name| name.rsplit_once('_'))
            {
                Some((host, port)) if !host.is_empty() => format!("{host}:{port}"),
                _ => name,
            };
            let parent = folder.parent().map(Path::to_owned).unwrap_or_default();
            let fault = check_hosts(&[parent], &domain).err();
            (folder, fault.map(|error| error.to_string()))
        })
        .collect();
    found.sort();
    found
}

fn kubelet(options: &Options) -> Option<Kubelet> {
    let args = command_line("kubelet");
    let running = args.is_some();
    let args = args.unwrap_or_default();
    let config = options
        .kubelet_config
        .clone()
        .or_else(|| flag(&args, &["--config"]));
    let mut files = Vec::new();
    match config {
        Some(config) => files.push(read(&config)),
        None if running => {}
        None => {
            let usual = PathBuf::from("/var/lib/kubelet/config.yaml");
            if !usual.exists() {
                return None;
            }
            files.push(read(&usual));
        }
    }
    if let Some(folder) = flag(&args, &["--config-dir"]) {
        let drop_ins = matching(&folder.join("*.conf"));
        files.extend(drop_ins.iter().take(MAX_FILES).map(|path| read(path)));
    }
    Some(Kubelet { args, files })
}

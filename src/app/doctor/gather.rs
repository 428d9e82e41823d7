//! Looks at the machine, and changes nothing. Blocking.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use super::{Agent, Containerd, Disk, Facts, Kubelet, Read};
use crate::app::config::{AgentArgs, Config, ROOT, RUNTIME_ENDPOINT, SOCKET};
use crate::cri::mount_point;
use crate::cri::proto::{VersionRequest, VersionResponse};
use crate::registry::check_hosts;

/// Bytes of a configuration file that are read.
const MAX_FILE: u64 = 1 << 20;
/// Files that one configuration may consist of, hosts that are looked at, and processes.
const MAX_FILES: usize = 64;
const MAX_HOSTS: usize = 1024;
const MAX_PROCESSES: usize = 1 << 16;
/// A runtime that takes longer has other worries.
const PATIENCE: Duration = Duration::from_secs(2);

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
        let asked = tokio::time::timeout(PATIENCE, ask_version(&socket)).await;
        containerd.version = asked.ok().flatten();
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
    let containerd = containerd(options);
    let facts = Facts {
        agent: at_socket(&socket),
        hosts: config
            .as_ref()
            .map(|config| hosts(&config.cache.hosts_dirs))
            .unwrap_or_default(),
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
        containerd: containerd
            .as_ref()
            .map(|(containerd, _)| containerd.clone()),
    };
    (facts, containerd.map(|(_, socket)| socket))
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

/// The command line of a running program of this name.
fn command_line(name: &str) -> Option<Vec<String>> {
    let processes = fs::read_dir("/proc").ok()?.take(MAX_PROCESSES).flatten();
    for process in processes {
        let folder = process.path();
        let called = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        if called.trim_end() != name {
            continue;
        }
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let args = line.split(|byte| *byte == 0).filter(|arg| !arg.is_empty());
        return Some(
            args.map(|arg| String::from_utf8_lossy(arg).into_owned())
                .collect(),
        );
    }
    None
}

/// The value of the last of these flags.
fn flag(args: &[String], names: &[&str]) -> Option<PathBuf> {
    let mut found = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.split_once('=') {
            Some((name, value)) if names.contains(&name) => found = Some(value.into()),
            None if names.contains(&arg.as_str()) => found = args.next().map(PathBuf::from),
            _ => {}
        }
    }
    found
}

fn read(path: &Path) -> Read {
    let text = fs::File::open(path).and_then(|file| {
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text)?;
        Ok(text)
    });
    (path.to_owned(), text.map_err(|error| error.to_string()))
}

fn containerd(options: &Options) -> Option<(Containerd, PathBuf)> {
    let args = command_line("containerd");
    let running = args.is_some();
    let args = args.unwrap_or_default();
    let config = options
        .containerd_config
        .clone()
        .or_else(|| flag(&args, &["--config", "-c"]))
        .unwrap_or_else(|| PathBuf::from("/etc/containerd/config.toml"));
    if !running && options.containerd_config.is_none() && !config.exists() {
        return None;
    }
    let mut files = Vec::new();
    // One that runs without a file has its defaults.
    if config.exists() || options.containerd_config.is_some() {
        files.push(read(&config));
        files.extend(imports(&config, &files));
    }
    let socket = flag(&args, &["--address", "-a"]).or_else(|| address(&files));
    let socket = socket.unwrap_or_else(|| PathBuf::from(RUNTIME_ENDPOINT));
    let containerd = Containerd {
        version: None,
        files,
    };
    Some((containerd, socket))
}

/// The files that a configuration imports, as far as stars in their names go.
fn imports(config: &Path, files: &[Read]) -> Vec<Read> {
    let mut found = Vec::new();
    for table in files.iter().filter_map(table) {
        let imports = table.get("imports").and_then(toml::Value::as_array);
        for pattern in imports
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_str)
        {
            let folder = config.parent().unwrap_or(Path::new("/"));
            found.extend(matching(&folder.join(pattern)));
        }
    }
    found.truncate(MAX_FILES);
    found.iter().map(|path| read(path)).collect()
}

fn table((_, text): &Read) -> Option<toml::Table> {
    text.as_ref().ok()?.parse().ok()
}

/// Files that a path means whose last part may have one star; sorted.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let Some((beginning, end)) = name.split_once('*') else {
        return vec![pattern.to_owned()];
    };
    let entries = pattern
        .parent()
        .and_then(|folder| fs::read_dir(folder).ok());
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.strip_prefix(beginning)
                .is_some_and(|rest| rest.ends_with(end))
        })
        .collect();
    found.sort();
    found
}

/// Where it serves, by its configuration.
fn address(files: &[Read]) -> Option<PathBuf> {
    let tables = files.iter().filter_map(table);
    let of = |table: &toml::Table| {
        let old = table.get("grpc");
        let plugins = table
            .get("plugins")
            .and_then(|plugins| plugins.get("io.containerd.server.v1.grpc"));
        let address = plugins.or(old)?.get("address")?.as_str()?;
        Some(PathBuf::from(address))
    };
    tables.filter_map(|table| of(&table)).next_back()
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

/// What the runtime says of itself.
async fn ask_version(socket: &Path) -> Option<String> {
    // Whoever may not open it does not wait for it.
    fs::metadata(socket)
        .ok()
        .filter(|found| found.nlink() > 0)?;
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            tokio::net::UnixStream::connect(socket)
                .await
                .map(TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .ok()?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.ok()?;
    let request = tonic::Request::new(VersionRequest::default());
    let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/Version");
    let codec: ProstCodec<VersionRequest, VersionResponse> = ProstCodec::default();
    let answer = client.unary(request, path, codec).await.ok()?.into_inner();
    Some(format!(
        "{} {}",
        answer.runtime_name, answer.runtime_version
    ))
}

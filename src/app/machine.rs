//! The programs of this machine that larder works with, and the files that configure them. Reads, and changes nothing.
//! Blocking, but for the one question to containerd.

use std::collections::VecDeque;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use super::config::RUNTIME_ENDPOINT;
use super::setup::CONFIG;
use crate::cri::proto::{VersionRequest, VersionResponse};

/// Bytes of a configuration file that are read.
const MAX_FILE: u64 = 1 << 20;
/// Files that one configuration may consist of, and processes that are looked at.
const MAX_FILES: usize = 64;
const MAX_PROCESSES: usize = 1 << 16;
/// A runtime that takes longer has other worries.
const PATIENCE: Duration = Duration::from_secs(2);

/// A file and what is in it, or why it cannot be read.
pub(super) type Read = (PathBuf, Result<String, String>);

/// The containerd of this machine.
#[derive(Clone, Debug)]
pub(super) struct Containerd {
    /// Its configuration, which may be absent.
    pub(super) config: PathBuf,
    /// Its socket.
    pub(super) socket: PathBuf,
    /// All files of its configuration, in the order in which it reads them.
    pub(super) files: Vec<Read>,
}

/// The one that runs, or would run with this configuration; `None` where there is neither.
pub(super) fn containerd(config: Option<&Path>) -> Option<Containerd> {
    let args = command_line("containerd");
    let running = args.is_some();
    let args = args.unwrap_or_default();
    let given = config.is_some();
    let config = config
        .map(Path::to_owned)
        .or_else(|| flag(&args, &["--config", "-c"]))
        .unwrap_or_else(|| PathBuf::from(CONFIG));
    if !running && !given && !config.exists() {
        return None;
    }
    // One that runs without a file has its defaults.
    let files = match config.exists() || given {
        true => sources(&config),
        false => Vec::new(),
    };
    // The flags of one that runs with another configuration are not this one's.
    let own = flag(&args, &["--config", "-c"]).is_none_or(|path| path == config);
    let socket = flag(&args, &["--address", "-a"]).filter(|_| own);
    let socket = socket.or_else(|| address(&files));
    Some(Containerd {
        socket: socket.unwrap_or_else(|| PathBuf::from(RUNTIME_ENDPOINT)),
        config,
        files,
    })
}

/// A configuration with all that it imports, as far as stars in names go.
pub(super) fn sources(config: &Path) -> Vec<Read> {
    let mut found: Vec<Read> = Vec::new();
    let mut waiting = VecDeque::from([config.to_owned()]);
    while let Some(path) = waiting.pop_front() {
        if found.len() >= MAX_FILES || found.iter().any(|(known, _)| *known == path) {
            continue;
        }
        let file = read(&path);
        let table = table(&file);
        let imports = table
            .as_ref()
            .and_then(|table| table.get("imports")?.as_array());
        let folder = path.parent().unwrap_or(Path::new("/"));
        for pattern in imports
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_str)
        {
            waiting.extend(matching(&folder.join(pattern)));
        }
        found.push(file);
    }
    found
}

/// The command line of a running program of this name.
pub(super) fn command_line(name: &str) -> Option<Vec<String>> {
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
pub(super) fn flag(args: &[String], names: &[&str]) -> Option<PathBuf> {
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

/// A file's text.
pub(super) fn read(path: &Path) -> Read {
    let text = || -> Result<String, String> {
        let told = |error: std::io::Error| error.to_string();
        // A pipe would be waited for.
        if !fs::metadata(path).map_err(told)?.is_file() {
            return Err("this is no file".to_owned());
        }
        let mut text = String::new();
        let file = fs::File::open(path).map_err(told)?;
        file.take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(told)?;
        match text.len() as u64 > MAX_FILE {
            true => Err("larger than 1 MiB: this is no configuration".to_owned()),
            false => Ok(text),
        }
    };
    (path.to_owned(), text())
}

fn table((_, text): &Read) -> Option<toml::Table> {
    text.as_ref().ok()?.parse().ok()
}

/// Files that a path means whose last part may have one star; sorted.
pub(super) fn matching(pattern: &Path) -> Vec<PathBuf> {
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

/// Major and minor version of a text that begins with them.
pub(super) fn version(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    Some((major, numbers.next()?.parse().ok()?))
}

/// What the runtime says of itself.
pub(super) async fn ask_version(socket: &Path) -> Option<String> {
    let asked = tokio::time::timeout(PATIENCE, asked(socket)).await;
    asked.ok().flatten()
}

async fn asked(socket: &Path) -> Option<String> {
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

//! Registries' `hosts.toml` files: larder's mirror as the first host of each that is wanted. Pure.
//!
//! The order of hosts is that of their headers in the file, and containerd sees hosts with headers of their own only.
//! The registry itself stays the last one to be asked, as containerd has it without any file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::block::{self, Edit};
use super::expressions::{Kind, expressions};
use super::{Files, Refusal, parsed, quoted};
use crate::image::Reference;

const DEFAULT: &str = "_default";
const FILE: &str = "hosts.toml";
const DOCKER: &str = "docker.io";

/// Puts the mirror into the files of these registries, or of all that have none. What a person should know.
pub(super) fn plan(
    files: &mut Files,
    dir: &Path,
    mirror: SocketAddr,
    registries: &[String],
) -> Result<Vec<String>, Refusal> {
    let url = format!("http://{mirror}");
    if registries.is_empty() {
        put_mirror(files, &dir.join(DEFAULT), None, &url)?;
        return Ok(strangers(files, dir, &url));
    }
    for registry in registries {
        check_name(dir, registry)?;
        let folder = folder(files, dir, registry)?;
        put_mirror(files, &folder, Some(registry), &url)?;
    }
    Ok(Vec::new())
}

/// The registry as images are named by it.
fn check_name(dir: &Path, registry: &str) -> Result<(), Refusal> {
    let reference: Result<Reference, _> = format!("{registry}/x/y").parse();
    let named = reference.is_ok_and(|reference| reference.domain() == registry);
    if named && !["index.docker.io", "registry-1.docker.io"].contains(&registry) {
        return Ok(());
    }
    Err(Refusal::new(
        dir,
        format!("{registry:?} is no registry that images are named by"),
        "give a host, with its port if it has one, such as docker.io or registry.example:5000",
    ))
}

/// The folder that containerd reads for a registry, or one to make.
fn folder(files: &Files, dir: &Path, registry: &str) -> Result<PathBuf, Refusal> {
    let plain = dir.join(registry);
    // A port without a colon comes first.
    let first = registry
        .rsplit_once(':')
        .map(|(host, port)| dir.join(format!("{host}_{port}_")));
    let folders = first.into_iter().chain([plain.clone()]);
    if let Some(found) = folders.into_iter().find(|folder| files.is_folder(folder)) {
        return Ok(found);
    }
    let default = dir.join(DEFAULT).join(FILE);
    if files.text(&default)?.is_some() {
        return Err(Refusal::new(
            &default,
            format!(
                "it is for {registry} too, and would not be once that has a hosts.toml of its own"
            ),
            "leave --registry out, or copy it for that registry first",
        ));
    }
    Ok(plain)
}

/// Registries that `_default` is not for.
fn strangers(files: &Files, dir: &Path, url: &str) -> Vec<String> {
    let names = files.names(dir).into_iter().filter(|name| *name != DEFAULT);
    let folders = names.filter(|name| files.is_folder(&dir.join(name)));
    let others = folders.filter(|name| {
        let text = files.text(&dir.join(name).join(FILE)).ok().flatten();
        let hosts = text.and_then(|text| hosts(text).ok());
        !hosts.is_some_and(|hosts| hosts.iter().any(|host| is(host, url)))
    });
    let others: Vec<&str> = others.collect();
    if others.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "not through larder, since they have folders of their own in {}: {} (--registry names them)",
        dir.display(),
        others.join(", ")
    )]
}

fn put_mirror(
    files: &mut Files,
    folder: &Path,
    registry: Option<&str>,
    url: &str,
) -> Result<(), Refusal> {
    let path = folder.join(FILE);
    let text = files.text(&path)?.map(str::to_owned);
    if text.as_deref().unwrap_or_default().is_empty() {
        let names = files.names(folder);
        let ends = [".crt", ".cert", ".key"];
        if let Some(name) = names
            .iter()
            .find(|name| ends.iter().any(|end| name.ends_with(end)))
        {
            return Err(Refusal::new(
                folder,
                format!("containerd would not read {name} any more once a hosts.toml is beside it"),
                "write a hosts.toml that names the certificates (ca, client) first",
            ));
        }
    }
    let Some(text) = text else {
        let mut lines: Vec<String> = Vec::new();
        if let Some(server) = registry.and_then(server) {
            lines.push(format!("server = {}", quoted(&server)));
            lines.push(String::new());
        }
        lines.extend(host_lines(url));
        files.put_new(&path, &lines);
        return Ok(());
    };
    let text = extended(&path, &text, url)?;
    if let Some(text) = text {
        files.put(&path, text);
    }
    Ok(())
}

/// Where the registry itself is. Of one on this machine containerd finds out by itself whether it speaks TLS.
fn server(registry: &str) -> Option<String> {
    if registry == DOCKER {
        return Some("https://registry-1.docker.io".to_owned());
    }
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let local = host == "localhost" || address.is_some_and(|address| address.is_loopback());
    (!local).then(|| format!("https://{registry}"))
}

fn host_lines(url: &str) -> Vec<String> {
    vec![
        format!("[host.{}]", quoted(url)),
        "  capabilities = [\"pull\", \"resolve\"]".to_owned(),
    ]
}

/// Names of the hosts in their order.
///
/// # Errors
/// What is wrong with them.
fn hosts(text: &str) -> Result<Vec<String>, String> {
    let table: Table = text.parse().map_err(|_| "it is no TOML".to_owned())?;
    let named = match table.get("host") {
        None => return Ok(Vec::new()),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err("host is no table of hosts".to_owned()),
    };
    let found = expressions(text).ok_or("its tables are written in an odd way")?;
    let mut hosts: Vec<String> = Vec::new();
    for one in found {
        if let (Kind::Table, [host, name, ..]) = (one.kind, one.path.as_slice())
            && host == "host"
            && !hosts.contains(name)
        {
            hosts.push(name.clone());
        }
    }
    for (name, settings) in named {
        if settings.as_table().is_none() {
            return Err(format!("host.{} is no table", quoted(name)));
        }
        if !hosts.contains(name) {
            return Err(format!(
                "host.{} has no header of its own, without which containerd does not see it",
                quoted(name)
            ));
        }
    }
    Ok(hosts)
}

/// What a `hosts.toml` has of the mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) enum Mirrored {
    /// Nothing.
    No,
    /// It cannot be read, and the mirror is in it.
    Broken(String),
    /// It is asked first.
    First,
    /// This host is asked before it.
    After(String),
    /// It is not asked for tags, or not for contents.
    Narrow,
    /// Setup wrote it for another address.
    Elsewhere(String),
}

/// What a text has of the mirror at an address.
pub(in crate::app) fn mirrored(text: &str, mirror: SocketAddr) -> Mirrored {
    let url = format!("http://{mirror}");
    let marked = block::bare(text).map_or(true, |bare| bare.text != text);
    let (table, hosts) = match (text.parse::<Table>(), hosts(text)) {
        (Ok(table), Ok(hosts)) => (table, hosts),
        _ if !marked && !text.contains(&url) => return Mirrored::No,
        (Err(error), _) => return Mirrored::Broken(error.message().to_owned()),
        (_, Err(cause)) => return Mirrored::Broken(cause),
    };
    match hosts.iter().position(|host| is(host, &url)) {
        None if !marked => Mirrored::No,
        None => Mirrored::Elsewhere(hosts.first().cloned().unwrap_or_default()),
        Some(0) => {
            let name = hosts.first().map_or(url.as_str(), String::as_str);
            match pulls(&table, name) {
                true => Mirrored::First,
                false => Mirrored::Narrow,
            }
        }
        Some(_) => Mirrored::After(hosts.first().cloned().unwrap_or_default()),
    }
}

/// Whether a host's name is that URL, up to what containerd itself adds.
fn is(host: &str, url: &str) -> bool {
    let bare = host.trim_end_matches('/');
    bare.strip_suffix("/v2").unwrap_or(bare) == url
}

/// The text with the mirror before all other hosts; `None` where it is so already.
fn extended(path: &Path, text: &str, url: &str) -> Result<Option<String>, Refusal> {
    let before = parsed(path, text)?;
    let odd = |cause: String| {
        Refusal::new(
            path,
            cause,
            format!("write [host.{}] by hand as the first host", quoted(url)),
        )
    };
    let hosts = hosts(text).map_err(odd)?;
    if let Some(at) = hosts.iter().position(|host| is(host, url)) {
        let name = hosts.get(at).map_or(url, String::as_str);
        let key = format!("host.{}", quoted(name));
        if at > 0 {
            return Err(Refusal::new(
                path,
                format!("{key} is not the first host"),
                "put it before the others, or take it out",
            ));
        }
        if !pulls(&before, name) {
            return Err(Refusal::new(
                path,
                format!("{key} has other capabilities"),
                "capabilities = [\"pull\", \"resolve\"], or take it out",
            ));
        }
        return Ok(None);
    }
    let found =
        expressions(text).ok_or_else(|| odd("its tables are written in an odd way".to_owned()))?;
    let first = found.iter().position(|one| {
        one.kind == Kind::Table
            && one.path.len() > 1
            && one.path.first().is_some_and(|key| key == "host")
    });
    let at = match first {
        None => text.len(),
        Some(first) => {
            let start = found.get(first).map_or(0, |one| one.lines.start);
            let above = first.checked_sub(1).and_then(|above| found.get(above));
            above_comments(text, above.map_or(0, |one| one.lines.end), start)
        }
    };
    let edit = Edit {
        at: at..at,
        indent: String::new(),
        lines: host_lines(url),
    };
    let after = block::edited(text, vec![edit]);
    // The parser has the last word.
    let mut expected = before;
    let table = expected
        .entry("host".to_owned())
        .or_insert_with(|| Value::Table(Table::new()));
    let capabilities = ["pull", "resolve"].map(|word| Value::String(word.to_owned()));
    let own: Table = [(
        "capabilities".to_owned(),
        Value::Array(capabilities.to_vec()),
    )]
    .into_iter()
    .collect();
    if let Some(table) = table.as_table_mut() {
        table.insert(url.to_owned(), Value::Table(own));
    }
    let is_first =
        self::hosts(&after).is_ok_and(|hosts| hosts.first().is_some_and(|host| host == url));
    match after.parse::<Table>() {
        Ok(table) if table == expected && is_first => Ok(Some(after)),
        _ => Err(odd("its tables are written in an odd way".to_owned())),
    }
}

/// Whether a host may be asked for tags and for contents; without a list it may be asked for all.
fn pulls(table: &Table, host: &str) -> bool {
    let list = table
        .get("host")
        .and_then(|hosts| hosts.get(host)?.get("capabilities")?.as_array());
    let has = |word: &str| {
        list.is_none_or(|list| {
            let mut words = list.iter().filter_map(Value::as_str);
            list.is_empty() || words.any(|one| one.eq_ignore_ascii_case(word))
        })
    };
    has("pull") && has("resolve")
}

/// Where the comments begin that stand right above `start`, and not before `end`.
fn above_comments(text: &str, end: usize, start: usize) -> usize {
    let mut at = start;
    let lines = text.get(end..start).unwrap_or_default();
    for line in lines.split_inclusive('\n').rev() {
        if !line.trim_start().starts_with('#') {
            break;
        }
        at = at.saturating_sub(line.len());
    }
    at
}

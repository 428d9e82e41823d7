//! `larder setup`: what has to stand in containerd's files so that it pulls through larder's mirror and has its
//! snapshots from larder, and how all of it is taken out again.
//!
//! Planning is pure: [`Files`] as they are go in, the [`Change`]s come out, or a [`Refusal`] that names the file, the
//! key and the remedy. [`gather`] reads, [`write`] writes. What people wrote is never reformatted: larder's lines stand
//! in marked blocks or in files of their own, and [`undo`] leaves every byte as it was.
//!
//! A plan begins with the files as [`undo`] would leave them, so that a second run changes nothing, and a run with other
//! wishes leaves nothing of the first.

mod block;
mod config;
mod diff;
mod expressions;
mod files;
mod hosts;
mod lines;
mod sources;
#[cfg(test)]
mod tests;
mod wishes;

pub(in crate::app) use files::config_paths;
pub use files::{gather, remove_folders, write};
pub use wishes::{MIRROR, Options, wanted};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use block::Made;
pub(in crate::app) use config::{IMAGES, MAPS_OWNERS, OLD_IMAGES, TRANSFER};
pub(in crate::app) use hosts::{Mirrored, mirrored};

/// Default of containerd's `config_path`, for those that have none.
pub const CERTS_DIR: &str = "/etc/containerd/certs.d";
/// Where containerd looks for its own configuration.
pub const CONFIG: &str = "/etc/containerd/config.toml";

/// Everything on the machine that a plan may depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    entries: BTreeMap<PathBuf, Entry>,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    Text(String),
    /// It is there, and nobody looked into it.
    Unread,
    /// It could not be read.
    Fault(String),
}

/// What containerd is to do with larder.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// containerd's configuration.
    pub config: PathBuf,
    /// Folder with `HOST/hosts.toml`; `None`: the one that the configuration names.
    pub certs_dir: Option<PathBuf>,
    /// Pull through the mirror at this address.
    pub mirror: Option<SocketAddr>,
    /// Of these registries; none: of all that have no hosts.toml of their own.
    pub registries: Vec<String>,
    /// Have snapshots from larder.
    pub snapshots: Option<Snapshots>,
    /// Version of the containerd, where somebody knows it.
    pub containerd: Option<(u64, u64)>,
}

/// Where containerd finds larder's snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// The agent's socket.
    pub socket: PathBuf,
    /// The agent's data directory.
    pub root: PathBuf,
}

/// One file that becomes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub path: PathBuf,
    /// Its text; `None`: it is absent.
    pub before: Option<String>,
    /// As `before`.
    pub after: Option<String>,
}

impl Change {
    /// As `diff -u` has it.
    pub fn diff(&self) -> String {
        diff::unified(&self.path, self.before.as_deref(), self.after.as_deref())
    }
}

/// What is to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of writing.
    pub changes: Vec<Change>,
    /// Folders that go after that, if they are empty then; the deepest first.
    pub folders: Vec<PathBuf>,
    /// Whether containerd reads any of them at its start only.
    pub restart: bool,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Why nothing is planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}: {cause}; {remedy}", file.display())]
pub struct Refusal {
    /// Where it is.
    pub file: PathBuf,
    /// What it is, with the key.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl Refusal {
    fn new(file: &Path, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Refusal {
            file: file.to_owned(),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }
}

/// What makes the files as they are wanted.
pub fn plan(files: &Files, wanted: &Wanted) -> Result<Plan, Refusal> {
    let (clean, folders) = cleaned(files)?;
    let mut after = clean.clone();
    // Where an earlier run put them, unless somebody says otherwise.
    let mut wanted = wanted.clone();
    if wanted.certs_dir.is_none() {
        wanted.certs_dir = config::certs_dir(files, &wanted);
    }
    let wanted = &wanted;
    let certs_dir = config::plan(&mut after, wanted)?;
    let mut notes = Vec::new();
    if let Some(mirror) = wanted.mirror {
        notes = hosts::plan(&mut after, &certs_dir, mirror, &wanted.registries)?;
    }
    // Whatever was put in must come out again, or it is not put in.
    for (path, _) in differences(&clean, &after) {
        if cleaned(&after)?.0 != clean {
            return Err(Refusal::new(
                path,
                "larder's lines could not be taken out of it again",
                "write them by hand, see docs/containerd.md",
            ));
        }
    }
    Ok(between(files, &after, folders, wanted, notes))
}

/// What takes out everything that [`plan`] put in.
pub fn undo(files: &Files, wanted: &Wanted) -> Result<Plan, Refusal> {
    let (clean, folders) = cleaned(files)?;
    // Of a file that cannot be read nobody knows what it imports.
    config::check(&clean, &wanted.config)?;
    Ok(between(files, &clean, folders, wanted, Vec::new()))
}

/// Files without what is larder's, and the folders that were made for it, the deepest first.
fn cleaned(files: &Files) -> Result<(Files, Vec<PathBuf>), Refusal> {
    let mut clean = files.clone();
    let mut folders: Vec<PathBuf> = Vec::new();
    for (path, text) in files.texts() {
        let bare = block::bare(text).map_err(|block::Broken(line)| {
            Refusal::new(
                path,
                format!("line {line}: a block of larder setup has lost its other end"),
                "take its lines out by hand",
            )
        })?;
        if bare.text == text {
            continue;
        }
        if bare.text.is_empty() && bare.made.file {
            clean.entries.remove(path);
            let above = path.ancestors().skip(1).take(bare.made.folders);
            folders.extend(above.map(Path::to_owned));
        } else {
            clean.put(path, bare.text);
        }
    }
    // Two files may have had a new folder in common.
    folders.sort_by_key(|folder| std::cmp::Reverse((folder.components().count(), folder.clone())));
    folders.dedup();
    clean.remove_empty(&folders);
    Ok((clean, folders))
}

fn between(
    before: &Files,
    after: &Files,
    folders: Vec<PathBuf>,
    wanted: &Wanted,
    notes: Vec<String>,
) -> Plan {
    let change = |(path, (before, after)): (&Path, (Option<&str>, Option<&str>))| Change {
        path: path.to_owned(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
    };
    let changes: Vec<Change> = differences(before, after).into_iter().map(change).collect();
    let is_hosts =
        |change: &Change| change.path.ends_with("hosts.toml") && change.path != wanted.config;
    Plan {
        restart: changes.iter().any(|change| !is_hosts(change)),
        folders: folders
            .into_iter()
            .filter(|folder| !after.is_folder(folder))
            .collect(),
        changes,
        notes,
    }
}

type Texts<'a> = (Option<&'a str>, Option<&'a str>);

/// Paths whose texts differ.
fn differences<'a>(before: &'a Files, after: &'a Files) -> BTreeMap<&'a Path, Texts<'a>> {
    let mut found: BTreeMap<&Path, Texts<'_>> = BTreeMap::new();
    for (path, text) in before.texts() {
        found.entry(path).or_default().0 = Some(text);
    }
    for (path, text) in after.texts() {
        found.entry(path).or_default().1 = Some(text);
    }
    found.retain(|_, (before, after)| before != after);
    found
}

impl Files {
    fn texts(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.entries.iter().filter_map(|(path, entry)| match entry {
            Entry::Text(text) => Some((path.as_path(), text.as_str())),
            _ => None,
        })
    }

    fn get(&self, path: &Path) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The text of a file; `None` where there is none.
    fn text(&self, path: &Path) -> Result<Option<&str>, Refusal> {
        match self.get(path) {
            None => Ok(None),
            Some(Entry::Text(text)) => Ok(Some(text)),
            Some(Entry::Folder | Entry::Unread) => {
                Err(Refusal::new(path, "this is no file", "move it away"))
            }
            Some(Entry::Fault(cause)) => Err(Refusal::new(
                path,
                cause.as_str(),
                "run it as root, or mend the file",
            )),
        }
    }

    fn is_folder(&self, path: &Path) -> bool {
        self.get(path) == Some(&Entry::Folder)
    }

    /// Names in a folder.
    fn names(&self, folder: &Path) -> Vec<&str> {
        let within = self.entries.keys();
        let within = within.filter(|path| path.parent() == Some(folder));
        within
            .filter_map(|path| path.file_name()?.to_str())
            .collect()
    }

    /// Changes a text, or adds it with the folders above it; how many of those are new.
    fn put(&mut self, path: &Path, text: String) -> usize {
        let above = path.ancestors().skip(1);
        let missing: Vec<PathBuf> = above
            .take_while(|folder| !self.is_folder(folder) && folder.parent().is_some())
            .map(Path::to_owned)
            .collect();
        let count = missing.len();
        let folders = missing.into_iter().map(|folder| (folder, Entry::Folder));
        self.entries.extend(folders);
        self.entries.insert(path.to_owned(), Entry::Text(text));
        count
    }

    /// Adds a file that is larder's own.
    fn put_new(&mut self, path: &Path, lines: &[String]) {
        // The folders are counted first: their number stands in the text.
        let folders = self.put(path, String::new());
        let made = Made {
            file: true,
            folders,
        };
        let text = block::whole(lines, made);
        self.put(path, text);
    }

    /// Takes folders away, as far as nothing is in them.
    fn remove_empty(&mut self, folders: &[PathBuf]) {
        for folder in folders {
            if self.names(folder).is_empty() {
                self.entries.remove(folder);
            }
        }
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A parsed file; where not, the line.
fn parsed(path: &Path, text: &str) -> Result<toml::Table, Refusal> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count().saturating_add(1));
        let message = error.message().split_whitespace().collect::<Vec<_>>();
        Refusal::new(
            path,
            format!("line {line}: {}", message.join(" ")),
            "mend the file: containerd cannot read it either",
        )
    })
}

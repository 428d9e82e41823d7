//! `--manifests DIR`: the same objects from files, without an API server. Files are looked at now and then; one that
//! cannot be read is named, and what it declared before goes on to count.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::sync::mpsc;

use super::prepull::{Kind, Prepull};
use super::prune_policy::PrunePolicy;
use crate::k8s::api::{
    ClusterImagePrepull, GROUP, ImagePrepull, ImagePrunePolicy, SharedPrepullSpec, VERSION,
    Visibility,
};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Of one file.
const MAX_BYTES: u64 = 4 << 20;
/// Files that are read; more are named and left out.
const MAX_FILES: usize = 1000;
/// Objects of one file.
const MAX_OBJECTS: usize = 1000;

/// What one file declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Declaration {
    /// Prepulls.
    pub(super) prepulls: Vec<Prepull>,
    /// Policies.
    pub(super) policies: Vec<PrunePolicy>,
}

/// What the folder declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Folder {
    /// By file name. A file that cannot be read has what it said before; `None` if nothing is known of it.
    pub(super) files: BTreeMap<String, Option<Declaration>>,
    /// What is wrong, by file name; under an empty one what is wrong with the folder.
    pub(super) faults: BTreeMap<String, String>,
    /// All files are in `files`: one that is not there is gone.
    pub(super) complete: bool,
}

impl Folder {
    /// Whether the object of a uid, read from `file` before, is known to be gone.
    pub(super) fn lost(&self, file: &str, uid: &str) -> bool {
        match self.files.get(file) {
            None => self.complete,
            Some(None) => false,
            Some(Some(declaration)) => !declaration
                .prepulls
                .iter()
                .any(|prepull| prepull.identity.uid == uid),
        }
    }
}

/// Looks at a folder.
#[derive(Debug)]
pub(super) struct Reader {
    dir: PathBuf,
    seen: BTreeMap<String, (Stamp, Option<Declaration>, Option<String>)>,
}

/// What changes when a file does.
type Stamp = (Option<SystemTime>, u64, u64);

impl Reader {
    /// Nothing seen yet.
    pub(super) fn new(dir: PathBuf) -> Self {
        Reader {
            dir,
            seen: BTreeMap::new(),
        }
    }

    /// Blocking. Reads what changed. The error is of the folder itself, which then says nothing about its files.
    pub(super) fn look(&mut self) -> Result<Folder, String> {
        let fault = |error: std::io::Error| format!("{}: {error}", self.dir.display());
        let mut names = Vec::new();
        let mut left_out = 0usize;
        for entry in fs::read_dir(&self.dir).map_err(fault)? {
            let entry = entry.map_err(fault)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if !wanted(&name) {
                continue;
            }
            if names.len() < MAX_FILES {
                names.push((name, entry.path()));
            } else {
                left_out += 1;
            }
        }
        let mut seen = std::mem::take(&mut self.seen);
        let mut folder = Folder {
            complete: left_out == 0,
            ..Folder::default()
        };
        if left_out > 0 {
            folder.faults.insert(
                String::new(),
                format!("{left_out} files beyond {MAX_FILES} are left out"),
            );
        }
        for (name, path) in names {
            let stamp = stamp(&path);
            let old = seen.remove(&name);
            let entry = match old {
                Some(old) if old.0 == stamp && stamp.0.is_some() => old,
                old => {
                    let before = old.and_then(|(_, declaration, _)| declaration);
                    match read(&name, &path) {
                        Ok((declaration, fault)) => (stamp, Some(declaration), fault),
                        Err(fault) => (stamp, before, Some(fault)),
                    }
                }
            };
            if let Some(fault) = &entry.2 {
                folder.faults.insert(name.clone(), fault.clone());
            }
            folder.files.insert(name.clone(), entry.1.clone());
            self.seen.insert(name, entry);
        }
        Ok(folder)
    }
}

/// As kubelet picks static pods: YAML and JSON, nothing hidden or half-written.
fn wanted(name: &str) -> bool {
    !name.starts_with('.')
        && [".yaml", ".yml", ".json"]
            .iter()
            .any(|end| name.len() > end.len() && name.ends_with(end))
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(metadata) => (metadata.modified().ok(), metadata.len(), metadata.ino()),
        Err(_) => (None, 0, 0),
    }
}

fn read(name: &str, path: &Path) -> Result<(Declaration, Option<String>), String> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is no regular file".to_owned());
    }
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err("it is larger than 4 MiB".to_owned());
    }
    parse(name, &text)
}

/// What a document must say to be known.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
}

/// Reads the documents of a file. A file with one bad document is bad as a whole: half of a declaration is none.
/// Documents of other kinds are left out, and said so.
fn parse(file: &str, text: &str) -> Result<(Declaration, Option<String>), String> {
    let values: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(text).map_err(|error| one_line(&error.to_string()))?;
    if values.len() > MAX_OBJECTS {
        return Err(format!("it has more than {MAX_OBJECTS} objects"));
    }
    let mut out = Declaration::default();
    let mut strange = None;
    for (number, value) in (1..).zip(values) {
        if value.is_null() {
            continue;
        }
        let wrong = |error: &dyn std::fmt::Display| {
            format!("document {number}: {}", one_line(&error.to_string()))
        };
        let head: Head = serde_json::from_value(value.clone()).map_err(|error| wrong(&error))?;
        if head.api_version != format!("{GROUP}/{VERSION}") {
            strange = Some(format!(
                "document {number}: {} {} is left out: only {GROUP}/{VERSION} counts",
                head.api_version, head.kind
            ));
            continue;
        }
        match head.kind.as_str() {
            "ClusterImagePrepull" => {
                let object: ClusterImagePrepull =
                    serde_json::from_value(value).map_err(|error| wrong(&error))?;
                let mut prepull = prepull(
                    file,
                    Kind::ClusterImagePrepull,
                    &object.metadata,
                    &object.spec.shared,
                )
                .map_err(|error| wrong(&error))?;
                prepull.terms.node_wide = object.spec.visibility == Visibility::NodeWide;
                needs_cluster(
                    &mut prepull,
                    !object.spec.images_from.is_empty(),
                    !object.spec.pull_secrets.is_empty(),
                );
                out.prepulls.push(prepull);
            }
            "ImagePrepull" => {
                let object: ImagePrepull =
                    serde_json::from_value(value).map_err(|error| wrong(&error))?;
                let mut prepull = prepull(
                    file,
                    Kind::ImagePrepull,
                    &object.metadata,
                    &object.spec.shared,
                )
                .map_err(|error| wrong(&error))?;
                needs_cluster(
                    &mut prepull,
                    !object.spec.images_from.is_empty(),
                    !object.spec.pull_secrets.is_empty(),
                );
                out.prepulls.push(prepull);
            }
            "ImagePrunePolicy" => {
                let object: ImagePrunePolicy =
                    serde_json::from_value(value).map_err(|error| wrong(&error))?;
                if object
                    .metadata
                    .name
                    .as_deref()
                    .unwrap_or_default()
                    .is_empty()
                {
                    return Err(wrong(&"metadata.name is missing"));
                }
                let policy = PrunePolicy::of_file(file, &object);
                if let Err(fault) = &policy.rules {
                    return Err(wrong(fault));
                }
                out.policies.push(policy);
            }
            other => strange = Some(format!("document {number}: {other} is left out here")),
        }
    }
    Ok((out, strange))
}

/// What only an API server could answer.
fn needs_cluster(prepull: &mut Prepull, workloads: bool, secrets: bool) {
    if workloads {
        prepull
            .faults
            .push("imagesFrom counts only with an API server".to_owned());
    }
    if secrets {
        prepull.faults.push(
            "pullSecrets count only with an API server; the node's own credentials are used"
                .to_owned(),
        );
    }
}

fn prepull(
    file: &str,
    kind: Kind,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: &SharedPrepullSpec,
) -> Result<Prepull, String> {
    let name = metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    let namespace = match kind {
        Kind::ClusterImagePrepull => "",
        Kind::ImagePrepull => metadata.namespace.as_deref().unwrap_or("default"),
    };
    Ok(Prepull::of_file(file, kind, namespace, name, spec))
}

fn one_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(256)
        .collect()
}

/// Tells what the folder declares whenever that changes.
pub(super) async fn follow<M>(dir: PathBuf, tell: fn(Folder) -> M, to: mpsc::Sender<M>) {
    let mut reader = Some(Reader::new(dir.clone()));
    let mut told: Option<Folder> = None;
    loop {
        let Some(mut now) = reader.take() else { return };
        let looked = tokio::task::spawn_blocking(move || {
            let folder = now.look();
            (now, folder)
        });
        let folder = match looked.await {
            Ok((back, folder)) => {
                reader = Some(back);
                folder
            }
            Err(error) => {
                tracing::error!(err = %error, "Reading the manifests panicked");
                reader = Some(Reader::new(dir.clone()));
                Err(error.to_string())
            }
        };
        let folder = folder.unwrap_or_else(|fault| {
            // Nothing is known of the files: what they said goes on to count.
            let mut folder = told.clone().unwrap_or_default();
            folder.faults.insert(String::new(), fault);
            folder.complete = false;
            folder
        });
        if told.as_ref() != Some(&folder) {
            let old = told.as_ref().map(|told| &told.faults);
            for (file, fault) in &folder.faults {
                if old.and_then(|old| old.get(file)) != Some(fault) {
                    tracing::warn!(
                        folder = %dir.display(),
                        file,
                        err = fault,
                        "Manifest cannot be used as it is; the others go on"
                    );
                }
            }
            if to.send(tell(folder.clone())).await.is_err() {
                return;
            }
            told = Some(folder);
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = to.closed() => return,
        }
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;

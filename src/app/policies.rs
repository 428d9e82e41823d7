//! Prune policies from files, for a terminal. An agent reads its manifests by itself, and goes on where one is wrong; here
//! whatever is wrong ends it, since half of what was meant is not what was meant.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::k8s::api::{GROUP, ImagePrunePolicy, VERSION};
use crate::prune::Policy;

/// Of all files together.
const MAX_BYTES: u64 = 4 << 20;
/// Files of a folder.
const MAX_FILES: usize = 1000;

/// A policy as a file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePolicy {
    /// In the planner's words, by the name of the object.
    pub policy: Policy,
    /// Its mode is `Enforce`.
    pub enforces: bool,
}

/// The policies of a file, of all YAML and JSON files of a folder, or of standard input (`-`). Which nodes they choose
/// is not looked at: whoever reads them means this one. Blocking.
///
/// # Errors
/// Something is no policy, has a field that policies do not have, or has the name of another; there is none at all.
pub fn read_policies(path: &Path) -> anyhow::Result<Vec<FilePolicy>> {
    let subject = path.display();
    let mut policies: Vec<FilePolicy> = Vec::new();
    let mut left = MAX_BYTES;
    for file in files(path).with_context(|| subject.to_string())? {
        let text = read(&file, &mut left).with_context(|| file.display().to_string())?;
        // In a folder other kinds have a right to be.
        let alone = file == path;
        let found = parse(&text, alone).with_context(|| file.display().to_string())?;
        policies.extend(found);
    }
    ensure!(
        !policies.is_empty(),
        "{subject}: there is no ImagePrunePolicy in it"
    );
    let mut names = BTreeSet::new();
    for FilePolicy { policy, .. } in &policies {
        ensure!(
            names.insert(policy.name.as_str()),
            "{subject}: there are two policies with the name {}",
            policy.name
        );
    }
    Ok(policies)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let known = file.extension().and_then(|end| end.to_str());
        if matches!(known, Some("yaml" | "yml" | "json")) && file.is_file() {
            files.push(file);
        }
        ensure!(files.len() <= MAX_FILES, "more than {MAX_FILES} files");
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path, left: &mut u64) -> anyhow::Result<String> {
    let mut text = String::new();
    let most = *left + 1;
    let length = if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_string(&mut text)
    } else {
        File::open(path)?.take(most).read_to_string(&mut text)
    };
    let length = length? as u64;
    *left = left
        .checked_sub(length)
        .with_context(|| format!("more than {} MiB of policies", MAX_BYTES >> 20))?;
    Ok(text)
}

fn parse(text: &str, alone: bool) -> anyhow::Result<Vec<FilePolicy>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut policies = Vec::new();
    for (number, document) in (1..).zip(documents) {
        if document.is_null() {
            continue;
        }
        let text = |key: &str| {
            document
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let version = format!("{GROUP}/{VERSION}");
        if text("kind") != "ImagePrunePolicy" || text("apiVersion") != version {
            if alone {
                bail!(
                    "document {number} is {:?} of {:?}: only ImagePrunePolicy of {version} is looked for",
                    text("kind"),
                    text("apiVersion")
                );
            }
            continue;
        }
        policies.push(policy(document).with_context(|| format!("document {number}"))?);
    }
    Ok(policies)
}

fn policy(document: Value) -> anyhow::Result<FilePolicy> {
    let spec = document.get("spec").cloned().unwrap_or_default();
    let object: ImagePrunePolicy = serde_json::from_value(document)?;
    let known = serde_json::to_value(&object.spec)?;
    if let Some(field) = unknown(&spec, &known) {
        bail!("spec{field}: there is no such field");
    }
    let name = object.metadata.name.unwrap_or_default();
    ensure!(!name.is_empty(), "metadata.name is missing");
    let policy = object
        .spec
        .policy(&name)
        .with_context(|| format!("policy {name}"))?;
    Ok(FilePolicy {
        policy,
        enforces: object.spec.enforces(),
    })
}

/// The first field that was given and means nothing: misspelt, it would leave a rule wider than it was meant to be.
fn unknown(given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let empty = value.is_null()
                || value.as_object().is_some_and(serde_json::Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty);
            match known.get(key) {
                Some(known) => unknown(value, known).map(|rest| format!(".{key}{rest}")),
                None if empty => None,
                None => Some(format!(".{key}")),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            (0..)
                .zip(given.iter().zip(known))
                .find_map(|(at, (given, known)): (usize, _)| {
                    unknown(given, known).map(|rest| format!("[{at}]{rest}"))
                })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CI: &str = "\
apiVersion: larder.dev/v1alpha1
kind: ImagePrunePolicy
metadata: {name: ci}
spec:
  mode: Enforce
  nodeSelector: {matchLabels: {pool: ci}}
  rules: [{match: {images: [\"registry.example/ci/*\"]}, unusedFor: 24h, keepLast: 2}, {minFree: 15%}]
";
    const DRY: &str = "\
apiVersion: larder.dev/v1alpha1
kind: ImagePrunePolicy
metadata: {name: dry}
spec: {rules: [{maxUsedBytes: 1Gi}]}
";
    const OTHER: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n";

    #[test]
    fn documents_of_a_file_and_files_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let both = write("both.yaml", &format!("---\n{CI}---\n---\n{DRY}"));
        let policies = read_policies(&both).unwrap();
        let seen: Vec<_> = policies
            .iter()
            .map(|policy| {
                (
                    policy.policy.name.as_str(),
                    policy.enforces,
                    policy.policy.rules.len(),
                )
            })
            .collect();
        assert_eq!(seen, [("ci", true, 2), ("dry", false, 1)]);
        write("other.yml", OTHER);
        write("notes.txt", "no policy");
        assert_eq!(read_policies(dir.path()).unwrap(), policies);
        write("again.yaml", CI);
        let error = read_policies(dir.path()).unwrap_err().to_string();
        assert!(error.contains("two policies with the name ci"), "{error}");
    }

    #[test]
    fn whatever_is_wrong_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        let with = |from: &str, to: &str| DRY.replace(from, to);
        for (text, says) in [
            (String::new(), "no ImagePrunePolicy"),
            (OTHER.to_owned(), "ConfigMap"),
            (with("v1alpha1", "v1"), "larder.dev/v1"),
            ("a: [".to_owned(), "policy.yaml"),
            (with("name: dry", "labels: {}"), "metadata.name"),
            (
                with("maxUsedBytes: 1Gi", "unusedfor: 1h"),
                "spec.rules[0].unusedfor",
            ),
            (
                with(
                    "maxUsedBytes: 1Gi",
                    "maxUsedBytes: 1Gi, match: {image: [a]}",
                ),
                "match.image",
            ),
            (with("spec: {", "spec: {Mode: Enforce, "), "spec.Mode"),
            (with("spec: {", "spec: {mode: Always, "), "Always"),
            (
                with("maxUsedBytes: 1Gi", "maxUsedBytes: 0"),
                "rules[0].maxUsedBytes",
            ),
            (with("{maxUsedBytes: 1Gi}", ""), "rules"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = format!("{:#}", read_policies(&path).unwrap_err());
            assert!(error.contains(says), "{says}: {error}");
        }
        assert!(read_policies(&dir.path().join("absent.yaml")).is_err());
    }
}

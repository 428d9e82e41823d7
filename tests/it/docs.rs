//! The documentation is true: each kind's page has the fields of its schema, the rights of everybody are those of the
//! manifests, each example is one that the API server takes, and no link leads nowhere.
//!
//! After a change of a kind or a role, `make manifests` writes the tables of fields and of rights anew.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::cluster::Cluster;

const KINDS: [&str; 4] = [
    "ClusterImagePrepull",
    "ImagePrepull",
    "ImagePrunePolicy",
    "NodeImageCache",
];
/// Around what this program writes.
const FIELDS: [&str; 2] = [
    "<!-- fields: written by `make manifests` -->\n",
    "<!-- end of fields -->\n",
];
const RIGHTS: [&str; 2] = [
    "<!-- rights: written by `make manifests` -->\n",
    "<!-- end of rights -->\n",
];

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn page(kind: &str) -> PathBuf {
    package(&format!("docs/kinds/{}.md", kind.to_lowercase()))
}

/// `spec` and `status` of a kind.
fn schema(kind: &str) -> Value {
    let text = read(&package("manifests/base/crds/crds.yaml"));
    let of = |document: &str| serde_saphyr::from_str::<Value>(document).unwrap();
    let mut kinds = text.split("---\n").filter(|text| !text.is_empty()).map(of);
    let found = kinds.find(|object| object["spec"]["names"]["kind"] == kind);
    found.unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// The type as people say it.
fn type_of(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        let words: Vec<String> = values
            .iter()
            .map(|value| format!("`{}`", value.as_str().unwrap()))
            .collect();
        return words.join(", ");
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return "number or share".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => match type_of(&schema["items"]).as_str() {
            "object" => "list".to_owned(),
            item => format!("list of {item}"),
        },
        Some("object") if schema["additionalProperties"].is_object() => "map".to_owned(),
        Some("integer" | "number") => "number".to_owned(),
        Some("string") if schema["format"] == "date-time" => "time".to_owned(),
        Some(name) => name.to_owned(),
        None => panic!("no type: {schema}"),
    }
}

fn rows(path: &str, schema: &Value, table: &mut String) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    for (name, field) in properties {
        let path = format!("{path}.{name}");
        let default = match &field["default"] {
            Value::Null if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => String::new(),
            Value::String(text) => format!("`{text}`"),
            Value::Object(map) if map.is_empty() => String::new(),
            other => format!("`{other}`"),
        };
        let meaning = field["description"].as_str().unwrap_or_default();
        let meaning = meaning.replace('|', "\\|");
        writeln!(
            table,
            "| `{path}` | {} | {default} | {meaning} |",
            type_of(field)
        )
        .unwrap();
        let (path, below) = match field["type"].as_str() {
            Some("array") => (format!("{path}[]"), &field["items"]),
            _ => (path, field),
        };
        rows(&path, below, table);
    }
}

fn fields(kind: &str) -> String {
    let schema = schema(kind);
    let mut text = String::new();
    for (part, title) in [("spec", "Spec"), ("status", "Status")] {
        let schema = &schema["properties"][part];
        if schema["properties"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
        {
            continue;
        }
        write!(
            text,
            "\n### {title}\n\n| field | type | default | meaning |\n|---|---|---|---|\n"
        )
        .unwrap();
        rows(part, schema, &mut text);
    }
    text.push('\n');
    text
}

/// Holds a part of a page against what it should be, or with `make manifests` makes it so.
fn compare(page: &Path, [begin, end]: [&str; 2], wanted: &str) {
    let text = read(page);
    let parts = text.split_once(begin).and_then(|(head, rest)| {
        let (_, tail) = rest.split_once(end)?;
        Some((head, tail))
    });
    let (head, tail) = parts.unwrap_or_else(|| panic!("{}: no {begin:?}", page.display()));
    let wanted = format!("{head}{begin}{wanted}{end}{tail}");
    // Set by `make manifests`.
    if std::env::var_os("LARDER_WRITE_DOCS").is_some() {
        std::fs::write(page, wanted).unwrap();
    } else if text != wanted {
        let page = page.display();
        panic!("{page} is older than the kinds or the manifests: run `make manifests`");
    }
}

#[test]
fn each_kind_has_a_page_with_all_its_fields() {
    for kind in KINDS {
        compare(&page(kind), FIELDS, &fields(kind));
    }
}

/// All objects below `manifests/` that are about rights; examples apart, and what is for tests only.
fn rights_objects() -> Vec<Value> {
    let mut folders = ["base", "optional", "overlays"]
        .map(|name| package("manifests").join(name))
        .to_vec();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "yaml") {
                files.push(path);
            }
        }
    }
    files.sort();
    let objects = files.iter().flat_map(|file| {
        let text = read(file);
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        documents
    });
    let group = |object: &Value| {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        version.starts_with("rbac.authorization.k8s.io/")
    };
    objects.filter(group).collect()
}

fn words(list: &Value) -> String {
    let words = list.as_array().into_iter().flatten();
    let words: Vec<&str> = words.filter_map(Value::as_str).collect();
    words.join(", ")
}

/// Who may do what, a row for each rule.
fn rights() -> String {
    let objects = rights_objects();
    let mut holders: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    let kind = |object: &Value| object["kind"].as_str().unwrap().to_owned();
    for object in &objects {
        if kind(object).ends_with("Binding") {
            let role = &object["roleRef"];
            let role = (kind(role), role["name"].as_str().unwrap().to_owned());
            for subject in object["subjects"].as_array().unwrap() {
                let who = format!("{} {}", kind(subject), subject["name"].as_str().unwrap());
                holders.entry(role.clone()).or_default().insert(who);
            }
        }
        let labels = object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten();
        for (label, _) in labels {
            if let Some(role) = label.strip_prefix("rbac.authorization.k8s.io/aggregate-to-") {
                let own = (kind(object), name(object));
                let who = format!("whoever has `{role}`");
                holders.entry(own).or_default().insert(who);
            }
        }
    }
    let mut table = "\n| role | held by | may | of |\n|---|---|---|---|\n".to_owned();
    for object in objects.iter().filter(|object| object["rules"].is_array()) {
        let who = holders.remove(&(kind(object), name(object)));
        let who = who.unwrap_or_else(|| panic!("nobody has {}", name(object)));
        let who: Vec<String> = who.into_iter().collect();
        let place = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!(" in `{namespace}`"),
            None => String::new(),
        };
        let role = format!("{} `{}`{place}", kind(object), name(object));
        for rule in object["rules"].as_array().unwrap() {
            let group = match words(&rule["apiGroups"]).as_str() {
                "" => String::new(),
                group => format!(" ({group})"),
            };
            let names = match words(&rule["resourceNames"]).as_str() {
                "" => String::new(),
                names => format!(": {names} only"),
            };
            let (verbs, kinds) = (words(&rule["verbs"]), words(&rule["resources"]));
            let who = who.join(", ");
            writeln!(
                table,
                "| {role} | {who} | {verbs} | {kinds}{group}{names} |"
            )
            .unwrap();
        }
    }
    // A binding to a role of the cluster's own would be here.
    assert!(holders.is_empty(), "{holders:?}");
    table.push('\n');
    table
}

#[test]
fn the_rights_of_everybody_are_those_of_the_manifests() {
    compare(&package("docs/security.md"), RIGHTS, &rights());
}

/// Pages of `docs/` and those in the root.
fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![package("docs"), package("charts")];
    let mut take = |path: PathBuf| {
        if path.extension().is_some_and(|ext| ext == "md") {
            found.push(path);
        }
    };
    for entry in std::fs::read_dir(package(".")).unwrap() {
        take(entry.unwrap().path());
    }
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                take(path);
            }
        }
    }
    found
}

/// Fenced blocks of a language.
pub(crate) fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    let parts = text.split(&fence).skip(1);
    parts
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// As GitHub makes them of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let heading = |line: &str| {
        let line = line.trim_start_matches('#').trim().to_lowercase();
        let kept = line
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(heading)
        .collect()
}

#[test]
fn no_link_leads_nowhere() {
    let mut faults = Vec::new();
    for page in pages() {
        let text = read(&page);
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            let there =
                file.exists() && (anchor.is_empty() || anchors(&read(&file)).contains(anchor));
            if !there {
                faults.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn every_example_is_taken() {
    let Some(cluster) = Cluster::get("every_example_is_taken") else {
        return;
    };
    let crds = package("manifests/base/crds/crds.yaml");
    let flags = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        crds.to_str().unwrap(),
    ];
    cluster.kubectl(&flags).ok();
    for kind in KINDS {
        let name = match kind {
            "ImagePrunePolicy" => "imageprunepolicies".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        cluster.wait_for(
            "condition=Established",
            &[&format!("crd/{name}.larder.dev")],
        );
    }
    let mut tried = 0;
    for page in pages() {
        for block in blocks(&read(&page), "yaml") {
            if !block.contains("apiVersion: larder.dev/") {
                continue;
            }
            let ended = cluster.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], block);
            assert!(
                ended.success,
                "{}: {}\n{block}",
                page.display(),
                ended.stderr
            );
            tried += 1;
        }
    }
    assert!(tried >= KINDS.len(), "{tried}");
    for kind in KINDS {
        assert!(
            read(&page(kind)).contains("```yaml\napiVersion: larder.dev/"),
            "{kind}: no example"
        );
    }
    let examples = package("manifests/examples");
    let flags = [
        "apply",
        "--dry-run=server",
        "-f",
        examples.to_str().unwrap(),
    ];
    cluster.kubectl(&flags).ok();
}

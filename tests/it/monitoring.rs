//! What operators see: every metric is documented, every alert and every panel asks for metrics that exist, every alert
//! is tried out and explained.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::lifecycle::Readiness;
use larder::telemetry::{self, TextForm};
use larder::{admin, cache, cri, k8s, mirror, registry, runtime, store};
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::support::need;
use crate::support::process::run;

/// Labels that look like metrics.
const LABELS: [&str; 4] = ["grpc_code", "grpc_method", "grpc_service", "grpc_type"];
const PREFIXES: [&str; 3] = ["larder_", "grpc_", "process_"];

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    let path = package(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All that the rooms register: an agent's, and a controller's.
fn registries() -> [Registry; 2] {
    let (mut agent, mut controller) = (telemetry::registry("test"), telemetry::registry("test"));
    let readiness = Readiness::new();
    readiness.check("test");
    admin::Metrics::register(&mut agent, &readiness);
    store::Metrics::register(&mut agent);
    registry::Metrics::register(&mut agent);
    cache::Metrics::register(&mut agent);
    cri::Metrics::register(&mut agent);
    mirror::Metrics::register(&mut agent);
    runtime::Metrics::register(&mut agent);
    k8s::agent::Metrics::register(&mut agent);
    k8s::controller::Metrics::register(&mut controller);
    [agent, controller]
}

/// Families with what they mean, all meanings of a name that both programs have. A family that has no sample yet is not
/// in the text that is scraped, but a registry shows it to people who debug it.
fn families() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut add = |name: &str, help: &str| {
        let help = help.strip_suffix('.').unwrap_or(help).to_owned();
        found.entry(name.to_owned()).or_default().insert(help);
    };
    for registry in registries() {
        let mut own = BTreeSet::new();
        let shown = format!("{registry:?}");
        for descriptor in shown.split("Descriptor { name: \"").skip(1) {
            let (name, rest) = descriptor.split_once("\", help: ").unwrap();
            let (help, rest) = rest.split_once(", unit: ").unwrap();
            let help: String = serde_json::from_str(help).unwrap();
            let unit = match rest.split_once(" }").unwrap().0 {
                "None" => "",
                "Some(Seconds)" => "_seconds",
                "Some(Bytes)" => "_bytes",
                other => panic!("{name}: the unit {other} is new here"),
            };
            add(&format!("{name}{unit}"), &help);
            assert!(own.insert(name.to_owned()), "two rooms register {name}");
        }
        // Those that are read when they are scraped.
        let text = telemetry::encode(&registry, TextForm::OpenMetrics).unwrap();
        for line in text.lines() {
            if let Some((name, help)) = line
                .strip_prefix("# HELP ")
                .and_then(|line| line.split_once(' '))
            {
                add(name, help);
            }
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

/// Types of those families that have samples.
fn types() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for registry in registries() {
        let text = telemetry::encode(&registry, TextForm::OpenMetrics).unwrap();
        for line in text.lines() {
            if let Some((name, kind)) = line
                .strip_prefix("# TYPE ")
                .and_then(|line| line.split_once(' '))
            {
                found.insert(name.to_owned(), kind.to_owned());
            }
        }
    }
    found
}

struct Row {
    kind: String,
    meanings: BTreeSet<String>,
}

/// The tables of `docs/metrics.md`, by family.
fn documented() -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for line in read("docs/metrics.md").lines() {
        let Some(line) = line.strip_prefix("| `") else {
            continue;
        };
        let (name, rest) = line.split_once("` | ").unwrap();
        let cells: Vec<&str> = rest.trim_end_matches(" |").splitn(3, " | ").collect();
        let [kind, _, meaning] = cells.as_slice() else {
            panic!("{name}: name, type, labels, meaning")
        };
        let family = match *kind {
            "counter" => name.strip_suffix("_total"),
            "info" => name.strip_suffix("_info"),
            "gauge" | "histogram" => Some(name),
            _ => None,
        };
        let family = family.unwrap_or_else(|| panic!("{name} as {kind}"));
        let row = rows.entry(family.to_owned()).or_insert(Row {
            kind: (*kind).to_owned(),
            meanings: BTreeSet::new(),
        });
        assert_eq!(row.kind, *kind, "{name}");
        row.meanings.insert((*meaning).to_owned());
    }
    rows
}

#[test]
fn every_metric_is_documented() {
    let (families, types, rows) = (families(), types(), documented());
    let mut faults = Vec::new();
    for (name, meanings) in &families {
        match rows.get(name) {
            None => faults.push(format!("missing: | `{name}` | ? | ? | {meanings:?} |")),
            Some(row) => {
                if row.meanings != *meanings {
                    faults.push(format!("{name} means {meanings:?}"));
                }
                if types.get(name).is_some_and(|kind| *kind != row.kind) {
                    faults.push(format!("{name} is a {}", types[name]));
                }
            }
        }
    }
    for name in rows.keys() {
        if !families.contains_key(name) {
            faults.push(format!("{name} does not exist"));
        }
    }
    assert!(faults.is_empty(), "docs/metrics.md:\n{}", faults.join("\n"));
}

/// A room whose metrics this file does not know would go unnoticed.
#[test]
fn every_metric_of_the_sources_is_registered_here() {
    let mut folders = vec![package("src")];
    let families = families();
    let mut unknown = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
            if !code.contains("prometheus_client::") {
                continue;
            }
            for word in code.split('"').skip(1).step_by(2) {
                let is_name = PREFIXES.iter().any(|prefix| word.starts_with(prefix))
                    && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
                let units = ["", "_seconds", "_bytes"];
                if is_name
                    && !units
                        .iter()
                        .any(|unit| families.contains_key(&format!("{word}{unit}")))
                {
                    unknown.push(format!("{word} in {}", path.display()));
                }
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "register them in registries(): {unknown:#?}"
    );
}

/// All strings under a key, anywhere below.
fn strings<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text),
                    _ => strings(value, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| strings(item, key, found)),
        _ => {}
    }
}

fn rules() -> Value {
    let object: Value = serde_saphyr::from_str(&read("manifests/monitoring/rules.yaml")).unwrap();
    object["spec"].clone()
}

fn alerts() -> Vec<Value> {
    let rules = rules();
    let groups = rules["groups"].as_array().unwrap().iter();
    let of = |group: &Value| group["rules"].as_array().unwrap().clone();
    groups.flat_map(of).collect()
}

#[test]
fn alerts_and_panels_ask_for_metrics_that_exist() {
    let mut samples: BTreeSet<String> = BTreeSet::new();
    for (family, row) in documented() {
        let endings: &[&str] = match row.kind.as_str() {
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_count", "_sum"],
            _ => &[""],
        };
        samples.extend(endings.iter().map(|ending| format!("{family}{ending}")));
    }
    let dashboard: Value =
        serde_json::from_str(&read("manifests/monitoring/dashboard.json")).unwrap();
    let rules = rules();
    let mut asked = Vec::new();
    strings(&rules, "expr", &mut asked);
    let alerts = asked.len();
    strings(&dashboard, "expr", &mut asked);
    assert!(alerts > 10 && asked.len() > alerts + 10, "{asked:?}");
    for expression in asked {
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let mut names = expression.split(word).filter(|word| {
            PREFIXES.iter().any(|prefix| word.starts_with(prefix)) && !LABELS.contains(word)
        });
        let missing = names.find(|name| !samples.contains(*name));
        assert_eq!(missing, None, "{expression}");
    }
}

#[test]
fn every_alert_has_a_page_and_a_trial() {
    let trials = read("manifests/monitoring/rules.test.yaml");
    let mut pages: BTreeSet<String> = std::fs::read_dir(package("docs/runbooks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.remove("README.md");
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let notes = &alert["annotations"];
        let url = format!("https://github.com/larder-dev/larder/blob/main/docs/runbooks/{name}.md");
        assert_eq!(notes["runbook_url"], url.as_str());
        for note in ["summary", "description"] {
            assert!(notes[note].is_string(), "{name}: {note}");
        }
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["warning", "critical"].contains(&severity), "{name}");
        assert!(trials.contains(&format!("- name: {name}\n")), "{name}");
        let page = format!("{name}.md");
        assert!(pages.remove(&page), "docs/runbooks/{page}");
        let text = read(&format!("docs/runbooks/{page}"));
        for part in [
            &format!("# {name}\n"),
            "\n## Symptom\n",
            "\n## Meaning\n",
            "\n## Look at\n",
            "\n## Remedy\n",
        ] {
            assert!(text.contains(part), "{page} has no {part:?}");
        }
        // What to do is what can be typed.
        assert!(text.contains("\n    kubectl "), "{page}");
        let index = read("docs/runbooks/README.md");
        assert!(index.contains(&format!("]({page})")), "{page} in the index");
    }
    assert_eq!(pages, BTreeSet::new(), "pages without an alert");
}

#[test]
fn alerts_fire_when_they_should() {
    const NAME: &str = "alerts_fire_when_they_should";
    let Some([promtool]) = need(NAME, ["promtool"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.json");
    std::fs::write(&file, rules().to_string()).unwrap();
    let trials = dir.path().join("rules.test.yaml");
    std::fs::copy(package("manifests/monitoring/rules.test.yaml"), &trials).unwrap();
    let promtool = |words: &[&str], file: &Path| {
        let mut command = Command::new(&promtool);
        let ended = run(command.args(words).arg(file).current_dir(dir.path()));
        assert!(ended.success, "{}{}", ended.stdout, ended.stderr);
        ended.stdout
    };
    let said = promtool(&["check", "rules", "--lint=all", "--lint-fatal"], &file);
    assert!(
        said.contains(&format!("{} rules found", alerts().len())),
        "{said}"
    );
    promtool(&["test", "rules"], &trials);

    // And panels ask in words that Prometheus knows.
    let dashboard: Value =
        serde_json::from_str(&read("manifests/monitoring/dashboard.json")).unwrap();
    let mut panels = Vec::new();
    strings(&dashboard, "expr", &mut panels);
    let records: Vec<Value> = (0..)
        .zip(&panels)
        .map(|(number, panel)| {
            let expression = panel.replace("$__rate_interval", "5m");
            serde_json::json!({"record": format!("panel:{number}"), "expr": expression})
        })
        .collect();
    let groups = serde_json::json!({"groups": [{"name": "panels", "rules": records}]});
    std::fs::write(&file, groups.to_string()).unwrap();
    promtool(&["check", "rules"], &file);
}

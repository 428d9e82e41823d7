//! The four kinds as a real API server sees them: what it accepts, what it refuses, and in which words.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use larder::image::Reference;
use larder::k8s::api::{Amount, IntOrPercent, parse_duration};
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::process::run;

const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn printed() -> String {
    run(Command::new(env!("CARGO_BIN_EXE_larder")).arg("crds")).ok()
}

fn kinds(test: &str) -> Option<&'static Cluster> {
    let cluster = Cluster::get(test)?;
    cluster.apply(&printed());
    for kind in [
        "clusterimageprepulls",
        "imageprepulls",
        "imageprunepolicies",
        "nodeimagecaches",
    ] {
        cluster.wait_for(
            "condition=Established",
            &[&format!("crd/{kind}.larder.dev")],
        );
    }
    Some(cluster)
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    let mut metadata = json!({"name": name});
    if kind == "ImagePrepull" {
        metadata["namespace"] = json!("default");
    }
    json!({"apiVersion": "larder.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

/// What the API server says to each object, by its name: nothing where it would take it.
fn judge(cluster: &Cluster, objects: &[Value]) -> BTreeMap<String, Option<String>> {
    // One after the other, not as a List: that would be judged by kubectl as a whole.
    let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
    let flags = ["create", "--dry-run=server", "-f", "-"];
    let answer = cluster.kubectl_with(&flags, &documents.join("\n"));
    let accepted: Vec<&str> = answer
        .stdout
        .lines()
        .filter_map(|line| line.split_once(".larder.dev/")?.1.split(' ').next())
        .collect();
    // In the order of the objects; not each names its object.
    let mut refusals = answer.stderr.split("Error from server").skip(1);
    let said: BTreeMap<_, _> = objects
        .iter()
        .map(|object| object["metadata"]["name"].as_str().unwrap())
        .map(|name| match accepted.contains(&name) {
            true => (name.to_owned(), None),
            false => (name.to_owned(), Some(refusals.next().unwrap().to_owned())),
        })
        .collect();
    assert_eq!(refusals.next(), None);
    said
}

#[test]
fn the_manifests_hold_what_the_program_prints() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/base/crds/crds.yaml");
    let held = std::fs::read_to_string(file).unwrap();
    assert!(
        held == printed(),
        "manifests/base/crds/crds.yaml is old: run make manifests"
    );
}

#[test]
fn kubectl_installs_explains_and_lists_the_kinds() {
    let Some(cluster) = kinds("kube_kinds") else {
        return;
    };
    // By either way of applying, and again.
    let flags = ["apply", "--dry-run=server", "-f", "-"];
    cluster.kubectl_with(&flags, &printed()).ok();
    let explained = cluster
        .kubectl(&["explain", "clusterimageprepull.spec.rollout.maxInFlight"])
        .ok();
    assert!(explained.contains("Default 10%"), "{explained}");
    for name in ["cipp", "ipp", "iprune", "nimg", "larder"] {
        cluster.kubectl(&["get", name, "-A"]).ok();
    }
    let spec = json!({"images": ["app:1"]});
    cluster.apply(&object("ClusterImagePrepull", "columns", &spec).to_string());
    let table = cluster.kubectl(&["get", "cipp", "columns"]).ok();
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        head,
        [
            "NAME", "IMAGES", "DESIRED", "READY", "FAILED", "STATUS", "AGE"
        ]
    );
    let stored = cluster.json(&["get", "cipp", "columns"]);
    let filled = &stored["spec"];
    assert_eq!(filled["mode"], "Standing");
    assert_eq!(filled["rollout"]["maxInFlight"], "10%");
    assert_eq!(filled["visibility"], "Authorized");
    assert!(stored.get("status").is_none(), "{stored:#}");
    let selected = [
        "get",
        "cipp",
        "--field-selector",
        "spec.mode=Once",
        "-o",
        "name",
    ];
    assert_eq!(cluster.kubectl(&selected).ok(), "");
    cluster.kubectl(&["delete", "cipp", "columns"]).ok();
}

#[test]
fn the_examples_are_accepted() {
    let Some(cluster) = kinds("kube_examples") else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples");
    let folder = folder.to_str().unwrap();
    let flags = ["apply", "--server-side", "--dry-run=server", "-f", folder];
    let answer = cluster.kubectl(&flags).ok();
    for kind in ["clusterimageprepull", "imageprepull", "imageprunepolicy"] {
        assert!(answer.contains(&format!("{kind}.larder.dev/")), "{answer}");
    }
}

#[test]
fn specs_are_judged_in_readable_words() {
    let Some(cluster) = kinds("kube_specs") else {
        return;
    };
    let images: Vec<String> = (0..256)
        .map(|n| format!("registry.example/app-{n}:1.0-RC1"))
        .collect();
    let (app, long) = (["app:1"], "a".repeat(600));
    let with = |more: Value| {
        let mut spec = json!({"images": app});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let rules = |rule: Value| json!({"rules": [rule]});
    let (cluster_kind, tenant, prune) = ("ClusterImagePrepull", "ImagePrepull", "ImagePrunePolicy");
    // Nothing expected: accepted.
    let table: Vec<(&str, Value, &str)> = vec![
        (cluster_kind, json!({"images": images}), ""),
        (
            cluster_kind,
            json!({"images": [format!("[::1]:5000/a/b:T_1@{DIGEST}")]}),
            "",
        ),
        (cluster_kind, with(json!({"nodeSelector": {}})), ""),
        (
            cluster_kind,
            with(json!({"nodeSelector": null, "window": null})),
            "",
        ),
        (
            cluster_kind,
            with(json!({"rollout": {"maxInFlight": 1, "maxFailures": "100%"}})),
            "",
        ),
        (
            cluster_kind,
            with(json!({"gate": {"startupTaint": "larder.example/cold"}})),
            "",
        ),
        (
            tenant,
            with(json!({"priority": 0, "pullSecrets": [{"name": "registry"}]})),
            "",
        ),
        (
            tenant,
            json!({"imagesFrom": [{"kind": "Deployment", "name": "web"}]}),
            "",
        ),
        (prune, rules(json!({"minFree": "15%"})), ""),
        (
            prune,
            rules(json!({"maxUsedBytes": 1000, "match": {"images": ["registry.example/ci/*"]}})),
            "",
        ),
        // Images.
        (cluster_kind, json!({}), "give images, imagesFrom, or both"),
        (
            cluster_kind,
            json!({"images": []}),
            "give images, imagesFrom, or both",
        ),
        (
            cluster_kind,
            json!({"images": ["https://registry.example/app"]}),
            "must be an image reference: [host[:port]/]repository[:tag][@digest], repository in lower case, no spaces, no scheme",
        ),
        (
            cluster_kind,
            json!({"images": ["app; rm -rf /"]}),
            "must be an image reference",
        ),
        (
            cluster_kind,
            json!({"images": ["app@sha256:12"]}),
            "the digest after '@' must be sha256:<64 lower-case hex digits> or sha512:<128>",
        ),
        (
            cluster_kind,
            json!({"images": [DIGEST.split_at(7).1]}),
            "64 hex digits are the id of an image, not its name",
        ),
        (
            cluster_kind,
            json!({"images": [long]}),
            "Too long: may not be more than 512",
        ),
        (
            cluster_kind,
            json!({"images": vec!["app:1"; 257]}),
            "spec.images: Too many: 257: must have at most 256 items",
        ),
        (
            cluster_kind,
            json!({"images": "app:1"}),
            "spec.images: Invalid value: \"string\"",
        ),
        (
            cluster_kind,
            with(json!({"imagesFrom": [{"kind": "Pod", "namespace": "a", "name": "b"}]})),
            "spec.imagesFrom[0].kind: Unsupported value: \"Pod\"",
        ),
        // Nodes.
        (
            cluster_kind,
            with(json!({"nodeNames": ["a"], "nodeSelector": {}})),
            "spec.nodeNames: Forbidden: give nodeNames, or nodeSelector and nodeSelectorTerms, not both",
        ),
        (
            cluster_kind,
            with(json!({"nodeNames": []})),
            "spec.nodeNames in body should have at least 1 items",
        ),
        (
            cluster_kind,
            with(json!({"nodeNames": ["A_b"]})),
            "must be the name of an object: lower-case letters, digits, '-' and '.'",
        ),
        (
            cluster_kind,
            with(json!({"nodeSelector": {"matchLabels": {"a b": "c"}}})),
            "each key must be a qualified name, such as example.com/pool",
        ),
        (
            cluster_kind,
            with(json!({"nodeSelector": {"matchLabels": {"pool": "a b"}}})),
            "each value must be a label value: at most 63 letters, digits, '-', '_' and '.'",
        ),
        (
            cluster_kind,
            with(json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
            "In and NotIn need values, Exists and DoesNotExist take none",
        ),
        (
            cluster_kind,
            with(
                json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["x"]}]}]}),
            ),
            "In and NotIn need values, Gt and Lt one whole number, Exists and DoesNotExist take none",
        ),
        (
            cluster_kind,
            with(json!({"platforms": ["linux"]})),
            "must be os/architecture[/variant], such as linux/arm64",
        ),
        // Rollout and time.
        (
            cluster_kind,
            with(json!({"rollout": {"maxInFlight": 0}})),
            "must be a number of nodes from 1 to 100000, or a percentage from 1% to 100%",
        ),
        (
            cluster_kind,
            with(json!({"rollout": {"maxInFlight": "101%"}})),
            "must be a number of nodes from 1 to 100000, or a percentage from 1% to 100%",
        ),
        (
            cluster_kind,
            with(json!({"refreshInterval": "1d"})),
            "must be a duration from 5m to 720h, in hours, minutes and seconds, such as 1h30m",
        ),
        (
            cluster_kind,
            with(json!({"refreshInterval": "1m"})),
            "must be a duration from 5m to 720h",
        ),
        (
            cluster_kind,
            with(json!({"refreshInterval": "1h", "mode": "Once"})),
            "spec.refreshInterval: Forbidden: only mode Standing looks tags up again",
        ),
        (
            cluster_kind,
            with(json!({"window": {"start": "22:00"}})),
            "spec.window.duration: Required value",
        ),
        (
            cluster_kind,
            with(json!({"window": {"start": "24:00", "duration": "1h"}})),
            "must be a time of day in UTC, such as 22:00",
        ),
        (
            cluster_kind,
            with(json!({"priority": 101})),
            "spec.priority in body should be less than or equal to 100",
        ),
        (
            cluster_kind,
            with(json!({"mode": "Twice"})),
            "Unsupported value: \"Twice\"",
        ),
        // The gate, and what a tenant may not say.
        (
            cluster_kind,
            with(json!({"gate": {}})),
            "give nodeLabel, startupTaint, or both",
        ),
        (
            cluster_kind,
            with(json!({"gate": {"nodeLabel": "node-role.kubernetes.io/control-plane"}})),
            "keys of kubernetes.io and k8s.io are not for gates: take a domain of your own",
        ),
        (
            tenant,
            with(json!({"gate": {"nodeLabel": "a"}})),
            "unknown field \"spec.gate\"",
        ),
        (
            tenant,
            with(json!({"visibility": "NodeWide"})),
            "unknown field \"spec.visibility\"",
        ),
        (
            tenant,
            with(json!({"priority": 1})),
            "spec.priority: Forbidden: the priority of a namespaced prepull is at most 0",
        ),
        (
            tenant,
            with(json!({"pullSecrets": [{"name": "a", "namespace": "b"}]})),
            "unknown field \"spec.pullSecrets[0].namespace\"",
        ),
        (
            cluster_kind,
            with(json!({"pullSecrets": [{"name": "a"}]})),
            "spec.pullSecrets[0].namespace: Required value",
        ),
        // Prune policies.
        (
            prune,
            json!({"mode": "DryRun"}),
            "spec.rules: Required value",
        ),
        (
            prune,
            json!({"rules": []}),
            "spec.rules in body should have at least 1 items",
        ),
        (
            prune,
            rules(json!({"match": {"images": ["*"]}})),
            "a rule needs at least one of unusedFor, keepLast, maxUsedBytes, minFree and reserved",
        ),
        (
            prune,
            rules(json!({"minFree": "0%"})),
            "must be bytes above 0, such as 20Gi, or a share of the disk from 1% to 100%",
        ),
        (
            prune,
            json!({"rules": [{"keepLast": 1}], "schedule": {}}),
            "give interval, window, or both",
        ),
        (
            prune,
            rules(json!({"keepLast": -1})),
            "spec.rules[0].keepLast in body should be greater than or equal to 0",
        ),
    ];
    let name = |at: usize| format!("row-{at:03}");
    let objects: Vec<Value> = table
        .iter()
        .enumerate()
        .map(|(at, (kind, spec, _))| object(kind, &name(at), spec))
        .collect();
    let said = judge(cluster, &objects);
    let mut faults = Vec::new();
    for (at, (kind, spec, expected)) in table.iter().enumerate() {
        let said = said.get(&name(at)).unwrap().as_deref();
        let right = match said {
            None => expected.is_empty(),
            Some(said) => !expected.is_empty() && said.contains(expected),
        };
        if !right {
            let spec: String = spec.to_string().chars().take(200).collect();
            faults.push(format!(
                "{kind} {spec}\n  expected {expected:?}\n  said {said:?}"
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_parsers_agree_with_the_schema() {
    let Some(cluster) = kinds("kube_parsers") else {
        return;
    };
    let mut rows: Vec<(Value, bool)> = Vec::new();
    let retain = |text: &str| json!({"images": ["app"], "retainAfterDeletion": text});
    for text in [
        "0s", "90s", "1h30m", "30m1h", "1h1m1s", "8760h", "", "5", "m", "1d", "P1D", "-5m", "1.5h",
        "5 m", "1h1m1s1s", "1000000s", "5m3", "1H", "٣s", "1ms", "+1h",
    ] {
        rows.push((retain(text), parse_duration(text).is_ok()));
    }
    let in_flight = |value: &Value| json!({"images": ["app"], "rollout": {"maxInFlight": value}});
    for value in [
        json!(1),
        json!(100_000),
        json!(0),
        json!(-1),
        json!(100_001),
        json!("1%"),
        json!("100%"),
        json!("0%"),
        json!("101%"),
        json!("10"),
        json!("%"),
        json!("01%"),
        json!("+5%"),
        json!("-1%"),
        json!("1.5%"),
        json!("5 %"),
        json!("٣%"),
    ] {
        let parsed: IntOrPercent = serde_json::from_value(value.clone()).unwrap();
        rows.push((in_flight(&value), parsed.of(10).is_ok()));
    }
    let hex = DIGEST.split_at(7).1;
    for text in [
        "app",
        "app:1.0-RC1",
        "a/b/c:latest",
        "registry.example/app",
        "Registry.Example:5000/app",
        "localhost/app",
        "localhost:5000/app",
        "[::1]:5000/app",
        "[::1]/app",
        "10.0.0.1:80/a/b",
        "a__b/c--d.e",
        "app:_1.-",
        &format!("app@{DIGEST}"),
        &format!("app:1@{DIGEST}"),
        &format!("app@sha512:{}", "ab".repeat(64)),
        "App",
        "app:",
        "app@",
        ":1",
        "/app",
        "app/",
        "a//b",
        "a..b",
        "-a",
        "a-",
        "a___b",
        "app:.1",
        "app:1:2",
        "app@sha256:12",
        &format!("app@md5:{hex}"),
        &format!("app@{}", DIGEST.to_uppercase()),
        hex,
        "http://a/b",
        "a b",
        "app:1 ",
        "[::g]/a",
        "host:port/a",
        "-host.example/a",
        "a\nb",
        "app:ü",
        &format!("app:{}", "t".repeat(129)),
        &format!("app:{}", "t".repeat(128)),
        "$(id)",
        "a;b",
    ] {
        rows.push((json!({"images": [text]}), text.parse::<Reference>().is_ok()));
    }
    let prepulls = rows.len();
    for value in [
        json!(1),
        json!(0),
        json!(-1),
        json!("1"),
        json!("20Gi"),
        json!("1.5Gi"),
        json!("0.001"),
        json!("5k"),
        json!("7P"),
        json!("15%"),
        json!("100%"),
        json!("0"),
        json!("0%"),
        json!("101%"),
        json!("-5"),
        json!("+5"),
        json!(".5"),
        json!("5."),
        json!("1e9"),
        json!("100m"),
        json!("5gi"),
        json!("5 Gi"),
        json!("0.000Gi"),
        json!("1.0001"),
        json!("Gi"),
        json!("1000000000000000"),
        json!("9E"),
        json!("٣"),
        json!(""),
    ] {
        let parsed: Amount = serde_json::from_value(value.clone()).unwrap();
        rows.push((
            json!({"rules": [{"minFree": value}]}),
            parsed.of(1 << 40).is_ok(),
        ));
    }
    let objects: Vec<Value> = rows
        .iter()
        .enumerate()
        .map(|(at, (spec, _))| {
            let kind = if at < prepulls {
                "ClusterImagePrepull"
            } else {
                "ImagePrunePolicy"
            };
            object(kind, &format!("row-{at:03}"), spec)
        })
        .collect();
    let said = judge(cluster, &objects);
    let faults: Vec<String> = rows
        .iter()
        .zip(said.values())
        .filter(|((_, parsed), said)| *parsed != said.is_none())
        .map(|((spec, parsed), said)| format!("{spec}: parsed {parsed}, the API server: {said:?}"))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

//! The Helm chart: it makes what the overlays make, refuses values that make no sense, and goes in, up, down and out
//! again on a real API server.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::cluster::Cluster;
use crate::support::need;
use crate::support::process::{Ended, run};

const OVERLAYS: [&str; 5] = ["cache", "containerd", "crio", "kind", "systemd"];
/// What the chart says of objects besides what the overlays say.
const LABELS: [&str; 4] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
];
const KEEP: &str = "helm.sh/resource-policy";
const MONITORING: [&str; 6] = [
    "--set",
    "monitoring.podMonitor.enabled=true",
    "--set",
    "monitoring.prometheusRule.enabled=true",
    "--set",
    "monitoring.dashboard.enabled=true",
];

fn package(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    path.to_str().unwrap().to_owned()
}

fn helm(program: &Path, args: &[&str]) -> Ended {
    let mut command = Command::new(program);
    // What the tester's own helm knows must not count.
    command.args(args).env("HELM_PLUGINS", "/nonexistent");
    command
        .env_remove("HELM_NAMESPACE")
        .env_remove("KUBECONFIG");
    run(&mut command)
}

fn template(program: &Path, flags: &[&str]) -> Ended {
    let chart = package("charts/larder");
    let base = ["template", "larder", &chart, "--namespace", "larder"];
    helm(program, &[&base, flags].concat())
}

/// Objects by kind and name.
fn objects(text: &str) -> BTreeMap<(String, String), Value> {
    let mut found = BTreeMap::new();
    for document in text.split("\n---\n") {
        let object: Value = match serde_saphyr::from_str(document.trim_start_matches("---\n")) {
            Ok(object) => object,
            Err(error) => panic!("{error}: {document}"),
        };
        if object.is_null() {
            continue;
        }
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (word(&object["kind"]), word(&object["metadata"]["name"]));
        let twice = found.insert(key.clone(), object);
        assert!(twice.is_none(), "{key:?} is there twice");
    }
    found
}

/// Without what only Helm says.
fn plain(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
        labels.retain(|label, _| !LABELS.contains(&label.as_str()));
    }
    let notes = metadata.get_mut("annotations");
    if let Some(notes) = notes.and_then(Value::as_object_mut) {
        notes.remove(KEEP);
        if notes.is_empty() {
            metadata.remove("annotations");
        }
    }
    object
}

fn assert_same(overlay: &str, built: &str, templated: &str) {
    let mut built = objects(built);
    // The namespace of a release is there before it.
    built.remove(&("Namespace".to_owned(), "larder".to_owned()));
    let templated = objects(templated);
    let names = |of: &BTreeMap<_, Value>| of.keys().cloned().collect::<Vec<(String, String)>>();
    assert_eq!(names(&templated), names(&built), "{overlay}");
    for (key, object) in templated {
        let mut differences = Vec::new();
        compare("", &plain(object), &built[&key], &mut differences);
        assert!(
            differences.is_empty(),
            "{overlay}: {key:?}: {differences:#?}"
        );
    }
}

/// Where two objects differ. 100 and 100.0 are one number, as they are for the API server.
fn compare(path: &str, chart: &Value, overlay: &Value, differences: &mut Vec<String>) {
    match (chart, overlay) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one
                .keys()
                .chain(other.keys().filter(|key| !one.contains_key(*key)))
            {
                compare(
                    &format!("{path}/{key}"),
                    &chart[key],
                    &overlay[key],
                    differences,
                );
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (at, (one, other)) in one.iter().zip(other).enumerate() {
                compare(&format!("{path}/{at}"), one, other, differences);
            }
        }
        (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => {}
        _ if chart == overlay => {}
        _ => differences.push(format!(
            "{path}: {chart} in the chart, {overlay} in the overlay"
        )),
    }
}

#[test]
fn the_chart_makes_what_the_overlays_make() {
    const NAME: &str = "the_chart_makes_what_the_overlays_make";
    let Some([program, kubectl]) = need(NAME, ["helm", "kubectl"]) else {
        return;
    };
    let kustomize = |folder: &str| {
        let mut command = Command::new(&kubectl);
        run(command.args(["kustomize", &package(folder)])).ok()
    };
    for overlay in OVERLAYS {
        let values = package(&format!("charts/larder/overlays/{overlay}.yaml"));
        let templated = template(&program, &["--values", &values]).ok();
        let built = kustomize(&format!("manifests/overlays/{overlay}"));
        assert_same(overlay, &built, &templated);
    }

    // What is added by a switch there is added by a folder here.
    let dir = tempfile::tempdir().unwrap();
    let root = package("manifests");
    let link = dir.path().join("manifests");
    std::os::unix::fs::symlink(&root, &link).unwrap();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nsortOptions: {{order: fifo}}\n\
         resources: [{0}/overlays/containerd, {0}/optional/tenant-limits, {0}/optional/kubectl-larder]\ncomponents: [{0}/monitoring]\n",
        pathdiff(dir.path(), Path::new(&root))
    );
    std::fs::write(dir.path().join("kustomization.yaml"), text).unwrap();
    let mut command = Command::new(&kubectl);
    let built = run(command.arg("kustomize").arg(dir.path())).ok();
    let flags = [
        &["--set", "tenantLimits.enabled=true,rbac.kubectlLarder=true"],
        &MONITORING[..],
    ]
    .concat();
    assert_same("everything", &built, &template(&program, &flags).ok());
}

/// The way from a folder below `/` up and down to another: kustomize takes no absolute paths.
fn pathdiff(from: &Path, to: &Path) -> String {
    let ups = from.canonicalize().unwrap().components().count() - 1;
    let down = to.strip_prefix("/").unwrap();
    format!("{}{}", "../".repeat(ups), down.display())
}

#[test]
fn values_that_make_no_sense_are_refused() {
    const NAME: &str = "values_that_make_no_sense_are_refused";
    let Some([program]) = need(NAME, ["helm"]) else {
        return;
    };
    let chart = package("charts/larder");
    helm(&program, &["lint", "--strict", &chart]).ok();
    for (value, words) in [
        ("backEnd=docker", "/backEnd"),
        ("backend=cache", "'backend' not allowed"),
        ("runtimeSocket=run/containerd.sock", "/runtimeSocket"),
        ("image.tag=a b", "/image/tag"),
        ("image.digest=sha256:12", "/image/digest"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("agent.maxUnavailable=0", "/agent/maxUnavailable"),
        (
            "agent.resources.limits.memory=lots",
            "/agent/resources/limits/memory",
        ),
        ("agent.env.log-level=debug", "'/agent/env'"),
        ("agent.rootPath=var", "/agent/rootPath"),
        ("controller.replicas=-1", "/controller/replicas"),
        ("crds.keep=maybe", "/crds/keep"),
        ("tenantLimits.limits.team-a=x", "'/tenantLimits/limits'"),
        (
            "monitoring.podMonitor.interval=soon",
            "/monitoring/podMonitor/interval",
        ),
    ] {
        let said = template(&program, &["--set", value]).failure();
        assert!(said.contains(words), "{value}: {said}");
        assert!(said.contains("values don't meet"), "{value}: {said}");
    }
    // And what makes sense is not.
    for value in [
        "runtimeSocket=/run/k3s/containerd/containerd.sock",
        "image.tag=v1.2.3,image.pullPolicy=Always",
        "agent.maxUnavailable=5,agent.env.LARDER_LOG_LEVEL=debug",
        "controller.replicas=1,controller.podDisruptionBudget.enabled=false",
        "crds.install=false,rbac.gates=false,rbac.people=false,networkPolicy.enabled=false,flowControl.enabled=false",
        "agent.tolerations=null,agent.priorityClassName=",
    ] {
        let text = template(&program, &["--set", value]).ok();
        objects(&text);
    }
    // Nothing is meant for a namespace that is not the release's.
    let elsewhere = [
        "--namespace",
        "elsewhere",
        "--set",
        "tenantLimits.enabled=true",
    ];
    let text = template(&program, &[&elsewhere[..], &MONITORING].concat()).ok();
    for object in objects(&text).into_values() {
        let text = object.to_string();
        for part in [
            "\"namespace\":\"larder\"",
            "\"namespaces\":[\"larder\"]",
            "serviceaccount:larder:",
        ] {
            assert!(!text.contains(part), "{part} in {text}");
        }
    }
    let socket = "runtimeSocket=/run/k3s/containerd/containerd.sock";
    let agent = objects(&template(&program, &["--set", socket]).ok());
    let agent = &agent[&("DaemonSet".to_owned(), "larder-agent".to_owned())];
    let pod = &agent["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/run/k3s/containerd");
    assert_eq!(
        pod["containers"][0]["args"]
            .as_array()
            .unwrap()
            .last()
            .unwrap(),
        "/run/k3s/containerd/containerd.sock"
    );
}

/// A copy of the chart that is a later version: another image, one field more in a kind, an object less.
fn later(dir: &Path) -> PathBuf {
    let chart = dir.join("later");
    run(Command::new("cp")
        .arg("-rL")
        .arg(package("charts/larder"))
        .arg(&chart))
    .ok();
    let change = |file: &str, from: &str, to: &str| {
        let file = chart.join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "no {from:?} in {}", file.display());
        std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
    };
    change("Chart.yaml", "\nversion: ", "\nversion: 9");
    change("Chart.yaml", "\nappVersion: \"", "\nappVersion: \"9");
    let field = "          spec:\n            description: Later.\n            properties:\n              later: {type: string}\n";
    let text = std::fs::read_to_string(chart.join("files/crds.yaml")).unwrap();
    let (head, rest) = text.split_once("          spec:\n").unwrap();
    let (_, tail) = rest.split_once("            properties:\n").unwrap();
    let changed = format!("{head}{field}{tail}");
    std::fs::write(chart.join("files/crds.yaml"), changed).unwrap();
    chart
}

#[test]
fn goes_in_up_down_and_out() {
    const NAME: &str = "helm_goes_in_up_down_and_out";
    let Some([program, kinds]) = need(NAME, ["helm", "prometheus-kinds"]) else {
        return;
    };
    let Some(cluster) = Cluster::own(NAME) else {
        return;
    };
    let cluster: &Cluster = &cluster;
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = cluster.kubeconfig();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let on = |args: &[&str]| {
        let place = ["--kubeconfig", kubeconfig, "--namespace", "larder"];
        helm(&program, &[args, &place].concat())
    };
    let chart = package("charts/larder");
    let later = later(dir.path());
    let later = later.to_str().unwrap();
    let crd = "crd/clusterimageprepulls.larder.dev";
    let has_later = || {
        let kind = cluster.json(&["get", crd]);
        let schema = &kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["spec"]["properties"]["later"].is_object()
    };
    let image = || {
        let controller = cluster.json(&["get", "deployment/larder-controller", "-n", "larder"]);
        let pod = &controller["spec"]["template"]["spec"];
        pod["containers"][0]["image"].as_str().unwrap().to_owned()
    };
    let clean = || {
        let manifest = on(&["get", "manifest", "larder"]).ok();
        let differs = cluster.kubectl_with(&["diff", "-f", "-"], &manifest);
        assert!(differs.success, "{}{}", differs.stdout, differs.stderr);
    };

    on(&["install", "larder", &chart, "--create-namespace"]).ok();
    clean();
    cluster.wait_for("condition=Established", &[crd]);
    assert!(!has_later());
    let prepull = r#"{"apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull",
        "metadata": {"name": "kept"}, "spec": {"images": ["registry.example/a:1"]}}"#;
    cluster.apply(prepull);

    let first = image();
    on(&["upgrade", "larder", later]).ok();
    clean();
    assert!(has_later());
    assert!(image().contains(":9"), "{}", image());
    // Downgrade: the older chart over the newer release. And back to that one.
    on(&["upgrade", "larder", &chart]).ok();
    clean();
    assert!(!has_later());
    assert_eq!(image(), first);
    on(&["rollback", "larder", "2"]).ok();
    assert!(has_later());
    cluster.kubectl(&["get", "cipp/kept"]).ok();

    // Whoever goes on with kustomize can.
    let overlay = package("manifests/overlays/containerd");
    let flags = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-k",
        &overlay,
    ];
    cluster.kubectl(&flags).ok();

    on(&["uninstall", "larder", "--wait"]).ok();
    let left = |kinds: &str| {
        let flags = [
            "get",
            kinds,
            "-A",
            "-o",
            "name",
            "-l",
            "app.kubernetes.io/part-of=larder",
        ];
        cluster.kubectl(&flags).ok()
    };
    let rest = "clusterrole,clusterrolebinding,role,rolebinding,serviceaccount,daemonset,deployment,poddisruptionbudget,\
                networkpolicy,configmap,validatingadmissionpolicy,validatingadmissionpolicybinding,flowschema,\
                prioritylevelconfiguration";
    assert_eq!(left(rest), "");
    // The kinds stay, and what is declared with them; a new release takes them over.
    assert_eq!(left("crd").lines().count(), 4);
    cluster.kubectl(&["get", "cipp/kept"]).ok();
    // The second time with all that it can make.
    let kinds = ["apply", "--server-side", "-f", kinds.to_str().unwrap()];
    cluster.kubectl(&kinds).ok();
    for kind in ["podmonitors", "prometheusrules"] {
        cluster.wait_for(
            "condition=Established",
            &[&format!("crd/{kind}.monitoring.coreos.com")],
        );
    }
    let install = ["install", "larder", &chart, "--set", "crds.keep=false"];
    let limits = ["--set", "tenantLimits.enabled=true"];
    on(&[&install[..], &limits, &MONITORING].concat()).ok();
    clean();
    cluster.kubectl(&["get", "cipp/kept"]).ok();
    on(&["uninstall", "larder", "--wait"]).ok();
    assert_eq!(left("crd"), "");
}

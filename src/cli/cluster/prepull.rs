//! `kubectl larder prepull`.

use std::io::{self, Write};
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::watch_object;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use super::Globals;
use super::objects::{Objects, fault, find_condition};
use super::status::failure;
use crate::cli::Done;
use crate::cli::failure::Failure;
use crate::cli::output::{Format, say};
use crate::image::Reference;
use crate::k8s::api::{
    ClusterImagePrepull, GROUP, ImagePrepull, PrepullStatus, VERSION, condition, parse_duration,
};

pub(super) const AFTER: &str = "\
Creates a ClusterImagePrepull, or with -n an ImagePrepull, of mode Once. The
same images for the same nodes have the same name, so doing it twice changes
nothing. It stays until it is deleted: then nodes may remove the images again.

Examples:
  kubectl larder prepull registry.example/app:1.3 --wait
  kubectl larder prepull app:1 db:2 -l pool=gpu --max-in-flight 20%
  kubectl larder prepull app:1 -n team --secret registry-login
  kubectl larder prepull app:1 --node node-7 --dry-run -o yaml";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The images
    #[arg(value_name = "IMAGE", required = true, num_args = 1..=256)]
    images: Vec<Reference>,
    /// Name of the prepull [default: made from images and nodes]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only this node; may be repeated
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
    /// Only nodes with these labels: KEY=VALUE,...
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "node", value_parser = labels)]
    selector: Option<Labels>,
    /// Nodes that pull at once: a number, or a share such as 10%
    #[arg(long, value_name = "N")]
    max_in_flight: Option<String>,
    /// Pull secret; may be repeated. In the namespace of -n, else NAMESPACE/NAME
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// Wait until every node has answered
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// Only print what would be created
    #[arg(long)]
    dry_run: bool,
}

/// Of nodes, all of which must be as said.
type Labels = std::collections::BTreeMap<String, String>;

fn labels(text: &str) -> Result<Labels, String> {
    text.split(',')
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !key.ends_with('!') => {
                let value = value.strip_prefix('=').unwrap_or(value);
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => Err(format!(
                "{pair:?} is not KEY=VALUE; write a ClusterImagePrepull for other conditions"
            )),
        })
        .collect()
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

pub(super) async fn run(args: &Args, globals: &Globals, objects: &Objects, terminal: bool) -> Done {
    let object = object(args, globals.namespace.as_deref())?;
    if args.dry_run {
        let format = match globals.output {
            Format::Table => Format::Yaml,
            format => format,
        };
        format.print(&object)?;
        return Ok(());
    }
    let name = object
        .pointer("/metadata/name")
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    match &globals.namespace {
        None => {
            let api: Api<ClusterImagePrepull> = Api::all(objects.client.clone());
            let status = |object: &ClusterImagePrepull| object.status.clone();
            follow(&api, name, &object, args, globals, status, terminal).await
        }
        Some(namespace) => {
            let api: Api<ImagePrepull> = namespaced(&objects.client, namespace);
            let status = |object: &ImagePrepull| object.status.clone();
            follow(&api, name, &object, args, globals, status, terminal).await
        }
    }
}

fn namespaced(client: &Client, namespace: &str) -> Api<ImagePrepull> {
    Api::namespaced(client.clone(), namespace)
}

/// The object to apply.
fn object(args: &Args, namespace: Option<&str>) -> Result<serde_json::Value, Failure> {
    let images: Vec<_> = args.images.iter().map(ToString::to_string).collect();
    let mut spec = json!({ "images": images, "mode": "Once" });
    let mut set = |key: &str, value: serde_json::Value| {
        if let Some(spec) = spec.as_object_mut() {
            spec.insert(key.to_owned(), value);
        }
    };
    if !args.node.is_empty() {
        set("nodeNames", json!(args.node));
    }
    if let Some(labels) = &args.selector {
        set("nodeSelector", json!({ "matchLabels": labels }));
    }
    if let Some(most) = &args.max_in_flight {
        let value = most
            .parse::<i32>()
            .map_or_else(|_| json!(most), |number| json!(number));
        set("rollout", json!({ "maxInFlight": value }));
    }
    if !args.secret.is_empty() {
        let secrets: Result<Vec<_>, Failure> = args
            .secret
            .iter()
            .map(|secret| match (namespace, secret.split_once('/')) {
                (Some(_), None) => Ok(json!({ "name": secret })),
                (None, Some((namespace, name))) => {
                    Ok(json!({ "namespace": namespace, "name": name }))
                }
                (Some(_), Some(_)) => Err(Failure::usage(format!(
                    "--secret {secret}: an ImagePrepull takes secrets of its own namespace only, without a slash"
                ))),
                (None, None) => Err(Failure::usage(format!(
                    "--secret {secret}: name its namespace too, NAMESPACE/NAME, or give -n for an ImagePrepull"
                ))),
            })
            .collect();
        set("pullSecrets", json!(secrets?));
    }
    let name = args.name.clone().unwrap_or_else(|| made_name(&spec));
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace
        && let Some(metadata) = metadata.as_object_mut()
    {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    let kind = match namespace {
        None => "ClusterImagePrepull",
        Some(_) => "ImagePrepull",
    };
    Ok(json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    }))
}

/// The same for the same spec.
fn made_name(spec: &serde_json::Value) -> String {
    let hash = blake3::hash(spec.to_string().as_bytes()).to_hex();
    format!("prepull-{}", hash.get(..10).unwrap_or_default())
}

async fn follow<K>(
    api: &Api<K>,
    name: &str,
    object: &serde_json::Value,
    args: &Args,
    globals: &Globals,
    status: impl Fn(&K) -> Option<PrepullStatus>,
    terminal: bool,
) -> Done
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let params = PatchParams::apply("kubectl-larder").force();
    let applied = api
        .patch(name, &params, &Patch::Apply(object))
        .await
        .map_err(|error| fault(&error))?;
    let kind = object
        .get("kind")
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default()
        .to_lowercase();
    if !args.wait {
        if !globals.output.print(object)? {
            say(format!("{kind}/{name} declared"))?;
        }
        return Ok(());
    }
    let generation = applied.meta().generation.unwrap_or_default();
    let mut shown = String::new();
    let waiting = async {
        let mut stream = std::pin::pin!(watch_object(api.clone(), name));
        while let Some(event) = stream.next().await {
            let Ok(seen) = event else { continue };
            let Some(seen) = seen else {
                return Err(Failure::not_found(format!("{kind}/{} was deleted", name)));
            };
            let status = status(&seen).unwrap_or_default();
            let line = progress(&status);
            if line != shown {
                show(&line, terminal)?;
                shown = line;
            }
            match end(&status, generation) {
                None => {}
                Some(Ok(())) => return Ok(()),
                Some(Err(message)) => {
                    return Err(Failure::new(format!(
                        "{kind}/{}: {message}",
                        seen.name_any()
                    )));
                }
            }
        }
        Err(Failure::new("the API server ended the watch"))
    };
    let result = timeout(args.timeout, waiting).await.unwrap_or_else(|_| {
        Err(Failure::new(format!(
            "{kind}/{name} is not done after {:?}; it goes on: kubectl larder status {name}",
            args.timeout
        )))
    });
    if terminal {
        let _ = writeln!(io::stderr());
    }
    result?;
    say(format!("{kind}/{name} is ready"))?;
    Ok(())
}

/// One line that is written over, or a line each.
fn show(line: &str, terminal: bool) -> io::Result<()> {
    let mut out = io::stderr().lock();
    match terminal {
        true => write!(out, "\r\x1b[K{line}"),
        false => writeln!(out, "{line}"),
    }?;
    out.flush()
}

fn progress(status: &PrepullStatus) -> String {
    let unresolved = find_condition(&status.conditions, condition::RESOLVED, "False");
    if let Some(condition) = unresolved {
        return format!("not resolved, {}: {}", condition.reason, condition.message);
    }
    let nodes = &status.nodes;
    let mut line = format!("{} of {} nodes ready", nodes.ready, nodes.desired);
    for (number, word) in [(nodes.failed, "failed"), (nodes.unreachable, "unreachable")] {
        if number > 0 {
            line += &format!(", {number} {word}");
        }
    }
    line
}

/// Whether there is nothing to wait for any more, well or ill.
fn end(status: &PrepullStatus, generation: i64) -> Option<Result<(), String>> {
    if status.observed_generation.unwrap_or(0) < generation {
        return None;
    }
    let is = |kind: &str, value: &str| find_condition(&status.conditions, kind, value);
    if is(condition::READY, "True").is_some() {
        return Some(Ok(()));
    }
    let failures = || {
        let lines = status.failures.iter().map(failure);
        lines.map(|line| format!("\n{line}")).collect::<String>()
    };
    if let Some(condition) = is(condition::STALLED, "True") {
        return Some(Err(format!(
            "stalled, {}: {}{}",
            condition.reason,
            condition.message,
            failures()
        )));
    }
    let nodes = &status.nodes;
    let answered = nodes.ready + nodes.failed + nodes.unreachable;
    (nodes.failed > 0 && answered >= nodes.desired)
        .then(|| Err(format!("{}{}", progress(status), failures())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::NodeCounts;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line::try_parse_from([&["prepull"], line].concat())
            .unwrap()
            .args
    }

    #[test]
    fn the_object_is_what_was_asked_for() {
        let object = object(
            &args(&[
                "app:1",
                "-l",
                "pool=gpu,zone==a",
                "--max-in-flight",
                "3",
                "--secret",
                "ns/s",
            ]),
            None,
        )
        .unwrap();
        assert_eq!(object["kind"], "ClusterImagePrepull");
        assert_eq!(object["spec"]["images"], json!(["docker.io/library/app:1"]));
        assert_eq!(
            object["spec"]["nodeSelector"]["matchLabels"],
            json!({ "pool": "gpu", "zone": "a" })
        );
        assert_eq!(object["spec"]["rollout"]["maxInFlight"], 3);
        assert_eq!(
            object["spec"]["pullSecrets"],
            json!([{ "namespace": "ns", "name": "s" }])
        );
        let read: ClusterImagePrepull = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(read.spec.shared.images.len(), 1);
        let again = super::object(&args(&["app:1", "--node", "a"]), Some("team")).unwrap();
        assert_eq!(again["kind"], "ImagePrepull");
        assert_eq!(again["metadata"]["namespace"], "team");
        assert_ne!(again["metadata"]["name"], object["metadata"]["name"]);
    }

    #[test]
    fn secrets_are_named_as_their_kind_wants_them() {
        assert!(super::object(&args(&["a", "--secret", "s"]), None).is_err());
        assert!(super::object(&args(&["a", "--secret", "n/s"]), Some("t")).is_err());
        assert!(super::object(&args(&["a", "--secret", "s"]), Some("t")).is_ok());
        assert!(labels("a,b=c").is_err());
        assert!(labels("a!=c").is_err());
    }

    #[test]
    fn waiting_ends_when_every_node_answered() {
        let status = |desired, ready, failed| PrepullStatus {
            observed_generation: Some(2),
            nodes: NodeCounts {
                desired,
                ready,
                failed,
                ..NodeCounts::default()
            },
            ..PrepullStatus::default()
        };
        assert_eq!(end(&status(3, 3, 0), 3), None);
        assert_eq!(end(&status(3, 1, 1), 2), None);
        assert!(end(&status(3, 2, 1), 2).unwrap().is_err());
    }
}

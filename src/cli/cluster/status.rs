//! `kubectl larder status`.

use serde::Serialize;

use super::Globals;
use super::objects::{Objects, Prepull, find_condition};
use crate::cli::Done;
use crate::cli::failure::Failure;
use crate::cli::output::{count, facts, familiar, say, short, table, wrapped};
use crate::k8s::api::{ImagePrunePolicy, NodeImageCache, PrepullFailure, PruneMode, condition};

/// Of a terminal.
const WIDTH: usize = 80;

pub(super) const AFTER: &str = "\
Examples:
  kubectl larder status
  kubectl larder status base                          one prepull: digests, failures
  kubectl larder status -o json | jq '.prepulls[] | select(.failed > 0)'";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this prepull, in detail
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    nodes: Nodes,
    prepulls: Vec<PrepullView>,
    policies: Vec<PolicyView>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Nodes {
    reporting: usize,
    ready: usize,
    disk_pressure: usize,
    unhealthy: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PrepullView {
    name: String,
    ready: i64,
    desired: i64,
    admitted: i64,
    failed: i64,
    unreachable: i64,
    revision: String,
    state: &'static str,
    reason: String,
    message: String,
    images: Vec<ImageView>,
    failures: Vec<PrepullFailure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageView {
    image: String,
    digest: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyView {
    name: String,
    mode: PruneMode,
    done: i64,
    desired: i64,
    removed_images: i64,
    freed_bytes: i64,
    would_free_bytes: i64,
}

pub(super) async fn run(args: &Args, globals: &Globals, objects: &Objects) -> Done {
    let (mut prepulls, policies, caches) =
        tokio::try_join!(objects.prepulls(), objects.policies(), objects.caches())?;
    if let Some(name) = &args.name {
        // Its bare name, or with as much before it as tells it apart.
        let suffix = format!("/{name}");
        prepulls.retain(|prepull| prepull.name == *name || prepull.name.ends_with(&suffix));
        if prepulls.is_empty() {
            return Err(Failure::not_found(format!("there is no prepull {name}")));
        }
    }
    let view = view(prepulls, policies, &caches);
    if !globals.output.print(&view)? {
        say(match &args.name {
            None => text(&view),
            Some(_) => details(&view),
        })?;
    }
    Ok(())
}

fn view(
    prepulls: Vec<Prepull>,
    policies: Vec<ImagePrunePolicy>,
    caches: &[NodeImageCache],
) -> View {
    View {
        nodes: nodes(caches),
        prepulls: prepulls.into_iter().map(prepull).collect(),
        policies: policies.into_iter().map(policy).collect(),
    }
}

fn nodes(caches: &[NodeImageCache]) -> Nodes {
    let mut nodes = Nodes {
        reporting: caches.len(),
        ..Nodes::default()
    };
    for status in caches.iter().filter_map(|cache| cache.status.as_ref()) {
        let is =
            |kind: &str, value: &str| find_condition(&status.conditions, kind, value).is_some();
        nodes.ready += usize::from(is(condition::READY, "True"));
        nodes.disk_pressure += usize::from(is(condition::DISK_PRESSURE, "True"));
        nodes.unhealthy += usize::from(is(condition::STORE_HEALTHY, "False"));
    }
    nodes
}

fn prepull(prepull: Prepull) -> PrepullView {
    let (state, reason, message) = state(&prepull);
    let (spec, status) = (prepull.spec, prepull.status);
    let rollout = status.rollout.unwrap_or_default();
    let mut images: Vec<_> = status
        .resolved
        .into_iter()
        .map(|image| ImageView {
            image: image.image,
            digest: image.digest,
        })
        .collect();
    for image in spec.images {
        if !images.iter().any(|resolved| resolved.image == image) {
            images.push(ImageView {
                image,
                digest: String::new(),
            });
        }
    }
    PrepullView {
        name: prepull.name,
        ready: status.nodes.ready,
        desired: status.nodes.desired,
        admitted: status.nodes.admitted,
        failed: status.nodes.failed,
        unreachable: status.nodes.unreachable,
        revision: rollout.revision,
        state,
        reason,
        message,
        images,
        failures: status.failures,
    }
}

/// One word for where a prepull is, and why: the first condition that a person should look at.
fn state(prepull: &Prepull) -> (&'static str, String, String) {
    let status = &prepull.status;
    if status.observed_generation.unwrap_or(0) < prepull.generation {
        let message = "the controller has not looked at the spec yet".to_owned();
        return ("Pending", String::new(), message);
    }
    let table = [
        (condition::STALLED, "True", "Stalled"),
        (condition::RESOLVED, "False", "Unresolved"),
        (condition::READY, "True", "Ready"),
        (condition::PROGRESSING, "True", "Progressing"),
        (condition::READY, "False", "NotReady"),
    ];
    for (kind, value, word) in table {
        if let Some(condition) = find_condition(&status.conditions, kind, value) {
            return (word, condition.reason.clone(), condition.message.clone());
        }
    }
    ("Unknown", String::new(), String::new())
}

fn policy(policy: ImagePrunePolicy) -> PolicyView {
    let status = policy.status.unwrap_or_default();
    PolicyView {
        name: policy.metadata.name.unwrap_or_default(),
        mode: policy.spec.mode,
        done: status.nodes.done,
        desired: status.nodes.desired,
        removed_images: status.removed_images,
        freed_bytes: status.freed_bytes,
        would_free_bytes: status.would_free_bytes,
    }
}

fn text(view: &View) -> String {
    let mut parts = Vec::new();
    let nodes = &view.nodes;
    let mut line = format!(
        "{} reporting, {} ready",
        count(nodes.reporting as u64, "node"),
        nodes.ready
    );
    if nodes.disk_pressure > 0 {
        line += &format!(", {} short of space", nodes.disk_pressure);
    }
    if nodes.unhealthy > 0 {
        line += &format!(", {} with a damaged store", nodes.unhealthy);
    }
    parts.push(line);
    if view.prepulls.is_empty() {
        parts.push("No prepull is declared.".to_owned());
    } else {
        parts.push(table(
            ["PREPULL", "READY", "FAILED", "UNREACHABLE", "STATE", "WHY"],
            view.prepulls.iter().map(|prepull| {
                [
                    prepull.name.clone(),
                    format!("{}/{}", prepull.ready, prepull.desired),
                    prepull.failed.to_string(),
                    prepull.unreachable.to_string(),
                    prepull.state.to_owned(),
                    prepull.reason.clone(),
                ]
            }),
            &[1, 2, 3],
        ));
    }
    let failures: Vec<_> = view
        .prepulls
        .iter()
        .flat_map(|prepull| prepull.failures.iter().map(failure))
        .collect();
    if !failures.is_empty() {
        parts.push(failures.join("\n"));
    }
    if !view.policies.is_empty() {
        parts.push(table(
            [
                "PRUNE POLICY",
                "MODE",
                "DONE",
                "REMOVED",
                "FREED",
                "WOULD FREE",
            ],
            view.policies.iter().map(|policy| {
                let bytes =
                    |bytes: i64| crate::cli::output::size(u64::try_from(bytes).unwrap_or(0));
                [
                    policy.name.clone(),
                    format!("{:?}", policy.mode),
                    format!("{}/{}", policy.done, policy.desired),
                    policy.removed_images.to_string(),
                    bytes(policy.freed_bytes),
                    bytes(policy.would_free_bytes),
                ]
            }),
            &[2, 3, 4, 5],
        ));
    }
    parts.join("\n\n")
}

/// What keeps nodes from being ready, in sentences.
pub(super) fn failure(failure: &PrepullFailure) -> String {
    let on = match (failure.node.as_str(), failure.nodes) {
        ("", _) => String::new(),
        (node, 0 | 1) => format!(" on {node}"),
        (node, nodes) => format!(" on {node} and {} more", nodes - 1),
    };
    let line = format!(
        "{}{on}: {}: {}",
        familiar(&failure.image),
        failure.reason,
        failure.message
    );
    wrapped(&line, "  ", WIDTH)
}

fn details(view: &View) -> String {
    let parts = view.prepulls.iter().map(|prepull| {
        let mut lines = vec![
            ("PREPULL", prepull.name.clone()),
            ("STATE", format!("{} {}", prepull.state, prepull.reason)),
            ("REVISION", prepull.revision.clone()),
            (
                "NODES",
                format!(
                    "{} chosen, {} admitted, {} ready, {} failed, {} unreachable",
                    prepull.desired,
                    prepull.admitted,
                    prepull.ready,
                    prepull.failed,
                    prepull.unreachable
                ),
            ),
        ];
        if !prepull.message.is_empty() {
            lines.insert(2, ("WHY", prepull.message.clone()));
        }
        let mut parts = vec![facts(&lines)];
        parts.push(table(
            ["IMAGE", "DIGEST"],
            prepull.images.iter().map(|image| {
                let digest = match image.digest.as_str() {
                    "" => "not resolved yet".to_owned(),
                    digest => short(digest).to_owned(),
                };
                [familiar(&image.image), digest]
            }),
            &[],
        ));
        if !prepull.failures.is_empty() {
            parts.push(
                prepull
                    .failures
                    .iter()
                    .map(failure)
                    .collect::<Vec<_>>()
                    .join("\n"),
            );
        }
        parts.join("\n\n")
    });
    parts.collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::*;
    use crate::k8s::api::{NodeCounts, PrepullStatus, SharedPrepullSpec};

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        serde_json::from_value(serde_json::json!({
            "type": kind, "status": status, "reason": reason, "message": "because",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    fn base(conditions: Vec<Condition>) -> Prepull {
        Prepull {
            name: "clusterimageprepull/base".to_owned(),
            uid: "u".to_owned(),
            generation: 2,
            spec: SharedPrepullSpec {
                images: vec!["registry.example/app:1".to_owned()],
                ..SharedPrepullSpec::default()
            },
            status: PrepullStatus {
                observed_generation: Some(2),
                nodes: NodeCounts {
                    desired: 3,
                    ready: 1,
                    failed: 2,
                    ..NodeCounts::default()
                },
                failures: vec![PrepullFailure {
                    image: "registry.example/app:1".to_owned(),
                    node: "n1".to_owned(),
                    nodes: 2,
                    reason: "NotFound".to_owned(),
                    message: "the registry has no such tag".to_owned(),
                }],
                conditions,
                ..PrepullStatus::default()
            },
        }
    }

    #[test]
    fn the_state_is_what_a_person_should_look_at_first() {
        let all = |stalled, ready, progressing| {
            vec![
                condition("Ready", ready, "R"),
                condition("Progressing", progressing, "P"),
                condition("Stalled", stalled, "S"),
                condition("Resolved", "True", "AllResolved"),
            ]
        };
        for (conditions, want) in [
            (all("True", "False", "False"), ("Stalled", "S")),
            (all("False", "True", "False"), ("Ready", "R")),
            (all("False", "False", "True"), ("Progressing", "P")),
            (all("False", "False", "False"), ("NotReady", "R")),
            (vec![], ("Unknown", "")),
        ] {
            let (word, reason, _) = state(&base(conditions));
            assert_eq!((word, reason.as_str()), want);
        }
        let mut stale = base(vec![condition("Ready", "True", "R")]);
        stale.generation = 3;
        assert_eq!(state(&stale).0, "Pending");
    }

    #[test]
    fn failures_name_image_nodes_and_cause() {
        let view = view(vec![base(vec![])], vec![], &[]);
        let text = text(&view);
        let words: Vec<_> = text.split_whitespace().collect();
        let want =
            "registry.example/app:1 on n1 and 1 more: NotFound: the registry has no such tag";
        assert!(words.join(" ").contains(want), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert!(details(&view).contains("not resolved yet"));
    }
}

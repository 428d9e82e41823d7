//! `kubectl larder prune`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Globals;
use super::agents::{Chosen, answered, ask};
use super::objects::Objects;
use crate::app::read_policies;
use crate::cli::Done;
use crate::cli::client::images_client;
use crate::cli::failure::Failure;
use crate::cli::output::{familiar, say, size, table, wrapped};
use crate::cli::prune::View;
use crate::control::proto::PruneRequest;
use crate::control::prune_policy;
use crate::k8s::api::{NodeImageCache, PruneReport, PruneState};

pub(super) const AFTER: &str = "\
Only rehearses: nodes remove by policy, or by \"larder prune\" on the node.
Without --policy: what nodes report of the policies in force. With it: agents
are asked what the policies of a file would do on their node now, at most 50
agents unless told; which nodes the policies choose is not looked at.

Examples:
  kubectl larder prune --dry-run
  kubectl larder prune --dry-run --policy ci.yaml -l pool=ci
  kubectl larder prune --dry-run -o json | jq '.[] | select(.wouldFreeBytes > 1e10)'";

/// Images shown of each node.
const LARGEST: usize = 5;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Say what would go; there is nothing else that this verb does
    #[arg(long)]
    dry_run: bool,
    /// Ask agents about these prune policies: a YAML file, a folder of them, or - for standard input
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    chosen: Chosen,
}

/// What policies of a file would do on one node.
#[derive(Debug, Serialize)]
struct Rehearsal {
    node: String,
    #[serde(flatten)]
    view: View,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    policy: String,
    state: PruneState,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    would_remove_images: i64,
    would_free_bytes: u64,
    removed_images: i64,
    freed_bytes: u64,
    top: Vec<Top>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Top {
    image: String,
    rule: String,
    bytes: u64,
}

pub(super) async fn run(args: &Args, globals: &Globals, objects: &Objects) -> Done {
    if !args.dry_run {
        return Err(Failure::usage(
            "prune only rehearses here: give --dry-run; an ImagePrunePolicy with mode Enforce removes",
        ));
    }
    if let Some(path) = &args.policy {
        return rehearse(path, args, globals, objects).await;
    }
    let mut rows: Vec<_> = objects
        .caches()
        .await?
        .into_iter()
        .flat_map(rows_of)
        .collect();
    rows.sort_by(|a, b| {
        b.would_free_bytes
            .cmp(&a.would_free_bytes)
            .then_with(|| a.node.cmp(&b.node))
    });
    if !globals.output.print(&rows)? {
        say(text(&rows))?;
    }
    Ok(())
}

async fn rehearse(path: &Path, args: &Args, globals: &Globals, objects: &Objects) -> Done {
    let policies = read_policies(path).map_err(|error| Failure::usage(format!("{error:#}")))?;
    let request = PruneRequest {
        policies: policies
            .iter()
            .map(|file| prune_policy(&file.policy))
            .collect(),
        dry_run: true,
    };
    let answers = ask(objects, globals, &args.chosen, move |channel| {
        let request = request.clone();
        async move { Ok(images_client(channel).prune(request).await?.into_inner()) }
    })
    .await?;
    let mut rehearsals: Vec<_> = answered(answers)?
        .into_iter()
        .map(|(node, answer)| {
            let mut view = View::default();
            view.take(answer, true);
            Rehearsal { node, view }
        })
        .collect();
    rehearsals.sort_by(|a, b| {
        let bytes = |rehearsal: &Rehearsal| rehearsal.view.would_free_bytes;
        bytes(b).cmp(&bytes(a)).then_with(|| a.node.cmp(&b.node))
    });
    if !globals.output.print(&rehearsals)? {
        say(rehearsed(&rehearsals))?;
    }
    Ok(())
}

fn rehearsed(rehearsals: &[Rehearsal]) -> String {
    let nodes = table(
        ["NODE", "WOULD GO", "BYTES"],
        rehearsals.iter().map(|rehearsal| {
            [
                rehearsal.node.clone(),
                rehearsal.view.remove.len().to_string(),
                size(rehearsal.view.would_free_bytes),
            ]
        }),
        &[1, 2],
    );
    let largest = rehearsals.iter().flat_map(|rehearsal| {
        let mut removals: Vec<_> = rehearsal.view.remove.iter().collect();
        removals.sort_by_key(|removal| std::cmp::Reverse(removal.bytes));
        removals.truncate(LARGEST);
        removals.into_iter().map(move |removal| {
            [
                rehearsal.node.clone(),
                familiar(removal.names.first().map_or("<none>", String::as_str)),
                removal.rule.clone(),
                size(removal.bytes),
            ]
        })
    });
    let largest: Vec<_> = largest.collect();
    if largest.is_empty() {
        return nodes;
    }
    let largest = table(["NODE", "IMAGE", "RULE", "BYTES"], largest, &[3]);
    format!("{nodes}\n\n{largest}")
}

/// One for each policy that chooses the node.
fn rows_of(cache: NodeImageCache) -> Vec<Row> {
    let node = cache.metadata.name.unwrap_or_default();
    let prunes = cache.status.unwrap_or_default().prunes;
    prunes.into_iter().map(|prune| row(&node, prune)).collect()
}

fn row(node: &str, prune: PruneReport) -> Row {
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    Row {
        node: node.to_owned(),
        policy: prune.policy,
        state: prune.state,
        reason: prune.reason,
        message: prune.message,
        would_remove_images: prune.would_remove_images,
        would_free_bytes: bytes(prune.would_free_bytes),
        removed_images: prune.removed_images,
        freed_bytes: bytes(prune.freed_bytes),
        top: prune
            .top
            .into_iter()
            .map(|top| Top {
                image: top.image,
                rule: top.rule,
                bytes: bytes(top.bytes),
            })
            .collect(),
    }
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No node has looked by a prune policy yet: kubectl get iprune".to_owned();
    }
    let nodes = table(
        [
            "NODE", "POLICY", "STATE", "WOULD GO", "BYTES", "WENT", "BYTES",
        ],
        rows.iter().map(|row| {
            [
                row.node.clone(),
                row.policy.clone(),
                format!("{:?}", row.state),
                row.would_remove_images.to_string(),
                size(row.would_free_bytes),
                row.removed_images.to_string(),
                size(row.freed_bytes),
            ]
        }),
        &[3, 4, 5, 6],
    );
    let images = rows.iter().flat_map(|row| {
        row.top.iter().map(move |top| {
            [
                row.node.clone(),
                familiar(&top.image),
                top.rule.clone(),
                size(top.bytes),
            ]
        })
    });
    let images: Vec<_> = images.collect();
    let mut parts = vec![nodes];
    if !images.is_empty() {
        parts.push(table(["NODE", "IMAGE", "RULE", "BYTES"], images, &[3]));
    }
    let faults = rows.iter().filter(|row| !row.message.is_empty());
    let faults: Vec<_> = faults
        .map(|row| {
            let line = format!(
                "{}, {}: {}: {}",
                row.node, row.policy, row.reason, row.message
            );
            wrapped(&line, "  ", 80)
        })
        .collect();
    if !faults.is_empty() {
        parts.push(faults.join("\n"));
    }
    parts.join("\n\n")
}

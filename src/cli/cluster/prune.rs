//! `kubectl larder prune`.

use serde::Serialize;

use super::Globals;
use super::objects::Objects;
use crate::cli::Done;
use crate::cli::failure::Failure;
use crate::cli::output::{familiar, say, size, table, wrapped};
use crate::k8s::api::{NodeImageCache, PruneReport, PruneState};

pub(super) const AFTER: &str = "\
Only rehearses: nodes remove by policy, or by \"larder prune\" on the node.

Examples:
  kubectl larder prune --dry-run
  kubectl larder prune --dry-run -o json | jq '.[] | select(.wouldFreeBytes > 1e10)'";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Say what would go; there is nothing else that this verb does
    #[arg(long)]
    dry_run: bool,
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

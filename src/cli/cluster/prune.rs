//! `kubectl larder prune`.

use serde::Serialize;

use super::Globals;
use super::objects::Objects;
use crate::cli::Done;
use crate::cli::failure::Failure;
use crate::cli::output::{familiar, say, size, table};
use crate::k8s::api::NodeImageCache;

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
        .filter_map(row)
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

fn row(cache: NodeImageCache) -> Option<Row> {
    let prune = cache.status?.prune?;
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    Some(Row {
        node: cache.metadata.name.unwrap_or_default(),
        policy: prune.policy,
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
    })
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No node has looked by a prune policy yet: kubectl get iprune".to_owned();
    }
    let nodes = table(
        ["NODE", "POLICY", "WOULD FREE", "REMOVED", "FREED"],
        rows.iter().map(|row| {
            [
                row.node.clone(),
                row.policy.clone(),
                size(row.would_free_bytes),
                row.removed_images.to_string(),
                size(row.freed_bytes),
            ]
        }),
        &[2, 3, 4],
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
    if images.is_empty() {
        return nodes;
    }
    let images = table(["NODE", "IMAGE", "RULE", "BYTES"], images, &[3]);
    format!("{nodes}\n\n{images}")
}

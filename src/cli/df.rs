//! `larder df`.

use serde::Serialize;

use super::Done;
use super::client::Client;
use super::output::{count, facts, percent, say, size};
use super::run::Terminal;
use crate::control::proto::{UsageRequest, UsageResponse};

pub(super) const AFTER: &str = "\
Contents are what the files of all layers add up to, each layer counted once.
On disk is what the store really occupies, with what is kept for the mirror;
the rest of it falls short of the contents by what files that several layers
have in common would take once more.

Examples:
  larder df
  larder df -o json | jq .storedBytes";

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    root: String,
    images: u64,
    layers: u64,
    segments: u64,
    inodes: u64,
    logical_bytes: u64,
    stored_bytes: u64,
    kept_bytes: u64,
    saved_bytes: u64,
}

pub(super) async fn run(_: &Args, client: &mut Client, terminal: &Terminal) -> Done {
    let answer = client.images.usage(UsageRequest {}).await;
    let usage = client.answer(answer)?;
    if terminal.quiet {
        say(usage.stored_bytes)?;
        return Ok(());
    }
    let view = View {
        root: usage.root.clone(),
        images: usage.images,
        layers: usage.layers,
        segments: usage.segments,
        inodes: usage.inodes,
        logical_bytes: usage.logical_bytes,
        stored_bytes: usage.stored_bytes,
        kept_bytes: usage.kept_bytes,
        saved_bytes: saved(&usage),
    };
    if !terminal.format().print(&view)? {
        say(text(&usage))?;
    }
    Ok(())
}

fn saved(usage: &UsageResponse) -> u64 {
    let contents = usage.stored_bytes.saturating_sub(usage.kept_bytes);
    usage.logical_bytes.saturating_sub(contents)
}

fn text(usage: &UsageResponse) -> String {
    let saved = saved(usage);
    let share = percent(saved, usage.logical_bytes)
        .map(|percent| format!(" ({percent}%)"))
        .unwrap_or_default();
    let mut rows = vec![
        ("STORE", usage.root.clone()),
        ("IMAGES", usage.images.to_string()),
        ("LAYERS", usage.layers.to_string()),
        ("CONTENTS", size(usage.logical_bytes)),
        (
            "ON DISK",
            format!(
                "{} in {}, {} of them packs",
                size(usage.stored_bytes),
                count(usage.inodes, "file"),
                usage.segments
            ),
        ),
        ("SAVED", format!("{}{share}", size(saved))),
    ];
    if usage.kept_bytes > 0 {
        let kept = format!("{} as registries serve it", size(usage.kept_bytes));
        rows.push(("KEPT", kept));
    }
    facts(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        let usage = UsageResponse {
            logical_bytes: 4_000_000_000,
            stored_bytes: 1_000_000_000,
            inodes: 93,
            images: 6,
            layers: 40,
            segments: 12,
            root: "/var/lib/larder".to_owned(),
            kept_bytes: 0,
        };
        assert_eq!(
            text(&usage),
            "\
STORE     /var/lib/larder
IMAGES    6
LAYERS    40
CONTENTS  4.00GB
ON DISK   1.00GB in 93 files, 12 of them packs
SAVED     3.00GB (75%)"
        );
        let usage = UsageResponse {
            stored_bytes: 1_500_000_000,
            kept_bytes: 500_000_000,
            ..usage
        };
        let shown = text(&usage);
        let end = "SAVED     3.00GB (75%)\nKEPT      500MB as registries serve it";
        assert!(shown.ends_with(end), "{shown}");
        // An empty store has more on disk than in layers.
        let usage = UsageResponse {
            stored_bytes: 4096,
            ..UsageResponse::default()
        };
        assert!(text(&usage).ends_with("SAVED     0B"));
    }
}

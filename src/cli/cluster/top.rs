//! `kubectl larder top`.

use jiff::Timestamp;
use serde::Serialize;

use super::Globals;
use super::objects::Objects;
use crate::cli::Done;
use crate::cli::output::{ago, percent, say, size, table};
use crate::k8s::api::NodeImageCache;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rows at most; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    images: u64,
    stored_bytes: u64,
    logical_bytes: u64,
    available_bytes: u64,
    capacity_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    observed_time: String,
}

pub(super) async fn run(args: &Args, globals: &Globals, objects: &Objects) -> Done {
    let mut rows: Vec<_> = objects.caches().await?.into_iter().map(row).collect();
    fullest_first(&mut rows);
    if args.limit > 0 {
        rows.truncate(args.limit);
    }
    if !globals.output.print(&rows)? {
        say(text(&rows, Timestamp::now()))?;
    }
    Ok(())
}

fn row(cache: NodeImageCache) -> Row {
    let status = cache.status.unwrap_or_default();
    let store = status.store.unwrap_or_default();
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    Row {
        node: cache.metadata.name.unwrap_or_default(),
        images: number(store.images),
        stored_bytes: number(store.stored_bytes),
        logical_bytes: number(store.logical_bytes),
        available_bytes: number(store.available_bytes.unwrap_or_default()),
        capacity_bytes: number(store.capacity_bytes.unwrap_or_default()),
        observed_time: status
            .observed_time
            .map(|time| time.0.to_string())
            .unwrap_or_default(),
    }
}

/// By the share of the file system that is free; nodes that never reported are last.
fn fullest_first(rows: &mut [Row]) {
    rows.sort_by(|a, b| {
        let free = |row: &Row| match row.capacity_bytes {
            0 => u128::MAX,
            capacity => u128::from(row.available_bytes) * 1_000_000 / u128::from(capacity),
        };
        free(a).cmp(&free(b)).then_with(|| a.node.cmp(&b.node))
    });
}

fn text(rows: &[Row], now: Timestamp) -> String {
    if rows.is_empty() {
        return "No node reports: does an agent run, and may it write?".to_owned();
    }
    table(
        [
            "NODE", "IMAGES", "STORED", "FREE", "OF", "FREE%", "REPORTED",
        ],
        rows.iter().map(|row| {
            let free = percent(row.available_bytes, row.capacity_bytes);
            // The agent beside a runtime may not see the runtime's file system.
            let known = |bytes| match row.capacity_bytes {
                0 => "-".to_owned(),
                _ => size(bytes),
            };
            [
                row.node.clone(),
                row.images.to_string(),
                size(row.stored_bytes),
                known(row.available_bytes),
                known(row.capacity_bytes),
                free.map_or_else(|| "-".to_owned(), |free| format!("{free}%")),
                ago(&row.observed_time, now),
            ]
        }),
        &[1, 2, 3, 4, 5],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: &str, available: u64, capacity: u64) -> Row {
        Row {
            node: node.to_owned(),
            images: 3,
            stored_bytes: 2_000_000_000,
            logical_bytes: 3_000_000_000,
            available_bytes: available,
            capacity_bytes: capacity,
            observed_time: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    #[test]
    fn the_fullest_disk_is_first_and_silent_nodes_are_last() {
        let mut rows = vec![
            row("silent", 0, 0),
            row("half", 50, 100),
            row("b", 5, 100),
            row("a", 500, 10_000),
        ];
        fullest_first(&mut rows);
        let order: Vec<_> = rows.iter().map(|row| row.node.as_str()).collect();
        assert_eq!(order, ["a", "b", "half", "silent"]);
    }

    #[test]
    fn a_row_fits_a_terminal() {
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let text = text(
            &[row("node-0123456789", 500_000_000_000, 1_000_000_000_000)],
            now,
        );
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= 80), "{text}");
        let words: Vec<_> = text.split_whitespace().skip(7).collect();
        let want = "node-0123456789 3 2.00GB 500GB 1.00TB 50% 5 minutes ago";
        assert_eq!(words.join(" "), want);
    }
}

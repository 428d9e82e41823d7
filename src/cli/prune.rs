//! `larder prune`.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::Done;
use super::client::Client;
use super::failure::Failure;
use super::output::{self, count, familiar, printable, say, short_id, size, wrapped};
use super::run::Terminal;
use crate::app::read_policies;
use crate::control::proto::{PruneKept, PruneRemoval, PruneRequest, PruneResponse};
use crate::control::prune_policy;
use crate::prune::{Match, Operator, Policy, Requirement, Rule, Selector};

pub(super) const AFTER: &str = "\
Without --policy: images without a tag, or with -a all that nothing uses.
Filters are those of docker: until=24h or a time, label=KEY[=VALUE] and
label!=KEY[=VALUE]; an image is as old as its pull.

With --policy: what the ImagePrunePolicy objects of a file, or of the files of
a folder, select. Those whose mode is not Enforce remove nothing, they tell
what would go. Which nodes they choose is not looked at.

What is in use by a container, pinned, declared by a prepull, mounted or being
pulled never goes. Where the agent is told of a container runtime that does not
answer, nothing does.

Examples:
  larder prune --dry-run
  larder prune -a --filter until=24h
  larder prune --policy policies/ --dry-run --explain
  larder prune --policy ci.yaml -o json | jq -r '.remove[].id'";

/// Columns of a terminal that nobody knows the width of.
const WIDTH: usize = 80;
/// Least and most columns of names.
const NAMES: (usize, usize) = (20, 60);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// All images that nothing uses, not only those without a tag
    #[arg(short, long)]
    all: bool,
    /// Only images that match: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Prune policies: a YAML file, a folder of them, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "filter"])]
    policy: Option<PathBuf>,
    /// Remove nothing; show what would go
    #[arg(long)]
    dry_run: bool,
    /// Show why every other image stays, too
    #[arg(long)]
    explain: bool,
    /// Nobody is asked anyway
    #[arg(short, long, hide = true)]
    force: bool,
}

/// One question to the agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    policies: Vec<Policy>,
    dry_run: bool,
}

impl Args {
    /// What is to be asked, before anybody is.
    pub(super) fn runs(&self) -> Result<Vec<Run>, Failure> {
        let Some(path) = &self.policy else {
            let images = filters(&self.filter, Timestamp::now()).map_err(Failure::usage)?;
            let rule = Rule {
                images: Match {
                    untagged: !self.all,
                    ..images
                },
                unused_for: Some(std::time::Duration::ZERO),
                ..Rule::default()
            };
            return Ok(vec![Run {
                policies: vec![Policy {
                    name: "prune".to_owned(),
                    rules: vec![rule],
                    max_removals: None,
                }],
                dry_run: self.dry_run,
            }]);
        };
        let policies = read_policies(path).map_err(|error| Failure::usage(format!("{error:#}")))?;
        if self.dry_run {
            let policies = policies.into_iter().map(|file| file.policy).collect();
            return Ok(vec![Run {
                policies,
                dry_run: true,
            }]);
        }
        // First what goes, then what would go of the rest.
        let (enforced, rehearsed): (Vec<_>, Vec<_>) =
            policies.into_iter().partition(|file| file.enforces);
        let runs = [(enforced, false), (rehearsed, true)].into_iter();
        Ok(runs
            .filter(|(policies, _)| !policies.is_empty())
            .map(|(policies, dry_run)| Run {
                policies: policies.into_iter().map(|file| file.policy).collect(),
                dry_run,
            })
            .collect())
    }
}

/// Docker's filters.
fn filters(filters: &[String], now: Timestamp) -> Result<Match, String> {
    let mut images = Match::default();
    for filter in filters {
        let wrong = || {
            format!(
                "{filter:?} is no filter: write until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]"
            )
        };
        let (key, value) = filter.split_once('=').ok_or_else(wrong)?;
        let (positive, negative) = match key {
            "until" => {
                let before = until(value, now).ok_or_else(|| {
                    format!("{value:?} is no time: write a duration such as 24h or 1h30m, or a time such as 2026-11-21T12:00:00Z")
                })?;
                // Each narrows what goes.
                let earlier = images
                    .pulled_before
                    .map_or(before, |known| known.min(before));
                images.pulled_before = Some(earlier);
                continue;
            }
            "label" => (Operator::In, Operator::Exists),
            "label!" => (Operator::NotIn, Operator::DoesNotExist),
            _ => return Err(wrong()),
        };
        let (key, operator, values) = match value.split_once('=') {
            Some((key, value)) => (key, positive, vec![value.to_owned()]),
            None => (value, negative, Vec::new()),
        };
        if key.is_empty() {
            return Err(wrong());
        }
        images.labels.requirements.push(Requirement {
            key: key.to_owned(),
            operator,
            values,
        });
    }
    let Selector { requirements } = &images.labels;
    if requirements.len() > 64 {
        return Err("more than 64 labels".to_owned());
    }
    Ok(images)
}

/// A time, or how long ago: as docker takes both.
fn until(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some(ago) = duration(text) {
        return now.checked_sub(ago).ok();
    }
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    if let Ok(seconds) = text.parse() {
        return Timestamp::from_second(seconds).ok();
    }
    // Without a zone: UTC, as everywhere in a cluster.
    let time = text.parse::<jiff::civil::DateTime>().ok()?;
    format!("{time}Z").parse().ok()
}

/// `1h30m`, `90s`, `500ms`; days are no unit of Go's.
fn duration(text: &str) -> Option<std::time::Duration> {
    let mut total = std::time::Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at_checked(digits)?;
        let end = unit
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(unit.len());
        let (unit, next) = unit.split_at_checked(end)?;
        let number: u64 = number.parse().ok()?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let part = std::time::Duration::from_millis(number.checked_mul(milliseconds)?);
        total = total.checked_add(part)?;
        rest = next;
    }
    Some(total)
}

/// What a program reads.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    pub(super) remove: Vec<RemovalView>,
    keep: Vec<KeptView>,
    /// Bytes that went, and that would go.
    freed_bytes: u64,
    pub(super) would_free_bytes: u64,
    /// Bytes that rules about the disk want besides.
    short_bytes: u64,
    failures: Vec<FailureView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RemovalView {
    id: String,
    pub(super) names: Vec<String>,
    policy: String,
    pub(super) rule: String,
    reason: String,
    pub(super) bytes: u64,
    /// Whether it is gone, or would go.
    removed: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct KeptView {
    id: String,
    names: Vec<String>,
    reason: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FailureView {
    id: String,
    message: String,
}

impl View {
    pub(super) fn take(&mut self, answer: PruneResponse, dry_run: bool) {
        self.short_bytes = self.short_bytes.max(answer.short_bytes);
        if dry_run {
            self.would_free_bytes += answer.free_bytes;
        } else {
            self.freed_bytes += answer.free_bytes;
        }
        let removals = answer.remove.into_iter();
        self.remove
            .extend(removals.map(|removal| RemovalView::new(removal, !dry_run)));
        // A later run sees what an earlier one left, and says more of it.
        self.keep = answer.keep.into_iter().map(KeptView::from).collect();
        let failures = answer.failures.into_iter();
        self.failures.extend(failures.map(|failure| FailureView {
            id: failure.id,
            message: failure.message,
        }));
    }
}

impl RemovalView {
    fn new(removal: PruneRemoval, removed: bool) -> Self {
        RemovalView {
            id: removal.id,
            names: removal.names,
            policy: removal.policy,
            rule: removal.rule,
            reason: removal.reason,
            bytes: removal.bytes,
            removed,
        }
    }
}

impl From<PruneKept> for KeptView {
    fn from(kept: PruneKept) -> Self {
        KeptView {
            id: kept.id,
            names: kept.names,
            reason: kept.reason,
        }
    }
}

pub(super) async fn run(
    args: &Args,
    runs: Vec<Run>,
    client: &mut Client,
    terminal: &Terminal,
) -> Done {
    let rehearsed = runs.iter().any(|run| run.dry_run) && !args.dry_run;
    let mut view = View::default();
    for run in runs {
        let request = PruneRequest {
            policies: run.policies.iter().map(prune_policy).collect(),
            dry_run: run.dry_run,
        };
        let answer = client.images.prune(request).await;
        view.take(client.answer(answer)?, run.dry_run);
    }
    if rehearsed {
        eprintln!(
            "larder: a policy whose mode is not Enforce removes nothing; this is what it would remove"
        );
    }
    for failure in &view.failures {
        eprintln!("larder: {}: {}", short_id(&failure.id), failure.message);
    }
    if terminal.quiet {
        for removal in &view.remove {
            say(&removal.id)?;
        }
    } else if !terminal.format().print(&view)? {
        let width = output::terminal_width().unwrap_or(WIDTH);
        say(text(&view, args.explain, width))?;
    }
    if view.failures.is_empty() {
        Ok(())
    } else {
        Err(Failure::silent(super::failure::FAILED))
    }
}

/// What an image is called first, and how many names more it has.
fn name(id: &str, names: &[String]) -> String {
    match names {
        [] => format!("<none> ({})", short_id(id)),
        [one] => familiar(one),
        [one, rest @ ..] => format!("{} +{}", familiar(one), rest.len()),
    }
}

fn text(view: &View, explain: bool, width: usize) -> String {
    let mut parts = Vec::new();
    if !view.remove.is_empty() {
        parts.push(removals(view, width));
    }
    if explain && !view.keep.is_empty() {
        let mut lines = vec!["These stay:".to_owned()];
        for kept in &view.keep {
            lines.push(printable(&name(&kept.id, &kept.names)));
            lines.push(wrapped(&printable(&kept.reason), "    ", width));
        }
        parts.push(lines.join("\n"));
    }
    parts.push(summary(view));
    parts.join("\n\n")
}

fn removals(view: &View, width: usize) -> String {
    let row = |removal: &RemovalView, room: usize| {
        [
            output::end_of(&name(&removal.id, &removal.names), room),
            short_id(&removal.id).to_owned(),
            size(removal.bytes),
            removal.rule.clone(),
        ]
    };
    let header = ["IMAGE", "IMAGE ID", "FREES", "RULE"];
    let build = |room: usize| {
        let rows = view.remove.iter().map(|removal| row(removal, room));
        output::table(header, rows, &[2])
    };
    // Names give way to what says how much and why.
    let (least, most) = NAMES;
    let whole = build(most);
    let widest = whole.lines().map(|line| line.chars().count()).max();
    let over = widest.unwrap_or(0).saturating_sub(width);
    if over == 0 {
        return whole;
    }
    let names = view
        .remove
        .iter()
        .map(|removal| name(&removal.id, &removal.names));
    let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
    build(longest.min(most).saturating_sub(over).max(least))
}

fn summary(view: &View) -> String {
    let (gone, would): (Vec<_>, Vec<_>) = view.remove.iter().partition(|removal| removal.removed);
    let mut lines = Vec::new();
    if !gone.is_empty() {
        let (images, freed) = (count(gone.len() as u64, "image"), size(view.freed_bytes));
        lines.push(format!("Removed {images}, freed {freed}"));
    }
    if !would.is_empty() {
        let (images, free) = (
            count(would.len() as u64, "image"),
            size(view.would_free_bytes),
        );
        lines.push(format!("Would remove {images} and free {free}"));
    }
    if view.remove.is_empty() {
        lines.push("Nothing to remove; --explain tells why images stay".to_owned());
    }
    if view.short_bytes > 0 {
        let short = size(view.short_bytes);
        lines.push(format!(
            "{short} more were asked for, and nothing else may go"
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_filters() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let before = |text: &str| {
            let found = filters(&[format!("until={text}")], now).unwrap();
            found.pulled_before.unwrap().to_string()
        };
        for (text, time) in [
            ("24h", "2026-11-20T12:00:00Z"),
            ("1h30m", "2026-11-21T10:30:00Z"),
            ("500ms", "2026-11-21T11:59:59.5Z"),
            ("2026-11-01T00:00:00+01:00", "2026-10-31T23:00:00Z"),
            ("2026-11-01T10:00:00", "2026-11-01T10:00:00Z"),
            ("2026-11-01", "2026-11-01T00:00:00Z"),
            ("1700000000", "2023-11-14T22:13:20Z"),
        ] {
            assert_eq!(before(text), time, "{text}");
        }
        let labels = filters(
            &["label=a", "label=b=c=d", "label!=e", "label!=f=g"].map(str::to_owned),
            now,
        );
        let labels = labels.unwrap().labels.requirements;
        let seen: Vec<_> = labels
            .iter()
            .map(|one| (one.key.as_str(), one.operator, one.values.join(",")))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", Operator::Exists, String::new()),
                ("b", Operator::In, "c=d".to_owned()),
                ("e", Operator::DoesNotExist, String::new()),
                ("f", Operator::NotIn, "g".to_owned()),
            ]
        );
        for wrong in [
            "until",
            "until=",
            "until=soon",
            "until=1d",
            "label=",
            "label!=",
            "dangling=true",
            "é=1",
        ] {
            assert!(filters(&[wrong.to_owned()], now).is_err(), "{wrong}");
        }
    }

    fn view() -> View {
        let removal = |name: &str, removed| RemovalView {
            id: format!("sha256:{}", "0123456789".repeat(6)),
            names: vec![name.to_owned(), "b".to_owned()],
            policy: "ci".to_owned(),
            rule: "unusedFor 24h, keepLast 2".to_owned(),
            reason: "not used for 3d".to_owned(),
            bytes: 1_234_567,
            removed,
        };
        View {
            remove: vec![
                removal("docker.io/library/busybox:1", true),
                removal(
                    "registry.example/a/very/long/path/of/a/repository/app:2026-11-21",
                    false,
                ),
            ],
            keep: vec![KeptView {
                id: "sha256:ab".to_owned(),
                names: Vec::new(),
                reason: "in use by container 0123456789abc (web of team/shop-0)".to_owned(),
            }],
            freed_bytes: 1_234_567,
            would_free_bytes: 1_234_567,
            short_bytes: 5,
            failures: Vec::new(),
        }
    }

    #[test]
    fn tables_fit_80_columns() {
        let text = text(&view(), true, 80);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        for part in [
            "busybox:1 +1",
            "...",
            "app:2026-11-21 +1",
            "1.23MB",
            "unusedFor 24h, keepLast 2",
            "These stay:",
            "<none> (ab)",
            "in use by container",
            "Removed 1 image, freed 1.23MB",
            "Would remove 1 image and free 1.23MB",
            "5B more were asked for",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(super::text(&View::default(), true, 80).starts_with("Nothing"));
    }

    #[test]
    fn programs_find_the_contract() {
        let json = serde_json::to_value(view()).unwrap();
        for (path, value) in [
            ("/remove/0/rule", "unusedFor 24h, keepLast 2"),
            ("/remove/0/reason", "not used for 3d"),
            ("/keep/0/id", "sha256:ab"),
        ] {
            assert_eq!(json.pointer(path).unwrap(), value);
        }
        assert_eq!(json.pointer("/remove/1/bytes").unwrap(), 1_234_567);
        assert_eq!(json.pointer("/remove/1/names/1").unwrap(), "b");
    }
}

//! `larder fsck`.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Done;
use super::client::Client;
use super::failure::{FAILED, Failure};
use super::output::{count, familiar, percent, printable, say, size, split_tag};
use super::run::Terminal;
use crate::control::proto::{Damage, FsckReport, FsckRequest};

pub(super) const AFTER: &str = "\
Reads every layer and every pack and compares checksums. With --repair, what is
damaged is set aside, so that the next pull of the images concerned fetches it
again. Exit code 1 says that damage is left.

Examples:
  larder fsck
  larder fsck --repair
  larder fsck -o json | jq -r '.damaged[].images[]' | sort -u";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Set aside what is damaged, to be pulled again
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Serialize)]
struct View {
    layers: u64,
    extents: u64,
    bytes: u64,
    damaged: Vec<DamageView>,
}

#[derive(Debug, Serialize)]
struct DamageView {
    kind: String,
    subject: String,
    cause: String,
    images: Vec<String>,
    repaired: bool,
}

impl From<Damage> for DamageView {
    fn from(damage: Damage) -> Self {
        DamageView {
            kind: damage.kind,
            subject: damage.subject,
            cause: damage.cause,
            images: damage.images,
            repaired: damage.repaired,
        }
    }
}

pub(super) async fn run(args: &Args, client: &mut Client, terminal: &Terminal) -> Done {
    let request = FsckRequest {
        repair: args.repair,
    };
    let answer = client.images.fsck(request).await;
    let mut events = client.answer(answer)?;
    let bar = bar(terminal);
    let mut report = None;
    while let Some(event) = events
        .message()
        .await
        .map_err(|status| client.failure(&status))?
    {
        bar.set_message(progress(event.done_bytes, event.total_bytes));
        report = event.report.or(report);
    }
    bar.finish_and_clear();
    let report = report.ok_or_else(|| Failure::new("the verification ended without a report"))?;
    let left = report.damaged.iter().any(|damage| !damage.repaired);

    if terminal.quiet {
        for damage in &report.damaged {
            say(printable(&damage.subject))?;
        }
    } else if terminal.format() == super::output::Format::Table {
        say(text(&report, args.repair))?;
    } else {
        terminal.format().print(&View {
            layers: report.layers,
            extents: report.extents,
            bytes: report.bytes,
            damaged: report.damaged.into_iter().map(DamageView::from).collect(),
        })?;
    }
    if left {
        return Err(Failure::silent(FAILED));
    }
    Ok(())
}

fn bar(terminal: &Terminal) -> ProgressBar {
    if !terminal.bars || terminal.quiet {
        return ProgressBar::hidden();
    }
    let target = ProgressDrawTarget::stderr_with_hz(10);
    let style = ProgressStyle::with_template("{wide_msg}");
    ProgressBar::with_draw_target(None, target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn progress(done: u64, total: u64) -> String {
    let percent = percent(done, total).unwrap_or(0);
    format!("Verifying: {} of {} ({percent}%)", size(done), size(total))
}

fn text(report: &FsckReport, repair: bool) -> String {
    let checked = format!(
        "Checked {}, {}, {}",
        count(report.layers, "layer"),
        count(report.extents, "content"),
        size(report.bytes)
    );
    if report.damaged.is_empty() {
        return format!("{checked}: no damage.");
    }
    let found = u64::try_from(report.damaged.len()).unwrap_or(u64::MAX);
    let mut lines = vec![format!("{checked}: {} damaged.", count(found, "part"))];
    for damage in &report.damaged {
        let state = if damage.repaired { " (repaired)" } else { "" };
        lines.push(format!(
            "{} {}{state}: {}",
            damage.kind,
            printable(&damage.subject),
            printable(&damage.cause)
        ));
    }
    let mut images: Vec<String> = report
        .damaged
        .iter()
        .flat_map(|damage| &damage.images)
        .map(|name| printable(&familiar(name)))
        .collect();
    // One name of an image is enough: a digest only where no tag is.
    let tagged: Vec<String> = images
        .iter()
        .filter(|name| !name.contains('@'))
        .map(|name| split_tag(name).0.to_owned())
        .collect();
    images.retain(|name| {
        name.split_once('@')
            .is_none_or(|(repository, _)| !tagged.iter().any(|tagged| tagged == repository))
    });
    images.sort();
    images.dedup();
    if !images.is_empty() {
        lines.push("Pull these again to heal them:".to_owned());
        lines.extend(images.iter().map(|name| format!("  larder pull {name}")));
    }
    if !repair && report.damaged.iter().any(|damage| !damage.repaired) {
        lines.push("larder fsck --repair sets aside what is damaged.".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_damaged_and_what_helps() {
        let mut report = FsckReport {
            layers: 1,
            extents: 2,
            bytes: 3000,
            damaged: Vec::new(),
        };
        assert_eq!(
            text(&report, false),
            "Checked 1 layer, 2 contents, 3.00kB: no damage."
        );
        report.damaged.push(Damage {
            kind: "pack".to_owned(),
            subject: "packs/1.pack".to_owned(),
            cause: "its checksum is wrong".to_owned(),
            images: vec![
                "docker.io/library/busybox:1".to_owned(),
                format!("docker.io/library/busybox@sha256:{}", "a".repeat(64)),
            ],
            repaired: false,
        });
        assert_eq!(
            text(&report, false),
            "\
Checked 1 layer, 2 contents, 3.00kB: 1 part damaged.
pack packs/1.pack: its checksum is wrong
Pull these again to heal them:
  larder pull busybox:1
larder fsck --repair sets aside what is damaged."
        );
        report.damaged[0].repaired = true;
        let text = text(&report, true);
        assert!(
            text.contains("(repaired)") && !text.contains("--repair"),
            "{text}"
        );
        assert_eq!(
            progress(1_000_000, 4_000_000),
            "Verifying: 1.00MB of 4.00MB (25%)"
        );
        assert_eq!(progress(0, 0), "Verifying: 0B of 0B (0%)");
    }
}

//! `larder fsck`

use std::io::IsTerminal;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::client::Client;
use super::failure::Failure;
use super::{Global, output};
use crate::control::proto::{FsckReport, FsckRequest};

/// Verifies every byte of the store. What is damaged is taken out of use at once: a pull brings it back.
#[derive(Debug, Args)]
#[command(after_help = "Exits with 1 when damage was found that is not repaired.")]
pub(super) struct Fsck {
    /// Also drop what is damaged and files that nothing names
    #[arg(long)]
    repair: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    layers: u64,
    extents: u64,
    bytes: u64,
    damaged: Vec<Damage>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Damage {
    kind: String,
    subject: String,
    cause: String,
    images: Vec<String>,
    repaired: bool,
}

impl Fsck {
    pub(super) async fn run(self, global: &Global, mut client: Client) -> Result<(), Failure> {
        let request = FsckRequest {
            repair: self.repair,
        };
        let mut events = client.fsck(request).await?.into_inner();
        let bar = (std::io::stderr().is_terminal() && !global.quiet).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let style =
                ProgressStyle::with_template("Verifying [{bar:40}] {percent}% of {total_bytes}");
            bar.set_style(
                style
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            bar
        });
        let mut report = None;
        while let Some(event) = events.message().await? {
            if let Some(bar) = &bar {
                bar.set_length(event.total_bytes);
                bar.set_position(event.done_bytes);
            }
            report = event.report.or(report);
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let report = report.ok_or_else(|| Failure::failed("the agent ended without a report"))?;
        let report = read(report);
        let open = report
            .damaged
            .iter()
            .filter(|damage| !damage.repaired)
            .count();
        if !output::structured(global.output, &report)? && !global.quiet {
            output::line(&format!(
                "{} layers, {} contents, {} verified",
                report.layers,
                report.extents,
                output::bytes(report.bytes)
            ))?;
            for damage in &report.damaged {
                let repaired = if damage.repaired { " (repaired)" } else { "" };
                output::line(&format!(
                    "{}: {}: {}{repaired}",
                    damage.kind, damage.subject, damage.cause
                ))?;
                for image in &damage.images {
                    output::line(&format!("  pull again: {}", output::familiar(image)))?;
                }
            }
            if report.damaged.is_empty() {
                output::line("No damage")?;
            }
        }
        if open > 0 {
            return Err(Failure::told(1));
        }
        Ok(())
    }
}

fn read(report: FsckReport) -> Report {
    Report {
        layers: report.layers,
        extents: report.extents,
        bytes: report.bytes,
        damaged: report
            .damaged
            .into_iter()
            .map(|damage| Damage {
                kind: damage.kind,
                subject: damage.subject,
                cause: damage.cause,
                images: damage.images,
                repaired: damage.repaired,
            })
            .collect(),
    }
}

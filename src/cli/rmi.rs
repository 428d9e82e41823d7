//! `larder rmi`.

use std::io;

use serde::Serialize;
use tonic::Code;

use super::Done;
use super::client::Client;
use super::failure::Failures;
use super::output::{Format, familiar, say, size};
use super::run::Terminal;
use crate::control::proto::{RemoveRequest, RemoveResponse};

pub(super) const AFTER: &str = "\
An image goes with all its names, whichever of them is given, as the kubelet
expects it. Layers that other images use stay. One that a
prepull declares goes too, with a warning: it will be pulled again. One that a
container uses, running or not, is refused unless --force is given, where the
agent knows the container runtime (--runtime-endpoint).

Examples:
  larder rmi busybox
  larder rmi 4cdd1b0e2f19 nginx:1.27
  larder images -q 'old/*' | sort -u | xargs larder rmi";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or the first digits of ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// An absent image is no failure, and a container that uses it no obstacle
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    id: String,
    names: Vec<String>,
    layers: Vec<String>,
    freed_bytes: u64,
    declared_by: Vec<String>,
}

pub(super) async fn run(args: Args, client: &mut Client, terminal: &Terminal) -> Done {
    let format = terminal.format();
    let mut views = Vec::new();
    // The other images go even if one cannot.
    let mut failures = Failures::default();
    for name in args.names {
        let answer = client
            .images
            .remove(RemoveRequest {
                name,
                unless_used: !args.force,
            })
            .await;
        match answer {
            Ok(removed) => {
                let removed = removed.into_inner();
                if !removed.declared_by.is_empty() {
                    eprintln!("larder: {}", declared(&removed));
                }
                if format == Format::Table {
                    report(&removed, terminal.quiet)?;
                } else {
                    views.push(View {
                        id: removed.id,
                        names: removed.names,
                        layers: removed.layers,
                        freed_bytes: removed.freed_bytes,
                        declared_by: removed.declared_by,
                    });
                }
            }
            Err(status) if status.code() == Code::NotFound && args.force => {}
            Err(status) => failures.note(&client.failure(&status)),
        }
    }
    format.print(&views)?;
    failures.end()
}

/// Why the image will be back.
fn declared(removed: &RemoveResponse) -> String {
    let name = removed
        .names
        .first()
        .map_or_else(|| removed.id.clone(), |name| familiar(name));
    format!(
        "{name} is declared by {} and will be pulled again; to keep it away, change what declares it",
        removed.declared_by.join(", ")
    )
}

fn report(removed: &RemoveResponse, quiet: bool) -> io::Result<()> {
    if quiet {
        return say(&removed.id);
    }
    for name in &removed.names {
        say(format_args!("Untagged: {}", familiar(name)))?;
    }
    say(format_args!("Deleted: {}", removed.id))?;
    for layer in &removed.layers {
        say(format_args!("Deleted: {layer}"))?;
    }
    say(format_args!("Freed: {}", size(removed.freed_bytes)))
}

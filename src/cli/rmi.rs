//! `larder rmi`

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::failure::Failure;
use super::{Global, output};
use crate::control::proto::RemoveRequest;

/// Removes images with all their names, and gives back the space that only they used.
#[derive(Debug, Args)]
#[command(
    after_help = "As CRI has it, removing by one name removes the whole image with all its names."
)]
pub(super) struct Rmi {
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    names: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Removed {
    id: String,
    names: Vec<String>,
    layers: Vec<String>,
    freed_bytes: u64,
}

impl Rmi {
    pub(super) async fn run(self, global: &Global, mut client: Client) -> Result<(), Failure> {
        let mut removed = Vec::new();
        let mut failure = None;
        for name in self.names {
            match client.remove(RemoveRequest { name }).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    removed.push(Removed {
                        id: answer.id,
                        names: answer.names,
                        layers: answer.layers,
                        freed_bytes: answer.freed_bytes,
                    });
                }
                // The others are removed all the same; the first failure is told.
                Err(status) => {
                    failure.get_or_insert(Failure::from(status));
                }
            }
        }
        if global.quiet {
            for image in &removed {
                output::line(&image.id)?;
            }
        } else if !output::structured(global.output, &removed)? {
            for image in &removed {
                for name in &image.names {
                    output::line(&format!("Untagged: {}", output::familiar(name)))?;
                }
                output::line(&format!("Deleted: {}", image.id))?;
                for layer in &image.layers {
                    output::line(&format!("Deleted: {layer}"))?;
                }
                output::line(&format!("Freed: {}", output::bytes(image.freed_bytes)))?;
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

//! `larder inspect`

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::images::Shown;
use super::output::Format;
use super::{Global, output};
use crate::control::proto::{InspectRequest, InspectResponse};

/// Prints config, manifest and layers of images.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    names: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(flatten)]
    image: Option<Shown>,
    chain_id: String,
    layers: Vec<Layer>,
    config: Value,
    #[serde(rename = "manifestDocument")]
    manifest: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    diff_id: String,
    digest: String,
    size: u64,
    tar_bytes: u64,
    users: u64,
}

impl Inspect {
    pub(super) async fn run(self, global: &Global, mut client: Client) -> Result<(), Failure> {
        let mut shown = Vec::new();
        for name in self.names {
            let answer = client.inspect(InspectRequest { name }).await?.into_inner();
            shown.push(details(answer));
        }
        if global.quiet {
            for details in &shown {
                if let Some(image) = &details.image {
                    output::line(&image.id)?;
                }
            }
            return Ok(());
        }
        let format = match global.output {
            Format::Table => Format::Json,
            format => format,
        };
        output::structured(format, &shown).map(|_| ())
    }
}

fn details(answer: InspectResponse) -> Details {
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or(Value::Null);
    Details {
        config: json(&answer.config),
        manifest: json(&answer.manifest),
        chain_id: answer.chain_id,
        layers: answer
            .layers
            .into_iter()
            .map(|layer| Layer {
                diff_id: layer.diff_id,
                digest: layer.digest,
                size: layer.size,
                tar_bytes: layer.tar_bytes,
                users: layer.users,
            })
            .collect(),
        image: answer.image.map(Shown::from),
    }
}

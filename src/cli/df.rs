//! `larder df`

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::failure::Failure;
use super::{Global, output};
use crate::control::proto::UsageRequest;

/// Shows what the store holds and what it occupies on disk.
#[derive(Debug, Args)]
pub(super) struct Df {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    root: String,
    images: u64,
    layers: u64,
    segments: u64,
    inodes: u64,
    /// Sum over distinct layers of their contents.
    logical_bytes: u64,
    /// What the store really occupies on disk.
    stored_bytes: u64,
    /// Contents that are kept once instead of several times.
    saved_bytes: u64,
}

impl Df {
    pub(super) async fn run(self, global: &Global, mut client: Client) -> Result<(), Failure> {
        let answer = client.usage(UsageRequest {}).await?.into_inner();
        let usage = Usage {
            root: answer.root,
            images: answer.images,
            layers: answer.layers,
            segments: answer.segments,
            inodes: answer.inodes,
            logical_bytes: answer.logical_bytes,
            stored_bytes: answer.stored_bytes,
            saved_bytes: answer.logical_bytes.saturating_sub(answer.stored_bytes),
        };
        if output::structured(global.output, &usage)? {
            return Ok(());
        }
        let row = vec![
            usage.images.to_string(),
            usage.layers.to_string(),
            output::bytes(usage.logical_bytes),
            output::bytes(usage.stored_bytes),
            output::bytes(usage.saved_bytes),
            usage.inodes.to_string(),
        ];
        let header = ["IMAGES", "LAYERS", "CONTENTS", "ON DISK", "SAVED", "FILES"];
        output::line(&output::table(&header, &[0, 1, 2, 3, 4, 5], vec![row]))?;
        output::line(&format!("\nStore: {}", usage.root))
    }
}

//! `larder unpack`.

use std::path::PathBuf;

use super::Done;
use super::client::Client;
use super::mount::{done, full_path};
use super::run::Terminal;
use crate::control::proto::UnpackRequest;

pub(super) const AFTER: &str = "\
DIR is on the agent's machine; it must be empty, or absent. Owners and devices
need an agent that is root.

Examples:
  larder unpack busybox ./rootfs
  larder --root ~/images unpack nginx:1.27 /tmp/nginx";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A name, an id or the first digits of an id
    #[arg(value_name = "NAME")]
    name: String,
    /// An empty or absent directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) async fn run(args: Args, client: &mut Client, terminal: &Terminal) -> Done {
    let directory = full_path(&args.directory)?;
    let request = UnpackRequest {
        name: args.name,
        directory: directory.clone(),
    };
    let answer = client.images.unpack(request).await;
    let image = client.answer(answer)?.image.unwrap_or_default();
    done("Unpacked", image, &directory, terminal)
}

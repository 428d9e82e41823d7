//! `larder mount` and `larder umount`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Done;
use super::client::Client;
use super::failure::Failure;
use super::output::{familiar, say, short_id};
use super::run::Terminal;
use crate::control::proto::{Image, MountRequest, UmountRequest};

pub(super) const AFTER: &str = "\
DIR is on the agent's machine and is made if absent. Mounting needs root and
Linux 6.12 or newer; larder unpack works everywhere. What is mounted stays
mounted until larder umount.

Examples:
  larder mount busybox /mnt/busybox";

pub(super) const AFTER_UMOUNT: &str = "\
Examples:
  larder umount /mnt/busybox";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A name, an id or the first digits of an id
    #[arg(value_name = "NAME")]
    name: String,
    /// Where to
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct UmountArgs {
    /// What was given to mount
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    id: String,
    directory: &'a str,
}

pub(super) async fn mount(args: Args, client: &mut Client, terminal: &Terminal) -> Done {
    let directory = full_path(&args.directory)?;
    let request = MountRequest {
        name: args.name,
        directory: directory.clone(),
    };
    let answer = client.images.mount(request).await;
    let image = client.answer(answer)?.image.unwrap_or_default();
    done("Mounted", image, &directory, terminal)
}

pub(super) async fn umount(args: UmountArgs, client: &mut Client) -> Done {
    let directory = full_path(&args.directory)?;
    let answer = client.images.umount(UmountRequest { directory }).await;
    client.answer(answer)?;
    Ok(())
}

/// The agent has another working directory.
pub(super) fn full_path(directory: &Path) -> Result<String, Failure> {
    let full = std::path::absolute(directory)
        .map_err(|error| Failure::usage(format!("DIR {}: {error}", directory.display())))?;
    full.into_os_string()
        .into_string()
        .map_err(|name| Failure::usage(format!("DIR {}: not UTF-8", name.to_string_lossy())))
}

/// Says which image is where now.
pub(super) fn done(verb: &str, image: Image, directory: &str, terminal: &Terminal) -> Done {
    if terminal.quiet {
        return Ok(());
    }
    let name = image.repo_tags.first().or(image.repo_digests.first());
    let name = name.map_or_else(|| short_id(&image.id).to_owned(), |name| familiar(name));
    let view = View {
        id: image.id,
        directory,
    };
    if !terminal.format().print(&view)? {
        say(format_args!("{verb} {name} at {directory}"))?;
    }
    Ok(())
}

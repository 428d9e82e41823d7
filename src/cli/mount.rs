//! `larder mount` and `larder umount`

use std::path::PathBuf;

use clap::Args;

use super::client::Client;
use super::failure::Failure;
use super::unpack::absolute;
use super::{Global, output};
use crate::control::proto::{MountRequest, UmountRequest};

/// Mounts an image read-only. Nothing is copied: its layers are mounted once and shared.
#[derive(Debug, Args)]
pub(super) struct Mount {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    name: String,
    /// Where to mount; made if absent
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Unmounts what mount mounted.
#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Mount {
    pub(super) async fn run(self, global: &Global, mut client: Client) -> Result<(), Failure> {
        let directory = absolute(&self.directory)?;
        let request = MountRequest {
            name: self.name,
            directory: directory.clone(),
        };
        client.mount(request).await?;
        if global.quiet {
            return Ok(());
        }
        output::line(&directory)
    }
}

impl Umount {
    pub(super) async fn run(self, mut client: Client) -> Result<(), Failure> {
        let request = UmountRequest {
            directory: absolute(&self.directory)?,
        };
        client.umount(request).await?;
        Ok(())
    }
}

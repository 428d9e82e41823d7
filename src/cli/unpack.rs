//! `larder unpack`

use std::path::{Path, PathBuf};

use clap::Args;

use super::client::Client;
use super::failure::Failure;
use crate::control::proto::UnpackRequest;

/// Writes an image's merged files into a directory. Works everywhere; owners and devices need root.
#[derive(Debug, Args)]
pub(super) struct Unpack {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    name: String,
    /// Directory that is empty, or not there yet
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Unpack {
    pub(super) async fn run(self, mut client: Client) -> Result<(), Failure> {
        let request = UnpackRequest {
            name: self.name,
            directory: absolute(&self.directory)?,
        };
        client.unpack(request).await?;
        Ok(())
    }
}

/// A path as the agent, which has another working directory, has to be told it.
pub(super) fn absolute(path: &Path) -> Result<String, Failure> {
    std::path::absolute(path)?
        .into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format!("{}: not UTF-8", path.display())))
}

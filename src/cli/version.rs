//! `larder version`

use clap::Args;
use serde::Serialize;

use super::client;
use super::failure::Failure;
use super::{Global, output};
use crate::control::proto::VersionRequest;

/// Shows the version of this program, and of the agent if one runs.
#[derive(Debug, Args)]
pub(super) struct Version {}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    agent: Option<String>,
}

impl Version {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("start the runtime: {error}")))?;
        // No agent is no error here.
        let agent = runtime.block_on(async {
            let mut client = client::connect(global.socket()).await.ok()?;
            let answer = client.version(VersionRequest {}).await.ok()?;
            Some(answer.into_inner().version)
        });
        let versions = Versions {
            client: env!("CARGO_PKG_VERSION"),
            agent,
        };
        if output::structured(global.output, &versions)? {
            return Ok(());
        }
        output::line(&format!("Client: {}", versions.client))?;
        let agent = versions.agent.as_deref().unwrap_or("not running");
        output::line(&format!("Agent:  {agent}"))
    }
}

//! `larder version`.

use serde::Serialize;

use super::client::Client;
use super::output::say;
use super::run::Terminal;
use super::{Done, Globals};
use crate::control::proto::VersionRequest;
use crate::image::Platform;

pub(super) const AFTER: &str = "\
An agent that does not answer is no failure.

Examples:
  larder version
  larder version -o json | jq -r .agent.version";

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Debug, Serialize)]
struct View {
    client: ClientView,
    agent: Option<AgentView>,
}

#[derive(Debug, Serialize)]
struct ClientView {
    version: &'static str,
    platform: String,
}

#[derive(Debug, Serialize)]
struct AgentView {
    version: String,
    socket: String,
}

pub(super) async fn run(_: &Args, globals: &Globals, terminal: &Terminal) -> Done {
    let client = ClientView {
        version: env!("CARGO_PKG_VERSION"),
        platform: Platform::host().to_string(),
    };
    if terminal.quiet {
        say(client.version)?;
        return Ok(());
    }
    let agent = match globals.root {
        Some(_) => None,
        None => agent(globals).await,
    };
    let view = View { client, agent };
    if terminal.format().print(&view)? {
        return Ok(());
    }
    let View { client, agent } = view;
    say(format_args!(
        "larder {} {}",
        client.version, client.platform
    ))?;
    match agent {
        Some(agent) => say(format_args!("agent  {} at {}", agent.version, agent.socket))?,
        None if globals.root.is_none() => say(format_args!(
            "agent  none at {}",
            globals.socket().display()
        ))?,
        None => {}
    }
    Ok(())
}

async fn agent(globals: &Globals) -> Option<AgentView> {
    let socket = globals.socket();
    let mut client = Client::agent(&socket).await.ok()?;
    let answer = client.images.version(VersionRequest {}).await.ok()?;
    Some(AgentView {
        version: answer.into_inner().version,
        socket: socket.display().to_string(),
    })
}

//! `larder agent`

use std::process::ExitCode;

use clap::Args;

use super::{Global, output};
use crate::app;
use crate::app::config::AgentArgs;

/// Serves the CRI ImageService and larder.v1 on a unix socket until it is told to stop.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  larder agent --root /var/lib/larder --socket /run/larder/larder.sock\n\n\
    A flag wins over its environment variable, which wins over the file given with --config."
)]
pub(super) struct Agent {
    #[command(flatten)]
    args: AgentArgs,
}

impl Agent {
    pub(super) fn run(self, global: Global) -> ExitCode {
        let mut args = self.args;
        // `larder --root DIR agent` means the same as `larder agent --root DIR`.
        args.root = args.root.or(global.root);
        args.socket = args.socket.or(global.socket);
        if args.hosts_dir.is_empty() {
            args.hosts_dir = global.hosts_dir;
        }
        match app::agent::main(&args) {
            Ok(code) => code,
            Err(error) => {
                output::complain(&error.to_string());
                ExitCode::from(2)
            }
        }
    }
}

//! `larder agent`.

use std::process::ExitCode;

use super::failure::Failure;
use crate::app;
use crate::app::config::AgentArgs;

pub(super) const AFTER: &str = "\
Examples:
  larder agent                                           as root, with defaults
  larder agent --root ~/larder --socket ~/larder.sock    as any user
  larder agent --config /etc/larder/config.toml

A flag wins over its environment variable, which wins over the file.";

/// The error is the configuration's; what goes wrong later is in the log.
pub(super) fn run(mut args: AgentArgs, verbose: u8) -> Result<ExitCode, Failure> {
    if args.log_level.is_none() && verbose > 0 {
        let level = if verbose == 1 { "debug" } else { "trace" };
        args.log_level = Some(level.to_owned());
    }
    app::agent::main(&args).map_err(Failure::usage)
}

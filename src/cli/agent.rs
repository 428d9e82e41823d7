//! `larder agent`.

use super::Done;
use super::failure::Failure;
use crate::app;
use crate::app::config::{AgentArgs, ConfigError};
use crate::telemetry::LogError;

pub(super) const AFTER: &str = "\
Examples:
  larder agent                                           as root, with defaults
  larder agent --root ~/larder --socket ~/larder.sock    as any user
  larder agent --config /etc/larder/config.toml

A flag wins over its environment variable, which wins over the file.";

pub(super) fn run(mut args: AgentArgs, verbose: u8) -> Done {
    if args.log_level.is_none() && verbose > 0 {
        let level = if verbose == 1 { "debug" } else { "trace" };
        args.log_level = Some(level.to_owned());
    }
    app::agent::main(&args).map_err(|error| {
        if error.is::<ConfigError>() || error.is::<LogError>() {
            Failure::usage(format!("{error:#}"))
        } else {
            Failure::from(error)
        }
    })
}

//! `larder agent`.

use std::process::ExitCode;

use super::Globals;
use super::failure::Failure;
use super::output::{Format, say};
use crate::app;
use crate::app::config::{AgentArgs, Config, Setting};

pub(super) const AFTER: &str = "\
Examples:
  larder agent                                           as root, with defaults
  larder agent --root ~/larder --socket ~/larder.sock    as any user
  larder agent --config /etc/larder/config.toml
  larder agent --config /etc/larder/config.toml --check

A flag wins over the environment, which wins over the file. Every key of the
file has a variable: registry.attempts is LARDER_REGISTRY_ATTEMPTS, root is
LARDER_ROOT; LARDER_CONFIG names the file.";

/// The error is the configuration's; what goes wrong later is in the log.
pub(super) fn run(mut args: AgentArgs, globals: &Globals) -> Result<ExitCode, Failure> {
    args.log_level = args.log_level.or_else(|| globals.server_level());
    if args.check {
        let settings = Config::settings(&args).map_err(Failure::usage)?;
        let format = globals.output.unwrap_or(Format::Table);
        if !globals.quiet && !format.print(&settings)? {
            say(text(&settings))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    app::agent::main(&args).map_err(Failure::usage)
}

/// Lines that a configuration file may have; origins are comments.
fn text(settings: &[Setting]) -> String {
    let lines: Vec<_> = settings
        .iter()
        .map(|setting| match setting.value.is_null() {
            true => format!("# {} is not set", setting.key),
            false => {
                let line = format!("{} = {}", setting.key, setting.value);
                format!("{line:47} # {}", setting.origin)
            }
        })
        .collect();
    lines.join("\n")
}

//! `larder completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::failure::Failure;

/// Prints a completion script.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  larder completions bash > /etc/bash_completion.d/larder")]
pub(super) struct Completions {
    /// Shell to complete for
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "larder", &mut script);
        let text = String::from_utf8_lossy(&script);
        super::output::line(text.trim_end())
    }
}

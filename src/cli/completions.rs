//! `larder completions`.

use std::io::{self, Write};

use clap_complete::Shell;

use super::Done;

pub(super) const AFTER: &str = "\
Examples:
  larder completions bash > /etc/bash_completion.d/larder
  larder completions zsh > \"${fpath[1]}/_larder\"
  larder completions fish > ~/.config/fish/completions/larder.fish";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Done {
    // The generator panics where its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "larder", &mut script);
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(())
}

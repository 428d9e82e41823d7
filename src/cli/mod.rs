//! The terminal: what is typed, what is printed, and with which code the program ends.
//!
//! Every verb about images speaks larder.v1, to the agent's socket or, with `--root`, to a service of its own over an
//! open store: one path for both. Exit codes: 0 done, 1 failed, 2 usage, 3 not found.

mod agent;
mod client;
mod completions;
mod df;
mod failure;
mod fsck;
mod images;
mod inspect;
mod mount;
mod output;
mod progress;
mod pull;
mod rmi;
mod unpack;
mod version;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use failure::Failure;
use output::Format;

/// An image cache for Kubernetes nodes: pulls once, keeps every file once.
#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Verbs talk to the agent at --socket; with --root DIR they open the store themselves, no agent needed.\n\
                  Exit codes: 0 done, 1 failed, 2 usage, 3 not found."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Where the images are, and how to print.
#[derive(Debug, Args)]
struct Global {
    /// Socket of the agent [default: /run/larder/larder.sock]
    #[arg(
        long,
        global = true,
        env = "LARDER_SOCKET",
        value_name = "PATH",
        hide_env_values = true
    )]
    socket: Option<PathBuf>,
    /// Open the store in DIR directly, without an agent
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// With --root: folder with HOST/hosts.toml [default: /etc/larder/hosts.d, else /etc/containerd/certs.d]
    #[arg(long, global = true, value_name = "DIR")]
    hosts_dir: Vec<PathBuf>,
    /// How to print results
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
    /// Print ids only, and no progress
    #[arg(short, long, global = true)]
    quiet: bool,
}

impl Global {
    fn socket(&self) -> &Path {
        let default = Path::new("/run/larder/larder.sock");
        self.socket.as_deref().unwrap_or(default)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the node agent in the foreground
    Agent(agent::Agent),
    /// Pull an image
    #[command(visible_alias = "p")]
    Pull(pull::Pull),
    /// List images
    #[command(visible_alias = "ls", alias = "image-list")]
    Images(images::Images),
    /// Show everything about images, as JSON
    #[command(visible_alias = "inspecti")]
    Inspect(inspect::Inspect),
    /// Remove images, with all their names
    #[command(visible_alias = "rm")]
    Rmi(rmi::Rmi),
    /// Show what the store holds and what it occupies
    #[command(alias = "usage")]
    Df(df::Df),
    /// Verify the store, byte by byte
    #[command(alias = "verify")]
    Fsck(fsck::Fsck),
    /// Write an image's files into a directory
    Unpack(unpack::Unpack),
    /// Mount an image read-only (root, Linux 6.12 or newer)
    Mount(mount::Mount),
    /// Unmount what mount mounted
    #[command(alias = "unmount")]
    Umount(mount::Umount),
    /// Show the versions of this program and of the agent
    Version(version::Version),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; the rest is usage.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let global = cli.global;
    let outcome = match cli.verb {
        Verb::Agent(verb) => return verb.run(global),
        Verb::Completions(verb) => verb.run(),
        Verb::Pull(verb) => client::run(&global, async |client| verb.run(&global, client).await),
        Verb::Images(verb) => client::run(&global, async |client| verb.run(&global, client).await),
        Verb::Inspect(verb) => client::run(&global, async |client| verb.run(&global, client).await),
        Verb::Rmi(verb) => client::run(&global, async |client| verb.run(&global, client).await),
        Verb::Df(verb) => client::run(&global, async |client| verb.run(&global, client).await),
        Verb::Fsck(verb) => client::run(&global, async |client| verb.run(&global, client).await),
        Verb::Unpack(verb) => client::run(&global, async |client| verb.run(client).await),
        Verb::Mount(verb) => client::run(&global, async |client| verb.run(&global, client).await),
        Verb::Umount(verb) => client::run(&global, async |client| verb.run(client).await),
        Verb::Version(verb) => verb.run(&global),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                output::complain(text);
            }
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

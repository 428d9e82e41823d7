//! The terminal: `larder VERB`.
//!
//! Owns flags, help, tables, progress and exit codes. Decides nothing about images: each verb asks `larder.v1`, of an
//! agent or of a store it opened itself, over the same client.

mod agent;
mod client;
pub mod cluster;
mod completions;
mod controller;
mod crds;
mod demo;
mod df;
mod doctor;
mod export_store;
mod failure;
mod fsck;
mod images;
mod inspect;
mod interrupt;
mod mount;
mod output;
mod progress;
mod prune;
mod pull;
mod rmi;
mod run;
mod setup;
mod status;
mod unpack;
mod version;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::app::config::{AgentArgs, SOCKET};
use crate::app::controller::ControllerArgs;
use failure::Failure;
use output::Format;

const ABOUT: &str = "An image cache for Kubernetes nodes: pulls once, keeps every file once";

const AFTER: &str = "\
Without --root, verbs talk to the agent (start one with: larder agent).
With --root DIR they open the store in DIR themselves; no agent may run on it.

Examples:
  larder pull busybox                          through the agent
  larder --root ~/images pull busybox          without an agent
  larder images -o json | jq -r '.[].id'
  larder df

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such image.";

#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    about = ABOUT,
    after_help = AFTER,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags that every verb takes, before or after its name. Those that `larder agent` has too have the same type and
/// name, so that `larder --root DIR agent` means what it says.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Globals {
    /// Open the store in DIR instead of talking to an agent
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The agent's socket [env: LARDER_SOCKET] [default: /run/larder/larder.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// With --root: folder with HOST/hosts.toml [env: LARDER_HOSTS_DIR] [default: /etc/larder/hosts.d, else /etc/containerd/certs.d]
    #[arg(long, global = true, value_name = "DIR", value_delimiter = ':')]
    hosts_dir: Vec<PathBuf>,
    /// How to print results; table where a verb does not say otherwise
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// No progress, and ids only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Log to standard error what happens; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl Globals {
    /// The flag, else the variable. Not by the parser, which would take the variable for a flag of the agent's.
    fn socket(&self) -> PathBuf {
        let variable = || std::env::var_os("LARDER_SOCKET").filter(|path| !path.is_empty());
        let socket = self.socket.clone();
        socket
            .or_else(|| variable().map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from(SOCKET))
    }

    fn hosts_dirs(&self) -> Vec<PathBuf> {
        match std::env::var_os("LARDER_HOSTS_DIR") {
            Some(folders) if self.hosts_dir.is_empty() && !folders.is_empty() => {
                std::env::split_paths(&folders).collect()
            }
            _ => self.hosts_dir.clone(),
        }
    }

    /// The level of logs that `-v` asks of an agent or a controller, whose own is `info`.
    fn server_level(&self) -> Option<String> {
        let level = match self.verbose {
            0 => return None,
            1 => "debug",
            _ => "trace",
        };
        Some(level.to_owned())
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the node agent in the foreground
    #[command(after_help = agent::AFTER)]
    Agent(Box<AgentArgs>),
    /// Run the cluster's controller in the foreground
    #[command(after_help = controller::AFTER)]
    Controller(ControllerArgs),
    /// Pull images from their registries
    #[command(after_help = pull::AFTER)]
    Pull(pull::Args),
    /// List images
    #[command(visible_alias = "ls", after_help = images::AFTER)]
    Images(images::Args),
    /// Show config, layers and sharing of images
    #[command(visible_alias = "inspecti", after_help = inspect::AFTER)]
    Inspect(inspect::Args),
    /// Remove images and free their space
    #[command(visible_alias = "rm", after_help = rmi::AFTER)]
    Rmi(rmi::Args),
    /// Remove images that nothing needs
    #[command(after_help = prune::AFTER)]
    Prune(prune::Args),
    /// Show what the store holds and what it occupies
    #[command(alias = "usage", alias = "imagefsinfo", after_help = df::AFTER)]
    Df(df::Args),
    /// Show which declared images this node holds, and what went wrong
    #[command(after_help = status::AFTER)]
    Status(status::Args),
    /// Check whether this machine suits larder, and say what to change
    #[command(after_help = doctor::AFTER)]
    Doctor(doctor::Args),
    /// Configure the container runtime of this machine for larder
    #[command(after_help = setup::AFTER)]
    Setup(setup::Args),
    /// Read everything in the store and compare checksums
    #[command(alias = "verify", after_help = fsck::AFTER)]
    Fsck(fsck::Args),
    /// Write an image's files into a directory
    #[command(after_help = unpack::AFTER)]
    Unpack(unpack::Args),
    /// Mount an image read-only
    #[command(after_help = mount::AFTER)]
    Mount(mount::Args),
    /// Unmount what mount mounted
    #[command(alias = "unmount", after_help = mount::AFTER_UMOUNT)]
    Umount(mount::UmountArgs),
    /// Show images to podman and CRI-O as an additional image store
    #[command(after_help = export_store::AFTER)]
    ExportStore(export_store::Args),
    /// Show the versions of this program and of the agent
    #[command(after_help = version::AFTER)]
    Version(version::Args),
    /// Show what larder does; needs no root, network or cluster
    #[command(after_help = demo::AFTER)]
    Demo(demo::Args),
    /// Print the kinds of the cluster API for kubectl apply
    #[command(after_help = crds::AFTER)]
    Crds(crds::Args),
    /// Print a completion script for a shell
    #[command(after_help = completions::AFTER)]
    Completions(completions::Args),
}

/// The whole tree of commands: for completions, and to check the help.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program's command line. Errors go to standard error.
pub fn main() -> ExitCode {
    match parsed::<Cli>() {
        Ok(cli) => ended(run::verb(cli)),
        Err(code) => code,
    }
}

/// The command line; what is wrong with it, and help, is printed.
fn parsed<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        if error.use_stderr() {
            return usage(&error);
        }
        // Help and version; a reader that hung up has seen enough.
        match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&Failure::from(error)),
        }
    })
}

fn ended(result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| failed(&failure))
}

fn failed(failure: &Failure) -> ExitCode {
    failure.print(&mut io::stderr().lock());
    ExitCode::from(failure.code())
}

fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    // Help in place of a missing verb has no such beginning.
    match text.strip_prefix("error: ") {
        Some(text) => Failure::usage(text.trim_end()).print(&mut io::stderr().lock()),
        None => {
            let _ = error.print();
        }
    }
    ExitCode::from(failure::USAGE)
}

type Done = Result<(), Failure>;

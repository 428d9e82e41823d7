//! `kubectl larder VERB`: the same terminal, for a whole cluster.
//!
//! Reads the declared objects and what nodes report of themselves; only what no object has is asked of agents, a bounded
//! number of them, through the API server. Changes nothing but what `prepull` creates.

mod agents;
mod images;
mod objects;
mod prepull;
mod prune;
mod status;
mod top;
mod why;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::Done;
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::output::Format;
use super::{ended, parsed};
use crate::k8s::api::DEFAULT_NAMESPACE;
use objects::Objects;

/// Threads that wait for the API server.
const WORKERS: usize = 2;

const AFTER: &str = "\
Examples:
  kubectl larder status
  kubectl larder why node-7 registry.example/app:1.2
  kubectl larder images -l pool=gpu
  kubectl larder prepull registry.example/app:1.3 -l pool=gpu --wait

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found.";

#[derive(Debug, Parser)]
#[command(
    name = "kubectl-larder",
    bin_name = "kubectl larder",
    version,
    about = "What the image caches of a cluster's nodes hold, and why",
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

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Globals {
    /// Kubeconfig file [default: KUBECONFIG, else ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of ImagePrepulls [default: all of them; for prepull: none]
    #[arg(short, long, global = true, value_name = "NS")]
    namespace: Option<String>,
    /// Namespace in which larder is installed
    #[arg(long, global = true, value_name = "NS", default_value = DEFAULT_NAMESPACE)]
    larder_namespace: String,
    /// How to print results
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// How far the prepulls are, and what holds them up
    #[command(after_help = status::AFTER)]
    Status(status::Args),
    /// Why a node holds an image, or does not
    #[command(after_help = why::AFTER)]
    Why(why::Args),
    /// What nodes hold
    #[command(after_help = images::AFTER)]
    Images(images::Args),
    /// What the caches occupy on each node, the fullest disk first
    Top(top::Args),
    /// Have nodes pull images now: creates a prepull
    #[command(after_help = prepull::AFTER)]
    Prepull(prepull::Args),
    /// What nodes would remove
    #[command(after_help = prune::AFTER)]
    Prune(prune::Args),
}

/// The whole program.
pub fn main() -> ExitCode {
    match parsed::<Cli>() {
        Ok(cli) => ended(run(cli).map(|()| ExitCode::SUCCESS)),
        Err(code) => code,
    }
}

fn run(cli: Cli) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start the runtime: {error}")))?;
    let result = runtime.block_on(async {
        let interrupts = Interrupts::listen()
            .map_err(|error| Failure::new(format!("handle signals: {error}")))?;
        tokio::select! {
            result = ask(cli) => result,
            failure = interrupts.first() => Err(failure),
        }
    });
    runtime.shutdown_background();
    result?;
    io::stdout().flush()?;
    Ok(())
}

async fn ask(cli: Cli) -> Done {
    let Cli { globals, verb } = cli;
    let objects = Objects::connect(&globals).await?;
    match verb {
        Verb::Status(args) => status::run(&args, &globals, &objects).await,
        Verb::Why(args) => why::run(&args, &globals, &objects).await,
        Verb::Images(args) => images::run(&args, &globals, &objects).await,
        Verb::Top(args) => top::run(&args, &globals, &objects).await,
        Verb::Prepull(args) => {
            prepull::run(&args, &globals, &objects, io::stderr().is_terminal()).await
        }
        Verb::Prune(args) => prune::run(&args, &globals, &objects).await,
    }
}

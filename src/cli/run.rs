//! From a parsed command line to the verb that does it.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use super::client::Client;
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::output::Format;
use super::{
    Cli, Done, Globals, Verb, agent, completions, controller, crds, demo, df, doctor, export_store,
    fsck, images, inspect, mount, prune, pull, rmi, setup, status, unpack, version,
};
use crate::telemetry::{self, LogConfig, LogFormat};

/// Threads that wait for the network and the store; hashing and writing have threads of their own.
const MAX_WORKERS: usize = 4;

/// What a verb prints with, and how.
pub(super) struct Terminal {
    /// Progress bars and colours may be used on standard error.
    pub(super) bars: bool,
    /// `-q`.
    pub(super) quiet: bool,
    /// `-o`.
    pub(super) format: Option<Format>,
}

impl Terminal {
    fn new(globals: &Globals) -> Self {
        Terminal {
            bars: io::stderr().is_terminal()
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            quiet: globals.quiet,
            format: globals.output,
        }
    }

    /// The format asked for, else a table.
    pub(super) fn format(&self) -> Format {
        self.format.unwrap_or(Format::Table)
    }
}

pub(super) fn verb(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { globals, verb } = cli;
    match verb {
        Verb::Agent(args) => return agent::run(*args, &globals),
        Verb::Controller(args) => return controller::run(args, &globals),
        Verb::Completions(args) => {
            completions::run(&args)?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Crds(args) => {
            crds::run(&args)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    log(globals.verbose)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(MAX_WORKERS))
        .enable_all()
        .thread_name("larder")
        .build()
        .map_err(|error| Failure::new(format!("start the runtime: {error}")))?;
    let result = runtime.block_on(ask(&globals, verb));
    // Threads in the middle of something would hold up the end; the store is safe to be left at any time.
    runtime.shutdown_background();
    result?;
    io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(globals: &Globals, verb: Verb) -> Done {
    // Before anything is made that an interrupt would leave behind.
    let interrupts =
        Interrupts::listen().map_err(|error| Failure::new(format!("handle signals: {error}")))?;
    let terminal = Terminal::new(globals);
    if let Verb::Version(args) = &verb {
        return version::run(args, globals, &terminal).await;
    }
    if let Verb::Doctor(args) = verb {
        return doctor::run(args, globals, &terminal).await;
    }
    if let Verb::Setup(args) = verb {
        return setup::run(args, globals, &terminal, &interrupts).await;
    }
    if let Verb::Demo(args) = verb {
        return demo::run(args, &terminal, &interrupts).await;
    }
    // A malformed command line must not wait for an agent.
    if let Verb::Pull(args) = &verb {
        args.check()?;
    }
    let runs = match &verb {
        Verb::Prune(args) => args.runs()?,
        _ => Vec::new(),
    };
    let mut client = tokio::select! {
        client = Client::open(globals, matches!(verb, Verb::Pull(_))) => client?,
        failure = interrupts.first() => return Err(failure),
    };
    let work = async {
        match verb {
            Verb::Pull(args) => pull::run(&args, &mut client, &terminal).await,
            Verb::Images(args) => images::run(args, &mut client, &terminal).await,
            Verb::Inspect(args) => inspect::run(&args, &mut client, &terminal).await,
            Verb::Rmi(args) => rmi::run(args, &mut client, &terminal).await,
            Verb::Prune(args) => prune::run(&args, runs, &mut client, &terminal).await,
            Verb::Status(args) => status::run(&args, &mut client, &terminal).await,
            Verb::Df(args) => df::run(&args, &mut client, &terminal).await,
            Verb::Fsck(args) => fsck::run(&args, &mut client, &terminal).await,
            Verb::Unpack(args) => unpack::run(args, &mut client, &terminal).await,
            Verb::Mount(args) => mount::mount(args, &mut client, &terminal).await,
            Verb::Umount(args) => mount::umount(args, &mut client).await,
            Verb::ExportStore(args) => export_store::run(args, &mut client, &terminal).await,
            Verb::Agent(_)
            | Verb::Controller(_)
            | Verb::Completions(_)
            | Verb::Crds(_)
            | Verb::Demo(_)
            | Verb::Doctor(_)
            | Verb::Setup(_)
            | Verb::Version(_) => Ok(()),
        }
    };
    let result = tokio::select! {
        result = work => result,
        failure = interrupts.first() => Err(failure),
    };
    client.close().await;
    result
}

/// What matters is printed; logs are for whoever asks for them.
fn log(verbose: u8) -> Done {
    let level = match verbose {
        0 => match std::env::var("LARDER_LOG_LEVEL") {
            Ok(level) if !level.is_empty() => level,
            _ => return Ok(()),
        },
        1 => "info".to_owned(),
        _ => "debug".to_owned(),
    };
    telemetry::init(&LogConfig {
        format: LogFormat::Human,
        level,
    })
    .map_err(Failure::usage)
}

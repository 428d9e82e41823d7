//! What every role that runs until a signal has in common: its threads, its signals, its exit code, its probes.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::task::{JoinError, JoinHandle};

use crate::lifecycle::Shutdown;

/// Runs a role on so many threads. It is told of the first signal through `shutdown`; what still runs `last` after it
/// returned is left.
pub(super) fn run(
    threads: usize,
    last: Duration,
    role: impl AsyncFnOnce(Shutdown) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .thread_name("larder")
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::new();
        let signals = shutdown.on_signals().context("handle signals")?;
        // Not among the role's tasks: it ends with the process.
        tokio::spawn(signals);
        role(shutdown).await
    });
    runtime.shutdown_timeout(last);
    result
}

/// What the process ends with; an error is logged under that message.
pub(super) fn exit_code(ended: anyhow::Result<()>, message: &'static str) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(err = format!("{error:#}"), "{message}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for the server of metrics and probes to end, which it should not; for ever where there is none.
pub(super) async fn admin_ended(
    admin: Option<&mut JoinHandle<io::Result<()>>>,
) -> Result<io::Result<()>, JoinError> {
    match admin {
        Some(admin) => admin.await,
        None => std::future::pending().await,
    }
}

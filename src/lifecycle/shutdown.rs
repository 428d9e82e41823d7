//! The wish to stop, from a signal or from within.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The wish to stop. Cheap to clone: all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Nobody wants to stop yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Asks everyone to stop. Asking twice changes nothing.
    pub fn request(&self) {
        self.token.cancel();
    }
    /// True once somebody asked.
    pub fn requested(&self) -> bool {
        self.token.is_cancelled()
    }
    /// Waits until somebody asks.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }
    /// Waits for SIGTERM and SIGINT for ever: the first asks to stop, the second ends the process at once with the
    /// exit code shells use for the signal. Handlers are in place when this returns; the future is to be spawned.
    pub fn on_signals(&self) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        Ok(async move {
            let name = first(&mut terminate, &mut interrupt).await.1;
            tracing::info!(signal = name, "Stopping; a second signal ends at once");
            shutdown.request();
            let (code, name) = first(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal = name, "Ended at once, work under way was dropped");
            std::process::exit(code);
        })
    }
}

async fn first(terminate: &mut Signal, interrupt: &mut Signal) -> (i32, &'static str) {
    tokio::select! {
        _ = terminate.recv() => (143, "SIGTERM"),
        _ = interrupt.recv() => (130, "SIGINT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_clones_are_one() {
        let shutdown = Shutdown::new();
        let other = shutdown.clone();
        assert!(!other.requested());
        shutdown.request();
        other.wait().await;
        assert!(other.requested());
    }
}

//! The TCP listener: bounded connections, none of which may be silent for long.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::lifecycle::{ConnectionLimits, Guarded};
use crate::telemetry::Seldom;

/// Prometheus, kubelet's probes and a curious person; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// Between requests too: scrapers come back with a new connection.
const SILENCE: Duration = Duration::from_secs(10);
const LIMITS: ConnectionLimits = ConnectionLimits {
    first_bytes: 1,
    first_within: SILENCE,
    idle: Some(SILENCE),
};

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("listen at {address}: {source}; give another --http, or an empty one for none")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

#[derive(Debug)]
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    places: Arc<Semaphore>,
    warnings: Seldom,
}

impl Listener {
    pub(super) async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Listener {
            listener,
            address,
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            warnings: Seldom::default(),
        })
    }
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl axum::serve::Listener for Listener {
    type Io = Guarded<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let Ok(place) = self.places.clone().acquire_owned().await else {
                // The semaphore is never closed.
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Guarded::new(stream, LIMITS, place), peer),
                Err(error) => {
                    if let Some(held_back) = self.warnings.due(std::time::Instant::now()) {
                        let http = self.address;
                        tracing::warn!(err = %error, %http, held_back, "Connection was not accepted");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

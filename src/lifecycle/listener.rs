//! A TCP listener with a bounded number of connections, none of which may be silent for long.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{ConnectionLimits, Guarded};

/// After an error of accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two lines in the log about that.
const WARNINGS: Duration = Duration::from_secs(60);

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("listen at {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// For `axum::serve`. Who comes when all places are taken waits in the kernel's queue.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    limits: ConnectionLimits,
    places: Arc<Semaphore>,
    warned: Option<Instant>,
}

impl Listener {
    /// Takes an address; port 0 is any free one.
    pub async fn bind(
        address: SocketAddr,
        limits: ConnectionLimits,
        places: usize,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Listener {
            listener,
            address,
            limits,
            places: Arc::new(Semaphore::new(places)),
            warned: None,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
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
                Ok((stream, peer)) => return (Guarded::new(stream, self.limits, place), peer),
                Err(error) => {
                    if self.warned.is_none_or(|then| then.elapsed() >= WARNINGS) {
                        self.warned = Some(Instant::now());
                        tracing::warn!(err = %error, address = %self.address, "Connection was not accepted");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

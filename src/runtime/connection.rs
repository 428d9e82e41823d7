//! The connection to a runtime's socket, and one call over it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Metrics;
use super::backoff::Backoff;
use super::connect;
use super::error::{Error, ErrorClass, classify};

/// A list of 100,000 images is smaller.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// Connects when it is first asked, and again after a break. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    channel: Channel,
    socket: Arc<Path>,
    backoff: Arc<Mutex<Backoff>>,
    metrics: Metrics,
}

impl Connection {
    pub(super) fn new(socket: &Path, metrics: Metrics) -> Self {
        let socket: Arc<Path> = connect::path(socket).into();
        Connection {
            channel: connect::channel(&socket),
            socket,
            backoff: Arc::default(),
            metrics,
        }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn call<T>(
        &self,
        method: &'static str,
        subject: &str,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Error> {
        if let Some(pause) = self.backoff().pause(Instant::now()) {
            return Err(Error {
                retry_after: Some(pause),
                ..Error::new(
                    ErrorClass::RuntimeUnavailable,
                    self.socket.display().to_string(),
                )
            });
        }
        let began = Instant::now();
        let answer = match timeout(limit, call).await {
            Ok(answer) => answer.map_err(|status| {
                // The status of a broken or refused connection is made here, not by the runtime.
                let class = classify(&status);
                let ours = status.code() == Code::Unavailable
                    || std::error::Error::source(&status).is_some();
                if ours {
                    ErrorClass::RuntimeUnavailable
                } else {
                    class
                }
            }),
            Err(_) => Err(ErrorClass::Timeout),
        };
        let result = answer
            .as_ref()
            .map_or_else(|class| class.as_str(), |_| "success");
        self.metrics.call(method, result, began.elapsed());
        match answer {
            Ok(answer) => {
                self.backoff().answered();
                Ok(answer.into_inner())
            }
            Err(ErrorClass::RuntimeUnavailable) => {
                self.backoff().failed(Instant::now());
                let socket = self.socket.display().to_string();
                Err(Error::new(ErrorClass::RuntimeUnavailable, socket))
            }
            Err(class) => {
                self.backoff().answered();
                Err(Error::new(class, subject))
            }
        }
    }
}

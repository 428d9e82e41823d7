//! A connection that cannot be held for nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

/// What a peer must do to keep its connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// It has to send so many bytes first,
    pub first_bytes: usize,
    /// within this time,
    pub first_within: Duration,
    /// and after that never be silent for longer than this while something is read from it. `None` is no limit: for
    /// protocols with a keep-alive of their own.
    pub idle: Option<Duration>,
}

/// A connection under [`ConnectionLimits`], which also holds its place among a bounded number. Servers wait for ever
/// on a peer that connects and never speaks, at work and at shutdown; here its reads end with `TimedOut`.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    limits: ConnectionLimits,
    received: usize,
    deadline: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Guarded<S> {
    /// Starts the clock.
    pub fn new(stream: S, limits: ConnectionLimits, place: OwnedSemaphorePermit) -> Self {
        Guarded {
            stream,
            limits,
            received: 0,
            deadline: Some(Box::pin(sleep(limits.first_within))),
            _place: place,
        }
    }
    /// The connection itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
    fn count(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes);
        if self.received < self.limits.first_bytes {
            return;
        }
        match (self.limits.idle, &mut self.deadline) {
            (Some(idle), Some(deadline)) => deadline.as_mut().reset(Instant::now() + idle),
            _ => self.deadline = None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(result) => {
                this.count(buffer.filled().len().saturating_sub(before));
                Poll::Ready(result)
            }
            Poll::Pending => {
                let silent = match &mut this.deadline {
                    Some(deadline) => deadline.as_mut().poll(cx).is_ready(),
                    None => false,
                };
                if silent {
                    let error =
                        io::Error::new(io::ErrorKind::TimedOut, "the peer was silent for too long");
                    return Poll::Ready(Err(error));
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::Semaphore;

    use super::*;

    fn guarded(idle: Option<Duration>) -> (Guarded<DuplexStream>, DuplexStream, Arc<Semaphore>) {
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().try_acquire_owned().unwrap();
        let (server, client) = tokio::io::duplex(64);
        let limits = ConnectionLimits {
            first_bytes: 4,
            first_within: Duration::from_millis(20),
            idle,
        };
        (Guarded::new(server, limits, place), client, places)
    }

    #[tokio::test]
    async fn silence_at_first_ends_the_connection_and_frees_its_place() {
        let (mut server, mut client, places) = guarded(None);
        client.write_all(b"abc").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(server.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(
            server.read(&mut buffer).await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        assert_eq!(places.available_permits(), 0);
        drop(server);
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test]
    async fn who_spoke_may_be_silent_unless_there_is_an_idle_limit() {
        let (mut server, mut client, _places) = guarded(None);
        client.write_all(b"abcd").await.unwrap();
        let mut buffer = [0; 4];
        server.read_exact(&mut buffer).await.unwrap();
        let silent =
            tokio::time::timeout(Duration::from_millis(80), server.read(&mut buffer)).await;
        assert!(silent.is_err(), "still open");

        let (mut server, mut client, _places) = guarded(Some(Duration::from_millis(10)));
        client.write_all(b"abcd").await.unwrap();
        server.read_exact(&mut buffer).await.unwrap();
        assert_eq!(
            server.read(&mut buffer).await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }
}

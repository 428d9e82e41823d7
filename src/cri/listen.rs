//! The unix socket: taking its place, and the connections that come.

use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tonic::transport::server::Connected;

use crate::lifecycle::{ConnectionLimits, Guarded};
use crate::telemetry::Seldom;

/// Connections at once: one kubelet, one runtime, some terminals; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// A gRPC client sends the 24 bytes of the HTTP/2 preface at once. After it, HTTP/2 pings find who is gone.
const LIMITS: ConnectionLimits = ConnectionLimits {
    first_bytes: 24,
    first_within: Duration::from_secs(5),
    idle: None,
};
/// Longest path of a unix socket (unix(7): `sun_path` less its end).
const MAX_PATH: usize = 107;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("{path} is served by another process: stop it first, or give another --socket")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("{path} exists and is no socket: remove it, or give another --socket")]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel's limit.
    #[error(
        "{path} is longer than the {MAX_PATH} bytes a socket's path may have: give a shorter --socket"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Everything else.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A listening socket with a name in the file system. Dropping it takes the name away, if it still is this socket's.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    name: Name,
    warnings: Seldom,
}

#[derive(Debug)]
struct Name {
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens at `path`, mode 0660; a parent directory that is absent is made, mode 0750. Takes the place of a socket
    /// that nobody answers at. The name appears when the socket listens, never before. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ListenError::Io {
                action,
                path,
                source,
            }
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temporary = parent.join(format!(".{}", std::process::id()));
        if path.as_os_str().len().max(temporary.as_os_str().len()) > MAX_PATH {
            return Err(ListenError::TooLong {
                path: path.to_owned(),
            });
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(parent)
            .map_err(failed("make", parent))?;
        free(path)?;
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
        .map_err(failed("remove", &temporary))?;
        let listener = UnixListener::bind(&temporary).map_err(failed("listen at", &temporary))?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))
            .map_err(failed("set the mode of", &temporary))?;
        let inode = fs::symlink_metadata(&temporary)
            .map_err(failed("look at", &temporary))?
            .st_ino();
        fs::rename(&temporary, path).map_err(failed("rename a socket to", path))?;
        Ok(Socket {
            listener,
            name: Name {
                path: path.to_owned(),
                inode,
            },
            warnings: Seldom::default(),
        })
    }
    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.name.path
    }
    /// The connections, for a server. Each has to speak soon; their number is bounded.
    pub fn incoming(self) -> Incoming {
        Box::pin(futures_util::stream::unfold(
            (self, Arc::new(Semaphore::new(MAX_CONNECTIONS))),
            |(mut socket, places)| async move {
                let place = places.clone().acquire_owned().await.ok()?;
                let stream = socket.accept().await;
                Some((
                    Ok(Connection(Guarded::new(stream, LIMITS, place))),
                    (socket, places),
                ))
            },
        ))
    }
    /// An accept that fails (no file descriptor left, a peer gone already) must not end the server.
    async fn accept(&mut self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    if let Some(held_back) = self.warnings.due(std::time::Instant::now()) {
                        let socket = self.name.path.display();
                        tracing::warn!(err = %error, %socket, held_back, "Connection was not accepted");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|data| data.st_ino() == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes sure that the name may be taken.
fn free(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Ok(data) if !data.file_type().is_socket() => {
            return Err(ListenError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(ListenError::Io {
                action: "look at",
                path: path.to_owned(),
                source,
            });
        }
    }
    match std::os::unix::net::UnixStream::connect(path) {
        // A full queue is somebody's queue.
        Ok(_) => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(source) => Err(ListenError::Io {
            action: "connect to",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Connections as they come; never an error, never an end.
pub type Incoming = Pin<Box<dyn Stream<Item = Result<Connection, io::Error>> + Send>>;

/// One connection.
#[derive(Debug)]
pub struct Connection(Guarded<UnixStream>);

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_and_its_directory_have_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/larder.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary name stays"
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "stale");
        let socket = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        assert!(
            error.to_string().contains("is served by another process"),
            "{error}"
        );
        assert!(path.exists());
        drop(socket);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::bind(&path).unwrap_err(),
            ListenError::NoSocket { .. }
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let long = dir.path().join("a".repeat(120));
        assert!(matches!(
            Socket::bind(&long).unwrap_err(),
            ListenError::TooLong { .. }
        ));
    }

    #[tokio::test]
    async fn a_successor_keeps_its_name_when_the_first_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Socket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }
}

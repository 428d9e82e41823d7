//! A channel to a unix socket of the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// A local socket answers at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The path of a socket, before which `unix://` may stand.
pub(super) fn path(socket: &Path) -> PathBuf {
    let text = socket.to_string_lossy();
    text.strip_prefix("unix://")
        .map_or(socket, Path::new)
        .to_path_buf()
}

/// Connects when it is first used, and again after a break. Needs a tokio runtime.
pub(super) fn channel(path: &Path) -> Channel {
    let path = path.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(&path).await.map(TokioIo::new) }
    });
    // Only the authority of requests; what the kubelet sends.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector_lazy(connector)
}

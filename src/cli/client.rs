//! One client of larder.v1 for every verb: over the agent's socket, or over a store opened here.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use super::Global;
use super::failure::Failure;
use crate::app::{self, CacheOptions};
use crate::control::proto::images_client::ImagesClient;
use crate::{control, telemetry};

pub(super) type Client = ImagesClient<Channel>;

/// A config may be large, a list long.
const MAX_MESSAGE: usize = 64 << 20;
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes under way between a verb and a store opened in the same process.
const PIPE: usize = 256 << 10;

/// Runs a verb with a connected client, and closes what was opened for it.
pub(super) fn run(
    global: &Global,
    verb: impl AsyncFnOnce(Client) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("start the runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        match &global.root {
            None => {
                let client = connect(global.socket()).await?;
                interruptible(verb(client)).await
            }
            Some(root) => {
                let (client, opened) = open(root, global).await?;
                let outcome = interruptible(verb(client)).await;
                opened.cache.shutdown().await;
                outcome
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// Ctrl-C ends a verb in an orderly way: a store opened here is closed, a pull taken back.
pub(super) async fn interruptible(
    verb: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        outcome = verb => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
    }
}

/// Connects to an agent.
pub(super) async fn connect(socket: &Path) -> Result<Client, Failure> {
    let path = socket.to_owned();
    // The address is for the protocol only: HTTP/2 wants a host name, and a path is none.
    let channel = Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT)
        .connect_with_connector(service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| {
            let cause = root_cause(&error);
            Failure::failed(format!(
                "no agent at {}: {cause}; start one with `larder agent`, or give --root DIR to work without",
                socket.display()
            ))
        })?;
    Ok(client(channel))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

fn client(channel: Channel) -> Client {
    ImagesClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Opens a store and serves it to a client in this process.
async fn open(root: &Path, global: &Global) -> Result<(Client, app::Opened), Failure> {
    // What matters is printed; logs are for whoever asks for them.
    let level = std::env::var("LARDER_LOG_LEVEL").unwrap_or_else(|_| "off".to_owned());
    let config = telemetry::LogConfig {
        format: telemetry::LogFormat::Human,
        level,
    };
    telemetry::init(&config).map_err(|error| Failure::usage(error.to_string()))?;
    let mut options = CacheOptions {
        // A verb that was interrupted has nobody who would come back for the rest.
        orphan_grace: Duration::ZERO,
        ..CacheOptions::default()
    };
    if !global.hosts_dir.is_empty() {
        options.hosts_dirs.clone_from(&global.hosts_dir);
    }
    let root = root.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        app::open_cache(&root, options, &mut Registry::default())
    })
    .await
    .map_err(|error| Failure::failed(format!("open the store: {error}")))??;
    let (here, there) = tokio::io::duplex(PIPE);
    let service = control::server(opened.cache.clone());
    tokio::spawn(async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(there));
        if let Err(error) = Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
        {
            tracing::warn!(%error, "Service in this process ended");
        }
    });
    let mut here = Some(here);
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(service_fn(move |_| {
            let here = here.take();
            async move {
                here.map(TokioIo::new)
                    .ok_or_else(|| std::io::Error::other("the store was closed"))
            }
        }))
        .await
        .map_err(|error| Failure::failed(format!("open the store: {error}")))?;
    Ok((client(channel), opened))
}

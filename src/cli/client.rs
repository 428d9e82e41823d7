//! The one client: `larder.v1` of an agent over its socket, or of a store opened by this process over a pipe in memory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Response, Status};

use super::Globals;
use super::failure::Failure;
use crate::app::{self, CacheOptions};
use crate::control;
use crate::control::proto::images_client::ImagesClient;
use crate::control::proto::prepulls_client::PrepullsClient;

/// A list of 100,000 images is smaller.
const MAX_ANSWER: usize = 64 << 20;
/// A local socket answers at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of the pipe in memory.
const PIPE: usize = 256 << 10;
/// What ending the store's work may take.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to where the images are.
pub(super) struct Client {
    /// The calls.
    pub(super) images: ImagesClient<Channel>,
    /// What is declared; only an agent has that.
    pub(super) prepulls: Option<PrepullsClient<Channel>>,
    agent: Option<PathBuf>,
    end: Option<End>,
}

/// Ends the store this process opened.
type End = Box<dyn FnOnce() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Client {
    /// `makes` tells whether a store may be made where there is none: a mistyped directory is not an empty store.
    pub(super) async fn open(globals: &Globals, makes: bool) -> Result<Self, Failure> {
        match &globals.root {
            Some(root) => Self::local(root, globals.hosts_dirs(), makes).await,
            None => Self::agent(&globals.socket()).await,
        }
    }

    pub(super) async fn agent(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| unreachable(socket, &error))?;
        let channel = channel(stream)
            .await
            .map_err(|cause| Failure::new(format!("{}: {cause}", socket.display())))?;
        Ok(Client {
            images: images_client(channel.clone()),
            prepulls: Some(PrepullsClient::new(channel).max_decoding_message_size(MAX_ANSWER)),
            agent: Some(socket.to_owned()),
            end: None,
        })
    }

    async fn local(root: &Path, hosts_dirs: Vec<PathBuf>, makes: bool) -> Result<Self, Failure> {
        let mut options = CacheOptions {
            // After a verb nobody comes back for the rest.
            orphan_grace: Duration::ZERO,
            ..CacheOptions::default()
        };
        if !hosts_dirs.is_empty() {
            options.hosts_dirs = hosts_dirs;
        }
        let root = root.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            if !makes {
                app::expect_store(&root)?;
            }
            app::open_cache(&root, options, &mut Registry::default())
        });
        let opened = opening
            .await
            .map_err(|error| Failure::new(format!("opening the store: {error}")))??;
        if let Some(warning) = opened.store.warning() {
            eprintln!("larder: {warning}");
        }
        let (near, far) = tokio::io::duplex(PIPE);
        let service = control::server(opened.cache.clone());
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(far))),
        );
        let channel = channel(near).await.map_err(Failure::new)?;
        let cache = opened.cache;
        Ok(Client {
            images: images_client(channel),
            prepulls: None,
            agent: None,
            end: Some(Box::new(move || {
                Box::pin(async move { cache.shutdown().await })
            })),
        })
    }

    /// The answer of a call, or what went wrong in words for people.
    pub(super) fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, Failure> {
        answer
            .map(Response::into_inner)
            .map_err(|status| self.failure(&status))
    }

    pub(super) fn failure(&self, status: &Status) -> Failure {
        Failure::of_status(status, self.agent.as_deref())
    }

    /// Lets the work of a store that this process opened end in order. What is cut off here, the next start cleans up.
    pub(super) async fn close(mut self) {
        if let Some(end) = self.end.take() {
            let _ = timeout(END_TIMEOUT, end()).await;
        }
    }
}

pub(super) fn images_client(channel: Channel) -> ImagesClient<Channel> {
    ImagesClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// HTTP/2 over one stream that is open already; there is no second one, so a lost connection stays lost.
pub(super) async fn channel(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Channel, String> {
    let stream = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        std::future::ready(stream.map(TokioIo::new))
    });
    // The name goes into :authority, where HTTP/2 has no place for a path.
    let endpoint = Endpoint::from_static("http://localhost");
    let connecting = endpoint.connect_with_connector(connector);
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => {
            use std::error::Error;
            let cause = error.source().map(ToString::to_string);
            Err(cause.unwrap_or_else(|| error.to_string()))
        }
        Err(_) => Err("no answer".to_owned()),
    }
}

fn unreachable(socket: &Path, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => {
            "the socket is its owner's: run larder as that user, or use a store of your own with --root DIR"
        }
        _ => {
            "start one with \"larder agent\", name its socket with --socket PATH, or go without one with --root DIR"
        }
    };
    let cause = match error.kind() {
        ErrorKind::NotFound => "there is no such socket".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
        _ => error.to_string(),
    };
    Failure::new(format!(
        "no agent at {}: {cause}; {remedy}",
        socket.display()
    ))
}

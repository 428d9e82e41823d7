//! A read-only OCI registry on loopback that counts what it is asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Method, Response, StatusCode, header};
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::Images;
use crate::image::Digest;

/// What was asked for so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests of any kind.
    pub requests: u64,
    /// Blobs sent.
    pub blobs: u64,
    /// Bytes of those blobs.
    pub blob_bytes: u64,
}

#[derive(Debug)]
struct Served {
    images: Arc<Images>,
    requests: AtomicU64,
    blobs: AtomicU64,
    blob_bytes: AtomicU64,
}

/// The running registry; it ends when it is dropped.
#[derive(Debug)]
pub struct DemoRegistry {
    address: SocketAddr,
    served: Arc<Served>,
    task: JoinHandle<()>,
}

impl DemoRegistry {
    pub(super) async fn start(images: Arc<Images>) -> anyhow::Result<Self> {
        let served = Arc::new(Served {
            images,
            requests: AtomicU64::new(0),
            blobs: AtomicU64::new(0),
            blob_bytes: AtomicU64::new(0),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/v2/", get(|| async {}))
            .route("/v2/{*path}", get(answer))
            .with_state(served.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::warn!(err = %error, "The demo's registry ended");
            }
        });
        Ok(DemoRegistry {
            address,
            served,
            task,
        })
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What was asked for so far.
    pub fn counts(&self) -> Counts {
        Counts {
            requests: self.served.requests.load(Ordering::Relaxed),
            blobs: self.served.blobs.load(Ordering::Relaxed),
            blob_bytes: self.served.blob_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for DemoRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    State(served): State<Arc<Served>>,
    method: Method,
    Path(path): Path<String>,
) -> Response<Body> {
    served.requests.fetch_add(1, Ordering::Relaxed);
    let found = find(&served.images, &path);
    let (status, kind, digest, bytes) = match found {
        Some((kind, digest, bytes)) => (StatusCode::OK, kind, digest.to_string(), bytes),
        None => (
            StatusCode::NOT_FOUND,
            "text/plain",
            String::new(),
            Bytes::new(),
        ),
    };
    let sends = method == Method::GET;
    if sends && path.contains("/blobs/") {
        served.blobs.fetch_add(1, Ordering::Relaxed);
        served
            .blob_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .header(header::CONTENT_LENGTH, bytes.len())
        .header("docker-content-digest", digest)
        .body(if sends {
            Body::from(bytes)
        } else {
            Body::empty()
        });
    response.unwrap_or_default()
}

fn find(images: &Images, path: &str) -> Option<(&'static str, Digest, Bytes)> {
    if let Some((_, digest)) = path.rsplit_once("/blobs/") {
        let digest: Digest = digest.parse().ok()?;
        let bytes = images.blobs.get(&digest)?.clone();
        return Some(("application/octet-stream", digest, bytes));
    }
    let (repository, name) = path.rsplit_once("/manifests/")?;
    let digest = match name.parse::<Digest>() {
        Ok(digest) => digest,
        Err(_) => {
            let wanted = format!("{repository}:{name}");
            let image = images.built.iter().find(|image| image.name == wanted)?;
            image.manifest.clone()
        }
    };
    let bytes = images.manifests.get(&digest)?.clone();
    Some(("application/vnd.oci.image.manifest.v1+json", digest, bytes))
}

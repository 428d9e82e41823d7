//! A well-behaved registry on loopback that counts its requests and can be told to wait or to lie.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use base64::Engine;
use tokio::sync::watch;

use super::build::{BuiltImage, INDEX, MANIFEST, digest};

#[derive(Default)]
struct Content {
    /// `repository` and `tag or digest`.
    manifests: BTreeMap<(String, String), (Vec<u8>, String)>,
    /// `repository` and digest.
    blobs: BTreeMap<(String, String), Vec<u8>>,
    /// `METHOD path`, in order of arrival.
    log: Vec<String>,
    /// `user:password` per repository.
    accounts: BTreeMap<String, BTreeSet<String>>,
    /// Status to answer requests for a path with.
    refused: BTreeMap<String, StatusCode>,
    gates: BTreeMap<String, Gate>,
}

/// Holds back the answer to requests for one path.
#[derive(Clone)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Gate {
    /// Until a request stands at the gate.
    pub(crate) async fn reached(&self) {
        self.waiting
            .subscribe()
            .wait_for(|waiting| *waiting > 0)
            .await
            .unwrap();
    }

    /// Until no request stands there any more: the other side has hung up.
    pub(crate) async fn left(&self) {
        self.waiting
            .subscribe()
            .wait_for(|waiting| *waiting == 0)
            .await
            .unwrap();
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }
}

struct Standing(Gate);

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

/// The registry. Stops with the runtime of its test.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) host: String,
    content: Arc<Mutex<Content>>,
}

impl Hub {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let content = Arc::new(Mutex::new(Content::default()));
        let app = Router::new().fallback(answer).with_state(content.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Hub { host, content }
    }

    /// `host/repository:tag` or `host/repository@digest`.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    pub(crate) fn put_blob(&self, repository: &str, name: &str, bytes: &[u8]) {
        let key = (repository.to_owned(), name.to_owned());
        self.content
            .lock()
            .unwrap()
            .blobs
            .insert(key, bytes.to_vec());
    }

    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, bytes: &[u8], media_type: &str) {
        let manifests = &mut self.content.lock().unwrap().manifests;
        for name in [tag.to_owned(), digest(bytes)] {
            manifests.insert(
                (repository.to_owned(), name),
                (bytes.to_vec(), media_type.to_owned()),
            );
        }
    }

    /// All of an image, under a tag.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &BuiltImage) {
        for layer in &image.layers {
            self.put_blob(repository, &layer.digest, &layer.blob);
        }
        self.put_blob(repository, &image.id(), &image.config);
        self.put_manifest(repository, tag, &image.manifest, MANIFEST);
    }

    pub(crate) fn push_index(&self, repository: &str, tag: &str, index: &[u8]) {
        self.put_manifest(repository, tag, index, INDEX);
    }

    /// Lets only these `user:password` in.
    pub(crate) fn require(&self, repository: &str, accounts: &[&str]) {
        let accounts = accounts
            .iter()
            .map(|account| (*account).to_owned())
            .collect();
        self.content
            .lock()
            .unwrap()
            .accounts
            .insert(repository.to_owned(), accounts);
    }

    pub(crate) fn gate(&self, path: &str) -> Gate {
        let gate = Gate {
            open: watch::channel(false).0,
            waiting: watch::channel(0).0,
        };
        self.content
            .lock()
            .unwrap()
            .gates
            .insert(path.to_owned(), gate.clone());
        gate
    }

    pub(crate) fn refuse(&self, path: &str, status: Option<StatusCode>) {
        let refused = &mut self.content.lock().unwrap().refused;
        match status {
            Some(status) => refused.insert(path.to_owned(), status),
            None => refused.remove(path),
        };
    }

    /// Requests since the last call.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.content.lock().unwrap().log)
    }
}

/// Path of a blob.
pub(crate) fn blob_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

async fn answer(
    State(content): State<Arc<Mutex<Content>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let path = uri.path().to_owned();
    let (response, gate) = {
        let mut content = content.lock().unwrap();
        content.log.push(format!("{method} {path}"));
        (
            respond(&content, &path, &headers),
            content.gates.get(&path).cloned(),
        )
    };
    if let Some(gate) = gate {
        gate.waiting.send_modify(|waiting| *waiting += 1);
        let standing = Standing(gate);
        standing
            .0
            .open
            .subscribe()
            .wait_for(|open| *open)
            .await
            .unwrap();
    }
    response
}

fn respond(content: &Content, path: &str, headers: &HeaderMap) -> Response<Body> {
    if let Some(status) = content.refused.get(path) {
        return empty(*status);
    }
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    let (repository, kind, name) =
        match (rest.rsplit_once("/manifests/"), rest.rsplit_once("/blobs/")) {
            (Some((repository, name)), _) => (repository, "manifests", name),
            (_, Some((repository, name))) => (repository, "blobs", name),
            _ => return empty(StatusCode::OK),
        };
    if let Some(accounts) = content.accounts.get(repository) {
        let shown = headers
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let basic = |account: &String| {
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(account)
            )
        };
        if !accounts.iter().any(|account| basic(account) == shown) {
            return Response::builder()
                .status(StatusCode::UNAUTHORIZED)
                .header("www-authenticate", "Basic realm=\"hub\"")
                .body(Body::empty())
                .unwrap();
        }
    }
    let key = (repository.to_owned(), name.to_owned());
    let (bytes, media_type) = match kind {
        "manifests" => match content.manifests.get(&key) {
            Some((bytes, media_type)) => (bytes.clone(), media_type.as_str()),
            None => return empty(StatusCode::NOT_FOUND),
        },
        _ => match content.blobs.get(&key) {
            Some(bytes) => (bytes.clone(), "application/octet-stream"),
            None => return empty(StatusCode::NOT_FOUND),
        },
    };
    Response::builder()
        .header("content-type", media_type)
        .header(
            "docker-content-digest",
            if kind == "manifests" {
                digest(&bytes)
            } else {
                name.to_owned()
            },
        )
        .header("content-length", bytes.len())
        .body(Body::from(bytes))
        .unwrap()
}

fn empty(status: StatusCode) -> Response<Body> {
    Response::builder()
        .status(status)
        .body(Body::empty())
        .unwrap()
}

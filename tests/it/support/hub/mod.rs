//! A registry within the process: keeps images, writes down each request, and waits, lies or breaks on demand.
#![allow(clippy::unwrap_used)]

mod faults;
mod reply;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::build::{BuiltImage, INDEX, MANIFEST, digest};

pub(crate) use faults::Fault;
pub(crate) use reply::{Auth, TokenServer};
pub(crate) use tls::{Authority, Tls};

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
    /// `METHOD /path`.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// A fault and the requests it is for.
#[derive(Debug)]
struct Rule {
    /// All where it is `None`.
    method: Option<Method>,
    /// Part of the path.
    path: String,
    fault: Fault,
    left: usize,
}

#[derive(Default)]
struct Content {
    /// By repository and tag or digest: type and bytes.
    manifests: BTreeMap<(String, String), (String, Bytes)>,
    /// By repository and digest.
    blobs: BTreeMap<(String, String), Bytes>,
    /// In order of arrival.
    seen: Vec<Seen>,
    rules: Vec<Rule>,
    gates: BTreeMap<String, Gate>,
    auth: Auth,
    /// `user:password` per repository, besides `auth`.
    accounts: BTreeMap<String, BTreeSet<String>>,
    /// Tokens that are good.
    tokens: Vec<String>,
    sold: usize,
    url: String,
}

type Shared = Arc<Mutex<Content>>;

/// Holds back the answer to requests for one path.
#[derive(Clone)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Gate {
    /// Until a request stands at the gate.
    pub(crate) async fn reached(&self) {
        let mut waiting = self.waiting.subscribe();
        waiting.wait_for(|waiting| *waiting > 0).await.unwrap();
    }

    /// Until no request stands there any more: the other side has hung up.
    pub(crate) async fn left(&self) {
        let mut waiting = self.waiting.subscribe();
        waiting.wait_for(|waiting| *waiting == 0).await.unwrap();
    }

    /// Requests that stand there.
    pub(crate) fn waiting(&self) -> usize {
        *self.waiting.borrow()
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

/// Ends with the last [`Hub`] that holds it.
struct Server(tokio::task::JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The registry. Stops when its last clone is dropped, or with the runtime of its test.
#[derive(Clone)]
pub(crate) struct Hub {
    /// `127.0.0.1:port`, the domain of references.
    pub(crate) host: String,
    shared: Shared,
    _server: Arc<Server>,
}

impl Hub {
    /// Plain HTTP on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = shared(&format!("http://{host}"));
        let app = app(&shared);
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self::of(host, shared, server)
    }

    /// HTTPS with this certificate, and what it asks of its clients.
    pub(crate) async fn start_tls(tls: &Tls) -> Self {
        let listener = tls.listener().await;
        let host = axum::serve::Listener::local_addr(&listener).unwrap();
        let host = host.to_string();
        let shared = shared(&format!("https://{host}"));
        let app = app(&shared);
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self::of(host, shared, server)
    }

    fn of(host: String, shared: Shared, server: tokio::task::JoinHandle<()>) -> Self {
        Hub {
            host,
            shared,
            _server: Arc::new(Server(server)),
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        lock(&self.shared)
    }

    pub(crate) fn url(&self) -> String {
        self.content().url.clone()
    }

    /// `host/repository:tag` or `host/repository@digest`.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    /// Under any name: a blob need not be what its digest says.
    pub(crate) fn put_blob(&self, repository: &str, name: &str, bytes: &[u8]) {
        let key = (repository.to_owned(), name.to_owned());
        let bytes = Bytes::copy_from_slice(bytes);
        self.content().blobs.insert(key, bytes);
    }

    /// Under a tag and its digest.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, bytes: &[u8], media_type: &str) {
        let entry = (media_type.to_owned(), Bytes::copy_from_slice(bytes));
        let manifests = &mut self.content().manifests;
        for name in [tag.to_owned(), digest(bytes)] {
            manifests.insert((repository.to_owned(), name), entry.clone());
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
        let accounts = accounts.iter().map(|account| (*account).to_owned());
        self.content()
            .accounts
            .insert(repository.to_owned(), accounts.collect());
    }

    /// Who may pull at all.
    pub(crate) fn set_auth(&self, auth: Auth) {
        self.content().auth = auth;
    }

    /// All tokens sold so far stop to count.
    pub(crate) fn revoke_tokens(&self) {
        self.content().tokens.clear();
    }

    /// From now on, for all requests of `method` whose path contains `path`.
    pub(crate) fn fault(&self, method: Method, path: &str, fault: Fault) {
        self.fault_times(method, path, fault, usize::MAX);
    }

    /// As [`Self::fault`], for the next `times` such requests.
    pub(crate) fn fault_times(&self, method: Method, path: &str, fault: Fault, times: usize) {
        self.content().rules.push(Rule {
            method: Some(method),
            path: path.to_owned(),
            fault,
            left: times,
        });
    }

    /// As [`Self::fault`], whatever the method.
    pub(crate) fn fault_all(&self, path: &str, fault: Fault) {
        self.content().rules.push(Rule {
            method: None,
            path: path.to_owned(),
            fault,
            left: usize::MAX,
        });
    }

    /// A status for all requests to a path; `None` takes it back.
    pub(crate) fn refuse(&self, path: &str, status: Option<StatusCode>) {
        self.content().rules.retain(|rule| rule.path != path);
        if let Some(status) = status {
            self.fault_all(path, Fault::Status(status.as_u16()));
        }
    }

    /// Good behaviour again.
    pub(crate) fn heal(&self) {
        self.content().rules.clear();
    }

    pub(crate) fn gate(&self, path: &str) -> Gate {
        let gate = Gate {
            open: watch::channel(false).0,
            waiting: watch::channel(0).0,
        };
        self.content().gates.insert(path.to_owned(), gate.clone());
        gate
    }

    /// All requests so far, oldest first; forgets them.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.content().seen)
    }

    /// `METHOD /path` of all requests so far; forgets them.
    pub(crate) fn take_log(&self) -> Vec<String> {
        self.take_seen().iter().map(Seen::line).collect()
    }
}

/// Path of a blob.
pub(crate) fn blob_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

fn lock(shared: &Shared) -> MutexGuard<'_, Content> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shared(url: &str) -> Shared {
    Arc::new(Mutex::new(Content {
        url: url.to_owned(),
        ..Content::default()
    }))
}

fn app(shared: &Shared) -> axum::Router {
    axum::Router::new()
        .fallback(answer)
        .with_state(Arc::clone(shared))
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await;
    let seen = Seen {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body.unwrap_or_default()).into_owned(),
    };
    let (reply, faults, gate) = {
        let mut content = lock(&shared);
        content.seen.push(seen.clone());
        let faults = content.faults(&seen);
        let gate = content.gates.get(&seen.path).cloned();
        (content.reply(&seen, &faults), faults, gate)
    };
    if let Some(gate) = gate {
        gate.waiting.send_modify(|waiting| *waiting += 1);
        let standing = Standing(gate);
        let mut open = standing.0.open.subscribe();
        open.wait_for(|open| *open).await.unwrap();
    }
    if seen.method == Method::HEAD {
        return faults::head(reply, &faults).await;
    }
    faults::body(reply, &faults).await
}

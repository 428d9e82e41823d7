//! A registry within the process: keeps images, writes down each request, and misbehaves on demand.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use http::{HeaderMap, Method, StatusCode};
use larder::image::{Compression, Descriptor, Digest};
use tokio::net::TcpListener;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What goes wrong with the answers a rule is for.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status in place of the answer.
    Status(u16),
    /// This status with a `Retry-After`.
    StatusAfter(u16, String),
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// The body ends in good order after so many bytes, its length unannounced.
    Short(usize),
    /// So many bytes too much, the length unannounced.
    Excess(usize),
    /// Right length, other bytes.
    WrongBytes,
    /// `Range` is ignored.
    IgnoreRange,
    /// Nothing more after so many bytes; the connection stays.
    Stall(usize),
    /// So many bytes at a time, with a pause between.
    Drip(usize, Duration),
    /// No answer at all; the connection stays.
    Never,
    /// To this URL.
    Redirect(String),
    /// Another content type.
    ContentType(&'static str),
    /// A login page with status 200.
    Html,
    /// No `Docker-Content-Digest`.
    NoDigest,
    /// Another `Docker-Content-Digest`.
    WrongDigest(String),
}

/// Who may pull.
#[derive(Clone, Debug, Default)]
pub(crate) enum Auth {
    /// Everyone.
    #[default]
    Open,
    /// User and password with each request.
    Basic(String, String),
    /// With a token of this registry's own token server.
    Bearer(TokenServer),
}

/// How the token server sells.
#[derive(Clone, Debug)]
pub(crate) struct TokenServer {
    /// User and password; `None` sells to everyone.
    pub(crate) account: Option<(String, String)>,
    /// A refresh token that is accepted too.
    pub(crate) identity: Option<String>,
    /// Speaks the OAuth2 POST form; else 405.
    pub(crate) post: bool,
    /// Told life of tokens.
    pub(crate) expires_in: u64,
    /// Realm told in place of the own.
    pub(crate) realm: Option<String>,
}

impl Default for TokenServer {
    fn default() -> Self {
        TokenServer {
            account: None,
            identity: None,
            post: false,
            expires_in: 300,
            realm: None,
        }
    }
}

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

#[derive(Debug)]
struct Rule {
    method: Method,
    path: String,
    fault: Fault,
    left: usize,
}

#[derive(Default, Debug)]
struct Content {
    /// By `repository/reference`.
    manifests: HashMap<String, (String, Bytes)>,
    /// By `repository/digest`.
    blobs: HashMap<String, Bytes>,
    rules: Vec<Rule>,
    auth: Auth,
    tokens: Vec<String>,
    sold: usize,
    seen: Vec<Seen>,
    authority: String,
}

type Shared = Arc<Mutex<Content>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Content> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registry; it stops when dropped.
pub(crate) struct FakeRegistry {
    address: SocketAddr,
    shared: Shared,
    server: tokio::task::JoinHandle<()>,
    /// PEM of the authority that signed its certificate, with TLS.
    pub(crate) ca: Option<String>,
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A layer to be pushed.
#[derive(Clone, Debug)]
pub(crate) struct LayerSpec {
    pub(crate) tar: Vec<u8>,
    pub(crate) compression: Compression,
}

/// What was pushed.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl FakeRegistry {
    /// Plain HTTP on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::default();
        let app = app(&shared, &format!("http://{address}"));
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.unwrap();
        });
        FakeRegistry {
            address,
            shared,
            server,
            ca: None,
        }
    }

    /// TLS with a certificate for `127.0.0.1` and `localhost` of an authority of its own.
    pub(crate) async fn start_tls() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let shared = Shared::default();
        let app = app(&shared, &format!("https://{address}"));
        let listener = TlsListener {
            tcp,
            acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)),
        };
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.unwrap();
        });
        FakeRegistry {
            address,
            shared,
            server,
            ca: Some(made.cert.pem()),
        }
    }

    /// `127.0.0.1:port`, the domain of references.
    pub(crate) fn domain(&self) -> String {
        self.address.to_string()
    }
    pub(crate) fn url(&self) -> String {
        lock(&self.shared).authority.clone()
    }
    pub(crate) fn set_auth(&self, auth: Auth) {
        lock(&self.shared).auth = auth;
    }
    /// All tokens sold so far stop to count.
    pub(crate) fn revoke_tokens(&self) {
        lock(&self.shared).tokens.clear();
    }
    /// From now on, for all requests of `method` whose path contains `path`.
    pub(crate) fn fault(&self, method: Method, path: &str, fault: Fault) {
        self.fault_times(method, path, fault, usize::MAX);
    }
    /// As [`Self::fault`], for the next `times` such requests.
    pub(crate) fn fault_times(&self, method: Method, path: &str, fault: Fault, times: usize) {
        lock(&self.shared).rules.push(Rule {
            method,
            path: path.to_owned(),
            fault,
            left: times,
        });
    }
    /// Good behaviour again.
    pub(crate) fn heal(&self) {
        lock(&self.shared).rules.clear();
    }
    /// All requests so far, oldest first; forgets them.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.shared).seen)
    }
    /// `METHOD /path` of all requests so far; forgets them.
    pub(crate) fn take_lines(&self) -> Vec<String> {
        self.take_seen().iter().map(Seen::line).collect()
    }

    pub(crate) fn push_blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::sha256(bytes);
        let key = format!("{repository}/{digest}");
        lock(&self.shared)
            .blobs
            .insert(key, Bytes::copy_from_slice(bytes));
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len() as u64,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
        }
    }
    /// Under its digest and, if given, a tag.
    pub(crate) fn push_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Digest {
        let digest = Digest::sha256(bytes);
        let entry = (media_type.to_owned(), Bytes::copy_from_slice(bytes));
        let mut content = lock(&self.shared);
        if let Some(tag) = tag {
            content
                .manifests
                .insert(format!("{repository}/{tag}"), entry.clone());
        }
        content
            .manifests
            .insert(format!("{repository}/{digest}"), entry);
        digest
    }
    /// An OCI image of these layers for linux/amd64.
    pub(crate) fn push_image(
        &self,
        repository: &str,
        tag: Option<&str>,
        layers: &[LayerSpec],
    ) -> Pushed {
        self.push_image_for(repository, tag, "amd64", layers)
    }
    /// An OCI image for `linux/<architecture>`.
    pub(crate) fn push_image_for(
        &self,
        repository: &str,
        tag: Option<&str>,
        architecture: &str,
        layers: &[LayerSpec],
    ) -> Pushed {
        let pushed: Vec<Descriptor> = layers
            .iter()
            .map(|layer| {
                let (bytes, media_type) = compress(layer);
                self.push_blob(repository, media_type, &bytes)
            })
            .collect();
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| Digest::sha256(&layer.tar).to_string())
            .collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.push_blob(repository, OCI_CONFIG, config.to_string().as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": json(&config),
            "layers": pushed.iter().map(json).collect::<Vec<_>>(),
        })
        .to_string();
        let digest = self.push_manifest(repository, tag, OCI_MANIFEST, manifest.as_bytes());
        Pushed {
            digest,
            size: manifest.len() as u64,
            config,
            layers: pushed,
        }
    }
    /// An OCI index of images by `linux/<architecture>`.
    pub(crate) fn push_index(
        &self,
        repository: &str,
        tag: Option<&str>,
        images: &[(&str, &Pushed)],
    ) -> Digest {
        let manifests: Vec<_> = images
            .iter()
            .map(|(architecture, image)| {
                serde_json::json!({
                    "mediaType": OCI_MANIFEST, "digest": image.digest, "size": image.size,
                    "platform": {"os": "linux", "architecture": architecture},
                })
            })
            .collect();
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests,
        });
        self.push_manifest(repository, tag, OCI_INDEX, index.to_string().as_bytes())
    }
}

fn json(descriptor: &Descriptor) -> serde_json::Value {
    serde_json::json!({
        "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size,
    })
}

fn compress(layer: &LayerSpec) -> (Vec<u8>, &'static str) {
    match layer.compression {
        Compression::None => (layer.tar.clone(), "application/vnd.oci.image.layer.v1.tar"),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&layer.tar).unwrap();
            (
                encoder.finish().unwrap(),
                "application/vnd.oci.image.layer.v1.tar+gzip",
            )
        }
        Compression::Zstd => (
            zstd::encode_all(layer.tar.as_slice(), 1).unwrap(),
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    }
}

struct TlsListener {
    tcp: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // A client that does not trust us is no reason to stop.
            if let Ok((stream, address)) = self.tcp.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, address);
            }
        }
    }
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

fn app(shared: &Shared, authority: &str) -> axum::Router {
    lock(shared).authority = authority.to_owned();
    axum::Router::new()
        .fallback(answer)
        .with_state(Arc::clone(shared))
}

/// An answer before it goes wrong.
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Reply {
    fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }
    fn error(status: u16, code: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": "not for logs"}]});
        Reply::new(status, body.to_string()).with("content-type", "application/json")
    }
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20)
        .await
        .unwrap_or_default();
    let seen = Seen {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let (reply, faults) = {
        let mut content = lock(&shared);
        content.seen.push(seen.clone());
        let faults = content.faults(&seen);
        (content.reply(&seen, &faults), faults)
    };
    // HEAD has the same head as GET, and no body to go wrong.
    if seen.method == Method::HEAD {
        if faults.iter().any(|fault| matches!(fault, Fault::Never)) {
            std::future::pending::<()>().await;
        }
        let length = reply.body.len().to_string();
        return respond(reply.with("content-length", length), Body::empty());
    }
    misbehave(reply, &faults).await
}

fn respond(reply: Reply, body: Body) -> Response {
    let mut response = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(body).unwrap()
}

/// How the body comes.
async fn misbehave(reply: Reply, faults: &[Fault]) -> Response {
    type Piece = Result<Bytes, std::io::Error>;
    let body = reply.body.clone();
    let announced = reply.body.len().to_string();
    let fault = faults.iter().find(|fault| {
        matches!(
            fault,
            Fault::Cut(_)
                | Fault::Short(_)
                | Fault::Excess(_)
                | Fault::Stall(_)
                | Fault::Drip(..)
                | Fault::Never
        )
    });
    let part = |count: usize| body.slice(..count.min(body.len()));
    match fault {
        None => respond(reply, Body::from(body)),
        Some(Fault::Never) => std::future::pending().await,
        Some(Fault::Cut(count)) => {
            let broken = std::io::Error::other("cut");
            // Written out before it breaks, so that the bytes arrive.
            let pieces = futures_util::stream::unfold(
                (Some(part(*count)), Some(broken)),
                |(bytes, broken)| async move {
                    match (bytes, broken) {
                        (Some(bytes), broken) => Some((Ok(bytes), (None, broken))),
                        (None, Some(broken)) => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            Some((Piece::Err(broken), (None, None)))
                        }
                        (None, None) => None,
                    }
                },
            );
            respond(
                reply.with("content-length", announced),
                Body::from_stream(pieces),
            )
        }
        Some(Fault::Short(count)) => {
            let pieces = futures_util::stream::iter([Ok::<_, Infallible>(part(*count))]);
            respond(reply, Body::from_stream(pieces))
        }
        Some(Fault::Excess(count)) => {
            let more = Bytes::from(vec![0; *count]);
            let pieces = futures_util::stream::iter([Ok::<_, Infallible>(body.clone()), Ok(more)]);
            respond(reply, Body::from_stream(pieces))
        }
        Some(Fault::Stall(count)) => {
            let pieces = futures_util::stream::unfold(Some(part(*count)), |bytes| async move {
                match bytes {
                    Some(bytes) => Some((Ok::<_, Infallible>(bytes), None)),
                    None => std::future::pending().await,
                }
            });
            respond(
                reply.with("content-length", announced),
                Body::from_stream(pieces),
            )
        }
        Some(Fault::Drip(count, pause)) => {
            let (count, pause) = (*count, *pause);
            let pieces = futures_util::stream::unfold(body, move |mut rest| async move {
                if rest.is_empty() {
                    return None;
                }
                tokio::time::sleep(pause).await;
                let piece = rest.split_to(count.min(rest.len()));
                Some((Ok::<_, Infallible>(piece), rest))
            });
            respond(
                reply.with("content-length", announced),
                Body::from_stream(pieces),
            )
        }
        Some(_) => respond(reply, Body::from(body)),
    }
}

impl Content {
    /// What goes wrong this time.
    fn faults(&mut self, seen: &Seen) -> Vec<Fault> {
        let mut faults = Vec::new();
        for rule in &mut self.rules {
            if rule.left > 0 && rule.method == seen.method && seen.path.contains(&rule.path) {
                rule.left -= 1;
                faults.push(rule.fault.clone());
            }
        }
        faults
    }

    fn reply(&mut self, seen: &Seen, faults: &[Fault]) -> Reply {
        let ranged = !faults
            .iter()
            .any(|fault| matches!(fault, Fault::IgnoreRange));
        let mut reply = self.good(seen, ranged);
        for fault in faults {
            reply = match fault {
                Fault::Status(status) => Reply::error(*status, "UNKNOWN"),
                Fault::StatusAfter(status, wait) => {
                    Reply::error(*status, "TOOMANYREQUESTS").with("retry-after", wait)
                }
                Fault::WrongBytes => {
                    let mut bytes = reply.body.to_vec();
                    if let Some(last) = bytes.last_mut() {
                        *last ^= 1;
                    }
                    reply.body = bytes.into();
                    reply
                }
                Fault::Redirect(url) => Reply::new(307, "").with("location", url),
                Fault::ContentType(value) => reply.with("content-type", *value),
                Fault::Html => Reply::new(200, "<html>please log in</html>")
                    .with("content-type", "text/html; charset=utf-8"),
                Fault::NoDigest => {
                    reply
                        .headers
                        .retain(|(name, _)| *name != "docker-content-digest");
                    reply
                }
                Fault::WrongDigest(digest) => reply.with("docker-content-digest", digest),
                _ => reply,
            };
        }
        reply
    }

    fn good(&mut self, seen: &Seen, ranged: bool) -> Reply {
        if seen.path == "/token" {
            return self.sell(seen);
        }
        let Some(path) = seen.path.strip_prefix("/v2/") else {
            return Reply::error(404, "UNSUPPORTED");
        };
        if let Some(refusal) = self.refuse(seen, path) {
            return refusal;
        }
        if let Some((repository, name)) = path.split_once("/manifests/") {
            let Some((media_type, bytes)) = self.manifests.get(&format!("{repository}/{name}"))
            else {
                return Reply::error(404, "MANIFEST_UNKNOWN");
            };
            return Reply::new(200, bytes.clone())
                .with("content-type", media_type)
                .with("docker-content-digest", Digest::sha256(bytes).to_string());
        }
        let Some((repository, digest)) = path.split_once("/blobs/") else {
            return Reply::error(404, "NAME_UNKNOWN");
        };
        let Some(bytes) = self.blobs.get(&format!("{repository}/{digest}")) else {
            return Reply::error(404, "BLOB_UNKNOWN");
        };
        let reply = Reply::new(200, bytes.clone()).with("content-type", "application/octet-stream");
        let first = seen
            .header("range")
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            })
            .filter(|_: &usize| ranged);
        match first {
            None => reply,
            Some(first) if first >= bytes.len() => Reply::error(416, "RANGE_INVALID"),
            Some(first) => Reply::new(206, bytes.slice(first..)).with(
                "content-range",
                format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len()),
            ),
        }
    }

    fn refuse(&self, seen: &Seen, path: &str) -> Option<Reply> {
        let shown = seen.header("authorization").unwrap_or_default();
        let unauthorized = Reply::error(401, "UNAUTHORIZED");
        match &self.auth {
            Auth::Open => None,
            Auth::Basic(user, password) => (shown != basic(user, password)).then(|| {
                unauthorized.with(
                    "www-authenticate",
                    "Basic realm=\"the \\\"fake\\\" registry\"",
                )
            }),
            Auth::Bearer(server) => {
                let known = shown
                    .strip_prefix("Bearer ")
                    .is_some_and(|token| self.tokens.iter().any(|sold| sold == token));
                let own = format!("{}/token", self.authority);
                let realm = server.realm.as_ref().unwrap_or(&own);
                let repository = path
                    .split_once("/manifests/")
                    .or_else(|| path.split_once("/blobs/"))
                    .map_or(path, |(repository, _)| repository);
                let challenge = format!(
                    "Bearer realm=\"{realm}\",service=\"fake\",scope=\"repository:{repository}:pull\""
                );
                (!known).then(|| unauthorized.with("www-authenticate", challenge))
            }
        }
    }

    fn sell(&mut self, seen: &Seen) -> Reply {
        let Auth::Bearer(server) = self.auth.clone() else {
            return Reply::error(404, "UNSUPPORTED");
        };
        let accepted = if seen.method == Method::POST {
            if !server.post {
                return Reply::error(405, "UNSUPPORTED");
            }
            let form: HashMap<String, String> = url::form_urlencoded::parse(seen.body.as_bytes())
                .into_owned()
                .collect();
            let field = |name: &str| form.get(name).map_or("", String::as_str);
            match field("grant_type") {
                "refresh_token" => server.identity.as_deref() == Some(field("refresh_token")),
                _ => server.account.as_ref().is_none_or(|(user, password)| {
                    field("username") == user && field("password") == password
                }),
            }
        } else {
            let shown = seen.header("authorization").unwrap_or_default();
            server
                .account
                .as_ref()
                .is_none_or(|(user, password)| shown == basic(user, password))
        };
        if !accepted {
            return Reply::error(401, "UNAUTHORIZED");
        }
        self.sold += 1;
        let token = format!("token-{}", self.sold);
        self.tokens.push(token.clone());
        let body = serde_json::json!({"token": token, "expires_in": server.expires_in});
        Reply::new(200, body.to_string()).with("content-type", "application/json")
    }
}

fn basic(user: &str, password: &str) -> String {
    let shown = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {shown}")
}

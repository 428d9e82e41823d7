//! OCI distribution client: resolve, manifests, blobs as streams. The only room that speaks HTTP to registries.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::image::{Descriptor, Digest, Reference};

/// Limits and places of the client. One per process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folders with `<host>/hosts.toml`, first match wins. Read anew for each [`Repository`].
    pub hosts_dirs: Vec<PathBuf>,
    /// Requests under way at once per registry host.
    pub max_per_host: usize,
    /// A transfer that brings no byte for so long is broken off and resumed.
    pub stall_timeout: Duration,
    /// Attempts of one request before its error counts.
    pub attempts: u32,
    /// Longest `Retry-After` that is waited for.
    pub max_retry_after: Duration,
    /// Sent with each request.
    pub user_agent: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hosts_dirs: Vec::new(),
            max_per_host: 8,
            stall_timeout: Duration::from_secs(30),
            attempts: 5,
            max_retry_after: Duration::from_secs(60),
            user_agent: concat!("larder/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A secret string: never printed, compared by its fingerprint only.
#[derive(Clone, Default)]
pub struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Secret(secret)
    }
}

/// What a caller has to show to a registry.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// User and password, for basic auth or to buy a bearer token.
    Basic {
        /// Account name.
        username: String,
        /// Password or access key.
        password: Secret,
    },
    /// An OAuth2 refresh token ("identity token").
    Identity(Secret),
    /// A bearer token for the registry itself.
    Bearer(Secret),
}

/// Per-repository settings of one pull.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Offered to the hosts of this repository when they challenge.
    pub credentials: Credentials,
    /// Speak plain HTTP to the repository's own host.
    pub plain_http: bool,
}

/// The client. Cheap to clone: connections, tokens and limits are shared.
#[derive(Clone, Debug)]
pub struct Client {}

/// One repository with its hosts and credentials, as configured at the time of the call.
#[derive(Clone, Debug)]
pub struct Repository {}

/// What a tag or digest names just now.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Of the top-level manifest or index.
    pub digest: Digest,
    /// Content type as the registry says.
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    /// The host that answered.
    pub host: String,
    /// The document, where a GET was needed to learn the digest.
    pub body: Option<Bytes>,
}

/// A manifest whose digest was verified.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Raw bytes.
    pub bytes: Bytes,
    /// Content type as the registry says.
    pub media_type: String,
    /// The host that answered.
    pub host: String,
}

/// A blob in transfer: verified by size here, by digest where it is consumed.
#[derive(Debug)]
pub struct BlobStream {}

impl Client {
    /// Builds the client; no connection is made.
    pub fn new(config: Config, metrics: Metrics) -> Result<Self, Error> {
        let _ = (config, metrics);
        todo!()
    }
    /// Reads the hosts configuration for a reference.
    pub fn repository(&self, reference: &Reference, access: Access) -> Result<Repository, Error> {
        let _ = (reference, access);
        todo!()
    }
}

impl Repository {
    /// One HEAD where the registry does as the specification says, else a GET.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        let _ = reference;
        todo!()
    }
    /// A manifest or index by digest, at most [`crate::image::MAX_MANIFEST_BYTES`].
    pub async fn manifest(&self, digest: &Digest) -> Result<Fetched, Error> {
        let _ = digest;
        todo!()
    }
    /// A small blob (a config) whole: at most `limit` bytes, digest and size verified.
    pub async fn blob_bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, Error> {
        let _ = (descriptor, limit);
        todo!()
    }
    /// A blob as a stream that resumes by itself.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, Error> {
        let _ = descriptor;
        todo!()
    }
}

impl BlobStream {
    /// The next bytes; `None` when all `descriptor.size` bytes have come. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        todo!()
    }
    /// The host that is serving it.
    pub fn host(&self) -> &str {
        todo!()
    }
}

/// Why a registry request failed, by what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// No connection: refused, DNS, TLS, timeout. CRI says `RegistryUnavailable`.
    Unavailable,
    /// 401: credentials missing or wrong.
    Unauthenticated,
    /// 403.
    Denied,
    /// 404: no such repository, tag, manifest or blob.
    NotFound,
    /// 429 after all waiting.
    RateLimited,
    /// 5xx after all attempts.
    Server,
    /// The transfer stopped or broke too often.
    Broken,
    /// The registry answered something that is not the protocol: wrong digest, size, type, redirect loop, HTML.
    Protocol,
    /// The local configuration is at fault: hosts.toml, CA file, proxy.
    Config,
}

/// An error of a registry request. Its text names the host and what to do; never a secret or a URL query.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    class: ErrorClass,
    message: String,
}

impl Error {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        self.class
    }
    /// True where trying again later may succeed without a change.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.class,
            ErrorClass::Unavailable
                | ErrorClass::RateLimited
                | ErrorClass::Server
                | ErrorClass::Broken
        )
    }
}

/// Counters of this room.
#[derive(Clone, Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// Registers this room's metrics.
    pub fn register(registry: &mut prometheus_client::registry::Registry) -> Self {
        let _ = registry;
        Self::default()
    }
}

/// Credentials from a docker `config.json` (auths, credHelpers, credsStore) for a registry domain.
pub async fn docker_credentials(
    file: &std::path::Path,
    domain: &str,
) -> Result<Option<Credentials>, Error> {
    let _ = (file, domain);
    todo!()
}

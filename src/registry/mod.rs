//! OCI distribution client: resolve, manifests, blobs as streams. The only room that speaks HTTP to registries.
//!
//! Owns hosts configuration, credentials, tokens, redirects, retries and limits per host. Never stores content, never
//! chooses platforms, and never lets a secret or a URL query into a message.

mod answer;
mod auth;
mod blob;
mod connect;
mod error;
mod hosts;
mod metrics;
mod proxy;
mod redact;
mod resolve;
mod retry;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::image::{Digest, Reference};

pub use auth::{Credentials, Secret, docker_credentials, secret_credentials};
pub use blob::BlobStream;
pub use error::{Error, ErrorClass};
pub use hosts::check as check_hosts;
pub use metrics::Metrics;

use hosts::Host;
use transport::Transport;

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
    /// Port of loopback where this process itself serves what registries have: hosts that lead there are left out, or it
    /// would ask itself.
    pub own_port: Option<u16>,
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
            own_port: None,
        }
    }
}

/// Per-repository settings of one pull.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Offered to the hosts of this repository when they challenge.
    pub credentials: Credentials,
    /// Speak plain HTTP to the repository's own host.
    pub plain_http: bool,
    /// W3C trace context of who asked, passed on to the hosts of this repository. What fits in no header is left out.
    pub traceparent: Option<String>,
}

/// The client. Cheap to clone: connections, tokens and limits are shared.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Arc<Transport>,
}

/// One repository with its hosts and credentials, as configured at the time of the call.
#[derive(Clone, Debug)]
pub struct Repository {
    transport: Arc<Transport>,
    /// In the order of asking; the repository's own comes last.
    hosts: Arc<[Host]>,
    domain: Arc<str>,
    path: Arc<str>,
    access: Access,
}

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

impl Client {
    /// Builds the client; no connection is made.
    pub fn new(config: Config, metrics: Metrics) -> Result<Self, Error> {
        // An error means that the process has a provider already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if http::HeaderValue::try_from(config.user_agent.as_str()).is_err() {
            return Err(Error::new(
                ErrorClass::Config,
                "the user agent has characters that fit in no HTTP header",
            ));
        }
        Ok(Client {
            transport: Arc::new(Transport::new(config, metrics)),
        })
    }

    /// Reads the hosts configuration for a reference. Reads files: not for the async runtime's own threads.
    pub fn repository(&self, reference: &Reference, access: Access) -> Result<Repository, Error> {
        let dirs = &self.transport.config.hosts_dirs;
        let mut hosts = hosts::for_domain(dirs, reference.domain(), access.plain_http)?;
        if let Some(port) = self.transport.config.own_port {
            let is_own =
                |host: &Host| host.is_loopback() && host.base.port_or_known_default() == Some(port);
            hosts.retain(|host| !is_own(host));
            if hosts.is_empty() {
                return Err(Error::new(
                    ErrorClass::Config,
                    format!(
                        "{}: this is larder's own mirror, not a registry: name the registry that it stands in for",
                        redact::text(reference.domain())
                    ),
                ));
            }
        }
        Ok(Repository {
            transport: Arc::clone(&self.transport),
            hosts: hosts.into(),
            domain: reference.domain().into(),
            path: reference.path().into(),
            access,
        })
    }
}

impl Repository {
    /// The registry's domain, as references have it.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// `domain/path`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }
}

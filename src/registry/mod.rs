//! OCI distribution client: resolve, manifests, blobs as streams. The only room that speaks HTTP to registries.
//!
//! It decides how to ask (hosts, tokens, retries, resumption), never what to fetch. Everything it hands out was
//! checked as far as it can be here: manifests and small blobs by digest, streams by length.

mod auth;
mod blob;
mod error;
mod hosts;
mod metrics;
mod request;
mod resolve;
mod retry;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::image::Reference;

use auth::token::Tokens;
use hosts::{Host, Tls};

pub use auth::credentials::{Credentials, Secret, docker_credentials};
pub use blob::BlobStream;
pub use error::{Error, ErrorClass};
pub use metrics::Metrics;
pub use resolve::{Fetched, Resolved};

/// HTTP clients, limits and schemes are kept for so many hosts; then they are forgotten and made anew.
const MAX_REMEMBERED: usize = 256;

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
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    metrics: Metrics,
    tokens: Tokens,
    /// By how they connect, and whether past any proxy.
    clients: Mutex<HashMap<(Tls, bool), reqwest::Client>>,
    limits: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Loopback addresses that turned out to speak HTTPS.
    https: Mutex<HashMap<String, ()>>,
}

/// One repository with its hosts and credentials, as configured at the time of the call.
#[derive(Clone, Debug)]
pub struct Repository {
    shared: Arc<Shared>,
    /// `library/busybox`
    path: Arc<str>,
    hosts: Arc<[Host]>,
    credentials: Arc<Credentials>,
    /// What each host asked for, so that later requests bring it at once.
    challenges: Arc<Mutex<HashMap<String, request::Authorisation>>>,
}

impl Client {
    /// Builds the client; no connection is made.
    pub fn new(config: Config, metrics: Metrics) -> Result<Self, Error> {
        // A second client finds it installed: that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Client {
            shared: Arc::new(Shared {
                config,
                metrics,
                tokens: Tokens::default(),
                clients: Mutex::default(),
                limits: Mutex::default(),
                https: Mutex::default(),
            }),
        })
    }

    /// Reads the hosts configuration for a reference. Short, but it reads files.
    pub fn repository(&self, reference: &Reference, access: Access) -> Result<Repository, Error> {
        let hosts = hosts::hosts(
            &self.shared.config.hosts_dirs,
            reference.domain(),
            access.plain_http,
        )?;
        Ok(Repository {
            shared: self.shared.clone(),
            path: reference.path().into(),
            hosts: hosts.into(),
            credentials: Arc::new(access.credentials),
            challenges: Arc::default(),
        })
    }
}

/// Makes room in a map that remembers what can be learnt again.
fn remember<K: std::hash::Hash + Eq, V>(
    map: &Mutex<HashMap<K, V>>,
) -> MutexGuard<'_, HashMap<K, V>> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if map.len() >= MAX_REMEMBERED {
        map.clear();
    }
    map
}

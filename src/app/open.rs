//! Opens a store and puts a cache over it: for the agent, for a terminal with `--root`, for the demo.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;

use crate::cache::{self, Background, Cache};
use crate::image::Platform;
use crate::prune::Amount;
use crate::registry::{self, Client};
use crate::store::{self, Limits, Store};

/// Everything a cache needs besides its root.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Folders with `<host>/hosts.toml`.
    pub hosts_dirs: Vec<PathBuf>,
    /// Of pulls that name no platform.
    pub platform: Platform,
    /// Layers ingested at once.
    pub max_layers: usize,
    /// How long a pull outlives its last waiter.
    pub orphan_grace: Duration,
    /// Patterns of names that are reported as pinned.
    pub pinned: Vec<String>,
    /// A docker `config.json`, asked for credentials where a pull brings none.
    pub authfile: Option<PathBuf>,
    /// Limits on one layer.
    pub limits: Limits,
    /// What background pulls may take.
    pub background: Background,
    /// The band of the disk that pulls never enter.
    pub reserved: Option<Amount>,
    /// Port of loopback where the mirror listens, if it does.
    pub own_port: Option<u16>,
    /// Requests at once per registry host.
    pub max_per_host: usize,
    /// A transfer without a byte for so long is resumed.
    pub stall_timeout: Duration,
    /// Attempts of one request.
    pub attempts: u32,
    /// Longest `Retry-After` that is waited for.
    pub max_retry_after: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        let registry = registry::Config::default();
        CacheOptions {
            hosts_dirs: hosts_dirs(),
            platform: Platform::host(),
            max_layers: 4,
            orphan_grace: Duration::from_secs(30),
            pinned: Vec::new(),
            authfile: None,
            limits: Limits::default(),
            background: Background::default(),
            reserved: None,
            own_port: None,
            max_per_host: registry.max_per_host,
            stall_timeout: registry.stall_timeout,
            attempts: registry.attempts,
            max_retry_after: registry.max_retry_after,
        }
    }
}

/// larder's own folder where there is one, else containerd's.
pub(super) fn hosts_dirs() -> Vec<PathBuf> {
    let own = Path::new("/etc/larder/hosts.d");
    let containerd = Path::new("/etc/containerd/certs.d");
    vec![if own.is_dir() { own } else { containerd }.to_owned()]
}

/// An open cache.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The use cases.
    pub cache: Cache,
    /// What they work on.
    pub store: Store,
}

/// Opens the store at `root` and a cache over it; their metrics go to `metrics`. Blocking, since a store recovers from
/// a crash when it is opened; to be called where a tokio runtime is known (`spawn_blocking`).
pub fn open_cache(
    root: &Path,
    options: CacheOptions,
    metrics: &mut Registry,
) -> anyhow::Result<Opened> {
    let parts = Parts::register(metrics);
    parts.open(root, options)
}

/// An error where there is no store at `root`: what only reads must not make one. Blocking.
pub fn expect_store(root: &Path) -> anyhow::Result<()> {
    let subject = root.display();
    if !root.try_exists().with_context(|| subject.to_string())? {
        anyhow::bail!(
            "{subject}: there is no such directory; larder --root {subject} pull makes one"
        );
    }
    if !Store::is_at(root)? {
        anyhow::bail!(
            "{subject}: there is no store in this directory; larder --root {subject} pull makes one"
        );
    }
    Ok(())
}

/// Metrics of the rooms below, registered before the rooms exist, so that a scrape during a long recovery shows them.
#[derive(Debug)]
pub(super) struct Parts {
    store: store::Metrics,
    registry: registry::Metrics,
    cache: cache::Metrics,
}

impl Parts {
    pub(super) fn register(metrics: &mut Registry) -> Self {
        Parts {
            store: store::Metrics::register(metrics),
            registry: registry::Metrics::register(metrics),
            cache: cache::Metrics::register(metrics),
        }
    }

    /// The registry client alone, where larder holds no images.
    pub(super) fn client(&self, options: &CacheOptions) -> anyhow::Result<Client> {
        client(options, self.registry.clone())
    }

    pub(super) fn open(self, root: &Path, options: CacheOptions) -> anyhow::Result<Opened> {
        let client = client(&options, self.registry)?;
        let store = Store::open(
            store::Options {
                root: root.to_owned(),
                limits: options.limits,
            },
            self.store,
        )?;
        let config = cache::Config {
            platform: options.platform,
            max_layers: options.max_layers,
            orphan_grace: options.orphan_grace,
            pinned: options.pinned,
            authfile: options.authfile,
            // Room for foreground requests at each host, whatever mirrors stand in for it.
            background: Background {
                layers: options
                    .background
                    .layers
                    .min(options.max_per_host.saturating_sub(1)),
                ..options.background
            },
            reserved: options.reserved,
        };
        let cache = Cache::new(config, store.clone(), client, self.cache);
        Ok(Opened { cache, store })
    }
}

fn client(options: &CacheOptions, metrics: registry::Metrics) -> anyhow::Result<Client> {
    // Once per process; a second call finds it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = registry::Config {
        hosts_dirs: options.hosts_dirs.clone(),
        own_port: options.own_port,
        max_per_host: options.max_per_host,
        stall_timeout: options.stall_timeout,
        attempts: options.attempts,
        max_retry_after: options.max_retry_after,
        ..registry::Config::default()
    };
    Client::new(config, metrics).context("registry client")
}

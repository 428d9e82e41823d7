//! The controller: one client of the API server, one registry client, one address for metrics and probes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::config::ConfigError;
use super::open::hosts_dirs;
use super::process::{self, admin_ended};
use crate::admin::{self, Admin};
use crate::image::Reference;
use crate::k8s::agent::{BoxFuture, WantCredentials};
use crate::k8s::api::{CONTROLLER_NAME, DEFAULT_NAMESPACE, reason};
use crate::k8s::connect::{ApiServer, Connection};
use crate::k8s::controller::{Controller, Metrics, Options, Resolution, ResolveFailure, Resolver};
use crate::lifecycle::{Readiness, Shutdown, Tasks};
use crate::registry::{
    self, Access, Client, Credentials, ErrorClass, docker_credentials, secret_credentials,
};
use crate::telemetry::{self, LogConfig, LogFormat};

/// Threads: the controller thinks in one place, the rest waits.
const WORKERS: usize = 2;
/// Where metrics and probes are when nobody says.
const HTTP: &str = "127.0.0.1:9641";
/// Attempts of one request; the controller comes again by itself.
const ATTEMPTS: u32 = 2;
/// Longest `Retry-After` that is waited for within one lookup.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(2);
/// What stopping may take, for connections of the probes.
const LAST_CONNECTIONS: Duration = Duration::from_secs(2);

/// Resolves what prepulls declare, lets nodes in by waves and counts them, until it is told to stop. Any number of
/// replicas may run; one of them acts.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ControllerArgs {
    /// Kubeconfig of the API server [default: the pod's service account]
    #[arg(
        long,
        value_name = "FILE",
        env = "LARDER_KUBECONFIG",
        hide_env_values = true
    )]
    pub kubeconfig: Option<PathBuf>,
    /// Address of /metrics, /livez and /readyz; empty for none [default: 127.0.0.1:9641]
    #[arg(long, value_name = "ADDR", env = "LARDER_HTTP", hide_env_values = true)]
    pub http: Option<String>,
    /// Namespace of the leader's lease [default: larder]
    #[arg(
        long,
        value_name = "NS",
        env = "LARDER_NAMESPACE",
        hide_env_values = true
    )]
    pub namespace: Option<String>,
    /// Folder with HOST/hosts.toml, may be repeated [default: /etc/larder/hosts.d, else /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR", value_delimiter = ':')]
    pub hosts_dir: Vec<PathBuf>,
    /// Docker config.json with credentials for lookups of prepulls without pull secrets
    #[arg(
        long,
        value_name = "FILE",
        env = "LARDER_AUTHFILE",
        hide_env_values = true
    )]
    pub authfile: Option<PathBuf>,
    /// auto, json or human [default: auto: human on a terminal]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "LARDER_LOG_FORMAT",
        hide_env_values = true
    )]
    pub log_format: Option<String>,
    /// Log level or filter, such as warn,larder::k8s=debug [default: info]
    #[arg(
        long,
        value_name = "FILTER",
        env = "LARDER_LOG_LEVEL",
        hide_env_values = true
    )]
    pub log_level: Option<String>,
}

/// Settings that are sound.
#[derive(Clone, Debug)]
struct Settings {
    kubeconfig: Option<PathBuf>,
    http: Option<SocketAddr>,
    namespace: String,
    hosts_dirs: Vec<PathBuf>,
    authfile: Option<PathBuf>,
    log: LogConfig,
}

impl Settings {
    fn new(args: &ControllerArgs) -> Result<Self, ConfigError> {
        let http = match args.http.as_deref().unwrap_or(HTTP) {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                ConfigError::new("--http", format!("{text:?} is no address such as {HTTP}"))
            })?),
        };
        let mut log = LogConfig::default();
        if let Some(format) = &args.log_format {
            log.format = format
                .parse::<LogFormat>()
                .map_err(|error| ConfigError::new("--log-format", error))?;
        }
        if let Some(level) = &args.log_level {
            log.level.clone_from(level);
            log.validate()
                .map_err(|error| ConfigError::new("--log-level", error))?;
        }
        Ok(Settings {
            kubeconfig: args.kubeconfig.clone(),
            http,
            namespace: args
                .namespace
                .clone()
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            hosts_dirs: match args.hosts_dir.as_slice() {
                [] => hosts_dirs(),
                given => given.to_vec(),
            },
            authfile: args.authfile.clone(),
            log,
        })
    }
}

/// Runs a controller until a signal: `larder controller`. Owns runtime, logs and signals. The error is the
/// configuration's, for the terminal; what goes wrong later is in the log, and the exit code says so.
pub fn main(args: &ControllerArgs) -> Result<ExitCode, ConfigError> {
    let settings = Settings::new(args)?;
    telemetry::init(&settings.log).map_err(|error| ConfigError::new("logs", error))?;
    let ended = process::run(WORKERS, LAST_CONNECTIONS, async |shutdown| {
        run(settings, shutdown).await
    });
    Ok(process::exit_code(ended, "Controller ended with an error"))
}

async fn run(settings: Settings, shutdown: Shutdown) -> anyhow::Result<()> {
    let admin = match settings.http {
        Some(address) => Some(Admin::bind(address).await?),
        None => None,
    };
    let readiness = Readiness::new();
    let synced = readiness.check("watches");
    let mut metrics = telemetry::registry(env!("CARGO_PKG_VERSION"));
    admin::Metrics::register(&mut metrics, &readiness);
    let counted = Metrics::register(&mut metrics);
    let resolver = Registries::new(
        settings.hosts_dirs,
        settings.authfile,
        registry::Metrics::register(&mut metrics),
    )?;
    let (tasks, last) = (Tasks::new(), Shutdown::new());
    let mut served = admin.map(|admin| {
        tracing::info!(http = %admin.address(), "Metrics and probes served");
        let served = admin.serve(readiness.clone(), Arc::new(metrics), last.clone());
        tasks.spawn("admin", served)
    });

    let server = settings
        .kubeconfig
        .map_or(ApiServer::InCluster, ApiServer::Kubeconfig);
    let connection = Arc::new(Connection::new(server, CONTROLLER_NAME));
    // What is wrong with the settings is told now.
    connection.client().await?;
    let client = connection.steady();
    let options = Options {
        namespace: settings.namespace,
        identity: identity(),
    };
    tracing::info!(identity = options.identity, "Controller started");
    let controller = Controller::new(client, Arc::new(resolver), counted, options);
    let mut running = tasks.spawn("controller", controller.run(synced, shutdown.clone()));
    let result = tokio::select! {
        biased;
        ended = &mut running => match ended {
            Ok(()) if shutdown.requested() => Ok(()),
            ended => Err(anyhow!("the controller ended by itself: {ended:?}")),
        },
        ended = admin_ended(served.as_mut()) => {
            shutdown.request();
            Err(anyhow!("the server of metrics and probes ended by itself: {ended:?}"))
        }
    };
    readiness.stop();
    if !running.is_finished() {
        let _ = running.await;
    }
    last.request();
    if let Err(running) = tasks.wait(LAST_CONNECTIONS).await {
        tracing::warn!(?running, "Stopped before all connections ended");
    }
    tracing::info!("Controller stopped");
    result
}

/// The host's name, and something that no other replica on it has.
fn identity() -> String {
    use std::hash::BuildHasher;
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let number = std::hash::RandomState::new().hash_one(std::process::id());
    let host: String = host.chars().take(63).collect();
    format!("{host}_{number:016x}")
}

/// Looks tags up with the registry client.
#[derive(Debug)]
struct Registries {
    client: Client,
    authfile: Option<PathBuf>,
}

impl Registries {
    fn new(
        hosts_dirs: Vec<PathBuf>,
        authfile: Option<PathBuf>,
        metrics: registry::Metrics,
    ) -> anyhow::Result<Self> {
        let config = registry::Config {
            hosts_dirs,
            attempts: ATTEMPTS,
            max_retry_after: MAX_RETRY_AFTER,
            ..registry::Config::default()
        };
        Ok(Registries {
            client: Client::new(config, metrics).context("registry client")?,
            authfile,
        })
    }

    /// What to show to the registry of a reference, in the order of trying.
    async fn candidates(
        &self,
        reference: &Reference,
        secrets: &[WantCredentials],
    ) -> Vec<Credentials> {
        let mut found = Vec::new();
        for secret in secrets {
            match secret_credentials(&secret.docker_config, &secret.source, reference) {
                Ok(credentials) => found.extend(credentials),
                Err(error) => tracing::warn!(err = %error, "Pull secret was not used"),
            }
        }
        if let Some(file) = &self.authfile {
            match docker_credentials(file, &reference.repository()).await {
                Ok(credentials) => found.extend(credentials),
                Err(error) => tracing::warn!(err = %error, "Credentials file was not used"),
            }
        }
        found.push(Credentials::Anonymous);
        found
    }

    async fn lookup(
        &self,
        reference: Reference,
        secrets: Arc<[WantCredentials]>,
    ) -> Result<Resolution, ResolveFailure> {
        let mut last = None;
        for credentials in self.candidates(&reference, &secrets).await {
            match self.once(&reference, credentials).await {
                Ok(resolution) => return Ok(resolution),
                Err(failure) => {
                    // Others may be let in, or see more.
                    let again = [reason::UNAUTHORIZED, reason::NOT_FOUND].contains(&failure.reason);
                    // What the first credentials got tells most.
                    let failure = last.unwrap_or(failure);
                    if !again {
                        return Err(failure);
                    }
                    last = Some(failure);
                }
            }
        }
        Err(last.unwrap_or_else(|| failure(ErrorClass::Config, &reference)))
    }

    async fn once(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Resolution, ResolveFailure> {
        let access = Access {
            credentials,
            plain_http: false,
            ..Access::default()
        };
        let (client, name) = (self.client.clone(), reference.clone());
        let repository =
            tokio::task::spawn_blocking(move || client.repository(&name, access)).await;
        let resolved = match repository {
            Ok(Ok(repository)) => repository.resolve(reference).await,
            Ok(Err(error)) => Err(error),
            Err(_) => return Err(failure(ErrorClass::Config, reference)),
        };
        match resolved {
            Ok(resolved) => Ok(Resolution {
                digest: resolved.digest,
            }),
            Err(error) => {
                tracing::debug!(image = %reference, err = %error, "Lookup went wrong");
                Err(failure(error.class(), reference))
            }
        }
    }
}

impl Resolver for Registries {
    fn resolve(
        &self,
        reference: Reference,
        credentials: Arc<[WantCredentials]>,
    ) -> BoxFuture<'_, Result<Resolution, ResolveFailure>> {
        Box::pin(self.lookup(reference, credentials))
    }
}

/// Says what class of thing went wrong, in words of our own: what a registry sent is not for other people's eyes.
fn failure(class: ErrorClass, reference: &Reference) -> ResolveFailure {
    let host = reference.domain();
    let (reason, message) = match class {
        ErrorClass::NotFound => (
            reason::NOT_FOUND,
            format!("{host} has no such repository, tag or digest"),
        ),
        ErrorClass::Unauthenticated | ErrorClass::Denied => (
            reason::UNAUTHORIZED,
            format!("{host} wants other credentials, or has no such repository"),
        ),
        ErrorClass::RateLimited => (
            reason::RATE_LIMITED,
            format!("{host} asks for fewer requests"),
        ),
        ErrorClass::Unavailable => (
            reason::REGISTRY_UNAVAILABLE,
            format!("{host} is not reached"),
        ),
        ErrorClass::Server | ErrorClass::Broken => (
            reason::REGISTRY_UNAVAILABLE,
            format!("{host} answers with an error of its own"),
        ),
        ErrorClass::Protocol => (
            reason::INVALID_IMAGE,
            format!("{host} answers something that is no image manifest"),
        ),
        ErrorClass::Config => (
            reason::REGISTRY_UNAVAILABLE,
            format!("the controller's settings for {host} are at fault; its log tells"),
        ),
    };
    ResolveFailure {
        reason,
        message,
        retry_after: None,
    }
}

//! The node agent: one store, one cache, one socket for all gRPC services, one address for metrics and probes.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use super::config::{AgentArgs, Config, ConfigError, Holder};
use super::images::{LarderImages, NodeImages};
use super::kube_agent::{self, Declared};
use super::open::{Opened, Parts};
use crate::admin::Admin;
use crate::cache::Cache;
use crate::control;
use crate::control::proto::images_server::ImagesServer;
use crate::cri::proto::image_service_server::ImageServiceServer;
use crate::cri::proto::runtime_service_server::RuntimeServiceServer;
use crate::cri::{self, ImageService, Incoming, RpcLayer, RuntimeService, Socket};
use crate::lifecycle::{Check, Readiness, Shutdown, Tasks, notify, watchdog};
use crate::runtime::{self, RuntimeImages};
use crate::store::Store;
use crate::telemetry;

/// A peer that does not answer a ping within both is gone: together less than the default limit on stopping, and more
/// than a kubelet is starved on a busy node.
const PING_AFTER: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once on one connection; each is a pull at most.
const MAX_CALLS: u32 = 256;
/// Of one request's metadata.
const MAX_HEADER_BYTES: u32 = 32 << 10;
/// Threads that wait for network and callers; hashing and writing have threads of their own.
const MAX_WORKERS: usize = 8;
/// Of one scrub step: at the default interval about 90 GB a day, for a tenth of a second of hashing a minute.
const SCRUB_BYTES: u64 = 64 << 20;
/// What stopping may take after its limit, for threads in the middle of a write.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Runs an agent until a signal: `larder agent`. Owns runtime, logs and signals. The error is the configuration's, for
/// the terminal; what goes wrong later is in the log, and the exit code says so.
pub fn main(args: &AgentArgs) -> Result<ExitCode, ConfigError> {
    let config = Config::load(args)?;
    telemetry::init(&config.log).map_err(|error| ConfigError::new("logs", error))?;
    if !config.unknown_variables.is_empty() {
        tracing::warn!(
            variables = config.unknown_variables.join(" "),
            "Unknown variables in the environment mean nothing; is one misspelt?"
        );
    }
    match run(config) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(err = format!("{error:#}"), "Agent ended with an error");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(MAX_WORKERS))
        .enable_all()
        .thread_name("larder")
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::new();
        let signals = shutdown.on_signals().context("handle signals")?;
        // Not among the agent's tasks: it ends with the process.
        tokio::spawn(signals);
        Agent::build(config).await?.run(shutdown).await
    });
    runtime.shutdown_timeout(LAST_WRITES);
    result
}

/// An agent that has its address for probes and nothing else yet.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    admin: Option<Admin>,
    readiness: Readiness,
    checks: Checks,
}

/// Conditions of readiness.
#[derive(Debug)]
struct Checks {
    store: Check,
    socket: Check,
}

/// Metrics of what either kind of agent serves.
struct Meters {
    calls: cri::Metrics,
    declared: kube_agent::Metrics,
}

impl Agent {
    /// Takes the address of metrics and probes.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let admin = match config.http {
            Some(address) => Some(Admin::bind(address).await?),
            None => None,
        };
        let readiness = Readiness::new();
        // From the first moment, so that nobody finds an agent ready that has not begun.
        let checks = Checks {
            store: readiness.check("store"),
            socket: readiness.check("socket"),
        };
        Ok(Agent {
            config,
            admin,
            readiness,
            checks,
        })
    }

    /// Where metrics and probes are.
    pub fn http(&self) -> Option<std::net::SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// Turns ready once the socket serves.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Opens the store, serves until shutdown is asked for, and stops within the limit. Probes are answered from the
    /// first moment to the last.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Agent {
            config,
            admin,
            readiness,
            checks,
        } = self;
        let mut metrics = telemetry::registry(env!("CARGO_PKG_VERSION"));
        let parts = Parts::register(&mut metrics);
        let meters = Meters {
            calls: cri::Metrics::register(&mut metrics),
            declared: kube_agent::Metrics::register(&mut metrics),
        };
        let runtime = match &config.images {
            Holder::Larder => None,
            Holder::Runtime { endpoint } => Some(RuntimeImages::new(
                endpoint,
                runtime::Metrics::register(&mut metrics),
            )),
        };
        let (tasks, last) = (Tasks::new(), Shutdown::new());

        let admin_task = admin.map(|admin| {
            tracing::info!(http = %admin.address(), "Metrics and probes served");
            tasks.spawn(
                "admin",
                admin.serve(readiness.clone(), Arc::new(metrics), last.clone()),
            )
        });
        let result = match runtime {
            None => {
                serve(
                    &config, parts, meters, &checks, &readiness, &shutdown, admin_task,
                )
                .await
            }
            Some(runtime) => {
                let images = NodeImages::new(runtime, parts.client(&config.cache)?);
                follow(
                    &config, images, meters, &checks, &readiness, &shutdown, admin_task,
                )
                .await
            }
        };
        last.request();
        if let Err(running) = tasks.wait(LAST_WRITES).await {
            tracing::warn!(?running, "Stopped before all connections ended");
        }
        result
    }
}

/// From opening the store to its end.
async fn serve(
    config: &Config,
    parts: Parts,
    meters: Meters,
    checks: &Checks,
    readiness: &Readiness,
    shutdown: &Shutdown,
    admin: Option<JoinHandle<std::io::Result<()>>>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    tell("STATUS=Opening the store");
    let (root, options) = (config.root.clone(), config.cache.clone());
    let opening = tokio::task::spawn_blocking(move || parts.open(&root, options));
    let Opened { cache, store } = tokio::select! {
        opened = opening => opened.context("open the store")??,
        // Recovery is safe to break off.
        () = shutdown.wait() => return Ok(()),
    };
    checks.store.set(true);
    tracing::info!(root = %config.root.display(), duration_seconds = started.elapsed().as_secs_f64(), "Store opened");

    let images = Arc::new(LarderImages::new(cache.clone()));
    let declared = Declared::build(&config.declared, &config.root, images, meters.declared)
        .context("declared images")?;
    let status = declared.as_ref().map(Declared::status);
    let (health, services) = services(&cache, status).await?;
    let layer = RpcLayer::new(meters.calls, &DESCRIPTORS).context("descriptors of the services")?;
    let socket = Socket::bind(&config.socket)?;
    tracing::info!(socket = %socket.path().display(), "Socket served");
    let tasks = Tasks::new();
    let mut served = tasks.spawn(
        "socket",
        serve_socket(services, layer, socket.incoming(), shutdown.clone()),
    );
    checks.socket.set(true);
    tell("READY=1");
    tell(&format!("STATUS=Serving {}", config.socket.display()));
    let variable = |name| std::env::var_os(name);
    let (usec, pid) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    if let Some(pause) = watchdog(usec.as_deref(), pid.as_deref()) {
        // Not among the tasks that are waited for: it is fed until the last moment.
        tokio::spawn(feed(pause));
    }
    if let Some(pause) = config.scrub_interval {
        tasks.spawn("scrub", scrub(store, pause, shutdown.clone()));
    }
    if let Some(declared) = declared {
        tasks.spawn("declared images", declared.run(shutdown.clone()));
    }

    let admin_ended = async {
        match admin {
            Some(admin) => admin.await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        // Both servers end by themselves, too, once it is asked for.
        biased;
        () = shutdown.wait() => Ok(()),
        ended = &mut served => Err(anyhow!("the socket's server ended by itself: {ended:?}")),
        ended = admin_ended => Err(anyhow!("the server of metrics and probes ended by itself: {ended:?}")),
    };
    readiness.stop();
    shutdown.request();
    tell("STOPPING=1");
    tell("STATUS=Waiting for calls under way");
    // The unit's own limit may be shorter than what was configured.
    let limit = config.drain_timeout + 3 * LAST_WRITES;
    tell(&format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros()));
    stop(config.drain_timeout, &cache, health, &tasks).await;
    result
}

/// As [`serve`], where the container runtime holds the images: no store and no image service, only what is declared, and
/// the answer to `larder status`.
async fn follow(
    config: &Config,
    images: NodeImages,
    meters: Meters,
    checks: &Checks,
    readiness: &Readiness,
    shutdown: &Shutdown,
    admin: Option<JoinHandle<std::io::Result<()>>>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    // For what a restart needs.
    tokio::fs::create_dir_all(&config.root)
        .await
        .with_context(|| config.root.display().to_string())?;
    checks.store.set(true);
    let declared = Declared::build(
        &config.declared,
        &config.root,
        Arc::new(images),
        meters.declared,
    )
    .context("declared images")?
    .context(
        "nothing is declared to this agent: with --images runtime give --kubeconfig or --manifests",
    )?;
    let mut routes = Routes::builder();
    routes.add_service(control::prepulls_server(Some(declared.status())));
    let layer = RpcLayer::new(meters.calls, &DESCRIPTORS).context("descriptors of the services")?;
    let socket = Socket::bind(&config.socket)?;
    let tasks = Tasks::new();
    let mut served = tasks.spawn(
        "socket",
        serve_socket(routes.routes(), layer, socket.incoming(), shutdown.clone()),
    );
    checks.socket.set(true);
    tell("READY=1");
    tasks.spawn("declared images", declared.run(shutdown.clone()));
    let admin_ended = async {
        match admin {
            Some(admin) => admin.await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        biased;
        () = shutdown.wait() => Ok(()),
        ended = &mut served => Err(anyhow!("the socket's server ended by itself: {ended:?}")),
        ended = admin_ended => Err(anyhow!("the server of metrics and probes ended by itself: {ended:?}")),
    };
    readiness.stop();
    shutdown.request();
    tell("STOPPING=1");
    if let Err(running) = tasks.wait(config.drain_timeout).await {
        tracing::warn!(?running, "Stopped before all work ended");
    }
    tracing::info!(
        duration_seconds = started.elapsed().as_secs_f64(),
        "Agent stopped"
    );
    result
}

/// That it is fed proves that the runtime still turns.
async fn feed(pause: Duration) {
    loop {
        tell("WATCHDOG=1");
        tokio::time::sleep(pause).await;
    }
}

/// Hashes a little of the store again now and then, so that rot is found before a container reads it. What is damaged
/// is quarantined by the store; the next pull of the image heals it.
async fn scrub(store: Store, pause: Duration, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => return,
        }
        let store = store.clone();
        let step = tokio::task::spawn_blocking(move || store.scrub_step(SCRUB_BYTES));
        match step.await {
            Ok(Ok(report)) => {
                for damage in &report.damaged {
                    tracing::error!(
                        kind = damage.kind,
                        subject = damage.subject,
                        err = damage.cause,
                        images = ?damage.images,
                        "Damage was found; pull the images again"
                    );
                }
            }
            Ok(Err(error)) => tracing::warn!(err = %error, "Scrub step went wrong"),
            Err(error) => tracing::error!(err = %error, "Scrub step panicked"),
        }
    }
}

/// Cancels pulls and waits for calls to end, at most so long.
async fn stop(limit: Duration, cache: &Cache, mut health: HealthReporter, tasks: &Tasks) {
    let started = Instant::now();
    // Streams that watch the health would keep their connections open.
    for service in [IMAGE_SERVICE, RUNTIME_SERVICE, CONTROL, ""] {
        health.clear_service_status(service).await;
    }
    if timeout(limit, cache.shutdown()).await.is_err() {
        tracing::warn!(running = "pulls", "Stopped before all work ended");
    }
    if let Err(running) = tasks.wait(limit.saturating_sub(started.elapsed())).await {
        tracing::warn!(?running, "Stopped before all connections ended");
    }
    tracing::info!(
        duration_seconds = started.elapsed().as_secs_f64(),
        "Agent stopped"
    );
}

const IMAGE_SERVICE: &str = <ImageServiceServer<ImageService> as NamedService>::NAME;
const RUNTIME_SERVICE: &str = <RuntimeServiceServer<RuntimeService> as NamedService>::NAME;
const CONTROL: &str = <ImagesServer<control::Images> as NamedService>::NAME;

const DESCRIPTORS: [&[u8]; 5] = [
    cri::proto::DESCRIPTORS,
    control::proto::DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// All services of the socket.
async fn services(
    cache: &Cache,
    status: Option<control::StatusSource>,
) -> anyhow::Result<(HealthReporter, Routes)> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in [IMAGE_SERVICE, RUNTIME_SERVICE, CONTROL] {
        health
            .set_service_status(service, tonic_health::ServingStatus::Serving)
            .await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(cri::proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(control::proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::builder();
    routes
        .add_service(ImageService::new(cache.clone()).server())
        .add_service(RuntimeService.server())
        .add_service(control::server(cache.clone()))
        .add_service(control::prepulls_server(status))
        .add_service(health_service)
        .add_service(reflection().build_v1().context("reflection")?)
        // Older tools know this one only.
        .add_service(reflection().build_v1alpha().context("reflection")?);
    Ok((health, routes.routes()))
}

/// Serves the connections of a socket until shutdown is asked for, and then until the last one ends: the caller
/// limits that. Peers that are gone are found by pings, those that never speak by the socket.
pub async fn serve_socket(
    services: Routes,
    layer: RpcLayer,
    incoming: Incoming,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .layer(layer)
        .http2_keepalive_interval(Some(PING_AFTER))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(Some(MAX_CALLS))
        .http2_max_header_list_size(Some(MAX_HEADER_BYTES))
        .add_routes(services)
        .serve_with_incoming_shutdown(incoming, async move { shutdown.wait().await })
        .await
}

/// The service manager is told, if there is one; that it cannot be told is no reason to stop.
fn tell(state: &str) {
    if let Err(error) = notify(std::env::var_os("NOTIFY_SOCKET").as_deref(), state) {
        tracing::warn!(err = %error, "Service manager was not told");
    }
}

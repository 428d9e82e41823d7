//! The socket of an agent: its services, what runs beside them, and how they stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::server::HealthReporter;

use super::config::Config;
use super::images::{LarderImages, NodeImages, NodePruning, elsewhere};
use super::kube_agent::{self, Declared};
use super::open::{Opened, Parts};
use super::process::admin_ended;
use super::pruning::{self, LarderPruning};
use super::registrar::Registrar;
use crate::cache::{Cache, ImageUsers, Relay};
use crate::control;
use crate::control::proto::images_server::ImagesServer;
use crate::control::proto::prepulls_server::PrepullsServer;
use crate::cri::proto::image_service_server::ImageServiceServer;
use crate::cri::proto::runtime_service_server::RuntimeServiceServer;
use crate::cri::{self, ImageService, Incoming, RpcLayer, RuntimeService, Socket};
use crate::lifecycle::{
    Check, ConnectionLimits, Guarded, Readiness, Shutdown, Tasks, notify, watchdog,
};
use crate::mirror::{self, Mirror};
use crate::runtime::{self, RuntimeContainers, RuntimeImages};
use crate::snapshotter::proto::SnapshotsServer;
use crate::snapshotter::{self, Snapshotter};
use crate::store::Store;

/// A peer that does not answer a ping within both is gone: together less than the default limit on stopping, and more
/// than a kubelet is starved on a busy node.
const PING_AFTER: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once on one connection; each is a pull at most.
const MAX_CALLS: u32 = 256;
/// Of one request's metadata.
const MAX_HEADER_BYTES: u32 = 32 << 10;
/// Connections at once to the address that answers questions.
const MAX_ASKERS: usize = 32;
/// A gRPC client sends the 24 bytes of the HTTP/2 preface at once.
const ASKERS: ConnectionLimits = ConnectionLimits {
    first_bytes: 24,
    first_within: Duration::from_secs(5),
    idle: None,
};
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of one scrub step: at the default interval about 90 GB a day, for a tenth of a second of hashing a minute.
const SCRUB_BYTES: u64 = 64 << 20;
/// File below the data directory with what was seen of the runtime's images.
const SEEN: &str = "images.json";
/// What stopping may take after its limit, for threads in the middle of a write.
pub(super) const LAST_WRITES: Duration = Duration::from_secs(2);

const IMAGE_SERVICE: &str = <ImageServiceServer<ImageService> as NamedService>::NAME;
const RUNTIME_SERVICE: &str = <RuntimeServiceServer<RuntimeService> as NamedService>::NAME;
const CONTROL: &str = <ImagesServer<control::Images> as NamedService>::NAME;
const PREPULLS: &str = <PrepullsServer<control::Prepulls> as NamedService>::NAME;
const SNAPSHOTS: &str = <SnapshotsServer<Snapshotter> as NamedService>::NAME;

const DESCRIPTORS: [&[u8]; 6] = [
    cri::proto::DESCRIPTORS,
    control::proto::DESCRIPTORS,
    snapshotter::proto::DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Conditions of readiness.
#[derive(Debug)]
pub(super) struct Checks {
    pub(super) store: Check,
    pub(super) socket: Check,
}

/// What an agent serves, and what runs beside it.
pub(super) struct Service {
    routes: Routes,
    health: HealthReporter,
    /// Services whose health is told, besides that of the whole.
    names: &'static [&'static str],
    declared: Option<Declared>,
    /// Where a containerd is to know the images.
    registrar: Option<Registrar>,
    /// Where larder itself holds the images.
    own: Option<(Cache, Store)>,
    /// What answers questions from elsewhere.
    answers: Option<(TcpListener, Routes)>,
    mirror: Option<(Mirror, mirror::Metrics)>,
}

impl Service {
    /// Opens the store. `None`: shutdown was asked for meanwhile.
    pub(super) async fn of_cache(
        config: &Config,
        parts: Parts,
        metrics: (kube_agent::Metrics, runtime::Metrics),
        users: Option<ImageUsers>,
        checks: &Checks,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Option<Self>> {
        let started = Instant::now();
        tell("STATUS=Opening the store");
        let (root, options) = (config.root.clone(), config.cache.clone());
        let opening = tokio::task::spawn_blocking(move || parts.open(&root, options));
        let Opened { cache, store } = tokio::select! {
            opened = opening => opened.context("open the store")??,
            // Recovery is safe to break off.
            () = shutdown.wait() => return Ok(None),
        };
        if let Some(users) = users {
            cache.watch_users(users);
        }
        checks.store.set(true);
        tracing::info!(root = %config.root.display(), duration_seconds = started.elapsed().as_secs_f64(), "Store opened");

        // Before anybody can pull.
        let registrar = config
            .containerd
            .as_ref()
            .map(|socket| Registrar::new(cache.clone(), socket, metrics.1));
        let images = Arc::new(LarderImages::new(cache.clone()));
        let declared = Declared::build(&config.declared, &config.root, images, metrics.0)
            .await
            .context("declared images")?;
        let pruning = Arc::new(LarderPruning::new(cache.clone()));
        let declared = declared.map(|declared| declared.with_pruning(pruning));
        let mut routes = Routes::builder();
        routes
            .add_service(ImageService::new(cache.clone()).server())
            .add_service(RuntimeService.server())
            .add_service(control::server(cache.clone()))
            .add_service(control::prepulls_server(
                declared.as_ref().map(Declared::status),
            ))
            .add_service(Snapshotter::new(cache.snapshots()).server());
        let answers = Routes::new(control::answers(cache.clone())).add_service(
            control::prepulls_server(declared.as_ref().map(Declared::status)),
        );
        let own = [
            cri::proto::DESCRIPTORS,
            control::proto::DESCRIPTORS,
            snapshotter::proto::DESCRIPTORS,
        ];
        let names = &[IMAGE_SERVICE, RUNTIME_SERVICE, CONTROL, PREPULLS, SNAPSHOTS];
        Ok(Some(Service {
            health: tell_of(&mut routes, &own, names).await?,
            routes: routes.routes(),
            names,
            declared,
            registrar,
            own: Some((cache, store)),
            answers: listen(config.control, answers).await?,
            mirror: None,
        }))
    }

    /// Where the container runtime holds the images: no image service, only what is declared, and answers to questions.
    /// A store only where there is a mirror, for what it keeps.
    pub(super) async fn of_runtime(
        config: &Config,
        parts: Parts,
        (runtime, containers): (RuntimeImages, RuntimeContainers),
        metrics: kube_agent::Metrics,
        checks: &Checks,
        mirrors: bool,
    ) -> anyhow::Result<Self> {
        // For what a restart needs.
        tokio::fs::create_dir_all(&config.root)
            .await
            .with_context(|| config.root.display().to_string())?;
        let client = parts.client(&config.cache)?;
        let own = if mirrors {
            let (root, options) = (config.root.clone(), config.cache.clone());
            let opening = tokio::task::spawn_blocking(move || parts.open(&root, options));
            Some(opening.await.context("open the store")??)
        } else {
            None
        };
        checks.store.set(true);
        let images = NodeImages::new(runtime, client);
        let held = images.clone();
        let declared =
            Declared::build(&config.declared, &config.root, Arc::new(images), metrics)
                .await
                .context("declared images")?
                .context(
                    "nothing is declared to this agent: with --images runtime give --kubeconfig or --manifests",
                )?;
        let pruning = NodePruning::new(held.clone(), containers, config.root.join(SEEN));
        let pruning = Arc::new(pruning);
        let declared = declared.with_pruning(pruning.clone());
        let images = control::elsewhere(elsewhere(held, pruning));
        let mut routes = Routes::builder();
        routes
            .add_service(images.clone())
            .add_service(control::prepulls_server(Some(declared.status())));
        let answers =
            Routes::new(images).add_service(control::prepulls_server(Some(declared.status())));
        let names = &[CONTROL, PREPULLS];
        Ok(Service {
            health: tell_of(&mut routes, &[control::proto::DESCRIPTORS], names).await?,
            routes: routes.routes(),
            names,
            declared: Some(declared),
            registrar: None,
            own: own.map(|Opened { cache, store }| (cache, store)),
            answers: listen(config.control, answers).await?,
            mirror: None,
        })
    }

    /// Serves the mirror, too.
    pub(super) fn with_mirror(self, mirror: Option<(Mirror, mirror::Metrics)>) -> Self {
        Service { mirror, ..self }
    }

    /// Serves until shutdown is asked for or something ends that should not, and stops within the limit.
    pub(super) async fn serve(
        self,
        config: &Config,
        calls: cri::Metrics,
        checks: &Checks,
        readiness: &Readiness,
        shutdown: &Shutdown,
        mut admin: Option<JoinHandle<io::Result<()>>>,
    ) -> anyhow::Result<()> {
        let layer = RpcLayer::new(calls, &DESCRIPTORS).context("descriptors of the services")?;
        let socket = Socket::bind(&config.socket)?;
        tracing::info!(socket = %socket.path().display(), "Socket served");
        let tasks = Tasks::new();
        if let Some((listener, routes)) = self.answers {
            tasks.spawn(
                "control",
                serve_answers(routes, layer.clone(), listener, shutdown.clone()),
            );
        }
        let mut served = tasks.spawn(
            "socket",
            serve_socket(self.routes, layer, socket.incoming(), shutdown.clone()),
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
        let (cache, store) = self.own.unzip();
        if let (Some((mirror, metrics)), Some(cache), Some(told)) =
            (self.mirror, &cache, &config.mirror)
        {
            tracing::info!(mirror = %mirror.address(), "Mirror served");
            let relay = Relay::new(cache, told.keep.clone());
            tasks.spawn("mirror", mirror.serve(relay, metrics, shutdown.clone()));
        }
        if let Some((store, pause)) = store.zip(config.scrub_interval) {
            tasks.spawn("scrub", scrub(store, pause, shutdown.clone()));
        }
        if let Some(cache) = &cache {
            tasks.spawn("upkeep", pruning::tend(cache.clone(), shutdown.clone()));
        }
        if let Some(declared) = self.declared {
            tasks.spawn("declared images", declared.run(shutdown.clone(), readiness));
        }
        if let Some(registrar) = self.registrar {
            tasks.spawn("containerd", registrar.run(shutdown.clone()));
        }
        let result = tokio::select! {
            // Both servers end by themselves, too, once it is asked for.
            biased;
            () = shutdown.wait() => Ok(()),
            ended = &mut served => Err(anyhow!("the socket's server ended by itself: {ended:?}")),
            ended = admin_ended(admin.as_mut()) => Err(anyhow!("the server of metrics and probes ended by itself: {ended:?}")),
        };
        readiness.stop();
        shutdown.request();
        tell("STOPPING=1");
        tell("STATUS=Waiting for calls under way");
        // The unit's own limit may be shorter than what was configured.
        let limit = config.drain_timeout + 3 * LAST_WRITES;
        tell(&format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros()));
        let mut health = self.health;
        // Streams that watch the health would keep their connections open.
        for service in self.names.iter().chain(&[""]) {
            health.clear_service_status(service).await;
        }
        stop(config.drain_timeout, cache.as_ref(), &tasks).await;
        result
    }
}

async fn listen(
    address: Option<SocketAddr>,
    routes: Routes,
) -> anyhow::Result<Option<(TcpListener, Routes)>> {
    let Some(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("control address {address}"))?;
    Ok(Some((listener, routes)))
}

/// Adds what tells of the other services: their health, and their descriptors.
async fn tell_of(
    routes: &mut tonic::service::RoutesBuilder,
    descriptors: &[&'static [u8]],
    names: &[&'static str],
) -> anyhow::Result<HealthReporter> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in names {
        health
            .set_service_status(service, tonic_health::ServingStatus::Serving)
            .await;
    }
    let reflection = || {
        descriptors
            .iter()
            .fold(
                tonic_reflection::server::Builder::configure(),
                |builder, set| builder.register_encoded_file_descriptor_set(set),
            )
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes
        .add_service(health_service)
        .add_service(reflection().build_v1().context("reflection")?)
        // Older tools know this one only.
        .add_service(reflection().build_v1alpha().context("reflection")?);
    Ok(health)
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
async fn stop(limit: Duration, cache: Option<&Cache>, tasks: &Tasks) {
    let started = Instant::now();
    if let Some(cache) = cache
        && timeout(limit, cache.shutdown()).await.is_err()
    {
        tracing::warn!(running = "pulls", "Stopped before all work ended");
    }
    if let Err(running) = tasks.wait(limit.saturating_sub(started.elapsed())).await {
        tracing::warn!(?running, "Stopped before all work ended");
    }
    tracing::info!(
        duration_seconds = started.elapsed().as_secs_f64(),
        "Agent stopped"
    );
}

/// A server within limits.
fn limited() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_AFTER))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(Some(MAX_CALLS))
        .http2_max_header_list_size(Some(MAX_HEADER_BYTES))
}

/// As [`serve_socket`], for the address that answers questions.
async fn serve_answers(
    services: Routes,
    layer: RpcLayer,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let places = Arc::new(Semaphore::new(MAX_ASKERS));
    let incoming = futures_util::stream::unfold((listener, places), |(listener, places)| async {
        let place = places.clone().acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                // No file descriptor left, or a peer gone already: no reason to end.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        };
        let guarded = Guarded::new(stream, ASKERS, place);
        Some((Ok::<_, io::Error>(guarded), (listener, places)))
    });
    limited()
        .layer(layer)
        .add_routes(services)
        .serve_with_incoming_shutdown(incoming, async move { shutdown.wait().await })
        .await
}

impl Connected for Guarded<TcpStream> {
    type ConnectInfo = ();
    fn connect_info(&self) -> Self::ConnectInfo {}
}

/// Serves the connections of a socket until shutdown is asked for, and then until the last one ends: the caller
/// limits that. Peers that are gone are found by pings, those that never speak by the socket.
pub async fn serve_socket(
    services: Routes,
    layer: RpcLayer,
    incoming: Incoming,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    limited()
        .layer(layer)
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

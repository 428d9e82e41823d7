//! The node agent: one store, one cache, one socket for all gRPC services, one address for metrics and probes.

use std::process::ExitCode;
use std::sync::Arc;

use super::config::{AgentArgs, Config, ConfigError, Holder};
use super::kube_agent;
use super::open::Parts;
use super::process;
use super::pruning;
use super::serve::{Checks, LAST_WRITES, Service};
use crate::admin::{self, Admin};
use crate::cri;
use crate::lifecycle::{Readiness, Shutdown, Tasks};
use crate::mirror::{self, Mirror};
use crate::runtime::{self, RuntimeContainers, RuntimeImages};
use crate::telemetry;

/// Threads that wait for network and callers; hashing and writing have threads of their own.
const MAX_WORKERS: usize = 8;
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
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let ended = process::run(cores.min(MAX_WORKERS), LAST_WRITES, async |shutdown| {
        Agent::build(config).await?.run(shutdown).await
    });
    Ok(process::exit_code(ended, "Agent ended with an error"))
}

/// An agent that has its address for probes and nothing else yet.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    admin: Option<Admin>,
    mirror: Option<Mirror>,
    readiness: Readiness,
    checks: Checks,
}

/// Metrics of what either kind of agent serves.
struct Meters {
    calls: cri::Metrics,
    declared: kube_agent::Metrics,
    mirror: mirror::Metrics,
}

impl Agent {
    /// Takes the addresses of metrics and probes, and of the mirror.
    pub async fn build(mut config: Config) -> anyhow::Result<Self> {
        let admin = match config.http {
            Some(address) => Some(Admin::bind(address).await?),
            None => None,
        };
        let mirror = match &config.mirror {
            Some(mirror) => Some(Mirror::bind(mirror.address).await?),
            None => None,
        };
        config.cache.own_port = mirror.as_ref().map(|mirror| mirror.address().port());
        let readiness = Readiness::new();
        // From the first moment, so that nobody finds an agent ready that has not begun.
        let checks = Checks {
            store: readiness.check("store"),
            socket: readiness.check("socket"),
        };
        Ok(Agent {
            config,
            admin,
            mirror,
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
            mirror,
            readiness,
            checks,
        } = self;
        let mut metrics = telemetry::registry(env!("CARGO_PKG_VERSION"));
        admin::Metrics::register(&mut metrics, &readiness);
        let parts = Parts::register(&mut metrics);
        let meters = Meters {
            calls: cri::Metrics::register(&mut metrics),
            declared: kube_agent::Metrics::register(&mut metrics),
            mirror: mirror::Metrics::register(&mut metrics),
        };
        let talks = config.images != Holder::Larder
            || config.containerd.is_some()
            || config.users_endpoint.is_some();
        let calls_out = talks.then(|| runtime::Metrics::register(&mut metrics));
        let calls_out = calls_out.unwrap_or_default();
        let endpoint = config.users_endpoint.as_ref();
        let users = endpoint.map(|endpoint| pruning::users(endpoint, calls_out.clone()));
        let runtime = match &config.images {
            Holder::Larder => None,
            Holder::Runtime { endpoint } => Some((
                RuntimeImages::new(endpoint, calls_out.clone()),
                RuntimeContainers::new(endpoint, calls_out.clone()),
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
        let service = match runtime {
            None => {
                let metrics = (meters.declared, calls_out);
                Service::of_cache(&config, parts, metrics, users, &checks, &shutdown).await
            }
            Some((runtime, containers)) => {
                let runtime = (runtime, containers);
                let mirrors = mirror.is_some();
                Service::of_runtime(&config, parts, runtime, meters.declared, &checks, mirrors)
                    .await
                    .map(Some)
            }
        };
        let result = match service {
            Ok(Some(service)) => {
                let mirror = mirror.map(|mirror| (mirror, meters.mirror));
                service
                    .with_mirror(mirror)
                    .serve(
                        &config,
                        meters.calls,
                        &checks,
                        &readiness,
                        &shutdown,
                        admin_task,
                    )
                    .await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        last.request();
        if let Err(running) = tasks.wait(LAST_WRITES).await {
            tracing::warn!(?running, "Stopped before all connections ended");
        }
        result
    }
}

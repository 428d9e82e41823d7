//! The stage of `larder demo`: images made here, a registry on loopback, and a real agent in a temporary folder.
//!
//! The terminal plays on it with the client that every verb has, so what it shows is what the product does.

mod folder;
mod images;
mod registry;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::task::JoinHandle;

use super::CacheOptions;
use super::agent::Agent;
use super::config::{Config, DeclaredConfig, Holder};
use crate::lifecycle::Shutdown;
use crate::telemetry::LogConfig;

pub use folder::Folder;
pub use images::{Built, Images};
pub use registry::{Counts, DemoRegistry};

/// What the agent may take to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// A running agent of the demo.
#[derive(Debug)]
pub struct DemoAgent {
    socket: PathBuf,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

impl DemoAgent {
    /// Starts an agent below `folder` and waits until its socket is there.
    pub async fn start(folder: &Path, own_images: bool) -> anyhow::Result<Self> {
        let mut cache = CacheOptions::default();
        if own_images {
            // The registry is this process: nobody's mirrors have a say.
            cache.hosts_dirs.clear();
        }
        let socket = folder.join("larder.sock");
        let config = Config {
            root: folder.join("root"),
            socket: socket.clone(),
            containerd: None,
            images: Holder::Larder,
            users_endpoint: None,
            http: None,
            control: None,
            mirror: None,
            drain_timeout: DRAIN,
            scrub_interval: None,
            log: LogConfig::default(),
            cache,
            declared: DeclaredConfig::default(),
            unknown_variables: Vec::new(),
        };
        let shutdown = Shutdown::new();
        let agent = Agent::build(config).await?;
        let readiness = agent.readiness();
        let task = tokio::spawn(agent.run(shutdown.clone()));
        while !readiness.ready() {
            if task.is_finished() {
                return Err(match task.await {
                    Ok(Err(error)) => error,
                    _ => anyhow!("the agent ended before it was ready"),
                });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(DemoAgent {
            socket,
            shutdown,
            task,
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops it and waits until it has.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.request();
        self.task.await.context("the agent's task")?
    }
}

/// Builds the demo's images and serves them. Building takes threads of its own.
pub async fn serve() -> anyhow::Result<(Arc<Images>, DemoRegistry)> {
    let images = tokio::task::spawn_blocking(Images::build)
        .await
        .context("build the images")?;
    let images = Arc::new(images);
    let registry = DemoRegistry::start(images.clone()).await?;
    Ok((images, registry))
}

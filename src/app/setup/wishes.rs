//! From flags to what is wanted: what they leave open is as the agent's configuration and the running containerd have it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{CONFIG, Snapshots, Wanted};
use crate::app::config::{AgentArgs, Config, ConfigError};
use crate::app::machine;

/// Where an agent's mirror is unless somebody says otherwise.
pub const MIRROR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9641);

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The agent's settings, as it is started.
    pub agent: AgentArgs,
    /// containerd's configuration.
    pub config: Option<PathBuf>,
    /// Folder of registries' files.
    pub certs_dir: Option<PathBuf>,
    /// Address of the agent's mirror.
    pub mirror: Option<SocketAddr>,
    /// Only these registries.
    pub registries: Vec<String>,
    /// Leave the mirror out.
    pub skip_mirror: bool,
    /// Leave snapshots out.
    pub skip_snapshots: bool,
}

/// Looks at the machine. Needs a tokio runtime for one question to containerd.
pub async fn wanted(options: Options) -> Result<Wanted, ConfigError> {
    let agent = Config::load(&options.agent)?;
    let given = options.config.as_deref().map(absolute);
    let asked = given.clone();
    let looking = tokio::task::spawn_blocking(move || machine::containerd(asked.as_deref()));
    // It ends only with a panic otherwise; then everything is at its usual place.
    let containerd = looking.await.ok().flatten();
    let version = match &containerd {
        Some(containerd) => machine::ask_version(&containerd.socket).await,
        None => None,
    };
    // A name may stand before it.
    let version = version.and_then(|text| machine::version(text.rsplit(' ').next()?));
    let config = given.or_else(|| containerd.map(|containerd| containerd.config));
    Ok(Wanted {
        config: config.unwrap_or_else(|| PathBuf::from(CONFIG)),
        certs_dir: options.certs_dir.as_deref().map(absolute),
        mirror: (!options.skip_mirror).then(|| {
            let own = agent.mirror.as_ref().map(|mirror| mirror.address);
            options.mirror.or(own).unwrap_or(MIRROR)
        }),
        registries: options.registries,
        snapshots: (!options.skip_snapshots).then_some(Snapshots {
            socket: agent.socket,
            root: agent.root,
        }),
        containerd: version,
    })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

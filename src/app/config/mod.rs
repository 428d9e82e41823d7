//! The agent's configuration: file, then environment, then flags; later ones win. Checked as a whole before anything
//! starts, with errors that name the place at fault.

mod args;
mod environment;
mod file;
mod listen;
mod show;
mod units;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use args::AgentArgs;
pub use listen::MirrorConfig;
pub use show::Setting;

use super::open::{CacheOptions, hosts_dirs};
use crate::cache::Background;
use crate::image::Platform;
use crate::k8s;
use crate::prune::Amount;
use crate::store::Limits;
use crate::telemetry::{LogConfig, LogFormat};
use environment::Environment;
pub(super) use environment::overlay;
use file::{File, FileLimits};
use listen::{address, loopback, mirror};

/// Default of `root`.
pub const ROOT: &str = "/var/lib/larder";
/// Default of `socket`.
pub const SOCKET: &str = "/run/larder/larder.sock";
/// Default of `http`.
pub const HTTP: &str = "127.0.0.1:9640";

/// Default of `runtime_endpoint`.
pub const RUNTIME_ENDPOINT: &str = "/run/containerd/containerd.sock";

/// What holds images on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Holder {
    /// larder's own cache.
    #[default]
    Larder,
    /// The container runtime's image service.
    Runtime {
        /// Its unix socket.
        endpoint: PathBuf,
    },
}

/// Everything an agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory.
    pub root: PathBuf,
    /// The unix socket of all gRPC services.
    pub socket: PathBuf,
    /// Address of metrics and probes; `None` for none.
    pub http: Option<SocketAddr>,
    /// Loopback address that answers questions and changes nothing; `None` for none.
    pub control: Option<SocketAddr>,
    /// The registry mirror for container runtimes; `None` for none.
    pub mirror: Option<MirrorConfig>,
    /// What holds images.
    pub images: Holder,
    /// The containerd that is to know the images here; `None` for none.
    pub containerd: Option<PathBuf>,
    /// Where larder holds them: the socket of the container runtime that tells who uses them, if one is to be asked.
    pub users_endpoint: Option<PathBuf>,
    /// How long stopping may take.
    pub drain_timeout: Duration,
    /// Between two steps of re-hashing the store in the background; `None` for never.
    pub scrub_interval: Option<Duration>,
    /// Logs.
    pub log: LogConfig,
    /// Of the cache and the rooms below it.
    pub cache: CacheOptions,
    /// Variables of the environment that begin as ours and mean nothing: misspelt, perhaps.
    pub unknown_variables: Vec<String>,
    /// Where declared images come from.
    pub declared: DeclaredConfig,
}

/// Where declared images come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclaredConfig {
    /// Of the API server.
    pub kubeconfig: Option<PathBuf>,
    /// Name of this machine's Node, where somebody said it.
    pub node_name: Option<String>,
    /// Folder of manifests.
    pub manifests: Option<PathBuf>,
}

/// A value that cannot be used, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {cause}")]
pub struct ConfigError {
    place: String,
    cause: String,
}

impl ConfigError {
    pub(super) fn new(place: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        ConfigError {
            place: place.into(),
            cause: cause.to_string(),
        }
    }
}

impl Config {
    /// Reads the environment and the file that it or the arguments name, and puts the arguments over both.
    pub fn load(args: &AgentArgs) -> Result<Self, ConfigError> {
        Layers::read(args, std::env::vars_os())?.resolve(args)
    }

    /// As [`Config::load`]; every value with where it is from.
    pub fn settings(args: &AgentArgs) -> Result<Vec<Setting>, ConfigError> {
        let layers = Layers::read(args, std::env::vars_os())?;
        let config = layers.resolve(args)?;
        Ok(show::settings(&config, args, &layers))
    }

    /// Values of file and environment keep their key as the place; [`Layers::located`] makes file and line of it, or the
    /// name of a variable.
    fn resolve(args: &AgentArgs, file: &File) -> Result<Self, ConfigError> {
        let defaults = CacheOptions::default();
        let Limits {
            max_entries,
            max_layer_bytes,
            max_ratio,
            max_path,
            reserved_bytes,
        } = Limits::default();
        let (log, pull, registry, limits) = (&file.log, &file.pull, &file.registry, &file.limits);

        let http = pick(&args.http, "--http", &file.http, "http");
        let platform = pick(&args.platform, "--platform", &file.platform, "platform");
        let drain = pick(
            &args.drain_timeout,
            "--drain-timeout",
            &file.drain_timeout,
            "drain_timeout",
        );
        let max_layers = pick(
            &args.max_layers,
            "--max-layers",
            &pull.max_layers,
            "pull.max_layers",
        );
        let level = pick(&args.log_level, "--log-level", &log.level, "log.level");
        let format = pick(&args.log_format, "--log-format", &log.format, "log.format");

        let log = LogConfig {
            format: parsed(format, str::parse::<LogFormat>)?.unwrap_or_default(),
            level: level.map_or_else(|| LogConfig::default().level, |(level, _)| level),
        };
        log.validate().map_err(|error| {
            let flag = args.log_level.is_some();
            ConfigError::new(if flag { "--log-level" } else { "log.level" }, error)
        })?;

        let hosts_dirs = match (&args.hosts_dir[..], &file.hosts_dirs) {
            ([], Some(dirs)) => dirs.clone(),
            ([], None) => hosts_dirs(),
            (dirs, _) => dirs.to_vec(),
        };
        let pinned = file.pinned.clone().unwrap_or_default();
        for pattern in &pinned {
            pin(pattern).map_err(|cause| ConfigError::new("pinned", cause))?;
        }

        let cache = CacheOptions {
            hosts_dirs,
            platform: parsed(platform, str::parse::<Platform>)?.unwrap_or(defaults.platform),
            max_layers: ranged(max_layers, 1, 64)?.unwrap_or(defaults.max_layers),
            orphan_grace: duration(
                of_file(&pull.orphan_grace, "pull.orphan_grace"),
                Duration::ZERO,
                HOUR,
            )?
            .unwrap_or(defaults.orphan_grace),
            pinned,
            authfile: args.authfile.clone().or_else(|| file.authfile.clone()),
            limits: Limits {
                max_entries: ranged(
                    of_file(&limits.max_entries, "limits.max_entries"),
                    1,
                    u64::MAX,
                )?
                .unwrap_or(max_entries),
                max_layer_bytes: ranged(
                    of_file(&limits.max_layer_bytes, "limits.max_layer_bytes"),
                    1,
                    u64::MAX,
                )?
                .unwrap_or(max_layer_bytes),
                max_ratio: ranged(of_file(&limits.max_ratio, "limits.max_ratio"), 1, u64::MAX)?
                    .unwrap_or(max_ratio),
                max_path: ranged(of_file(&limits.max_path, "limits.max_path"), 1, 4095)?
                    .unwrap_or(max_path),
                reserved_bytes: limits.reserved_bytes.unwrap_or(reserved_bytes),
            },
            background: background(limits)?,
            reserved: reserved(of_file(&limits.reserved, "limits.reserved"))?,
            own_port: None,
            max_per_host: ranged(
                of_file(&registry.max_per_host, "registry.max_per_host"),
                1,
                256,
            )?
            .unwrap_or(defaults.max_per_host),
            stall_timeout: duration(
                of_file(&registry.stall_timeout, "registry.stall_timeout"),
                SECOND,
                HOUR,
            )?
            .unwrap_or(defaults.stall_timeout),
            attempts: ranged(of_file(&registry.attempts, "registry.attempts"), 1, 20)?
                .unwrap_or(defaults.attempts),
            max_retry_after: duration(
                of_file(&registry.max_retry_after, "registry.max_retry_after"),
                Duration::ZERO,
                HOUR,
            )?
            .unwrap_or(defaults.max_retry_after),
        };

        let images = holder(args, file)?;
        Ok(Config {
            root: path(pick(&args.root, "--root", &file.root, "root"), ROOT)?,
            socket: path(
                pick(&args.socket, "--socket", &file.socket, "socket"),
                SOCKET,
            )?,
            http: address(http)?,
            control: loopback(pick(&args.control, "--control", &file.control, "control"))?,
            mirror: mirror(args, file)?,
            containerd: containerd(args, file)?,
            users_endpoint: users_endpoint(args, file, &images)?,
            images,
            drain_timeout: duration(drain, Duration::ZERO, HOUR)?.unwrap_or(20 * SECOND),
            scrub_interval: Some(
                duration(
                    of_file(&file.scrub_interval, "scrub_interval"),
                    Duration::ZERO,
                    24 * HOUR,
                )?
                .unwrap_or(60 * SECOND),
            )
            .filter(|pause| !pause.is_zero()),
            log,
            cache,
            declared: declared(args, file)?,
            unknown_variables: Vec::new(),
        })
    }
}

/// What file and environment say.
#[derive(Debug, Default)]
struct Layers {
    environment: Environment,
    path: PathBuf,
    text: String,
}

impl Layers {
    fn read(
        args: &AgentArgs,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let environment = Environment::read(variables)?;
        let path = args.config.clone();
        let path = path.or_else(|| environment.config.as_ref().map(PathBuf::from));
        let text = path.as_deref().map(file::read).transpose()?;
        Ok(Layers {
            environment,
            path: path.unwrap_or_default(),
            text: text.unwrap_or_default(),
        })
    }

    fn resolve(&self, args: &AgentArgs) -> Result<Config, ConfigError> {
        let place = || self.path.display().to_string();
        // Errors of the file's own have their line here.
        file::parse(&self.path, &self.text)?;
        let mut table: toml::Table = self
            .text
            .parse()
            .map_err(|error| ConfigError::new(place(), error))?;
        environment::overlay(&mut table, self.environment.table.clone());
        let file = File::deserialize(toml::Value::Table(table))
            .map_err(|error| ConfigError::new(place(), error))?;
        let mut config = Config::resolve(args, &file).map_err(|error| self.located(error))?;
        config.unknown_variables = self.environment.unknown.clone();
        Ok(config)
    }

    /// An error whose place is a key gets the variable, or file and line; one of a flag stays as it is.
    fn located(&self, error: ConfigError) -> ConfigError {
        match self.origin(&error.place) {
            Some(Origin::Variable(name)) => ConfigError::new(name, error.cause),
            Some(Origin::Line(line)) => ConfigError::new(
                format!("{}: line {line}", self.path.display()),
                format!("{}: {}", error.place, error.cause),
            ),
            None => error,
        }
    }

    fn origin(&self, key: &str) -> Option<Origin> {
        match self.environment.origin(key) {
            Some(name) => Some(Origin::Variable(name.to_owned())),
            None => file::line_of(&self.text, key).map(Origin::Line),
        }
    }
}

/// Where a key is set below the flags.
enum Origin {
    Variable(String),
    Line(usize),
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A value and the place it came from.
type Placed<T> = Option<(T, &'static str)>;

fn pick<T: Clone>(
    flag: &Option<T>,
    flag_name: &'static str,
    file: &Option<T>,
    key: &'static str,
) -> Placed<T> {
    flag.clone()
        .map(|value| (value, flag_name))
        .or_else(|| of_file(file, key))
}

fn of_file<T: Clone>(file: &Option<T>, key: &'static str) -> Placed<T> {
    file.clone().map(|value| (value, key))
}

fn parsed<T, E: std::fmt::Display>(
    value: Placed<String>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, ConfigError> {
    value
        .map(|(text, place)| parse(&text).map_err(|error| ConfigError::new(place, error)))
        .transpose()
}

fn ranged<T: Copy + PartialOrd + std::fmt::Display>(
    value: Placed<T>,
    least: T,
    most: T,
) -> Result<Option<T>, ConfigError> {
    match value {
        Some((value, place)) if value < least || value > most => Err(ConfigError::new(
            place,
            format!("{value} is not between {least} and {most}"),
        )),
        value => Ok(value.map(|(value, _)| value)),
    }
}

fn duration(
    value: Placed<String>,
    least: Duration,
    most: Duration,
) -> Result<Option<Duration>, ConfigError> {
    let Some((text, place)) = value else {
        return Ok(None);
    };
    let value = units::duration(&text).map_err(|cause| ConfigError::new(place, cause))?;
    if value < least || value > most {
        let cause = format!(
            "{text:?} is not between {} and {} seconds",
            least.as_secs(),
            most.as_secs()
        );
        return Err(ConfigError::new(place, cause));
    }
    Ok(Some(value))
}

fn path(value: Placed<PathBuf>, default: &str) -> Result<PathBuf, ConfigError> {
    match value {
        None => Ok(PathBuf::from(default)),
        Some((path, place)) if path.as_os_str().is_empty() => {
            Err(ConfigError::new(place, "the path is empty"))
        }
        Some((path, place)) => {
            std::path::absolute(&path).map_err(|error| ConfigError::new(place, error))
        }
    }
}

/// As kubelet and crictl write it, or the path alone.
fn endpoint(args: &AgentArgs, file: &File) -> Placed<PathBuf> {
    let endpoint = pick(
        &args.runtime_endpoint,
        "--runtime-endpoint",
        &file.runtime_endpoint,
        "runtime_endpoint",
    );
    endpoint.map(|(path, place)| {
        let text = path.to_string_lossy().into_owned();
        let bare = text.strip_prefix("unix://").map(PathBuf::from);
        (bare.unwrap_or(path), place)
    })
}

/// Only where somebody names it: larder's own images may be for something else than containers.
fn users_endpoint(
    args: &AgentArgs,
    file: &File,
    images: &Holder,
) -> Result<Option<PathBuf>, ConfigError> {
    match (images, endpoint(args, file)) {
        (Holder::Larder, Some((path, _))) if path.as_os_str().is_empty() => Ok(None),
        (Holder::Larder, Some(given)) => path(Some(given), RUNTIME_ENDPOINT).map(Some),
        _ => Ok(None),
    }
}

/// `20Gi`, `5%`, or nothing for none.
fn reserved(value: Placed<String>) -> Result<Option<Amount>, ConfigError> {
    let Some((text, place)) = value.filter(|(text, _)| !text.is_empty()) else {
        return Ok(None);
    };
    // A share of a hundred is its percentage.
    let parsed = k8s::api::Amount::Text(text.clone()).of(100);
    let parsed = parsed.map_err(|error| ConfigError::new(place, error))?;
    Ok(Some(match u8::try_from(parsed) {
        Ok(percent) if text.ends_with('%') => Amount::Percent(percent),
        _ => Amount::Bytes(parsed),
    }))
}

fn holder(args: &AgentArgs, file: &File) -> Result<Holder, ConfigError> {
    let images = pick(&args.images, "--images", &file.images, "images");
    match images.as_ref().map(|(text, place)| (text.as_str(), *place)) {
        None | Some(("larder", _)) => Ok(Holder::Larder),
        Some(("runtime", _)) => {
            let endpoint = path(endpoint(args, file), RUNTIME_ENDPOINT)?;
            Ok(Holder::Runtime { endpoint })
        }
        Some((text, place)) => Err(ConfigError::new(
            place,
            format!("{text:?} holds no images: write larder or runtime"),
        )),
    }
}

/// Nothing, or an empty path, is none.
fn containerd(args: &AgentArgs, file: &File) -> Result<Option<PathBuf>, ConfigError> {
    let given = pick(
        &args.containerd,
        "--containerd",
        &file.containerd,
        "containerd",
    );
    let Some((socket, place)) = given.filter(|(path, _)| !path.as_os_str().is_empty()) else {
        return Ok(None);
    };
    if holder(args, file)? != Holder::Larder {
        return Err(ConfigError::new(
            place,
            "with images = runtime the images are the runtime's own already: leave one of them out",
        ));
    }
    let text = socket.to_string_lossy().into_owned();
    let bare = text.strip_prefix("unix://").map(PathBuf::from);
    path(Some((bare.unwrap_or(socket), place)), "").map(Some)
}

/// What prepulls may take.
fn background(limits: &FileLimits) -> Result<Background, ConfigError> {
    let defaults = Background::default();
    let layers = of_file(&limits.background_layers, "limits.background_layers");
    let per_registry = of_file(
        &limits.background_layers_per_registry,
        "limits.background_layers_per_registry",
    );
    let rate = of_file(&limits.bytes_per_second, "limits.bytes_per_second");
    // Zero is no limit.
    let rate = rate.filter(|(rate, _)| *rate > 0);
    Ok(Background {
        layers: ranged(layers, 1, 64)?.unwrap_or(defaults.layers),
        per_registry: ranged(per_registry, 1, 64)?.unwrap_or(defaults.per_registry),
        // Less than this and a layer of a gigabyte takes days: a mistake in the unit.
        bytes_per_second: ranged(rate, 1 << 10, u64::MAX)?,
        throttle_all: limits.throttle_all.unwrap_or(defaults.throttle_all),
    })
}

/// Longest name of an object.
const MAX_NODE_NAME: usize = 253;

fn declared(args: &AgentArgs, file: &File) -> Result<DeclaredConfig, ConfigError> {
    let given = |value: Placed<PathBuf>| match value {
        None => Ok(None),
        some => path(some, "").map(Some),
    };
    let name = pick(&args.node_name, "--node-name", &file.node_name, "node_name");
    let node_name = match name {
        None => None,
        Some((name, place)) => {
            let plain =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
            if name.is_empty() || name.len() > MAX_NODE_NAME || !name.bytes().all(plain) {
                let cause = format!(
                    "{name:?} is no name of a Node: lower-case letters, digits, - and . make one"
                );
                return Err(ConfigError::new(place, cause));
            }
            Some(name)
        }
    };
    Ok(DeclaredConfig {
        kubeconfig: given(pick(
            &args.kubeconfig,
            "--kubeconfig",
            &file.kubeconfig,
            "kubeconfig",
        ))?,
        node_name,
        manifests: given(pick(
            &args.manifests,
            "--manifests",
            &file.manifests,
            "manifests",
        ))?,
    })
}

/// Exact, or a beginning and a star.
fn pin(pattern: &str) -> Result<(), String> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    if pattern.is_empty() || name.contains('*') {
        return Err(format!(
            "{pattern:?} is no pattern: write a name, such as registry.k8s.io/pause:3.10, or its beginning and *"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

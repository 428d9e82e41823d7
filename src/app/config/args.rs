//! Flags of `larder agent`, each with its environment variable.

use std::path::PathBuf;

/// Serves this node's images on a socket until it is told to stop. A flag wins over the environment, which wins over
/// the configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AgentArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory [default: /var/lib/larder]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Unix socket to serve [default: /run/larder/larder.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Folder with HOST/hosts.toml, may be repeated [default: /etc/larder/hosts.d, else /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR", value_delimiter = ':')]
    pub hosts_dir: Vec<PathBuf>,
    /// Address of /metrics, /livez and /readyz; empty for none [default: 127.0.0.1:9640]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Loopback address that answers questions of larder.v1 and changes nothing, for kubectl larder through a port-forward
    /// [default: none]
    #[arg(long, value_name = "ADDR")]
    pub control: Option<String>,
    /// Loopback address of a registry mirror for the container runtimes of this node, such as 127.0.0.1:9641
    /// [default: none]
    #[arg(long, value_name = "ADDR")]
    pub mirror: Option<String>,
    /// What holds images on this node: larder, or runtime for the image service of the container runtime, into which
    /// declared images are pulled then; no image service is served [default: larder]
    #[arg(long, value_name = "HOLDER")]
    pub images: Option<String>,
    /// Unix socket of the container runtime: with --images runtime the one that holds images
    /// [default: /run/containerd/containerd.sock]; else the one that tells which images are in use, if any is to be asked
    #[arg(long, value_name = "PATH")]
    pub runtime_endpoint: Option<PathBuf>,
    /// Unix socket of containerd, such as /run/containerd/containerd.sock, which then knows the images here as its own; it
    /// must have larder as proxy snapshotter [default: none]
    #[arg(long, value_name = "PATH")]
    pub containerd: Option<PathBuf>,
    /// Docker config.json with credentials for pulls that bring none
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Platform of pulls that name none, os/arch[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Kubeconfig of an API server whose prepulls this node follows [default: the pod's service account, if there is
    /// one and --node-name is given; else none]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this machine's Node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Folder of prepulls and prune policies as YAML files; needs no API server
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Layers ingested at once [default: 4]
    #[arg(long, value_name = "N")]
    pub max_layers: Option<usize>,
    /// Longest time that stopping may take [default: 20s]
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// auto, json or human [default: auto: human on a terminal]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log level or filter, such as warn,larder::store=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// Print the configuration that all this makes, each value with where it is from, and start nothing
    #[arg(long)]
    pub check: bool,
}

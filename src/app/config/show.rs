//! The configuration as it is in force, and where each value is from: `larder agent --check`. None is a secret:
//! credentials are in files that are named here and not read.

use serde::Serialize;
use serde_json::{Value, json};

use super::{AgentArgs, Config, Holder, Layers, Origin, units};
use crate::telemetry::LogFormat;

/// One value in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its key in the file, such as `registry.attempts`.
    pub key: &'static str,
    /// As the file would have it; null for none.
    pub value: Value,
    /// A flag, a variable, file and line, or `default`.
    pub origin: String,
}

pub(super) fn settings(config: &Config, args: &AgentArgs, layers: &Layers) -> Vec<Setting> {
    let values = values(config).into_iter();
    values
        .map(|(key, value)| Setting {
            origin: origin(key, args, layers),
            key,
            value,
        })
        .collect()
}

fn origin(key: &str, args: &AgentArgs, layers: &Layers) -> String {
    if let Some(flag) = flag(key, args) {
        return flag.to_owned();
    }
    match layers.origin(key) {
        Some(Origin::Variable(name)) => name,
        Some(Origin::Line(line)) => format!("{}: line {line}", layers.path.display()),
        None => "default".to_owned(),
    }
}

/// The flag that sets a key, where it was given.
fn flag(key: &str, args: &AgentArgs) -> Option<&'static str> {
    let (flag, given) = match key {
        "root" => ("--root", args.root.is_some()),
        "socket" => ("--socket", args.socket.is_some()),
        "hosts_dirs" => ("--hosts-dir", !args.hosts_dir.is_empty()),
        "http" => ("--http", args.http.is_some()),
        "control" => ("--control", args.control.is_some()),
        "mirror" => ("--mirror", args.mirror.is_some()),
        "images" => ("--images", args.images.is_some()),
        "runtime_endpoint" => ("--runtime-endpoint", args.runtime_endpoint.is_some()),
        "containerd" => ("--containerd", args.containerd.is_some()),
        "authfile" => ("--authfile", args.authfile.is_some()),
        "kubeconfig" => ("--kubeconfig", args.kubeconfig.is_some()),
        "node_name" => ("--node-name", args.node_name.is_some()),
        "manifests" => ("--manifests", args.manifests.is_some()),
        "platform" => ("--platform", args.platform.is_some()),
        "pull.max_layers" => ("--max-layers", args.max_layers.is_some()),
        "drain_timeout" => ("--drain-timeout", args.drain_timeout.is_some()),
        "log.format" => ("--log-format", args.log_format.is_some()),
        "log.level" => ("--log-level", args.log_level.is_some()),
        _ => return None,
    };
    given.then_some(flag)
}

fn values(config: &Config) -> Vec<(&'static str, Value)> {
    let (cache, limits) = (&config.cache, &config.cache.limits);
    let background = &cache.background;
    let (images, endpoint) = match &config.images {
        Holder::Larder => ("larder", config.users_endpoint.as_ref()),
        Holder::Runtime { endpoint } => ("runtime", Some(endpoint)),
    };
    let format = match config.log.format {
        LogFormat::Auto => "auto",
        LogFormat::Json => "json",
        LogFormat::Human => "human",
    };
    let http = config.http.map(|address| address.to_string());
    let control = config.control.map(|address| address.to_string());
    let mirror = config.mirror.as_ref();
    let keep = mirror.map(|mirror| &mirror.keep);
    let kept = keep.map(|keep| keep.images.iter().map(ToString::to_string));
    let kept: Option<Vec<String>> = kept.map(Iterator::collect);
    vec![
        ("root", json!(config.root)),
        ("socket", json!(config.socket)),
        ("hosts_dirs", json!(cache.hosts_dirs)),
        ("http", json!(http.unwrap_or_default())),
        ("control", json!(control)),
        (
            "mirror",
            json!(mirror.map(|mirror| mirror.address.to_string())),
        ),
        ("keep.images", json!(kept)),
        ("keep.max_bytes", json!(keep.map(|keep| keep.max_bytes))),
        (
            "keep.min_free",
            json!(keep.map(|keep| keep.min_free.to_string())),
        ),
        ("images", json!(images)),
        ("runtime_endpoint", json!(endpoint)),
        ("containerd", json!(config.containerd)),
        ("authfile", json!(cache.authfile)),
        ("platform", json!(cache.platform.to_string())),
        ("pinned", json!(cache.pinned)),
        ("kubeconfig", json!(config.declared.kubeconfig)),
        ("node_name", json!(config.declared.node_name)),
        ("manifests", json!(config.declared.manifests)),
        ("drain_timeout", json!(units::text(config.drain_timeout))),
        (
            "scrub_interval",
            json!(units::text(config.scrub_interval.unwrap_or_default())),
        ),
        ("log.format", json!(format)),
        ("log.level", json!(config.log.level)),
        ("pull.max_layers", json!(cache.max_layers)),
        ("pull.orphan_grace", json!(units::text(cache.orphan_grace))),
        ("registry.max_per_host", json!(cache.max_per_host)),
        (
            "registry.stall_timeout",
            json!(units::text(cache.stall_timeout)),
        ),
        ("registry.attempts", json!(cache.attempts)),
        (
            "registry.max_retry_after",
            json!(units::text(cache.max_retry_after)),
        ),
        ("limits.max_entries", json!(limits.max_entries)),
        ("limits.max_layer_bytes", json!(limits.max_layer_bytes)),
        ("limits.max_ratio", json!(limits.max_ratio)),
        ("limits.max_path", json!(limits.max_path)),
        ("limits.reserved_bytes", json!(limits.reserved_bytes)),
        (
            "limits.reserved",
            json!(
                cache
                    .reserved
                    .map(|band| band.to_string())
                    .unwrap_or_default()
            ),
        ),
        ("limits.background_layers", json!(background.layers)),
        (
            "limits.background_layers_per_registry",
            json!(background.per_registry),
        ),
        (
            "limits.bytes_per_second",
            json!(background.bytes_per_second.unwrap_or_default()),
        ),
        ("limits.throttle_all", json!(background.throttle_all)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::environment;
    use super::*;

    #[test]
    fn every_key_is_shown() {
        let config = Config::load(&AgentArgs::default()).unwrap();
        let mut shown: Vec<_> = values(&config).into_iter().map(|(key, _)| key).collect();
        shown.sort_unstable();
        let mut keys = environment::keys();
        keys.sort_unstable();
        assert_eq!(shown, keys);
    }
}

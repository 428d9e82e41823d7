//! Counters of the use cases. All label values are from fixed sets.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::prune::Cause;
use super::{Error, ErrorKind, LayerSource, Traffic};
use crate::store::Space;

/// Seconds: from a cached pull on loopback to a large image over a slow line.
const PULL_SECONDS: [f64; 13] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Urgency {
    priority: &'static str,
}

const FOREGROUND: Urgency = Urgency {
    priority: "foreground",
};
const BACKGROUND: Urgency = Urgency {
    priority: "background",
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pruning {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    when: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

const SUCCESS: Outcome = Outcome {
    result: "success",
    reason: "",
};
const SOURCES: [&str; 3] = ["registry", "shared", "present"];

/// Counters of this room.
#[derive(Clone, Debug)]
pub struct Metrics {
    pulls: Family<Outcome, Counter<u64, AtomicU64>>,
    duration: Family<Source, Histogram, fn() -> Histogram>,
    inflight: Gauge<i64, AtomicI64>,
    bytes: Family<Source, Counter<u64, AtomicU64>>,
    layers: Family<Source, Counter<u64, AtomicU64>>,
    removed: Counter<u64, AtomicU64>,
    running: Family<Urgency, Gauge<i64, AtomicI64>>,
    layers_running: Family<Urgency, Gauge<i64, AtomicI64>>,
    layers_held: Gauge<i64, AtomicI64>,
    received: Family<Urgency, Counter<u64, AtomicU64>>,
    throttled: Counter<f64, AtomicU64>,
    prune_runs: Family<Pruning, Counter<u64, AtomicU64>>,
    pruned: Family<Pruning, Counter<u64, AtomicU64>>,
    pruned_bytes: Family<Pruning, Counter<u64, AtomicU64>>,
    refused: Family<Refusal, Counter<u64, AtomicU64>>,
    users_known: Gauge<i64, AtomicI64>,
    reserved: Gauge<i64, AtomicI64>,
    disk_size: Gauge<i64, AtomicI64>,
    disk_available: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            pulls: Family::default(),
            duration: Family::new_with_constructor(pull_seconds),
            inflight: Gauge::default(),
            bytes: Family::default(),
            layers: Family::default(),
            removed: Counter::default(),
            running: Family::default(),
            layers_running: Family::default(),
            layers_held: Gauge::default(),
            received: Family::default(),
            throttled: Counter::default(),
            prune_runs: Family::default(),
            pruned: Family::default(),
            pruned_bytes: Family::default(),
            refused: Family::default(),
            users_known: Gauge::default(),
            reserved: Gauge::default(),
            disk_size: Gauge::default(),
            disk_available: Gauge::default(),
        }
    }
}

fn pull_seconds() -> Histogram {
    Histogram::new(PULL_SECONDS)
}

impl Metrics {
    /// Registers this room's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        registry.register(
            "larder_pulls",
            "Pulls that ended, by result and reason",
            metrics.pulls.clone(),
        );
        registry.register(
            "larder_pull_duration_seconds",
            "Duration of successful pulls, by whether layers had to come from a registry",
            metrics.duration.clone(),
        );
        registry.register(
            "larder_pulls_inflight",
            "Pulls under way",
            metrics.inflight.clone(),
        );
        registry.register(
            "larder_pull_bytes",
            "Compressed bytes of the layers of pulled images, by where they came from: registry, shared with another pull, or present already",
            metrics.bytes.clone(),
        );
        registry.register(
            "larder_layers",
            "Layers of pulled images, by where they came from",
            metrics.layers.clone(),
        );
        registry.register(
            "larder_images_removed",
            "Images removed",
            metrics.removed.clone(),
        );
        registry.register(
            "larder_pulls_running",
            "Pulls under way, by whether somebody waits for them",
            metrics.running.clone(),
        );
        registry.register(
            "larder_layers_running",
            "Layers being fetched, by whether somebody waits for them",
            metrics.layers_running.clone(),
        );
        registry.register(
            "larder_layers_held_back",
            "Background layers that stand still while a foreground pull runs",
            metrics.layers_held.clone(),
        );
        registry.register(
            "larder_layer_received_bytes",
            "Compressed layer bytes received, by whether somebody waited for them",
            metrics.received.clone(),
        );
        registry.register(
            "larder_bandwidth_wait_seconds",
            "Time that layers waited for the bandwidth limit",
            metrics.throttled.clone(),
        );
        registry.register(
            "larder_prune_runs",
            "Runs that removed images which nobody named, or found none to remove, by what they were for",
            metrics.prune_runs.clone(),
        );
        registry.register(
            "larder_pruned_images",
            "Images that such runs removed",
            metrics.pruned.clone(),
        );
        registry.register(
            "larder_pruned_bytes",
            "Bytes that they gave back to the file system",
            metrics.pruned_bytes.clone(),
        );
        registry.register(
            "larder_space_refusals",
            "Pulls refused because they would enter the reserved band of the disk, before they began or during the ingest",
            metrics.refused.clone(),
        );
        registry.register(
            "larder_image_users_known",
            "1 while the container runtime tells which images are in use, or where none is asked; 0: nothing is pruned",
            metrics.users_known.clone(),
        );
        registry.register(
            "larder_reserved_bytes",
            "Bytes of the disk that pulls leave free",
            metrics.reserved.clone(),
        );
        registry.register(
            "larder_disk_size_bytes",
            "Size of the file system that the store is on",
            metrics.disk_size.clone(),
        );
        registry.register(
            "larder_disk_available_bytes",
            "Bytes that may still be written to it",
            metrics.disk_available.clone(),
        );
        metrics.users_known.set(1);
        for cause in Cause::ALL {
            let label = Pruning {
                reason: cause.as_str(),
            };
            drop(metrics.prune_runs.get_or_create(&label));
            drop(metrics.pruned.get_or_create(&label));
            drop(metrics.pruned_bytes.get_or_create(&label));
        }
        for when in ["before", "during"] {
            drop(metrics.refused.get_or_create(&Refusal { when }));
        }
        // What is not there yet cannot rise, and no alert sees its first time.
        drop(metrics.pulls.get_or_create(&SUCCESS));
        for source in SOURCES {
            drop(metrics.bytes.get_or_create(&Source { source }));
            drop(metrics.layers.get_or_create(&Source { source }));
        }
        metrics
    }

    pub(super) fn pull_started(&self) {
        self.inflight.inc();
    }

    /// `cached` tells whether the pull was answered without a layer from a registry.
    pub(super) fn pull_ended(&self, outcome: Result<bool, &Error>, took: Duration) {
        self.inflight.dec();
        let (result, reason) = match outcome {
            Ok(_) => ("success", ""),
            Err(error) => match error.kind() {
                ErrorKind::Cancelled => ("cancelled", "cancelled"),
                kind => ("failure", kind.as_str()),
            },
        };
        self.pulls.get_or_create(&Outcome { result, reason }).inc();
        if let Ok(cached) = outcome {
            let source = if cached { "cached" } else { "registry" };
            self.duration
                .get_or_create(&Source { source })
                .observe(took.as_secs_f64());
        }
    }

    pub(super) fn layer(&self, source: LayerSource, bytes: u64) {
        let source = match source {
            LayerSource::Registry => "registry",
            LayerSource::Shared => "shared",
            LayerSource::Present => "present",
            LayerSource::Unknown => return,
        };
        self.layers.get_or_create(&Source { source }).inc();
        self.bytes.get_or_create(&Source { source }).inc_by(bytes);
    }

    pub(super) fn image_removed(&self) {
        self.removed.inc();
    }

    pub(super) fn prune_run(&self, cause: Cause) {
        let reason = cause.as_str();
        self.prune_runs.get_or_create(&Pruning { reason }).inc();
    }

    pub(super) fn pruned(&self, cause: Cause, bytes: u64) {
        let label = Pruning {
            reason: cause.as_str(),
        };
        self.pruned.get_or_create(&label).inc();
        self.pruned_bytes.get_or_create(&label).inc_by(bytes);
    }

    /// `begun`: some of it was written already.
    pub(super) fn refused(&self, begun: bool) {
        let when = if begun { "during" } else { "before" };
        self.refused.get_or_create(&Refusal { when }).inc();
    }

    pub(super) fn users_known(&self, known: bool) {
        self.users_known.set(known.into());
    }

    pub(super) fn reserved(&self, bytes: u64) {
        self.reserved.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn space(&self, space: &Space) {
        let set = |gauge: &Gauge<i64, AtomicI64>, bytes: u64| {
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        };
        set(&self.disk_size, space.capacity);
        set(&self.disk_available, space.available);
    }

    pub(super) fn traffic(&self, traffic: &Traffic) {
        let set = |family: &Family<Urgency, Gauge<i64, AtomicI64>>, urgency, count: usize| {
            family
                .get_or_create(urgency)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set(&self.running, &FOREGROUND, traffic.foreground_pulls);
        set(&self.running, &BACKGROUND, traffic.background_pulls);
        set(&self.layers_running, &FOREGROUND, traffic.foreground_layers);
        set(&self.layers_running, &BACKGROUND, traffic.background_layers);
        self.layers_held
            .set(i64::try_from(traffic.held_back).unwrap_or(i64::MAX));
    }

    pub(super) fn received(&self, foreground: bool, bytes: u64) {
        let urgency = if foreground { &FOREGROUND } else { &BACKGROUND };
        self.received.get_or_create(urgency).inc_by(bytes);
    }

    pub(super) fn throttled(&self, waited: Duration) {
        self.throttled.inc_by(waited.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_of_the_dashboards() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.pull_started();
        metrics.pull_ended(Ok(true), Duration::from_millis(20));
        metrics.pull_started();
        metrics.pull_ended(Ok(false), Duration::from_secs(2));
        metrics.pull_started();
        let cancelled = Error::Cancelled {
            reference: "a".into(),
        };
        metrics.pull_ended(Err(&cancelled), Duration::ZERO);
        metrics.pull_started();
        metrics.pull_ended(Err(&Error::Invalid("b".into())), Duration::ZERO);
        metrics.pull_started();
        metrics.layer(LayerSource::Registry, 10);
        metrics.layer(LayerSource::Present, 20);
        metrics.layer(LayerSource::Shared, 30);
        metrics.layer(LayerSource::Unknown, 40);
        metrics.image_removed();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"larder_pulls_total{result="success",reason=""} 2"#,
            r#"larder_pulls_total{result="cancelled",reason="cancelled"} 1"#,
            r#"larder_pulls_total{result="failure",reason="invalid"} 1"#,
            r#"larder_pull_duration_seconds_bucket{le="0.05",source="cached"} 1"#,
            r#"larder_pull_duration_seconds_count{source="registry"} 1"#,
            "larder_pulls_inflight 1",
            r#"larder_pull_bytes_total{source="registry"} 10"#,
            r#"larder_pull_bytes_total{source="present"} 20"#,
            r#"larder_pull_bytes_total{source="shared"} 30"#,
            r#"larder_layers_total{source="shared"} 1"#,
            "larder_images_removed_total 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}

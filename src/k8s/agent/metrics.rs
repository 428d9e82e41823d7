//! Metrics of the agent's Kubernetes side.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::watch::{Trouble, Watched};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Result {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Restart {
    resource: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Resource {
    resource: &'static str,
}

/// Counters and gauges. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    images: Family<State, Gauge>,
    pulls: Family<Result, Counter>,
    writes: Family<Result, Counter>,
    restarts: Family<Restart, Counter>,
    malformed: Family<Resource, Counter>,
    synced: Gauge,
    prunes: Family<Result, Counter>,
    pruned_images: Counter,
    pruned_bytes: Counter,
}

/// Images that prepulls make this node hold, by how far they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageCounts {
    /// Held.
    pub(super) ready: u64,
    /// Being pulled.
    pub(super) pulling: u64,
    /// Missing, and not started.
    pub(super) pending: u64,
    /// Missing after their retries.
    pub(super) failed: u64,
    /// Of prepulls that no longer count here, until retention ends.
    pub(super) retained: u64,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        registry.register(
            "larder_prepull_images",
            "Images that prepulls make this node hold, by state",
            metrics.images.clone(),
        );
        registry.register(
            "larder_prepull_pulls",
            "Pulls for prepulls that ended, by result",
            metrics.pulls.clone(),
        );
        registry.register(
            "larder_node_image_cache_writes",
            "Writes of this node's NodeImageCache, by result",
            metrics.writes.clone(),
        );
        registry.register(
            "larder_watch_restarts",
            "Lists and watches that ended badly, by resource and reason",
            metrics.restarts.clone(),
        );
        registry.register(
            "larder_malformed_objects",
            "Objects and events of the API server that could not be read, by resource",
            metrics.malformed.clone(),
        );
        registry.register(
            "larder_api_synced",
            "1 while all declared objects have been seen and are followed",
            metrics.synced.clone(),
        );
        registry.register(
            "larder_policy_runs",
            "Runs of prune policies that ended, by result",
            metrics.prunes.clone(),
        );
        registry.register(
            "larder_policy_removed_images",
            "Images that prune policies removed",
            metrics.pruned_images.clone(),
        );
        registry.register(
            "larder_policy_freed_bytes",
            "Bytes that these removals freed",
            metrics.pruned_bytes.clone(),
        );
        metrics
    }

    pub(super) fn set_images(&self, counts: ImageCounts) {
        for (state, count) in [
            ("ready", counts.ready),
            ("pulling", counts.pulling),
            ("pending", counts.pending),
            ("failed", counts.failed),
            ("retained", counts.retained),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.images.get_or_create(&State { state }).set(count);
        }
    }

    pub(super) fn set_synced(&self, synced: bool) {
        self.synced.set(synced.into());
    }

    pub(super) fn pulled(&self, result: &'static str) {
        self.pulls.get_or_create(&Result { result }).inc();
    }

    pub(super) fn pruned(&self, result: &'static str) {
        self.prunes.get_or_create(&Result { result }).inc();
    }

    pub(super) fn removed(&self, bytes: u64) {
        self.pruned_images.inc();
        self.pruned_bytes.inc_by(bytes);
    }

    pub(super) fn written(&self, result: &'static str) {
        self.writes.get_or_create(&Result { result }).inc();
    }

    pub(super) fn restart(&self, watched: Watched, trouble: Trouble) {
        let labels = Restart {
            resource: watched.as_str(),
            reason: trouble.as_str(),
        };
        self.restarts.get_or_create(&labels).inc();
    }

    pub(super) fn malformed(&self, watched: Watched) {
        let labels = Resource {
            resource: watched.as_str(),
        };
        self.malformed.get_or_create(&labels).inc();
    }
}

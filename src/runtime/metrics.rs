//! Calls to the runtime. All label values are from fixed sets.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    method: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// Counters of this room.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<Outcome, Counter<u64, AtomicU64>>,
    duration: Family<Method, Histogram, fn() -> Histogram>,
    registered: Family<Known, Gauge<u64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Known {
    state: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            calls: Family::default(),
            duration: Family::new_with_constructor(seconds),
            registered: Family::default(),
        }
    }
}

/// From a list on an idle node to a pull of a large image.
fn seconds() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0, 1800.0])
}

impl Metrics {
    /// Registers this room's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        registry.register(
            "larder_runtime_calls",
            "Calls to the container runtime, by method and result",
            metrics.calls.clone(),
        );
        registry.register(
            "larder_runtime_call_duration_seconds",
            "Duration of calls to the container runtime",
            metrics.duration.clone(),
        );
        registry.register(
            "larder_containerd_images",
            "Images of the cache by whether containerd knows all their names",
            metrics.registered.clone(),
        );
        metrics
    }

    /// How many images of the cache containerd knows, and how many it does not know yet.
    pub fn registered(&self, known: usize, missing: usize) {
        for (state, count) in [("known", known), ("missing", missing)] {
            let gauge = self.registered.get_or_create_owned(&Known { state });
            gauge.set(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }

    pub(super) fn call(&self, method: &'static str, result: &'static str, took: Duration) {
        self.calls.get_or_create(&Outcome { method, result }).inc();
        self.duration
            .get_or_create(&Method { method })
            .observe(took.as_secs_f64());
    }
}

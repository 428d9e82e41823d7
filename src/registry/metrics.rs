//! Metrics of this room.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::error::ErrorClass;

/// Hosts that get a label of their own; the rest share `other`.
const MAX_HOSTS: usize = 64;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answer {
    host: String,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Failed {
    host: String,
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// Counters of this room.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<Answer, Counter>,
    errors: Family<Failed, Counter>,
    durations: Family<Kind, Histogram>,
    fetched: Counter,
    resumes: Counter,
    hosts: Arc<Mutex<BTreeSet<String>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            requests: Family::default(),
            errors: Family::default(),
            durations: Family::new_with_constructor(|| {
                Histogram::new([
                    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
                ])
            }),
            fetched: Counter::default(),
            resumes: Counter::default(),
            hosts: Arc::default(),
        }
    }
}

impl Metrics {
    /// Registers this room's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "larder_registry_requests",
            "Answers of registries, by host and status code",
            metrics.requests.clone(),
        );
        registry.register(
            "larder_registry_errors",
            "Requests that failed for good, by host and class",
            metrics.errors.clone(),
        );
        registry.register(
            "larder_registry_request_duration_seconds",
            "Time until a registry's answer begins",
            metrics.durations.clone(),
        );
        registry.register(
            "larder_fetch_bytes",
            "Bytes of blobs received from registries",
            metrics.fetched.clone(),
        );
        registry.register(
            "larder_fetch_resumes",
            "Broken transfers that were taken up again",
            metrics.resumes.clone(),
        );
        metrics
    }

    fn host(&self, host: &str) -> String {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.contains(host) || hosts.len() < MAX_HOSTS {
            hosts.insert(host.to_owned());
            host.to_owned()
        } else {
            "other".to_owned()
        }
    }

    pub(super) fn answered(&self, host: &str, code: u16, kind: &'static str, time: Duration) {
        let answer = Answer {
            host: self.host(host),
            code: code.to_string(),
        };
        self.requests.get_or_create_owned(&answer).inc();
        self.durations
            .get_or_create_owned(&Kind { kind })
            .observe(time.as_secs_f64());
    }

    pub(super) fn failed(&self, host: &str, class: ErrorClass) {
        let failed = Failed {
            host: self.host(host),
            class: class.label(),
        };
        self.errors.get_or_create_owned(&failed).inc();
    }

    pub(super) fn fetched(&self, bytes: u64) {
        self.fetched.inc_by(bytes);
    }

    pub(super) fn resumed(&self) {
        self.resumes.inc();
    }
}

//! Counters of this room. Host labels are bounded.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Error;

/// More hosts than this are counted as `other`.
const MAX_HOSTS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    host: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    host: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Counters of this room.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    durations: Family<KindLabels, Histogram, fn() -> Histogram>,
    bytes: Counter,
    resumes: Counter,
    hosts: Arc<Mutex<HashSet<String>>>,
}

/// From a registry on the same node to one that is about to time out.
fn durations() -> Histogram {
    Histogram::new([0.002, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            requests: Family::default(),
            errors: Family::default(),
            durations: Family::new_with_constructor(durations),
            bytes: Counter::default(),
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
            "Answers of registries by host and status code",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "larder_registry_request_duration",
            "Time from a request to the head of its answer, by kind of request",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register(
            "larder_registry_errors",
            "Requests that failed after all attempts, by host and class",
            metrics.errors.clone(),
        );
        registry.register_with_unit(
            "larder_fetch",
            "Blob bytes received from registries",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        registry.register(
            "larder_fetch_resumes",
            "Blob transfers taken up again after a break",
            metrics.resumes.clone(),
        );
        metrics
    }

    fn host(&self, host: &str) -> String {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.contains(host) {
            if hosts.len() >= MAX_HOSTS {
                return "other".to_owned();
            }
            hosts.insert(host.to_owned());
        }
        host.to_owned()
    }
    pub(super) fn answered(&self, host: &str, code: u16, kind: &'static str, took: Duration) {
        self.requests
            .get_or_create(&RequestLabels {
                host: self.host(host),
                code: code.to_string(),
            })
            .inc();
        self.durations
            .get_or_create(&KindLabels { kind })
            .observe(took.as_secs_f64());
    }
    pub(super) fn failed(&self, host: &str, error: &Error) {
        self.errors
            .get_or_create(&ErrorLabels {
                host: self.host(host),
                class: error.class().as_str(),
            })
            .inc();
    }
    pub(super) fn received(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }
    pub(super) fn resumed(&self) {
        self.resumes.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented_and_hosts_are_bounded() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        for n in 0..100 {
            metrics.answered(&format!("h{n}"), 200, "resolve", Duration::from_millis(3));
        }
        metrics.failed(
            "h0",
            &Error::new(super::super::ErrorClass::NotFound, "no such tag"),
        );
        metrics.received(10);
        metrics.resumed();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for wanted in [
            "larder_registry_requests_total{host=\"h0\",code=\"200\"} 1",
            "larder_registry_requests_total{host=\"other\",code=\"200\"} 36",
            "larder_registry_request_duration_seconds_count{kind=\"resolve\"} 100",
            "larder_registry_errors_total{host=\"h0\",class=\"not_found\"} 1",
            "larder_fetch_bytes_total 10",
            "larder_fetch_resumes_total 1",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }
}

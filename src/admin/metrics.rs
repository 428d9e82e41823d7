//! Readiness as a metric: what `/readyz` answers, for alerts. Read when it is scraped, kept nowhere.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::lifecycle::Readiness;

/// The metric of this room.
#[derive(Debug)]
pub struct Metrics {
    readiness: Readiness,
}

impl Metrics {
    /// Registers it. The checks are the process's own few, so the label is bounded.
    pub fn register(registry: &mut Registry, readiness: &Readiness) {
        let readiness = readiness.clone();
        registry.register_collector(Box::new(Metrics { readiness }));
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "larder_ready",
            "1 for each condition of readiness that is met, 0 for each that is not",
            None,
            MetricType::Gauge,
        )?;
        for (check, met) in self.readiness.state() {
            let gauge = ConstGauge::new(i64::from(met));
            gauge.encode(family.encode_family(&[("check", check)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{TextForm, encode};

    #[test]
    fn shows_each_condition() {
        let readiness = Readiness::new();
        readiness.check("store").set(true);
        readiness.check("socket");
        let mut registry = Registry::default();
        Metrics::register(&mut registry, &readiness);
        let text = encode(&registry, TextForm::Prometheus).unwrap();
        assert!(text.contains("larder_ready{check=\"store\"} 1\n"), "{text}");
        assert!(
            text.contains("larder_ready{check=\"socket\"} 0\n"),
            "{text}"
        );
        readiness.stop();
        let text = encode(&registry, TextForm::OpenMetrics).unwrap();
        assert!(
            text.contains("larder_ready{check=\"stopping\"} 0\n"),
            "{text}"
        );
    }
}

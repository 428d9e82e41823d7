//! Counters of the mirror. All label values are from fixed sets.

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::cache::Origin;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Manifest,
    Blob,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    kind: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sent {
    origin: &'static str,
}

/// Of the mirror.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Family<Answered, Counter>,
    sent: Family<Sent, Counter>,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        registry.register(
            "larder_mirror_requests",
            "Requests of container runtimes that the mirror answered, by what was asked for and HTTP status",
            metrics.requests.clone(),
        );
        registry.register(
            "larder_mirror_sent_bytes",
            "Bytes of blobs that the mirror gave out, by where they were: local, shared (somebody else was fetching them), registry",
            metrics.sent.clone(),
        );
        for origin in [Origin::Local, Origin::Shared, Origin::Registry] {
            metrics.sent(origin, 0);
        }
        metrics
    }

    pub(super) fn answered(&self, kind: Kind, status: StatusCode) {
        let kind = match kind {
            Kind::Manifest => "manifest",
            Kind::Blob => "blob",
            Kind::Other => "other",
        };
        let code = status.as_u16();
        self.requests
            .get_or_create_owned(&Answered { kind, code })
            .inc();
    }

    pub(super) fn sent(&self, origin: Origin, bytes: u64) {
        let origin = match origin {
            Origin::Local => "local",
            Origin::Shared => "shared",
            Origin::Registry => "registry",
        };
        self.sent
            .get_or_create_owned(&Sent { origin })
            .inc_by(bytes);
    }
}

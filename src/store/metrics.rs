//! Metrics of this room.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::snapshot::SnapshotKind;
use super::types::{FsckReport, Usage};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Op {
    op: &'static str,
}

type Bytes = Gauge<u64, AtomicU64>;

/// Of damage.
const KINDS: [&str; 7] = [
    "database", "pack", "layer", "blob", "orphan", "segment", "other",
];

/// Counters of this room.
#[derive(Clone, Debug)]
pub struct Metrics {
    bytes: Family<Kind, Bytes>,
    images: Bytes,
    layers: Bytes,
    segments: Bytes,
    snapshots: Family<Kind, Bytes>,
    mounted: Bytes,
    dedup_saved: Counter,
    gc_freed: Counter,
    gc_layers: Counter,
    damaged: Family<Kind, Counter>,
    scrubbed: Counter,
    ops: Family<Op, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            bytes: Family::default(),
            images: Gauge::default(),
            layers: Gauge::default(),
            segments: Gauge::default(),
            snapshots: Family::default(),
            mounted: Gauge::default(),
            dedup_saved: Counter::default(),
            gc_freed: Counter::default(),
            gc_layers: Counter::default(),
            damaged: Family::default(),
            scrubbed: Counter::default(),
            ops: Family::new_with_constructor(|| {
                Histogram::new([
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
                    600.0,
                ])
            }),
        }
    }
}

impl Metrics {
    /// Registers this room's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, metric: &dyn Fn(&mut Registry, &str, &str)| {
            metric(registry, name, help);
        };
        let m = metrics.clone();
        add(
            "larder_store_bytes",
            "Bytes of the store: stored is what it occupies on disk, logical the sum of its layers' contents, kept what the mirror keeps",
            &|r, n, h| r.register(n, h, m.bytes.clone()),
        );
        add("larder_store_images", "Visible images", &|r, n, h| {
            r.register(n, h, m.images.clone());
        });
        add("larder_store_layers", "Layers in the store", &|r, n, h| {
            r.register(n, h, m.layers.clone());
        });
        add(
            "larder_store_segments",
            "Files that hold the contents of layers",
            &|r, n, h| {
                r.register(n, h, m.segments.clone());
            },
        );
        add(
            "larder_snapshots",
            "Snapshots that a container runtime has, by kind: active ones are those of containers",
            &|r, n, h| r.register(n, h, m.snapshots.clone()),
        );
        add(
            "larder_store_mounts",
            "Layers that are mounted, each once for all containers that have it",
            &|r, n, h| r.register(n, h, m.mounted.clone()),
        );
        add(
            "larder_dedup_saved_bytes",
            "Content bytes that ingests found in the store already",
            &|r, n, h| r.register(n, h, m.dedup_saved.clone()),
        );
        add(
            "larder_gc_freed_bytes",
            "Bytes given back to the file system",
            &|r, n, h| r.register(n, h, m.gc_freed.clone()),
        );
        add(
            "larder_gc_removed_layers",
            "Layers removed because no image used them",
            &|r, n, h| r.register(n, h, m.gc_layers.clone()),
        );
        add(
            "larder_fsck_damaged",
            "Damage found by verification, by kind of what is damaged",
            &|r, n, h| r.register(n, h, m.damaged.clone()),
        );
        add(
            "larder_scrub_bytes",
            "Bytes hashed again by the background scrub",
            &|r, n, h| r.register(n, h, m.scrubbed.clone()),
        );
        add(
            "larder_store_op_duration_seconds",
            "Duration of store operations that touch the disk, by operation",
            &|r, n, h| r.register(n, h, m.ops.clone()),
        );
        // What is not there yet cannot rise, and no alert sees its first time.
        for kind in KINDS {
            metrics.damaged.get_or_create_owned(&Kind { kind });
        }
        metrics
    }

    pub(super) fn usage(&self, usage: &Usage) {
        let bytes = |kind| self.bytes.get_or_create_owned(&Kind { kind });
        bytes("stored").set(usage.stored_bytes);
        bytes("logical").set(usage.logical_bytes);
        bytes("kept").set(usage.kept_bytes);
        self.images.set(usage.images);
        self.layers.set(usage.layers);
        self.segments.set(usage.segments);
    }

    pub(super) fn snapshots(&self, counts: &[(SnapshotKind, u64)]) {
        for (kind, count) in counts {
            let kind = match kind {
                SnapshotKind::View => "view",
                SnapshotKind::Active => "active",
                SnapshotKind::Committed => "committed",
            };
            let gauge = self.snapshots.get_or_create_owned(&Kind { kind });
            gauge.set(*count);
        }
    }

    pub(super) fn mounted(&self, count: usize) {
        self.mounted.set(u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(super) fn saved(&self, bytes: u64) {
        self.dedup_saved.inc_by(bytes);
    }

    pub(super) fn freed(&self, bytes: u64, layers: u64) {
        self.gc_freed.inc_by(bytes);
        self.gc_layers.inc_by(layers);
    }

    pub(super) fn scrubbed(&self, bytes: u64) {
        self.scrubbed.inc_by(bytes);
    }

    pub(super) fn found(&self, report: &FsckReport) {
        for damage in &report.damaged {
            let kind = KINDS
                .into_iter()
                .find(|kind| *kind == damage.kind)
                .unwrap_or("other");
            self.damaged.get_or_create_owned(&Kind { kind }).inc();
        }
    }

    pub(super) fn took(&self, op: &'static str, time: Duration) {
        self.ops
            .get_or_create_owned(&Op { op })
            .observe(time.as_secs_f64());
    }
}

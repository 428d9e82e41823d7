//! The controller's metrics. Labels are closed sets: no node, no prepull, no image.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::board::Totals;
use super::prune::PruneTotals;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabel {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// What the controller counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    nodes: Family<StateLabel, Gauge>,
    prepulls: Gauge,
    stalled: Gauge,
    unresolved: Gauge,
    prune_nodes: Family<StateLabel, Gauge>,
    policies: Gauge,
    leader: Gauge,
    waiting: Gauge,
    resolves: Family<ResultLabel, Counter>,
    resolve_seconds: Histogram,
    writes: Family<WriteLabel, Counter>,
    reconcile_seconds: Histogram,
    malformed: Family<KindLabel, Counter>,
    broken: Family<KindLabel, Counter>,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            nodes: Family::default(),
            prepulls: Gauge::default(),
            stalled: Gauge::default(),
            unresolved: Gauge::default(),
            prune_nodes: Family::default(),
            policies: Gauge::default(),
            leader: Gauge::default(),
            waiting: Gauge::default(),
            resolves: Family::default(),
            resolve_seconds: Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0]),
            writes: Family::default(),
            reconcile_seconds: Histogram::new([
                0.000_01, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0,
            ]),
            malformed: Family::default(),
            broken: Family::default(),
        };
        registry.register(
            "larder_prepull_nodes",
            "Nodes of all prepulls together, by how far they are; a node counts once for each prepull that chooses it",
            metrics.nodes.clone(),
        );
        registry.register(
            "larder_prepulls",
            "Prepulls of both kinds",
            metrics.prepulls.clone(),
        );
        registry.register(
            "larder_prepulls_stalled",
            "Prepulls whose rollout was stopped by its failure budget or deadline",
            metrics.stalled.clone(),
        );
        registry.register(
            "larder_prepulls_unresolved",
            "Prepulls of which an image has no digest",
            metrics.unresolved.clone(),
        );
        registry.register(
            "larder_prune_nodes",
            "Nodes of all prune policies together, by how far they are; a node counts once for each policy that chooses it",
            metrics.prune_nodes.clone(),
        );
        registry.register(
            "larder_prune_policies",
            "Prune policies",
            metrics.policies.clone(),
        );
        registry.register(
            "larder_leader",
            "1 on the replica that leads",
            metrics.leader.clone(),
        );
        registry.register(
            "larder_resolve_waiting",
            "Lookups of tags that wait or are under way",
            metrics.waiting.clone(),
        );
        registry.register(
            "larder_resolves",
            "Lookups of tags, by result or reason of failure",
            metrics.resolves.clone(),
        );
        registry.register(
            "larder_resolve_duration_seconds",
            "Time that a lookup of a tag took",
            metrics.resolve_seconds.clone(),
        );
        registry.register(
            "larder_api_writes",
            "Writes to the API server, by kind of object and result",
            metrics.writes.clone(),
        );
        registry.register(
            "larder_reconcile_duration_seconds",
            "Time that deciding took after a change or a pause",
            metrics.reconcile_seconds.clone(),
        );
        registry.register(
            "larder_malformed_objects",
            "Objects that were skipped because they could not be read",
            metrics.malformed.clone(),
        );
        registry.register(
            "larder_watch_errors",
            "Times that a watch broke or could not be started",
            metrics.broken.clone(),
        );
        metrics
    }

    pub(super) fn lead(&self, leading: bool) {
        self.leader.set(i64::from(leading));
    }

    pub(super) fn totals(&self, totals: &Totals, waiting: usize) {
        let set = |state, number: u64| {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            self.nodes.get_or_create(&StateLabel { state }).set(number);
        };
        set("desired", totals.desired);
        set("admitted", totals.admitted);
        set("ready", totals.ready);
        set("failed", totals.failed);
        set("unreachable", totals.unreachable);
        let gauge = |gauge: &Gauge, number: u64| {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        gauge(&self.prepulls, totals.prepulls);
        gauge(&self.stalled, totals.stalled);
        gauge(&self.unresolved, totals.unresolved);
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    pub(super) fn prune_totals(&self, totals: &PruneTotals) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for (state, number) in [
            ("desired", totals.desired),
            ("admitted", totals.admitted),
            ("done", totals.done),
            ("failed", totals.failed),
            ("unreachable", totals.unreachable),
        ] {
            let gauge = self.prune_nodes.get_or_create(&StateLabel { state });
            gauge.set(signed(number));
        }
        self.policies.set(signed(totals.policies));
    }

    pub(super) fn resolved(&self, result: &'static str, seconds: f64) {
        self.resolves.get_or_create(&ResultLabel { result }).inc();
        self.resolve_seconds.observe(seconds);
    }

    pub(super) fn wrote(&self, kind: &'static str, result: &'static str) {
        self.writes
            .get_or_create(&WriteLabel { kind, result })
            .inc();
    }

    pub(super) fn reconciled(&self, seconds: f64) {
        self.reconcile_seconds.observe(seconds);
    }

    pub(super) fn malformed(&self, kind: &'static str) {
        self.malformed.get_or_create(&KindLabel { kind }).inc();
    }

    pub(super) fn broken(&self, kind: &'static str) {
        self.broken.get_or_create(&KindLabel { kind }).inc();
    }
}

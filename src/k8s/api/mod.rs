//! The four kinds of `larder.dev/v1alpha1`, and the pure words that agent and controller must agree on: which nodes a
//! prepull chooses, a node's slot in a rollout, times of day, durations, percentages, names of conditions and reasons.
//!
//! Values only: no client, no clock, no io. The Rust types are the source of the CRDs (`larder crds`).

mod amount;
mod crds;
mod duration;
mod names;
mod node_image_cache;
mod percent;
mod prepull;
mod prune;
mod prune_rules;
mod schema;
mod selector;
mod slot;
mod window;

pub use amount::{Amount, AmountError};
pub use crds::crds;
pub use duration::{DurationError, parse_duration};
pub use names::{
    AGENT_MANAGER, CATEGORY, CONTROLLER_MANAGER, CONTROLLER_NAME, DEFAULT_NAMESPACE, GROUP,
    VERSION, condition, reason,
};
pub use node_image_cache::{
    EmergencyReport, HeldPrepull, HoldState, ImageFailure, Inventory, MAX_REPORTED, NodeImageCache,
    NodeImageCacheStatus, PruneReport, PruneState, PruneTop, StoreFigures,
};
pub use percent::{IntOrPercent, PercentError};
pub use prepull::{
    ClusterImagePrepull, ClusterImagePrepullSpec, ClusterWorkload, Gate, ImagePrepull,
    ImagePrepullSpec, LocalSecret, MAX_FAILURES, MAX_IMAGES, Mode, NodeCounts, PrepullFailure,
    PrepullStatus, ResolvedImage, Rollout, RolloutStatus, SecretRef, SharedPrepullSpec, Taints,
    Visibility, Window, Workload,
};
pub use prune::{
    ImagePrunePolicy, ImagePrunePolicySpec, ImagePrunePolicyStatus, MatchImages, PruneCounts,
    PruneMode, PruneRule, PruneSchedule, PrunedImage,
};
pub use prune_rules::PolicyFault;
pub use selector::{
    LabelSelector, NodeFacts, NodeSelectorRequirement, NodeSelectorTerm, Requirement, Taint,
};
pub use slot::{ALL, NOBODY, Slot, slot};
pub use window::{Opening, TimeWindow, WindowError};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_structural_schema() {
        for crd in crds() {
            let version = crd.spec.versions.first().unwrap();
            let schema = version.schema.as_ref().unwrap();
            assert!(
                schema.open_api_v3_schema.is_some(),
                "{}",
                crd.spec.names.kind
            );
        }
    }

    #[test]
    fn the_contracts_example_is_read() {
        let object: ClusterImagePrepull = serde_saphyr::from_str(
            "apiVersion: larder.dev/v1alpha1\nkind: ClusterImagePrepull\nmetadata: {name: base}\nspec:\n  \
             images: ['registry.example/app:1.2']\n  nodeSelector: {matchLabels: {pool: gpu}}\n  \
             rollout: {maxInFlight: 10%, paused: false, maxFailures: 5}\n  refreshInterval: 1h\n",
        )
        .unwrap();
        let shared = &object.spec.shared;
        assert_eq!(shared.images, ["registry.example/app:1.2"]);
        let in_flight = shared.rollout.max_in_flight.as_ref().unwrap();
        assert_eq!(in_flight.of(12), Ok(2));
        assert_eq!(shared.rollout.max_failures, Some(IntOrPercent::Int(5)));
        let node = NodeFacts::default();
        assert!(!shared.selects(&node));
    }
}

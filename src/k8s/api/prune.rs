//! What may be removed from nodes: `ImagePrunePolicy`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::amount::Amount;
use super::percent::IntOrPercent;
use super::prepull::{PrepullFailure, Rollout, RolloutStatus, Window};
use super::selector::LabelSelector;

/// Which images may go, from which nodes, and when.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "ImagePrunePolicy",
    plural = "imageprunepolicies",
    singular = "imageprunepolicy",
    shortname = "iprune",
    category = "larder",
    status = "ImagePrunePolicyStatus",
    doc = "Which unused images nodes may remove, and when.",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode","description":"Whether anything is removed"}"#,
    printcolumn = r#"{"name":"Nodes","type":"integer","jsonPath":".status.nodes.desired","description":"Nodes that the spec chooses"}"#,
    printcolumn = r#"{"name":"Done","type":"integer","jsonPath":".status.nodes.done","description":"Nodes that finished a run"}"#,
    printcolumn = r#"{"name":"Removed","type":"integer","jsonPath":".status.removedImages","description":"Images removed by the last runs"}"#,
    printcolumn = r#"{"name":"Would-Remove","type":"integer","jsonPath":".status.wouldRemoveImages","description":"Images that would go"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","description":"Why it is ready, or not"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.nodes.failed","description":"Nodes whose last run failed","priority":1}"#,
    printcolumn = r#"{"name":"Freed","type":"integer","jsonPath":".status.freedBytes","description":"Bytes freed by them","priority":1}"#,
    printcolumn = r#"{"name":"Would-Free","type":"integer","jsonPath":".status.wouldFreeBytes","description":"Bytes that would be freed","priority":1}"#,
    printcolumn = r#"{"name":"Stalled","type":"string","jsonPath":".status.conditions[?(@.type==\"Stalled\")].reason","description":"Why the rollout stopped","priority":1}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message","description":"For people","priority":1}"#,
    printcolumn = r#"{"name":"Last-Run","type":"date","jsonPath":".status.lastRunTime"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    selectable = ".spec.mode",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["rules"]))]
pub struct ImagePrunePolicySpec {
    /// `DryRun`: nodes report what they would remove. `Enforce`: they remove it. Default `DryRun`.
    pub mode: PruneMode,
    /// Nodes by their labels. Absent: every node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// In order; 1 to 16. An image goes when one of them selects it and nothing protects it: use by a container, a pin, or a
    /// prepull.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<PruneRule>,
    /// When nodes look. Absent: whenever their images or their disks change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<PruneSchedule>,
    /// Images that one run removes from one node at most: 1 to 10000. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_removals_per_run: Option<i32>,
    /// How a change of the spec reaches the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// When nodes look for what they may remove; at least one of both. The emergency of a full disk waits for neither.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.interval) || has(self.window)",
    "message": "give interval, window, or both",
}]))]
pub struct PruneSchedule {
    /// How long after a run the next one begins: 1m to 720h, such as `6h`. Absent: once in each window.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::prune_interval")]
    pub interval: Option<String>,
    /// When runs may begin. Absent: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// Whether anything is removed.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum PruneMode {
    /// Nodes report what they would remove.
    #[default]
    DryRun,
    /// Nodes remove.
    Enforce,
}

/// One rule of a policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.unusedFor) || has(self.keepLast) || has(self.maxUsedBytes) || has(self.minFree) || has(self.reserved)",
    "message": "a rule needs at least one of unusedFor, keepLast, maxUsedBytes, minFree and reserved",
}]))]
pub struct PruneRule {
    /// The images that the rule is about. Absent: all.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub images: Option<MatchImages>,
    /// Selects images that were not used for so long: 1m to 87600h, such as `24h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::unused_for")]
    pub unused_for: Option<String>,
    /// Protects the newest of each repository from this rule, by the time they were pulled: 0 to 1000. Alone it selects
    /// the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_last: Option<i32>,
    /// Selects the longest unused images while images use more than this: bytes, such as `100Gi`, or a share of the file
    /// system, such as `60%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::amount")]
    pub max_used_bytes: Option<Amount>,
    /// Selects the longest unused images while less than this is free: bytes or a share of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::amount")]
    pub min_free: Option<Amount>,
    /// Bytes or a share of the file system that pulls never enter: one that would is refused with `InsufficientSpace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::amount")]
    pub reserved: Option<Amount>,
}

/// Images that a rule is about; everything given must hold.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MatchImages {
    /// Patterns of names, of which one must match; 64 at most. `*` stands for any characters but `/`, `**` for any, and
    /// `*` alone is every image. A pattern without tag means all tags of a repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::patterns")]
    pub images: Vec<String>,
    /// Labels of the image's config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelSelector>,
    /// Namespaces, of which one had an `ImagePrepull` that declared the image; 64 at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::namespaces")]
    pub namespaces: Vec<String>,
}

/// What a policy did. Written by the controller alone.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImagePrunePolicyStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes, counted.
    pub nodes: PruneCounts,
    /// What is being rolled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// When a node last finished a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run_time: Option<Time>,
    /// Images removed by the last runs of all nodes.
    pub removed_images: i64,
    /// Bytes freed by them.
    pub freed_bytes: i64,
    /// Images that would go: where the mode is `DryRun`, and on nodes that are not admitted yet.
    pub would_remove_images: i64,
    /// Bytes that would be freed by them.
    pub would_free_bytes: i64,
    /// What went, or would go, the most bytes first; ten at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub top: Vec<PrunedImage>,
    /// What keeps nodes from finishing; ten at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failures: Vec<PrepullFailure>,
    /// `Ready`, `Progressing`, `Stalled`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Nodes, counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PruneCounts {
    /// Chosen by the spec.
    pub desired: i64,
    /// Let in by the rollout.
    pub admitted: i64,
    /// Finished a run of the current revision.
    pub done: i64,
    /// Ended their last run with an error.
    pub failed: i64,
    /// Not ready, or silent, for ten minutes.
    pub unreachable: i64,
}

/// An image that went from nodes, or would go.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrunedImage {
    /// One of its names.
    #[schemars(length(max = 512))]
    pub image: String,
    /// The rule that selected it.
    #[schemars(length(max = 128))]
    pub rule: String,
    /// Nodes that name it among their largest.
    pub nodes: i64,
    /// On these nodes together.
    pub bytes: i64,
}

impl Rollout {
    /// What `maxInFlight` is when nobody says.
    pub fn default_share() -> IntOrPercent {
        IntOrPercent::Percent("10%".to_owned())
    }
}

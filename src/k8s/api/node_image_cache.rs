//! What one node reports: `NodeImageCache`, named as its Node and owned by it. A summary without a list of images:
//! that comes from the node's agent.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Prepulls of one report: what counts nodes sees no others. At 500 of them a report is some 60 KB.
pub const MAX_REPORTED: usize = 1024;

/// Images held by one node, in figures. Written by that node's agent alone.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "NodeImageCache",
    plural = "nodeimagecaches",
    singular = "nodeimagecache",
    shortname = "nimg",
    category = "larder",
    status = "NodeImageCacheStatus",
    doc = "Images held by one node, in figures. Named as its Node; written by that node's agent.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status","description":"Whether the node serves and holds what it should"}"#,
    printcolumn = r#"{"name":"Images","type":"integer","jsonPath":".status.inventory.images","description":"Images held"}"#,
    printcolumn = r#"{"name":"Stored","type":"integer","jsonPath":".status.store.storedBytes","description":"Bytes that they occupy"}"#,
    printcolumn = r#"{"name":"Free","type":"integer","jsonPath":".status.store.availableBytes","description":"Bytes free on the file system"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","description":"Why it is ready, or not"}"#,
    printcolumn = r#"{"name":"Pressure","type":"string","jsonPath":".status.conditions[?(@.type==\"DiskPressure\")].status","description":"Whether the store is short of space","priority":1}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.agentVersion","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    no_spec,
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct NodeImageCacheSpec {}

/// What a node reports.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeImageCacheStatus {
    /// Version of the agent.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub agent_version: String,
    /// When the report was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_time: Option<Time>,
    /// Bytes and counts of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreFigures>,
    /// Tells whether the list of images changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// The prepulls that choose this node; 1024 at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub prepulls: Vec<HeldPrepull>,
    /// How many more there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub prepulls_omitted: i64,
    /// Images that could not be pulled; ten at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failures: Vec<ImageFailure>,
    /// Prune policies that choose the node, by name, with their last runs; 64 at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub prunes: Vec<PruneReport>,
    /// The last time that images went, or should have gone, because the disk was nearly full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emergency: Option<EmergencyReport>,
    /// `Ready`, `StoreHealthy`, `DiskPressure`, `ApiSynced`; `PruneReady` where a prune policy chooses the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Bytes and counts of the store.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreFigures {
    /// Size of the file system; absent where the agent cannot see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<i64>,
    /// Free for us on it; absent where the agent cannot see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<i64>,
    /// What images occupy on disk.
    pub stored_bytes: i64,
    /// Sum of the layers' contents.
    pub logical_bytes: i64,
    /// Contents that only pinned images have.
    pub pinned_bytes: i64,
    /// Images.
    pub images: i64,
    /// Layers.
    pub layers: i64,
}

/// Tells whether the list of images changed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Inventory {
    /// 32 hexadecimal digits over the sorted ids, names and pins.
    #[schemars(length(max = 32))]
    pub hash: String,
    /// Images.
    pub images: i64,
}

/// How far a node is with one prepull.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeldPrepull {
    /// `metadata.uid` of the prepull.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its name; with its namespace in front (`team-a/app`) for an `ImagePrepull`.
    #[schemars(length(max = 320))]
    pub name: String,
    /// The revision that the node holds or works on.
    #[schemars(length(max = 16))]
    pub revision: String,
    /// How far it is.
    pub state: HoldState,
    /// Images held.
    pub ready: i32,
    /// Images of the revision.
    pub total: i32,
    /// Why it is not ready, from a closed set.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// How far a node is with a revision.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum HoldState {
    /// Not started.
    #[default]
    Pending,
    /// Under way.
    Pulling,
    /// All images are held.
    Ready,
    /// Given up after its retries; tried again later.
    Failed,
    /// Nothing to do here.
    Skipped,
}

/// An image that could not be pulled.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageFailure {
    /// As the prepull names it.
    #[schemars(length(max = 512))]
    pub image: String,
    /// `metadata.uid` of the prepull that declares it; of several, the first.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub prepull: String,
    /// One of a closed set.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// For people, without anything that the registry sent.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
    /// So far.
    pub attempts: i32,
    /// Of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// What was done for the sake of a disk that was nearly full.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EmergencyReport {
    /// When it began. What follows within ten minutes is part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// Images removed.
    pub removed_images: i64,
    /// Bytes freed by them.
    pub freed_bytes: i64,
    /// Bytes that a pull or the reserved band of the disk wanted besides, and nothing could give.
    pub short_bytes: i64,
}

/// How far a node is with one prune policy, and what its last run did.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PruneReport {
    /// `metadata.uid` of the policy.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub policy: String,
    /// The revision that the node acts on, or waits to be admitted to.
    #[schemars(length(max = 16))]
    pub revision: String,
    /// How far it is.
    pub state: PruneState,
    /// Why it is not done, from a closed set.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
    /// When the last run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run_time: Option<Time>,
    /// Images that the last run which removed any removed.
    pub removed_images: i64,
    /// Bytes freed by them.
    pub freed_bytes: i64,
    /// Images that would go now: in a dry run, or before the node is admitted.
    pub would_remove_images: i64,
    /// Bytes that would be freed by them.
    pub would_free_bytes: i64,
    /// The largest of either; five at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub top: Vec<PruneTop>,
}

/// How far a node is with a revision of a prune policy.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum PruneState {
    /// No run of the revision ended yet.
    #[default]
    Pending,
    /// The last run ended well.
    Done,
    /// The last run ended with an error; tried again.
    Failed,
}

/// An image that went, or would go.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PruneTop {
    /// One of its names.
    #[schemars(length(max = 512))]
    pub image: String,
    /// The rule that selected it.
    #[schemars(length(max = 128))]
    pub rule: String,
    /// Bytes.
    pub bytes: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

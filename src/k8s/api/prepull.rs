//! Declared images: `ClusterImagePrepull` and `ImagePrepull`.
//!
//! Two kinds with shared parts: only the cluster kind's references have namespaces, and only it may gate nodes or show
//! private images to everybody on a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::percent::IntOrPercent;
use super::selector::{LabelSelector, NodeFacts, NodeSelectorTerm};
use super::slot::Slot;

/// Images of one prepull.
pub const MAX_IMAGES: usize = 256;
/// Failures that a status lists.
pub const MAX_FAILURES: usize = 10;

/// Which images, on which nodes, and how they get there.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "ClusterImagePrepull",
    doc = "Images that nodes of the cluster hold before any pod asks for them.",
    plural = "clusterimageprepulls",
    singular = "clusterimageprepull",
    shortname = "cipp",
    category = "larder",
    status = "PrepullStatus",
    selectable = ".spec.mode",
    printcolumn = r#"{"name":"Images","type":"integer","jsonPath":".status.images","description":"Images to hold"}"#,
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".status.nodes.desired","description":"Nodes that the spec chooses"}"#,
    printcolumn = r#"{"name":"Admitted","type":"integer","jsonPath":".status.nodes.admitted","description":"Nodes let in by the rollout","priority":1}"#,
    printcolumn = r#"{"name":"Ready","type":"integer","jsonPath":".status.nodes.ready","description":"Nodes that hold every image"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.nodes.failed","description":"Nodes that gave up for now"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","description":"Why it is ready, or not"}"#,
    printcolumn = r#"{"name":"Stalled","type":"string","jsonPath":".status.conditions[?(@.type==\"Stalled\")].reason","description":"Why the rollout stopped","priority":1}"#,
    printcolumn = r#"{"name":"Revision","type":"string","jsonPath":".status.rollout.revision","description":"What is being rolled out","priority":1}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message","description":"For people","priority":1}"#,
    printcolumn = r#"{"name":"Names","type":"string","jsonPath":".spec.images","description":"What is declared by name","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.images) && self.images.size() > 0) || (has(self.imagesFrom) && self.imagesFrom.size() > 0)",
        "message": "give images, imagesFrom, or both",
    },
    {
        "rule": "!has(self.nodeNames) || (!has(self.nodeSelector) && !has(self.nodeSelectorTerms))",
        "message": "give nodeNames, or nodeSelector and nodeSelectorTerms, not both",
        "fieldPath": ".nodeNames",
        "reason": "FieldValueForbidden",
    },
    {
        "rule": "!has(self.refreshInterval) || self.mode == 'Standing'",
        "message": "only mode Standing looks tags up again",
        "fieldPath": ".refreshInterval",
        "reason": "FieldValueForbidden",
    },
]))]
pub struct ClusterImagePrepullSpec {
    /// What both kinds of prepull have.
    #[serde(flatten)]
    pub shared: SharedPrepullSpec,
    /// Workloads whose pod templates' images are prepulled too, init containers included; 16 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub images_from: Vec<ClusterWorkload>,
    /// Secrets of type `kubernetes.io/dockerconfigjson` to pull with, tried in order; 8 at most. Without any, the nodes' own
    /// credentials are used. The agents of all nodes must be allowed to get them, so any node can then read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub pull_secrets: Vec<SecretRef>,
    /// Who may use an image that was pulled with a pull secret. `Authorized`: pods whose own credentials the registry
    /// accepts. `NodeWide`: every pod on the node.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "Authorized"))]
    pub visibility: Visibility,
    /// Keeps pods away from a node until it holds the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// Which images, on which nodes, and how they get there.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "ImagePrepull",
    doc = "Images that nodes hold for a namespace's pods before they ask for them.",
    plural = "imageprepulls",
    singular = "imageprepull",
    shortname = "ipp",
    category = "larder",
    namespaced,
    status = "PrepullStatus",
    selectable = ".spec.mode",
    printcolumn = r#"{"name":"Images","type":"integer","jsonPath":".status.images","description":"Images to hold"}"#,
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".status.nodes.desired","description":"Nodes that the spec chooses"}"#,
    printcolumn = r#"{"name":"Admitted","type":"integer","jsonPath":".status.nodes.admitted","description":"Nodes let in by the rollout","priority":1}"#,
    printcolumn = r#"{"name":"Ready","type":"integer","jsonPath":".status.nodes.ready","description":"Nodes that hold every image"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.nodes.failed","description":"Nodes that gave up for now"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason","description":"Why it is ready, or not"}"#,
    printcolumn = r#"{"name":"Stalled","type":"string","jsonPath":".status.conditions[?(@.type==\"Stalled\")].reason","description":"Why the rollout stopped","priority":1}"#,
    printcolumn = r#"{"name":"Revision","type":"string","jsonPath":".status.rollout.revision","description":"What is being rolled out","priority":1}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message","description":"For people","priority":1}"#,
    printcolumn = r#"{"name":"Names","type":"string","jsonPath":".spec.images","description":"What is declared by name","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.images) && self.images.size() > 0) || (has(self.imagesFrom) && self.imagesFrom.size() > 0)",
        "message": "give images, imagesFrom, or both",
    },
    {
        "rule": "!has(self.nodeNames) || (!has(self.nodeSelector) && !has(self.nodeSelectorTerms))",
        "message": "give nodeNames, or nodeSelector and nodeSelectorTerms, not both",
        "fieldPath": ".nodeNames",
        "reason": "FieldValueForbidden",
    },
    {
        "rule": "!has(self.refreshInterval) || self.mode == 'Standing'",
        "message": "only mode Standing looks tags up again",
        "fieldPath": ".refreshInterval",
        "reason": "FieldValueForbidden",
    },
    {
        "rule": "self.priority <= 0",
        "message": "the priority of a namespaced prepull is at most 0",
        "fieldPath": ".priority",
        "reason": "FieldValueForbidden",
    },
]))]
pub struct ImagePrepullSpec {
    /// What both kinds of prepull have.
    #[serde(flatten)]
    pub shared: SharedPrepullSpec,
    /// Workloads of this namespace whose pod templates' images are prepulled too, init containers included; 16 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub images_from: Vec<Workload>,
    /// Secrets of this namespace, of type `kubernetes.io/dockerconfigjson`, to pull with, tried in order; 8 at most. The
    /// agents of all nodes must be allowed to get them, so any node can then read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub pull_secrets: Vec<LocalSecret>,
}

/// What both kinds of prepull have.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SharedPrepullSpec {
    /// Image references, `[host[:port]/]repository[:tag][@digest]`, as in a pod; 256 at most. A tag is looked up once for
    /// all nodes, at each change and at each refresh, and every node gets that digest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::images")]
    pub images: Vec<String>,
    /// Nodes by their labels. Absent, and no `nodeSelectorTerms` and `nodeNames`: every node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Nodes by terms, of which one must hold, as in a pod's required node affinity; besides `nodeSelector`. 8 at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
    /// Nodes by name; 256 at most. Excludes the two other ways.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::node_names")]
    pub node_names: Vec<String>,
    /// Whether nodes that repel ordinary pods are left out: `Ignore` takes them in, `Honor` leaves nodes out that are
    /// unschedulable or have a taint with effect `NoSchedule` or `NoExecute`. Default `Ignore`.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "Ignore"))]
    pub taints: Taints,
    /// Platforms to hold, such as `linux/amd64`; 8 at most. Absent: each node's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::platforms")]
    pub platforms: Vec<String>,
    /// Higher is pulled first, always after what pods wait for: -100 to 100, at most 0 in an `ImagePrepull`. Default 0.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(range(min = -100, max = 100))]
    #[schemars(extend("default" = 0))]
    pub priority: i32,
    /// How a change reaches the nodes.
    pub rollout: Rollout,
    /// `Standing`: the images are held as long as the object exists, on nodes that join later too. `Once`: each node
    /// pulls each revision once, and nothing protects the images afterwards. Default `Standing`.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "Standing"))]
    pub mode: Mode,
    /// How often tags are looked up again: 5m to 720h, such as `1h30m`. Absent: only when the object changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::refresh_interval")]
    pub refresh_interval: Option<String>,
    /// When nodes may be admitted and start to pull for this prepull. Absent: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Whether the images are reported to the kubelet as pinned, so that its garbage collection leaves them alone.
    /// Default false.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = false))]
    pub pin: bool,
    /// How long the images stay protected after the object is deleted or no longer chooses the node: 0s to 8760h.
    /// Absent: not at all. Nothing is removed at that moment; the images may then be pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::retention")]
    pub retain_after_deletion: Option<String>,
}

/// How a change reaches the nodes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// Nodes that pull at once: a number from 1 to 100000, or a share of the chosen nodes from 1% to 100%, rounded up.
    /// Default 10%.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10%"))]
    pub max_in_flight: Option<IntOrPercent>,
    /// While true, no further node is admitted. Default false.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = false))]
    pub paused: bool,
    /// Distinct nodes that may fail a revision, after their retries: a number or a share, as above. When more fail, the
    /// condition `Stalled` becomes True and no further node is admitted; nothing is removed. Default 10%.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10%"))]
    pub max_failures: Option<IntOrPercent>,
    /// How long a revision may take before the rollout stalls: 1m to 720h. Absent: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::rollout_deadline")]
    pub deadline: Option<String>,
}

/// Whether nodes that repel ordinary pods are left out.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Taints {
    /// Taints do not matter.
    #[default]
    Ignore,
    /// Nodes that are unschedulable or have a `NoSchedule` or `NoExecute` taint are left out.
    Honor,
}

/// How long images are held.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Mode {
    /// As long as the object exists.
    #[default]
    Standing,
    /// Pulled once for each revision.
    Once,
}

/// Who may use an image that was pulled with a pull secret.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Visibility {
    /// Pods whose own credentials the registry accepts.
    #[default]
    Authorized,
    /// Every pod on the node.
    NodeWide,
}

/// A time of day, in UTC.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// When it opens: hours and minutes in UTC, such as `22:00`.
    #[schemars(schema_with = "super::schema::window_start")]
    pub start: String,
    /// How long it stays open: 1m to 24h, such as `6h`.
    #[schemars(schema_with = "super::schema::window_duration")]
    pub duration: String,
    /// Days on which it opens: `Mon` to `Sun`. Empty: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::days")]
    pub days: Vec<String>,
}

/// Keeps pods away from a node until it holds the images.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.nodeLabel) || has(self.startupTaint)",
    "message": "give nodeLabel, startupTaint, or both",
}]))]
pub struct Gate {
    /// Key of a label that is set to `true` on the node when it holds the images. Not of the domains kubernetes.io and
    /// k8s.io.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::gate_key")]
    pub node_label: Option<String>,
    /// Key of a taint that is removed from the node when it holds the images; the node should register with it. Not of
    /// the domains kubernetes.io and k8s.io.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::gate_key")]
    pub startup_taint: Option<String>,
    /// How long after it was first seen a node is let in although it does not hold the images: 10s to 24h. Default 10m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::gate_deadline", extend("default" = "10m"))]
    pub deadline: Option<String>,
}

/// A workload in the prepull's namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job` or `CronJob`.
    #[schemars(schema_with = "super::schema::workload_kind")]
    pub kind: String,
    /// Its name.
    #[schemars(schema_with = "super::schema::object_name")]
    pub name: String,
}

/// A workload in any namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterWorkload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job` or `CronJob`.
    #[schemars(schema_with = "super::schema::workload_kind")]
    pub kind: String,
    /// Its namespace.
    #[schemars(schema_with = "super::schema::namespace")]
    pub namespace: String,
    /// Its name.
    #[schemars(schema_with = "super::schema::object_name")]
    pub name: String,
}

/// A secret in the prepull's namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub struct LocalSecret {
    /// Its name.
    #[schemars(schema_with = "super::schema::object_name")]
    pub name: String,
}

/// A secret in any namespace.
#[derive(
    Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct SecretRef {
    /// Its namespace.
    #[schemars(schema_with = "super::schema::namespace")]
    pub namespace: String,
    /// Its name.
    #[schemars(schema_with = "super::schema::object_name")]
    pub name: String,
}

/// How far a prepull is. Written by the controller alone.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrepullStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Images to hold: those of the spec and those of its workloads.
    #[serde(skip_serializing_if = "is_default")]
    pub images: i64,
    /// Nodes, counted.
    pub nodes: NodeCounts,
    /// The revision being rolled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// The revision's images and their digests: what nodes pull.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub resolved: Vec<ResolvedImage>,
    /// What keeps nodes from being ready, the most common first; ten at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failures: Vec<PrepullFailure>,
    /// `Ready`, `Progressing`, `Stalled`, `Resolved`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Nodes, counted: ready <= admitted <= desired.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// Chosen by the spec.
    pub desired: i64,
    /// Let in by the rollout.
    pub admitted: i64,
    /// Hold every image of the current revision.
    pub ready: i64,
    /// Gave up on the current revision for now.
    pub failed: i64,
    /// Not ready as nodes, or silent, for ten minutes; they hold no place in the rollout.
    pub unreachable: i64,
}

/// The revision being rolled out.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// 16 hexadecimal digits that name the images' digests and the platforms.
    #[schemars(length(max = 16))]
    pub revision: String,
    /// Generation of the spec that the revision was made from. Nodes act on it only while it is the object's own.
    pub observed_generation: i64,
    /// Nodes whose slot is at most this are admitted. 0: none.
    #[schemars(with = "i64")]
    pub admitted: Slot,
    /// When the revision was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When tags were last looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_time: Option<Time>,
}

/// An image of a revision.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub struct ResolvedImage {
    /// As the spec, or the workload, names it.
    #[schemars(length(max = 512))]
    pub image: String,
    /// Of the index or manifest it stood for.
    #[schemars(length(max = 135))]
    pub digest: String,
}

/// What keeps nodes from being ready.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrepullFailure {
    /// The image, as the spec names it.
    #[schemars(length(max = 512))]
    pub image: String,
    /// A node that is not ready because of it: the first by name of those that report it, or, where the image has no
    /// digest, one that the spec chooses. Empty where it chooses none.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub node: String,
    /// How many nodes are not ready because of it.
    #[serde(skip_serializing_if = "is_default")]
    pub nodes: i64,
    /// One of a closed set.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
}

impl SharedPrepullSpec {
    /// Whether the spec chooses a node.
    pub fn selects(&self, node: &NodeFacts) -> bool {
        if self.taints == Taints::Honor && node.repels_pods() {
            return false;
        }
        if !self.node_names.is_empty() {
            return self.node_names.contains(&node.name);
        }
        self.node_selector
            .as_ref()
            .is_none_or(|selector| selector.matches(&node.labels))
            && (self.node_selector_terms.is_empty()
                || self
                    .node_selector_terms
                    .iter()
                    .any(|term| term.matches(&node.labels)))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

//! What may be removed from nodes: `ImagePrunePolicy`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::percent::IntOrPercent;
use super::prepull::{PrepullFailure, Rollout};
use super::selector::LabelSelector;

/// Which unused images nodes may remove, and when.
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
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ImagePrunePolicySpec {
    /// Whether anything is removed, or only reported.
    pub mode: PruneMode,
    /// Nodes by label. Absent: every node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// In order; an image goes when one of them selects it and nothing protects it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PruneRule>,
    /// How often a node looks, such as `1h`. Absent: when its images or its disk change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Images that one run removes from one node at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_removals_per_run: Option<i32>,
    /// How a change reaches the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
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
pub struct PruneRule {
    /// The images that the rule is about. Absent: all.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub images: Option<MatchImages>,
    /// Unused for so long, such as `24h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused_for: Option<String>,
    /// The newest of each repository that stay, by the time they were pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<i32>,
    /// Bytes (`100Gi`) or a share of the disk (`60%`) that images may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_used_bytes: Option<String>,
    /// Bytes or a share of the disk that shall be free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free: Option<String>,
    /// Bytes or a share of the disk that pulls never enter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<String>,
}

/// Images that a rule is about; everything given must hold.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MatchImages {
    /// Patterns of names; `*` stands for any characters but `/`, `**` for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Labels of the image's config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelSelector>,
    /// Namespaces whose prepulls once declared the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
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
    /// When a node last finished a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run_time: Option<Time>,
    /// Images removed by the last runs of all nodes.
    pub removed_images: i64,
    /// Bytes freed by them.
    pub freed_bytes: i64,
    /// Bytes that would be freed, where the mode is `DryRun`.
    pub would_free_bytes: i64,
    /// What keeps nodes from finishing; ten at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<PrepullFailure>,
    /// `Ready`, `Progressing`, `Stalled`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Nodes, counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PruneCounts {
    /// Chosen by the spec.
    pub desired: i64,
    /// Finished a run of the current generation.
    pub done: i64,
    /// Ended a run with an error.
    pub failed: i64,
}

impl Rollout {
    /// What `maxInFlight` is when nobody says.
    pub fn default_share() -> IntOrPercent {
        IntOrPercent::Percent("10%".to_owned())
    }
}

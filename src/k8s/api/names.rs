//! Every string that others match on: group, field managers, condition types, reasons.

/// API group of the kinds.
pub const GROUP: &str = "larder.dev";
/// The version that is served and stored.
pub const VERSION: &str = "v1alpha1";
/// `kubectl get larder` lists all of ours.
pub const CATEGORY: &str = "larder";
/// Field manager of server-side applies by agents.
pub const AGENT_MANAGER: &str = "larder-agent";
/// Field manager of server-side applies by the controller.
pub const CONTROLLER_MANAGER: &str = "larder-controller";
/// The controller's Lease, and the reporter of its events.
pub const CONTROLLER_NAME: &str = "larder-controller";
/// Where larder is installed unless told otherwise.
pub const DEFAULT_NAMESPACE: &str = "larder";

/// Types of conditions.
pub mod condition {
    /// A prepull: every desired node holds the current revision. A node: it serves and its prepulls are held.
    pub const READY: &str = "Ready";
    /// A prepull's rollout goes on.
    pub const PROGRESSING: &str = "Progressing";
    /// A prepull's rollout stopped by itself; a person should look.
    pub const STALLED: &str = "Stalled";
    /// A prepull's images all have digests.
    pub const RESOLVED: &str = "Resolved";
    /// A node's store passed its last checks.
    pub const STORE_HEALTHY: &str = "StoreHealthy";
    /// A node's store is short of space.
    pub const DISK_PRESSURE: &str = "DiskPressure";
    /// A node's agent has seen all declared objects since it last started.
    pub const API_SYNCED: &str = "ApiSynced";
    /// A node's prune policies can do their work.
    pub const PRUNE_READY: &str = "PruneReady";
}

/// Reasons: a closed set, safe as labels.
pub mod reason {
    /// Ready: nothing is missing.
    pub const ALL_NODES_READY: &str = "AllNodesReady";
    /// Ready: some nodes are not there yet.
    pub const NODES_PENDING: &str = "NodesPending";
    /// Ready: some nodes gave up for now.
    pub const NODES_FAILED: &str = "NodesFailed";
    /// Ready: the selector chooses no node.
    pub const NO_NODES: &str = "NoNodes";
    /// Progressing: nodes are being admitted.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// Progressing: all nodes were admitted and answered.
    pub const COMPLETE: &str = "Complete";
    /// Progressing: `rollout.paused`.
    pub const PAUSED: &str = "Paused";
    /// Progressing: the time window is closed.
    pub const OUTSIDE_WINDOW: &str = "OutsideWindow";
    /// Progressing: digests are not known yet.
    pub const RESOLVING: &str = "Resolving";
    /// Stalled: more nodes failed than `rollout.maxFailures` allows.
    pub const FAILURE_BUDGET_EXCEEDED: &str = "FailureBudgetExceeded";
    /// Stalled: the revision took longer than `rollout.deadline`.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// Progressing, Stalled: the spec has a value that passed its schema and means nothing.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// Stalled: it is not.
    pub const AS_EXPECTED: &str = "AsExpected";
    /// Resolved: every image has a digest.
    pub const ALL_RESOLVED: &str = "AllResolved";
    /// Resolved: `imagesFrom` names something that is not there.
    pub const WORKLOAD_NOT_FOUND: &str = "WorkloadNotFound";
    /// The reference is not one.
    pub const INVALID_REFERENCE: &str = "InvalidReference";
    /// The registry has no such image.
    pub const NOT_FOUND: &str = "NotFound";
    /// The registry wants other credentials.
    pub const UNAUTHORIZED: &str = "Unauthorized";
    /// The registry asked for patience.
    pub const RATE_LIMITED: &str = "RateLimited";
    /// The registry is not reached, or answers 5xx.
    pub const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
    /// It took too long.
    pub const TIMEOUT: &str = "Timeout";
    /// The node's disk has no room.
    pub const INSUFFICIENT_SPACE: &str = "InsufficientSpace";
    /// The image is not built for the node.
    pub const PLATFORM_MISSING: &str = "PlatformMissing";
    /// The image's manifest or layers are not what they should be.
    pub const INVALID_IMAGE: &str = "InvalidImage";
    /// A pull secret is absent or may not be read.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// The node's store refused.
    pub const STORE_ERROR: &str = "StoreError";
    /// The node's container runtime is not reached, so nobody knows what is in use.
    pub const RUNTIME_UNAVAILABLE: &str = "RuntimeUnavailable";
    /// None of the others.
    pub const UNKNOWN: &str = "Unknown";
}

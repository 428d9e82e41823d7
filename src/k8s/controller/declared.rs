//! A prepull as the controller sees it: one view over both kinds.

use kube::Resource;

use crate::k8s::api::{
    ClusterImagePrepull, ClusterWorkload, Gate, ImagePrepull, PrepullStatus, SecretRef,
    SharedPrepullSpec,
};

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Cluster,
    Namespaced,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Cluster => "ClusterImagePrepull",
            Kind::Namespaced => "ImagePrepull",
        }
    }
}

/// Names a prepull.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// Empty for the cluster kind.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Cluster => write!(f, "ClusterImagePrepull {}", self.name),
            Kind::Namespaced => write!(f, "ImagePrepull {}/{}", self.namespace, self.name),
        }
    }
}

/// A prepull as it was last read.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) generation: i64,
    /// Changes with each write of the object.
    pub(super) version: String,
    /// Being deleted: left alone.
    pub(super) ending: bool,
    pub(super) spec: SharedPrepullSpec,
    pub(super) secrets: Vec<SecretRef>,
    pub(super) workloads: Vec<ClusterWorkload>,
    pub(super) gate: Option<Gate>,
    pub(super) status: PrepullStatus,
}

impl Declared {
    fn new<K: Resource<DynamicType = ()>>(
        kind: Kind,
        object: &K,
        spec: SharedPrepullSpec,
        status: Option<PrepullStatus>,
    ) -> Self {
        let meta = object.meta();
        Declared {
            key: Key {
                kind,
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            ending: meta.deletion_timestamp.is_some(),
            spec,
            secrets: Vec::new(),
            workloads: Vec::new(),
            gate: None,
            status: status.unwrap_or_default(),
        }
    }

    /// Whether this is not older than `other`.
    pub(super) fn is_newer_or_same(&self, other: &Declared) -> bool {
        is_newer_or_same((&self.uid, &self.version), (&other.uid, &other.version))
    }
}

/// Whether the first of two objects, by uid and version, is not older. Versions are numbers in every API server there
/// is, and since 1.35 by contract; two that are not compare as newer, so that nothing is ever stuck.
pub(super) fn is_newer_or_same(one: (&str, &str), other: (&str, &str)) -> bool {
    let number = |version: &str| version.parse::<u64>().ok();
    match (number(one.1), number(other.1)) {
        (Some(mine), Some(theirs)) if one.0 == other.0 => mine >= theirs,
        _ => true,
    }
}

impl From<ClusterImagePrepull> for Declared {
    fn from(mut object: ClusterImagePrepull) -> Self {
        let (shared, status) = (
            std::mem::take(&mut object.spec.shared),
            object.status.take(),
        );
        let mut declared = Declared::new(Kind::Cluster, &object, shared, status);
        declared.secrets = object.spec.pull_secrets;
        declared.workloads = object.spec.images_from;
        declared.gate = object.spec.gate;
        declared
    }
}

impl From<ImagePrepull> for Declared {
    fn from(mut object: ImagePrepull) -> Self {
        let (shared, status) = (
            std::mem::take(&mut object.spec.shared),
            object.status.take(),
        );
        let mut declared = Declared::new(Kind::Namespaced, &object, shared, status);
        let namespace = || declared.key.namespace.clone();
        // References of the namespaced kind stay in its own namespace, whatever they say.
        declared.secrets = object
            .spec
            .pull_secrets
            .into_iter()
            .map(|secret| SecretRef {
                namespace: namespace(),
                name: secret.name,
            })
            .collect();
        declared.workloads = object
            .spec
            .images_from
            .into_iter()
            .map(|workload| ClusterWorkload {
                kind: workload.kind,
                namespace: namespace(),
                name: workload.name,
            })
            .collect();
        declared
    }
}

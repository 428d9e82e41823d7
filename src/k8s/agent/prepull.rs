//! A prepull in the compact form that the agent keeps: what decides whether, what and when this node pulls. What the
//! object says wrongly is a fault in words, never an error that stops others.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::{Digest, Platform, Reference};
use crate::k8s::api::{
    ALL, ClusterImagePrepull, ImagePrepull, MAX_IMAGES, Mode, NodeFacts, PrepullStatus, SecretRef,
    SharedPrepullSpec, Slot, TimeWindow, Visibility, parse_duration,
};

/// Platforms that one prepull may ask for; more are left out.
const MAX_PLATFORMS: usize = 8;
/// Pull secrets that one prepull may name; more are left out.
const MAX_SECRETS: usize = 16;
/// Longest text of a spec that is kept.
const MAX_TEXT: usize = 512;

/// Which of the two.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum Kind {
    /// Of the cluster.
    #[default]
    ClusterImagePrepull,
    /// Of a namespace.
    ImagePrepull,
}

/// Where an object came from.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Origin {
    /// The API server.
    #[default]
    Api,
    /// A file of the manifests folder, by its name there.
    File(String),
}

/// What tells prepulls apart, and what people call them.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Identity {
    /// `metadata.uid`; of files, something like it.
    pub uid: String,
    /// Which of the two kinds.
    pub kind: Kind,
    /// Empty for the cluster kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Where it came from.
    #[serde(default)]
    pub origin: Origin,
}

impl Identity {
    /// `base`, or `team-a/app`.
    pub fn path(&self) -> String {
        match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::ClusterImagePrepull => "ClusterImagePrepull",
            Kind::ImagePrepull => "ImagePrepull",
        })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.path())
    }
}

/// One thing to pull and hold. Texts as the object has them; [`Unit::parse`] judges them.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Unit {
    /// As the prepull names it.
    pub image: String,
    /// Of the revision; empty without a controller.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Empty for the node's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
}

/// A unit that can be pulled.
#[derive(Clone, Debug)]
pub struct ParsedUnit {
    /// The name.
    pub reference: Reference,
    /// The content.
    pub digest: Option<Digest>,
    /// For whom.
    pub platform: Option<Platform>,
}

impl Unit {
    /// Reads the texts; the error is for people.
    pub fn parse(&self) -> Result<ParsedUnit, String> {
        let reference: Reference = self
            .image
            .parse()
            .map_err(|error| format!("{}: {error}", self.image))?;
        let digest = match self.digest.as_str() {
            "" => reference.digest().cloned(),
            text => Some(
                text.parse::<Digest>()
                    .map_err(|error| format!("{}: {error}", self.image))?,
            ),
        };
        let platform = match self.platform.as_str() {
            "" => None,
            text => Some(
                text.parse::<Platform>()
                    .map_err(|error| format!("{}: {error}", self.image))?,
            ),
        };
        Ok(ParsedUnit {
            reference,
            digest,
            platform,
        })
    }

    /// The registry it comes from; empty where the name is none.
    pub fn registry(&self) -> String {
        self.image
            .parse::<Reference>()
            .map(|reference| reference.domain().to_owned())
            .unwrap_or_default()
    }
}

/// What is to be held, by digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revision {
    /// 16 hexadecimal digits.
    pub(super) id: String,
    /// Nodes whose slot is at most this may start.
    pub(super) admitted: Slot,
    /// Sorted, without repetitions.
    pub(super) units: Vec<Unit>,
}

/// How the units are to be held.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub(super) struct Terms {
    /// Higher is first.
    pub(super) priority: i32,
    /// Pulled once; not held afterwards.
    pub(super) once: bool,
    /// Reported as pinned.
    pub(super) pin: bool,
    /// Private images are shown to every pod.
    pub(super) node_wide: bool,
    /// When pulls may start.
    pub(super) window: Option<TimeWindow>,
    /// How long they stay protected after a release.
    pub(super) retain_seconds: u64,
    /// How often tags are pulled again; for files only, elsewhere it is the controller's.
    pub(super) refresh_seconds: u64,
    /// To pull with.
    pub(super) secrets: Vec<SecretRef>,
}

impl Terms {
    /// As a duration.
    pub(super) fn retain(&self) -> Duration {
        Duration::from_secs(self.retain_seconds)
    }
}

/// A prepull as the agent keeps it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Prepull {
    /// Which one.
    pub(super) identity: Identity,
    /// Which nodes; images and workloads are left out.
    pub(super) selector: SharedPrepullSpec,
    /// How.
    pub(super) terms: Terms,
    /// Nodes chosen, as the controller counts them: what writes are spread by.
    pub(super) desired: u64,
    /// What; `None` until the controller has said it for this very spec.
    pub(super) revision: Option<Revision>,
    /// What the object says wrongly.
    pub(super) faults: Vec<String>,
}

impl Prepull {
    /// Of the API server's object.
    pub(super) fn of_cluster(object: &ClusterImagePrepull) -> Self {
        let spec = &object.spec;
        let mut out = Prepull::new(
            identity(Kind::ClusterImagePrepull, &object.metadata),
            &spec.shared,
        );
        out.terms.node_wide = spec.visibility == Visibility::NodeWide;
        out.set_secrets(spec.pull_secrets.iter().cloned());
        let empty = spec.shared.images.is_empty() && spec.images_from.is_empty();
        out.set_revision(object.metadata.generation, object.status.as_ref(), empty);
        out
    }

    /// Of the API server's object.
    pub(super) fn of_namespaced(object: &ImagePrepull) -> Self {
        let spec = &object.spec;
        let mut out = Prepull::new(identity(Kind::ImagePrepull, &object.metadata), &spec.shared);
        let namespace = out.identity.namespace.clone();
        out.set_secrets(spec.pull_secrets.iter().map(|secret| SecretRef {
            namespace: namespace.clone(),
            name: secret.name.clone(),
        }));
        let empty = spec.shared.images.is_empty() && spec.images_from.is_empty();
        out.set_revision(object.metadata.generation, object.status.as_ref(), empty);
        out
    }

    /// Of a file: its own revision, and everybody is admitted. The uid is made of kind, namespace and name.
    pub(super) fn of_file(
        file: &str,
        kind: Kind,
        namespace: &str,
        name: &str,
        spec: &SharedPrepullSpec,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [kind.to_string().as_str(), namespace, name] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let uid: String = hasher.finalize().to_hex().chars().take(32).collect();
        let identity = Identity {
            uid: format!("file-{uid}"),
            kind,
            namespace: excerpt(namespace),
            name: excerpt(name),
            origin: Origin::File(file.to_owned()),
        };
        let mut out = Prepull::new(identity, spec);
        // Only tags move.
        out.terms.refresh_seconds = seconds(
            spec.refresh_interval.as_deref(),
            "refreshInterval",
            &mut out.faults,
        );
        out.desired = 1;
        let units = units(
            spec.images.iter().map(|image| (image.as_str(), "")),
            &spec.platforms,
        );
        let mut hasher = blake3::Hasher::new();
        for unit in &units {
            for part in [&unit.image, &unit.digest, &unit.platform] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
        out.revision = Some(Revision {
            id: hasher.finalize().to_hex().chars().take(16).collect(),
            admitted: ALL,
            units,
        });
        out
    }

    /// Whether the spec chooses a node.
    pub(super) fn selects(&self, node: &NodeFacts) -> bool {
        self.selector.selects(node)
    }

    fn new(identity: Identity, spec: &SharedPrepullSpec) -> Self {
        let mut faults = Vec::new();
        let window = spec.window.as_ref().and_then(|window| {
            TimeWindow::new(window)
                .map_err(|error| faults.push(format!("{error}; it is taken for closed")))
                .ok()
                .or(Some(TimeWindow::NEVER))
        });
        let terms = Terms {
            priority: spec.priority,
            once: spec.mode == Mode::Once,
            pin: spec.pin,
            node_wide: false,
            window,
            retain_seconds: retention(spec.retain_after_deletion.as_deref(), &mut faults),
            refresh_seconds: 0,
            secrets: Vec::new(),
        };
        let mut selector = spec.clone();
        selector.images = Vec::new();
        Prepull {
            identity,
            selector,
            terms,
            faults,
            ..Prepull::default()
        }
    }

    fn set_secrets(&mut self, secrets: impl ExactSizeIterator<Item = SecretRef>) {
        if secrets.len() > MAX_SECRETS {
            self.faults
                .push(format!("pullSecrets: only the first {MAX_SECRETS} count"));
        }
        self.terms.secrets = secrets.take(MAX_SECRETS).collect();
    }

    /// What the controller said, as far as it is about this very spec.
    fn set_revision(
        &mut self,
        generation: Option<i64>,
        status: Option<&PrepullStatus>,
        empty: bool,
    ) {
        let Some(status) = status else { return };
        self.desired = u64::try_from(status.nodes.desired).unwrap_or(0);
        let Some(rollout) = &status.rollout else {
            return;
        };
        let current = generation == Some(rollout.observed_generation);
        if !current || rollout.revision.is_empty() || (status.resolved.is_empty() && !empty) {
            return;
        }
        if status.resolved.len() > MAX_IMAGES {
            self.faults.push(format!(
                "status.resolved: only the first {MAX_IMAGES} images count"
            ));
        }
        let images = status
            .resolved
            .iter()
            .take(MAX_IMAGES)
            .map(|image| (image.image.as_str(), image.digest.as_str()));
        let units = units(images, &self.selector.platforms);
        // Without a digest each node would resolve a tag by itself, which is what revisions are there to prevent.
        if let Some(unit) = units.iter().find(|unit| unit.digest.is_empty()) {
            self.faults
                .push(format!("status.resolved: {} has no digest", unit.image));
            return;
        }
        self.revision = Some(Revision {
            id: rollout.revision.chars().take(64).collect(),
            admitted: rollout.admitted,
            units,
        });
    }
}

fn units<'a>(images: impl Iterator<Item = (&'a str, &'a str)>, platforms: &[String]) -> Vec<Unit> {
    let own = [String::new()];
    let platforms = match platforms {
        [] => &own,
        some => some,
    };
    let mut units: Vec<Unit> = images
        .take(MAX_IMAGES)
        .flat_map(|(image, digest)| {
            platforms
                .iter()
                .take(MAX_PLATFORMS)
                .map(move |platform| Unit {
                    image: excerpt(image),
                    digest: excerpt(digest),
                    platform: excerpt(platform),
                })
        })
        .collect();
    units.sort();
    units.dedup();
    units
}

fn identity(
    kind: Kind,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Identity {
    Identity {
        uid: metadata.uid.clone().unwrap_or_default(),
        kind,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        origin: Origin::Api,
    }
}

fn seconds(text: Option<&str>, field: &str, faults: &mut Vec<String>) -> u64 {
    match text.map(parse_duration) {
        None => 0,
        Some(Ok(duration)) => duration.as_secs(),
        Some(Err(error)) => {
            faults.push(format!("{field}: {error}"));
            0
        }
    }
}

/// A text that is no duration keeps the images for a day rather than for no time.
fn retention(text: Option<&str>, faults: &mut Vec<String>) -> u64 {
    let before = faults.len();
    let seconds = seconds(text, "retainAfterDeletion", faults);
    if faults.len() > before {
        86_400
    } else {
        seconds
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// `since` plus whole seconds, at most what a timestamp can say.
pub(super) fn later(since: Timestamp, duration: Duration) -> Timestamp {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or(0);
    since
        .checked_add(jiff::SignedDuration::new(seconds, nanos))
        .unwrap_or(Timestamp::MAX)
}

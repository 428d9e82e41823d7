//! What the planner is given, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::amount::Amount;
use super::pattern::Pattern;
use super::selector::Selector;

/// One image as the planner sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Unique among the candidates.
    pub id: String,
    /// Canonical: tags, then digests. None for an image that lost its last name.
    pub names: Vec<String>,
    /// Bytes of its contents.
    pub size: u64,
    /// Of its config.
    pub labels: BTreeMap<String, String>,
    /// Nobody tells its labels: a rule with labels is not about it, whatever it asks of them.
    pub labels_unknown: bool,
    /// What it may share with other images.
    pub layers: Vec<Part>,
    /// Bytes on disk besides the layers.
    pub own_bytes: u64,
    /// When it was last pulled.
    pub pulled_at: Timestamp,
    /// When it was last seen in use. An image that never was counts from its pull.
    pub last_used: Option<Timestamp>,
    /// Of the `ImagePrepull`s that declared it.
    pub namespaces: BTreeSet<String>,
    /// Why it must stay, if it must.
    pub protections: Vec<Protection>,
}

/// Something on disk that images share, a layer usually. It goes with the last image that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The same for all images that share it.
    pub id: String,
    /// Bytes on disk. Where images disagree, the most counts.
    pub bytes: u64,
}

/// Why an image must stay, the strongest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// By a container or sandbox, in any state.
    InUse {
        /// For people: `container 0123456789ab (web)`.
        by: String,
    },
    /// By the node's configuration or the runtime.
    Pinned,
    /// By a prepull.
    Declared {
        /// For people: `ClusterImagePrepull base`.
        by: String,
        /// Not even a full disk breaks it.
        pinned: bool,
    },
    /// The runtime starts each pod with it.
    Sandbox,
    /// It is mounted.
    Mounted,
    /// A pull under way, or something else, holds its layers.
    Leased,
    /// It came a short while ago.
    Grace {
        /// When that ends.
        until: Timestamp,
    },
}

/// The file system that images are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes. 0 where it is not seen: then rules about free space, and about shares, ask for nothing.
    pub capacity: u64,
    /// Bytes free for images.
    pub available: u64,
    /// Bytes on disk of all images.
    pub images: u64,
}

/// The rules of one policy. Whether anything is removed is its owner's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Unique among the policies.
    pub name: String,
    /// In order.
    pub rules: Vec<Rule>,
    /// Removals of one run at most.
    pub max_removals: Option<u32>,
}

/// One rule of a policy. With `unused_for`, `keep_last` or both it selects what satisfies all given; `max_used` and
/// `min_free` make it select the longest unused of those, and only as many as the disk asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The images that it is about.
    pub images: Match,
    /// Not used for at least so long.
    pub unused_for: Option<Duration>,
    /// Not among so many of the newest of a repository, by their pulls.
    pub keep_last: Option<u32>,
    /// Only while all images together use more than this.
    pub max_used: Option<Amount>,
    /// Only while less than this is free.
    pub min_free: Option<Amount>,
    /// The band that pulls never enter. Selects nothing.
    pub reserved: Option<Amount>,
}

/// The images that a rule is about; everything given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// One of them matches one of the names. Empty: no condition.
    pub images: Vec<Pattern>,
    /// Labels of the config.
    pub labels: Selector,
    /// One of them declared the image. Empty: no condition.
    pub namespaces: BTreeSet<String>,
    /// Only images without a tag.
    pub untagged: bool,
    /// Only images that were pulled before.
    pub pulled_before: Option<Timestamp>,
}

/// What goes, in this order, and why everything else stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of removal.
    pub remove: Vec<Removal>,
    /// By name, then id.
    pub keep: Vec<Kept>,
    /// Bytes that the removals free together.
    pub free_bytes: u64,
    /// Bytes that a rule about the disk wants besides, and nothing could give.
    pub short_bytes: u64,
}

/// An image that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Of the candidate.
    pub id: String,
    /// Of the candidate.
    pub names: Vec<String>,
    /// The first policy, by name, that selected it.
    pub policy: String,
    /// Its first rule that did, as it is written: `unusedFor 24h, keepLast 2`.
    pub rule: String,
    /// A sentence.
    pub reason: String,
    /// Bytes freed when it goes after those before it: what it shares counts where the last user goes.
    pub bytes: u64,
}

/// An image that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the candidate.
    pub id: String,
    /// Of the candidate.
    pub names: Vec<String>,
    /// A sentence: the strongest protection, else what each rule says.
    pub reason: String,
}

impl Candidate {
    /// When it was last used, or pulled.
    pub fn last(&self) -> Timestamp {
        self.last_used
            .map_or(self.pulled_at, |used| used.max(self.pulled_at))
    }

    /// How long it was not used. A clock that ran backwards ages nothing.
    pub fn unused(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.last())).unwrap_or_default()
    }

    /// The strongest of its protections.
    pub fn protection(&self) -> Option<&Protection> {
        self.protections.iter().min()
    }

    /// Longest unused first, then larger first, then by id.
    pub(super) fn order(&self) -> impl Ord + use<'_> {
        (
            self.last(),
            std::cmp::Reverse(self.size),
            self.id.as_str(),
            self.names.as_slice(),
        )
    }
}

impl Match {
    /// Whether the image is one that the rule is about.
    pub fn matches(&self, image: &Candidate) -> bool {
        let named = || {
            let mut names = image.names.iter();
            names.any(|name| self.images.iter().any(|pattern| pattern.matches(name)))
        };
        (self.images.is_empty() || named())
            && self.labels_match(image)
            && (self.namespaces.is_empty() || !self.namespaces.is_disjoint(&image.namespaces))
            && (!self.untagged || image.names.iter().all(|name| name.contains('@')))
            && self
                .pulled_before
                .is_none_or(|before| image.pulled_at < before)
    }

    fn labels_match(&self, image: &Candidate) -> bool {
        let asked = !self.labels.requirements.is_empty();
        !(asked && image.labels_unknown) && self.labels.matches(&image.labels)
    }
}

impl Rule {
    /// Whether the disk decides how many go.
    pub fn follows_disk(&self) -> bool {
        self.max_used.is_some() || self.min_free.is_some()
    }

    /// Whether it selects anything at all.
    pub(super) fn selects(&self) -> bool {
        self.follows_disk() || self.unused_for.is_some() || self.keep_last.is_some()
    }

    /// Bytes that must go before the disk asks for no more.
    pub(super) fn wants(&self, disk: &Disk) -> u64 {
        let seen = disk.capacity > 0;
        let most = self.max_used.filter(|most| seen || !most.is_share());
        let over = most.map_or(0, |most| disk.images.saturating_sub(most.of(disk.capacity)));
        let least = self.min_free.filter(|_| seen);
        let under = least.map_or(0, |least| {
            least.of(disk.capacity).saturating_sub(disk.available)
        });
        over.max(under)
    }
}

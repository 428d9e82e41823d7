//! What a pull is asked for with: whose it is, who waits for it, and what it may take.

use crate::image::{Platform, Reference};

use super::Credentials;

/// What pulls that nobody waits for may take of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Background {
    /// Layers at once.
    pub layers: usize,
    /// Layers at once from one registry.
    pub per_registry: usize,
    /// Layer bytes per second of all of them together; `None` for no limit.
    pub bytes_per_second: Option<u64>,
    /// The limit counts for every pull, those that pods wait for included.
    pub throttle_all: bool,
}

impl Default for Background {
    fn default() -> Self {
        Background {
            layers: 2,
            per_registry: 2,
            bytes_per_second: None,
            throttle_all: false,
        }
    }
}

/// Who waits for a pull. The greater is the more urgent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Nobody yet. Begins no layer while a foreground pull runs; of its layers under way one moves meanwhile.
    Background {
        /// Higher goes first among background pulls.
        order: i32,
    },
    /// A pod or a person. Whoever joins a background pull makes it this.
    #[default]
    Foreground,
}

/// Who fetches layers now, and who waits for a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Pulls that somebody waits for, from the first request to the last.
    pub foreground_pulls: usize,
    /// The other pulls.
    pub background_pulls: usize,
    /// Layers being fetched and ingested that a foreground pull waits for.
    pub foreground_layers: usize,
    /// The other layers being fetched and ingested.
    pub background_layers: usize,
    /// Foreground pulls that wait for a turn to begin a layer.
    pub foreground_waiting: usize,
    /// Background pulls that wait for a turn to begin a layer.
    pub background_waiting: usize,
    /// Background layers that stand still until the foreground is through.
    pub held_back: usize,
}

/// A pull, as any door asks for it.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// What to pull.
    pub reference: Reference,
    /// `None` is the configured platform.
    pub platform: Option<Platform>,
    /// What to show to the registry.
    pub credentials: Credentials,
    /// Plain HTTP to the reference's own host.
    pub plain_http: bool,
    /// Who waits for it.
    pub priority: Priority,
    /// Somebody's credentials, used on his behalf though he did not ask. Where there are any, the registry is asked
    /// first without credentials, then with each of these, then with `credentials` or the node's own.
    pub secrets: Vec<Credentials>,
    /// Who may see an image that one of `secrets` was needed for.
    pub visibility: Visibility,
    /// W3C trace context of the caller, passed on to the registry. Of callers that share a pull, the first one's.
    pub traceparent: Option<String>,
}

/// Who may see an image that was pulled with somebody's credentials on his behalf. One that could be had without them is
/// seen by all, whatever this says; so is one that was seen by all before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// All who see the node's images.
    #[default]
    NodeWide,
    /// It is *staged*: [`Shown`] is without it until somebody pulls it with credentials that work.
    Authorized,
}

impl PullRequest {
    /// A foreground pull for the configured platform, with no credentials.
    pub fn new(reference: Reference) -> Self {
        PullRequest {
            reference,
            platform: None,
            credentials: Credentials::Anonymous,
            plain_http: false,
            priority: Priority::Foreground,
            secrets: Vec::new(),
            visibility: Visibility::NodeWide,
            traceparent: None,
        }
    }
}

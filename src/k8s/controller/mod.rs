//! Revisions, waves and counts: what one place must decide for all nodes.
//!
//! Two controllers at once do no harm: what they write are functions of what they watch. The lease saves work.

mod board;
#[cfg(test)]
mod board_tests;
#[cfg(test)]
mod board_world;
mod declared;
mod desk;
mod emergencies;
mod failures;
mod gate;
mod gather;
mod leader;
mod lease;
mod lookups;
mod malformed;
mod metrics;
mod nodes;
mod notes;
mod pace;
mod prepull;
mod prune;
mod prune_status;
#[cfg(test)]
mod prune_tests;
mod pruned;
mod reconcile;
mod revision;
mod rollout;
mod run;
mod seam;
mod seats;
mod send;
mod status;
mod status_writes;
mod steps;
mod verdict;
mod watch;
mod wave;

pub use metrics::Metrics;
pub use run::{Controller, Options};
pub use seam::{Resolution, ResolveFailure, Resolver};

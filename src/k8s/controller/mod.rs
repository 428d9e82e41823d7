//! Revisions, waves and counts: what one place must decide for all nodes.
//!
//! Two controllers at once do no harm: what they write are functions of what they watch. The lease saves work.

mod board;
mod declared;
mod desk;
mod failures;
mod gate;
mod lease;
mod lookups;
mod nodes;
mod notes;
mod pace;
mod prepull;
mod reconcile;
mod revision;
mod seam;
mod seats;
mod status;
mod wave;
mod window;

pub use seam::{Resolution, ResolveFailure, Resolver};

//! Revisions, waves and counts: what one place must decide for all nodes.
//!
//! Two controllers at once do no harm: what they write are functions of what they watch. The lease saves work.

mod seam;

pub use seam::{Resolution, ResolveFailure, Resolver};

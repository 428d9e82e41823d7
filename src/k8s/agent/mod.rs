//! What this node should hold, and its report.
//!
//! Decisions are pure functions of the declared objects, the node and the clock; the shell around them watches, pulls
//! through [`Images`] and writes one object, the node's own `NodeImageCache`.

mod seam;

pub use seam::{
    BoxFuture, Declared, Figures, HeldImage, Images, PullFailure, Want, WantCredentials,
};

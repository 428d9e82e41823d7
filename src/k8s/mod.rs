//! The Kubernetes door: declared images, and what each node holds of them.
//!
//! `api` has the kinds and the words that agent and controller share, `agent` decides and reports what one node holds,
//! `controller` resolves tags, opens waves and counts. `connect` makes the client of both; `pull_secret` and `backoff`
//! are of both, too. Kube types stay in this room; images are pulled, and tags resolved, through seams that `app` fills.

pub mod agent;
pub mod api;
mod backoff;
pub mod connect;
pub mod controller;
mod pull_secret;

//! larder: an image cache for Kubernetes nodes.
//!
//! One library, one multi-call binary. The rooms below know each other in one direction only;
//! `tests/it/tidy.rs` pins the matrix and `ARCHITECTURE.md` explains it.

pub mod admin;
pub mod app;
pub mod cache;
pub mod cli;
pub mod control;
pub mod cri;
pub mod erofs;
pub mod image;
pub mod k8s;
pub mod lifecycle;
pub mod mirror;
pub mod prune;
pub mod registry;
pub mod runtime;
pub mod snapshotter;
pub mod store;
pub mod telemetry;

//! Wiring: configuration to running agent.
//!
//! Knows every room and decides nothing of theirs: it reads the configuration, builds the parts in order, starts them
//! and stops them in the reverse order within a limit.

pub mod agent;
pub mod config;
pub mod controller;
pub mod crds;
mod credentials;
pub mod demo;
pub mod doctor;
pub mod export;
pub mod images;
mod kube_agent;
mod machine;
mod open;
mod policies;
mod process;
mod pruning;
mod registrar;
pub mod serve;
pub mod setup;

pub use credentials::{Found, credentials_for};
pub use open::{CacheOptions, Opened, expect_store, open_cache};
pub use policies::{FilePolicy, read_policies};

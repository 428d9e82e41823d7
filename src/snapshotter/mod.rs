//! Door: `containerd.services.snapshots.v1`, what containerd asks of a proxy snapshotter.
//!
//! Translates between the wire and [`crate::cache::Snapshots`]: requests, filters, pages, and containerd's status codes.
//! Never mounts and never fetches anything; decides nothing about layers.

mod convert;
mod filter;
mod service;
mod status;

pub use service::Snapshotter;

/// The wire's types. They never leave this door.
pub mod proto {
    /// As packages refer to each other.
    #[allow(
        missing_docs,
        dead_code,
        unreachable_pub,
        clippy::all,
        clippy::unwrap_used,
        clippy::needless_pass_by_value
    )]
    mod containerd {
        pub mod types {
            tonic::include_proto!("containerd.types");
        }
        pub mod services {
            pub mod snapshots {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.snapshots.v1");
                }
            }
        }
    }

    pub use containerd::services::snapshots::v1::snapshots_server::{Snapshots, SnapshotsServer};
    pub use containerd::services::snapshots::v1::*;
    pub use containerd::types::Mount;

    /// Encoded descriptors of the package, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(
        env!("OUT_DIR"),
        "/containerd.services.snapshots.v1.bin"
    ));
}

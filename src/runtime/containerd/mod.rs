//! Images that containerd knows without having pulled them: their layers are snapshots of larder's, their manifest and
//! config are written into containerd's content store, and their names point at those.
//!
//! All of it is in the namespace of CRI. Nothing of it needs a registry, and containerd's garbage collection keeps
//! exactly what a name leads to: a name its manifest, a manifest its config, a config its topmost snapshot.

mod client;
mod error;
mod events;
mod plan;
mod register;

pub use client::Containerd;
pub use error::ContainerdError;
pub use events::NameEvent;
pub use plan::{ContainerdImage, Document, Names, Registered};

/// The namespace of the kubelet's images and containers.
pub const NAMESPACE: &str = "k8s.io";
/// What containerd's configuration calls larder's snapshots (`proxy_plugins`).
pub const SNAPSHOTTER: &str = "larder";
/// The label of names that larder gave; its value is the image's id.
pub const REGISTERED: &str = "larder.dev/image";

/// The wire's types, with the client's side of the services.
#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::unwrap_used,
    clippy::needless_pass_by_value
)]
mod proto {
    pub mod containerd {
        pub mod types {
            tonic::include_proto!("containerd.types");
        }
        pub mod events {
            tonic::include_proto!("containerd.events");
        }
        pub mod services {
            pub mod content {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.content.v1");
                }
            }
            pub mod events {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.events.v1");
                }
            }
            pub mod images {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.images.v1");
                }
            }
            pub mod leases {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.leases.v1");
                }
            }
            pub mod snapshots {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.snapshots.v1");
                }
            }
        }
    }
    pub use containerd::services::{content, events, images, leases, snapshots};
    pub use containerd::types;
}

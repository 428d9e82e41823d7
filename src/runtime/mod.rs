//! Client of the node's container runtime (CRI v1, containerd or CRI-O): the image service that it serves to the kubelet,
//! its lists of containers and pods, which tell what is in use, and containerd's own services, by which an image becomes
//! known to it without being pulled ([`Containerd`]).
//!
//! Owns the connection, its pauses after failures, and the limits on each call. Never talks to a registry, and decides
//! nothing about which images there should be. A runtime's error becomes a class of ours: its text may quote what a
//! registry sent, so it goes no further.

mod backoff;
mod client;
mod connect;
mod connection;
mod containerd;
mod containers;
mod error;
mod metrics;

pub use client::{Auth, FsUsage, RuntimeImage, RuntimeImages};
pub use containerd::{
    Containerd, ContainerdError, ContainerdImage, Document, NAMESPACE, NameEvent, Names,
    REGISTERED, Registered, SNAPSHOTTER,
};
pub use containers::{ImageUser, RuntimeContainers};
pub use error::{Error, ErrorClass};
pub use metrics::Metrics;

/// The wire's types, with the client's side of the service.
mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        dead_code,
        clippy::all,
        clippy::unwrap_used,
        clippy::needless_pass_by_value
    )]
    tonic::include_proto!("runtime.v1");
}

/// The wire's types of containers and pods.
mod containers_proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        dead_code,
        clippy::all,
        clippy::unwrap_used,
        clippy::needless_pass_by_value
    )]
    include!(concat!(env!("OUT_DIR"), "/containers/runtime.v1.rs"));
}

/// Encoded descriptors of what is asked about containers and pods, for the test that compares them with the interface.
#[doc(hidden)]
pub const CONTAINER_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/containers/runtime.v1.bin"));

/// Which fields are filled, never what is in them: they are secrets.
impl std::fmt::Debug for proto::AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &!self.username.is_empty())
            .finish_non_exhaustive()
    }
}

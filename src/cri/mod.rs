//! Door: the Kubernetes container runtime interface's image service (`runtime.v1`, one file per call).
//!
//! Translates between the wire and [`crate::cache`]; holds no state but what it was started with. `RuntimeService`
//! has `Version` only, so that tools which open both services connect; its other calls are answered with the way to a
//! container runtime. The socket, trace context and call metrics for
//! all services on it are here too.

mod absent;
mod auth;
mod convert;
mod filter;
mod image_fs_info;
mod image_status;
mod layer;
mod list_images;
mod listen;
mod mount_point;
mod pull_image;
mod remove_image;
mod service;
mod status;
mod stream_images;
mod version;

pub use layer::{Metrics, RpcLayer};
pub use listen::{Incoming, ListenError, Socket};
pub use mount_point::mount_point;
pub use service::{ImageService, RuntimeService};

/// The wire's types. They never leave this door.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::unwrap_used,
        clippy::needless_pass_by_value
    )]
    tonic::include_proto!("runtime.v1");

    /// Encoded descriptors of the package, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime.v1.bin"));
}

/// Which fields are filled, never what is in them: they are secrets.
impl std::fmt::Debug for proto::AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &!self.username.is_empty())
            .field("password", &!self.password.is_empty())
            .field("auth", &!self.auth.is_empty())
            .field("server_address", &self.server_address)
            .field("identity_token", &!self.identity_token.is_empty())
            .field("registry_token", &!self.registry_token.is_empty())
            .finish()
    }
}

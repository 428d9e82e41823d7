//! Door: `larder.v1`, what an operator's terminal asks of an agent.
//!
//! Translates between the wire and [`crate::cache`]: pull and fsck as streams of progress, the rest as single answers.
//! The same service answers in-process where a terminal opens a store itself. What is declared, and by whom, the agent's
//! wiring tells it, and what a container runtime has where that holds the images.

mod convert;
mod elsewhere;
mod fsck;
mod pattern;
mod prepulls;
mod prune;
mod pull;
mod service;
mod status;

pub use elsewhere::{Answer, Elsewhere, elsewhere};
pub use prepulls::{Prepulls, StatusSource, prepulls_server};
pub use prune::request as prune_policy;
pub use service::{Images, answers, server};

/// The wire's types, for this door and for the terminal's client.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::unwrap_used,
        clippy::needless_pass_by_value
    )]
    tonic::include_proto!("larder.v1");

    /// Encoded descriptors of the package, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/larder.v1.bin"));
}

/// Which fields are filled, never what is in them: they are secrets.
impl std::fmt::Debug for proto::Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &!self.username.is_empty())
            .field("password", &!self.password.is_empty())
            .field("identity_token", &!self.identity_token.is_empty())
            .field("registry_token", &!self.registry_token.is_empty())
            .finish()
    }
}

//! Credentials, challenges and tokens. Secrets enter here and leave only in an `Authorization` header or a token request.

mod challenge;
mod credentials;
mod pull_secret;
mod token;

pub use credentials::{Credentials, Secret, docker_credentials};
pub use pull_secret::secret_credentials;

pub(super) use challenge::Challenge;
pub(super) use token::{Method, Tokens};

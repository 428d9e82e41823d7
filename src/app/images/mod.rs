//! What holds images on this node, as the agent of declared images sees it: larder's own cache, or the image service of
//! the node's container runtime.

mod answers;
mod larder;
mod prune;
mod runtime;

use std::path::Path;

use crate::k8s::agent::PullFailure;
use crate::k8s::api::reason;
use crate::registry::{Credentials, secret_credentials};

pub(super) use answers::elsewhere;
pub use larder::LarderImages;
pub use prune::NodePruning;
pub use runtime::NodeImages;

/// Pull secrets that are tried for one image at most.
const MAX_SECRETS: usize = 16;

/// What the pull secrets of an image offer, and what is wrong with those that cannot be read.
struct Offered {
    credentials: Vec<Credentials>,
    unreadable: Option<PullFailure>,
}

fn offered(want: &crate::k8s::agent::Want) -> Offered {
    let mut offered = Offered {
        credentials: Vec::new(),
        unreadable: None,
    };
    for secret in want.credentials.iter().take(MAX_SECRETS) {
        match secret_credentials(&secret.docker_config, &secret.source, &want.reference) {
            Ok(found) => offered.credentials.extend(found),
            // Another secret may do, or none be needed.
            Err(error) => {
                offered.unreadable = Some(failure(reason::SECRET_MISSING, error.to_string()));
            }
        }
    }
    offered
}

impl Offered {
    /// A registry's refusal is explained by a secret that cannot be read.
    fn explain(self, failure: PullFailure) -> PullFailure {
        match self.unreadable {
            Some(unreadable) if failure.reason == reason::UNAUTHORIZED => unreadable,
            _ => failure,
        }
    }
}

fn failure(reason: &'static str, message: String) -> PullFailure {
    PullFailure {
        reason,
        message,
        retry_after: None,
    }
}

/// Size of a file system, and what we may still write, in bytes; zeros where it does not say.
async fn space(path: &Path) -> (u64, u64) {
    let path = path.to_owned();
    // A file system that hangs must not hold up the runtime's workers.
    let stat = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path)).await;
    let Ok(Ok(stat)) = stat else { return (0, 0) };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    (bytes(stat.f_blocks), bytes(stat.f_bavail))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::k8s::agent::{Want, WantCredentials};

    #[test]
    fn a_secret_that_cannot_be_read_explains_a_refusal_and_nothing_else() {
        let secret = |text: &str| WantCredentials {
            source: "team/pull".to_owned(),
            docker_config: Arc::from(text.as_bytes()),
        };
        let want = |secrets: Vec<WantCredentials>| Want {
            reference: "r.example/a:1".parse().unwrap(),
            digest: None,
            platform: None,
            priority: 0,
            credentials: secrets,
            node_wide: false,
        };
        let good = r#"{"auths":{"r.example":{"username":"u","password":"p"}}}"#;
        let refused = || failure(reason::UNAUTHORIZED, "refused".to_owned());
        let both = offered(&want(vec![secret("{"), secret(good)]));
        assert_eq!(both.credentials.len(), 1);
        let told = both.explain(refused());
        assert_eq!(told.reason, reason::SECRET_MISSING);
        assert!(told.message.contains("team/pull"), "{told}");
        let bad = offered(&want(vec![secret("{")]));
        let other = failure(reason::NOT_FOUND, "absent".to_owned());
        assert_eq!(bad.explain(other.clone()), other);
        assert_eq!(
            offered(&want(vec![secret(good)])).explain(refused()),
            refused()
        );
    }
}

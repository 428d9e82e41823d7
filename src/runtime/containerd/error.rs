//! Why containerd did not do what was asked.

use std::path::{Path, PathBuf};

use tonic::{Code, Status};

/// Longest text of containerd's that is repeated.
const MAX_TEXT: usize = 512;

/// A call to containerd that came to nothing. Its texts are containerd's own, none is a registry's: nothing here makes it
/// ask one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerdError {
    /// Nobody answers.
    #[error("{socket}: containerd does not answer; is it running, and is this its socket?")]
    Unavailable {
        /// Where it should be.
        socket: PathBuf,
    },
    /// It took too long.
    #[error("{socket}: containerd took too long")]
    Timeout {
        /// Where it is.
        socket: PathBuf,
    },
    /// It does not know larder's snapshots.
    #[error(
        "{socket}: containerd knows no snapshotter larder: add [proxy_plugins.larder] with the address of larder's socket to its configuration, and start it again"
    )]
    NoSnapshotter {
        /// Where it is.
        socket: PathBuf,
    },
    /// It asked for a layer, and larder did not have it.
    #[error(
        "{socket}: containerd did not find layer {chain} of image {image} at its snapshotter larder; does its proxy plugin have the address of this agent's socket?"
    )]
    NotOurs {
        /// Where it is.
        socket: PathBuf,
        /// Which image.
        image: String,
        /// Up to this layer.
        chain: String,
    },
    /// It refused.
    #[error("{socket}: containerd refused to {action}: {text}")]
    Refused {
        /// Where it is.
        socket: PathBuf,
        /// What was asked.
        action: &'static str,
        /// In its words.
        text: String,
    },
}

impl ContainerdError {
    /// Whether it may pass by itself.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            ContainerdError::Unavailable { .. } | ContainerdError::Timeout { .. }
        )
    }

    pub(super) fn of(socket: &Path, action: &'static str, status: &Status) -> Self {
        let socket = socket.to_path_buf();
        // The status of a broken or refused connection is made here.
        let broken = std::error::Error::source(status).is_some();
        if broken || status.code() == Code::Unavailable {
            return ContainerdError::Unavailable { socket };
        }
        let text = status.message();
        if text.contains("snapshotter not loaded: larder") {
            return ContainerdError::NoSnapshotter { socket };
        }
        let text = text.chars().take(MAX_TEXT).collect();
        ContainerdError::Refused {
            socket,
            action,
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_configured_is_told_from_what_is_away() {
        let of = |status| ContainerdError::of(Path::new("/c.sock"), "list its images", &status);
        let away = of(Status::unavailable("x"));
        assert!(away.is_transient() && away.to_string().contains("/c.sock"));
        let missing = of(Status::invalid_argument(
            "snapshotter not loaded: larder: invalid argument",
        ));
        assert!(
            missing.to_string().contains("proxy_plugins.larder"),
            "{missing}"
        );
        let refused = of(Status::unknown("no")).to_string();
        assert_eq!(
            refused,
            "/c.sock: containerd refused to list its images: no"
        );
    }
}

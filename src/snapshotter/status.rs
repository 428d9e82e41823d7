//! What went wrong, as containerd's clients tell errors apart: by the code. Pure.

use tonic::{Code, Status};

use crate::cache::{ErrorKind, SnapshotError, SnapshotFailure};

/// Longest text; it travels in a header.
const MAX_MESSAGE: usize = 2048;

impl From<SnapshotFailure> for Status {
    fn from(failure: SnapshotFailure) -> Self {
        of(&failure)
    }
}

fn of(failure: &SnapshotFailure) -> Status {
    let code = match failure {
        SnapshotFailure::Snapshot(error) => match error {
            SnapshotError::NotFound(_) => Code::NotFound,
            SnapshotError::Exists(_) => Code::AlreadyExists,
            SnapshotError::Precondition { .. } => Code::FailedPrecondition,
            SnapshotError::Invalid(_) => Code::InvalidArgument,
            SnapshotError::Store(_) => Code::Unknown,
        },
        SnapshotFailure::Other { kind, .. } => match kind {
            ErrorKind::NoSpace | ErrorKind::LimitExceeded => Code::ResourceExhausted,
            ErrorKind::Unsupported | ErrorKind::Busy => Code::FailedPrecondition,
            ErrorKind::Damaged => Code::DataLoss,
            ErrorKind::Cancelled => Code::Unavailable,
            // containerd knows no meaning of Internal.
            _ => Code::Unknown,
        },
    };
    let mut text = failure.to_string();
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
    }
    Status::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_containerd_reads() {
        let name = || "a".to_owned();
        for (error, code) in [
            (SnapshotError::NotFound(name()), Code::NotFound),
            (SnapshotError::Exists(name()), Code::AlreadyExists),
            (SnapshotError::Invalid(name()), Code::InvalidArgument),
            (
                SnapshotError::Precondition {
                    name: name(),
                    cause: name(),
                },
                Code::FailedPrecondition,
            ),
        ] {
            assert_eq!(of(&SnapshotFailure::Snapshot(error)).code(), code);
        }
        let text = "é".repeat(MAX_MESSAGE);
        let failure = SnapshotFailure::Other {
            kind: ErrorKind::Damaged,
            text,
        };
        let status = of(&failure);
        assert_eq!(status.code(), Code::DataLoss);
        assert!(status.message().len() <= MAX_MESSAGE);
    }
}

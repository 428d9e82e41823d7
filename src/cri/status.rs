//! The one table from what went wrong to what CRI says of it.

use tonic::{Code, Status};

use crate::cache::{Error, ErrorKind};

/// Longest text that is sent: it travels in an HTTP/2 header.
const MAX_MESSAGE: usize = 3 << 10;

/// The status of an error of the cache.
pub(super) fn of(error: &Error) -> Status {
    status(error.kind(), &error.to_string())
}

fn status(kind: ErrorKind, text: &str) -> Status {
    let text = shortened(text);
    match kind {
        // kubelet makes a reason of this word, and only where the code is Unknown and the word comes first.
        ErrorKind::RegistryUnavailable => {
            Status::new(Code::Unknown, format!("RegistryUnavailable: {text}"))
        }
        kind => Status::new(code(kind), text),
    }
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidReference | ErrorKind::Platform => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::RegistryUnavailable => Code::Unknown,
        ErrorKind::RateLimited => Code::Unavailable,
        ErrorKind::Protocol | ErrorKind::BadImage | ErrorKind::Damaged => Code::DataLoss,
        ErrorKind::LimitExceeded | ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Unsupported | ErrorKind::Busy => Code::FailedPrecondition,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Internal => Code::Internal,
    }
}

fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_unavailable_is_unknown_with_the_word_first() {
        let status = status(
            ErrorKind::RegistryUnavailable,
            "docker.io: connection refused",
        );
        assert_eq!(status.code(), Code::Unknown);
        assert_eq!(
            status.message(),
            "RegistryUnavailable: docker.io: connection refused"
        );
    }

    #[test]
    fn nothing_else_is_unknown() {
        for (kind, code) in [
            (ErrorKind::InvalidReference, Code::InvalidArgument),
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::Unauthenticated, Code::Unauthenticated),
            (ErrorKind::Denied, Code::PermissionDenied),
            (ErrorKind::RateLimited, Code::Unavailable),
            (ErrorKind::Protocol, Code::DataLoss),
            (ErrorKind::BadImage, Code::DataLoss),
            (ErrorKind::LimitExceeded, Code::ResourceExhausted),
            (ErrorKind::NoSpace, Code::ResourceExhausted),
            (ErrorKind::Platform, Code::InvalidArgument),
            (ErrorKind::Unsupported, Code::FailedPrecondition),
            (ErrorKind::Cancelled, Code::Cancelled),
            (ErrorKind::Busy, Code::FailedPrecondition),
            (ErrorKind::Damaged, Code::DataLoss),
            (ErrorKind::Internal, Code::Internal),
        ] {
            let status = status(kind, "text");
            assert_eq!(
                (status.code(), status.message()),
                (code, "text"),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let text = "é".repeat(MAX_MESSAGE);
        assert!(shortened(&text).len() <= MAX_MESSAGE);
        assert_eq!(shortened("short"), "short");
    }
}

//! The one table from what went wrong to the status an operator's terminal gets.

use tonic::{Code, Status};

use crate::cache::{Error, ErrorKind};

/// Longest text that is sent: it travels in an HTTP/2 header.
const MAX_MESSAGE: usize = 3 << 10;

/// The status of an error of the cache.
pub(super) fn of(error: &Error) -> Status {
    let mut text = error.to_string();
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    Status::new(code(error.kind()), text)
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidReference | ErrorKind::Platform => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::RegistryUnavailable | ErrorKind::RateLimited => Code::Unavailable,
        ErrorKind::Protocol | ErrorKind::BadImage | ErrorKind::Damaged => Code::DataLoss,
        ErrorKind::LimitExceeded | ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Unsupported | ErrorKind::Busy => Code::FailedPrecondition,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_not_found_with_the_whole_text() {
        let error = Error::NotFound {
            name: "busybox".to_owned(),
        };
        let status = of(&error);
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, error.to_string().as_str())
        );
        assert_eq!(
            of(&Error::Invalid("é".repeat(9000))).message().len(),
            MAX_MESSAGE
        );
    }
}

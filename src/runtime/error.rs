//! What a runtime's call fails with, by what can be done about it.

use std::time::Duration;

use tonic::{Code, Status};

/// Why a call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The runtime itself is not reached, or serves no images.
    RuntimeUnavailable,
    /// The name cannot be.
    InvalidReference,
    /// The registry has no such image.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry asked for patience.
    RateLimited,
    /// The registry is not reached, or is ill.
    RegistryUnavailable,
    /// It took too long.
    Timeout,
    /// The disk has no room.
    InsufficientSpace,
    /// No image for this node's platform.
    PlatformMissing,
    /// The image is not what it should be, or a policy refused it.
    InvalidImage,
    /// None of the others.
    Unknown,
}

impl ErrorClass {
    /// As metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorClass::RuntimeUnavailable => "runtime_unavailable",
            ErrorClass::InvalidReference => "invalid_reference",
            ErrorClass::NotFound => "not_found",
            ErrorClass::Unauthorized => "unauthorized",
            ErrorClass::RateLimited => "rate_limited",
            ErrorClass::RegistryUnavailable => "registry_unavailable",
            ErrorClass::Timeout => "timeout",
            ErrorClass::InsufficientSpace => "insufficient_space",
            ErrorClass::PlatformMissing => "platform_missing",
            ErrorClass::InvalidImage => "invalid_image",
            ErrorClass::Unknown => "unknown",
        }
    }

    fn says(self) -> &'static str {
        match self {
            ErrorClass::RuntimeUnavailable => {
                "the container runtime does not answer; is it running, and is this its socket?"
            }
            ErrorClass::InvalidReference => "the runtime does not take it for an image name",
            ErrorClass::NotFound => "the registry has no such image",
            ErrorClass::Unauthorized => {
                "the registry refused; it may need a pull secret, or another one"
            }
            ErrorClass::RateLimited => "the registry asked to be left alone for a while",
            ErrorClass::RegistryUnavailable => "the runtime does not reach the registry",
            ErrorClass::Timeout => "the runtime took too long",
            ErrorClass::InsufficientSpace => "the runtime's disk is full",
            ErrorClass::PlatformMissing => "the image is not built for this node's platform",
            ErrorClass::InvalidImage => {
                "the image is broken, or a policy of the runtime refused it"
            }
            ErrorClass::Unknown => "the runtime gave a reason of its own: its log has it",
        }
    }
}

/// An error of a call. Its text is ours: nothing that a registry sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {}{}", class.says(), again(*retry_after))]
pub struct Error {
    pub(super) class: ErrorClass,
    /// Image or socket.
    pub(super) subject: String,
    pub(super) retry_after: Option<Duration>,
}

fn again(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!(" (asked again in {} s)", after.as_secs() + 1)
    })
}

impl Error {
    pub(super) fn new(class: ErrorClass, subject: impl Into<String>) -> Self {
        Error {
            class,
            subject: subject.into(),
            retry_after: None,
        }
    }

    /// Why.
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// Not before so long.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

/// The class of what a runtime answered. containerd wraps most refusals of a registry into `Unknown`, so the words are
/// looked at: those of containerd 1.7 to 2.x and CRI-O.
pub(super) fn classify(status: &Status) -> ErrorClass {
    let text = status.message().to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["no space left on device", "disk quota exceeded"]) {
        return ErrorClass::InsufficientSpace;
    }
    if has(&[
        "no match for platform",
        "no image found in manifest list",
        "no child with platform",
    ]) {
        return ErrorClass::PlatformMissing;
    }
    if has(&[
        "429 too many requests",
        "toomanyrequests",
        "too many requests",
    ]) {
        return ErrorClass::RateLimited;
    }
    if has(&[
        "401 unauthorized",
        "403 forbidden",
        "unauthorized:",
        "denied:",
        "access denied",
        "failed to authorize",
        "insufficient_scope",
        "authentication required",
        "no basic auth credentials",
        "failed to fetch anonymous token",
        "failed to fetch oauth token",
        "access to the resource is denied",
    ]) {
        // Who cannot fetch a token for want of a network is told below.
        if !has(NETWORK) {
            return ErrorClass::Unauthorized;
        }
    }
    if has(&[
        "signaturevalidationfailed",
        "unexpected commit digest",
        "failed size validation",
    ]) {
        return ErrorClass::InvalidImage;
    }
    if has(&["registryunavailable"]) || has(NETWORK) {
        return ErrorClass::RegistryUnavailable;
    }
    match status.code() {
        Code::NotFound => ErrorClass::NotFound,
        // containerd says so of its own configuration, too.
        Code::InvalidArgument if has(&["reference", "image name"]) => ErrorClass::InvalidReference,
        Code::Unauthenticated | Code::PermissionDenied => ErrorClass::Unauthorized,
        Code::DeadlineExceeded | Code::Cancelled => ErrorClass::Timeout,
        Code::ResourceExhausted => ErrorClass::InsufficientSpace,
        Code::Unimplemented => ErrorClass::RuntimeUnavailable,
        Code::Unavailable => ErrorClass::RuntimeUnavailable,
        Code::DataLoss => ErrorClass::InvalidImage,
        _ if has(&["not found", "manifest unknown", "name unknown"]) => ErrorClass::NotFound,
        _ if has(&["invalid reference", "failed to parse image"]) => ErrorClass::InvalidReference,
        _ => ErrorClass::Unknown,
    }
}

const NETWORK: &[&str] = &[
    "connection refused",
    "connection reset",
    "no such host",
    "i/o timeout",
    "network is unreachable",
    "no route to host",
    "tls handshake",
    "x509:",
    "500 internal server error",
    "502 bad gateway",
    "503 service unavailable",
    "504 gateway timeout",
    "server gave http response to https client",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_say_is_classed() {
        use ErrorClass as E;
        let table = [
            (
                Code::NotFound,
                "failed to pull and unpack image \"r/a:1\": failed to resolve reference \"r/a:1\": r/a:1: not found",
                E::NotFound,
            ),
            (
                Code::Unknown,
                "failed to pull: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                E::Unauthorized,
            ),
            (
                Code::Unknown,
                "unexpected status from HEAD request to https://r/v2/a/manifests/1: 401 Unauthorized",
                E::Unauthorized,
            ),
            (
                Code::Unknown,
                "unexpected status from HEAD request to https://r/v2/a/manifests/1: 403 Forbidden",
                E::Unauthorized,
            ),
            (
                Code::Unknown,
                "failed to fetch anonymous token: Get \"https://r/token\": dial tcp: lookup r: no such host",
                E::RegistryUnavailable,
            ),
            (
                Code::Unknown,
                "httpReadSeeker: failed open: unexpected status code 429 Too Many Requests - Server message: toomanyrequests",
                E::RateLimited,
            ),
            (
                Code::Unknown,
                "failed to do request: Head \"https://r\": dial tcp 127.0.0.1:1: connect: connection refused",
                E::RegistryUnavailable,
            ),
            (
                Code::Unknown,
                "RegistryUnavailable: r is not reached",
                E::RegistryUnavailable,
            ),
            (
                Code::Unknown,
                "SignatureValidationFailed: no",
                E::InvalidImage,
            ),
            (
                Code::Unknown,
                "write /var/lib/x: no space left on device",
                E::InsufficientSpace,
            ),
            (
                Code::NotFound,
                "no match for platform in manifest sha256:0: not found",
                E::PlatformMissing,
            ),
            (
                Code::InvalidArgument,
                "failed to parse image reference",
                E::InvalidReference,
            ),
            (
                Code::DeadlineExceeded,
                "context deadline exceeded",
                E::Timeout,
            ),
            (Code::Unavailable, "transport", E::RuntimeUnavailable),
            (
                Code::Unimplemented,
                "unknown service runtime.v1.ImageService",
                E::RuntimeUnavailable,
            ),
            (
                Code::Unknown,
                "reading manifest 1 in r/a: manifest unknown",
                E::NotFound,
            ),
            (Code::Unknown, "something else", E::Unknown),
        ];
        for (code, text, class) in table {
            assert_eq!(classify(&Status::new(code, text)), class, "{text}");
        }
    }

    #[test]
    fn an_error_is_in_our_words() {
        let error = Error::new(ErrorClass::Unauthorized, "r.example/a:1");
        assert_eq!(
            error.to_string(),
            "r.example/a:1: the registry refused; it may need a pull secret, or another one"
        );
    }
}

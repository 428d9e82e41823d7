//! Errors of registry requests: a class for the caller, a sentence for the person.

use std::error::Error as _;

use http::StatusCode;
use url::Url;

/// Why a registry request failed, by what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// No connection: refused, DNS, TLS, timeout. CRI says `RegistryUnavailable`.
    Unavailable,
    /// 401: credentials missing or wrong.
    Unauthenticated,
    /// 403.
    Denied,
    /// 404: no such repository, tag, manifest or blob.
    NotFound,
    /// 429 after all waiting.
    RateLimited,
    /// 5xx after all attempts.
    Server,
    /// The transfer stopped or broke too often.
    Broken,
    /// The registry answered something that is not the protocol: wrong digest, size, type, redirect loop, HTML.
    Protocol,
    /// The local configuration is at fault: hosts.toml, CA file, proxy.
    Config,
}

impl ErrorClass {
    /// Label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            ErrorClass::Unavailable => "unavailable",
            ErrorClass::Unauthenticated => "unauthenticated",
            ErrorClass::Denied => "denied",
            ErrorClass::NotFound => "not_found",
            ErrorClass::RateLimited => "rate_limited",
            ErrorClass::Server => "server",
            ErrorClass::Broken => "broken",
            ErrorClass::Protocol => "protocol",
            ErrorClass::Config => "config",
        }
    }

    /// How far a request came before it failed: of several hosts, the error of the one that came furthest is told.
    pub(super) fn stage(self) -> u8 {
        match self {
            ErrorClass::Unavailable => 0,
            ErrorClass::NotFound => 1,
            ErrorClass::RateLimited | ErrorClass::Server => 2,
            ErrorClass::Unauthenticated | ErrorClass::Denied => 3,
            ErrorClass::Broken | ErrorClass::Protocol | ErrorClass::Config => 4,
        }
    }
}

/// An error of a registry request. Its text names the host and what to do; never a secret or a URL query.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    class: ErrorClass,
    message: String,
}

impl Error {
    pub(super) fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Error {
            class,
            message: message.into(),
        }
    }

    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// True where trying again later may succeed without a change.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.class,
            ErrorClass::Unavailable
                | ErrorClass::RateLimited
                | ErrorClass::Server
                | ErrorClass::Broken
        )
    }

    /// An answer that is an error. `codes` are the registry's own, such as `MANIFEST_UNKNOWN`.
    pub(super) fn of_status(status: StatusCode, url: &Url, codes: &str) -> Self {
        let at = redact(url);
        let codes = match codes {
            "" => String::new(),
            codes => format!(" ({codes})"),
        };
        let (class, text) = match status {
            StatusCode::UNAUTHORIZED => (
                ErrorClass::Unauthenticated,
                format!(
                    "{at} wants other credentials{codes}: log in, or give a pull secret for this repository"
                ),
            ),
            StatusCode::FORBIDDEN => (
                ErrorClass::Denied,
                format!(
                    "{at} denies access{codes}: these credentials may not pull this repository"
                ),
            ),
            StatusCode::NOT_FOUND => (
                ErrorClass::NotFound,
                format!("{at} not found{codes}: check the repository and the tag or digest"),
            ),
            StatusCode::TOO_MANY_REQUESTS => (
                ErrorClass::RateLimited,
                format!("{at} is rate limited{codes}: log in, use a mirror, or wait"),
            ),
            status if status.is_server_error() => (
                ErrorClass::Server,
                format!(
                    "{at} answers {status}{codes}: the registry has a problem, try again later"
                ),
            ),
            status => (
                ErrorClass::Protocol,
                format!(
                    "{at} answers {status}{codes}, which a registry does not: check the address"
                ),
            ),
        };
        Error::new(class, text)
    }

    /// A request that got no answer.
    pub(super) fn of_transport(url: &Url, error: &reqwest::Error) -> Self {
        let what = if error.is_timeout() {
            "did not answer in time"
        } else if error.is_connect() {
            "cannot be reached"
        } else {
            "broke off the request"
        };
        Error::new(
            ErrorClass::Unavailable,
            format!("{} {what}: {}", host(url), innermost(error)),
        )
    }
}

/// The cause at the end of an error's chain; the outer ones repeat the URL.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut last: Option<&dyn std::error::Error> = None;
    let mut next = error.source();
    while let Some(error) = next {
        last = Some(error);
        next = error.source();
    }
    match last {
        Some(error) => error.to_string(),
        None => "no reason given".to_owned(),
    }
}

/// `host[:port]` of a URL.
pub(super) fn host(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => "the registry".to_owned(),
    }
}

/// A URL without user, password, query and fragment: what may be shown.
pub(super) fn redact(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
}

/// The codes of a registry's error document (OCI distribution specification, "Error Codes"): at most four, and only
/// characters that a code has, since the rest of a body is anybody's text.
pub(super) fn codes(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Code>,
    }
    #[derive(serde::Deserialize)]
    struct Code {
        code: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else {
        return String::new();
    };
    let is_code = |code: &String| {
        !code.is_empty()
            && code.len() <= 64
            && code
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let codes: Vec<String> = document
        .errors
        .into_iter()
        .map(|error| error.code)
        .filter(is_code)
        .take(4)
        .collect();
    codes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_no_secret() {
        let url: Url = "https://user:pw@r.io/v2/a/blobs/x?X-Signature=abc#f"
            .parse()
            .unwrap();
        assert_eq!(redact(&url), "https://r.io/v2/a/blobs/x");
        let error = Error::of_status(StatusCode::FORBIDDEN, &url, "DENIED");
        assert_eq!(error.class(), ErrorClass::Denied);
        assert!(!error.to_string().contains("abc") && !error.to_string().contains("pw"));
    }

    #[test]
    fn keeps_codes_only() {
        for (body, shown) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"<b>"}]}"#,
                "MANIFEST_UNKNOWN",
            ),
            (
                r#"{"errors":[{"code":"<script>"},{"code":"DENIED"}]}"#,
                "DENIED",
            ),
            ("<html>", ""),
            (r#"{"errors":null}"#, ""),
        ] {
            assert_eq!(codes(body.as_bytes()), shown);
        }
    }
}

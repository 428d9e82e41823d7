//! What went wrong, by what a caller can do about it.

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
    /// The class as metrics and logs write it.
    pub fn as_str(self) -> &'static str {
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
}

/// An error of a registry request. Its text names the host and what to do; never a secret or a URL query.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    class: ErrorClass,
    message: String,
    status: Option<u16>,
}

impl Error {
    pub(super) fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Error {
            class,
            message: message.into(),
            status: None,
        }
    }
    pub(super) fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }
    /// The HTTP status behind it, where there is one.
    pub fn status(&self) -> Option<u16> {
        self.status
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
    /// How far the request came before it failed: of several hosts' errors the most advanced tells most.
    fn stage(&self) -> u8 {
        match self.class {
            ErrorClass::Unavailable => 0,
            ErrorClass::NotFound => 1,
            ErrorClass::Server | ErrorClass::RateLimited => 2,
            ErrorClass::Unauthenticated | ErrorClass::Denied => 3,
            ErrorClass::Broken | ErrorClass::Protocol => 4,
            ErrorClass::Config => 5,
        }
    }
}

/// Errors of several hosts asked for one thing.
#[derive(Debug, Default)]
pub(super) struct Tally {
    errors: Vec<Error>,
}

impl Tally {
    pub(super) fn add(&mut self, error: Error) {
        if self.errors.len() < 8 {
            self.errors.push(error);
        }
    }
    /// The most advanced error; among equals the last, which is the upstream's. The others are named behind it.
    pub(super) fn into_error(self, subject: &str) -> Error {
        let best = (0..self.errors.len())
            .max_by_key(|&at| self.errors.get(at).map_or(0, Error::stage))
            .unwrap_or(0);
        let mut message = String::new();
        for (at, error) in self.errors.iter().enumerate() {
            if at != best {
                message.push_str("; also: ");
                message.push_str(&error.message);
            }
        }
        match self.errors.into_iter().nth(best) {
            Some(mut error) => {
                error.message.push_str(&message);
                error
            }
            None => Error::new(
                ErrorClass::Config,
                format!(
                    "{subject}: no configured host may be asked; give a host the capabilities \"pull\" and \"resolve\" in hosts.toml"
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_advanced_error_wins_and_names_the_others() {
        let mut tally = Tally::default();
        tally.add(Error::new(ErrorClass::Unavailable, "mirror refused"));
        tally.add(Error::new(ErrorClass::NotFound, "second has no such tag"));
        tally.add(Error::new(ErrorClass::Unavailable, "upstream refused"));
        let error = tally.into_error("x");
        assert_eq!(error.class(), ErrorClass::NotFound);
        assert_eq!(
            error.to_string(),
            "second has no such tag; also: mirror refused; also: upstream refused"
        );
        assert_eq!(Tally::default().into_error("x").class(), ErrorClass::Config);
    }

    #[test]
    fn among_equals_the_upstream_wins() {
        let mut tally = Tally::default();
        tally.add(Error::new(ErrorClass::NotFound, "mirror"));
        tally.add(Error::new(ErrorClass::NotFound, "upstream"));
        assert!(tally.into_error("x").to_string().starts_with("upstream"));
    }
}

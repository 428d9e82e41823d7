//! An answer and its body, read piece by piece with an eye on the clock.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::{Error, ErrorClass, redact, retry};

/// An answer of any status, its body not yet read.
pub(super) struct Answer {
    response: reqwest::Response,
    /// True where another server than the one asked has answered, after a redirect.
    pub(super) elsewhere: bool,
    /// Where it came from.
    pub(super) server: String,
    stall: Duration,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Answer {
    /// Without the URL, whose query may be a signature.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("server", &self.server)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Why a body broke off.
#[derive(Debug)]
pub(super) struct Break {
    /// Nothing came for too long; else the connection ended.
    pub(super) stalled: bool,
    /// For people.
    pub(super) cause: String,
}

impl Answer {
    pub(super) fn new(
        response: reqwest::Response,
        server: String,
        elsewhere: bool,
        stall: Duration,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Self {
        Answer {
            response,
            elsewhere,
            server,
            stall,
            _permit: permit,
        }
    }
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
    /// All values of a header.
    pub(super) fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = self.response.headers().get_all(name).iter();
        values.take(8).filter_map(|value| value.to_str().ok())
    }
    /// `Content-Type` without parameters; empty where there is none.
    pub(super) fn media_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default().trim();
        redact::text(essence)
    }
    /// `Content-Length`, as a HEAD answer has it too.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let now = jiff::Timestamp::now().as_second();
        retry::retry_after(self.header("retry-after")?, now)
    }
    /// The next piece of the body. Cancel-safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Break> {
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Err(_) => Err(Break {
                stalled: true,
                cause: format!("no byte came for {} s", self.stall.as_secs_f32()),
            }),
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(Break {
                stalled: false,
                cause: causes(&error.without_url()),
            }),
        }
    }
    /// The whole body, at most `limit` bytes.
    pub(super) async fn body(mut self, limit: u64, subject: &str) -> Result<Bytes, Error> {
        let too_large = |server: &str| {
            Error::new(
                ErrorClass::Protocol,
                format!("{subject}: {server} answered more than the {limit} bytes allowed"),
            )
        };
        if self.length().is_some_and(|length| length > limit) {
            return Err(too_large(&self.server));
        }
        let mut body = BytesMut::new();
        loop {
            match self.chunk().await {
                Ok(None) => return Ok(body.freeze()),
                Ok(Some(bytes)) => {
                    if (body.len() as u64).saturating_add(bytes.len() as u64) > limit {
                        return Err(too_large(&self.server));
                    }
                    body.extend_from_slice(&bytes);
                }
                Err(Break { cause, .. }) => {
                    return Err(Error::new(
                        ErrorClass::Broken,
                        format!(
                            "{subject}: the answer of {} broke off: {cause}",
                            self.server
                        ),
                    ));
                }
            }
        }
    }
}

/// The innermost causes of an error, without URLs.
pub(super) fn causes(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Wrappers often repeat what they wrap.
        texts.retain(|earlier| !earlier.contains(&text) && !text.contains(earlier.as_str()));
        // Which layer of the HTTP library was at it tells nothing.
        if !text.starts_with("client error (") {
            texts.push(text);
        }
        source = cause.source();
        if texts.len() > 4 {
            break;
        }
    }
    if texts.is_empty() {
        texts.push(error.to_string());
    }
    redact::text(&texts.join(": "))
}

//! What goes wrong with an answer: its head here, its body piece by piece.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::Response;

use super::reply::Reply;
use super::{Content, Seen};

/// What goes wrong with the answers a rule is for.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status in place of the answer.
    Status(u16),
    /// This status with a `Retry-After`.
    StatusAfter(u16, String),
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// The body ends in good order after so many bytes, its length unannounced.
    Short(usize),
    /// So many bytes too much, the length unannounced.
    Excess(usize),
    /// Right length, other bytes.
    WrongBytes,
    /// `Range` is ignored.
    IgnoreRange,
    /// Nothing more after so many bytes; the connection stays.
    Stall(usize),
    /// So many bytes at a time, with a pause between.
    Drip(usize, Duration),
    /// No answer at all; the connection stays.
    Never,
    /// To this URL.
    Redirect(String),
    /// Another content type.
    ContentType(&'static str),
    /// A login page with status 200.
    Html,
    /// No `Docker-Content-Digest`.
    NoDigest,
    /// Another `Docker-Content-Digest`.
    WrongDigest(String),
}

impl Fault {
    /// Of the head of an answer; those of its body leave it as it is.
    fn change(&self, mut reply: Reply) -> Reply {
        match self {
            Fault::Status(status) => Reply::error(*status, "UNKNOWN"),
            Fault::StatusAfter(status, wait) => {
                Reply::error(*status, "TOOMANYREQUESTS").with("retry-after", wait)
            }
            Fault::WrongBytes => {
                let mut bytes = reply.body.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                reply.body = bytes.into();
                reply
            }
            Fault::Redirect(url) => Reply::new(307, "").with("location", url),
            Fault::ContentType(value) => reply.with("content-type", *value),
            Fault::Html => Reply::new(200, "<html>please log in</html>")
                .with("content-type", "text/html; charset=utf-8"),
            Fault::NoDigest => reply.without("docker-content-digest"),
            Fault::WrongDigest(digest) => reply.with("docker-content-digest", digest),
            _ => reply,
        }
    }
}

impl Content {
    /// What goes wrong this time.
    pub(super) fn faults(&mut self, seen: &Seen) -> Vec<Fault> {
        let mut faults = Vec::new();
        for rule in &mut self.rules {
            let method = rule.method.as_ref();
            if rule.left > 0
                && method.is_none_or(|method| *method == seen.method)
                && seen.path.contains(&rule.path)
            {
                rule.left -= 1;
                faults.push(rule.fault.clone());
            }
        }
        faults
    }

    pub(super) fn reply(&mut self, seen: &Seen, faults: &[Fault]) -> Reply {
        let ranged = !faults.iter().any(|f| matches!(f, Fault::IgnoreRange));
        let good = self.good(seen, ranged);
        faults.iter().fold(good, |reply, fault| fault.change(reply))
    }
}

/// The same head as GET has, and no body to go wrong.
pub(super) async fn head(reply: Reply, faults: &[Fault]) -> Response {
    if faults.iter().any(|fault| matches!(fault, Fault::Never)) {
        std::future::pending::<()>().await;
    }
    let length = reply.body.len().to_string();
    respond(reply.with("content-length", length), Body::empty())
}

fn respond(reply: Reply, body: Body) -> Response {
    let mut response = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(body).unwrap()
}

/// How the body comes.
pub(super) async fn body(reply: Reply, faults: &[Fault]) -> Response {
    type Piece = Result<Bytes, std::io::Error>;
    let body = reply.body.clone();
    let announced = reply.body.len().to_string();
    let fault = faults.iter().find(|fault| {
        matches!(
            fault,
            Fault::Cut(_)
                | Fault::Short(_)
                | Fault::Excess(_)
                | Fault::Stall(_)
                | Fault::Drip(..)
                | Fault::Never
        )
    });
    let part = |count: usize| body.slice(..count.min(body.len()));
    match fault {
        Some(Fault::Never) => std::future::pending().await,
        Some(Fault::Cut(count)) => {
            let broken = std::io::Error::other("cut");
            // Written out before it breaks, so that the bytes arrive.
            let pieces = futures_util::stream::unfold(
                (Some(part(*count)), Some(broken)),
                |(bytes, broken)| async move {
                    match (bytes, broken) {
                        (Some(bytes), broken) => Some((Ok(bytes), (None, broken))),
                        (None, Some(broken)) => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            Some((Piece::Err(broken), (None, None)))
                        }
                        (None, None) => None,
                    }
                },
            );
            respond(
                reply.with("content-length", announced),
                Body::from_stream(pieces),
            )
        }
        Some(Fault::Short(count)) => {
            let pieces = futures_util::stream::iter([Ok::<_, Infallible>(part(*count))]);
            respond(reply, Body::from_stream(pieces))
        }
        Some(Fault::Excess(count)) => {
            let more = Bytes::from(vec![0; *count]);
            let pieces = futures_util::stream::iter([Ok::<_, Infallible>(body.clone()), Ok(more)]);
            respond(reply, Body::from_stream(pieces))
        }
        Some(Fault::Stall(count)) => {
            let pieces = futures_util::stream::unfold(Some(part(*count)), |bytes| async move {
                match bytes {
                    Some(bytes) => Some((Ok::<_, Infallible>(bytes), None)),
                    None => std::future::pending().await,
                }
            });
            respond(
                reply.with("content-length", announced),
                Body::from_stream(pieces),
            )
        }
        Some(Fault::Drip(count, pause)) => {
            let (count, pause) = (*count, *pause);
            let pieces = futures_util::stream::unfold(body, move |mut rest| async move {
                if rest.is_empty() {
                    return None;
                }
                tokio::time::sleep(pause).await;
                let piece = rest.split_to(count.min(rest.len()));
                Some((Ok::<_, Infallible>(piece), rest))
            });
            respond(
                reply.with("content-length", announced),
                Body::from_stream(pieces),
            )
        }
        _ => respond(reply, Body::from(body)),
    }
}

//! Manifests: what a tag names, and documents by digest.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use super::answer::Answer;
use super::auth::{Challenge, Method as AuthMethod};
use super::error::Tally;
use super::hosts::Host;
use super::transport::{Call, TRACEPARENT};
use super::{Credentials, Error, ErrorClass, Fetched, Repository, Resolved, redact, retry};
use crate::image::{Digest, Hasher, MANIFEST_ACCEPT, MAX_MANIFEST_BYTES, Reference};

/// Error bodies are a few hundred bytes.
const MAX_ERROR_BODY: u64 = 64 << 10;
/// What to do about a web page.
pub(super) const PAGE: &str =
    "; check that it is a registry, and that no proxy or login page is in between";
/// Times a document is asked for again whose transfer broke.
const BROKEN_DOCUMENTS: u32 = 3;

/// One thing asked of one host.
pub(super) struct Ask<'a> {
    pub(super) subject: &'a str,
    pub(super) kind: &'static str,
    pub(super) method: Method,
    /// Behind the repository, such as `manifests/latest`.
    pub(super) path: String,
    pub(super) accept: &'static str,
    /// First byte wanted.
    pub(super) from: u64,
}

impl Repository {
    /// One HEAD where the registry does as the specification says, else a GET.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        let wanted = reference.digest();
        let name = match wanted {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or("latest").to_owned(),
        };
        let subject = reference.to_string();
        let mut tally = Tally::default();
        let order = self.order(|host| host.pull && (host.resolve || wanted.is_some()));
        for (host, last) in order {
            match self.resolve_at(host, &subject, &name, wanted, last).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => tally.add(error),
            }
        }
        Err(tally.into_error(&subject))
    }

    async fn resolve_at(
        &self,
        host: &Host,
        subject: &str,
        name: &str,
        wanted: Option<&Digest>,
        last: bool,
    ) -> Result<Resolved, Error> {
        let mut ask = Ask {
            subject,
            kind: "resolve",
            method: Method::HEAD,
            path: format!("manifests/{name}"),
            accept: MANIFEST_ACCEPT,
            from: 0,
        };
        match self.request(host, &ask, last).await {
            Ok(answer) => {
                if let Some(resolved) = from_head(&answer, host, subject, wanted)? {
                    return Ok(resolved);
                }
            }
            Err(error) if error.status().is_some_and(|status| !speaks_of_get(status)) => {}
            Err(error) => return Err(error),
        }
        ask.method = Method::GET;
        let (answer_digest, media_type, bytes) = self.document(host, &ask, last).await?;
        // The digest asked for rules; else the one the registry names; else ours.
        let told = answer_digest.as_ref();
        let digest = match wanted.or(told) {
            Some(digest) => {
                verify(&bytes, digest, host, subject)?;
                digest.clone()
            }
            None => Digest::sha256(&bytes),
        };
        Ok(Resolved {
            digest,
            media_type,
            size: bytes.len() as u64,
            host: host.name.clone(),
            body: Some(bytes),
        })
    }

    /// A manifest or index by digest, at most [`MAX_MANIFEST_BYTES`].
    pub async fn manifest(&self, digest: &Digest) -> Result<Fetched, Error> {
        let subject = format!("{}@{digest}", self.name());
        let ask = Ask {
            subject: &subject,
            kind: "manifest",
            method: Method::GET,
            path: format!("manifests/{digest}"),
            accept: MANIFEST_ACCEPT,
            from: 0,
        };
        let mut tally = Tally::default();
        for (host, last) in self.order(|host| host.pull) {
            let fetched = self.document(host, &ask, last).await;
            let verified = fetched.and_then(|(_, media_type, bytes)| {
                verify(&bytes, digest, host, &subject)?;
                Ok(Fetched {
                    bytes,
                    media_type,
                    host: host.name.clone(),
                })
            });
            match verified {
                Ok(fetched) => return Ok(fetched),
                Err(error) => tally.add(error),
            }
        }
        Err(tally.into_error(&subject))
    }

    /// A GET whose bounded body is no web page: the digest the registry names, the type, the bytes.
    async fn document(
        &self,
        host: &Host,
        ask: &Ask<'_>,
        last: bool,
    ) -> Result<(Option<Digest>, String, Bytes), Error> {
        let mut attempt = 1;
        loop {
            let answer = self.request(host, ask, last).await?;
            let media_type = answer.media_type();
            if is_page(&media_type) {
                return Err(Error::new(
                    ErrorClass::Protocol,
                    format!(
                        "{}: {} answered a web page{PAGE}",
                        ask.subject, answer.server
                    ),
                ));
            }
            let digest = digest_header(&answer);
            match answer.body(MAX_MANIFEST_BYTES, ask.subject).await {
                Ok(bytes) => return Ok((digest, media_type, bytes)),
                Err(error) if error.class() == ErrorClass::Broken && attempt < BROKEN_DOCUMENTS => {
                    tokio::time::sleep(retry::backoff(attempt, retry::jitter())).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The hosts that may serve, with a mark on the last; those that did not answer a moment ago come late.
    pub(super) fn order(&self, may: impl Fn(&Host) -> bool) -> Vec<(&Host, bool)> {
        let mut hosts: Vec<&Host> = self.hosts.iter().filter(|host| may(host)).collect();
        hosts.sort_by_key(|host| self.transport.is_avoided(host));
        let count = hosts.len();
        hosts
            .into_iter()
            .enumerate()
            .map(|(at, host)| (host, at + 1 == count))
            .collect()
    }

    /// Sends with authorisation as the host wants it; success is a 2xx.
    pub(super) async fn request(
        &self,
        host: &Host,
        ask: &Ask<'_>,
        last: bool,
    ) -> Result<Answer, Error> {
        let result = self.authorised(host, ask, last).await;
        if let Err(error) = &result {
            self.transport.metrics.failed(&host.name, error);
        }
        result
    }

    async fn authorised(&self, host: &Host, ask: &Ask<'_>, last: bool) -> Result<Answer, Error> {
        let (transport, credentials) = (&self.transport, &self.access.credentials);
        let tokens = &transport.tokens;
        let call = self.call(host, ask);
        let (mut authorization, mut new) = (None, false);
        if let Some(method) = tokens.method(host, &self.path, credentials) {
            let header = tokens
                .header(transport, host, &method, credentials, None)
                .await;
            (authorization, new) = header.map_err(|error| about(ask.subject, &error))?;
        }
        loop {
            let answer = transport.send(&call, authorization.as_ref(), last).await?;
            // A new proof that is refused is final, and so is a refusal by a server that got none.
            if answer.status() != 401 || answer.elsewhere || new {
                return self.judge(answer, ask).await;
            }
            let challenges: Vec<Challenge> = answer
                .headers("www-authenticate")
                .flat_map(Challenge::parse)
                .collect();
            let chosen = AuthMethod::choose(&challenges, host, &self.path);
            let Some(method) = chosen.map_err(|error| about(ask.subject, &error))? else {
                return self.judge(answer, ask).await;
            };
            tokens.learn(host, &self.path, credentials, method.clone());
            let stale = authorization.take();
            let bought = tokens
                .header(transport, host, &method, credentials, stale.as_ref())
                .await;
            (authorization, new) = bought.map_err(|error| about(ask.subject, &error))?;
            if authorization.is_none() || authorization == stale {
                return self.judge(answer, ask).await;
            }
        }
    }

    fn call<'a>(&self, host: &'a Host, ask: &Ask<'a>) -> Call<'a> {
        let mut url = host.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{}/{}", self.path, ask.path));
        if let Some(namespace) = &host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(ask.accept));
        // What is transferred has to be the very bytes of the digest.
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        if let Some(trace) = &self.access.traceparent
            && let Ok(trace) = HeaderValue::try_from(trace)
        {
            headers.insert(TRACEPARENT, trace);
        }
        if ask.from > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={}-", ask.from))
        {
            headers.insert(header::RANGE, range);
        }
        Call {
            subject: ask.subject,
            host,
            kind: ask.kind,
            method: ask.method.clone(),
            url,
            headers,
            form: None,
            foreign: false,
        }
    }

    /// Success, or what the status means.
    async fn judge(&self, answer: Answer, ask: &Ask<'_>) -> Result<Answer, Error> {
        let status = answer.status();
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let server = answer.server.clone();
        let asked_wait = answer
            .header("retry-after")
            .map(|wait| format!(" with Retry-After {}", redact::text(wait)));
        let mut codes = Vec::new();
        if ask.method == Method::GET {
            let body = tokio::time::timeout(
                Duration::from_secs(5),
                answer.body(MAX_ERROR_BODY, ask.subject),
            );
            if let Ok(Ok(body)) = body.await {
                codes = redact::codes(&body);
            }
        }
        let code = if codes.is_empty() {
            String::new()
        } else {
            format!(" ({})", codes.join(", "))
        };
        let (class, remedy) = match status {
            401 => (
                ErrorClass::Unauthenticated,
                match self.access.credentials {
                    Credentials::Anonymous => {
                        "the repository does not exist or needs credentials: check the name, or add a pull secret"
                    }
                    _ => "the credentials are not accepted: check user name and password or token",
                },
            ),
            403 => (
                ErrorClass::Denied,
                "the account has no right to pull it, or an address filter is in between",
            ),
            404 => (
                ErrorClass::NotFound,
                "it is not there: check repository and tag",
            ),
            407 => (
                ErrorClass::Unavailable,
                "the proxy on the way wants other credentials: check those in HTTP_PROXY",
            ),
            429 => (
                ErrorClass::RateLimited,
                "too many requests: wait, or pull with an account or through a mirror",
            ),
            500.. => (
                ErrorClass::Server,
                "the registry is in trouble: try again later",
            ),
            _ => (ErrorClass::Protocol, "this is not what a registry answers"),
        };
        let wait = asked_wait
            .filter(|_| matches!(status, 429 | 503))
            .unwrap_or_default();
        Err(Error::new(
            class,
            format!(
                "{}: {server} answered {status}{code}{wait}: {remedy}",
                ask.subject
            ),
        )
        .with_status(status))
    }
}

/// An error of the way to authorise, told about what was asked for.
fn about(subject: &str, error: &Error) -> Error {
    let message = error.to_string();
    if message.starts_with(subject) {
        return error.clone();
    }
    // Its status is the token server's and says nothing about the request.
    Error::new(error.class(), format!("{subject}: {message}"))
}

/// Statuses that a HEAD gets and a GET would get as well.
fn speaks_of_get(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 408 | 429) || (status >= 500 && status != 501)
}

/// True for the type of a page for people.
pub(super) fn is_page(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    matches!(media_type.as_str(), "text/html" | "application/xhtml+xml")
}

fn digest_header(answer: &Answer) -> Option<Digest> {
    answer.header("docker-content-digest")?.trim().parse().ok()
}

/// What a HEAD tells, if that is enough.
fn from_head(
    answer: &Answer,
    host: &Host,
    subject: &str,
    wanted: Option<&Digest>,
) -> Result<Option<Resolved>, Error> {
    let media_type = answer.media_type();
    let (Some(digest), Some(size)) = (digest_header(answer), answer.length().filter(|&n| n > 0))
    else {
        return Ok(None);
    };
    if is_page(&media_type) || media_type.is_empty() {
        return Ok(None);
    }
    if size > MAX_MANIFEST_BYTES {
        return Err(Error::new(
            ErrorClass::Protocol,
            format!(
                "{subject}: {} has a manifest of {size} bytes, the limit is {MAX_MANIFEST_BYTES}; this is no image that can be run",
                host.name
            ),
        ));
    }
    match wanted {
        Some(wanted) if wanted.algorithm() != digest.algorithm() => return Ok(None),
        Some(wanted) if *wanted != digest => {
            return Err(Error::new(
                ErrorClass::Protocol,
                format!(
                    "{subject}: {} answered with {digest} instead; check the registry or mirror",
                    host.name
                ),
            ));
        }
        _ => {}
    }
    Ok(Some(Resolved {
        digest,
        media_type,
        size,
        host: host.name.clone(),
        body: None,
    }))
}

/// Bytes are what was asked for, or an error.
pub(super) fn verify(
    bytes: &[u8],
    digest: &Digest,
    host: &Host,
    subject: &str,
) -> Result<(), Error> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    if found == *digest {
        return Ok(());
    }
    Err(Error::new(
        ErrorClass::Protocol,
        format!(
            "{subject}: {} sent {} bytes of digest {found}, wanted is {digest}; its content is damaged or changed on the way: push it again, or check what is in between",
            host.name,
            bytes.len()
        ),
    ))
}

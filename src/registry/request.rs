//! One request to one host: authorisation, redirects, retries, limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::{Certificate, Identity, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::auth::challenge::{self, Challenge};
use super::auth::credentials::{Credentials, Secret};
use super::auth::token::{self, Ask, Wanted};
use super::error::{self, ErrorClass};
use super::hosts::{Host, Tls, is_loopback};
use super::retry::{self, Failure, Retry};
use super::{Error, Repository, Shared, remember};

/// An answer must begin within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;
/// Of an error's body and of a token server's answer.
const MAX_SMALL_BODY: usize = 256 << 10;

/// What a request is for: a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Blob,
    Token,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Blob => "blob",
            Kind::Token => "token",
        }
    }
}

/// A request as every host of a repository can be asked it.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) method: Method,
    /// `manifests/<tag>` or `blobs/<digest>`.
    pub(super) path: String,
    pub(super) accept: Option<&'static str>,
    /// First byte wanted.
    pub(super) from: u64,
    pub(super) kind: Kind,
}

/// An answer that is not an error, and the permit to receive it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) host: String,
    pub(super) permit: OwnedSemaphorePermit,
}

/// What a host wants to be shown.
#[derive(Clone)]
pub(super) enum Authorisation {
    Basic,
    Bearer(Wanted),
}

impl std::fmt::Debug for Authorisation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorisation")
    }
}

impl Shared {
    fn client(&self, tls: &Tls, direct: bool) -> Result<reqwest::Client, Error> {
        let key = (tls.clone(), direct);
        if let Some(client) = remember(&self.clients).get(&key) {
            return Ok(client.clone());
        }
        let wrong = |what: String| Error::new(ErrorClass::Config, what);
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| wrong(format!("{}: {error}", path.display())))
        };
        let mut builder = reqwest::Client::builder()
            .user_agent(&self.config.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(tls.dial_timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(self.config.max_per_host)
            .tcp_nodelay(true)
            // Blobs are large: the default windows of HTTP/2 would slow them down on long paths.
            .http2_adaptive_window(true)
            .tls_danger_accept_invalid_certs(tls.skip_verify);
        if direct {
            builder = builder.no_proxy();
        }
        for path in &tls.ca {
            let certificates = Certificate::from_pem_bundle(&read(path)?)
                .map_err(|error| wrong(format!("{}: {error}", path.display())))?;
            builder = builder.tls_certs_merge(certificates);
        }
        if let Some((certificate, key)) = tls.client.first() {
            let mut pem = read(certificate)?;
            if let Some(key) = key {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            let identity = Identity::from_pem(&pem)
                .map_err(|error| wrong(format!("{}: {error}", certificate.display())))?;
            builder = builder.identity(identity);
        }
        let client = builder
            .build()
            .map_err(|error| wrong(format!("HTTP client: {}", error::innermost(&error))))?;
        remember(&self.clients).insert(key, client.clone());
        Ok(client)
    }

    async fn permit(&self, host: &str) -> Result<OwnedSemaphorePermit, Error> {
        let limit = remember(&self.limits)
            .entry(host.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(self.config.max_per_host.max(1))))
            .clone();
        limit
            .acquire_owned()
            .await
            .map_err(|_| Error::new(ErrorClass::Unavailable, "the client is closing"))
    }
}

impl Repository {
    /// Asks the hosts in order until one answers; the error of the one that came furthest is told.
    pub(super) async fn ask(
        &self,
        wish: &Wish,
        capable: fn(&Host) -> bool,
    ) -> Result<Answer, Error> {
        let mut worst: Option<Error> = None;
        let mut asked = false;
        for host in self.hosts.iter().filter(|host| capable(host)) {
            asked = true;
            match self.ask_host(host, wish).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    self.shared
                        .metrics
                        .failed(&error::host(&host.base), error.class());
                    tracing::debug!(host = %error::host(&host.base), %error, "A host did not serve");
                    let further = worst
                        .as_ref()
                        .is_none_or(|worst| error.class().stage() >= worst.class().stage());
                    if further {
                        worst = Some(error);
                    }
                }
            }
        }
        debug_assert!(worst.is_some() || !asked);
        Err(worst.unwrap_or_else(|| {
            Error::new(
                ErrorClass::Config,
                format!("hosts.toml leaves no host that may serve {}", self.path),
            )
        }))
    }

    /// Asks one host, again where that may help.
    pub(super) async fn ask_host(&self, host: &Host, wish: &Wish) -> Result<Answer, Error> {
        let config = &self.shared.config;
        let limits = retry::Limits {
            // A mirror is not worth waiting for when there is another host to ask.
            attempts: config.attempts.max(1),
            max_retry_after: config.max_retry_after,
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (failure, error) = match self.attempt(host, wish).await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Failed(failure, error)) => (failure, error),
            };
            let more_hosts = self.hosts.last().is_some_and(|last| last != host);
            let only_once = more_hosts && failure == Failure::Transport;
            match retry::decide(attempt, failure, limits, jitter()) {
                Retry::After(wait) if !only_once => {
                    tracing::debug!(%error, attempt, ?wait, "Trying again");
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(error),
            }
        }
    }

    async fn attempt(&self, host: &Host, wish: &Wish) -> Result<Answer, Attempt> {
        let mut base = host.base.clone();
        if host.guess_scheme && remember(&self.shared.https).contains_key(&error::host(&base)) {
            let _ = base.set_scheme("https");
        }
        let name = error::host(&base);
        let permit = self.shared.permit(&name).await?;
        let mut authorisation = self.shown_before(&name).await?;
        let mut challenged = false;
        loop {
            let url = self.url(&base, host, wish);
            let answer = self.send(host, wish, &url, authorisation.as_ref()).await;
            let response = match answer {
                Ok(response) => response,
                Err(Attempt::Failed(Failure::Transport, _))
                    if host.guess_scheme
                        && base.scheme() == "http"
                        && self.speaks_https(host, &mut base).await =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                authorisation = Some(self.authorise(&base, host, &response, &name).await?);
                continue;
            }
            if status == StatusCode::BAD_REQUEST
                && host.guess_scheme
                && base.scheme() == "http"
                && self.speaks_https(host, &mut base).await
            {
                continue;
            }
            if status.is_success() {
                return Ok(Answer {
                    response,
                    host: name,
                    permit,
                });
            }
            return Err(self.refused(status, response, &url).await);
        }
    }

    /// Whether an unconfigured loopback address speaks HTTPS; then it is remembered. Its certificate is not verified:
    /// nobody else answers on loopback.
    async fn speaks_https(&self, host: &Host, base: &mut Url) -> bool {
        let mut https = base.clone();
        if https.set_scheme("https").is_err() {
            return false;
        }
        let Ok(client) = self.shared.client(&tls_of(host, &https), true) else {
            return false;
        };
        let probe = client.get(https.clone()).timeout(Duration::from_secs(5));
        if probe.send().await.is_err() {
            return false;
        }
        remember(&self.shared.https).insert(error::host(base), ());
        *base = https;
        true
    }

    async fn refused(&self, status: StatusCode, response: Response, url: &Url) -> Attempt {
        let now = jiff::Timestamp::now().as_second();
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry::retry_after(value, now));
        let body = small_body(response).await.unwrap_or_default();
        let error = Error::of_status(status, url, &error::codes(&body));
        Attempt::Failed(Failure::Status(status, wait), error)
    }

    fn url(&self, base: &Url, host: &Host, wish: &Wish) -> Url {
        let mut url = base.clone();
        url.set_path(&format!("{}/{}/{}", base.path(), self.path, wish.path));
        if let Some(namespace) = &host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Sends, and follows redirects. Credentials and configured headers stay with the host they are for.
    async fn send(
        &self,
        host: &Host,
        wish: &Wish,
        first: &Url,
        authorisation: Option<&HeaderValue>,
    ) -> Result<Response, Attempt> {
        let mut url = first.clone();
        let mut seen = vec![url.clone()];
        loop {
            let home = url.origin() == first.origin();
            let tls = if home {
                tls_of(host, &url)
            } else {
                Tls::default()
            };
            let client = self.shared.client(&tls, is_loopback(&url))?;
            let mut request = client.request(wish.method.clone(), url.clone());
            if let Some(accept) = wish.accept {
                request = request.header(ACCEPT, accept);
            }
            if wish.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", wish.from));
            }
            if home {
                request = request.headers(host.header.clone());
                if let Some(authorisation) = authorisation {
                    request = request.header(AUTHORIZATION, authorisation.clone());
                }
            }
            let began = Instant::now();
            let response = tokio::time::timeout(HEADER_TIMEOUT, request.send())
                .await
                .map_err(|_| {
                    let text = format!(
                        "{} did not answer in {} s",
                        error::host(&url),
                        HEADER_TIMEOUT.as_secs()
                    );
                    Attempt::Failed(
                        Failure::Transport,
                        Error::new(ErrorClass::Unavailable, text),
                    )
                })?
                .map_err(|error| {
                    Attempt::Failed(Failure::Transport, Error::of_transport(&url, &error))
                })?;
            self.shared.metrics.answered(
                &error::host(&url),
                response.status().as_u16(),
                wish.kind.label(),
                began.elapsed(),
            );
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let wrong = |what: &str| {
                let text = format!("{} redirects {what}", error::host(&url));
                Attempt::Final(Error::new(ErrorClass::Protocol, text))
            };
            let next = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| url.join(location).ok())
                .filter(|next| matches!(next.scheme(), "http" | "https"))
                .ok_or_else(|| wrong("to nowhere"))?;
            if url.scheme() == "https" && next.scheme() == "http" && !is_loopback(&next) {
                return Err(wrong("from HTTPS to plain HTTP, which is refused"));
            }
            if seen.contains(&next) {
                return Err(wrong("in a circle"));
            }
            if seen.len() > MAX_REDIRECTS {
                return Err(wrong("more than 10 times"));
            }
            seen.push(next.clone());
            url = next;
        }
    }

    /// The header that this host wanted the last time, if it can be made without asking.
    async fn shown_before(&self, host: &str) -> Result<Option<HeaderValue>, Attempt> {
        let known = remember(&self.challenges).get(host).cloned();
        match known {
            Some(Authorisation::Basic) => Ok(self.basic()),
            Some(Authorisation::Bearer(wanted)) => {
                let token = self.shared.tokens.get(&wanted, Instant::now());
                token.map(|token| bearer(&token)).transpose()
            }
            None => Ok(None),
        }
    }

    fn basic(&self) -> Option<HeaderValue> {
        use base64::Engine as _;
        let Credentials::Basic { username, password } = &*self.credentials else {
            return None;
        };
        let pair = format!("{username}:{}", password.expose());
        let text = base64::engine::general_purpose::STANDARD.encode(pair);
        let mut value = HeaderValue::try_from(format!("Basic {text}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Answers a challenge.
    async fn authorise(
        &self,
        base: &Url,
        host: &Host,
        response: &Response,
        name: &str,
    ) -> Result<HeaderValue, Attempt> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = challenge::parse(headers.iter().filter_map(|value| value.to_str().ok()));
        let refused = || {
            Attempt::Final(Error::of_status(
                StatusCode::UNAUTHORIZED,
                response.url(),
                "",
            ))
        };
        if let Credentials::Bearer(token) = &*self.credentials {
            return bearer(token);
        }
        for challenge in challenges {
            match challenge {
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                    error,
                } => {
                    let wanted = Wanted {
                        realm,
                        service,
                        scope: if scope.is_empty() {
                            format!("repository:{}:pull", self.path)
                        } else {
                            scope
                        },
                        fingerprint: self.credentials.fingerprint(),
                    };
                    let now = Instant::now();
                    if !error.is_empty() {
                        self.shared.tokens.forget(&wanted);
                    }
                    let token = match self.shared.tokens.get(&wanted, now) {
                        Some(token) => token,
                        None => {
                            let bought = self.buy(base, host, &wanted).await?;
                            self.shared.tokens.put(wanted.clone(), &bought, now);
                            bought.token
                        }
                    };
                    remember(&self.challenges)
                        .insert(name.to_owned(), Authorisation::Bearer(wanted));
                    return bearer(&token);
                }
                Challenge::Basic => {
                    if let Some(value) = self.basic() {
                        remember(&self.challenges).insert(name.to_owned(), Authorisation::Basic);
                        return Ok(value);
                    }
                }
            }
        }
        Err(refused())
    }

    /// Buys a token at the realm that the registry names.
    async fn buy(
        &self,
        base: &Url,
        host: &Host,
        wanted: &Wanted,
    ) -> Result<token::Bought, Attempt> {
        let realm = Url::parse(&wanted.realm)
            .ok()
            .filter(|realm| matches!(realm.scheme(), "http" | "https"))
            .ok_or_else(|| {
                let text = format!(
                    "{} names a token server that is no address",
                    error::host(base)
                );
                Attempt::Final(Error::new(ErrorClass::Protocol, text))
            })?;
        if realm.scheme() == "http" && base.scheme() == "https" && !is_loopback(&realm) {
            let text = format!(
                "{} names a token server without TLS; credentials are not sent there",
                error::host(base)
            );
            return Err(Attempt::Final(Error::new(ErrorClass::Protocol, text)));
        }
        let tls = if realm.host() == base.host() {
            tls_of(host, &realm)
        } else {
            Tls::default()
        };
        let client = self.shared.client(&tls, is_loopback(&realm))?;
        let mut outcome = None;
        for way in token::ways(&realm, wanted, &self.credentials) {
            let request = match way {
                Ask::Get(url) => {
                    let request = client.get(url);
                    match self.basic() {
                        Some(value) => request.header(AUTHORIZATION, value),
                        None => request,
                    }
                }
                Ask::Post(form) => {
                    let mut body = url::form_urlencoded::Serializer::new(String::new());
                    body.extend_pairs(form);
                    client
                        .post(realm.clone())
                        .header("content-type", "application/x-www-form-urlencoded")
                        .body(body.finish())
                }
            };
            let began = Instant::now();
            let response = tokio::time::timeout(HEADER_TIMEOUT, request.send())
                .await
                .map_err(|_| {
                    let text = format!(
                        "the token server {} did not answer in time",
                        error::host(&realm)
                    );
                    Attempt::Failed(
                        Failure::Transport,
                        Error::new(ErrorClass::Unavailable, text),
                    )
                })?
                .map_err(|error| {
                    Attempt::Failed(Failure::Transport, Error::of_transport(&realm, &error))
                })?;
            let status = response.status();
            self.shared.metrics.answered(
                &error::host(&realm),
                status.as_u16(),
                Kind::Token.label(),
                began.elapsed(),
            );
            if status.is_success() {
                let body = small_body(response).await?;
                return Ok(token::read(&body, &realm)?);
            }
            let again = matches!(status.as_u16(), 400 | 401 | 404 | 405);
            let refused = self.refused(status, response, &realm).await;
            outcome = Some(refused);
            if !again {
                break;
            }
        }
        Err(outcome.unwrap_or_else(|| {
            Attempt::Final(Error::new(
                ErrorClass::Unauthenticated,
                "no way to buy a token",
            ))
        }))
    }
}

/// How one attempt ended without an answer to use.
#[derive(Debug)]
enum Attempt {
    /// Trying again cannot help.
    Final(Error),
    Failed(Failure, Error),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Attempt::Final(error)
    }
}

fn bearer(token: &Secret) -> Result<HeaderValue, Attempt> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
        Attempt::Final(Error::new(
            ErrorClass::Unauthenticated,
            "the token has characters that a header cannot have",
        ))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A guessed HTTPS on loopback has a certificate that nobody can have signed.
fn tls_of(host: &Host, url: &Url) -> Tls {
    let mut tls = host.tls.clone();
    if host.guess_scheme && url.scheme() == "https" {
        tls.skip_verify = true;
    }
    tls
}

/// A body that must be small.
async fn small_body(mut response: Response) -> Result<Vec<u8>, Error> {
    let url = response.url().clone();
    let mut body = Vec::new();
    loop {
        let chunk = tokio::time::timeout(HEADER_TIMEOUT, response.chunk())
            .await
            .map_err(|_| {
                let text = format!("{} stopped in the middle of an answer", error::host(&url));
                Error::new(ErrorClass::Unavailable, text)
            })?
            .map_err(|error| Error::of_transport(&url, &error))?;
        match chunk {
            Some(chunk) if body.len() + chunk.len() <= MAX_SMALL_BODY => body.extend(&chunk),
            Some(_) => {
                let text = format!("{} sent an answer that is too long", error::host(&url));
                return Err(Error::new(ErrorClass::Protocol, text));
            }
            None => return Ok(body),
        }
    }
}

/// A number from 0 to 1 that differs from node to node and time to time.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

//! One HTTP exchange: connections by trust, redirects by hand, limits per host, trying again.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::answer::{Answer, causes};
use super::auth::Tokens;
use super::hosts::{Host, Tls, is_loopback};
use super::retry::{self, Failure, Limits, Retry};
use super::{Config, Error, ErrorClass, Metrics, redact};

const MAX_REDIRECTS: usize = 10;
const MAX_CLIENTS: usize = 64;
const MAX_GATES: usize = 1024;
/// How long a host that did not answer is asked last.
const AVOIDED: Duration = Duration::from_secs(30);

/// What all repositories share.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    pub(super) tokens: Tokens,
    clients: Mutex<HashMap<Profile, reqwest::Client>>,
    gates: Mutex<HashMap<Gate, Arc<Semaphore>>>,
    avoided: Mutex<HashMap<String, Instant>>,
}

/// Connections are shared among requests that trust alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Profile {
    tls: Tls,
    dial_timeout: Duration,
    direct: bool,
    plain: bool,
}

/// Documents do not queue behind blobs, which may be held open for long, nor tokens behind the requests that need them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Gate {
    host: String,
    class: &'static str,
}

/// A request that may be sent several times.
pub(super) struct Call<'a> {
    /// For messages: what is asked for.
    pub(super) subject: &'a str,
    /// Whose settings and limits apply.
    pub(super) host: &'a Host,
    /// For metrics.
    pub(super) kind: &'static str,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Body of a POST.
    pub(super) form: Option<String>,
    /// Goes to another server than `host`, such as its token server.
    pub(super) foreign: bool,
}

/// An attempt without an answer.
enum Attempt {
    Failed(Failure, String),
    Refused(Error),
}

impl Transport {
    pub(super) fn new(config: Config, metrics: Metrics) -> Self {
        Transport {
            config,
            metrics,
            tokens: Tokens::default(),
            clients: Mutex::default(),
            gates: Mutex::default(),
            avoided: Mutex::default(),
        }
    }

    /// True where the host did not answer a moment ago.
    pub(super) fn is_avoided(&self, host: &Host) -> bool {
        let avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        avoided
            .get(host.base.as_str())
            .is_some_and(|until| *until > Instant::now())
    }

    fn avoid(&self, host: &Host, now: Instant) {
        let mut avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        avoided.retain(|_, until| *until > now);
        if avoided.len() < MAX_GATES {
            avoided.insert(host.base.as_str().to_owned(), now + AVOIDED);
        }
    }

    /// Sends until there is an answer that counts. With `persist` false the first trouble counts: another host is next.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
        persist: bool,
    ) -> Result<Answer, Error> {
        let limits = Limits {
            attempts: if persist {
                self.config.attempts.max(1)
            } else {
                1
            },
            max_retry_after: self.config.max_retry_after,
            total: self
                .config
                .max_retry_after
                .saturating_mul(self.config.attempts.max(1)),
        };
        let started = Instant::now();
        for attempt in 1.. {
            let tried = self.follow(call, authorization).await;
            let failure = match &tried {
                Ok(answer) => Failure::Status(answer.status(), answer.retry_after()),
                Err(Attempt::Failed(failure, _)) => *failure,
                Err(Attempt::Refused(error)) => return Err(error.clone()),
            };
            let decision = retry::decide(
                attempt,
                failure,
                started.elapsed(),
                &limits,
                retry::jitter(),
            );
            match (decision, tried) {
                (Retry::After(wait), tried) => {
                    tracing::debug!(
                        host = call.host.name,
                        attempt,
                        ?failure,
                        ?wait,
                        "Registry request is tried again"
                    );
                    // The answer holds a place among the host's requests: not while waiting.
                    drop(tried);
                    tokio::time::sleep(wait).await;
                }
                (Retry::GiveUp, Ok(answer)) => return Ok(answer),
                (Retry::GiveUp, Err(Attempt::Refused(error))) => return Err(error),
                (Retry::GiveUp, Err(Attempt::Failed(failure, cause))) => {
                    if !call.foreign && matches!(failure, Failure::Connect | Failure::Timeout) {
                        self.avoid(call.host, Instant::now());
                    }
                    let server = if call.foreign {
                        format!("token server {}", redact::url(&call.url))
                    } else {
                        call.host.name.clone()
                    };
                    return Err(Error::new(
                        ErrorClass::Unavailable,
                        format!("{}: no answer from {server}: {cause}", call.subject),
                    ));
                }
            }
        }
        Err(Error::new(
            ErrorClass::Unavailable,
            format!("{}: no attempt was made", call.subject),
        ))
    }

    /// One attempt with its redirects.
    async fn follow(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Attempt> {
        let permit = self.permit(call).await.map_err(Attempt::Refused)?;
        let refuse = |why: String| {
            Err(Attempt::Refused(Error::new(
                ErrorClass::Protocol,
                format!("{}: {} {why}", call.subject, call.host.name),
            )))
        };
        let mut url = call.url.clone();
        let mut seen: Vec<Url> = Vec::new();
        loop {
            let home = same_server(&call.url, &url);
            let mut headers = call.headers.clone();
            if !home {
                headers.remove(header::AUTHORIZATION);
            }
            if home && !call.foreign {
                headers.extend(call.host.headers.clone());
            }
            if home && let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            let trusted = same_server(&call.host.base, &url);
            let client = self
                .client(call.host, &url, trusted)
                .await
                .map_err(Attempt::Refused)?;
            let mut request = client
                .request(call.method.clone(), url.clone())
                .headers(headers);
            if let Some(form) = &call.form {
                request = request.body(form.clone());
            }
            let patience = call
                .host
                .dial_timeout
                .saturating_add(self.config.stall_timeout);
            let started = Instant::now();
            let response = match tokio::time::timeout(patience, request.send()).await {
                Err(_) => {
                    return Err(Attempt::Failed(
                        Failure::Timeout,
                        format!("nothing came within {} s", patience.as_secs_f32()),
                    ));
                }
                Ok(Err(error)) => return Err(attempt_of(error, call, &url)),
                Ok(Ok(response)) => response,
            };
            let status = response.status().as_u16();
            let server = redact::host_of(&url);
            self.metrics
                .answered(&server, status, call.kind, started.elapsed());
            let location = response.headers().get(header::LOCATION);
            let (true, Some(location), None) = (
                matches!(status, 301 | 302 | 303 | 307 | 308),
                location,
                &call.form,
            ) else {
                return Ok(Answer::new(
                    response,
                    server,
                    !home,
                    self.config.stall_timeout,
                    permit,
                ));
            };
            let target = location
                .to_str()
                .ok()
                .and_then(|location| url.join(location).ok());
            let Some(target) = target else {
                return refuse("redirects to something that is not a URL".to_owned());
            };
            let place = redact::url(&target);
            match (url.scheme(), target.scheme()) {
                (_, "https") | ("http", "http") => {}
                ("https", "http") if call.host.base.scheme() == "http" => {}
                ("https", "http") => {
                    return refuse(format!(
                        "redirects from https to plain http ({place}), which is refused"
                    ));
                }
                _ => return refuse(format!("redirects to {place}, which is not https")),
            }
            seen.push(url);
            if seen.contains(&target) {
                return refuse(format!("redirects in a loop ({place})"));
            }
            if seen.len() > MAX_REDIRECTS {
                return refuse(format!("redirects more than {MAX_REDIRECTS} times"));
            }
            url = target;
        }
    }

    async fn permit(&self, call: &Call<'_>) -> Result<OwnedSemaphorePermit, Error> {
        let gate = {
            let key = Gate {
                host: call.host.name.clone(),
                class: match call.kind {
                    kind @ ("blob" | "token") => kind,
                    _ => "document",
                },
            };
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            if gates.len() >= MAX_GATES {
                // A gate that is in use is held by its permits as well.
                gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            }
            let new = || Arc::new(Semaphore::new(self.config.max_per_host.max(1)));
            Arc::clone(gates.entry(key).or_insert_with(new))
        };
        // The semaphore is never closed.
        gate.acquire_owned()
            .await
            .map_err(|_| Error::new(ErrorClass::Unavailable, "the client is shutting down"))
    }

    async fn client(&self, host: &Host, url: &Url, own: bool) -> Result<reqwest::Client, Error> {
        let plain = url.scheme() == "http";
        let mut tls = if plain {
            Tls::default()
        } else {
            host.tls.clone()
        };
        if !own {
            // The proof of who we are is for the host it was configured for.
            tls.identity = None;
        }
        let profile = Profile {
            tls,
            dial_timeout: host.dial_timeout,
            direct: is_loopback(url),
            plain,
        };
        let found = {
            let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.get(&profile).cloned()
        };
        if let Some(client) = found {
            return Ok(client);
        }
        let (name, config, wanted) = (host.name.clone(), self.config.clone(), profile.clone());
        // The system's certificates are read from disk.
        let built = tokio::task::spawn_blocking(move || build(&config, &wanted, &name))
            .await
            .map_err(|_| Error::new(ErrorClass::Config, "the HTTP client could not be built"))??;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        Ok(clients.entry(profile).or_insert(built).clone())
    }
}

fn build(config: &Config, profile: &Profile, host: &str) -> Result<reqwest::Client, Error> {
    let wrong = |what: &str| Error::new(ErrorClass::Config, format!("{host}: {what}"));
    let mut builder = reqwest::Client::builder()
        .user_agent(config.user_agent.as_str())
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(profile.dial_timeout)
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(config.max_per_host)
        .tcp_keepalive(Duration::from_secs(30));
    if profile.direct {
        builder = builder.no_proxy();
    }
    if profile.plain {
        // Not even the system's certificates are needed, and a node may have none.
        builder = builder.tls_certs_only([]);
    } else if profile.tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    } else {
        let mut authorities = Vec::new();
        for bundle in &profile.tls.authorities {
            let read = reqwest::Certificate::from_pem_bundle(bundle)
                .map_err(|_| wrong("the CA file is not a list of PEM certificates"))?;
            authorities.extend(read);
        }
        builder = builder.tls_certs_merge(authorities);
    }
    if let Some(identity) = &profile.tls.identity {
        let identity = reqwest::Identity::from_pem(identity).map_err(|_| {
            wrong("the client certificate and key are not PEM, or one of them is missing")
        })?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| {
        wrong(&format!(
            "the HTTP client cannot be built: {}; install the system's CA certificates, or name a file with SSL_CERT_FILE",
            causes(&error.without_url())
        ))
    })
}

/// Same host and port; a step from http to https on the default ports stays with the same server.
fn same_server(one: &Url, other: &Url) -> bool {
    let upgrade = one.scheme() == "http" && other.scheme() == "https";
    one.host() == other.host()
        && ((one.scheme() == other.scheme()
            && one.port_or_known_default() == other.port_or_known_default())
            || (upgrade && one.port().is_none() && other.port().is_none()))
}

/// The TLS error among the causes. `io::Error` hides what it holds from `source`, and is nested in itself.
fn tls_cause(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut source = error.source();
    while let Some(cause) = source {
        let mut held: &(dyn std::error::Error + 'static) = cause;
        loop {
            if let Some(tls) = held.downcast_ref::<rustls::Error>() {
                return Some(tls);
            }
            match held
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
            {
                Some(inner) => held = inner,
                None => break,
            }
        }
        source = cause.source();
    }
    None
}

fn attempt_of(error: reqwest::Error, call: &Call<'_>, url: &Url) -> Attempt {
    let error = error.without_url();
    let text = causes(&error);
    if let Some(tls) = tls_cause(&error) {
        let remedy = match tls {
            rustls::Error::InvalidCertificate(_) => {
                "; name its authority with \"ca\" in hosts.toml or add it to the system's certificates"
            }
            rustls::Error::InvalidMessage(_) => {
                "; the server may speak plain http: then name it as http:// in hosts.toml"
            }
            _ => "",
        };
        let place = redact::host_of(url);
        return Attempt::Failed(
            Failure::Permanent,
            format!("TLS with {place}: {text}{remedy}"),
        );
    }
    if error.is_builder() {
        return Attempt::Refused(Error::new(
            ErrorClass::Config,
            format!(
                "{}: the request to {} cannot be made: {text}",
                call.subject, call.host.name
            ),
        ));
    }
    let failure = if error.is_timeout() {
        Failure::Timeout
    } else {
        Failure::Connect
    };
    Attempt::Failed(failure, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_with_their_server() {
        let same = |one: &str, other: &str| {
            same_server(&Url::parse(one).unwrap(), &Url::parse(other).unwrap())
        };
        assert!(same("https://a/x", "https://a:443/y"));
        assert!(same("http://a/x", "https://a/y"));
        assert!(!same("https://a/x", "http://a/y"));
        assert!(!same("https://a/x", "https://a:8443/y"));
        assert!(!same("http://a:5000/x", "https://a:5000/y"));
        assert!(!same("https://a/x", "https://b.a/y"));
    }
}

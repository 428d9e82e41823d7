//! One HTTP exchange: connections by trust, redirects by hand, limits per host, trying again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::answer::{Answer, causes};
use super::auth::Tokens;
use super::connect::{Profile, build, is_refused, tls_cause};
use super::hosts::{Host, Tls};
use super::proxy::Proxies;
use super::retry::{self, Failure, Limits, Retry};
use super::{Config, Error, ErrorClass, Metrics, redact};

/// Of the W3C trace context; for the registry's own hosts, not for where they redirect to.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const MAX_REDIRECTS: usize = 10;
/// What to do about a redirect that cannot be followed.
const REDIRECTED: &str = "; check the registry's own configuration and what stands before it";
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
    /// Which of a host's [`ways`] worked last, by its base.
    manners: Mutex<HashMap<String, usize>>,
    proxies: Result<Proxies, Error>,
}

/// How a host is spoken to, where that is not known beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// With the other scheme than that of its base.
    alternate: bool,
    /// Which of the client certificates is shown.
    identity: Option<usize>,
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
    /// Failed as it does where a host is spoken to in a way that is not its own.
    Misunderstood(Failure, String),
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
            manners: Mutex::default(),
            proxies: Proxies::from_env(),
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
            let tried = self.attempt(call, authorization).await;
            let failure = match &tried {
                Ok(answer) => Failure::Status(answer.status(), answer.retry_after()),
                Err(Attempt::Failed(failure, _) | Attempt::Misunderstood(failure, _)) => *failure,
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
                (
                    Retry::GiveUp,
                    Err(Attempt::Failed(failure, cause) | Attempt::Misunderstood(failure, cause)),
                ) => {
                    if !call.foreign && matches!(failure, Failure::Connect | Failure::Timeout) {
                        self.avoid(call.host, Instant::now());
                    }
                    let server = if call.foreign {
                        format!("token server {}", redact::url(&call.url))
                    } else {
                        call.host.name.clone()
                    };
                    let remedy = match failure {
                        Failure::Connect | Failure::Timeout => {
                            "; check the name, that it runs, and this node's way to it"
                        }
                        _ => "",
                    };
                    return Err(Error::new(
                        ErrorClass::Unavailable,
                        format!("{}: no answer from {server}: {cause}{remedy}", call.subject),
                    ));
                }
            }
        }
        Err(Error::new(
            ErrorClass::Unavailable,
            format!("{}: no attempt was made", call.subject),
        ))
    }

    /// One attempt. Where it is open how a host is spoken to, the ways are tried in turn, beginning with the one that
    /// worked last. If none does, the first one's failure counts.
    async fn attempt(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Attempt> {
        // Of the attempt as a whole: an answer that is kept for comparison must not stand in the way of the next.
        let permit = Arc::new(self.permit(call).await.map_err(Attempt::Refused)?);
        let ways = ways(call.host);
        let base = call.host.base.as_str();
        let known = {
            let manners = self.manners.lock().unwrap_or_else(PoisonError::into_inner);
            manners.get(base).copied().unwrap_or(0)
        };
        let mut first = None;
        // A token server is asked as its registry was: with 400 it refuses an account, which must not be shown twice.
        let turns = if call.foreign { 1 } else { ways.len() };
        for turn in 0..turns {
            let at = (known + turn) % ways.len();
            let Some(way) = ways.get(at) else { break };
            let tried = self.follow(call, *way, authorization, &permit).await;
            if turns > 1 && is_misunderstood(&tried) {
                first.get_or_insert(tried);
                continue;
            }
            if tried.is_ok() && at != known {
                let mut manners = self.manners.lock().unwrap_or_else(PoisonError::into_inner);
                if manners.len() >= MAX_GATES {
                    // To forget costs a failed attempt each, no more.
                    manners.clear();
                }
                manners.insert(base.to_owned(), at);
            }
            return tried;
        }
        match first {
            Some(first) => first,
            None => self.follow(call, Way::USUAL, authorization, &permit).await,
        }
    }

    /// One attempt with its redirects.
    async fn follow(
        &self,
        call: &Call<'_>,
        way: Way,
        authorization: Option<&HeaderValue>,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Result<Answer, Attempt> {
        let refuse = |why: String| {
            Err(Attempt::Refused(Error::new(
                ErrorClass::Protocol,
                format!("{}: {} {why}", call.subject, call.host.name),
            )))
        };
        let (mut start, mut base) = (call.url.clone(), &call.host.base);
        if way.alternate
            && let Some(alternate) = &call.host.alternate
        {
            base = alternate;
            if !call.foreign {
                // Cannot fail between http and https.
                let _ = start.set_scheme(alternate.scheme());
            }
        }
        let mut url = start.clone();
        let mut seen: Vec<Url> = Vec::new();
        loop {
            let home = same_server(&start, &url);
            let mut headers = call.headers.clone();
            if !home {
                headers.remove(header::AUTHORIZATION);
                headers.remove(TRACEPARENT);
            }
            if home && !call.foreign {
                headers.extend(call.host.headers.clone());
            }
            if home && let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            // The proof of who we are is for the host it was configured for.
            let identity = way.identity.filter(|_| same_server(base, &url));
            let client = self
                .client(call.host, &url, identity)
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
                    Arc::clone(permit),
                ));
            };
            let target = location
                .to_str()
                .ok()
                .and_then(|location| url.join(location).ok());
            let Some(target) = target else {
                return refuse(format!(
                    "redirects to something that is not a URL{REDIRECTED}"
                ));
            };
            let place = redact::url(&target);
            match (url.scheme(), target.scheme()) {
                (_, "https") | ("http", "http") => {}
                ("https", "http") if call.host.may_be_plain() => {}
                ("https", "http") => {
                    return refuse(format!(
                        "redirects from https to plain http ({place}), which is refused{REDIRECTED}"
                    ));
                }
                _ => {
                    return refuse(format!(
                        "redirects to {place}, which is not https{REDIRECTED}"
                    ));
                }
            }
            seen.push(url);
            if seen.contains(&target) {
                return refuse(format!("redirects in a loop ({place}){REDIRECTED}"));
            }
            if seen.len() > MAX_REDIRECTS {
                return refuse(format!(
                    "redirects more than {MAX_REDIRECTS} times{REDIRECTED}"
                ));
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

    async fn client(
        &self,
        host: &Host,
        url: &Url,
        identity: Option<usize>,
    ) -> Result<reqwest::Client, Error> {
        let plain = url.scheme() == "http";
        let tls = if plain {
            Tls::default()
        } else {
            let identity = identity.and_then(|at| host.tls.identities.get(at));
            Tls {
                identities: identity.cloned().into_iter().collect(),
                ..host.tls.clone()
            }
        };
        let proxies = self.proxies.as_ref().map_err(Clone::clone)?;
        let profile = Profile {
            tls,
            dial_timeout: host.dial_timeout,
            proxy: proxies.for_url(url).cloned(),
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

impl Way {
    /// As the host's base says, without a client certificate.
    const USUAL: Way = Way {
        alternate: false,
        identity: None,
    };
}

/// The ways to speak to a host, the likeliest first. Hosts for which all is known have one.
fn ways(host: &Host) -> Vec<Way> {
    let mut ways = Vec::new();
    let bases = [(false, Some(&host.base)), (true, host.alternate.as_ref())];
    for (alternate, base) in bases {
        let Some(base) = base else { continue };
        let count = host.tls.identities.len();
        if base.scheme() == "http" || count == 0 {
            ways.push(Way {
                alternate,
                identity: None,
            });
        } else {
            ways.extend((0..count).map(|at| Way {
                alternate,
                identity: Some(at),
            }));
        }
    }
    ways
}

/// True where another way may be the host's. Servers that are spoken to without TLS where they want it, and some that do
/// not like a certificate, say so with a 400.
fn is_misunderstood(tried: &Result<Answer, Attempt>) -> bool {
    match tried {
        Ok(answer) => answer.status() == 400,
        Err(Attempt::Misunderstood(..)) => true,
        Err(Attempt::Failed(..) | Attempt::Refused(_)) => false,
    }
}

/// Same host and port; a step from http to https on the default ports stays with the same server.
fn same_server(one: &Url, other: &Url) -> bool {
    let upgrade = one.scheme() == "http" && other.scheme() == "https";
    one.host() == other.host()
        && ((one.scheme() == other.scheme()
            && one.port_or_known_default() == other.port_or_known_default())
            || (upgrade && one.port().is_none() && other.port().is_none()))
}

fn attempt_of(error: reqwest::Error, call: &Call<'_>, url: &Url) -> Attempt {
    let error = error.without_url();
    let text = causes(&error);
    if let Some(tls) = tls_cause(&error) {
        let none = call.host.tls.identities.is_empty();
        let remedy = match tls {
            rustls::Error::InvalidCertificate(_) => {
                "; name its authority with \"ca\" in hosts.toml or add it to the system's certificates"
            }
            rustls::Error::InvalidMessage(_) => {
                "; the server may speak plain http: then name it as http:// in hosts.toml"
            }
            rustls::Error::AlertReceived(_) if none => {
                "; the server may want a client certificate: name one with \"client\" in hosts.toml"
            }
            rustls::Error::AlertReceived(_) => {
                "; the server may not take the client certificate that hosts.toml names"
            }
            _ => "",
        };
        let place = redact::host_of(url);
        let text = format!("TLS with {place}: {text}{remedy}");
        // A certificate that is not trusted is no reason to go on without any.
        return match tls {
            rustls::Error::InvalidCertificate(_) => Attempt::Failed(Failure::Permanent, text),
            _ => Attempt::Misunderstood(Failure::Permanent, text),
        };
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
    if error.is_timeout() {
        return Attempt::Failed(Failure::Timeout, text);
    }
    if is_refused(&error) {
        return Attempt::Failed(Failure::Connect, text);
    }
    Attempt::Misunderstood(Failure::Connect, text)
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

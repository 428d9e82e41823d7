//! How a host wants to be asked, and the bearer tokens bought for it. Both are remembered, bounded, per process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use url::Url;

use super::{Challenge, Credentials};
use crate::registry::hosts::Host;
use crate::registry::transport::{Call, Transport};
use crate::registry::{Error, ErrorClass, redact};

const MAX_TOKENS: usize = 512;
const MAX_METHODS: usize = 1024;
/// A token answer is a few KiB.
const MAX_ANSWER: u64 = 256 << 10;
/// What the token specification says where `expires_in` is missing.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(12 * 3600);
/// A token is not used any more so long before it ends, or the last quarter of a short life.
const MARGIN: Duration = Duration::from_secs(15);

/// The way a host wants requests authorised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::registry) enum Method {
    /// User and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// Where tokens are sold.
        realm: Url,
        /// Name of the registry there.
        service: String,
        /// Sorted, without repeats.
        scopes: Vec<String>,
    },
}

impl Method {
    /// Picks the best of a 401 answer's challenges. `Ok(None)` where none is understood.
    pub(in crate::registry) fn choose(
        challenges: &[Challenge],
        host: &Host,
        repository: &str,
    ) -> Result<Option<Method>, Error> {
        let bearer = challenges
            .iter()
            .find(|c| c.scheme == "bearer" && c.param("realm").is_some());
        let Some(bearer) = bearer else {
            let basic = challenges.iter().any(|c| c.scheme == "basic");
            return Ok(basic.then_some(Method::Basic));
        };
        let refuse = |why: &str| {
            Error::new(
                ErrorClass::Protocol,
                format!("{} names a token server that {why}", host.name),
            )
        };
        let realm = Url::parse(bearer.param("realm").unwrap_or_default())
            .map_err(|_| refuse("is not a URL"))?;
        match realm.scheme() {
            "https" => {}
            "http" if host.may_be_plain() => {}
            "http" => {
                return Err(refuse(
                    "speaks plain http, though the registry itself speaks https",
                ));
            }
            _ => return Err(refuse("is neither https nor http")),
        }
        let own = format!("repository:{repository}:pull");
        let mut scopes: Vec<String> = bearer
            .param("scope")
            .unwrap_or_default()
            .split_ascii_whitespace()
            .take(16)
            .map(str::to_owned)
            .collect();
        let prefix = format!("repository:{repository}:");
        let asked = |scope: &String| {
            scope.strip_prefix(prefix.as_str()).is_some_and(|actions| {
                actions
                    .split(',')
                    .any(|action| matches!(action, "pull" | "*"))
            })
        };
        if !scopes.iter().any(asked) {
            scopes.push(own);
        }
        scopes.sort();
        scopes.dedup();
        Ok(Some(Method::Bearer {
            realm,
            service: bearer.param("service").unwrap_or_default().to_owned(),
            scopes,
        }))
    }
}

/// Who asks which host for what.
#[derive(Clone, PartialEq, Eq, Hash)]
struct HostKey {
    base: String,
    repository: String,
    credentials: [u8; 32],
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    method: Method,
    credentials: [u8; 32],
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

/// One buyer at a time; the others wait and find the token.
type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// What was learned of hosts, and tokens until they end.
#[derive(Default)]
pub(in crate::registry) struct Tokens {
    methods: Mutex<HashMap<HostKey, Method>>,
    slots: Mutex<HashMap<TokenKey, Slot>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[tokens]")
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

/// Why no token was sold.
enum Refused {
    /// The token server does not speak this form of request.
    Form(Error),
    /// Final.
    Error(Error),
}

impl Tokens {
    /// How `host` wanted this repository's requests authorised last time.
    pub(in crate::registry) fn method(
        &self,
        host: &Host,
        repository: &str,
        credentials: &Credentials,
    ) -> Option<Method> {
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods
            .get(&host_key(host, repository, credentials))
            .cloned()
    }

    /// Remembers it, so that further requests need no 401 first.
    pub(in crate::registry) fn learn(
        &self,
        host: &Host,
        repository: &str,
        credentials: &Credentials,
        method: Method,
    ) {
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        if methods.len() >= MAX_METHODS {
            // To forget costs one extra round trip each, no more.
            methods.clear();
        }
        methods.insert(host_key(host, repository, credentials), method);
    }

    /// The `Authorization` header for a host, `None` where the credentials cannot serve the method, and whether it is as
    /// new as can be. `stale` is a header the host has just refused: a new token is bought then.
    pub(in crate::registry) async fn header(
        &self,
        transport: &Transport,
        host: &Host,
        method: &Method,
        credentials: &Credentials,
        stale: Option<&HeaderValue>,
    ) -> Result<(Option<HeaderValue>, bool), Error> {
        match (method, credentials) {
            (Method::Basic, Credentials::Basic { username, password }) => {
                let value = Credentials::basic(username, password.expose());
                Ok((secret_header("Basic", &value), true))
            }
            (Method::Basic, _) => Ok((None, true)),
            (Method::Bearer { .. }, Credentials::Bearer(token)) => {
                Ok((secret_header("Bearer", token.expose()), true))
            }
            (
                Method::Bearer {
                    realm,
                    service,
                    scopes,
                },
                _,
            ) => {
                let slot = self.slot(method, credentials);
                let mut held = slot.lock().await;
                if let Some(token) = held.as_ref()
                    && token.until > Instant::now()
                    && stale != Some(&token.header)
                {
                    return Ok((Some(token.header.clone()), false));
                }
                let buyer = Buyer {
                    transport,
                    host,
                    realm,
                    service,
                    scopes,
                };
                let token = buyer.buy(credentials).await?;
                *held = Some(token.clone());
                Ok((Some(token.header), true))
            }
        }
    }

    fn slot(&self, method: &Method, credentials: &Credentials) -> Slot {
        let key = TokenKey {
            method: method.clone(),
            credentials: credentials.fingerprint(),
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_TOKENS && !slots.contains_key(&key) {
            let now = Instant::now();
            slots.retain(|_, slot| {
                slot.try_lock()
                    .map_or(true, |held| held.as_ref().is_some_and(|t| t.until > now))
            });
            if slots.len() >= MAX_TOKENS {
                slots.clear();
            }
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

fn host_key(host: &Host, repository: &str, credentials: &Credentials) -> HostKey {
    HostKey {
        base: host.base.as_str().to_owned(),
        repository: repository.to_owned(),
        credentials: credentials.fingerprint(),
    }
}

fn secret_header(scheme: &str, value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("{scheme} {value}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// One purchase at a token server (distribution "token authentication" and "OAuth2" specifications).
struct Buyer<'a> {
    transport: &'a Transport,
    host: &'a Host,
    realm: &'a Url,
    service: &'a str,
    scopes: &'a [String],
}

impl Buyer<'_> {
    async fn buy(&self, credentials: &Credentials) -> Result<Token, Error> {
        let (grant, fallback) = match credentials {
            Credentials::Anonymous | Credentials::Bearer(_) => return self.get(None).await,
            Credentials::Basic { username, password } => (
                vec![
                    ("grant_type", "password"),
                    ("username", username.as_str()),
                    ("password", password.expose()),
                ],
                Credentials::basic(username, password.expose()),
            ),
            Credentials::Identity(token) => (
                vec![
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.expose()),
                ],
                Credentials::basic("", token.expose()),
            ),
        };
        match self.post(&grant).await {
            Ok(token) => Ok(token),
            Err(Refused::Error(error)) => Err(error),
            // Many token servers know only the older GET form, and say so in one of several ways.
            Err(Refused::Form(_)) => self.get(Some(&fallback)).await,
        }
    }

    async fn post(&self, grant: &[(&str, &str)]) -> Result<Token, Refused> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(grant)
            .append_pair("client_id", "larder")
            .append_pair("service", self.service)
            .append_pair("scope", &self.scopes.join(" "))
            .finish();
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        self.ask(self.realm.clone(), headers, Some(form)).await
    }

    async fn get(&self, basic: Option<&str>) -> Result<Token, Error> {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if !self.service.is_empty() {
                query.append_pair("service", self.service);
            }
            for scope in self.scopes {
                query.append_pair("scope", scope);
            }
        }
        let mut headers = HeaderMap::new();
        if let Some(header) = basic.and_then(|basic| secret_header("Basic", basic)) {
            headers.insert(AUTHORIZATION, header);
        }
        match self.ask(url, headers, None).await {
            Ok(token) => Ok(token),
            Err(Refused::Form(error) | Refused::Error(error)) => Err(error),
        }
    }

    async fn ask(
        &self,
        url: Url,
        headers: HeaderMap,
        form: Option<String>,
    ) -> Result<Token, Refused> {
        let server = redact::url(&url);
        let subject = format!("a token for {}", self.host.name);
        let posted = form.is_some();
        let call = Call {
            subject: &subject,
            host: self.host,
            kind: "token",
            method: if posted {
                http::Method::POST
            } else {
                http::Method::GET
            },
            url,
            headers,
            form,
            foreign: true,
        };
        let answer = self
            .transport
            .send(&call, None, true)
            .await
            .map_err(Refused::Error)?;
        let status = answer.status();
        if status != 200 {
            let class = match status {
                // A refused form grant is told with 400 (RFC 6749 §5.2).
                400 | 401 => ErrorClass::Unauthenticated,
                403 => ErrorClass::Denied,
                429 => ErrorClass::RateLimited,
                500.. => ErrorClass::Server,
                _ => ErrorClass::Protocol,
            };
            let remedy = match class {
                ErrorClass::Unauthenticated | ErrorClass::Denied => {
                    "; check user name, password and their rights on the repository"
                }
                _ => "",
            };
            let error = Error::new(
                class,
                format!(
                    "token server {server} of {} answered {status}{remedy}",
                    self.host.name
                ),
            )
            .with_status(status);
            return Err(
                if posted && matches!(status, 300..=399 | 400 | 401 | 404 | 405) {
                    Refused::Form(error)
                } else {
                    Refused::Error(error)
                },
            );
        }
        let malformed = |what: &str| {
            Refused::Error(Error::new(
                ErrorClass::Protocol,
                format!(
                    "token server {server} of {} answered {what}",
                    self.host.name
                ),
            ))
        };
        let body = answer
            .body(MAX_ANSWER, &subject)
            .await
            .map_err(Refused::Error)?;
        let parsed: Answer =
            serde_json::from_slice(&body).map_err(|_| malformed("something that is not JSON"))?;
        let token = parsed
            .token
            .filter(|token| !token.is_empty())
            .or(parsed.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| malformed("without a token"))?;
        let header = secret_header("Bearer", &token)
            .ok_or_else(|| malformed("a token that fits in no header"))?;
        Ok(Token {
            header,
            until: Instant::now() + life(parsed.expires_in),
        })
    }
}

/// How long a token is used.
fn life(expires_in: Option<f64>) -> Duration {
    let told = expires_in
        .filter(|seconds| *seconds > 0.0)
        .map_or(DEFAULT_LIFE, |seconds| {
            Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_LIFE)
        })
        .min(LONGEST_LIFE);
    told.saturating_sub(MARGIN.min(told / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(header: &str, base: &str) -> Result<Option<Method>, Error> {
        let host = Host::bare("reg.example", Url::parse(base).unwrap());
        Method::choose(&Challenge::parse(header), &host, "a/b")
    }

    #[test]
    fn bearer_is_preferred_and_our_scope_is_asked_for() {
        let header = r#"Basic realm="x", Bearer realm="https://t/",service="s",scope="repository:a/b:pull repository:c:pull""#;
        let Some(Method::Bearer {
            scopes, service, ..
        }) = choose(header, "https://r/v2").unwrap()
        else {
            panic!()
        };
        assert_eq!(service, "s");
        assert_eq!(scopes, ["repository:a/b:pull", "repository:c:pull"]);
        let Some(Method::Bearer { scopes, .. }) =
            choose(r#"Bearer realm="https://t/""#, "https://r/v2").unwrap()
        else {
            panic!()
        };
        assert_eq!(scopes, ["repository:a/b:pull"]);
        assert_eq!(
            choose("Basic realm=x", "https://r/v2").unwrap(),
            Some(Method::Basic)
        );
        assert_eq!(choose("Negotiate", "https://r/v2").unwrap(), None);
    }

    #[test]
    fn token_servers_must_be_as_safe_as_the_registry() {
        let plain = r#"Bearer realm="http://t/""#;
        assert_eq!(
            choose(plain, "https://r/v2").unwrap_err().class(),
            ErrorClass::Protocol
        );
        assert!(choose(plain, "http://r/v2").unwrap().is_some());
        assert!(choose(r#"Bearer realm="file:///etc/x""#, "http://r/v2").is_err());
        assert!(choose(r#"Bearer realm="nonsense""#, "http://r/v2").is_err());
    }

    #[test]
    fn tokens_end_early_and_lives_are_bounded() {
        assert_eq!(life(Some(300.0)), Duration::from_secs(285));
        assert_eq!(life(Some(8.0)), Duration::from_secs(6));
        assert_eq!(life(None), Duration::from_secs(45));
        assert_eq!(life(Some(-1.0)), Duration::from_secs(45));
        assert_eq!(life(Some(1e300)), LONGEST_LIFE - MARGIN);
    }
}

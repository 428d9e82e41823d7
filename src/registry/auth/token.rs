//! Bearer tokens: bought at the realm a registry names, kept until shortly before they expire.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use url::Url;

use super::credentials::{Credentials, Secret};
use crate::registry::Error;
use crate::registry::error::{ErrorClass, host};

/// Tokens kept; the cache is emptied when it is full.
const MAX_TOKENS: usize = 1024;
/// A token that does not say lives so long (distribution token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is not used when it expires sooner.
const MARGIN: Duration = Duration::from_secs(10);
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
const MAX_TOKEN: usize = 64 << 10;

/// What a token was bought for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(in crate::registry) struct Wanted {
    pub(in crate::registry) realm: String,
    pub(in crate::registry) service: String,
    pub(in crate::registry) scope: String,
    pub(in crate::registry) fingerprint: [u8; 32],
}

/// Tokens by what they were bought for.
#[derive(Default)]
pub(in crate::registry) struct Tokens(Mutex<HashMap<Wanted, (Secret, Instant)>>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    pub(in crate::registry) fn get(&self, wanted: &Wanted, now: Instant) -> Option<Secret> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, until) = tokens.get(wanted)?;
        (now < *until).then(|| token.clone())
    }

    pub(in crate::registry) fn put(&self, wanted: Wanted, bought: &Bought, now: Instant) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, (_, until)| now < *until);
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        let life = bought.life.saturating_sub(MARGIN);
        tokens.insert(wanted, (bought.token.clone(), now + life));
    }

    /// A registry refused it: do not show it again.
    pub(in crate::registry) fn forget(&self, wanted: &Wanted) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(wanted);
    }
}

/// A token and how long it lives.
#[derive(Debug)]
pub(in crate::registry) struct Bought {
    pub(in crate::registry) token: Secret,
    pub(in crate::registry) life: Duration,
}

/// Reads a token server's answer.
pub(in crate::registry) fn read(body: &[u8], realm: &Url) -> Result<Bought, Error> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
        #[serde(default)]
        expires_in: Option<u64>,
    }
    let wrong = |what| {
        Error::new(
            ErrorClass::Protocol,
            format!("the token server {} {what}", host(realm)),
        )
    };
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| wrong("answers something that is no token"))?;
    let token = if answer.token.is_empty() {
        answer.access_token
    } else {
        answer.token
    };
    if token.is_empty() {
        return Err(wrong("answers without a token"));
    }
    if token.len() > MAX_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("answers with a malformed token"));
    }
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
    Ok(Bought {
        token: token.into(),
        life: life.min(MAX_LIFE),
    })
}

/// How to ask a realm.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::registry) enum Ask {
    /// `GET realm?service=…&scope=…`, with basic auth where there is a user.
    Get(Url),
    /// `POST realm` with a form (OAuth2), for an identity token or, first, for a password.
    Post(Vec<(&'static str, String)>),
}

/// The ways to buy a token, in the order to try.
pub(in crate::registry) fn ways(
    realm: &Url,
    wanted: &Wanted,
    credentials: &Credentials,
) -> Vec<Ask> {
    let mut get = realm.clone();
    {
        let mut query = get.query_pairs_mut();
        if !wanted.service.is_empty() {
            query.append_pair("service", &wanted.service);
        }
        if !wanted.scope.is_empty() {
            query.append_pair("scope", &wanted.scope);
        }
    }
    let form = |rest: &[(&'static str, &str)]| {
        let mut form = vec![
            ("client_id", "larder".to_owned()),
            ("service", wanted.service.clone()),
            ("scope", wanted.scope.clone()),
        ];
        form.extend(rest.iter().map(|(key, value)| (*key, (*value).to_owned())));
        Ask::Post(form)
    };
    match credentials {
        Credentials::Anonymous | Credentials::Bearer(_) => vec![Ask::Get(get)],
        // What every registry understands comes first.
        Credentials::Basic { username, password } => vec![
            Ask::Get(get),
            form(&[
                ("grant_type", "password"),
                ("username", username),
                ("password", password.expose()),
            ]),
        ],
        Credentials::Identity(token) => vec![form(&[
            ("grant_type", "refresh_token"),
            ("refresh_token", token.expose()),
        ])],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(scope: &str) -> Wanted {
        Wanted {
            realm: "https://t.io/token".into(),
            service: "s".into(),
            scope: scope.into(),
            fingerprint: [0; 32],
        }
    }

    #[test]
    fn keeps_tokens_until_they_expire() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let bought = read(
            br#"{"access_token":"abc","expires_in":70}"#,
            &"https://t.io".parse().unwrap(),
        )
        .unwrap();
        tokens.put(wanted("a"), &bought, now);
        assert!(
            tokens
                .get(&wanted("a"), now + Duration::from_secs(59))
                .is_some()
        );
        assert!(
            tokens
                .get(&wanted("a"), now + Duration::from_secs(60))
                .is_none()
        );
        assert!(tokens.get(&wanted("b"), now).is_none());
        tokens.forget(&wanted("a"));
        assert!(tokens.get(&wanted("a"), now).is_none());
        for n in 0..3000 {
            tokens.put(wanted(&n.to_string()), &bought, now);
        }
        assert!(tokens.0.lock().unwrap().len() <= MAX_TOKENS);
    }

    #[test]
    fn refuses_what_is_no_token() {
        for body in [
            "",
            "{}",
            "<html>",
            r#"{"token":""}"#,
            r#"{"token":"a\r\nb"}"#,
            r#"{"token":1}"#,
        ] {
            let error =
                read(body.as_bytes(), &"https://t.io/x?secret".parse().unwrap()).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Protocol);
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn asks_as_the_credentials_allow() {
        let realm: Url = "https://t.io/token?x=1".parse().unwrap();
        let get = ways(
            &realm,
            &wanted("repository:a:pull"),
            &Credentials::Anonymous,
        );
        assert_eq!(
            get,
            [Ask::Get(
                "https://t.io/token?x=1&service=s&scope=repository%3Aa%3Apull"
                    .parse()
                    .unwrap()
            )]
        );
        let identity = Credentials::Identity("r".to_owned().into());
        assert!(
            matches!(&ways(&realm, &wanted(""), &identity)[..], [Ask::Post(form)] if form.contains(&("refresh_token", "r".into())))
        );
    }
}

//! What a registry that keeps the rules answers, and to whom.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use axum::body::Bytes;
use axum::http::Method;
use base64::Engine;

use super::super::build::digest;
use super::{Content, Seen};

/// Who may pull.
#[derive(Clone, Debug, Default)]
pub(crate) enum Auth {
    /// Everyone.
    #[default]
    Open,
    /// User and password with each request.
    Basic(String, String),
    /// With a token of this registry's own token server.
    Bearer(TokenServer),
}

/// How the token server sells.
#[derive(Clone, Debug)]
pub(crate) struct TokenServer {
    /// User and password; `None` sells to everyone.
    pub(crate) account: Option<(String, String)>,
    /// A refresh token that is accepted too.
    pub(crate) identity: Option<String>,
    /// Speaks the OAuth2 POST form; else 405.
    pub(crate) post: bool,
    /// Told life of tokens.
    pub(crate) expires_in: u64,
    /// Realm told in place of the own.
    pub(crate) realm: Option<String>,
    /// What tokens begin with.
    pub(crate) prefix: &'static str,
}

impl Default for TokenServer {
    fn default() -> Self {
        TokenServer {
            account: None,
            identity: None,
            post: false,
            expires_in: 300,
            realm: None,
            prefix: "token",
        }
    }
}

/// An answer before it goes wrong.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }
    pub(super) fn without(mut self, name: &'static str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self
    }
    pub(super) fn with(self, name: &'static str, value: impl Into<String>) -> Self {
        let mut reply = self.without(name);
        reply.headers.push((name, value.into()));
        reply
    }
    pub(super) fn error(status: u16, code: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": "not for logs"}]});
        Reply::new(status, body.to_string()).with("content-type", "application/json")
    }
}

impl Content {
    /// What the specification says; `Range` is heeded where `ranged`.
    pub(super) fn good(&mut self, seen: &Seen, ranged: bool) -> Reply {
        if seen.path == "/token" {
            return self.sell(seen);
        }
        let Some(path) = seen.path.strip_prefix("/v2/") else {
            return Reply::error(404, "UNSUPPORTED");
        };
        if let Some(refusal) = self.refuse(seen, path) {
            return refusal;
        }
        if path.is_empty() {
            return Reply::new(200, "{}").with("content-type", "application/json");
        }
        if let Some((repository, name)) = path.rsplit_once("/manifests/") {
            let key = (repository.to_owned(), name.to_owned());
            let Some((media_type, bytes)) = self.manifests.get(&key) else {
                return Reply::error(404, "MANIFEST_UNKNOWN");
            };
            return Reply::new(200, bytes.clone())
                .with("content-type", media_type)
                .with("docker-content-digest", digest(bytes));
        }
        let Some((repository, name)) = path.rsplit_once("/blobs/") else {
            return Reply::error(404, "NAME_UNKNOWN");
        };
        let key = (repository.to_owned(), name.to_owned());
        let Some(bytes) = self.blobs.get(&key) else {
            return Reply::error(404, "BLOB_UNKNOWN");
        };
        let reply = Reply::new(200, bytes.clone()).with("content-type", "application/octet-stream");
        let first = seen
            .header("range")
            .and_then(|range| {
                let range = range.strip_prefix("bytes=")?;
                range.strip_suffix('-')?.parse().ok()
            })
            .filter(|_: &usize| ranged);
        match first {
            None => reply,
            Some(first) if first >= bytes.len() => Reply::error(416, "RANGE_INVALID"),
            Some(first) => Reply::new(206, bytes.slice(first..)).with(
                "content-range",
                format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len()),
            ),
        }
    }

    fn refuse(&self, seen: &Seen, path: &str) -> Option<Reply> {
        let shown = seen.header("authorization").unwrap_or_default();
        let unauthorized = Reply::error(401, "UNAUTHORIZED");
        let repository = path
            .rsplit_once("/manifests/")
            .or_else(|| path.rsplit_once("/blobs/"))
            .map_or(path, |(repository, _)| repository);
        if let Some(accounts) = self.accounts.get(repository) {
            let known = accounts
                .iter()
                .filter_map(|account| account.split_once(':'))
                .any(|(user, password)| basic(user, password) == shown);
            return (!known)
                .then(|| unauthorized.with("www-authenticate", "Basic realm=\"the repository\""));
        }
        match &self.auth {
            Auth::Open => None,
            Auth::Basic(user, password) => (shown != basic(user, password)).then(|| {
                unauthorized.with(
                    "www-authenticate",
                    "Basic realm=\"the \\\"fake\\\" registry\"",
                )
            }),
            Auth::Bearer(server) => {
                let known = shown
                    .strip_prefix("Bearer ")
                    .is_some_and(|token| self.tokens.iter().any(|sold| sold == token));
                let own = format!("{}/token", self.url);
                let realm = server.realm.as_ref().unwrap_or(&own);
                let challenge = format!(
                    "Bearer realm=\"{realm}\",service=\"fake\",scope=\"repository:{repository}:pull\""
                );
                (!known).then(|| unauthorized.with("www-authenticate", challenge))
            }
        }
    }

    fn sell(&mut self, seen: &Seen) -> Reply {
        let Auth::Bearer(server) = self.auth.clone() else {
            return Reply::error(404, "UNSUPPORTED");
        };
        let is_account = |user: &str, password: &str| {
            server
                .account
                .as_ref()
                .is_none_or(|account| (account.0.as_str(), account.1.as_str()) == (user, password))
        };
        let accepted = if seen.method == Method::POST {
            if !server.post {
                return Reply::error(405, "UNSUPPORTED");
            }
            let form: HashMap<String, String> = url::form_urlencoded::parse(seen.body.as_bytes())
                .into_owned()
                .collect();
            let field = |name: &str| form.get(name).map_or("", String::as_str);
            match field("grant_type") {
                "refresh_token" => server.identity.as_deref() == Some(field("refresh_token")),
                _ => is_account(field("username"), field("password")),
            }
        } else {
            let shown = seen.header("authorization").unwrap_or_default();
            let account = server.account.as_ref();
            account.is_none_or(|(user, password)| shown == basic(user, password))
        };
        if !accepted {
            return Reply::error(401, "UNAUTHORIZED");
        }
        self.sold += 1;
        let token = format!("{}-{}", server.prefix, self.sold);
        self.tokens.push(token.clone());
        let body = serde_json::json!({"token": token, "expires_in": server.expires_in});
        Reply::new(200, body.to_string()).with("content-type", "application/json")
    }
}

fn basic(user: &str, password: &str) -> String {
    let shown = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {shown}")
}

//! What a request is about: pure.

use axum::http::Uri;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cache::Credentials;
use crate::image::Reference;

/// Whose content is meant where nobody says.
const DOCKER_HUB: &str = "docker.io";

/// What is wrong with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing of the API.
    NoSuchPath,
    /// A name, tag or digest that cannot be.
    Name(String),
    /// An `Authorization` that cannot be read.
    Authorization,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Manifest,
    Blob,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`: whether this is a registry.
    Version,
    /// A manifest by tag or digest, or a blob by digest.
    Content(Subject, Reference),
}

impl Route {
    pub(super) fn of(uri: &Uri) -> Result<Self, Fault> {
        let path = uri.path();
        if path == "/v2" || path == "/v2/" {
            return Ok(Route::Version);
        }
        let rest = path.strip_prefix("/v2/").ok_or(Fault::NoSuchPath)?;
        let (rest, last) = rest.rsplit_once('/').ok_or(Fault::NoSuchPath)?;
        let (name, kind) = rest.rsplit_once('/').ok_or(Fault::NoSuchPath)?;
        let subject = match kind {
            "manifests" => Subject::Manifest,
            "blobs" => Subject::Blob,
            _ => return Err(Fault::NoSuchPath),
        };
        let namespace = uri.query().and_then(|query| {
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            let (_, value) = pairs.find(|(key, value)| key == "ns" && !value.is_empty())?;
            Some(value.into_owned())
        });
        let name = match namespace {
            Some(registry) => format!("{registry}/{name}"),
            None if names_registry(name) => name.to_owned(),
            None => format!("{DOCKER_HUB}/{name}"),
        };
        // Colons of digests may be escaped.
        let last = last.replace("%3A", ":").replace("%3a", ":");
        let separator = if last.contains(':') { '@' } else { ':' };
        let text = format!("{name}{separator}{last}");
        let reference: Reference = text
            .parse()
            .map_err(|error: crate::image::ReferenceError| Fault::Name(error.to_string()))?;
        if subject == Subject::Blob && reference.digest().is_none() {
            return Err(Fault::Name(format!("{text}: blobs are named by digests")));
        }
        Ok(Route::Content(subject, reference))
    }
}

/// Whether the first part of a path is a registry's host, by docker's rule for references.
fn names_registry(name: &str) -> bool {
    let Some((first, _)) = name.split_once('/') else {
        return false;
    };
    first.contains(['.', ':']) || first == "localhost"
}

/// What a runtime shows. Basic is what it was asked for; a bearer token is passed on as it is.
pub(super) fn credentials(header: Option<&str>) -> Result<Credentials, Fault> {
    let Some(header) = header else {
        return Ok(Credentials::Anonymous);
    };
    let (scheme, value) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !value.is_empty() {
        return Ok(Credentials::Bearer(value.to_owned().into()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Fault::Authorization);
    }
    let decoded = STANDARD.decode(value).ok();
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    match text.as_deref().and_then(|text| text.split_once(':')) {
        Some(("", "")) => Ok(Credentials::Anonymous),
        // As containerd shows an identity token.
        Some(("", secret)) => Ok(Credentials::Identity(secret.to_owned().into())),
        Some((username, password)) => Ok(Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned().into(),
        }),
        None => Err(Fault::Authorization),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(uri: &str) -> Result<Route, Fault> {
        Route::of(&uri.parse().unwrap())
    }

    #[test]
    fn requests_name_content() {
        let hex = "0123456789abcdef".repeat(4);
        let table = [
            (
                "/v2/library/busybox/manifests/1.36?ns=docker.io",
                "docker.io/library/busybox:1.36",
            ),
            (
                "/v2/library/busybox/manifests/latest",
                "docker.io/library/busybox:latest",
            ),
            ("/v2/org/app/manifests/v1?ns=quay.io", "quay.io/org/app:v1"),
            (
                "/v2/org/app/manifests/v1?ns=r.example%3A5000",
                "r.example:5000/org/app:v1",
            ),
            ("/v2/quay.io/org/app/manifests/v1", "quay.io/org/app:v1"),
            ("/v2/localhost/app/manifests/v1", "localhost/app:v1"),
            (
                "/v2/r.example:5000/app/manifests/v1",
                "r.example:5000/app:v1",
            ),
            // The name is a registry's only where nobody says whose it is.
            ("/v2/a.b/app/manifests/v1?ns=quay.io", "quay.io/a.b/app:v1"),
            (
                "/v2/manifests/blobs/manifests/v1?ns=quay.io",
                "quay.io/manifests/blobs:v1",
            ),
        ];
        for (uri, name) in table {
            let Route::Content(Subject::Manifest, reference) = route(uri).unwrap() else {
                panic!("{uri}")
            };
            assert_eq!(reference.to_string(), name, "{uri}");
        }
        for uri in [
            format!("/v2/org/app/blobs/sha256:{hex}?ns=quay.io"),
            format!("/v2/org/app/blobs/sha256%3A{hex}?x=1&ns=quay.io"),
        ] {
            let Route::Content(Subject::Blob, reference) = route(&uri).unwrap() else {
                panic!("{uri}")
            };
            assert_eq!(
                reference.to_string(),
                format!("quay.io/org/app@sha256:{hex}")
            );
        }
        assert_eq!(route("/v2/").unwrap(), Route::Version);
        assert_eq!(route("/v2").unwrap(), Route::Version);
    }

    #[test]
    fn others_are_refused() {
        for uri in [
            "/",
            "/v1/",
            "/v2/app",
            "/v2/app/tags/list",
            "/v2/_catalog",
            "/metrics",
            "/v2/app/referrers/sha256:0",
        ] {
            assert_eq!(route(uri), Err(Fault::NoSuchPath), "{uri}");
        }
        for uri in [
            "/v2/APP/manifests/v1",
            "/v2/app/manifests/",
            "/v2//manifests/v1",
            "/v2/../../etc/manifests/v1",
            "/v2/app/blobs/latest",
            "/v2/app/blobs/sha256:12",
            "/v2/app/manifests/v1?ns=..",
            "/v2/app/manifests/v1?ns=a/b/../c",
        ] {
            assert!(matches!(route(uri), Err(Fault::Name(_))), "{uri}");
        }
    }

    #[test]
    fn credentials_are_read() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let read = |header: &str| credentials(Some(header));
        assert_eq!(credentials(None), Ok(Credentials::Anonymous));
        assert_eq!(
            read(&basic("bob:se:cret")),
            Ok(Credentials::Basic {
                username: "bob".to_owned(),
                password: "se:cret".to_owned().into()
            })
        );
        assert_eq!(
            read(&basic(":token")),
            Ok(Credentials::Identity("token".to_owned().into()))
        );
        assert_eq!(
            read("bearer abc"),
            Ok(Credentials::Bearer("abc".to_owned().into()))
        );
        for bad in [
            "",
            "Basic",
            "Basic ???",
            "Digest x",
            &basic("nobody"),
            "Bearer ",
        ] {
            assert_eq!(read(bad), Err(Fault::Authorization), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_path_is_read_or_refused(path in "/v2/[a-z./:@%_-]{0,60}") {
            if let Ok(uri) = path.parse() {
                let _ = Route::of(&uri);
            }
        }
    }
}

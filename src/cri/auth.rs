//! From a CRI AuthConfig to credentials. Pure. The order of precedence is containerd's.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::proto::AuthConfig;
use crate::cache::{Credentials, Secret};

/// `auth` is written with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The credentials are malformed. Never quotes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AuthError {
    #[error("auth.auth is not base64")]
    Encoding,
    #[error("auth.auth is not base64 of user:password")]
    NoColon,
}

/// What `auth` gives for a registry: nothing if it is meant for another one; else user and password, the identity
/// token, `auth`, or the registry token, whichever is filled first.
pub(super) fn credentials(auth: AuthConfig, domain: &str) -> Result<Credentials, AuthError> {
    if !auth.server_address.is_empty() && host(&auth.server_address) != host(domain) {
        return Ok(Credentials::Anonymous);
    }
    if !auth.username.is_empty() {
        return Ok(Credentials::Basic {
            username: auth.username,
            password: Secret::from(auth.password),
        });
    }
    if !auth.identity_token.is_empty() {
        return Ok(Credentials::Identity(Secret::from(auth.identity_token)));
    }
    if !auth.auth.is_empty() {
        return decode(&auth.auth);
    }
    if !auth.registry_token.is_empty() {
        return Ok(Credentials::Bearer(Secret::from(auth.registry_token)));
    }
    Ok(Credentials::Anonymous)
}

fn decode(auth: &str) -> Result<Credentials, AuthError> {
    let bytes = BASE64
        .decode(auth.trim())
        .map_err(|_| AuthError::Encoding)?;
    let text = String::from_utf8(bytes).map_err(|_| AuthError::Encoding)?;
    let (username, password) = text.split_once(':').ok_or(AuthError::NoColon)?;
    // Some writers pad with NUL.
    let password = password.trim_matches('\0').to_owned();
    Ok(Credentials::Basic {
        username: username.to_owned(),
        password: Secret::from(password),
    })
}

/// The host of a server address, which is a URL or a host; all of Docker Hub's are one.
fn host(address: &str) -> String {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address
        .split(['/', '?', '#'])
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            "docker.io".to_owned()
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(auth: AuthConfig, domain: &str) -> String {
        match credentials(auth, domain) {
            Ok(Credentials::Anonymous) => "anonymous".to_owned(),
            Ok(Credentials::Basic { username, .. }) => format!("basic {username}"),
            Ok(Credentials::Identity(_)) => "identity".to_owned(),
            Ok(Credentials::Bearer(_)) => "bearer".to_owned(),
            Err(error) => format!("error: {error}"),
        }
    }

    fn full() -> AuthConfig {
        AuthConfig {
            username: "ann".to_owned(),
            password: "secret".to_owned(),
            auth: "Ym9iOnNlY3JldA==".to_owned(),
            server_address: String::new(),
            identity_token: "secret".to_owned(),
            registry_token: "secret".to_owned(),
        }
    }

    #[test]
    fn the_first_that_is_filled_counts() {
        let mut auth = full();
        assert_eq!(kind(auth.clone(), "quay.io"), "basic ann");
        auth.username.clear();
        assert_eq!(kind(auth.clone(), "quay.io"), "identity");
        auth.identity_token.clear();
        assert_eq!(kind(auth.clone(), "quay.io"), "basic bob");
        auth.auth.clear();
        assert_eq!(kind(auth.clone(), "quay.io"), "bearer");
        auth.registry_token.clear();
        assert_eq!(kind(auth, "quay.io"), "anonymous");
    }

    #[test]
    fn credentials_for_another_registry_are_not_shown() {
        for (address, domain, expected) in [
            ("quay.io", "quay.io", "basic ann"),
            ("https://quay.io/v2/", "quay.io", "basic ann"),
            ("https://quay.io", "docker.io", "anonymous"),
            ("https://index.docker.io/v1/", "docker.io", "basic ann"),
            ("registry-1.docker.io", "docker.io", "basic ann"),
            ("127.0.0.1:5000", "127.0.0.1:5001", "anonymous"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000", "basic ann"),
        ] {
            let auth = AuthConfig {
                server_address: address.to_owned(),
                ..full()
            };
            assert_eq!(kind(auth, domain), expected, "{address} {domain}");
        }
    }

    #[test]
    fn base64_in_all_its_forms() {
        for (auth, expected) in [
            ("Ym9iOnNlY3JldA==", "basic bob"),
            ("Ym9iOnNlY3JldA", "basic bob"),
            ("Ym9i", "error: auth.auth is not base64 of user:password"),
            ("not base64!", "error: auth.auth is not base64"),
        ] {
            assert_eq!(
                kind(
                    AuthConfig {
                        auth: auth.to_owned(),
                        ..AuthConfig::default()
                    },
                    "quay.io"
                ),
                expected
            );
        }
        let padded = AuthConfig {
            auth: BASE64.encode("bob:pass:word\0\0"),
            ..AuthConfig::default()
        };
        let Ok(Credentials::Basic { username, password }) = credentials(padded, "quay.io") else {
            panic!("basic")
        };
        assert_eq!(username, "bob");
        assert_eq!(format!("{password:?}"), "[secret]");
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?}", full());
        assert!(
            !text.contains("secret") && !text.contains("ann") && !text.contains("Ym9i"),
            "{text}"
        );
    }
}

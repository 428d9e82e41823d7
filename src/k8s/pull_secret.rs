//! Reads one pull secret by name, for agents and the controller. Never lists, watches, keeps or logs one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use kube::Client;
use kube::api::GetParams;
use kube::core::Request;
use serde::Deserialize;
use tokio::time::timeout;

use super::api::SecretRef;

/// What a docker config with a hundred registries needs.
const MAX_BYTES: usize = 256 << 10;
/// The key of a secret of type `kubernetes.io/dockerconfigjson`.
pub(super) const KEY: &str = ".dockerconfigjson";

/// Why a secret is not to be had, without what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cause {
    /// What the spec has is no name of Kubernetes.
    #[error("its name is none")]
    Name,
    /// 401.
    #[error("the API server refuses these credentials")]
    Unauthorized,
    /// 403.
    #[error("it may not be got: a RoleBinding for it is missing")]
    Forbidden,
    /// 404.
    #[error("there is none")]
    Absent,
    /// Any other status.
    #[error("the API server refuses")]
    Refused,
    /// No answer, or not in time.
    #[error("the API server is not reached")]
    Unreachable,
    /// An answer that is none.
    #[error("the answer cannot be read")]
    Unreadable,
    /// The secret is of another type.
    #[error("it has no .dockerconfigjson: its type must be kubernetes.io/dockerconfigjson")]
    Type,
    /// Nothing that makes sense is so large.
    #[error("it is larger than 256 KiB")]
    TooLarge,
}

/// As much of a Secret as is needed. Not the whole type: what does not fit would be quoted in an error.
#[derive(Deserialize)]
struct Secret {
    #[serde(default)]
    data: BTreeMap<String, ByteString>,
}

/// The secret's docker config, as it is.
pub(super) async fn read(
    client: &Client,
    secret: &SecretRef,
    within: Duration,
) -> Result<Arc<[u8]>, Cause> {
    if !plain(&secret.namespace) || !plain(&secret.name) {
        return Err(Cause::Name);
    }
    let request = Request::new(format!("/api/v1/namespaces/{}/secrets", secret.namespace))
        .get(&secret.name, &GetParams::default())
        .map_err(|_| Cause::Name)?;
    // As text: a client that decodes answers logs those it cannot decode.
    match timeout(within, client.request_text(request)).await {
        Ok(Ok(text)) => config(&text),
        Ok(Err(kube::Error::Api(status))) => Err(match status.code {
            401 => Cause::Unauthorized,
            403 => Cause::Forbidden,
            404 => Cause::Absent,
            _ => Cause::Refused,
        }),
        Ok(Err(_)) | Err(_) => Err(Cause::Unreachable),
    }
}

fn config(text: &str) -> Result<Arc<[u8]>, Cause> {
    let mut secret: Secret = serde_json::from_str(text).map_err(|_| Cause::Unreadable)?;
    match secret.data.remove(KEY) {
        Some(ByteString(config)) if config.len() <= MAX_BYTES => Ok(config.into()),
        Some(_) => Err(Cause::TooLarge),
        None => Err(Cause::Type),
    }
}

/// A name of Kubernetes, so that nothing but one object is asked for.
fn plain(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for (name, good) in [
            ("regcred", true),
            ("a.b-c", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a?b", false),
            ("A", false),
        ] {
            assert_eq!(plain(name), good, "{name}");
        }
    }

    #[test]
    fn only_a_docker_config_of_a_sensible_size_is_one() {
        let of = |key: &str, size: usize| {
            let data = BTreeMap::from([(key, ByteString(vec![b'x'; size]))]);
            config(&serde_json::json!({"kind": "Secret", "data": data}).to_string())
        };
        assert_eq!(of(KEY, 3).unwrap().as_ref(), b"xxx");
        assert_eq!(of(KEY, MAX_BYTES + 1), Err(Cause::TooLarge));
        assert_eq!(of("password", 3), Err(Cause::Type));
        assert_eq!(config("{}"), Err(Cause::Type));
        for text in ["", "5", r#"{"data": {".dockerconfigjson": 5}}"#] {
            assert_eq!(config(text), Err(Cause::Unreadable), "{text}");
        }
    }
}

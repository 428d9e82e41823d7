//! Answers, as registries give them (OCI distribution-spec v1.1, "Error Codes").

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue,
    WWW_AUTHENTICATE,
};
use axum::http::{Response, StatusCode};
use bytes::Bytes;

use crate::cache::{Asked, Credentials, Error, ErrorKind, Relayed, RelayedManifest};

use super::metrics::Metrics;
use super::range::Part;
use super::route::{Fault, Subject};

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const BLOB: &str = "application/octet-stream";
const JSON: &str = "application/json";

type Header = (HeaderName, String);

fn answer(
    status: StatusCode,
    headers: impl IntoIterator<Item = Header>,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let out = response.headers_mut();
    out.insert(API, HeaderValue::from_static("registry/2.0"));
    for (name, value) in headers {
        // A media type of a registry may be anything.
        if let Ok(value) = HeaderValue::try_from(value) {
            out.insert(name, value);
        }
    }
    response
}

/// What a registry says of itself.
pub(super) fn version() -> Response<Body> {
    let headers = [(CONTENT_TYPE, JSON.to_owned())];
    answer(StatusCode::OK, headers, Body::from("{}"))
}

pub(super) fn manifest(manifest: RelayedManifest) -> Response<Body> {
    let headers = [
        (CONTENT_TYPE, manifest.media_type),
        (CONTENT_LENGTH, manifest.size.to_string()),
        (DIGEST, manifest.digest.to_string()),
    ];
    let body = manifest.body.map_or_else(Body::empty, Body::from);
    answer(StatusCode::OK, headers, body)
}

fn blob_headers(asked: &Asked, length: u64) -> Vec<Header> {
    let digest = asked.reference.digest().map(ToString::to_string);
    vec![
        (CONTENT_TYPE, BLOB.to_owned()),
        (CONTENT_LENGTH, length.to_string()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (DIGEST, digest.unwrap_or_default()),
    ]
}

pub(super) fn blob_head(asked: &Asked, size: u64) -> Response<Body> {
    answer(StatusCode::OK, blob_headers(asked, size), Body::empty())
}

/// A blob or a part of it. A body that breaks off ends the connection: the runtime sees that bytes are missing, and asks
/// for them here or elsewhere.
pub(super) fn blob(
    asked: &Asked,
    relayed: Relayed,
    part: Part,
    metrics: Metrics,
) -> Response<Body> {
    let (status, length, place) = match part {
        Part::Some { first, end } => (
            StatusCode::PARTIAL_CONTENT,
            end.saturating_sub(first),
            Some(format!(
                "bytes {first}-{}/{}",
                end.saturating_sub(1),
                relayed.size()
            )),
        ),
        Part::Whole | Part::None => (StatusCode::OK, relayed.size(), None),
    };
    let mut headers = blob_headers(asked, length);
    headers.extend(place.map(|place| (CONTENT_RANGE, place)));
    let subject = asked.reference.to_string();
    let pieces = futures_util::stream::unfold(relayed, move |mut relayed| {
        let (metrics, subject) = (metrics.clone(), subject.clone());
        async move {
            let piece: Result<Bytes, Arc<Error>> = relayed.next().await?;
            match &piece {
                Ok(bytes) => metrics.sent(relayed.origin(), bytes.len() as u64),
                Err(error) => {
                    tracing::warn!(blob = subject, err = %error, "A blob broke off on its way to the runtime");
                }
            }
            Some((piece.map_err(Failed), relayed))
        }
    });
    answer(status, headers, Body::from_stream(pieces))
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Failed(Arc<Error>);

pub(super) fn no_such_part(size: u64) -> Response<Body> {
    let mut refused = refusal(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "BLOB_UNKNOWN",
        "the blob has no such bytes",
    );
    if let Ok(place) = HeaderValue::try_from(format!("bytes */{size}")) {
        refused.headers_mut().insert(CONTENT_RANGE, place);
    }
    refused
}

pub(super) fn only_reads() -> Response<Body> {
    let mut refused = refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        "UNSUPPORTED",
        "this mirror only reads: push to the registry itself",
    );
    let methods = HeaderValue::from_static("GET, HEAD");
    refused.headers_mut().insert(ALLOW, methods);
    refused
}

pub(super) fn fault(fault: &Fault) -> Response<Body> {
    match fault {
        Fault::NoSuchPath => refusal(
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            "this mirror has manifests and blobs: /v2/NAME/manifests/REFERENCE and /v2/NAME/blobs/DIGEST",
        ),
        Fault::Name(cause) => refusal(StatusCode::BAD_REQUEST, "NAME_INVALID", cause),
        Fault::Authorization => refusal(
            StatusCode::BAD_REQUEST,
            "UNAUTHORIZED",
            "the Authorization header is neither Basic nor Bearer",
        ),
    }
}

/// What the registry said, or did not.
pub(super) fn error(asked: &Asked, subject: Subject, error: &Error) -> Response<Body> {
    let text = error.to_string();
    let anonymous = asked.credentials == Credentials::Anonymous;
    let unknown = match subject {
        Subject::Manifest => "MANIFEST_UNKNOWN",
        Subject::Blob => "BLOB_UNKNOWN",
    };
    let (status, code) = match error.kind() {
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, unknown),
        ErrorKind::Unauthenticated => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
        // Some registries say so to who shows nothing; a runtime has to be asked before it shows anything.
        ErrorKind::Denied if anonymous => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
        ErrorKind::Denied => (StatusCode::FORBIDDEN, "DENIED"),
        ErrorKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
        ErrorKind::InvalidReference => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        ErrorKind::RegistryUnavailable | ErrorKind::Protocol => {
            (StatusCode::BAD_GATEWAY, "UNKNOWN")
        }
        ErrorKind::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    };
    let mut refused = refusal(status, code, &text);
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"larder\"");
        refused.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    refused
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
    let headers = [(CONTENT_TYPE, JSON.to_owned())];
    answer(status, headers, Body::from(body.to_string()))
}

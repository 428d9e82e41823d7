//! What a tag or digest names, and the documents themselves.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, StatusCode};
use reqwest::Response;
use std::time::Duration;

use crate::image::{Descriptor, Digest, MANIFEST_ACCEPT, MAX_MANIFEST_BYTES, Reference};

use super::error::{self, ErrorClass};
use super::request::{Answer, Kind, Wish};
use super::{Error, Repository};

const DIGEST_HEADER: &str = "docker-content-digest";

/// What a tag or digest names just now.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Of the top-level manifest or index.
    pub digest: Digest,
    /// Content type as the registry says.
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    /// The host that answered.
    pub host: String,
    /// The document, where a GET was needed to learn the digest.
    pub body: Option<Bytes>,
}

/// A manifest whose digest was verified.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Raw bytes.
    pub bytes: Bytes,
    /// Content type as the registry says.
    pub media_type: String,
    /// The host that answered.
    pub host: String,
}

impl Repository {
    /// Asks what a reference names: one HEAD where the registry does as the specification says, else a GET. A digest
    /// in the reference wins over its tag.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        };
        let by_digest = reference.digest().is_some();
        let mut wish = Wish {
            method: Method::HEAD,
            path: format!("manifests/{name}"),
            accept: Some(MANIFEST_ACCEPT),
            from: 0,
            kind: Kind::Manifest,
        };
        // A digest can be asked of any host that may serve it; a tag only of those that may say what it names.
        let capable: fn(&super::hosts::Host) -> bool = if by_digest {
            |host| host.pull
        } else {
            |host| host.pull && host.resolve
        };
        match self.ask(&wish, capable).await {
            Ok(answer) => {
                if let Some(resolved) = read_head(&answer, reference.digest()) {
                    return Ok(resolved);
                }
            }
            // Some registries do not know HEAD, or answer it otherwise than GET.
            Err(error) if error.class() == ErrorClass::Protocol => {}
            Err(error) => return Err(error),
        }
        wish.method = Method::GET;
        let answer = self.ask(&wish, capable).await?;
        let said = said_digest(&answer.response);
        let fetched = self.document(answer).await?;
        let algorithm = reference
            .digest()
            .or(said.as_ref())
            .map_or(crate::image::Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::of(algorithm, &fetched.bytes);
        if let Some(wanted) = reference.digest()
            && *wanted != digest
        {
            return Err(wrong_digest(&fetched.host, wanted, &digest));
        }
        Ok(Resolved {
            digest,
            media_type: fetched.media_type,
            size: fetched.bytes.len() as u64,
            host: fetched.host,
            body: Some(fetched.bytes),
        })
    }

    /// A manifest or index by digest, at most [`MAX_MANIFEST_BYTES`] long; its digest is verified.
    pub async fn manifest(&self, digest: &Digest) -> Result<Fetched, Error> {
        let wish = Wish {
            method: Method::GET,
            path: format!("manifests/{digest}"),
            accept: Some(MANIFEST_ACCEPT),
            from: 0,
            kind: Kind::Manifest,
        };
        let answer = self.ask(&wish, |host| host.pull).await?;
        let fetched = self.document(answer).await?;
        let found = Digest::of(digest.algorithm(), &fetched.bytes);
        if found != *digest {
            return Err(wrong_digest(&fetched.host, digest, &found));
        }
        Ok(fetched)
    }

    /// A small blob (a config) whole: at most `limit` bytes; its digest and size are verified.
    pub async fn blob_bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, Error> {
        if descriptor.size > limit {
            return Err(Error::new(
                ErrorClass::Protocol,
                format!(
                    "blob {} is {} bytes long, the limit is {limit}",
                    descriptor.digest, descriptor.size
                ),
            ));
        }
        let mut stream = self.blob(descriptor).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        let found = Digest::of(descriptor.digest.algorithm(), &bytes);
        if found != descriptor.digest {
            return Err(wrong_digest(stream.host(), &descriptor.digest, &found));
        }
        Ok(bytes.freeze())
    }

    /// Receives a document.
    async fn document(&self, answer: Answer) -> Result<Fetched, Error> {
        let Answer {
            mut response,
            host,
            permit,
        } = answer;
        let media_type = content_type(&response);
        let wrong = |what: String| Error::new(ErrorClass::Protocol, format!("{host} {what}"));
        if media_type.starts_with("text/html") {
            return Err(wrong(
                "answers with a web page instead of a manifest: is it a registry, or a login page in between?".into(),
            ));
        }
        let too_long = || {
            wrong(format!(
                "sends a manifest of more than {MAX_MANIFEST_BYTES} bytes, which is the limit"
            ))
        };
        let said = length(&response);
        if said.is_some_and(|length| length > MAX_MANIFEST_BYTES) {
            return Err(too_long());
        }
        let mut bytes = BytesMut::new();
        loop {
            let chunk = tokio::time::timeout(self.stall_timeout(), response.chunk())
                .await
                .map_err(|_| {
                    Error::new(
                        ErrorClass::Broken,
                        format!("{host} stopped in the middle of a manifest"),
                    )
                })?
                .map_err(|error| {
                    Error::new(
                        ErrorClass::Broken,
                        format!("{host} broke off a manifest: {}", error::innermost(&error)),
                    )
                })?;
            let Some(chunk) = chunk else { break };
            if (bytes.len() + chunk.len()) as u64 > MAX_MANIFEST_BYTES {
                return Err(too_long());
            }
            bytes.extend_from_slice(&chunk);
        }
        drop(permit);
        Ok(Fetched {
            bytes: bytes.freeze(),
            media_type,
            host,
        })
    }

    pub(super) fn stall_timeout(&self) -> Duration {
        self.shared.config.stall_timeout
    }
}

/// What a HEAD tells, if it tells all that is needed.
fn read_head(answer: &Answer, wanted: Option<&Digest>) -> Option<Resolved> {
    let response = &answer.response;
    if response.status() != StatusCode::OK {
        return None;
    }
    let digest = said_digest(response)?;
    if wanted.is_some_and(|wanted| *wanted != digest) {
        return None;
    }
    let media_type = content_type(response);
    // Without a type the body has to tell; with a strange one it is looked at, too.
    if !matches!(
        crate::image::MediaType::parse(&media_type),
        crate::image::MediaType::Manifest | crate::image::MediaType::Index
    ) {
        return None;
    }
    let size = length(response).filter(|size| *size > 0 && *size <= MAX_MANIFEST_BYTES)?;
    Some(Resolved {
        digest,
        media_type,
        size,
        host: answer.host.clone(),
        body: None,
    })
}

fn said_digest(response: &Response) -> Option<Digest> {
    response
        .headers()
        .get(DIGEST_HEADER)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn content_type(response: &Response) -> String {
    response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .chars()
        .take(256)
        .collect()
}

/// `Content-Length` as sent; for a HEAD the response's body length would be 0.
pub(super) fn length(response: &Response) -> Option<u64> {
    response
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn wrong_digest(host: &str, wanted: &Digest, found: &Digest) -> Error {
    Error::new(
        ErrorClass::Protocol,
        format!("{host} sends content of digest {found} where {wanted} was asked for"),
    )
}

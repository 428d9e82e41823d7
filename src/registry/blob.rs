//! Blobs as streams that resume by themselves.
//!
//! What was handed out stays valid: a broken transfer goes on at the next byte, at the same host or the next one, so
//! whoever hashes the stream never has to begin again.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use crate::image::{Descriptor, Digest};

use super::error::{self, ErrorClass};
use super::hosts::Host;
use super::request::{Answer, Kind, Wish};
use super::resolve::length;
use super::{Error, Repository};

/// A blob in transfer: verified by size here, by digest where it is consumed.
#[derive(Debug)]
pub struct BlobStream {
    repository: Repository,
    digest: Digest,
    size: u64,
    /// Bytes handed out.
    received: u64,
    /// Bytes to throw away: the host sends from the start again.
    skip: u64,
    body: Option<(Response, OwnedSemaphorePermit)>,
    host: Arc<str>,
    /// Hosts not given up, the one in use first.
    hosts: VecDeque<Host>,
    /// Breaks without a byte in between.
    idle_breaks: u32,
    failed: bool,
}

impl Repository {
    /// A blob as a stream of exactly `descriptor.size` bytes, or an error.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, Error> {
        let mut stream = BlobStream {
            repository: self.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            received: 0,
            skip: 0,
            body: None,
            host: "".into(),
            hosts: self
                .hosts
                .iter()
                .filter(|host| host.pull)
                .cloned()
                .collect(),
            idle_breaks: 0,
            failed: false,
        };
        if stream.hosts.is_empty() {
            return Err(Error::new(
                ErrorClass::Config,
                format!("hosts.toml leaves no host to pull {} from", self.path),
            ));
        }
        if stream.size > 0 {
            stream.connect().await?;
        }
        Ok(stream)
    }
}

impl BlobStream {
    /// The next bytes; `None` when all have come. Cancel-safe: what is not returned is not lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        if self.failed {
            return None;
        }
        let next = self.receive().await;
        if matches!(next, Some(Err(_))) {
            self.failed = true;
            self.body = None;
        }
        next
    }

    /// The host that is serving it.
    pub fn host(&self) -> &str {
        &self.host
    }

    async fn receive(&mut self) -> Option<Result<Bytes, Error>> {
        let stall = self.repository.stall_timeout();
        loop {
            let Some((response, _)) = &mut self.body else {
                if self.received == self.size {
                    return None;
                }
                match self.connect().await {
                    Ok(()) => continue,
                    Err(error) => return Some(Err(error)),
                }
            };
            let problem = match tokio::time::timeout(stall, response.chunk()).await {
                Ok(Ok(Some(mut chunk))) => {
                    let old = self.skip.min(chunk.len() as u64);
                    self.skip -= old;
                    chunk.advance(old as usize);
                    if chunk.is_empty() {
                        continue;
                    }
                    self.received += chunk.len() as u64;
                    self.idle_breaks = 0;
                    self.repository.shared.metrics.fetched(chunk.len() as u64);
                    if self.received > self.size {
                        let text = format!(
                            "{} sends more than the {} bytes that blob {} has",
                            self.host, self.size, self.digest
                        );
                        return Some(Err(Error::new(ErrorClass::Protocol, text)));
                    }
                    return Some(Ok(chunk));
                }
                Ok(Ok(None)) if self.received == self.size => {
                    self.body = None;
                    return None;
                }
                Ok(Ok(None)) => format!("ended after {} of {} bytes", self.received, self.size),
                Ok(Err(error)) => error::innermost(&error),
                Err(_) => format!("no byte came for {} s", stall.as_secs()),
            };
            if let Err(error) = self.broke(&problem) {
                return Some(Err(error));
            }
        }
    }

    /// Notes a break. The stream goes on unless too many came without a byte in between.
    fn broke(&mut self, problem: &str) -> Result<(), Error> {
        self.body = None;
        self.idle_breaks += 1;
        tracing::info!(host = %self.host, blob = %self.digest, problem, at = self.received, "A transfer broke");
        if self.idle_breaks >= self.repository.shared.config.attempts.max(1) {
            self.idle_breaks = 0;
            let given_up = self.hosts.pop_front();
            if self.hosts.is_empty() {
                let host = given_up.map_or_else(String::new, |host| error::host(&host.base));
                return Err(Error::new(
                    ErrorClass::Broken,
                    format!("{host} broke off blob {}: {problem}", self.digest),
                ));
            }
        }
        self.repository.shared.metrics.resumed();
        Ok(())
    }

    /// Asks for the bytes that are missing, of the first host that has them.
    async fn connect(&mut self) -> Result<(), Error> {
        let wish = Wish {
            method: Method::GET,
            path: format!("blobs/{}", self.digest),
            accept: None,
            from: self.received,
            kind: Kind::Blob,
        };
        let mut worst: Option<Error> = None;
        while let Some(host) = self.hosts.front().cloned() {
            let outcome = match self.repository.ask_host(&host, &wish).await {
                Ok(answer) => self.accept(answer),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let metrics = &self.repository.shared.metrics;
                    metrics.failed(&error::host(&host.base), error.class());
                    tracing::debug!(host = %error::host(&host.base), %error, "A host did not serve a blob");
                    self.hosts.pop_front();
                    if worst
                        .as_ref()
                        .is_none_or(|worst| error.class().stage() >= worst.class().stage())
                    {
                        worst = Some(error);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| {
            Error::new(
                ErrorClass::Broken,
                format!("no host is left to serve blob {}", self.digest),
            )
        }))
    }

    /// Takes an answer, if it is the wanted part of the blob or all of it.
    fn accept(&mut self, answer: Answer) -> Result<(), Error> {
        let Answer {
            response,
            host,
            permit,
        } = answer;
        let wrong = |what: String| {
            Error::new(
                ErrorClass::Protocol,
                format!("{host} {what} for blob {}", self.digest),
            )
        };
        let rest = self.size - self.received;
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let begins = response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|value| value.to_str().ok())
                    .and_then(range_start);
                if begins != Some(self.received) {
                    return Err(wrong("answers with another range than asked".to_owned()));
                }
                if let Some(length) = length(&response)
                    && length != rest
                {
                    return Err(wrong(format!("has {length} bytes left instead of {rest}")));
                }
                0
            }
            StatusCode::OK => {
                if let Some(length) = length(&response)
                    && length != self.size
                {
                    return Err(wrong(format!(
                        "has {length} bytes where the manifest says {}",
                        self.size
                    )));
                }
                self.received
            }
            status => return Err(wrong(format!("answers {status}"))),
        };
        self.body = Some((response, permit));
        self.host = host.into();
        Ok(())
    }
}

/// The first byte of `bytes 5-9/10`.
fn range_start(value: &str) -> Option<u64> {
    let range = value.strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges() {
        for (text, start) in [
            ("bytes 5-9/10", Some(5)),
            ("bytes 0-0/*", Some(0)),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(range_start(text), start, "{text}");
        }
    }
}

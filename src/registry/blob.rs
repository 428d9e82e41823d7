//! Blobs as streams that take themselves up again where they broke, on the same host or the next.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use tokio::time::Instant;

use super::answer::{Answer, Break};
use super::error::Tally;
use super::hosts::Host;
use super::resolve::{Ask, PAGE, is_page, verify};
use super::{Error, ErrorClass, Repository, redact, retry};
use crate::image::{Descriptor, Digest};

/// Breaks in one transfer, however much each attempt brought.
const MAX_RESUMES: u32 = 256;
/// Bytes that make an attempt worth it that ended in a stall, and a pace worth keeping.
const ENOUGH: u64 = 64 << 10;
/// Stall timeouts after which the pace is judged.
const WINDOW: u32 = 10;
/// How long the end of a body is waited for once all bytes are there.
const END: Duration = Duration::from_secs(2);

/// A blob in transfer: verified by size here, by digest where it is consumed.
#[derive(Debug)]
pub struct BlobStream {
    repository: Repository,
    /// In the order of asking.
    hosts: Vec<Host>,
    subject: String,
    digest: String,
    size: u64,
    /// Bytes handed out.
    offset: u64,
    /// Bytes of the current answer that were handed out before.
    skip: u64,
    /// Which of the hosts serves.
    at: usize,
    answer: Option<Answer>,
    /// New bytes that the current answer brought.
    brought: u64,
    /// When the pace was judged last, and how much had come by then.
    paced: (Instant, u64),
    /// Attempts since the last that was worth it.
    stuck: u32,
    resumes: u32,
    /// No request before this time.
    not_before: Option<Instant>,
    ended: bool,
}

impl Repository {
    /// A blob as a stream that resumes by itself.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, Error> {
        self.blob_from(&descriptor.digest, descriptor.size, 0).await
    }

    /// As [`Repository::blob`], without the first bytes. `first` is less than `size`, or both are 0.
    pub async fn blob_from(
        &self,
        digest: &Digest,
        size: u64,
        first: u64,
    ) -> Result<BlobStream, Error> {
        let mut stream = self.stream(digest, size, self.sources());
        stream.offset = first;
        stream.paced.1 = first;
        stream.open().await?;
        Ok(stream)
    }

    /// Size of a blob in bytes, by HEAD: also a proof that these credentials may read it in this repository.
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64, Error> {
        let subject = format!("{}@{digest}", self.name());
        let ask = Ask {
            subject: &subject,
            kind: "blob",
            method: Method::HEAD,
            path: format!("blobs/{digest}"),
            accept: "*/*",
            from: 0,
        };
        let mut tally = Tally::default();
        for (host, last) in self.order(|host| host.pull) {
            match self.request(host, &ask, last).await {
                Ok(answer) => match answer.length() {
                    Some(size) => return Ok(size),
                    None => tally.add(Error::new(
                        ErrorClass::Protocol,
                        format!("{subject}: {} tells no size of the blob", host.name),
                    )),
                },
                Err(error) => tally.add(error),
            }
        }
        Err(tally.into_error(&subject))
    }

    /// The hosts that may serve blobs, those that answered of late first.
    fn sources(&self) -> Vec<Host> {
        let order = self.order(|host| host.pull);
        order.into_iter().map(|(host, _)| host.clone()).collect()
    }

    fn stream(&self, digest: &Digest, size: u64, hosts: Vec<Host>) -> BlobStream {
        BlobStream {
            repository: self.clone(),
            hosts,
            subject: format!("{}@{digest}", self.name()),
            digest: digest.to_string(),
            size,
            offset: 0,
            skip: 0,
            at: 0,
            answer: None,
            brought: 0,
            paced: (Instant::now(), 0),
            stuck: 0,
            resumes: 0,
            not_before: None,
            ended: false,
        }
    }

    /// A small blob (a config) whole: at most `limit` bytes, digest and size verified.
    pub async fn blob_bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, Error> {
        let subject = format!("{}@{}", self.name(), descriptor.digest);
        if descriptor.size > limit {
            return Err(Error::new(
                ErrorClass::Protocol,
                format!(
                    "{subject}: the blob has {} bytes, the limit is {limit}",
                    descriptor.size
                ),
            ));
        }
        let mut tally = Tally::default();
        let mut hosts = self.sources();
        while !hosts.is_empty() {
            let mut stream = self.stream(&descriptor.digest, descriptor.size, hosts.clone());
            match stream.whole().await {
                Err(error) => {
                    tally.add(error);
                    break;
                }
                Ok(bytes) => {
                    // A mirror may serve wrong bytes: the others are asked then.
                    let host = hosts.remove(stream.at.min(hosts.len() - 1));
                    match verify(&bytes, &descriptor.digest, &host, &subject) {
                        Ok(()) => return Ok(bytes),
                        Err(error) => tally.add(error),
                    }
                }
            }
        }
        Err(tally.into_error(&subject))
    }
}

impl BlobStream {
    async fn whole(&mut self) -> Result<Bytes, Error> {
        let mut bytes = BytesMut::new();
        self.open().await?;
        while let Some(piece) = self.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes.freeze())
    }

    /// The next bytes; `None` when all `descriptor.size` bytes have come. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(slow) = self.crawls()
                && let Err(error) = self.interrupted(&slow)
            {
                return self.fail(error);
            }
            let Some(answer) = &mut self.answer else {
                if let Err(error) = self.open().await {
                    return self.fail(error);
                }
                continue;
            };
            if self.offset == self.size && self.skip == 0 {
                // The end of the body is read too: it shows excess, and frees the connection for reuse.
                let rest = tokio::time::timeout(END, answer.chunk()).await;
                return match rest {
                    Ok(Ok(Some(bytes))) if bytes.is_empty() => continue,
                    Ok(Ok(Some(_))) => self.excess(),
                    _ => {
                        self.ended = true;
                        self.answer = None;
                        None
                    }
                };
            }
            match answer.chunk().await {
                Ok(Some(bytes)) => {
                    if let Some(result) = self.take(bytes) {
                        return Some(result);
                    }
                }
                Ok(None) => {
                    let ended = Break {
                        stalled: false,
                        cause: format!("it ended after {} of {} bytes", self.offset, self.size),
                    };
                    if let Err(error) = self.interrupted(&ended) {
                        return self.fail(error);
                    }
                }
                Err(broken) => {
                    if let Err(error) = self.interrupted(&broken) {
                        return self.fail(error);
                    }
                }
            }
        }
    }

    /// The host that is serving it.
    pub fn host(&self) -> &str {
        self.hosts
            .get(self.at)
            .map_or("", |host| host.name.as_str())
    }

    /// Bytes handed out so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn fail(&mut self, error: Error) -> Option<Result<Bytes, Error>> {
        self.ended = true;
        self.answer = None;
        Some(Err(error))
    }

    fn excess(&mut self) -> Option<Result<Bytes, Error>> {
        let error = Error::new(
            ErrorClass::Protocol,
            format!(
                "{}: {} sends more than the {} bytes the manifest names; the image is damaged there, push it again",
                self.subject,
                self.host(),
                self.size
            ),
        );
        self.fail(error)
    }

    /// The part of `bytes` that is new, if any.
    fn take(&mut self, mut bytes: Bytes) -> Option<Result<Bytes, Error>> {
        let known = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let new = bytes.split_off(known);
        self.skip = self.skip.saturating_sub(known as u64);
        if new.is_empty() {
            return None;
        }
        let length = new.len() as u64;
        if length > self.size.saturating_sub(self.offset) {
            return self.excess();
        }
        self.offset += length;
        self.brought += length;
        self.repository.transport.metrics.received(length);
        Some(Ok(new))
    }

    /// Judges the pace now and then: a trickle that never quite stops would hold a pull for days.
    fn crawls(&mut self) -> Option<Break> {
        let window = self.repository.transport.config.stall_timeout * WINDOW;
        let (since, before) = self.paced;
        if self.answer.is_none() || since.elapsed() < window {
            return None;
        }
        let came = self.offset.saturating_sub(before);
        self.paced = (Instant::now(), self.offset);
        (came < ENOUGH).then(|| Break {
            stalled: true,
            cause: format!("only {came} bytes came in {} s", window.as_secs_f32()),
        })
    }

    /// Decides how to go on after a break.
    fn interrupted(&mut self, broken: &Break) -> Result<(), Error> {
        let Break { stalled, cause } = broken;
        let config = &self.repository.transport.config;
        self.answer = None;
        // A stall costs its whole timeout: it has to bring more than a break that is noticed at once.
        let moved = self.brought >= if *stalled { ENOUGH } else { 1 };
        if moved {
            self.stuck = 0;
        }
        self.stuck += 1;
        self.resumes += 1;
        tracing::debug!(
            blob = self.digest,
            host = self.host(),
            offset = self.offset,
            err = cause,
            "Transfer broke off and is taken up again"
        );
        if self.stuck >= config.attempts.max(1) || self.resumes > MAX_RESUMES {
            return Err(Error::new(
                ErrorClass::Broken,
                format!(
                    "{}: the transfer from {} broke {} times, {} of {} bytes came: {cause}; check the network and the registry's storage",
                    self.subject,
                    self.host(),
                    self.resumes,
                    self.offset,
                    self.size
                ),
            ));
        }
        self.repository.transport.metrics.resumed();
        if !moved && !self.hosts.is_empty() {
            self.at = (self.at + 1) % self.hosts.len();
        }
        if self.stuck > 1 {
            self.not_before =
                Some(Instant::now() + retry::backoff(self.stuck - 1, retry::jitter()));
        }
        Ok(())
    }

    /// Asks the hosts in turn, beginning with the current one, for the bytes that are missing.
    async fn open(&mut self) -> Result<(), Error> {
        if let Some(time) = self.not_before {
            tokio::time::sleep_until(time).await;
            self.not_before = None;
        }
        let mut tally = Tally::default();
        let count = self.hosts.len();
        for turn in 0..count {
            let at = (self.at + turn) % count;
            let Some(host) = self.hosts.get(at) else {
                break;
            };
            let ask = Ask {
                subject: &self.subject,
                kind: "blob",
                method: Method::GET,
                path: format!("blobs/{}", self.digest),
                accept: "*/*",
                from: self.offset,
            };
            let answered = self.repository.request(host, &ask, turn + 1 == count).await;
            let checked = answered.and_then(|answer| {
                let skip = self.begin(&answer)?;
                Ok((answer, skip))
            });
            match checked {
                Ok((answer, skip)) => {
                    self.at = at;
                    self.skip = skip;
                    self.answer = Some(answer);
                    self.brought = 0;
                    self.paced = (Instant::now(), self.offset);
                    return Ok(());
                }
                Err(error) => tally.add(self.at_the_end(error)),
            }
        }
        Err(tally.into_error(&self.subject))
    }

    /// A host that has no byte where more are wanted has a shorter blob.
    fn at_the_end(&self, error: Error) -> Error {
        if error.status() != Some(416) {
            return error;
        }
        Error::new(
            ErrorClass::Broken,
            format!(
                "{}: the registry has only {} of the {} bytes the manifest names; the blob is damaged there, push it again",
                self.subject, self.offset, self.size
            ),
        )
    }

    /// How many bytes of an answer are known already. An answer of another size or place is refused.
    fn begin(&self, answer: &Answer) -> Result<u64, Error> {
        let refuse = |what: String| {
            Err(Error::new(
                ErrorClass::Protocol,
                format!("{}: {} {what}", self.subject, answer.server),
            ))
        };
        match answer.status() {
            200 if is_page(&answer.media_type()) => refuse(format!("answered a web page{PAGE}")),
            200 => match answer.length() {
                Some(length) if length != self.size => refuse(format!(
                    "offers {length} bytes, the manifest names {}; the image is damaged there, push it again",
                    self.size
                )),
                _ => Ok(self.offset),
            },
            206 => {
                let value = answer.header("content-range").unwrap_or_default();
                match content_range(value) {
                    Some((first, total))
                        if first <= self.offset && total.is_none_or(|total| total == self.size) =>
                    {
                        Ok(self.offset - first)
                    }
                    _ => refuse(format!(
                        "answered with the range {:?} where bytes {}-{} of {} were asked for; check the registry's storage",
                        redact::text(value),
                        self.offset,
                        self.size.saturating_sub(1),
                        self.size
                    )),
                }
            }
            status => refuse(format!("answered {status} where a blob was asked for")),
        }
    }
}

/// First byte and total of a `Content-Range` (RFC 9110 §14.4).
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    if last < first {
        return None;
    }
    match total.trim() {
        "*" => Some((first, None)),
        total => Some((first, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 9-5/10",
            "items 5-9/10",
            "bytes 5-9",
            "bytes -1-9/10",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_range_is_read_or_refused(value in "bytes [0-9*/ -]{0,40}") {
            let _ = content_range(&value);
        }
    }
}

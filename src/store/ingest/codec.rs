//! The decode stage of an ingest: reads the compressed blob to its end, checks size and digest, inflates.
//!
//! It runs on a thread of its own and hands recycled buffers to the consume stage over a bounded channel, so that
//! neither side waits for the other's work and memory stays fixed.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use super::fault::Fault;
use crate::image::{Compression, Hasher};
use crate::store::{Error, LayerCounters, LayerSource, Limits};

/// Uncompressed bytes handed over at once.
pub(super) const BUFFER: usize = 256 << 10;
/// Buffers in use at once.
pub(super) const BUFFERS: usize = 6;
/// First bytes that tell a compression.
const MAGIC: usize = 4;
/// Compressed bytes read at once.
const READ: usize = 128 << 10;
/// Uncompressed bytes after which the ratio is judged.
pub(super) const RATIO_AFTER: u64 = 64 << 20;
/// Largest zstd window, as a power of two: what `zstd` itself takes by default.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How the decode stage ended when nothing was wrong with the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Everything was handed over; digest and size are right. Else the consume stage went away first.
    pub(super) whole: bool,
    /// What the blob really is.
    pub(super) actual: Compression,
}

/// What the two stages share.
pub(super) struct Exchange<'a> {
    /// Filled buffers, to the consume stage.
    pub(super) full: SyncSender<Vec<u8>>,
    /// Used buffers, back from it.
    pub(super) used: Receiver<Vec<u8>>,
    /// Set when the consume stage went away because of what the tar says: then the blob is still read to its end, since
    /// a wrong digest is the better explanation.
    pub(super) suspicious: &'a AtomicBool,
}

/// Runs the decode stage.
pub(super) fn decode(
    source: &LayerSource,
    from: &mut (dyn Read + Send),
    limits: &Limits,
    counters: &LayerCounters,
    exchange: &Exchange<'_>,
) -> Result<Decoded, Error> {
    let mut blob = BlobReader::new(source, from, counters);
    let result = inflate(&mut blob, source, limits, counters, exchange);
    match result {
        Ok(decoded) => {
            if decoded.whole || exchange.suspicious.load(Ordering::Acquire) {
                blob.finish()?;
            }
            Ok(decoded)
        }
        // Wrong bytes rarely inflate: say so only where they are the right bytes.
        Err(fault @ Fault::Bad(_)) => blob.finish().and(Err(fault.of(&source.blob))),
        Err(fault) => Err(fault.of(&source.blob)),
    }
}

fn inflate(
    blob: &mut BlobReader<'_>,
    source: &LayerSource,
    limits: &Limits,
    counters: &LayerCounters,
    exchange: &Exchange<'_>,
) -> Result<Decoded, Fault> {
    let mut magic = vec![0; MAGIC];
    let (len, _) =
        fill(&mut magic, |room| blob.read(room)).map_err(|error| Fault::Bad(error.to_string()))?;
    magic.truncate(len);
    if magic.is_empty() && source.compression != Compression::None {
        let declared = word(source.compression);
        return Err(Fault::Bad(format!("empty, declared as {declared}")));
    }
    let actual = sniff(&magic);
    let head = BufReader::with_capacity(READ, io::Cursor::new(magic).chain(blob));
    let mut decoder = Decoder::new(actual, head)?;
    let mut inflated = 0_u64;
    let ended = |whole| Ok(Decoded { whole, actual });
    loop {
        let Ok(mut buffer) = exchange.used.recv() else {
            return ended(false);
        };
        buffer.resize(BUFFER, 0);
        let (len, end) = fill(&mut buffer, |room| decoder.read(room))
            .map_err(|error| Fault::Bad(explain(source.compression, actual, &error)))?;
        buffer.truncate(len);
        inflated += len as u64;
        let read = decoder.blob().read;
        counters.inflated.store(inflated, Ordering::Relaxed);
        if inflated > limits.max_layer_bytes {
            return Err(Fault::Limit {
                what: format!("more than {} uncompressed bytes", limits.max_layer_bytes),
                limit: limits.max_layer_bytes,
                key: "max_layer_bytes",
            });
        }
        if inflated > RATIO_AFTER && inflated / limits.max_ratio.max(1) > read {
            return Err(Fault::Limit {
                what: format!("{inflated} uncompressed bytes out of {read} are a ratio"),
                limit: limits.max_ratio,
                key: "max_ratio",
            });
        }
        if exchange.full.send(buffer).is_err() {
            return ended(false);
        }
        if end {
            return ended(true);
        }
    }
}

/// Reads until `buffer` is full or the end; returns the length and whether it was the end.
fn fill(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<(usize, bool)> {
    let mut len = 0;
    while let Some(room) = buffer.get_mut(len..).filter(|room| !room.is_empty()) {
        match read(room) {
            Ok(0) => return Ok((len, true)),
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((len, false))
}

fn explain(declared: Compression, actual: Compression, error: &io::Error) -> String {
    let word = word(actual);
    let cause = if error.kind() == io::ErrorKind::UnexpectedEof {
        format!("the {word} data is truncated, or there is garbage after it")
    } else {
        format!("bad {word} data, or there is garbage after it: {error}")
    };
    if declared == actual {
        cause
    } else {
        format!("{cause} (declared as {})", self::word(declared))
    }
}

pub(super) fn word(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "tar",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    }
}

/// What the first bytes say; registries and media types are sometimes wrong.
fn sniff(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
        // A frame, or a skippable one before it.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
        _ => Compression::None,
    }
}

type Head<'a, 'b> = BufReader<io::Chain<io::Cursor<Vec<u8>>, &'a mut BlobReader<'b>>>;

enum Decoder<'a, 'b> {
    None(Head<'a, 'b>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Head<'a, 'b>>>),
    Zstd(zstd::stream::read::Decoder<'static, Head<'a, 'b>>),
}

impl<'a, 'b> Decoder<'a, 'b> {
    fn new(compression: Compression, head: Head<'a, 'b>) -> Result<Self, Fault> {
        Ok(match compression {
            Compression::None => Decoder::None(head),
            Compression::Gzip => {
                Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(head)))
            }
            Compression::Zstd => {
                let refused = |error: io::Error| Fault::Bad(format!("zstd: {error}"));
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(head).map_err(refused)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(refused)?;
                Decoder::Zstd(decoder)
            }
        })
    }

    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::None(head) => head.read(room),
            Decoder::Gzip(decoder) => decoder.read(room),
            Decoder::Zstd(decoder) => decoder.read(room),
        }
    }

    fn blob(&self) -> &BlobReader<'b> {
        match self {
            Decoder::None(head) => head.get_ref().get_ref().1,
            Decoder::Gzip(decoder) => decoder.get_ref().get_ref().get_ref().1,
            Decoder::Zstd(decoder) => decoder.get_ref().get_ref().get_ref().1,
        }
    }
}

/// Counts and hashes what is read of the blob; never asks for more than one byte beyond its size.
struct BlobReader<'a> {
    source: &'a LayerSource,
    from: &'a mut (dyn Read + Send),
    counters: &'a LayerCounters,
    hasher: Hasher,
    read: u64,
    ended: bool,
    /// The source's own error: it explains everything after it.
    failed: Option<io::Error>,
}

impl<'a> BlobReader<'a> {
    fn new(
        source: &'a LayerSource,
        from: &'a mut (dyn Read + Send),
        counters: &'a LayerCounters,
    ) -> Self {
        BlobReader {
            hasher: Hasher::new(source.blob.algorithm()),
            source,
            from,
            counters,
            read: 0,
            ended: false,
            failed: None,
        }
    }

    /// Reads what is left and judges the whole.
    fn finish(mut self) -> Result<(), Error> {
        let mut rest = vec![0; READ];
        while !self.ended && self.failed.is_none() && self.read <= self.source.size {
            match self.read(&mut rest) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Kept in `failed`.
                Ok(_) | Err(_) => {}
            }
        }
        if let Some(source) = self.failed {
            return Err(Error::Source {
                blob: self.source.blob.clone(),
                source,
            });
        }
        if self.read != self.source.size {
            return Err(Error::SizeMismatch {
                blob: self.source.blob.clone(),
                expected: self.source.size,
                found: self.read,
            });
        }
        let found = self.hasher.finish();
        if found != self.source.blob {
            return Err(Error::DigestMismatch {
                expected: self.source.blob.clone(),
                found,
            });
        }
        Ok(())
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let left = self.source.size.saturating_add(1).saturating_sub(self.read);
        if self.ended || self.failed.is_some() || left == 0 || room.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
        let room = room.get_mut(..most).unwrap_or_default();
        match self.from.read(room) {
            Ok(0) => {
                self.ended = true;
                Ok(0)
            }
            Ok(len) => {
                self.hasher.update(room.get(..len).unwrap_or_default());
                self.read += len as u64;
                self.counters.read.store(self.read, Ordering::Relaxed);
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(told)
            }
        }
    }
}

#[cfg(test)]
mod tests;

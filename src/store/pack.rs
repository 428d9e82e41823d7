//! Packs: where file contents live.

use super::{Error, Store};

/// blake3 of a content's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ContentHash(pub(crate) [u8; 32]);

/// A place in a pack. Occupies `len.div_ceil(4096)` blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    pub(crate) segment: u32,
    pub(crate) block: u32,
    pub(crate) len: u64,
}

/// Where a content ended up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) hash: ContentHash,
    pub(crate) extent: Extent,
    pub(crate) deduplicated: bool,
}

/// Exclusive appender of one ingest.
#[derive(Debug)]
pub(crate) struct PackWriter {}

/// Durable contents not yet named by the database.
#[derive(Debug)]
pub(crate) struct PackCommit {
    pub(crate) used: Vec<(ContentHash, Extent)>,
}

impl PackWriter {
    pub(crate) fn begin(&mut self, _len: u64) -> Result<(), Error> {
        todo!()
    }
    pub(crate) fn write(&mut self, _bytes: &[u8]) -> Result<(), Error> {
        todo!()
    }
    pub(crate) fn end(&mut self) -> Result<Placed, Error> {
        todo!()
    }
    pub(crate) fn finish(self) -> Result<PackCommit, Error> {
        todo!()
    }
}

impl Store {
    pub(crate) fn pack_writer(&self) -> Result<PackWriter, Error> {
        todo!()
    }
    pub(crate) fn segment_file(&self, _segment: u32) -> Result<std::fs::File, Error> {
        todo!()
    }
}

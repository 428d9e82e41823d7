//! Packs: append-only segments that hold file contents in 4 KiB-aligned extents.
//!
//! One ingest appends to a segment at a time, so what lies beyond a segment's committed length is its alone to give
//! up. Writes go past the page cache (`O_DIRECT`) where the file system can, from a few recycled buffers, on a thread
//! of the ingest's own, so that hashing goes on while the disk writes.

mod writer;

use std::fs::File;
use std::io;
use std::sync::Arc;

use hashbrown::HashMap;
use rustix::fs::{FallocateFlags, fallocate};

use super::{Error, Inner, Store, contents, files};
use writer::{BUFFER, Buffer, Writer, open_for_writing};

/// Unit of extents and of EROFS blocks.
pub(crate) const BLOCK: u64 = 4096;
/// A content starts in a segment only below this length. It is never split, so a segment may grow beyond.
const SEGMENT_SOFT_MAX: u64 = 1 << 30;
/// Writes on their way to the disk, which it does not count yet.
const IN_FLIGHT: u64 = 2 * BUFFER as u64;

/// blake3 of a content's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ContentHash(pub(crate) [u8; 32]);

/// A place in a pack. Occupies `len.div_ceil(4096)` blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Extent {
    pub(crate) segment: u32,
    /// In blocks from the segment's start.
    pub(crate) block: u32,
    /// In bytes.
    pub(crate) len: u64,
}

/// Where a content ended up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "an ingest needs the place only")
    )]
    pub(crate) hash: ContentHash,
    pub(crate) extent: Extent,
    pub(crate) deduplicated: bool,
}

impl Extent {
    /// In bytes from the segment's start.
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.block) * BLOCK
    }

    /// Where the next may begin, in bytes from the segment's start.
    pub(super) fn end(&self) -> u64 {
        self.offset().saturating_add(contents::occupied(self.len))
    }
}

/// A segment that an ingest appends to.
#[derive(Debug)]
struct Segment {
    id: u32,
    file: Arc<File>,
    /// Committed before this ingest.
    committed: u64,
    /// After this ingest.
    len: u64,
}

/// References and segments that an ingest holds until its layer is committed; dropping it gives all back.
#[derive(Debug)]
struct Hold {
    store: Arc<Inner>,
    segments: Vec<Segment>,
    /// Contents of this ingest: those that were known hold a reference; the others are new.
    contents: HashMap<ContentHash, (Extent, bool)>,
    armed: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let known: Vec<(ContentHash, Extent)> = self
            .contents
            .drain()
            .filter(|(_, (_, known))| *known)
            .map(|(hash, (extent, _))| (hash, extent))
            .collect();
        self.store.release(&known);
        let mut touched: Vec<_> = known.iter().map(|(_, place)| place.segment).collect();
        for segment in self.segments.drain(..) {
            touched.push(segment.id);
            let path = self.store.layout.pack(segment.id);
            let outcome = if segment.committed == 0 {
                files::remove(&path).map(|_| ())
            } else {
                segment
                    .file
                    .set_len(segment.committed)
                    .map_err(|error| Error::io("truncate", &path, error))
            };
            match outcome {
                Ok(()) if segment.committed > 0 => {
                    self.store
                        .state()
                        .idle_segments
                        .insert(segment.id, segment.committed);
                }
                Ok(()) => {}
                // The tail stays until the next start truncates it; nobody appends to the segment before.
                Err(error) => tracing::warn!(%error, "Kept the tail of a pack"),
            }
        }
        self.store.measure_segments(touched);
    }
}

/// Exclusive appender of one ingest. Dropping it without [`PackWriter::finish`] takes back what it wrote and releases
/// what it referred to.
#[derive(Debug)]
pub(crate) struct PackWriter {
    // Dropped first: a write still under way must not land in a segment that was cut and given back.
    writer: Writer,
    hold: Hold,
    /// Where the current buffer begins in the last of `hold.segments`; a multiple of the block.
    base: u64,
    buffer: Option<Buffer>,
    fill: usize,
    current: Option<Current>,
    until_space_check: u64,
}

#[derive(Debug)]
struct Current {
    len: u64,
    written: u64,
    start: u64,
    hasher: blake3::Hasher,
}

/// Durable contents not yet named by the database. Dropping it gives all back.
#[derive(Debug)]
pub(crate) struct PackCommit {
    hold: Hold,
}

impl PackWriter {
    /// Begins a content of exactly `len` bytes, more than none.
    pub(crate) fn begin(&mut self, len: u64) -> Result<(), Error> {
        let full = self.position() >= SEGMENT_SOFT_MAX;
        if self.hold.segments.is_empty() || full {
            self.seal()?;
            let (segment, base) = self.hold.store.check_out_segment()?;
            self.hold.segments.push(segment);
            self.base = base;
        }
        self.current = Some(Current {
            len,
            written: 0,
            start: self.position(),
            hasher: blake3::Hasher::new(),
        });
        Ok(())
    }

    /// Hashes and stages bytes of the content.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let current = self.current()?;
        current.hasher.update(bytes);
        current.written += bytes.len() as u64;
        while !bytes.is_empty() {
            let fill = self.fill;
            let room = self.room()?;
            let free = room.get_mut(fill..).unwrap_or_default();
            let take = free.len().min(bytes.len());
            let (now, later) = bytes.split_at(take);
            if let Some(free) = free.get_mut(..take) {
                free.copy_from_slice(now);
            }
            bytes = later;
            self.fill += take;
            if self.fill == BUFFER {
                self.submit()?;
            }
        }
        Ok(())
    }

    /// Ends the content. If the store has it already, the cursor goes back to where it began, and what was written of
    /// it is overwritten by the next.
    pub(crate) fn end(&mut self) -> Result<Placed, Error> {
        let Some(current) = self.current.take() else {
            return Err(Error::Invalid("no content was begun".to_owned()));
        };
        if current.written != current.len {
            return Err(Error::Invalid(format!(
                "a content of {} bytes was begun, {} were written",
                current.len, current.written
            )));
        }
        let hash = ContentHash(*current.hasher.finalize().as_bytes());
        let known = match self.hold.contents.get(&hash) {
            Some((extent, _)) => Some(*extent),
            None => {
                let found = self.hold.store.state().contents.take(&hash, current.len);
                if let Some(extent) = found {
                    self.hold.contents.insert(hash, (extent, true));
                }
                found
            }
        };
        if let Some(extent) = known {
            self.rewind(current.start);
            return Ok(Placed {
                hash,
                extent,
                deduplicated: true,
            });
        }
        let Some(segment) = self.hold.segments.last() else {
            return Err(Error::Invalid("no segment is open".to_owned()));
        };
        let extent = Extent {
            segment: segment.id,
            block: u32::try_from(current.start / BLOCK)
                .map_err(|_| Error::Invalid("a segment is over 16 TiB".to_owned()))?,
            len: current.len,
        };
        self.pad()?;
        self.hold.contents.insert(hash, (extent, false));
        Ok(Placed {
            hash,
            extent,
            deduplicated: false,
        })
    }

    /// Waits for all writes and makes them durable: `fdatasync` of each segment written to. From here on the contents
    /// survive a power cut, but nothing names them yet.
    pub(crate) fn finish(mut self) -> Result<PackCommit, Error> {
        self.seal()?;
        let PackWriter { hold, .. } = self;
        for segment in &hold.segments {
            let path = hold.store.layout.pack(segment.id);
            // What was rewound over lies beyond the end.
            segment
                .file
                .set_len(segment.len)
                .and_then(|()| segment.file.sync_data())
                .map_err(|error| Error::io("fdatasync", &path, error))?;
        }
        if hold.segments.iter().any(|segment| segment.committed == 0) {
            files::sync_folder(&hold.store.layout.packs())?;
        }
        Ok(PackCommit { hold })
    }

    fn current(&mut self) -> Result<&mut Current, Error> {
        self.current
            .as_mut()
            .ok_or_else(|| Error::Invalid("no content was begun".to_owned()))
    }

    fn position(&self) -> u64 {
        self.base + self.fill as u64
    }

    fn room(&mut self) -> Result<&mut [u8], Error> {
        if self.buffer.is_none() {
            let buffer = self.writer.buffer().map_err(|error| self.failed(error))?;
            self.buffer = Some(buffer);
        }
        Ok(self.buffer.as_mut().map(Buffer::whole).unwrap_or_default())
    }

    /// Zeros up to the next block.
    fn pad(&mut self) -> Result<(), Error> {
        let over = self.fill % BLOCK as usize;
        if over == 0 {
            return Ok(());
        }
        let (from, to) = (self.fill, self.fill - over + BLOCK as usize);
        if let Some(tail) = self.room()?.get_mut(from..to) {
            tail.fill(0);
        }
        self.fill = to;
        if self.fill == BUFFER {
            self.submit()?;
        }
        Ok(())
    }

    fn rewind(&mut self, start: u64) {
        match start.checked_sub(self.base) {
            Some(fill) => self.fill = fill as usize,
            None => {
                self.base = start;
                self.fill = 0;
            }
        }
    }

    fn submit(&mut self) -> Result<(), Error> {
        let len = std::mem::take(&mut self.fill);
        let (Some(buffer), Some(segment)) = (self.buffer.take(), self.hold.segments.last()) else {
            return Ok(());
        };
        self.until_space_check = match self.until_space_check.checked_sub(len as u64) {
            Some(left) => left,
            None => self.hold.store.check_space(IN_FLIGHT)?,
        };
        let file = segment.file.clone();
        self.writer
            .submit(&file, self.base, buffer, len)
            .map_err(|error| self.failed(error))?;
        self.base += len as u64;
        Ok(())
    }

    /// Writes what is staged and notes the length of the open segment.
    fn seal(&mut self) -> Result<(), Error> {
        if self.fill > 0 {
            self.submit()?;
        }
        self.writer.wait_all().map_err(|error| self.failed(error))?;
        let end = self.base;
        if let Some(segment) = self.hold.segments.last_mut() {
            segment.len = end;
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Error {
        let path = match self.hold.segments.last() {
            Some(segment) => self.hold.store.layout.pack(segment.id),
            None => self.hold.store.layout.packs(),
        };
        Error::io("write", &path, error)
    }
}

impl PackCommit {
    /// Every content of the layer, each once.
    pub(super) fn used(&self) -> Vec<(ContentHash, Extent)> {
        self.hold
            .contents
            .iter()
            .map(|(hash, (extent, _))| (*hash, *extent))
            .collect()
    }

    /// Whether a content that this ingest was given was found damaged since.
    pub(super) fn damaged(&self) -> Option<Extent> {
        let state = self.hold.store.state();
        let mut known = self.hold.contents.values().filter(|(_, known)| *known);
        known
            .find(|(extent, _)| state.contents.is_damaged(*extent))
            .map(|(extent, _)| *extent)
    }

    /// Bytes of the contents that were not there before.
    pub(super) fn added(&self) -> u64 {
        self.hold
            .contents
            .values()
            .filter(|(_, known)| !known)
            .map(|(extent, _)| contents::occupied(extent.len))
            .sum()
    }

    /// Segments written to, with their lengths from now on.
    pub(super) fn segments(&self) -> Vec<(u32, u64)> {
        self.hold
            .segments
            .iter()
            .map(|segment| (segment.id, segment.len))
            .collect()
    }

    /// Hands everything to the store: the database names it now.
    pub(super) fn keep(mut self) {
        self.hold.armed = false;
        let store = self.hold.store.clone();
        let mut state = store.state();
        for (hash, (extent, known)) in self.hold.contents.drain() {
            if !known {
                state.contents.add(hash, extent);
            }
        }
        for segment in self.hold.segments.drain(..) {
            if segment.len > 0 {
                state.idle_segments.insert(segment.id, segment.len);
            } else {
                // Opened for contents that all turned out to be known. What stays is an orphan for start-up.
                let _ = files::remove(&store.layout.pack(segment.id));
            }
        }
    }
}

impl Inner {
    /// An appendable segment and where to append. The caller has it alone.
    fn check_out_segment(&self) -> Result<(Segment, u64), Error> {
        self.check_space(0)?;
        let (id, committed, file) = loop {
            let (id, committed) = {
                let mut state = self.state();
                let open = state
                    .idle_segments
                    .iter()
                    .find(|(_, len)| **len < SEGMENT_SOFT_MAX)
                    .map(|(id, len)| (*id, *len));
                match open {
                    Some((id, len)) => {
                        state.idle_segments.remove(&id);
                        (id, len)
                    }
                    None => {
                        let id = state.records.next_segment;
                        state.records.next_segment = id.saturating_add(1);
                        (id, 0)
                    }
                }
            };
            let path = self.layout.pack(id);
            match open_for_writing(&path, committed == 0) {
                Ok(file) => break (id, committed, file),
                // Whoever reads it says so; nothing is appended to it.
                Err(error) if committed > 0 && error.kind() == io::ErrorKind::NotFound => {
                    tracing::error!(segment = id, "A pack is missing");
                }
                Err(error) => {
                    if committed > 0 {
                        self.state().idle_segments.insert(id, committed);
                    }
                    return Err(Error::io("open", &path, error));
                }
            }
        };
        let segment = Segment {
            id,
            file: Arc::new(file),
            committed,
            len: committed,
        };
        Ok((segment, committed))
    }

    /// Gives references back and frees the places that nobody uses any more. Returns the bytes freed.
    pub(super) fn release(&self, extents: &[(ContentHash, Extent)]) -> u64 {
        let freed = self.state().let_go(extents);
        self.punch_all(freed)
    }

    /// Gives places that nobody uses back to the file system, neighbours in one piece. Returns their bytes.
    pub(super) fn punch_all(&self, mut places: Vec<Extent>) -> u64 {
        places.sort_unstable();
        let mut bytes = 0;
        for places in places.chunk_by(|a, b| a.segment == b.segment) {
            let Some(segment) = places.first().map(|place| place.segment) else {
                continue;
            };
            let punched = self.open_segment(segment).and_then(|file| {
                for range in places.chunk_by(|a, b| a.end() == b.offset()) {
                    if let (Some(first), Some(last)) = (range.first(), range.last()) {
                        let len = last.end() - first.offset();
                        self.punch(segment, &file, first.offset(), len)?;
                        bytes += len;
                    }
                }
                Ok(())
            });
            if let Err(error) = punched {
                // Start-up finds and punches it again.
                tracing::warn!(%error, "Kept unused space of a pack");
            }
        }
        bytes
    }

    /// A segment for punching.
    pub(super) fn open_segment(&self, segment: u32) -> Result<File, Error> {
        let path = self.layout.pack(segment);
        let file = File::options().write(true).open(&path);
        file.map_err(|error| Error::io("open", &path, error))
    }

    /// Gives a range of a segment back to the file system.
    pub(super) fn punch(
        &self,
        segment: u32,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Result<(), Error> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, flags, offset, len).map_err(|error| {
            Error::io(
                "punch a hole into",
                &self.layout.pack(segment),
                error.into(),
            )
        })
    }
}

impl Store {
    /// An appender for one ingest.
    pub(crate) fn pack_writer(&self) -> Result<PackWriter, Error> {
        let root = self.inner.layout.root();
        let writer =
            Writer::start().map_err(|error| Error::io("start a writer for", root, error))?;
        Ok(PackWriter {
            writer,
            hold: Hold {
                store: self.inner.clone(),
                segments: Vec::new(),
                contents: HashMap::new(),
                armed: true,
            },
            base: 0,
            buffer: None,
            fill: 0,
            current: None,
            until_space_check: 0,
        })
    }

    /// A segment for reading.
    pub(crate) fn segment_file(&self, segment: u32) -> Result<File, Error> {
        let path = self.inner.layout.pack(segment);
        File::open(&path).map_err(|error| Error::io("open", &path, error))
    }
}

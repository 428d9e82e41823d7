//! A push parser of tar: bytes go in as they come, entries come out.
//!
//! It knows v7, ustar, GNU and PAX. It checks what the format says (checksums, sizes, records) and leaves what a
//! layer may hold (names, links, limits of the tree) to its [`Sink`]. Every byte reaches the sink exactly once, as
//! [`Sink::literal`] or [`Sink::data`], so that the tar can be put together again. Memory is bounded by
//! [`Bounds`], whatever the headers claim.

mod entry;
mod header;
mod pax;
mod sparse;

pub(crate) use entry::{Entry, EntryKind, SparseMap, Xattrs};
use header::{BLOCK, Dialect, Header, sparse_real_size, sparse_regions, to_device, to_id, to_size};
use pax::Pax;
use sparse::MapReader;

use super::fault::{Fault, show};

/// Takes what the parser finds, in the order of the tar.
pub(crate) trait Sink {
    /// Bytes that are no file's data: headers, padding, what follows the end.
    fn literal(&mut self, bytes: &[u8]) -> Result<(), Fault>;
    /// An entry begins; [`Entry::body`] bytes of data follow.
    fn begin(&mut self, entry: Entry) -> Result<(), Fault>;
    /// Some data of the entry, not empty.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Fault>;
    /// All data of the entry was given.
    fn end(&mut self) -> Result<(), Fault>;
}

/// What one entry may claim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of a name or link target.
    pub(crate) max_path: usize,
    /// Bytes of a body.
    pub(crate) max_body: u64,
}

/// Extended attributes that a global header may set for all entries, in bytes.
const MAX_GLOBAL_XATTRS: u64 = 64 << 10;

/// The parser.
#[derive(Debug)]
pub(crate) struct Parser {
    bounds: Bounds,
    state: State,
    block: Box<[u8; BLOCK]>,
    filled: usize,
    globals: Pax,
    /// Extended headers read for the entry to come.
    next: Next,
}

#[derive(Debug)]
enum State {
    /// Collecting a header block.
    Header,
    /// The block before was all zero.
    Ending,
    /// The body of a header that extends the next one.
    Extension {
        kind: Extension,
        left: u64,
        pad: u64,
        body: Vec<u8>,
    },
    /// Blocks that extend an old GNU sparse header.
    SparseBlocks { entry: Entry, map: SparseMap },
    /// The map at the start of the data of a PAX 1.0 sparse file.
    SparseData {
        entry: Entry,
        map: MapReader,
        left: u64,
        pad: u64,
    },
    /// Data of an entry.
    Body { left: u64, pad: u64 },
    /// Zeros up to the next block.
    Padding { left: u64 },
    /// After the end marker.
    Trailer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    LongName,
    LongLink,
    Local,
    Global,
}

#[derive(Debug, Default)]
struct Next {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Next {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

impl Parser {
    /// At the start of a tar.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Parser {
            bounds,
            state: State::Header,
            block: Box::new([0; BLOCK]),
            filled: 0,
            globals: Pax::default(),
            next: Next::default(),
        }
    }

    /// Parses some more of the tar. After an error the parser must not be used again.
    pub(crate) fn push(&mut self, mut bytes: &[u8], sink: &mut dyn Sink) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let taken = self.step(bytes, sink)?;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// The tar ended. Fails where it ended too early.
    pub(crate) fn finish(&self) -> Result<(), Fault> {
        let cut = match &self.state {
            State::Header | State::Ending if self.filled > 0 => "a header",
            State::Header if !self.next.is_empty() => "an extended header",
            State::Extension { .. } => "an extended header",
            State::SparseBlocks { .. } | State::SparseData { .. } => "a sparse map",
            State::Body { .. } => "the data of an entry",
            // Writers that stop after the last byte of data, or without an end marker, are accepted as everywhere.
            State::Header | State::Ending | State::Padding { .. } | State::Trailer => return Ok(()),
        };
        Err(Fault::Bad(format!("the tar ends inside {cut}")))
    }

    /// Handles the first bytes of `bytes`; returns how many, at least one.
    fn step(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<usize, Fault> {
        match &mut self.state {
            State::Header | State::Ending | State::SparseBlocks { .. } => {
                let taken = self.fill(bytes);
                sink.literal(bytes.get(..taken).unwrap_or_default())?;
                if self.filled == BLOCK {
                    self.filled = 0;
                    self.block_done(sink)?;
                }
                Ok(taken)
            }
            State::Extension { left, body, .. } => {
                let part = head(bytes, *left);
                sink.literal(part)?;
                body.extend_from_slice(part);
                *left -= part.len() as u64;
                if *left == 0 {
                    self.extension_done()?;
                }
                Ok(part.len())
            }
            State::SparseData { map, left, .. } => {
                let part = head(bytes, (*left).min(map.wants()));
                sink.literal(part)?;
                map.push(part)?;
                *left -= part.len() as u64;
                if map.is_done() || *left == 0 {
                    self.sparse_data_done(sink)?;
                }
                Ok(part.len())
            }
            State::Body { left, pad } => {
                let part = head(bytes, *left);
                sink.data(part)?;
                *left -= part.len() as u64;
                if *left == 0 {
                    self.state = after(*pad);
                    sink.end()?;
                }
                Ok(part.len())
            }
            State::Padding { left } => {
                let part = head(bytes, *left);
                sink.literal(part)?;
                *left -= part.len() as u64;
                if *left == 0 {
                    self.state = State::Header;
                }
                Ok(part.len())
            }
            State::Trailer => {
                sink.literal(bytes)?;
                Ok(bytes.len())
            }
        }
    }

    fn fill(&mut self, bytes: &[u8]) -> usize {
        let room = self.block.get_mut(self.filled..).unwrap_or_default();
        let taken = room.len().min(bytes.len());
        if let (Some(to), Some(from)) = (room.get_mut(..taken), bytes.get(..taken)) {
            to.copy_from_slice(from);
        }
        self.filled += taken;
        taken
    }

    /// A block is complete: a header, or more of a sparse map.
    fn block_done(&mut self, sink: &mut dyn Sink) -> Result<(), Fault> {
        let zero = self.block.iter().all(|&b| b == 0);
        match std::mem::replace(&mut self.state, State::Header) {
            State::SparseBlocks { entry, mut map } => {
                let more = sparse_regions(&self.block, true, &mut map.regions)
                    .map_err(|cause| named(&entry.path, &cause))?;
                sparse::check_count(&map).map_err(|cause| named(&entry.path, &cause))?;
                if more {
                    self.state = State::SparseBlocks { entry, map };
                    return Ok(());
                }
                self.begin_sparse(entry, map, sink)
            }
            State::Ending if zero => {
                self.state = State::Trailer;
                Ok(())
            }
            State::Ending => Err(Fault::Bad(
                "the tar goes on after half an end marker".to_owned(),
            )),
            _ if zero && !self.next.is_empty() => Err(Fault::Bad(
                "the tar ends after an extended header".to_owned(),
            )),
            _ if zero => {
                self.state = State::Ending;
                Ok(())
            }
            _ => self.header_done(sink),
        }
    }

    fn header_done(&mut self, sink: &mut dyn Sink) -> Result<(), Fault> {
        let header = Header::parse(&self.block)?;
        let extension = match header.typeflag {
            b'L' => Extension::LongName,
            b'K' => Extension::LongLink,
            b'x' => Extension::Local,
            b'g' => Extension::Global,
            _ => return self.entry_header_done(header, sink),
        };
        let size = to_size("size of an extended header", header.size)?;
        let (limit, key) = match extension {
            // One more for a NUL at the end.
            Extension::LongName | Extension::LongLink => {
                (self.bounds.max_path as u64 + 1, Some("max_path"))
            }
            Extension::Local | Extension::Global => (pax::MAX_BYTES, None),
        };
        if size > limit {
            return Err(match key {
                Some(key) => Fault::Limit {
                    what: format!("a name of {size} bytes"),
                    limit: limit - 1,
                    key,
                },
                None => Fault::Bad(format!(
                    "a PAX header of {size} bytes; at most {limit} are read"
                )),
            });
        }
        self.state = State::Extension {
            kind: extension,
            left: size,
            pad: padding(size),
            body: Vec::new(),
        };
        if size == 0 {
            self.extension_done()?;
        }
        Ok(())
    }

    fn extension_done(&mut self) -> Result<(), Fault> {
        let State::Extension {
            kind,
            pad,
            mut body,
            ..
        } = std::mem::replace(&mut self.state, State::Header)
        else {
            return Ok(());
        };
        self.state = after(pad);
        match kind {
            Extension::LongName | Extension::LongLink => {
                let end = body.iter().position(|&b| b == 0).unwrap_or(body.len());
                body.truncate(end);
                if kind == Extension::LongName {
                    self.next.name = Some(body);
                } else {
                    self.next.link = Some(body);
                }
            }
            Extension::Local => self
                .next
                .pax
                .get_or_insert_with(|| self.globals.clone())
                .apply(&body)?,
            Extension::Global => {
                self.globals.apply(&body)?;
                if self.globals.xattr_bytes() > MAX_GLOBAL_XATTRS {
                    return Err(Fault::Bad(
                        "a global PAX header sets too many extended attributes".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }

    fn entry_header_done(&mut self, header: Header, sink: &mut dyn Sink) -> Result<(), Fault> {
        let Next { pax, name, link } = std::mem::take(&mut self.next);
        let mut pax = pax.unwrap_or_else(|| self.globals.clone());
        let sparse_name = pax.sparse.name.take();
        let path = sparse_name.or(name).or(pax.path).unwrap_or(header.name);
        let fail = |cause: String| named(&path, &cause);
        let size = match pax.size {
            Some(size) => size,
            None => to_size("size", header.size).map_err(fail)?,
        };
        let link = link.or(pax.link).unwrap_or(header.link);
        let (mut body, mut map) = (0, None);
        let kind = match header.typeflag {
            b'\0' | b'0' | b'7'
                if path.ends_with(b"/") && (size == 0 || header.typeflag == b'\0') =>
            {
                EntryKind::Directory
            }
            b'\0' | b'0' | b'7' => {
                body = size;
                map = sparse::of_pax(&pax.sparse).map_err(fail)?;
                EntryKind::Regular
            }
            b'S' => {
                if header.dialect != Dialect::Gnu {
                    return Err(fail("a sparse file in a tar that is not GNU's".to_owned()));
                }
                body = size;
                map = Some(sparse::Form::Blocks);
                EntryKind::Regular
            }
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' | b'4' => {
                let (major, minor) = to_device(header.major, header.minor).map_err(fail)?;
                if header.typeflag == b'3' {
                    EntryKind::CharDevice(major, minor)
                } else {
                    EntryKind::BlockDevice(major, minor)
                }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                body = size;
                EntryKind::Unknown(other)
            }
        };
        if body > self.bounds.max_body {
            return Err(Fault::Limit {
                what: format!("{}: {body} bytes", show(&path)),
                limit: self.bounds.max_body,
                key: "max_layer_bytes",
            });
        }
        let id = |what, given: Option<u32>, value| match given {
            Some(id) => Ok(id),
            None => to_id(what, value).map_err(|cause| named(&path, &cause)),
        };
        let (mtime, mtime_nsec) = pax.mtime.unwrap_or((header.mtime, 0));
        let entry = Entry {
            mode: u16::try_from(header.mode & 0o7777).unwrap_or_default(),
            uid: id("uid", pax.uid, header.uid)?,
            gid: id("gid", pax.gid, header.gid)?,
            mtime,
            mtime_nsec,
            xattrs: pax.xattrs,
            kind,
            body,
            path,
        };
        match map {
            None => self.begin(entry, body, sink),
            Some(sparse::Form::Known(map)) => self.begin_sparse(entry, map, sink),
            Some(sparse::Form::InData { size }) => {
                self.state = State::SparseData {
                    map: MapReader::new(size),
                    left: body,
                    pad: padding(body),
                    entry,
                };
                if body == 0 {
                    self.sparse_data_done(sink)?;
                }
                Ok(())
            }
            Some(sparse::Form::Blocks) => {
                let mut map = SparseMap::default();
                let more = sparse_real_size(&self.block)
                    .and_then(|size| {
                        map.size = size;
                        sparse_regions(&self.block, false, &mut map.regions)
                    })
                    .map_err(|cause| named(&entry.path, &cause))?;
                if more {
                    self.state = State::SparseBlocks { entry, map };
                    return Ok(());
                }
                self.begin_sparse(entry, map, sink)
            }
        }
    }

    fn sparse_data_done(&mut self, sink: &mut dyn Sink) -> Result<(), Fault> {
        let State::SparseData {
            mut entry,
            map,
            left,
            pad,
        } = std::mem::replace(&mut self.state, State::Header)
        else {
            return Ok(());
        };
        let map = map.finish().map_err(|cause| named(&entry.path, &cause))?;
        entry.body = left;
        self.begin_padded(entry, Some(map), pad, sink)
    }

    fn begin_sparse(
        &mut self,
        entry: Entry,
        map: SparseMap,
        sink: &mut dyn Sink,
    ) -> Result<(), Fault> {
        let pad = padding(entry.body);
        self.begin_padded(entry, Some(map), pad, sink)
    }

    fn begin(&mut self, entry: Entry, body: u64, sink: &mut dyn Sink) -> Result<(), Fault> {
        self.begin_padded(entry, None, padding(body), sink)
    }

    fn begin_padded(
        &mut self,
        mut entry: Entry,
        map: Option<SparseMap>,
        pad: u64,
        sink: &mut dyn Sink,
    ) -> Result<(), Fault> {
        if let Some(map) = map {
            let map =
                sparse::checked(map, entry.body).map_err(|cause| named(&entry.path, &cause))?;
            entry.kind = EntryKind::Sparse(map);
        }
        let left = entry.body;
        sink.begin(entry)?;
        if left > 0 {
            self.state = State::Body { left, pad };
            return Ok(());
        }
        self.state = after(pad);
        sink.end()
    }
}

/// Bytes from `size` to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn after(pad: u64) -> State {
    if pad == 0 {
        State::Header
    } else {
        State::Padding { left: pad }
    }
}

/// At most `most` first bytes.
fn head(bytes: &[u8], most: u64) -> &[u8] {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    bytes.get(..most).unwrap_or(bytes)
}

fn named(path: &[u8], cause: &str) -> Fault {
    Fault::Bad(format!("{}: {cause}", show(path)))
}

#[cfg(test)]
mod tests;

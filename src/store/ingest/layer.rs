//! The consume stage of an ingest: turns what the tar parser finds into packed contents, a tree and a recipe.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::codec::RATIO_AFTER;
use super::fault::{Fault, show};
use super::granules::Granules;
use super::recipe::{Op, RecipeWriter};
use super::tar::{Entry, EntryKind, Sink, SparseMap};
use super::tree::{TreeBuilder, too_many};
use crate::erofs::{Chunk, Device, InodeId, Kind, Tree};
use crate::store::pack::{Extent, PackCommit, PackWriter};
use crate::store::{LayerCounters, Limits};

/// A regular file of at most so many bytes is kept in the layer's `.erofs`.
pub(crate) const INLINE_MAX: u64 = 1024;
/// After so many bytes of them small files go to packs too, since a tree is held in memory.
const INLINE_TOTAL: u64 = 64 << 20;
/// Size of a block of a device.
pub(crate) const BLOCK: u64 = 4096;
/// What the largest chunk of EROFS covers: `4096 << 31`.
const MAX_FILE: u64 = BLOCK << 31;

/// Takes the entries of one layer.
pub(super) struct LayerSink<'a> {
    limits: &'a Limits,
    counters: &'a LayerCounters,
    /// Compressed bytes of the layer.
    blob_bytes: u64,
    pack: PackWriter,
    tree: TreeBuilder,
    recipe: RecipeWriter,
    devices: Devices,
    /// Small contents in the order of the tar.
    smalls: Vec<InodeId>,
    inline_bytes: u64,
    entries: u64,
    /// Zeros stored that are not in the tar, for sparse files.
    filled: u64,
    body: Body,
}

/// What is done with the data of the current entry.
enum Body {
    /// It has none, or it stays in the recipe.
    Literal(Option<(Entry, Kind)>),
    /// Kept in the tree.
    Small(Entry, Vec<u8>),
    /// Kept in the tree; so small that holes are worth nothing.
    SmallSparse(Entry, SparseMap, Vec<u8>),
    /// Goes to a pack, with this length; no entry where it is no file's.
    Packed(Option<Entry>, u64),
    /// Goes to a pack with zeros between its regions.
    Sparse(Box<Sparse>),
}

struct Sparse {
    entry: Entry,
    map: SparseMap,
    granules: Granules,
    /// The region being read and how much of it was.
    region: usize,
    done: u64,
    /// Bytes of the content so far.
    written: u64,
}

/// Everything of a layer but its diffID.
pub(super) struct Finished {
    pub(super) tree: Tree,
    pub(super) devices: Vec<Device>,
    pub(super) segments: Vec<u32>,
    pub(super) smalls: Vec<InodeId>,
    pub(super) recipe: RecipeWriter,
    pub(super) pack: PackCommit,
}

impl<'a> LayerSink<'a> {
    pub(super) fn new(
        limits: &'a Limits,
        counters: &'a LayerCounters,
        blob_bytes: u64,
        pack: PackWriter,
    ) -> Result<Self, Fault> {
        Ok(LayerSink {
            limits,
            counters,
            blob_bytes,
            pack,
            tree: TreeBuilder::new(limits),
            recipe: RecipeWriter::new()?,
            devices: Devices::default(),
            smalls: Vec::new(),
            inline_bytes: 0,
            entries: 0,
            filled: 0,
            body: Body::Literal(None),
        })
    }

    /// Flushes the packs; the tar has ended.
    pub(super) fn finish(self) -> Result<Finished, Fault> {
        let (segments, devices) = self.devices.into_parts();
        Ok(Finished {
            tree: self.tree.finish(),
            devices,
            segments,
            smalls: self.smalls,
            recipe: self.recipe,
            pack: self.pack.finish()?,
        })
    }

    /// Ends a content of `len` bytes: where it is, by device.
    fn place(&mut self, len: u64) -> Result<(u16, Extent), Fault> {
        let placed = self.pack.end()?;
        let counter = if placed.deduplicated {
            &self.counters.deduplicated
        } else {
            &self.counters.written
        };
        counter.fetch_add(len, Ordering::Relaxed);
        let device = self.devices.of(placed.extent)?;
        Ok((device, placed.extent))
    }

    fn begin_sparse(&mut self, mut entry: Entry, map: SparseMap) -> Result<Body, Fault> {
        let granules = Granules::new(&map);
        // A map of a few bytes can ask for a lot of zeros.
        self.filled = self
            .filled
            .saturating_add(granules.content_len().saturating_sub(entry.body));
        let limits = self.limits;
        let ratio = self.filled / limits.max_ratio.max(1) > self.blob_bytes;
        let over = if self.filled > limits.max_layer_bytes {
            Some((limits.max_layer_bytes, "max_layer_bytes"))
        } else if self.filled > RATIO_AFTER && ratio {
            Some((limits.max_ratio, "max_ratio"))
        } else {
            None
        };
        if let Some((limit, key)) = over {
            return Err(Fault::Limit {
                what: format!(
                    "{}: {} bytes of holes that are too small to keep are",
                    show(&entry.path),
                    self.filled
                ),
                limit,
                key,
            });
        }
        entry.kind = EntryKind::Regular;
        if granules.content_len() > 0 {
            self.pack.begin(granules.content_len())?;
        }
        Ok(Body::Sparse(Box::new(Sparse {
            entry,
            map,
            granules,
            region: 0,
            done: 0,
            written: 0,
        })))
    }

    fn end_sparse(&mut self, sparse: Sparse) -> Result<(), Fault> {
        let Sparse {
            entry,
            map,
            granules,
            written,
            ..
        } = sparse;
        let len = granules.content_len();
        let mut place = None;
        if len > 0 {
            write_zeros(&mut self.pack, len - written)?;
            place = Some(self.place(len)?);
        }
        if let Some((device, extent)) = place {
            for &(offset, len) in &map.regions {
                self.recipe.push(Op::Extent {
                    device: u32::from(device),
                    block: extent.block,
                    offset: granules.position(offset),
                    len,
                })?;
            }
        }
        let kind = Kind::Chunked {
            size: map.size,
            chunk_bits: granules.bits(),
            chunks: granules.chunks(place.map(|(device, extent)| (device, extent.block))),
        };
        self.tree.insert(&entry, kind)?;
        Ok(())
    }

    fn begin_regular(&mut self, entry: Entry) -> Result<Body, Fault> {
        let len = entry.body;
        if len <= INLINE_MAX && (self.inline_bytes + len <= INLINE_TOTAL || len == 0) {
            self.inline_bytes += len;
            let capacity = usize::try_from(len).unwrap_or_default();
            return Ok(Body::Small(entry, Vec::with_capacity(capacity)));
        }
        if len > MAX_FILE {
            return Err(Fault::Bad(format!(
                "{}: a file of {len} bytes; at most {MAX_FILE} are possible",
                show(&entry.path)
            )));
        }
        self.pack.begin(len)?;
        Ok(Body::Packed(Some(entry), len))
    }

    /// Data that is no file's: where it is much, a pack keeps it for the tar.
    fn begin_other(&mut self, len: u64) -> Result<Body, Fault> {
        if len <= INLINE_MAX {
            return Ok(Body::Literal(None));
        }
        self.pack.begin(len)?;
        Ok(Body::Packed(None, len))
    }

    fn end_packed(&mut self, entry: Option<Entry>, len: u64) -> Result<(), Fault> {
        let (device, extent) = self.place(len)?;
        let block = extent.block;
        self.recipe.push(Op::Extent {
            device: u32::from(device),
            block,
            offset: 0,
            len,
        })?;
        let Some(entry) = entry else {
            return Ok(());
        };
        let mut chunk_bits = 0;
        while BLOCK << chunk_bits < len {
            chunk_bits += 1;
        }
        let kind = Kind::Chunked {
            size: len,
            chunk_bits,
            chunks: vec![Some(Chunk { device, block })],
        };
        self.tree.insert(&entry, kind).map(drop)
    }
}

impl Sink for LayerSink<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.recipe.push(Op::Literal(bytes))
    }

    fn begin(&mut self, mut entry: Entry) -> Result<(), Fault> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(too_many(self.limits.max_entries));
        }
        self.counters.entries.store(self.entries, Ordering::Relaxed);
        let is_file = TreeBuilder::is_file_name(&entry.path, self.limits.max_path)?;
        self.body = match std::mem::replace(&mut entry.kind, EntryKind::Regular) {
            EntryKind::Regular if is_file => self.begin_regular(entry)?,
            EntryKind::Sparse(map) if is_file && map.size > INLINE_MAX => {
                self.begin_sparse(entry, map)?
            }
            EntryKind::Sparse(map) if is_file => Body::SmallSparse(entry, map, Vec::new()),
            EntryKind::Regular | EntryKind::Sparse(_) => {
                let body = self.begin_other(entry.body)?;
                self.tree.insert(&entry, Kind::Inline(Box::default()))?;
                body
            }
            EntryKind::Unknown(typeflag) => {
                tracing::debug!(
                    entry = show(&entry.path),
                    typeflag,
                    "tar entry of unknown type skipped"
                );
                self.begin_other(entry.body)?
            }
            EntryKind::HardLink(target) => {
                self.tree.link(&entry.path, &target)?;
                Body::Literal(None)
            }
            EntryKind::Symlink(target) => {
                check_target(&entry.path, &target, self.limits.max_path)?;
                Body::Literal(Some((entry, Kind::Symlink(target.into()))))
            }
            EntryKind::Directory => Body::Literal(Some((entry, Kind::Directory(BTreeMap::new())))),
            EntryKind::CharDevice(major, minor) => {
                Body::Literal(Some((entry, Kind::CharDevice { major, minor })))
            }
            EntryKind::BlockDevice(major, minor) => {
                Body::Literal(Some((entry, Kind::BlockDevice { major, minor })))
            }
            EntryKind::Fifo => Body::Literal(Some((entry, Kind::Fifo))),
        };
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match &mut self.body {
            Body::Literal(_) => self.recipe.push(Op::Literal(bytes)),
            Body::Small(_, content) => {
                content.extend_from_slice(bytes);
                Ok(())
            }
            Body::SmallSparse(_, _, data) => {
                data.extend_from_slice(bytes);
                self.recipe.push(Op::Literal(bytes))
            }
            Body::Packed(..) => Ok(self.pack.write(bytes)?),
            Body::Sparse(sparse) => sparse.data(bytes, &mut self.pack),
        }
    }

    fn end(&mut self) -> Result<(), Fault> {
        match std::mem::replace(&mut self.body, Body::Literal(None)) {
            Body::Literal(None) => Ok(()),
            Body::Literal(Some((entry, kind))) => self.tree.insert(&entry, kind).map(drop),
            Body::Small(entry, content) => {
                let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
                let inode = self.tree.insert(&entry, Kind::Inline(content.into()))?;
                self.counters
                    .written
                    .fetch_add(u64::from(len), Ordering::Relaxed);
                if let (Some(inode), 1..) = (inode, len) {
                    let number = u32::try_from(self.smalls.len()).unwrap_or(u32::MAX);
                    self.smalls.push(inode);
                    self.recipe.push(Op::Small {
                        number,
                        offset: 0,
                        len,
                    })?;
                }
                Ok(())
            }
            Body::SmallSparse(entry, map, data) => {
                let content = scatter(&map, &data);
                self.tree.insert(&entry, Kind::Inline(content)).map(drop)
            }
            Body::Packed(entry, len) => self.end_packed(entry, len),
            Body::Sparse(sparse) => self.end_sparse(*sparse),
        }
    }
}

impl Sparse {
    /// Packs some data of the regions, with zeros where the content has a gap before it.
    fn data(&mut self, mut bytes: &[u8], pack: &mut PackWriter) -> Result<(), Fault> {
        while let Some(&(offset, len)) = self.map.regions.get(self.region)
            && !bytes.is_empty()
        {
            let at = self.granules.position(offset) + self.done;
            write_zeros(pack, at.saturating_sub(self.written))?;
            let most = usize::try_from(len - self.done).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(most.min(bytes.len()));
            pack.write(part)?;
            bytes = rest;
            self.done += part.len() as u64;
            self.written = at + part.len() as u64;
            if self.done == len {
                self.region += 1;
                self.done = 0;
            }
        }
        Ok(())
    }
}

/// The segments of a layer in the order of their first use, which is the order of its EROFS devices.
#[derive(Debug, Default)]
struct Devices {
    segments: Vec<u32>,
    /// Blocks up to the end of the last extent used.
    blocks: Vec<u32>,
}

impl Devices {
    fn of(&mut self, extent: Extent) -> Result<u16, Fault> {
        let at = match self
            .segments
            .iter()
            .position(|&segment| segment == extent.segment)
        {
            Some(at) => at,
            None => {
                self.segments.push(extent.segment);
                self.blocks.push(0);
                self.segments.len() - 1
            }
        };
        let end = u64::from(extent.block) + extent.len.div_ceil(BLOCK);
        if let Some(blocks) = self.blocks.get_mut(at) {
            *blocks = u32::try_from(end).unwrap_or(u32::MAX).max(*blocks);
        }
        // The first number of an EROFS device is 1.
        match u16::try_from(at) {
            Ok(device) if device < u16::MAX => Ok(device),
            _ => Err(Fault::Bad(
                "its contents lie in too many segments".to_owned(),
            )),
        }
    }

    fn into_parts(self) -> (Vec<u32>, Vec<Device>) {
        let devices = self
            .segments
            .iter()
            .zip(self.blocks)
            .map(|(segment, blocks)| Device {
                tag: segment.to_string(),
                blocks,
            })
            .collect();
        (self.segments, devices)
    }
}

fn write_zeros(pack: &mut PackWriter, mut len: u64) -> Result<(), Fault> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let most = usize::try_from(len).unwrap_or(usize::MAX);
        let part = ZEROS.get(..most).unwrap_or(&ZEROS);
        pack.write(part)?;
        len -= part.len() as u64;
    }
    Ok(())
}

/// A small file with its holes as zeros.
fn scatter(map: &SparseMap, mut data: &[u8]) -> Box<[u8]> {
    let mut content = vec![0; usize::try_from(map.size).unwrap_or_default()];
    for &(offset, len) in &map.regions {
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(offset + len).ok());
        let Some(to) = range.and_then(|(start, end)| content.get_mut(start..end)) else {
            continue;
        };
        if let Some((part, rest)) = data.split_at_checked(to.len()) {
            to.copy_from_slice(part);
            data = rest;
        }
    }
    content.into()
}

/// A symlink must point at something that Linux takes.
fn check_target(path: &[u8], target: &[u8], max_path: usize) -> Result<(), Fault> {
    if target.is_empty() || target.contains(&0) {
        return Err(Fault::Bad(format!(
            "{}: a symlink without a proper target",
            show(path)
        )));
    }
    if target.len() > max_path {
        return Err(Fault::Limit {
            what: format!("{}: a link target of {} bytes", show(path), target.len()),
            limit: max_path as u64,
            key: "max_path",
        });
    }
    Ok(())
}

//! Streams a laid-out tree as bytes.

use std::io::Write;

use super::check::WriteError;
use super::dirent::{self, Target};
use super::file_type::FileType;
use super::layout::{Data, Layout, Slot};
use super::ondisk::{
    BLOCK, BLOCK_SIZE, CHECKSUM_FIELD, CHUNK_INDEX_SIZE, CHUNK_INDEXES, DEVICE_SLOT_FIRST,
    DEVICE_TAG_SIZE, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, InodeRecord, LAYOUT_CHUNKED,
    LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, NULL_BLOCK, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK,
    S_IFREG, S_IFSOCK, SUPER_OFFSET, Superblock, crc32c, encode_device_number,
};
use super::tree::{Chunk, Device, Inode, Kind, Tree};
use super::xattr;

/// What [`write()`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The image's length, a multiple of [`BLOCK_SIZE`].
    pub bytes: u64,
    /// Per inode id: the byte offset in the image of a [`Kind::Inline`] inode's content, which lies there in one piece.
    /// `None` for other kinds and for inodes that no directory reaches.
    pub inline_offsets: Vec<Option<u64>>,
    /// Inodes in the image.
    pub inodes: u64,
}

/// Writes the image of a tree, front to back. The same arguments give the same bytes. Chunks refer to `devices` by position;
/// a mount needs all of them, in this order.
///
/// # Errors
/// The destination's, or a [`WriteError`] that names the path of what EROFS cannot hold. Everything but the destination is
/// checked before the first byte is written.
pub fn write(
    tree: &Tree,
    devices: &[Device],
    uuid: [u8; 16],
    out: &mut dyn Write,
) -> Result<Written, WriteError> {
    let layout = Layout::new(tree, devices)?;
    let mut sink = Sink::new(out);
    sink.pad_to(SUPER_OFFSET as u64)?;
    let superblock = Superblock {
        // The root comes first, a few slots behind the start of the metadata area.
        root_nid: u16::try_from(layout.nid(0)).map_err(|_| WriteError::Root)?,
        inodes: layout.walk.order.len() as u64,
        blocks: layout.blocks,
        meta_block: layout.meta_block,
        xattr_block: layout.xattr_block,
        uuid,
        incompat: INCOMPAT_CHUNKED_FILE
            | if devices.is_empty() {
                0
            } else {
                INCOMPAT_DEVICE_TABLE
            },
        devices: u16::try_from(devices.len()).map_err(|_| WriteError::Devices(devices.len()))?,
        device_slot: DEVICE_SLOT_FIRST,
    };
    sink.put(&superblock.encode())?;
    sink.put(&device_table(devices, layout.blocks))?;
    write_inodes(tree, &layout, &mut sink)?;
    write_data(tree, &layout, &mut sink)?;
    sink.pad_to(u64::from(layout.xattr_block) * BLOCK_SIZE)?;
    for entry in layout.shared.encode() {
        sink.put(&entry)?;
    }
    sink.pad_to(u64::from(layout.blocks) * BLOCK_SIZE)?;
    let bytes = sink.finish()?;
    Ok(Written {
        bytes,
        inline_offsets: inline_offsets(tree, &layout),
        inodes: superblock.inodes,
    })
}

fn device_table(devices: &[Device], image_blocks: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut mapped = Some(image_blocks);
    for device in devices {
        let start = out.len();
        out.extend_from_slice(device.tag.as_bytes());
        out.resize(start + DEVICE_TAG_SIZE, 0);
        out.extend_from_slice(&device.blocks.to_le_bytes());
        // One address space with the image and all devices end to end. We never address through it, but an overlap with the
        // image would make the kernel look for the image's own blocks in a device. 0: not part of it, once it is full.
        out.extend_from_slice(&mapped.unwrap_or(0).to_le_bytes());
        out.resize(start + 128, 0);
        mapped = mapped.and_then(|at| at.checked_add(device.blocks));
    }
    out
}

fn inline_offsets(tree: &Tree, layout: &Layout<'_>) -> Vec<Option<u64>> {
    let offset = |(inode, slot): (&Inode, &Slot)| match (&inode.kind, slot.data) {
        _ if slot.offset == 0 => None,
        (Kind::Inline(_), Data::Plain(block)) => Some(u64::from(block) * BLOCK_SIZE),
        (Kind::Inline(_), _) => Some(slot.tail()),
        _ => None,
    };
    tree.inodes.iter().zip(&layout.slots).map(offset).collect()
}

fn write_inodes(tree: &Tree, layout: &Layout<'_>, sink: &mut Sink<'_>) -> Result<(), WriteError> {
    // Inodes in gaps come before their predecessors.
    let mut order: Vec<(u64, u32)> = layout
        .walk
        .order
        .iter()
        .map(|id| (layout.slot(*id).offset, *id))
        .collect();
    order.sort_unstable();
    let mut bytes = Vec::new();
    for (serial, (offset, id)) in (1..).zip(order) {
        let Some(inode) = tree.get(id) else { continue };
        let slot = layout.slot(id);
        bytes.clear();
        InodeRecord {
            layout: match slot.data {
                Data::None | Data::Plain(_) => LAYOUT_FLAT_PLAIN,
                Data::Tail(_) => LAYOUT_FLAT_INLINE,
                Data::Chunks => LAYOUT_CHUNKED,
            },
            xattr_count: xattr::area_count(slot.xattr_size.into()),
            mode: file_type(&inode.kind) | (inode.mode & 0o7777),
            size: slot.size,
            union: union_field(&inode.kind, slot.data),
            serial,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            nlink: layout
                .walk
                .nlink
                .get(id as usize)
                .copied()
                .unwrap_or_default(),
        }
        .encode(&mut bytes);
        layout.shared.encode_area(&inode.xattrs, &mut bytes);
        match (slot.data, &inode.kind) {
            (Data::Chunks, Kind::Chunked { chunks, .. }) => encode_chunks(chunks, &mut bytes),
            (Data::Tail(_), Kind::Directory(_)) => {
                let data = directory_data(tree, layout, id);
                let full = data.len() / BLOCK * BLOCK;
                bytes.extend_from_slice(data.get(full..).unwrap_or_default());
            }
            (Data::Tail(_), Kind::Inline(data) | Kind::Symlink(data)) => {
                bytes.extend_from_slice(data);
            }
            _ => {}
        }
        sink.pad_to(offset)?;
        sink.put(&bytes)?;
    }
    Ok(())
}

/// The blocks outside of inodes, in the order in which the layout numbered them.
fn write_data(tree: &Tree, layout: &Layout<'_>, sink: &mut Sink<'_>) -> Result<(), WriteError> {
    sink.pad_to(u64::from(layout.data_block) * BLOCK_SIZE)?;
    for id in &layout.walk.order {
        let slot = layout.slot(*id);
        let (len, block) = match slot.data {
            Data::Plain(block) => (slot.size, block),
            Data::Tail(block) => (slot.size / BLOCK_SIZE * BLOCK_SIZE, block),
            Data::None | Data::Chunks => continue,
        };
        let Some(inode) = tree.get(*id).filter(|_| len > 0) else {
            continue;
        };
        sink.pad_to(u64::from(block) * BLOCK_SIZE)?;
        match &inode.kind {
            Kind::Directory(_) => {
                let data = directory_data(tree, layout, *id);
                sink.put(data.get(..len as usize).unwrap_or(&data))?;
            }
            Kind::Inline(data) | Kind::Symlink(data) => sink.put(data)?,
            _ => {}
        }
    }
    Ok(())
}

fn directory_data(tree: &Tree, layout: &Layout<'_>, id: u32) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(Kind::Directory(entries)) = tree.get(id).map(|inode| &inode.kind) {
        let parent = layout
            .walk
            .parent
            .get(id as usize)
            .copied()
            .unwrap_or_default();
        let resolve = |target| match target {
            Target::Itself => (layout.nid(id), FileType::Directory.code()),
            Target::Parent => (layout.nid(parent), FileType::Directory.code()),
            Target::Child(child) => {
                let mode = tree.get(child).map_or(0, |inode| file_type(&inode.kind));
                (
                    layout.nid(child),
                    FileType::of_mode(mode).map_or(0, FileType::code),
                )
            }
        };
        dirent::encode(entries, resolve, &mut out);
    }
    out
}

fn encode_chunks(chunks: &[Option<Chunk>], out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(CHUNK_INDEX_SIZE as usize), 0);
    for chunk in chunks {
        // Device 0 is the image itself. The layout has checked that the position is below 65535.
        let (device, block) = chunk.map_or((0, NULL_BLOCK), |chunk| {
            (chunk.device.saturating_add(1), chunk.block)
        });
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&device.to_le_bytes());
        out.extend_from_slice(&block.to_le_bytes());
    }
}

fn file_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => S_IFDIR,
        Kind::Inline(_) | Kind::Chunked { .. } => S_IFREG,
        Kind::Symlink(_) => S_IFLNK,
        Kind::CharDevice { .. } => S_IFCHR,
        Kind::BlockDevice { .. } => S_IFBLK,
        Kind::Fifo => S_IFIFO,
        Kind::Socket => S_IFSOCK,
    }
}

fn union_field(kind: &Kind, data: Data) -> u32 {
    match (kind, data) {
        (Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }, _) => {
            encode_device_number(*major, *minor).unwrap_or_default()
        }
        (Kind::Chunked { chunk_bits, .. }, Data::Chunks) => {
            u32::from(CHUNK_INDEXES | u16::from(*chunk_bits))
        }
        (_, Data::Plain(block) | Data::Tail(block)) => block,
        _ => 0,
    }
}

/// Buffers the output, and holds block 0 back until its checksum can be put in.
struct Sink<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    /// Bytes already given to `out`.
    passed: u64,
}

impl<'a> Sink<'a> {
    const BUFFER: usize = 256 * 1024;

    fn new(out: &'a mut dyn Write) -> Self {
        Sink {
            out,
            buffer: Vec::new(),
            passed: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= Self::BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Zeros up to an offset, at most a block away or a little more.
    fn pad_to(&mut self, offset: u64) -> Result<(), WriteError> {
        let position = self.passed + self.buffer.len() as u64;
        let missing = offset.saturating_sub(position);
        let len = usize::try_from(missing).map_err(|_| WriteError::TooLarge(offset))?;
        self.buffer.resize(self.buffer.len() + len, 0);
        if self.buffer.len() >= Self::BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        if self.passed == 0 {
            let checksum = crc32c(self.buffer.get(SUPER_OFFSET..BLOCK).unwrap_or_default());
            if let Some(field) = self.buffer.get_mut(CHECKSUM_FIELD..CHECKSUM_FIELD + 4) {
                field.copy_from_slice(&checksum.to_le_bytes());
            }
        }
        self.out.write_all(&self.buffer)?;
        self.passed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<u64, WriteError> {
        self.flush()?;
        self.out.flush()?;
        Ok(self.passed)
    }
}

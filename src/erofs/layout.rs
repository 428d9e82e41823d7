//! Decides where everything goes before a byte is written.
//!
//! ```text
//! superblock | device slots | inodes with xattrs, chunk indexes and tails | directory and plain data blocks | shared xattrs
//! ```
//! An inode with all that follows it stays within one block where it fits in one: kernels refuse inline data that crosses a
//! block, and an older one also a symlink whose inode and target lie in two. Room left at a block's end is given to later,
//! smaller inodes.

use super::dirent;
use super::ondisk::{
    BLOCK_SIZE, CHUNK_INDEX_SIZE, DEVICE_SLOT_FIRST, DEVICE_SLOT_SIZE, DEVICE_TAG_SIZE,
    INODE_EXTENDED_SIZE, NULL_BLOCK, SLOT, SYMLINK_MAX, encode_device_number,
};
use super::tree::{Chunk, Device, Inode, InodeId, Kind, Tree};
use super::walk::Walk;
use super::xattr::{Shared, Unstorable};

/// Why a tree cannot become an image. Paths are absolute within the image.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No inodes, or inode 0 is something else.
    #[error("the tree's first inode is not a directory: put the root directory there")]
    Root,
    /// Empty, `.`, `..`, longer than 255 bytes, or with a slash or zero byte.
    #[error("directory {path} has an entry that cannot be a file name: {name:?}")]
    Name {
        /// The directory.
        path: String,
        /// The entry's name.
        name: String,
    },
    /// An entry leads to no inode.
    #[error("entry {name:?} of {path} names inode {inode}, which the tree does not have")]
    Missing {
        /// The directory.
        path: String,
        /// The entry's name.
        name: String,
        /// What it points to.
        inode: InodeId,
    },
    /// Two entries lead to one directory.
    #[error("directory {path} is named by a second entry: only other files can have several names")]
    DirectoryLinked {
        /// The directory under its first name.
        path: String,
    },
    /// An attribute's name has no prefix that EROFS knows, or is too long.
    #[error("{path}: EROFS cannot keep an extended attribute named {name:?}: leave it out")]
    XattrName {
        /// The file.
        path: String,
        /// The attribute's full name.
        name: String,
    },
    /// An attribute's value passes 65535 bytes.
    #[error(
        "{path}: extended attribute {name:?} is longer than 65535 bytes: shorten it or leave it out"
    )]
    XattrValue {
        /// The file.
        path: String,
        /// The attribute's full name.
        name: String,
    },
    /// One file's attributes pass 256 KiB.
    #[error("{path}: its extended attributes take more than 262148 bytes: leave some out")]
    XattrTotal {
        /// The file.
        path: String,
    },
    /// Major above 4095 or minor above 1048575.
    #[error("{path}: device number {major}:{minor} is beyond Linux's 4095:1048575")]
    DeviceNumber {
        /// The file.
        path: String,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Empty or longer than 4095 bytes.
    #[error("{path}: a symlink target has 1 to 4095 bytes, this one {len}")]
    Symlink {
        /// The file.
        path: String,
        /// Bytes.
        len: usize,
    },
    /// Not within 0..1_000_000_000.
    #[error("{path}: {nanoseconds} is not a number of nanoseconds below one second")]
    Nanoseconds {
        /// The file.
        path: String,
        /// The value.
        nanoseconds: u32,
    },
    /// The size, chunk size and chunks of a file do not belong together.
    #[error("{path}: {chunks} chunks of 4096 << {chunk_bits} bytes do not make {size} bytes")]
    Chunks {
        /// The file.
        path: String,
        /// Bytes.
        size: u64,
        /// Log2 of blocks per chunk.
        chunk_bits: u8,
        /// Number of chunks.
        chunks: usize,
    },
    /// A chunk is not within a device of the list.
    #[error("{path}: a chunk at block {block} of device {device} reaches beyond that device")]
    ChunkPlace {
        /// The file.
        path: String,
        /// From 0.
        device: u16,
        /// Of that device.
        block: u32,
    },
    /// More than 65535 devices.
    #[error("{0} devices are more than the 65535 that an image can name")]
    Devices(usize),
    /// A tag passes 64 bytes.
    #[error("device tag {0:?} is longer than 64 bytes")]
    Tag(String),
    /// Over 16 TiB.
    #[error("the image would take {0} bytes, more than 2^32 blocks: split the tree")]
    TooLarge(u64),
    /// The destination refused bytes.
    #[error("writing the image: {0}")]
    Io(#[from] std::io::Error),
}

/// Where one inode's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Nothing follows the inode: empty files and special files.
    None,
    /// In blocks of its own, from this one on.
    Plain(u32),
    /// Full blocks from this one on (if any), then a tail behind the inode.
    Tail(u32),
    /// Chunk indexes behind the inode.
    Chunks,
}

/// Where one inode is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// In the image; 0 for an unreached inode.
    pub(super) offset: u64,
    pub(super) data: Data,
    /// Bytes of its data.
    pub(super) size: u64,
    pub(super) xattr_size: u32,
}

impl Slot {
    const UNREACHED: Slot = Slot {
        offset: 0,
        data: Data::None,
        size: 0,
        xattr_size: 0,
    };

    /// Where the tail begins.
    pub(super) fn tail(&self) -> u64 {
        self.offset + INODE_EXTENDED_SIZE + u64::from(self.xattr_size)
    }
}

/// The plan of a whole image.
pub(super) struct Layout<'a> {
    pub(super) walk: Walk,
    /// Per inode id.
    pub(super) slots: Vec<Slot>,
    pub(super) shared: Shared<'a>,
    pub(super) meta_block: u32,
    pub(super) data_block: u32,
    pub(super) xattr_block: u32,
    /// Of the whole image.
    pub(super) blocks: u32,
}

impl<'a> Layout<'a> {
    pub(super) fn new(tree: &'a Tree, devices: &[Device]) -> Result<Self, WriteError> {
        if devices.len() > u16::MAX.into() {
            return Err(WriteError::Devices(devices.len()));
        }
        if let Some(long) = devices
            .iter()
            .find(|device| device.tag.len() > DEVICE_TAG_SIZE)
        {
            return Err(WriteError::Tag(long.tag.clone()));
        }
        let walk = Walk::new(tree)?;
        let reached = || {
            walk.order
                .iter()
                .filter_map(|id| Some((*id, tree.get(*id)?)))
        };

        let mut shared = Shared::default();
        reached().for_each(|(_, inode)| shared.count(&inode.xattrs));
        reached().for_each(|(_, inode)| shared.assign(&inode.xattrs));

        let start = (u64::from(DEVICE_SLOT_FIRST) + devices.len() as u64) * DEVICE_SLOT_SIZE;
        // Node ids count from here. Never from the root's own place: readers of directories skip an inode number of 0. And
        // not from block 0: behind a long device table the root's id would pass the 16 bits it has.
        let meta_block = (start - 1) / BLOCK_SIZE;
        let mut placer = Placer::new(start);
        let mut slots = vec![Slot::UNREACHED; tree.inodes.len()];
        let mut plain_blocks = 0;
        for (id, inode) in reached() {
            check(inode, devices).map_err(|problem| problem.at(walk.path(tree, id)))?;
            let xattr_size = shared
                .area_size(&inode.xattrs)
                .map_err(|problem| Problem::from(problem).at(walk.path(tree, id)))?;
            let plan = plan(inode, INODE_EXTENDED_SIZE + xattr_size);
            if let Some(slot) = slots.get_mut(id as usize) {
                *slot = Slot {
                    offset: placer.place(plan.follows),
                    // Relative to the first data block, which is only known when all inodes have their place.
                    data: match plan.data {
                        Data::Plain(_) => Data::Plain(block_number(plain_blocks)?),
                        Data::Tail(_) => Data::Tail(block_number(plain_blocks)?),
                        other => other,
                    },
                    size: plan.size,
                    xattr_size: xattr_size as u32,
                };
            }
            plain_blocks += plan.blocks;
        }

        let data_block = placer.next.div_ceil(BLOCK_SIZE);
        let xattr_block = data_block + plain_blocks;
        let blocks = block_number(xattr_block + shared.size().div_ceil(BLOCK_SIZE))?;
        let data_block = block_number(data_block)?;
        for slot in &mut slots {
            if let Data::Plain(block) | Data::Tail(block) = &mut slot.data {
                *block = block.saturating_add(data_block);
            }
        }
        Ok(Layout {
            walk,
            slots,
            shared,
            meta_block: block_number(meta_block)?,
            data_block,
            xattr_block: block_number(xattr_block)?,
            blocks,
        })
    }

    pub(super) fn slot(&self, id: InodeId) -> Slot {
        self.slots
            .get(id as usize)
            .copied()
            .unwrap_or(Slot::UNREACHED)
    }

    /// The node id of a reached inode.
    pub(super) fn nid(&self, id: InodeId) -> u64 {
        self.slot(id)
            .offset
            .saturating_sub(u64::from(self.meta_block) * BLOCK_SIZE)
            / SLOT
    }
}

fn block_number(block: u64) -> Result<u32, WriteError> {
    match u32::try_from(block) {
        Ok(number) if number != NULL_BLOCK => Ok(number),
        _ => Err(WriteError::TooLarge(block.saturating_mul(BLOCK_SIZE))),
    }
}

/// What an inode needs.
struct Plan {
    /// Bytes at its place: inode, xattrs, and chunk indexes or tail.
    follows: u64,
    /// Blocks elsewhere.
    blocks: u64,
    data: Data,
    size: u64,
}

/// `head`: bytes of the inode and its xattrs.
fn plan(inode: &Inode, head: u64) -> Plan {
    let alone = |size| Plan {
        follows: head,
        blocks: 0,
        data: Data::None,
        size,
    };
    let data = |size: u64, contiguous: bool| {
        let tail = size % BLOCK_SIZE;
        if size == 0 {
            alone(0)
        } else if tail != 0 && head + tail <= BLOCK_SIZE && (!contiguous || size == tail) {
            Plan {
                follows: head + tail,
                blocks: size / BLOCK_SIZE,
                data: Data::Tail(0),
                size,
            }
        } else {
            Plan {
                follows: head,
                blocks: size.div_ceil(BLOCK_SIZE),
                data: Data::Plain(0),
                size,
            }
        }
    };
    match &inode.kind {
        Kind::Directory(entries) => data(dirent::data_size(entries), false),
        // In one piece, so that its bytes can be found by one offset.
        Kind::Inline(content) => data(content.len() as u64, true),
        Kind::Symlink(target) => data(target.len() as u64, true),
        Kind::Chunked { size: 0, .. } => alone(0),
        Kind::Chunked { size, chunks, .. } => Plan {
            follows: head.next_multiple_of(CHUNK_INDEX_SIZE)
                + chunks.len() as u64 * CHUNK_INDEX_SIZE,
            blocks: 0,
            data: Data::Chunks,
            size: *size,
        },
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo | Kind::Socket => alone(0),
    }
}

/// Gives out places for inodes, 32-byte slot by slot.
struct Placer {
    next: u64,
    /// Free ranges within passed blocks, by their length in slots.
    gaps: [Vec<u64>; 128],
    /// Bit n: `gaps[n]` has something.
    lengths: u128,
}

impl Placer {
    fn new(start: u64) -> Self {
        Placer {
            next: start,
            gaps: std::array::from_fn(|_| Vec::new()),
            lengths: 0,
        }
    }

    fn place(&mut self, size: u64) -> u64 {
        let size = size.next_multiple_of(SLOT);
        let room = BLOCK_SIZE - self.next % BLOCK_SIZE;
        if size > BLOCK_SIZE {
            // Only xattrs and chunk indexes may run over blocks; the inode itself should not, which spares a copy.
            if room < INODE_EXTENDED_SIZE {
                self.next += room;
            }
        } else if let Some(offset) = self.take_gap(size) {
            return offset;
        } else if size > room {
            self.add_gap(self.next, room);
            self.next += room;
        }
        let offset = self.next;
        self.next += size;
        offset
    }

    /// The shortest gap that fits, the latest of them.
    fn take_gap(&mut self, size: u64) -> Option<u64> {
        let slots = (size / SLOT) as u32;
        let fitting = self.lengths & u128::MAX.checked_shl(slots)?;
        if fitting == 0 {
            return None;
        }
        let length = fitting.trailing_zeros();
        let gaps = self.gaps.get_mut(length as usize)?;
        let offset = gaps.pop()?;
        if gaps.is_empty() {
            self.lengths &= !(1 << length);
        }
        self.add_gap(offset + size, u64::from(length) * SLOT - size);
        Some(offset)
    }

    fn add_gap(&mut self, offset: u64, size: u64) {
        let length = size / SLOT;
        if size < INODE_EXTENDED_SIZE {
            return;
        }
        if let Some(gaps) = self.gaps.get_mut(length as usize) {
            gaps.push(offset);
            self.lengths |= 1 << length;
        }
    }
}

/// What is wrong with an inode; becomes an error once its path is known.
enum Problem {
    DeviceNumber(u32, u32),
    Symlink(usize),
    Nanoseconds(u32),
    Chunks(u64, u8, usize),
    ChunkPlace(Chunk),
    Xattr(Unstorable),
}

impl From<Unstorable> for Problem {
    fn from(reason: Unstorable) -> Self {
        Problem::Xattr(reason)
    }
}

impl Problem {
    fn at(self, path: String) -> WriteError {
        match self {
            Problem::DeviceNumber(major, minor) => WriteError::DeviceNumber { path, major, minor },
            Problem::Symlink(len) => WriteError::Symlink { path, len },
            Problem::Nanoseconds(nanoseconds) => WriteError::Nanoseconds { path, nanoseconds },
            Problem::Chunks(size, chunk_bits, chunks) => WriteError::Chunks {
                path,
                size,
                chunk_bits,
                chunks,
            },
            Problem::ChunkPlace(Chunk { device, block }) => WriteError::ChunkPlace {
                path,
                device,
                block,
            },
            Problem::Xattr(Unstorable::Name(name)) => WriteError::XattrName {
                path,
                name: String::from_utf8_lossy(&name).into_owned(),
            },
            Problem::Xattr(Unstorable::Value(name)) => WriteError::XattrValue {
                path,
                name: String::from_utf8_lossy(&name).into_owned(),
            },
            Problem::Xattr(Unstorable::Total) => WriteError::XattrTotal { path },
        }
    }
}

fn check(inode: &Inode, devices: &[Device]) -> Result<(), Problem> {
    if inode.mtime_nsec >= 1_000_000_000 {
        return Err(Problem::Nanoseconds(inode.mtime_nsec));
    }
    match &inode.kind {
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            match encode_device_number(*major, *minor) {
                Some(_) => Ok(()),
                None => Err(Problem::DeviceNumber(*major, *minor)),
            }
        }
        Kind::Symlink(target) if target.is_empty() || target.len() > SYMLINK_MAX => {
            Err(Problem::Symlink(target.len()))
        }
        Kind::Chunked {
            size,
            chunk_bits,
            chunks,
        } => check_chunks(*size, *chunk_bits, chunks, devices),
        _ => Ok(()),
    }
}

fn check_chunks(
    size: u64,
    chunk_bits: u8,
    chunks: &[Option<Chunk>],
    devices: &[Device],
) -> Result<(), Problem> {
    let mismatch = Problem::Chunks(size, chunk_bits, chunks.len());
    // A file's last byte must have a signed 64-bit offset.
    if chunk_bits > 31 || size > i64::MAX as u64 {
        return Err(mismatch);
    }
    let chunk_size = BLOCK_SIZE << chunk_bits;
    if size.div_ceil(chunk_size) != chunks.len() as u64 {
        return Err(mismatch);
    }
    let mut left = size;
    for chunk in chunks {
        let blocks = left.min(chunk_size).div_ceil(BLOCK_SIZE);
        left = left.saturating_sub(chunk_size);
        let Some(chunk) = chunk else { continue };
        let within = devices
            .get(usize::from(chunk.device))
            .is_some_and(|device| u64::from(chunk.block) + blocks <= u64::from(device.blocks));
        if !within {
            return Err(Problem::ChunkPlace(*chunk));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_within_blocks_and_fill_gaps() {
        let mut placer = Placer::new(1152);
        assert_eq!(placer.place(64), 1152);
        assert_eq!(placer.place(4096), 4096);
        // 2880 bytes are left of block 0.
        assert_eq!(placer.place(2000), 1216);
        assert_eq!(placer.place(96), 3232);
        assert_eq!(placer.place(900), 8192);
        assert_eq!(placer.place(768), 3328);
        assert_eq!(placer.place(64), 9120);
    }

    #[test]
    fn a_large_place_may_cross_blocks_but_not_its_inode() {
        let mut placer = Placer::new(4096 + 4064);
        assert_eq!(placer.place(10_000), 8192);
        assert_eq!(placer.place(5000), 18_208);
    }
}

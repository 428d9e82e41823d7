//! Decides where everything goes before a byte is written.
//!
//! ```text
//! superblock | device slots | inodes with xattrs, chunk indexes and tails | directory and plain data blocks | shared xattrs
//! ```
//! An inode with all that follows it stays within one block where it fits in one: kernels refuse inline data that crosses a
//! block, and an older one also a symlink whose inode and target lie in two. Room left at a block's end is given to later,
//! smaller inodes.

use super::check::{Problem, WriteError, check};
use super::dirent;
use super::ondisk::{
    BLOCK_SIZE, CHUNK_INDEX_SIZE, DEVICE_SLOT_FIRST, DEVICE_SLOT_SIZE, DEVICE_TAG_SIZE,
    INODE_EXTENDED_SIZE, NULL_BLOCK, SLOT,
};
use super::place::Placer;
use super::tree::{Device, Inode, InodeId, Kind, Tree};
use super::walk::Walk;
use super::xattr::Shared;

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

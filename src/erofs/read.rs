//! Reads the images that this room writes: uncompressed, 64-byte inodes, chunk indexes.
//!
//! Every number from the image is checked before it is used. An answer never takes more memory than a small multiple of the
//! image's own length, and no read loops over anything that the image's length does not bound.

use std::io;

use super::file_type::FileType;
use super::node::Node;
use super::ondisk::{
    BLOCK, BLOCK_BITS, BLOCK_SIZE, CHECKSUM_FIELD, CHUNK_BITS_MASK, CHUNK_INDEXES,
    COMPAT_SB_CHKSUM, DEVICE_SLOT_SIZE, DEVICE_TAG_SIZE, FORMAT_EXTENDED, INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE, INODE_EXTENDED_SIZE, LAYOUT_CHUNKED, LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN, MAGIC, S_IFMT, SLOT, SUPER_OFFSET, Superblock, XATTR_HEADER_SIZE, byte,
    crc32c, decode_device_number, le_u16, le_u32, le_u64,
};
use super::source::ReadAt;
use super::tree::Device;

/// Why an image, or a part of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source refused.
    #[error("reading the image: {0}")]
    Io(#[from] io::Error),
    /// No magic number.
    #[error("not an EROFS image")]
    NotErofs,
    /// Block 0 does not match its checksum.
    #[error("the image's superblock is damaged: its checksum does not match")]
    Checksum,
    /// The superblock contradicts itself or the image's length.
    #[error("the image's superblock is damaged: {0}")]
    Superblock(&'static str),
    /// Valid, maybe, but nothing that this room writes.
    #[error("the image was not written by larder: {0}")]
    Unsupported(&'static str),
    /// An inode, or what it leads to.
    #[error("the image is damaged at inode {nid}: {what}")]
    Inode {
        /// Node id.
        nid: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The inode is not of the type that the call is for.
    #[error("inode {nid} is not a {expected}")]
    Type {
        /// Node id.
        nid: u64,
        /// What the call is for.
        expected: &'static str,
    },
    /// Shared parts would make the tree far larger than its image.
    #[error("the image unfolds to more than {0} bytes, which no honest image does")]
    TooLarge(u64),
}

/// An image opened for reading.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    size: u64,
    pub(super) superblock: Superblock,
    devices: Vec<Device>,
}

impl<S: ReadAt> Reader<S> {
    /// Reads the superblock and the device table.
    ///
    /// # Errors
    /// [`ReadError`]: the source's, or that this is no image, a damaged one, or one with features we never write.
    pub fn open(source: S) -> Result<Self, ReadError> {
        let mut block = [0; BLOCK];
        source
            .read_exact_at(&mut block, 0)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ReadError::NotErofs,
                _ => ReadError::Io(error),
            })?;
        let at = |offset: usize| SUPER_OFFSET + offset;
        if le_u32(&block, at(0)) != MAGIC {
            return Err(ReadError::NotErofs);
        }
        if le_u32(&block, at(8)) & COMPAT_SB_CHKSUM == 0 {
            return Err(ReadError::Unsupported("no checksum"));
        }
        let checksum = le_u32(&block, CHECKSUM_FIELD);
        if let Some(field) = block.get_mut(CHECKSUM_FIELD..CHECKSUM_FIELD + 4) {
            field.fill(0);
        }
        if crc32c(block.get(SUPER_OFFSET..).unwrap_or_default()) != checksum {
            return Err(ReadError::Checksum);
        }
        if byte(&block, at(12)) != BLOCK_BITS {
            return Err(ReadError::Unsupported("its blocks are not 4096 bytes"));
        }
        let superblock = Superblock {
            root_nid: le_u16(&block, at(14)),
            inodes: le_u64(&block, at(16)),
            blocks: le_u32(&block, at(36)),
            meta_block: le_u32(&block, at(40)),
            xattr_block: le_u32(&block, at(44)),
            uuid: std::array::from_fn(|index| byte(&block, at(48 + index))),
            incompat: le_u32(&block, at(80)),
            devices: le_u16(&block, at(86)),
            device_slot: le_u16(&block, at(88)),
        };
        if superblock.incompat & !(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE) != 0 {
            return Err(ReadError::Unsupported("unknown features"));
        }
        let size = u64::from(superblock.blocks) * BLOCK_SIZE;
        if size > source.size()? {
            return Err(ReadError::Superblock("the image is shorter than it says"));
        }
        let mut reader = Reader {
            source,
            size,
            superblock,
            devices: Vec::new(),
        };
        if reader.superblock.incompat & INCOMPAT_DEVICE_TABLE != 0 {
            reader.devices = reader.read_devices()?;
        }
        Ok(reader)
    }

    fn read_devices(&self) -> Result<Vec<Device>, ReadError> {
        let count = u64::from(self.superblock.devices);
        let start = u64::from(self.superblock.device_slot) * DEVICE_SLOT_SIZE;
        let table = self
            .bytes(start, count * DEVICE_SLOT_SIZE)?
            .ok_or(ReadError::Superblock(
                "its device table is outside of the image",
            ))?;
        let device = |slot: &[u8]| {
            let tag = slot.get(..DEVICE_TAG_SIZE).unwrap_or_default();
            let tag = tag.split(|byte| *byte == 0).next().unwrap_or_default();
            let tag = String::from_utf8_lossy(tag).into_owned();
            Device {
                tag,
                blocks: le_u32(slot, DEVICE_TAG_SIZE),
            }
        };
        Ok(table
            .chunks_exact(DEVICE_SLOT_SIZE as usize)
            .map(device)
            .collect())
    }

    /// The external devices, in the order in which chunks count them.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The image's identity.
    pub fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// Inodes in the image, as the superblock says.
    pub fn inodes(&self) -> u64 {
        self.superblock.inodes
    }

    /// Length of the image in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root directory.
    ///
    /// # Errors
    /// As [`inode`](Self::inode), or that it is not a directory.
    pub fn root(&self) -> Result<Node, ReadError> {
        let node = self.inode(self.superblock.root_nid.into())?;
        expect(&node, FileType::Directory, "directory")?;
        Ok(node)
    }

    /// An inode by its node id.
    ///
    /// # Errors
    /// [`ReadError::Inode`] where there is none, or none that we would write.
    pub fn inode(&self, nid: u64) -> Result<Node, ReadError> {
        let damaged = |what| ReadError::Inode { nid, what };
        let offset = nid
            .checked_mul(SLOT)
            .and_then(|at| at.checked_add(u64::from(self.superblock.meta_block) * BLOCK_SIZE))
            .ok_or(damaged("it is outside of the image"))?;
        let record = self
            .bytes(offset, INODE_EXTENDED_SIZE)?
            .ok_or(damaged("it is outside of the image"))?;
        let format = le_u16(&record, 0);
        if format & FORMAT_EXTENDED == 0 || format >> 4 != 0 {
            return Err(damaged("unknown inode format"));
        }
        let layout = format >> 1;
        let mode = le_u16(&record, 4);
        let file_type = FileType::of_mode(mode).ok_or(damaged("unknown file type"))?;
        let known = match file_type {
            FileType::Regular => {
                matches!(
                    layout,
                    LAYOUT_FLAT_PLAIN | LAYOUT_FLAT_INLINE | LAYOUT_CHUNKED
                )
            }
            FileType::Directory | FileType::Symlink => {
                matches!(layout, LAYOUT_FLAT_PLAIN | LAYOUT_FLAT_INLINE)
            }
            _ => layout == LAYOUT_FLAT_PLAIN,
        };
        if !known {
            return Err(damaged("unknown data layout"));
        }
        let union = le_u32(&record, 16);
        let chunk_format = le_u16(&record, 16);
        let chunked = layout == LAYOUT_CHUNKED;
        if chunked && chunk_format & !CHUNK_BITS_MASK != CHUNK_INDEXES {
            return Err(damaged("unknown chunk format"));
        }
        let device = matches!(file_type, FileType::CharDevice | FileType::BlockDevice);
        let xattr_size = match u64::from(le_u16(&record, 2)) {
            0 => 0,
            count => XATTR_HEADER_SIZE + 4 * (count - 1),
        };
        let node = Node {
            nid,
            file_type,
            mode: mode & !S_IFMT,
            uid: le_u32(&record, 24),
            gid: le_u32(&record, 28),
            mtime: i64::from_le_bytes(le_u64(&record, 32).to_le_bytes()),
            mtime_nsec: le_u32(&record, 40),
            nlink: le_u32(&record, 44),
            size: le_u64(&record, 8),
            rdev: if device {
                decode_device_number(union)
            } else {
                (0, 0)
            },
            chunk_bits: chunked.then_some((chunk_format & CHUNK_BITS_MASK) as u8),
            body: offset + INODE_EXTENDED_SIZE,
            xattr_size,
            layout,
            block: union,
        };
        if node.mtime_nsec >= 1_000_000_000 || node.size > i64::MAX as u64 {
            return Err(damaged("a time or a size is out of range"));
        }
        Ok(node)
    }

    /// `None`: not within the image.
    pub(super) fn bytes(&self, start: u64, len: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let within = start.checked_add(len).is_some_and(|end| end <= self.size);
        match usize::try_from(len) {
            Ok(0) => Ok(Some(Vec::new())),
            Ok(len) if within => {
                let mut buffer = vec![0; len];
                self.source.read_exact_at(&mut buffer, start)?;
                Ok(Some(buffer))
            }
            _ => Ok(None),
        }
    }
}

pub(super) fn expect(
    node: &Node,
    file_type: FileType,
    expected: &'static str,
) -> Result<(), ReadError> {
    if node.file_type == file_type {
        Ok(())
    } else {
        Err(ReadError::Type {
            nid: node.nid,
            expected,
        })
    }
}

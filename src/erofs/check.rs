//! What EROFS can hold, and the errors that say what it cannot.

use super::ondisk::{BLOCK_SIZE, SYMLINK_MAX, encode_device_number};
use super::tree::{Chunk, Device, Inode, InodeId, Kind};
use super::xattr::Unstorable;

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

/// What is wrong with an inode; becomes an error once its path is known.
pub(super) enum Problem {
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
    pub(super) fn at(self, path: String) -> WriteError {
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

/// Everything about one inode but its extended attributes.
pub(super) fn check(inode: &Inode, devices: &[Device]) -> Result<(), Problem> {
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

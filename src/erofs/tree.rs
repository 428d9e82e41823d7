//! The file tree an image is made of.

use std::collections::BTreeMap;

/// Position of an inode in [`Tree::inodes`]; the root directory is 0.
pub type InodeId = u32;

/// A whole file tree. Inodes may be named by several directory entries (hard links).
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// All inodes; index 0 is the root directory. Inodes that no directory reaches are not written.
    pub inodes: Vec<Inode>,
}

/// One file of any kind.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Permission bits with set-id and sticky bits (no file type).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch; may be negative.
    pub mtime: i64,
    /// 0..1_000_000_000.
    pub mtime_nsec: u32,
    /// Full names, such as `security.capability` or `user.comment`, to values.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// What it is.
    pub kind: Kind,
}

/// File types with their payload.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Names (no `.` or `..`) to inodes.
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    /// A regular file kept in the image itself.
    Inline(Box<[u8]>),
    /// A regular file whose bytes live in devices.
    Chunked {
        /// In bytes.
        size: u64,
        /// Each chunk covers `4096 << chunk_bits` bytes; 0..=31. A contiguous file has one chunk that covers it all.
        chunk_bits: u8,
        /// `None` is a hole. Exactly `size.div_ceil(chunk size)` entries.
        chunks: Vec<Option<Chunk>>,
    },
    /// Target, not empty.
    Symlink(Box<[u8]>),
    /// Character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// Where a chunk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Position in the device list given to the writer, from 0. (On disk device ids start at 1.)
    pub device: u16,
    /// In 4 KiB blocks from the start of that device.
    pub block: u32,
}

/// One external device of an image.
#[derive(Clone, Debug)]
pub struct Device {
    /// Up to 64 bytes, for people and for matching.
    pub tag: String,
    /// Size in 4 KiB blocks that the image may address.
    pub blocks: u32,
}

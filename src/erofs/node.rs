//! What the reader answers with.

use super::file_type::FileType;

/// One inode's own fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Node id; unique within the image, and the inode number on a mount.
    pub nid: u64,
    /// Its type.
    pub file_type: FileType,
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
    /// Hard links; of a directory, 2 and one for each directory in it.
    pub nlink: u32,
    /// In bytes.
    pub size: u64,
    /// Major and minor of a device; zeros for other types.
    pub rdev: (u32, u32),
    /// Log2 of the blocks per chunk, for a file that is kept in chunks.
    pub chunk_bits: Option<u8>,
    /// Where xattrs begin in the image.
    pub(super) body: u64,
    pub(super) xattr_size: u64,
    pub(super) layout: u16,
    pub(super) block: u32,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Not `.` nor `..`.
    pub name: Box<[u8]>,
    /// The inode it names.
    pub nid: u64,
    /// Of that inode.
    pub file_type: FileType,
}

/// Consecutive bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// In the file.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
    /// Where they are kept.
    pub place: Place,
}

/// Where the bytes of a [`Run`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: zeros.
    Hole,
    /// In the image itself.
    Image {
        /// In bytes from its start.
        offset: u64,
    },
    /// In an external device.
    Device {
        /// Position in the device list, from 0.
        device: u16,
        /// In bytes from its start.
        offset: u64,
    },
}

impl Place {
    /// Whether `next` goes on where `len` bytes from here end.
    pub(super) fn continues(self, len: u64, next: Place) -> bool {
        match (self, next) {
            (Place::Hole, Place::Hole) => true,
            (Place::Image { offset }, Place::Image { offset: next }) => offset + len == next,
            (
                Place::Device { device, offset },
                Place::Device {
                    device: next_device,
                    offset: next,
                },
            ) => device == next_device && offset + len == next,
            _ => false,
        }
    }
}

//! What the parser says about one entry of a tar.

use std::collections::BTreeMap;

/// Extended attributes: full name to value.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// One entry, with everything its headers said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As written: not cleaned, not checked.
    pub(crate) path: Vec<u8>,
    /// Permission, set-id and sticky bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Seconds since the epoch.
    pub(crate) mtime: i64,
    /// 0..1_000_000_000.
    pub(crate) mtime_nsec: u32,
    /// As written, all name spaces.
    pub(crate) xattrs: Xattrs,
    /// Type and what belongs to it.
    pub(crate) kind: EntryKind,
    /// Bytes of data that follow. For a sparse file the bytes of its regions.
    pub(crate) body: u64,
}

/// Types of tar entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A file of [`Entry::body`] bytes.
    Regular,
    /// A file with holes.
    Sparse(SparseMap),
    /// Another name of the entry named.
    HardLink(Vec<u8>),
    /// Target as written.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// Major and minor number.
    CharDevice(u32, u32),
    /// Major and minor number.
    BlockDevice(u32, u32),
    /// Named pipe.
    Fifo,
    /// A type that names no file; its body is kept only to rebuild the tar.
    Unknown(u8),
}

/// Where the data of a sparse file lies. Sorted, no overlaps, all inside `size`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Of the file, holes included.
    pub(crate) size: u64,
    /// Offset and length of each region of data, none empty.
    pub(crate) regions: Vec<(u64, u64)>,
}

//! Writes metadata-only EROFS images, and reads them back for tests and repair.
//!
//! A leaf engine: it knows bytes, inodes and block numbers, nothing of images, layers or stores.
//! Format: Linux `fs/erofs/erofs_fs.h`. Blocks are 4 KiB. File contents live in external devices ("packs"),
//! addressed by chunk indexes; small contents, directories, symlink targets and xattrs live in the image itself.

mod tree;

pub use tree::{Chunk, Device, Inode, InodeId, Kind, Tree};

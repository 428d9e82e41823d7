//! Writes metadata-only EROFS images, and reads them back for tests and repair.
//!
//! A leaf engine: it knows bytes, inodes and block numbers, nothing of images, layers or stores.
//! Format: Linux `fs/erofs/erofs_fs.h`. Blocks are 4 KiB. File contents live in external devices ("packs"),
//! addressed by chunk indexes; small contents, directories, symlink targets and xattrs live in the image itself.
//!
//! [`write()`] turns a [`Tree`] into bytes, the same bytes for the same tree. [`Reader`] takes any bytes, also damaged or
//! hostile ones: it answers with an error and never panics, loops without end or asks for memory the image cannot justify.
//! Neither mounts anything nor opens a device.

mod body;
mod check;
mod dirent;
mod file_type;
mod layout;
mod node;
mod ondisk;
mod place;
mod read;
mod rebuild;
mod source;
mod tree;
mod walk;
mod write;
mod xattr;

pub use check::WriteError;
pub use file_type::FileType;
pub use node::{DirEntry, Node, Place, Run};
pub use ondisk::BLOCK_SIZE;
pub use read::{ReadError, Reader};
pub use source::ReadAt;
pub use tree::{Chunk, Device, Inode, InodeId, Kind, Tree};
pub use write::{Written, write};
pub use xattr::{Xattrs, is_storable as xattr_is_storable};

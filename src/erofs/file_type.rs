//! File types, and how inodes and directory entries code them.

use super::ondisk::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Symbolic link.
    Symlink,
}

/// In the order of their codes in directory entries, which start at 1.
const FILE_TYPES: [(FileType, u16); 7] = [
    (FileType::Regular, S_IFREG),
    (FileType::Directory, S_IFDIR),
    (FileType::CharDevice, S_IFCHR),
    (FileType::BlockDevice, S_IFBLK),
    (FileType::Fifo, S_IFIFO),
    (FileType::Socket, S_IFSOCK),
    (FileType::Symlink, S_IFLNK),
];

impl FileType {
    /// The byte in a directory entry.
    pub(super) fn code(self) -> u8 {
        (1..)
            .zip(FILE_TYPES)
            .find(|(_, (known, _))| *known == self)
            .map_or(0, |(code, _)| code)
    }

    pub(super) fn of_code(code: u8) -> Option<Self> {
        FILE_TYPES
            .get(usize::from(code).checked_sub(1)?)
            .map(|(known, _)| *known)
    }

    pub(super) fn of_mode(mode: u16) -> Option<Self> {
        FILE_TYPES
            .iter()
            .find(|(_, bits)| *bits == mode & S_IFMT)
            .map(|(known, _)| *known)
    }
}

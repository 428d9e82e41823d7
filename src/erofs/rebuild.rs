//! A whole tree back from its image.

use std::collections::{BTreeMap, HashMap};

use super::file_type::FileType;
use super::node::Node;
use super::ondisk::BLOCK_SIZE;
use super::read::{ReadError, Reader};
use super::source::ReadAt;
use super::tree::{Chunk, Inode, InodeId, Kind, Tree};

/// Shared extended attributes are the one thing that may honestly unfold to more than the image holds: a label of 64 bytes on
/// a million files. Beyond this many bytes in all, or the image's own length if that is more, we take it for an attack.
const XATTR_BYTES_MAX: u64 = 256 << 20;

impl<S: ReadAt> Reader<S> {
    /// Everything that the root leads to, as the writer was given it: writing the answer with [`devices`](Self::devices) and
    /// [`uuid`](Self::uuid) gives an image of the same content. Inodes come in the order of a walk, not of the original.
    ///
    /// # Errors
    /// The first of any part, a directory that has several names, or [`ReadError::TooLarge`].
    pub fn tree(&self) -> Result<Tree, ReadError> {
        let root = self.root()?;
        let mut tree = Tree::default();
        let mut ids: HashMap<u64, InodeId> = HashMap::new();
        let mut budget = Budget {
            data: self.size(),
            xattrs: XATTR_BYTES_MAX.max(self.size()),
        };
        ids.insert(root.nid, 0);
        tree.inodes.push(self.shallow(&root, &mut budget)?);
        let mut pending = vec![(0, root)];
        while let Some((id, directory)) = pending.pop() {
            budget.take_data(directory.size, self.size())?;
            let mut entries = BTreeMap::new();
            for entry in self.read_dir(&directory)? {
                let node = self.inode(entry.nid)?;
                if node.file_type != entry.file_type {
                    let what = "a directory entry names another type";
                    return Err(ReadError::Inode {
                        nid: node.nid,
                        what,
                    });
                }
                let child = match ids.get(&node.nid) {
                    Some(_) if node.file_type == FileType::Directory => {
                        let what = "a directory has several names";
                        return Err(ReadError::Inode {
                            nid: node.nid,
                            what,
                        });
                    }
                    Some(known) => *known,
                    None => {
                        let child = InodeId::try_from(tree.inodes.len())
                            .map_err(|_| ReadError::TooLarge(self.size()))?;
                        tree.inodes.push(self.shallow(&node, &mut budget)?);
                        ids.insert(node.nid, child);
                        if node.file_type == FileType::Directory {
                            pending.push((child, node));
                        }
                        child
                    }
                };
                entries.insert(entry.name, child);
            }
            if let Some(inode) = tree.inodes.get_mut(id as usize) {
                inode.kind = Kind::Directory(entries);
            }
        }
        Ok(tree)
    }

    /// An inode with everything but a directory's entries.
    fn shallow(&self, node: &Node, budget: &mut Budget) -> Result<Inode, ReadError> {
        let kind = match (node.file_type, node.chunk_bits) {
            (FileType::Directory, _) => Kind::Directory(BTreeMap::new()),
            (FileType::Regular, None) => {
                budget.take_data(node.size, self.size())?;
                Kind::Inline(self.content(node)?.into())
            }
            (FileType::Regular, Some(chunk_bits)) => {
                let chunk_size = BLOCK_SIZE << chunk_bits;
                budget.take_data(
                    node.size.div_ceil(chunk_size).saturating_mul(8),
                    self.size(),
                )?;
                self.runs(node)?;
                let chunks = self.chunk_places(node, chunk_size)?.into_iter();
                let chunk = |(device, block)| Chunk { device, block };
                Kind::Chunked {
                    size: node.size,
                    chunk_bits,
                    chunks: chunks.map(|place| place.map(chunk)).collect(),
                }
            }
            (FileType::Symlink, _) => {
                budget.take_data(node.size, self.size())?;
                Kind::Symlink(self.read_link(node)?)
            }
            (FileType::CharDevice, _) => Kind::CharDevice {
                major: node.rdev.0,
                minor: node.rdev.1,
            },
            (FileType::BlockDevice, _) => Kind::BlockDevice {
                major: node.rdev.0,
                minor: node.rdev.1,
            },
            (FileType::Fifo, _) => Kind::Fifo,
            (FileType::Socket, _) => Kind::Socket,
        };
        let xattrs = self.xattrs(node)?;
        for (name, value) in &xattrs {
            budget.take_xattr(name.len() as u64 + value.len() as u64, self.size())?;
        }
        Ok(Inode {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            mtime_nsec: node.mtime_nsec,
            xattrs,
            kind,
        })
    }
}

/// Bytes that may still be taken. Without it, inodes that all point at the same blocks would make a small image a huge tree.
struct Budget {
    data: u64,
    xattrs: u64,
}

impl Budget {
    fn take_data(&mut self, len: u64, limit: u64) -> Result<(), ReadError> {
        self.data = self
            .data
            .checked_sub(len)
            .ok_or(ReadError::TooLarge(limit))?;
        Ok(())
    }

    fn take_xattr(&mut self, len: u64, limit: u64) -> Result<(), ReadError> {
        let limit = XATTR_BYTES_MAX.max(limit);
        self.xattrs = self
            .xattrs
            .checked_sub(len)
            .ok_or(ReadError::TooLarge(limit))?;
        Ok(())
    }
}

//! Reads the images that this room writes: uncompressed, 64-byte inodes, chunk indexes.
//!
//! Every number from the image is checked before it is used. An answer never takes more memory than a small multiple of the
//! image's own length, and no read loops over anything that the image's length does not bound.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::ondisk::{
    BLOCK, BLOCK_BITS, BLOCK_SIZE, CHECKSUM_FIELD, CHUNK_BITS_MASK, CHUNK_INDEX_SIZE,
    CHUNK_INDEXES, COMPAT_SB_CHKSUM, DEVICE_SLOT_SIZE, DEVICE_TAG_SIZE, DIRENT_SIZE,
    FORMAT_EXTENDED, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, INODE_EXTENDED_SIZE,
    LAYOUT_CHUNKED, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, MAGIC, NAME_MAX, NULL_BLOCK, S_IFBLK,
    S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, SLOT, SUPER_OFFSET, SYMLINK_MAX,
    Superblock, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE, crc32c, decode_device_number,
};
use super::tree::Device;
use super::xattr::{self, Xattrs};

/// Bytes that can be read anywhere: a file, or memory.
pub trait ReadAt {
    /// Fills the buffer from this offset on.
    ///
    /// # Errors
    /// The source's, or [`io::ErrorKind::UnexpectedEof`] where it ends before the buffer is full.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// The source's.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }
}

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
    body: u64,
    xattr_size: u64,
    layout: u16,
    block: u32,
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
    fn continues(self, len: u64, next: Place) -> bool {
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

/// An image opened for reading.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    size: u64,
    superblock: Superblock,
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

    /// All extended attributes: full names to values.
    ///
    /// # Errors
    /// [`ReadError::Inode`] where they are damaged.
    pub fn xattrs(&self, node: &Node) -> Result<BTreeMap<Box<[u8]>, Box<[u8]>>, ReadError> {
        let mut found = Xattrs::new();
        if node.xattr_size == 0 {
            return Ok(found);
        }
        let damaged = |what| ReadError::Inode {
            nid: node.nid,
            what,
        };
        let area = self
            .bytes(node.body, node.xattr_size)?
            .ok_or(damaged("its extended attributes are outside of the image"))?;
        let cut = damaged("an extended attribute is cut off");
        let shared = 4 * usize::from(byte(&area, 4));
        let header = XATTR_HEADER_SIZE as usize;
        let Some((places, mut own)) = area
            .get(header..)
            .and_then(|rest| rest.split_at_checked(shared))
        else {
            return Err(cut);
        };
        let mut keep = |entry: &[u8]| -> Result<(), ReadError> {
            let (name, value) = parse_xattr(entry).ok_or(damaged("unknown extended attribute"))?;
            match found.insert(name, value.into()) {
                None => Ok(()),
                Some(_) => Err(damaged("an extended attribute appears twice")),
            }
        };
        while !own.is_empty() {
            let Some((entry, rest)) =
                xattr_entry_len(own).and_then(|len| own.split_at_checked(len))
            else {
                return Err(cut);
            };
            keep(entry)?;
            own = rest;
        }
        for place in places.chunks_exact(4) {
            let start = u64::from(self.superblock.xattr_block) * BLOCK_SIZE
                + u64::from(le_u32(place, 0)) * 4;
            let outside = || damaged("a shared extended attribute is outside of the image");
            let head = self.bytes(start, XATTR_ENTRY_SIZE)?.ok_or_else(outside)?;
            let len = xattr_entry_len(&head).ok_or_else(outside)? as u64;
            keep(&self.bytes(start, len)?.ok_or_else(outside)?)?;
        }
        Ok(found)
    }

    /// A directory's entries, sorted by the bytes of their names, without `.` and `..`.
    ///
    /// # Errors
    /// [`ReadError::Type`] for another type, [`ReadError::Inode`] where it is damaged or not sorted.
    pub fn read_dir(&self, node: &Node) -> Result<Vec<DirEntry>, ReadError> {
        expect(node, FileType::Directory, "directory")?;
        let damaged = |what| ReadError::Inode {
            nid: node.nid,
            what,
        };
        let data = self.flat_data(node)?;
        let mut entries = Vec::new();
        let mut previous: &[u8] = b"";
        let mut itself = false;
        for block in data.chunks(BLOCK) {
            let names = usize::from(le_u16(block, 8));
            if names < DIRENT_SIZE || !names.is_multiple_of(DIRENT_SIZE) || names > block.len() {
                return Err(damaged("a directory block has no entries"));
            }
            let (records, _) = block.split_at_checked(names).unwrap_or_default();
            let mut records = records.chunks_exact(DIRENT_SIZE).peekable();
            while let Some(record) = records.next() {
                let start = usize::from(le_u16(record, 8));
                let end = records
                    .peek()
                    .map_or(block.len(), |next| le_u16(next, 8).into());
                let name = block.get(start.max(names)..end).unwrap_or_default();
                // The last name of a block may be followed by zeros.
                let name = match records.peek() {
                    Some(_) => name,
                    None => name.split(|byte| *byte == 0).next().unwrap_or_default(),
                };
                if name.is_empty()
                    || name.len() > NAME_MAX
                    || name.iter().any(|b| matches!(b, 0 | b'/'))
                {
                    return Err(damaged("an entry has an impossible name"));
                }
                if name <= previous {
                    return Err(damaged("entries are not sorted"));
                }
                previous = name;
                let nid = le_u64(record, 0);
                let file_type = FileType::of_code(byte(record, 10))
                    .ok_or(damaged("an entry has an unknown type"))?;
                match name {
                    b"." => itself = nid == node.nid,
                    b".." => {}
                    _ => entries.push(DirEntry {
                        name: name.into(),
                        nid,
                        file_type,
                    }),
                }
            }
        }
        if itself {
            Ok(entries)
        } else {
            Err(damaged("a directory does not name itself"))
        }
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// [`ReadError::Type`] for another type, [`ReadError::Inode`] where it is damaged.
    pub fn read_link(&self, node: &Node) -> Result<Box<[u8]>, ReadError> {
        expect(node, FileType::Symlink, "symlink")?;
        if node.size == 0 || node.size > SYMLINK_MAX as u64 {
            return Err(ReadError::Inode {
                nid: node.nid,
                what: "an impossible symlink",
            });
        }
        Ok(self.flat_data(node)?.into())
    }

    /// The bytes of a regular file that is kept in the image itself, not in chunks.
    ///
    /// # Errors
    /// [`ReadError::Type`] for any other file, [`ReadError::Inode`] where it is damaged.
    pub fn content(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        expect(node, FileType::Regular, "regular file")?;
        if node.layout == LAYOUT_CHUNKED {
            return Err(ReadError::Type {
                nid: node.nid,
                expected: "file kept in the image",
            });
        }
        self.flat_data(node)
    }

    /// Where all bytes of a regular file are, in order and without gaps; neighbours that lie in one piece are one run.
    ///
    /// # Errors
    /// [`ReadError::Type`] for another type, [`ReadError::Inode`] where it is damaged or reaches beyond a device.
    pub fn runs(&self, node: &Node) -> Result<Vec<Run>, ReadError> {
        expect(node, FileType::Regular, "regular file")?;
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |run: Run| match runs.last_mut() {
            Some(last) if last.place.continues(last.len, run.place) => last.len += run.len,
            _ => runs.push(run),
        };
        let Some(chunk_bits) = node.chunk_bits else {
            for (offset, len) in self
                .flat_ranges(node)?
                .into_iter()
                .filter(|(_, len)| *len > 0)
            {
                let at = if len == node.size {
                    0
                } else {
                    node.size.saturating_sub(len)
                };
                add(Run {
                    offset: at,
                    len,
                    place: Place::Image { offset },
                });
            }
            return Ok(runs);
        };
        let chunk_size = BLOCK_SIZE << chunk_bits;
        let mut offset = 0;
        for place in self.chunk_places(node, chunk_size)? {
            let len = chunk_size.min(node.size - offset);
            add(Run {
                offset,
                len,
                place: self.resolve(node, place, len)?,
            });
            offset += len;
        }
        Ok(runs)
    }

    /// The chunks of a file as they are on disk: device (from 0) and block, `None` for a hole.
    pub(super) fn chunk_places(
        &self,
        node: &Node,
        chunk_size: u64,
    ) -> Result<Vec<Option<(u16, u32)>>, ReadError> {
        let outside = || ReadError::Inode {
            nid: node.nid,
            what: "its chunks are outside of the image",
        };
        let start = (node.body + node.xattr_size).next_multiple_of(CHUNK_INDEX_SIZE);
        let len = node
            .size
            .div_ceil(chunk_size)
            .checked_mul(CHUNK_INDEX_SIZE)
            .ok_or_else(outside)?;
        let table = self.bytes(start, len)?.ok_or_else(outside)?;
        let place = |index: &[u8]| match (le_u16(index, 2).checked_sub(1), le_u32(index, 4)) {
            (_, NULL_BLOCK) => Ok(None),
            (Some(device), block) => Ok(Some((device, block))),
            (None, _) => Err(ReadError::Inode {
                nid: node.nid,
                what: "a chunk in the image itself",
            }),
        };
        table
            .chunks_exact(CHUNK_INDEX_SIZE as usize)
            .map(place)
            .collect()
    }

    fn resolve(
        &self,
        node: &Node,
        place: Option<(u16, u32)>,
        len: u64,
    ) -> Result<Place, ReadError> {
        let Some((device, block)) = place else {
            return Ok(Place::Hole);
        };
        let blocks = u64::from(block) + len.div_ceil(BLOCK_SIZE);
        match self.devices.get(usize::from(device)) {
            Some(known) if blocks <= known.blocks.into() => Ok(Place::Device {
                device,
                offset: u64::from(block) * BLOCK_SIZE,
            }),
            _ => Err(ReadError::Inode {
                nid: node.nid,
                what: "a chunk is beyond its device",
            }),
        }
    }

    /// Offset and length in the image of the full blocks and of the tail.
    fn flat_ranges(&self, node: &Node) -> Result<[(u64, u64); 2], ReadError> {
        let start = u64::from(node.block) * BLOCK_SIZE;
        if node.layout == LAYOUT_FLAT_PLAIN {
            return Ok([(start, node.size), (0, 0)]);
        }
        let tail = node.size % BLOCK_SIZE;
        let at = node.body + node.xattr_size;
        if tail == 0 || at % BLOCK_SIZE + tail > BLOCK_SIZE {
            let what = "its inline data is empty or crosses a block";
            return Err(ReadError::Inode {
                nid: node.nid,
                what,
            });
        }
        Ok([(start, node.size - tail), (at, tail)])
    }

    fn flat_data(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        let outside = || ReadError::Inode {
            nid: node.nid,
            what: "its data is outside of the image",
        };
        let [(start, len), (tail_start, tail_len)] = self.flat_ranges(node)?;
        let mut data = self.bytes(start, len)?.ok_or_else(outside)?;
        data.append(&mut self.bytes(tail_start, tail_len)?.ok_or_else(outside)?);
        Ok(data)
    }

    /// `None`: not within the image.
    fn bytes(&self, start: u64, len: u64) -> Result<Option<Vec<u8>>, ReadError> {
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

fn expect(node: &Node, file_type: FileType, expected: &'static str) -> Result<(), ReadError> {
    if node.file_type == file_type {
        Ok(())
    } else {
        Err(ReadError::Type {
            nid: node.nid,
            expected,
        })
    }
}

/// Bytes of the entry that starts here, with its padding.
fn xattr_entry_len(entry: &[u8]) -> Option<usize> {
    let head = entry.get(..XATTR_ENTRY_SIZE as usize)?;
    Some((4 + usize::from(byte(head, 0)) + usize::from(le_u16(head, 2))).next_multiple_of(4))
}

fn parse_xattr(entry: &[u8]) -> Option<(Box<[u8]>, &[u8])> {
    let (rest, value) = entry.get(4..)?.split_at_checked(byte(entry, 0).into())?;
    Some((
        xattr::join(byte(entry, 1), rest)?,
        value.get(..le_u16(entry, 2).into())?,
    ))
}

// Beyond the end these read zeros; every caller has a slice long enough.

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn le_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|index| byte(bytes, at + index)))
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| byte(bytes, at + index)))
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| byte(bytes, at + index)))
}

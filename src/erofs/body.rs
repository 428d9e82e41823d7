//! Reads what an inode leads to: extended attributes, entries, targets and data.

use super::file_type::FileType;
use super::node::{DirEntry, Node, Place, Run};
use super::ondisk::{
    BLOCK, BLOCK_SIZE, CHUNK_INDEX_SIZE, DIRENT_SIZE, LAYOUT_CHUNKED, LAYOUT_FLAT_PLAIN, NAME_MAX,
    NULL_BLOCK, SYMLINK_MAX, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE, byte, le_u16, le_u32, le_u64,
};
use super::read::{ReadError, Reader, expect};
use super::source::ReadAt;
use super::xattr::{self, Xattrs};

impl<S: ReadAt> Reader<S> {
    /// All extended attributes: full names to values.
    ///
    /// # Errors
    /// [`ReadError::Inode`] where they are damaged.
    pub fn xattrs(&self, node: &Node) -> Result<Xattrs, ReadError> {
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
        match self.devices().get(usize::from(device)) {
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

//! `<diffid>.idx`: what a layer uses, and the recipe that rebuilds its exact tar.
//!
//! ```text
//! magic "LARDIDX1" | segments u32 | extents u32 | inlines u32 | recipe u64 | blake3 of the head after it (32 bytes)
//! head:   segments x u32 (EROFS device order)
//!         extents  x { blake3 32 bytes, segment u32, block u32, len u64 }, sorted by place
//!         inlines  x { offset in the .erofs u64, len u32 }
//! recipe: opaque here
//! ```
//! All numbers little-endian. The head has its own checksum, so that start-up reads no recipe; the checksum of the
//! whole file is in the layer's row.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::pack::{ContentHash, Extent, PackCommit};
use super::staging::Staging;
use super::types::LayerSource;
use crate::image::DiffId;

const MAGIC: &[u8; 8] = b"LARDIDX1";
const FIXED: usize = 8 + 4 + 4 + 4 + 8 + 32;

/// Bytes of a small content inside the layer's `.erofs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inline {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// What an ingest adds to the extents it used.
#[derive(Debug)]
pub(crate) struct IdxParts {
    /// EROFS device order.
    pub(crate) segments: Vec<u32>,
    pub(crate) inlines: Vec<Inline>,
    pub(crate) recipe: Vec<u8>,
}

/// A layer ready to be committed.
#[derive(Debug)]
pub(crate) struct LayerParts {
    pub(crate) diff_id: DiffId,
    pub(crate) source: LayerSource,
    pub(crate) tar_bytes: u64,
    pub(crate) content_bytes: u64,
    pub(crate) entries: u64,
    /// Directories that the tar does not name.
    pub(crate) implied: u64,
    pub(crate) pack: PackCommit,
    pub(crate) staging: Staging,
    pub(crate) idx: IdxParts,
}

/// A committed layer's two files, read and verified.
#[derive(Debug)]
pub(crate) struct OpenLayer {
    pub(crate) erofs: Vec<u8>,
    pub(crate) segments: Vec<u32>,
    pub(crate) extents: Vec<(ContentHash, Extent)>,
    pub(crate) inlines: Vec<Inline>,
    pub(crate) recipe: Vec<u8>,
}

/// The head of an index.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) segments: Vec<u32>,
    pub(super) extents: Vec<(ContentHash, Extent)>,
    pub(super) inlines: Vec<Inline>,
}

/// The bytes of an index. Made in one piece: a layer of a million contents has an index of 50 MB.
pub(super) fn encode(mut extents: Vec<(ContentHash, Extent)>, parts: &IdxParts) -> Vec<u8> {
    extents.sort_unstable_by_key(|(_, extent)| *extent);
    let head = parts.segments.len() * 4 + extents.len() * 48 + parts.inlines.len() * 12;
    let mut bytes = Vec::with_capacity(FIXED + head + parts.recipe.len());
    bytes.extend(MAGIC);
    for count in [parts.segments.len(), extents.len(), parts.inlines.len()] {
        // An ingest has far fewer than 2^32 of each: entries are limited.
        bytes.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }
    bytes.extend((parts.recipe.len() as u64).to_le_bytes());
    let checksum = bytes.len();
    bytes.extend([0; 32]);
    for segment in &parts.segments {
        bytes.extend(segment.to_le_bytes());
    }
    for (hash, extent) in extents {
        bytes.extend(hash.0);
        bytes.extend(extent.segment.to_le_bytes());
        bytes.extend(extent.block.to_le_bytes());
        bytes.extend(extent.len.to_le_bytes());
    }
    for inline in &parts.inlines {
        bytes.extend(inline.offset.to_le_bytes());
        bytes.extend(inline.len.to_le_bytes());
    }
    let hash = blake3::hash(bytes.get(FIXED..).unwrap_or_default());
    if let Some(place) = bytes.get_mut(checksum..FIXED) {
        place.copy_from_slice(hash.as_bytes());
    }
    bytes.extend(&parts.recipe);
    bytes
}

/// Reads the head of an index file and verifies its checksum.
pub(super) fn read_head(path: &Path) -> io::Result<Head> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut fixed = [0; FIXED];
    file.read_exact(&mut fixed)?;
    let (head_len, _) = lengths(&fixed, size)?;
    let mut head = vec![0; head_len];
    file.read_exact(&mut head)?;
    decode_head(&fixed, &head)
}

/// Splits a whole index into its head and its recipe.
pub(super) fn decode(bytes: &[u8]) -> io::Result<(Head, Vec<u8>)> {
    let (fixed, rest) = bytes
        .split_first_chunk::<FIXED>()
        .ok_or_else(|| bad("it is too short"))?;
    let (head_len, recipe_len) = lengths(fixed, bytes.len() as u64)?;
    let head = rest.get(..head_len).ok_or_else(|| bad("it is too short"))?;
    let recipe = rest
        .get(head_len..head_len + recipe_len)
        .ok_or_else(|| bad("it is too short"))?;
    Ok((decode_head(fixed, head)?, recipe.to_vec()))
}

/// Lengths of head and recipe; both fit the file, whatever the numbers say.
fn lengths(fixed: &[u8; FIXED], size: u64) -> io::Result<(usize, usize)> {
    let mut numbers = Numbers(fixed);
    if numbers.take::<8>()? != *MAGIC {
        return Err(bad("it is no index"));
    }
    let (segments, extents, inlines) = (numbers.u32()?, numbers.u32()?, numbers.u32()?);
    let recipe = numbers.u64()?;
    let head = u64::from(segments) * 4 + u64::from(extents) * 48 + u64::from(inlines) * 12;
    let whole = head
        .checked_add(recipe)
        .and_then(|sum| sum.checked_add(FIXED as u64));
    if whole != Some(size) {
        return Err(bad("its lengths do not add up"));
    }
    let fit = |n: u64| usize::try_from(n).map_err(|_| bad("it is too large"));
    Ok((fit(head)?, fit(recipe)?))
}

fn decode_head(fixed: &[u8; FIXED], head: &[u8]) -> io::Result<Head> {
    let mut numbers = Numbers(fixed);
    numbers.take::<8>()?;
    let (segments, extents, inlines) = (numbers.u32()?, numbers.u32()?, numbers.u32()?);
    numbers.u64()?;
    if *blake3::hash(head).as_bytes() != numbers.take::<32>()? {
        return Err(bad("its checksum is wrong"));
    }
    let mut numbers = Numbers(head);
    let mut decoded = Head::default();
    for _ in 0..segments {
        decoded.segments.push(numbers.u32()?);
    }
    for _ in 0..extents {
        let hash = ContentHash(numbers.take::<32>()?);
        let (segment, block, len) = (numbers.u32()?, numbers.u32()?, numbers.u64()?);
        decoded.extents.push((
            hash,
            Extent {
                segment,
                block,
                len,
            },
        ));
    }
    for _ in 0..inlines {
        let (offset, len) = (numbers.u64()?, numbers.u32()?);
        decoded.inlines.push(Inline { offset, len });
    }
    Ok(decoded)
}

struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| bad("it is too short"))?;
        self.0 = rest;
        Ok(*head)
    }
    fn u32(&mut self) -> io::Result<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> io::Result<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Vec<(ContentHash, Extent)>, IdxParts) {
        let extents = (0..5_u32)
            .map(|n| {
                let place = Extent {
                    segment: n % 2,
                    block: 100 - n,
                    len: u64::from(n) * 5000 + 1,
                };
                (ContentHash([n as u8; 32]), place)
            })
            .collect();
        let parts = IdxParts {
            segments: vec![1, 0],
            inlines: vec![Inline {
                offset: 70_000,
                len: 12,
            }],
            recipe: b"recipe".to_vec(),
        };
        (extents, parts)
    }

    #[test]
    fn round_trips() {
        let (extents, parts) = example();
        let (head, recipe) = decode(&encode(extents.clone(), &parts)).unwrap();
        assert_eq!(head.segments, parts.segments);
        assert_eq!(head.inlines, parts.inlines);
        assert_eq!(recipe, parts.recipe);
        assert!(head.extents.is_sorted_by_key(|(_, extent)| *extent));
        assert_eq!(head.extents.len(), extents.len());
    }

    #[test]
    fn refuses_any_damage_of_the_head() {
        let (extents, parts) = example();
        let whole = encode(extents, &parts);
        for at in 0..whole.len() - parts.recipe.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert!(decode(&bytes).is_err(), "byte {at}");
        }
        for len in 0..whole.len() {
            assert!(decode(&whole[..len]).is_err(), "length {len}");
        }
    }
}

//! Writes an image's merged tree as plain files, for machines that cannot mount it.
//!
//! The tree is merged in memory first. Writing then never walks a path that the image chose: every directory is one
//! that was just made, opened below the target with symlinks refused.

mod merge;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use super::export::Segments;
use super::idx::OpenLayer;
use super::pack::ContentHash;
use super::{Error, Store};
use crate::erofs::{Chunk, Reader, Tree};
use crate::image::DiffId;

/// Bytes copied at once.
const PART: usize = 1 << 20;
/// Size of a block of a segment.
const BLOCK: u64 = 4096;

impl Store {
    /// Writes an image's merged tree as plain directories below `dir` (which must be empty or absent). Blocking.
    ///
    /// Layers are given base first. Owners and devices need root; without it they are left out, and so are extended
    /// attributes that the file system or the kernel refuses; one warning counts them. Contents are verified. After an
    /// error `dir` holds a part of the tree.
    pub fn unpack(&self, layers: &[DiffId], dir: &Path) -> Result<(), Error> {
        let lease = self.lease();
        let mut opened = Vec::with_capacity(layers.len());
        let mut trees = Vec::with_capacity(layers.len());
        for diff_id in layers {
            if self.layer(diff_id, &lease).is_none() {
                return Err(Error::Invalid(format!(
                    "layer {diff_id} is not in the store, or damaged; pull the image again"
                )));
            }
            let layer = self.open_layer(diff_id)?;
            trees.push(read_tree(diff_id, &layer)?);
            opened.push(layer);
        }
        let merged = merge::merge(&trees);
        let mut contents = Contents::new(self, &opened);
        write::Writer::new(dir, &trees, &mut contents)?
            .write(&merged)
            .map_err(|error| self.look_into(error, layers))
    }
}

fn read_tree(diff_id: &DiffId, layer: &OpenLayer) -> Result<Tree, Error> {
    Reader::open(layer.erofs.as_slice())
        .and_then(|reader| reader.tree())
        .map_err(|error| Error::Damaged {
            subject: format!("layer {diff_id}"),
            cause: error.to_string(),
        })
}

/// Takes a piece of a file at an offset.
type Emit<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Error> + 'a;

/// Kept contents of several layers.
struct Contents<'a> {
    layers: Vec<LayerContents<'a>>,
    buffer: Vec<u8>,
}

struct LayerContents<'a> {
    segments: Segments<'a>,
    /// By segment and first block.
    hashes: BTreeMap<(u32, u32), ContentHash>,
}

impl<'a> Contents<'a> {
    fn new(store: &'a Store, layers: &'a [OpenLayer]) -> Self {
        let layers = layers
            .iter()
            .map(|layer| LayerContents {
                segments: Segments::new(store, &layer.segments),
                hashes: layer
                    .extents
                    .iter()
                    .map(|(hash, extent)| ((extent.segment, extent.block), *hash))
                    .collect(),
            })
            .collect();
        Contents {
            layers,
            buffer: vec![0; PART],
        }
    }

    /// Reads a file of `size` bytes piece by piece, holes left out, and verifies it.
    fn read(
        &mut self,
        layer: usize,
        size: u64,
        chunk_bits: u8,
        chunks: &[Option<Chunk>],
        emit: &mut Emit<'_>,
    ) -> Result<(), Error> {
        let Some(LayerContents { segments, hashes }) = self.layers.get_mut(layer) else {
            return Ok(());
        };
        let chunk_bytes = BLOCK << chunk_bits.min(31);
        let mut hasher = blake3::Hasher::new();
        let mut first = None;
        for (number, chunk) in (0_u64..).zip(chunks) {
            let Some(chunk) = chunk else { continue };
            first.get_or_insert(*chunk);
            let start = number.saturating_mul(chunk_bytes);
            let len = size.saturating_sub(start).min(chunk_bytes);
            let from = u64::from(chunk.block) * BLOCK;
            let mut done = 0;
            while done < len {
                let most = usize::try_from(len - done).unwrap_or(usize::MAX).min(PART);
                let part = self.buffer.get_mut(..most).unwrap_or_default();
                segments.read(u32::from(chunk.device), from + done, part)?;
                hasher.update(part);
                emit(start + done, part)?;
                done += part.len() as u64;
            }
        }
        let Some(first) = first else {
            return Ok(());
        };
        let segment = segments.id(u32::from(first.device)).unwrap_or_default();
        match hashes.get(&(segment, first.block)) {
            Some(hash) if hash.0 == *hasher.finalize().as_bytes() => Ok(()),
            _ => Err(segments.damaged(
                segment,
                format!(
                    "the content at block {} is not what was written",
                    first.block
                ),
            )),
        }
    }
}

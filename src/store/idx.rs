//! What a layer uses.

use super::pack::{ContentHash, Extent, PackCommit};
use super::staging::Staging;
use super::{Error, Layer, LayerSource, Lease, Store};
use crate::image::DiffId;

/// Bytes of a small content inside the layer's `.erofs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inline {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

#[derive(Debug)]
pub(crate) struct IdxParts {
    pub(crate) segments: Vec<u32>,
    pub(crate) inlines: Vec<Inline>,
    pub(crate) recipe: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct LayerParts {
    pub(crate) diff_id: DiffId,
    pub(crate) source: LayerSource,
    pub(crate) tar_bytes: u64,
    pub(crate) content_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) pack: PackCommit,
    pub(crate) staging: Staging,
    pub(crate) idx: IdxParts,
}

pub(crate) struct OpenLayer {
    pub(crate) erofs: Vec<u8>,
    pub(crate) segments: Vec<u32>,
    pub(crate) extents: Vec<(ContentHash, Extent)>,
    pub(crate) inlines: Vec<Inline>,
    pub(crate) recipe: Vec<u8>,
}

impl Store {
    pub(crate) fn commit_layer(&self, _parts: LayerParts, _lease: &Lease) -> Result<Layer, Error> {
        todo!()
    }
    pub(crate) fn open_layer(&self, _diff_id: &DiffId) -> Result<OpenLayer, Error> {
        todo!()
    }
}

//! Views of manifests and indexes. The raw bytes stay with the caller: digests are of what was received.

use std::collections::BTreeMap;

use super::{Compression, Digest, Platform};

/// A larger manifest or index is refused.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// An image with more layers is refused: overlayfs takes 500 lower directories.
pub const MAX_LAYERS: usize = 500;

/// Points at a blob or manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// As written in the document.
    pub media_type: String,
    /// Of the bytes pointed at.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Only in an index.
    pub platform: Option<Platform>,
    /// Annotations of the descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// One platform's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The config blob.
    pub config: Descriptor,
    /// Base layer first, at most [`MAX_LAYERS`].
    pub layers: Vec<Descriptor>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// Several platforms' images; entries may be indexes themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// In the document's order.
    pub manifests: Vec<Descriptor>,
}

/// What a manifest request can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An image manifest.
    Manifest(Manifest),
    /// An index or manifest list.
    Index(Index),
}

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the shape.
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// Docker schema 1.
    #[error(
        "the image has a Docker schema 1 manifest, which is obsolete; push it again with a current docker, or convert it with skopeo copy --format oci"
    )]
    Schema1,
    /// A document type that is not an image.
    #[error("media type {0:?} is not an image manifest or index")]
    Unsupported(String),
    /// A layer type that cannot be unpacked.
    #[error("layer {digest} has media type {media_type:?}, which is not a tar, gzip or zstd layer")]
    UnsupportedLayer {
        /// Of the layer.
        digest: Digest,
        /// As written in the manifest.
        media_type: String,
    },
    /// Over a limit.
    #[error("the manifest has {found} {what}, the limit is {limit}")]
    TooMany {
        /// `layers`, `bytes` or `manifests`.
        what: &'static str,
        /// In the document.
        found: u64,
        /// Allowed.
        limit: u64,
    },
    /// No entry for the platform asked for.
    #[error("no image for platform {wanted}; the index offers {offered}")]
    NoPlatform {
        /// Asked for.
        wanted: String,
        /// Comma-separated, for people; bounded.
        offered: String,
    },
}

impl Document {
    /// Parses a manifest or index. `content_type` is the registry's word, used when the document names no type.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let _ = (bytes, content_type);
        todo!()
    }
}

impl Index {
    /// Entries that can serve `platform`, best first, document order among equals. Nested indexes (entries whose
    /// media type is an index) are included in document order when they name no platform, since only fetching tells.
    pub fn candidates(&self, platform: &Platform) -> Result<Vec<&Descriptor>, ManifestError> {
        let _ = platform;
        todo!()
    }
}

impl Descriptor {
    /// How this layer is compressed.
    pub fn compression(&self) -> Result<Compression, ManifestError> {
        todo!()
    }
}

//! Media types of manifests, indexes, configs and layers.

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain tar.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

/// What a media type says a document or blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// OCI image manifest or Docker schema 2 manifest.
    Manifest,
    /// OCI index or Docker manifest list.
    Index,
    /// OCI or Docker image config.
    Config,
    /// A layer tar with its compression (non-distributable and foreign layers included).
    Layer(Compression),
    /// Docker schema 1, which is refused.
    Schema1,
    /// Anything else.
    Unknown,
}

/// Value of the `Accept` header when a manifest is asked for.
pub const MANIFEST_ACCEPT: &str = "";

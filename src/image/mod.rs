//! The words of the project: references, digests, platforms and views of manifests.
//!
//! Pure: no input or output, no async, no clock. Knows no other room.

mod config;
mod digest;
mod manifest;
mod media_type;
mod platform;
mod raw;
mod reference;

pub use config::{Config, ConfigError, History, MAX_CONFIG_BYTES, User};
pub use digest::{Algorithm, DiffId, Digest, DigestError, Hasher, ImageId};
pub use manifest::{
    Descriptor, Document, Index, MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_MANIFEST_BYTES, Manifest,
    ManifestError,
};
pub use media_type::{Compression, MANIFEST_ACCEPT, MediaType};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, repository};

/// The start of a text that an error quotes: whoever wrote the text may have written megabytes.
fn excerpt(text: &str) -> String {
    const MOST: usize = 160;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

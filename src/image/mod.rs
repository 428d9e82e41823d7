//! The words of the project: references, digests, platforms and views of manifests.
//!
//! Pure: no input or output, no async, no clock. Knows no other room.

mod config;
mod digest;
mod manifest;
mod media_type;
mod platform;
mod reference;

pub use config::{Config, ConfigError, History, User};
pub use digest::{Algorithm, DiffId, Digest, DigestError, Hasher, ImageId};
pub use manifest::{
    Descriptor, Document, Index, MAX_LAYERS, MAX_MANIFEST_BYTES, Manifest, ManifestError,
};
pub use media_type::{Compression, MANIFEST_ACCEPT, MediaType};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};

//! What a store operation can fail with.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::{DiffId, Digest, ImageId};

/// What a store operation can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the root.
    #[error("{root} is in use by process {pid}: talk to it with --socket, or stop it first")]
    Locked {
        /// The data directory.
        root: PathBuf,
        /// Of the other process, 0 if unknown.
        pid: u32,
    },
    /// The root was written by a newer larder.
    #[error(
        "{root} has format {found}, this larder knows {known}: use a newer larder, or another --root"
    )]
    Format {
        /// The data directory.
        root: PathBuf,
        /// What the root needs.
        found: String,
        /// What this program has.
        known: String,
    },
    /// Input or output of the data directory.
    #[error("{action} {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The data directory cannot be written.
    #[error("{path} is on a read-only file system: remount it writable, or give another --root")]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
    },
    /// No space for it.
    #[error("{root} has no space left for this: {cause}; remove images or give it a larger disk")]
    NoSpace {
        /// The data directory.
        root: PathBuf,
        /// What was being written.
        cause: String,
    },
    /// What is left is set aside.
    #[error(
        "{root}: InsufficientSpace: {free} bytes are free and {reserve} are reserved; remove images, or give it a larger disk"
    )]
    Reserved {
        /// The data directory.
        root: PathBuf,
        /// Bytes that may still be written to its file system.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// The metadata database failed.
    #[error("database of {root}: {cause}; larder fsck --repair tells what can be kept")]
    Database {
        /// The data directory.
        root: PathBuf,
        /// What it said.
        cause: String,
    },
    /// Reading the blob from its source failed.
    #[error("layer {blob}: {source}")]
    Source {
        /// The blob.
        blob: Digest,
        /// What the source said.
        source: std::io::Error,
    },
    /// The bytes are not those the digest names.
    #[error(
        "layer {expected}: the bytes received have digest {found}; the registry or a mirror served wrong content: pull again, or push the image again"
    )]
    DigestMismatch {
        /// Asked for.
        expected: Digest,
        /// Received.
        found: Digest,
    },
    /// More or fewer bytes than the manifest says.
    #[error(
        "layer {blob}: {found} bytes received, the manifest says {expected}; the image is damaged at the registry, push it again"
    )]
    SizeMismatch {
        /// The blob.
        blob: Digest,
        /// Per manifest.
        expected: u64,
        /// Received.
        found: u64,
    },
    /// Bad gzip, zstd or tar.
    #[error("layer {blob}: {cause}; the layer cannot be used, build the image anew and push it")]
    BadLayer {
        /// The blob.
        blob: Digest,
        /// What is wrong, with the entry's name where there is one.
        cause: String,
    },
    /// A limit was exceeded.
    #[error(
        "layer {blob}: {what} over the limit of {limit}; raise limits.{key} if you trust the image"
    )]
    Limit {
        /// The blob.
        blob: Digest,
        /// What there was too much of.
        what: String,
        /// Allowed.
        limit: u64,
        /// Configuration key.
        key: &'static str,
    },
    /// An image names a layer that is absent.
    #[error("image {image}: layer {diff_id} is not in the store")]
    LayerMissing {
        /// Of the image.
        image: ImageId,
        /// Absent.
        diff_id: DiffId,
    },
    /// Stored bytes are not what was written.
    #[error("{subject} is damaged: {cause}; larder fsck --repair, then pull the image again")]
    Damaged {
        /// Path below the root, or digest.
        subject: String,
        /// What is wrong.
        cause: String,
    },
    /// Mounting is not possible here.
    #[error("this machine cannot mount images: {cause}; larder unpack works everywhere")]
    MountUnsupported {
        /// What is missing.
        cause: String,
    },
    /// Something uses it.
    #[error("{subject} is in use by {user}")]
    Busy {
        /// What was to go.
        subject: String,
        /// Who holds it.
        user: String,
    },
    /// A caller's argument cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Names the action and the path of an I/O error; a full file system is told apart.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return Error::NoSpace {
                root: path.to_path_buf(),
                cause: format!("{action}: {source}"),
            };
        }
        if source.kind() == io::ErrorKind::ReadOnlyFilesystem {
            return Error::ReadOnly {
                path: path.to_path_buf(),
            };
        }
        Error::Io {
            action,
            path: path.to_path_buf(),
            cause: source,
        }
    }
}

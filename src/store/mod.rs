//! The only owner of the data directory: packs, layers, image records, leases, gc, fsck, mounts.

mod export;
mod idx;
mod ingest;
mod pack;
mod staging;
mod unpack;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::image::{Compression, DiffId, Digest, ImageId, Platform};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory; made if absent.
    pub root: PathBuf,
    /// Limits on what a layer may hold.
    pub limits: Limits,
}

/// Limits on one layer: what exceeds them is refused with an error that names the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of one layer's tar.
    pub max_entries: u64,
    /// Uncompressed bytes of one layer.
    pub max_layer_bytes: u64,
    /// Uncompressed bytes per compressed byte, judged after the first 64 MiB.
    pub max_ratio: u64,
    /// Bytes of a path (Linux PATH_MAX less one).
    pub max_path: usize,
    /// Free bytes that must stay on the file system.
    pub reserved_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_entries: 1_000_000,
            max_layer_bytes: 256 << 30,
            max_ratio: 1100,
            max_path: 4095,
            reserved_bytes: 0,
        }
    }
}

/// A compressed layer about to be ingested.
#[derive(Clone, Debug)]
pub struct LayerSource {
    /// Of the compressed blob.
    pub blob: Digest,
    /// Of the compressed blob, in bytes.
    pub size: u64,
    /// Of the compressed blob.
    pub compression: Compression,
}

/// Live counters of one ingest, read by whoever shows progress.
#[derive(Debug, Default)]
pub struct LayerCounters {
    /// Compressed bytes consumed.
    pub read: AtomicU64,
    /// Uncompressed bytes seen.
    pub inflated: AtomicU64,
    /// Content bytes found already present.
    pub deduplicated: AtomicU64,
    /// Content bytes written.
    pub written: AtomicU64,
    /// Tar entries seen.
    pub entries: AtomicU64,
}

/// A layer that is durable, known by its diffID, and protected by the lease it was ingested under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Of the uncompressed tar.
    pub diff_id: DiffId,
    /// Of the uncompressed tar, in bytes.
    pub tar_bytes: u64,
    /// Sum of the lengths of its regular files.
    pub content_bytes: u64,
    /// Bytes on disk that only this layer brought when it was ingested.
    pub added_bytes: u64,
    /// Entries of its tree.
    pub entries: u64,
}

/// A layer of an image, as its manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// Of the uncompressed tar.
    pub diff_id: DiffId,
    /// Of the compressed blob.
    pub blob: Digest,
    /// Of the compressed blob, in bytes.
    pub size: u64,
    /// As in the manifest.
    pub media_type: String,
}

/// What is kept of an image besides its blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Config digest.
    pub id: ImageId,
    /// Of the config.
    pub platform: Platform,
    /// Digest of this platform's manifest.
    pub manifest: Digest,
    /// Base first.
    pub layers: Vec<LayerRef>,
    /// RFC 3339, of the config.
    pub created: Option<String>,
    /// Sum of the layers' uncompressed content and the config, at least 1.
    pub size: u64,
    /// `User` of the config, as written.
    pub user: String,
    /// Labels of the config.
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since the epoch.
    pub pulled_at: i64,
    /// Milliseconds since the epoch.
    pub last_used_at: i64,
    /// Asked to be kept.
    pub pinned: bool,
}

/// A name of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// `docker.io/library/busybox:latest` or `docker.io/library/busybox@sha256:…`.
    pub name: String,
    /// The top-level digest it was pulled as.
    pub target: Digest,
}

/// An image as the store shows it: complete, verified, durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The record.
    pub record: ImageRecord,
    /// Tags first, then digests, each sorted.
    pub names: Vec<Name>,
}

/// Everything an image needs to become visible, in one durable transaction.
#[derive(Clone, Debug)]
pub struct ImageCommit {
    /// The record. All its layers are in the store.
    pub record: ImageRecord,
    /// Names that point at it from now on; each moves from the image that had it before.
    pub names: Vec<Name>,
    /// Manifest, index and config by digest.
    pub blobs: Vec<(Digest, Bytes)>,
}

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that went.
    pub names: Vec<String>,
    /// Layers that no other image uses.
    pub layers: Vec<DiffId>,
    /// Bytes given back to the file system.
    pub freed_bytes: u64,
}

/// What the store holds and occupies. Read from counters, no disk access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum over distinct layers of their content.
    pub logical_bytes: u64,
    /// What the store really occupies on disk.
    pub stored_bytes: u64,
    /// Files the store has.
    pub inodes: u64,
    /// Visible images.
    pub images: u64,
    /// Layers.
    pub layers: u64,
    /// Pack segments.
    pub segments: u64,
}

/// Something fsck found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// `database`, `pack`, `layer`, `blob`, `orphan`, `segment`.
    pub kind: String,
    /// Path relative to the root, or the digest.
    pub subject: String,
    /// What is wrong.
    pub cause: String,
    /// Names or ids of images that need a re-pull.
    pub images: Vec<String>,
    /// True once nothing refers to it any more.
    pub repaired: bool,
}

/// What fsck did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FsckReport {
    /// Layers read.
    pub layers: u64,
    /// Extents re-hashed.
    pub extents: u64,
    /// Bytes re-hashed.
    pub bytes: u64,
    /// Damage, worst first.
    pub damaged: Vec<Damage>,
}

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {}

/// Protects layers from collection while it lives; dropping it releases them.
#[derive(Debug)]
pub struct Lease {}

/// A mounted image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub target: PathBuf,
    /// Of what.
    pub image: ImageId,
}

impl Store {
    /// Takes the root's lock, checks its format, recovers from a crash. Blocking.
    pub fn open(options: Options, metrics: Metrics) -> Result<Self, Error> {
        let _ = (options, metrics);
        todo!()
    }
    /// The data directory.
    pub fn root(&self) -> &Path {
        todo!()
    }
    /// A new lease that protects nothing yet.
    pub fn lease(&self) -> Lease {
        todo!()
    }
    /// The layer a blob was ingested as, if it is present and sound; the lease protects it from now on.
    pub fn layer_of_blob(&self, blob: &Digest, lease: &Lease) -> Option<Layer> {
        let _ = (blob, lease);
        todo!()
    }
    /// A layer by diffID, if it is present and sound; the lease protects it from now on.
    pub fn layer(&self, diff_id: &DiffId, lease: &Lease) -> Option<Layer> {
        let _ = (diff_id, lease);
        todo!()
    }
    /// Makes an image visible. Blocking (one fsync'd transaction). Refuses with `DiffIdMissing` when a layer is absent.
    pub fn commit_image(&self, commit: ImageCommit, lease: &Lease) -> Result<Arc<Image>, Error> {
        let _ = (commit, lease);
        todo!()
    }
    /// All visible images, ordered by id. From memory.
    pub fn images(&self) -> Vec<Arc<Image>> {
        todo!()
    }
    /// One image. From memory.
    pub fn image(&self, id: &ImageId) -> Option<Arc<Image>> {
        let _ = id;
        todo!()
    }
    /// The image a name points at. From memory.
    pub fn image_named(&self, name: &str) -> Option<Arc<Image>> {
        let _ = name;
        todo!()
    }
    /// Removes an image with all its names and frees what only it used, before returning. Blocking. Absent is `None`.
    pub fn remove_image(&self, id: &ImageId) -> Result<Option<Removed>, Error> {
        let _ = id;
        todo!()
    }
    /// Sets or clears the pin. Blocking.
    pub fn pin_image(&self, id: &ImageId, pinned: bool) -> Result<(), Error> {
        let _ = (id, pinned);
        todo!()
    }
    /// Records a use. In memory at once, on disk with the next transaction or at shutdown.
    pub fn touch_image(&self, id: &ImageId, at_ms: i64) {
        let _ = (id, at_ms);
        todo!()
    }
    /// A manifest, index or config. Blocking, digest verified.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let _ = digest;
        todo!()
    }
    /// From counters.
    pub fn usage(&self) -> Usage {
        todo!()
    }
    /// Facts of a layer for `inspect`, without a lease.
    pub fn layer_info(&self, diff_id: &DiffId) -> Option<Layer> {
        let _ = diff_id;
        todo!()
    }
    /// Mounts an image read-only at `target`. Blocking; needs root and a capable kernel, else `MountUnsupported`.
    pub fn mount(&self, image: &ImageId, target: &Path) -> Result<(), Error> {
        let _ = (image, target);
        todo!()
    }
    /// Unmounts what [`Store::mount`] mounted.
    pub fn umount(&self, target: &Path) -> Result<(), Error> {
        let _ = target;
        todo!()
    }
    /// Mounted images.
    pub fn mounts(&self) -> Vec<Mount> {
        todo!()
    }
    /// Verifies everything; with `repair` quarantines or drops what is damaged so that a re-pull heals it. Blocking.
    pub fn fsck(
        &self,
        repair: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<FsckReport, Error> {
        let _ = (repair, progress);
        todo!()
    }
}

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
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No space for it.
    #[error("{root} has no space left for this: {cause}; remove images or give it a larger disk")]
    NoSpace {
        /// The data directory.
        root: PathBuf,
        /// What was being written.
        cause: String,
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
        "layer {expected}: the bytes received have digest {found}; the registry or a mirror served wrong content"
    )]
    DigestMismatch {
        /// Asked for.
        expected: Digest,
        /// Received.
        found: Digest,
    },
    /// More or fewer bytes than the manifest says.
    #[error("layer {blob}: {found} bytes received, the manifest says {expected}")]
    SizeMismatch {
        /// The blob.
        blob: Digest,
        /// Per manifest.
        expected: u64,
        /// Received.
        found: u64,
    },
    /// Bad gzip, zstd or tar.
    #[error("layer {blob}: {cause}")]
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

/// Counters of this room.
#[derive(Clone, Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// Registers this room's metrics.
    pub fn register(registry: &mut prometheus_client::registry::Registry) -> Self {
        let _ = registry;
        Self::default()
    }
}

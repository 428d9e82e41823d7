//! The values that go in and out of the store.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

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
    /// Here for those only who show the registry credentials of their own. Never set again once it was unset; records
    /// from before it was known are without it.
    #[serde(default)]
    pub staged: bool,
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

/// How long ago an image was pulled and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// Since it was pulled first.
    pub pulled: Duration,
    /// Since it was last used; its pull is a use.
    pub used: Duration,
    /// Another after each use.
    pub mark: u64,
}

/// What keeps an image in the store whoever wants it gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is mounted there.
    Mounted(PathBuf),
    /// A container has its file system on all its layers.
    LivedIn,
    /// It is being pulled, unpacked, or worked with otherwise: all its layers are leased.
    Leased,
}

/// What the store holds and occupies. Read from counters, no disk access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum over distinct layers of their content.
    pub logical_bytes: u64,
    /// What the store really occupies on disk.
    pub stored_bytes: u64,
    /// Of that, blobs that are kept as registries serve them.
    pub kept_bytes: u64,
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

/// A mounted image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub target: PathBuf,
    /// Of what.
    pub image: ImageId,
}

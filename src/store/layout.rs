//! Every path of the data directory; nowhere else are they joined.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::image::{DiffId, Digest};

use super::KeptName;

/// Bytes of a layer's hash that name its mount point: enough that no two layers share one, and so few that the options
/// of an overlay of 130 layers fit into the page that mount(2) takes.
const MOUNT_NAME: usize = 15;

/// Below `mounts/`.
pub(super) const EMPTY: &str = "empty";

/// Paths below one root.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Layout { root }
    }
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
    pub(super) fn meta(&self) -> PathBuf {
        self.root.join("meta.json")
    }
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
    pub(super) fn database(&self) -> PathBuf {
        self.root.join("larder.redb")
    }
    /// A database being written anew.
    pub(super) fn fresh_database(&self) -> PathBuf {
        self.root.join("larder.redb.new")
    }
    /// Where a database that cannot be read is kept for whoever wants to look; the last one only.
    pub(super) fn damaged_database(&self) -> PathBuf {
        self.root.join("larder.redb.damaged")
    }
    pub(super) fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }
    pub(super) fn pack(&self, segment: u32) -> PathBuf {
        self.packs().join(format!("{segment}.pack"))
    }
    pub(super) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }
    pub(super) fn erofs(&self, layer: &DiffId) -> PathBuf {
        self.layers().join(format!("{}.erofs", layer.0.hex()))
    }
    pub(super) fn idx(&self, layer: &DiffId) -> PathBuf {
        self.layers().join(format!("{}.idx", layer.0.hex()))
    }
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }
    pub(super) fn blob_folder(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.algorithm().to_string())
    }
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blob_folder(digest).join(digest.hex())
    }
    /// Blobs as registries serve them.
    pub(super) fn kept_blobs(&self) -> PathBuf {
        self.root.join("kept")
    }
    pub(super) fn kept_folder(&self, digest: &Digest) -> PathBuf {
        self.kept_blobs().join(digest.algorithm().to_string())
    }
    pub(super) fn kept_blob(&self, name: &KeptName) -> PathBuf {
        self.kept_folder(name.digest()).join(name.file())
    }
    pub(super) fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }
    pub(super) fn mount(&self, layer: &DiffId) -> PathBuf {
        self.mounts().join(Self::mount_name(layer))
    }
    /// Of a layer's mount point, below `mounts/`.
    pub(super) fn mount_name(layer: &DiffId) -> String {
        let bytes = hex::decode(layer.0.hex()).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(bytes.get(..MOUNT_NAME).unwrap_or(&bytes))
    }
    /// Where the image of attributes of a stack of layers is mounted.
    pub(super) fn fixup(&self, name: &str) -> PathBuf {
        self.mounts().join(name)
    }
    /// A folder with nothing in it: overlayfs wants two lower directories at least.
    pub(super) fn empty(&self) -> PathBuf {
        self.mounts().join(EMPTY)
    }
    /// Folders of snapshots.
    pub(super) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }
    pub(super) fn snapshot(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string())
    }
    /// What a container writes, or containerd unpacks.
    pub(super) fn snapshot_fs(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("fs")
    }
    /// Overlayfs' own.
    pub(super) fn snapshot_work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }
    pub(super) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }
    /// The folders a root has.
    pub(super) fn folders(&self) -> [PathBuf; 11] {
        [
            self.packs(),
            self.layers(),
            self.blobs(),
            self.blobs().join("sha256"),
            self.blobs().join("sha512"),
            self.kept_blobs(),
            self.kept_blobs().join("sha256"),
            self.kept_blobs().join("sha512"),
            self.mounts(),
            self.snapshots(),
            self.staging(),
        ]
    }
    /// What every root has, whatever is in it: its own files and folders.
    pub(super) fn always(&self) -> impl Iterator<Item = PathBuf> {
        let files = [
            self.root.clone(),
            self.meta(),
            self.lock(),
            self.database(),
            self.damaged_database(),
            self.empty(),
        ];
        files.into_iter().chain(self.folders())
    }
    /// `path` as people know it: relative to the root.
    pub(super) fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .display()
            .to_string()
    }
    /// The segment a file of `packs/` holds.
    pub(super) fn segment_of(name: &str) -> Option<u32> {
        name.strip_suffix(".pack")?.parse().ok()
    }
}

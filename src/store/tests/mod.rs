//! The store as a whole, below ingest: one file a subject. Here is what they share.

mod crash;
mod damage;
mod history;
mod kept;
mod mounts;
mod names;
mod packs;
mod space;
mod speed;
mod trees;
mod uses;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use proptest::prelude::*;
use rustix::mount::{MountFlags, UnmountFlags};

use super::idx::{IdxParts, LayerParts};
use super::pack::{Extent, PackCommit};
use super::*;
use crate::image::{Compression, Digest, Platform};

struct Bench {
    dir: tempfile::TempDir,
    store: Option<Store>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open(&dir.path().join("root")).unwrap());
        Bench { dir, store }
    }
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }
    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(open(&self.root()).unwrap());
    }
    /// A copy of the root as it is now, which is what a crash leaves (everything written counts as durable).
    fn crash_copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        let status = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(self.root())
            .arg(copy.path())
            .status()
            .unwrap();
        assert!(status.success());
        copy
    }
}

fn open(root: &Path) -> Result<Store, Error> {
    let options = Options {
        root: root.to_path_buf(),
        limits: Limits::default(),
    };
    Store::open(options, Metrics::default())
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn diff_id(seed: u64) -> DiffId {
    DiffId(Digest::sha256(&seed.to_le_bytes()))
}

fn source(seed: u64) -> LayerSource {
    LayerSource {
        blob: Digest::sha256(format!("blob {seed}").as_bytes()),
        size: 1,
        compression: Compression::None,
    }
}

fn pack(store: &Store, contents: &[Vec<u8>]) -> Result<PackCommit, Error> {
    let mut writer = store.pack_writer()?;
    for content in contents {
        writer.begin(content.len() as u64)?;
        writer.write(content)?;
        writer.end()?;
    }
    writer.finish()
}

/// Commits a layer with these contents; what is in its tree does not matter here.
fn layer(store: &Store, seed: u64, contents: &[Vec<u8>], lease: &Lease) -> Result<Layer, Error> {
    let pack = pack(store, contents)?;
    let segments: BTreeSet<u32> = pack.used().iter().map(|(_, place)| place.segment).collect();
    let staging = store.staging()?;
    let path = store.root().join("staging");
    staging
        .create_erofs()?
        .write_all(&noise(seed, 9000))
        .map_err(|error| Error::io("write", &path, error))?;
    let parts = LayerParts {
        diff_id: diff_id(seed),
        source: source(seed),
        tar_bytes: 1,
        content_bytes: contents.iter().map(|content| content.len() as u64).sum(),
        entries: contents.len() as u64,
        implied: 0,
        pack,
        staging,
        idx: IdxParts {
            segments: segments.into_iter().collect(),
            inlines: Vec::new(),
            recipe: noise(seed, 777),
        },
    };
    store.commit_layer(parts, lease)
}

/// Ingests a tar as a layer.
fn ingest(store: &Store, tar: &[u8], lease: &Lease) -> Result<LayerRef, Error> {
    let source = LayerSource {
        blob: Digest::sha256(tar),
        size: tar.len() as u64,
        compression: Compression::None,
    };
    let layer = store.ingest(&source, &mut &*tar, &LayerCounters::default(), lease)?;
    Ok(LayerRef {
        diff_id: layer.diff_id,
        blob: source.blob,
        size: source.size,
        media_type: String::new(),
    })
}

/// Makes an image of ingested layers visible.
fn commit(store: &Store, seed: u64, layers: &[LayerRef], lease: &Lease) -> ImageId {
    let mut commit = image_commit(seed, &[], &[]);
    commit.record.layers = layers.to_vec();
    store.commit_image(&commit, lease).unwrap();
    commit.record.id
}

fn image_commit(seed: u64, layers: &[u64], names: &[&str]) -> ImageCommit {
    let config = Bytes::from(format!("config {seed}"));
    let manifest = Bytes::from(format!("manifest {seed}"));
    let target = Digest::sha256(&manifest);
    let names = names.iter().map(|name| Name {
        name: (*name).to_owned(),
        target: target.clone(),
    });
    ImageCommit {
        record: ImageRecord {
            id: ImageId(Digest::sha256(&config)),
            platform: Platform::host(),
            manifest: target.clone(),
            layers: layers
                .iter()
                .map(|seed| LayerRef {
                    diff_id: diff_id(*seed),
                    blob: source(*seed).blob,
                    size: 1,
                    media_type: String::new(),
                })
                .collect(),
            created: None,
            size: 1,
            user: String::new(),
            labels: BTreeMap::new(),
            pulled_at: 0,
            last_used_at: 0,
            pinned: false,
            staged: false,
        },
        names: names.collect(),
        blobs: vec![
            (Digest::sha256(&config), config),
            (Digest::sha256(&manifest), manifest),
        ],
    }
}

/// What `du -s --block-size=1` says.
fn du(root: &Path) -> u64 {
    fn walk(path: &Path) -> u64 {
        let meta = path.symlink_metadata().unwrap();
        let below: u64 = if meta.is_dir() {
            let entries = std::fs::read_dir(path).unwrap();
            entries.map(|entry| walk(&entry.unwrap().path())).sum()
        } else {
            0
        };
        meta.blocks() * 512 + below
    }
    walk(root)
}

fn pack_bytes(root: &Path) -> u64 {
    let packs = std::fs::read_dir(root.join("packs")).unwrap();
    packs
        .map(|pack| pack.unwrap().metadata().unwrap().blocks() * 512)
        .sum()
}

fn files_below(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for folder in ["packs", "layers", "blobs/sha256", "staging"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            found.insert(
                entry
                    .unwrap()
                    .path()
                    .strip_prefix(root)
                    .unwrap()
                    .to_path_buf(),
            );
        }
    }
    found
}

fn read(store: &Store, place: Extent) -> Vec<u8> {
    let mut bytes = vec![0; place.len as usize];
    let file = store.segment_file(place.segment).unwrap();
    file.read_exact_at(&mut bytes, place.offset()).unwrap();
    bytes
}

/// Every content of a layer is on disk as it was given.
fn assert_whole(store: &Store, seed: u64, contents: &[Vec<u8>]) {
    let opened = store.open_layer(&diff_id(seed)).unwrap();
    let found: BTreeSet<Vec<u8>> = opened
        .extents
        .iter()
        .map(|(_, place)| read(store, *place))
        .collect();
    let wanted: BTreeSet<Vec<u8>> = contents.iter().cloned().collect();
    assert!(found == wanted, "layer {seed} is not what it was");
    assert_eq!(opened.recipe, noise(seed, 777));
}

fn assert_counted(store: &Store) {
    let (said, is) = (store.usage().stored_bytes, du(store.root()));
    assert!(said.abs_diff(is) * 100 <= is, "{said} said, {is} on disk");
}

/// Contents of a layer: some it shares with its neighbours, one of its own.
fn contents_of(layer: u64) -> Vec<Vec<u8>> {
    vec![
        noise(layer, 300_000 + 1000 * layer as usize),
        noise(100 + layer / 2, 5000),
        noise(200 + layer / 3, 1_200_000),
        noise(7, 4096),
    ]
}

/// Unmounts at the end of a test, whatever its outcome.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

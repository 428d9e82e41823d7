//! The store as a whole, below ingest: packs, commits, removal, recovery, damage.

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Lengths around blocks and buffers, many contents twice, given in pieces of any size.
    #[test]
    fn packs_keep_each_content_once(
        picks in proptest::collection::vec((0_u64..5, 0_usize..12, 1_usize..2_000_000), 1..14),
        split in any::<proptest::sample::Index>(),
    ) {
        const LENGTHS: [usize; 12] = [
            1, 4095, 4096, 4097, 12_288, (1 << 20) - 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1,
            (2 << 20) + 4096, (3 << 20) + 17, 3 << 20,
        ];
        let bench = Bench::new();
        let store = bench.store();
        let lease = store.lease();
        // Some contents are in the store already.
        let contents: Vec<Vec<u8>> = picks.iter().map(|(seed, length, _)| noise(*seed, LENGTHS[*length])).collect();
        let early = split.index(contents.len());
        layer(store, 1, &contents[..early], &lease).unwrap();

        let mut writer = store.pack_writer().unwrap();
        let mut placed = Vec::new();
        for (content, (_, _, piece)) in contents.iter().zip(&picks) {
            writer.begin(content.len() as u64).unwrap();
            for piece in content.chunks(*piece) {
                writer.write(piece).unwrap();
            }
            placed.push(writer.end().unwrap());
        }
        let commit = writer.finish().unwrap();
        let mut seen: BTreeSet<&Vec<u8>> = contents[..early].iter().collect();
        let mut places: BTreeMap<Vec<u8>, Extent> = BTreeMap::new();
        for (content, placed) in contents.iter().zip(&placed) {
            prop_assert_eq!(placed.deduplicated, !seen.insert(content));
            prop_assert!(blake3::hash(content) == placed.hash.0);
            prop_assert!(read(store, placed.extent) == *content);
            prop_assert_eq!(*places.entry(content.clone()).or_insert(placed.extent), placed.extent);
        }
        prop_assert_eq!(commit.used().len(), places.len());
        // Nothing overlaps, and nothing lies between.
        let distinct: BTreeSet<&Vec<u8>> = contents.iter().collect();
        let wanted: u64 = distinct.iter().map(|content| contents::occupied(content.len() as u64)).sum();
        let length: u64 = std::fs::read_dir(bench.root().join("packs")).unwrap()
            .map(|pack| pack.unwrap().metadata().unwrap().len()).sum();
        prop_assert_eq!(length, wanted);
        drop(commit);
        drop(lease);
        prop_assert_eq!(files_below(&bench.root()), BTreeSet::new());
        assert_counted(store);
    }
}

/// What happens to a node over time.
#[derive(Clone, Debug)]
enum Op {
    Pull(u64, Vec<u64>),
    FailedPull(u64),
    Remove(u64),
    Reopen,
    Fsck,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_u64..4, proptest::collection::vec(0_u64..6, 1..4)).prop_map(|(image, layers)| Op::Pull(image, layers)),
        1 => (0_u64..6).prop_map(Op::FailedPull),
        3 => (0_u64..4).prop_map(Op::Remove),
        1 => Just(Op::Reopen),
        1 => Just(Op::Fsck),
    ]
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_history_leaves_what_is_live_and_nothing_else(ops in proptest::collection::vec(op(), 1..16)) {
        let mut bench = Bench::new();
        let mut model: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for op in ops {
            let store = bench.store().clone();
            match op {
                Op::Pull(image, layers) => {
                    // An image's id says what its layers are.
                    let layers = model.get(&image).cloned().unwrap_or(layers);
                    let lease = store.lease();
                    for seed in &layers {
                        if store.layer_of_blob(&source(*seed).blob, &lease).is_none() {
                            layer(&store, *seed, &contents_of(*seed), &lease).unwrap();
                        }
                    }
                    let name = format!("example.org/i:{image}");
                    store.commit_image(&image_commit(image, &layers, &[&name]), &lease).unwrap();
                    model.insert(image, layers);
                }
                Op::FailedPull(seed) => {
                    let lease = store.lease();
                    layer(&store, seed, &contents_of(seed), &lease).unwrap();
                }
                Op::Remove(image) => {
                    let id = image_commit(image, &[], &[]).record.id;
                    let removed = store.remove_image(&id).unwrap();
                    prop_assert_eq!(removed.is_some(), model.remove(&image).is_some());
                }
                Op::Reopen => {
                    drop(store);
                    bench.reopen();
                }
                Op::Fsck => prop_assert_eq!(store.fsck(false, &mut |_, _| {}).unwrap().damaged, vec![]),
            }
            let store = bench.store();
            prop_assert_eq!(store.images().len(), model.len());
            let live: BTreeSet<u64> = model.values().flatten().copied().collect();
            prop_assert_eq!(store.usage().layers, live.len() as u64);
            for seed in &live {
                assert_whole(store, *seed, &contents_of(*seed));
            }
            let distinct: BTreeSet<Vec<u8>> = live.iter().flat_map(|seed| contents_of(*seed)).collect();
            let wanted: u64 = distinct.iter().map(|content| contents::occupied(content.len() as u64)).sum();
            // The file system's bookkeeping of holes aside.
            let is = pack_bytes(&bench.root());
            prop_assert!(is >= wanted && is <= wanted + 32 * 4096, "{} on disk, {} live", is, wanted);
            assert_counted(store);
        }
    }
}

#[test]
fn ingests_at_once_share_and_keep_their_contents() {
    let bench = Bench::new();
    let store = bench.store();
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            scope.spawn(move || {
                for round in 0..12_u64 {
                    let seeds = [worker % 2, 2 + (worker + round) % 4];
                    let lease = store.lease();
                    for seed in seeds {
                        layer(store, seed, &contents_of(seed), &lease).unwrap();
                    }
                    let image = 10 * worker + round % 2;
                    store
                        .commit_image(&image_commit(image, &seeds, &[]), &lease)
                        .unwrap();
                    for seed in seeds {
                        assert_whole(store, seed, &contents_of(seed));
                    }
                    // Gives up half way, with writes under way.
                    let mut writer = store.pack_writer().unwrap();
                    writer.begin(9 << 20).unwrap();
                    writer.write(&noise(1000 + worker, 5 << 20)).unwrap();
                    drop(writer);
                    drop(lease);
                    if round % 3 > 0 {
                        let id = image_commit(image, &[], &[]).record.id;
                        store.remove_image(&id).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(store.fsck(false, &mut |_, _| {}).unwrap().damaged, vec![]);
    for image in store.images() {
        store.remove_image(&image.record.id).unwrap();
    }
    drop(store.lease());
    let usage = store.usage();
    assert_eq!((usage.images, usage.layers), (0, 0));
    assert_counted(store);
    // An ingest that ended after the last removal may have left an empty segment to the next one.
    assert!(pack_bytes(&bench.root()) <= 64 * 4096);
}

#[test]
fn a_crash_anywhere_in_a_pull_leaves_what_was_visible() {
    let bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    layer(store, 1, &contents_of(1), &lease).unwrap();
    store
        .commit_image(&image_commit(1, &[1], &["r/a:1"]), &lease)
        .unwrap();
    let (files, bytes) = (files_below(&bench.root()), pack_bytes(&bench.root()));

    let mut copies = vec![("before", bench.crash_copy())];
    let mut writer = store.pack_writer().unwrap();
    writer.begin(5 << 20).unwrap();
    writer.write(&noise(99, 4 << 20)).unwrap();
    copies.push(("contents half written", bench.crash_copy()));
    drop(writer);
    let packed = pack(store, &contents_of(3)).unwrap();
    copies.push(("contents written", bench.crash_copy()));
    drop(packed);
    // Renamed, but the transaction did not happen.
    let name = bench
        .root()
        .join("layers")
        .join(format!("{}.erofs", diff_id(3).0.hex()));
    std::fs::write(&name, "x").unwrap();
    copies.push(("files renamed", bench.crash_copy()));
    std::fs::remove_file(&name).unwrap();
    layer(store, 3, &contents_of(3), &lease).unwrap();
    copies.push(("layer committed, image not", bench.crash_copy()));

    for (stage, copy) in copies {
        let root = copy.path().join("root");
        let store = open(&root).unwrap();
        assert_eq!(store.images().len(), 1, "{stage}");
        assert_eq!(store.image_named("r/a:1").unwrap().record.layers.len(), 1);
        assert_whole(&store, 1, &contents_of(1));
        assert_eq!(files_below(&root), files, "{stage}");
        assert!(pack_bytes(&root) <= bytes + 8 * 4096, "{stage}");
        assert_eq!(
            store.fsck(false, &mut |_, _| {}).unwrap().damaged,
            vec![],
            "{stage}"
        );
        assert_counted(&store);
    }
}

#[test]
fn a_crash_between_the_removal_and_its_freeing_is_made_good() {
    let bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    layer(store, 1, &contents_of(1), &lease).unwrap();
    layer(store, 4, &contents_of(4), &lease).unwrap();
    store
        .commit_image(&image_commit(1, &[1], &["r/a:1"]), &lease)
        .unwrap();
    store
        .commit_image(&image_commit(2, &[4], &["r/b:1"]), &lease)
        .unwrap();
    // While the lease lives the removal is a transaction and no more: what a crash right after it leaves.
    let removed = store
        .remove_image(&image_commit(2, &[], &[]).record.id)
        .unwrap()
        .unwrap();
    assert_eq!(removed.names, ["r/b:1"]);
    let copy = bench.crash_copy();
    let before = pack_bytes(&bench.root());
    drop(lease);
    let after = pack_bytes(&bench.root());
    assert!(after + 1_000_000 < before);
    let root = copy.path().join("root");
    let store = open(&root).unwrap();
    assert_whole(&store, 1, &contents_of(1));
    assert!(pack_bytes(&root) <= after + 8 * 4096);
    assert_eq!(files_below(&root), files_below(&bench.root()));
}

#[test]
fn damaged_contents_are_quarantined_and_healed_by_a_pull() {
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    for (image, seed) in [(1, 2), (2, 3), (3, 5)] {
        layer(store, seed, &contents_of(seed), &lease).unwrap();
        let name = format!("r/i:{image}");
        store
            .commit_image(&image_commit(image, &[seed], &[&name]), &lease)
            .unwrap();
    }
    drop(lease);
    // A content that layers 2 and 3 share, but 5 does not.
    let opened = store.open_layer(&diff_id(2)).unwrap();
    let (_, place) = *opened
        .extents
        .iter()
        .find(|(_, place)| place.len == 5000)
        .unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(bench.root().join(format!("packs/{}.pack", place.segment)))
        .unwrap();
    file.write_all_at(b"damage", place.offset() + 100).unwrap();

    let report = store.fsck(false, &mut |_, _| {}).unwrap();
    let mut images: Vec<String> = report
        .damaged
        .iter()
        .flat_map(|damage| damage.images.clone())
        .collect();
    images.sort();
    assert_eq!(images, ["r/i:1", "r/i:2"]);
    assert!(report.damaged.iter().all(|damage| damage.kind == "pack"));
    for reopened in [false, true] {
        if reopened {
            bench.reopen();
        }
        let store = bench.store();
        assert!(store.image_named("r/i:1").is_none() && store.image_named("r/i:2").is_none());
        assert_eq!(store.images().len(), 1);
        assert!(store.layer(&diff_id(2), &store.lease()).is_none());
        assert!(
            store
                .layer_of_blob(&source(2).blob, &store.lease())
                .is_none()
        );
        assert_whole(store, 5, &contents_of(5));
    }
    let store = bench.store();
    let lease = store.lease();
    layer(store, 2, &contents_of(2), &lease).unwrap();
    assert!(store.image_named("r/i:1").is_some());
    assert!(store.image_named("r/i:2").is_none());
    layer(store, 3, &contents_of(3), &lease).unwrap();
    for seed in [2, 3, 5] {
        assert_whole(store, seed, &contents_of(seed));
    }
    assert_eq!(store.fsck(false, &mut |_, _| {}).unwrap().damaged, vec![]);
    drop(lease);
    bench.reopen();
    for image in bench.store().images() {
        bench.store().remove_image(&image.record.id).unwrap();
    }
    assert_eq!(files_below(&bench.root()), BTreeSet::new());
}

#[test]
fn a_quarantined_layer_that_shares_contents_takes_none_with_it() {
    for _ in 0..4 {
        let mut bench = Bench::new();
        let store = bench.store();
        let lease = store.lease();
        for seed in [2, 3] {
            layer(store, seed, &contents_of(seed), &lease).unwrap();
            store
                .commit_image(&image_commit(seed, &[seed], &[]), &lease)
                .unwrap();
        }
        drop(lease);
        std::fs::remove_file(store.inner.layout.erofs(&diff_id(3))).unwrap();
        bench.reopen();
        let store = bench.store();
        assert_eq!(store.images().len(), 1);
        store
            .remove_image(&image_commit(3, &[], &[]).record.id)
            .unwrap();
        assert_whole(store, 2, &contents_of(2));
    }
}

#[test]
fn layers_whose_files_are_damaged_or_gone_are_found_and_healed() {
    for (file, cut) in [
        ("erofs", true),
        ("erofs", false),
        ("idx", true),
        ("idx", false),
    ] {
        let mut bench = Bench::new();
        let store = bench.store();
        let lease = store.lease();
        layer(store, 2, &contents_of(2), &lease).unwrap();
        store
            .commit_image(&image_commit(1, &[2], &["r/a:1"]), &lease)
            .unwrap();
        drop(lease);
        let path = bench
            .root()
            .join("layers")
            .join(format!("{}.{file}", diff_id(2).0.hex()));
        if cut {
            std::fs::remove_file(&path).unwrap();
        } else {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"damage", 60).unwrap();
        }
        let error = store.open_layer(&diff_id(2)).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(store.images().is_empty());
        bench.reopen();
        let store = bench.store();
        assert!(store.images().is_empty());
        let lease = store.lease();
        layer(store, 2, &contents_of(2), &lease).unwrap();
        drop(lease);
        assert!(store.image_named("r/a:1").is_some());
        assert_whole(store, 2, &contents_of(2));
        bench.reopen();
        bench
            .store()
            .remove_image(&image_commit(1, &[], &[]).record.id)
            .unwrap();
        assert_eq!(files_below(&bench.root()), BTreeSet::new());
    }
}

#[test]
fn a_missing_or_short_pack_is_found_at_start() {
    for short in [false, true] {
        let mut bench = Bench::new();
        let lease = bench.store().lease();
        layer(bench.store(), 2, &contents_of(2), &lease).unwrap();
        bench
            .store()
            .commit_image(&image_commit(1, &[2], &[]), &lease)
            .unwrap();
        drop(lease);
        let path = bench.root().join("packs/0.pack");
        if short {
            std::fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(8192)
                .unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        bench.reopen();
        assert!(bench.store().images().is_empty());
        let lease = bench.store().lease();
        layer(bench.store(), 2, &contents_of(2), &lease).unwrap();
        drop(lease);
        assert_eq!(bench.store().images().len(), 1);
        assert_whole(bench.store(), 2, &contents_of(2));
        bench.reopen();
        assert_whole(bench.store(), 2, &contents_of(2));
    }
}

#[test]
fn a_damaged_database_is_moved_aside_and_a_pull_heals() {
    let make = || {
        let mut bench = Bench::new();
        let lease = bench.store().lease();
        layer(bench.store(), 2, &contents_of(2), &lease).unwrap();
        bench
            .store()
            .commit_image(&image_commit(1, &[2], &["r/a:1"]), &lease)
            .unwrap();
        drop(lease);
        bench.store = None;
        bench
    };
    let whole = std::fs::read(make().root().join("larder.redb")).unwrap();
    let mut shapes = vec![
        b"not a database".to_vec(),
        whole[..5000].to_vec(),
        vec![0; 100_000],
    ];
    for at in (0..whole.len()).step_by(whole.len() / 12) {
        let mut bytes = whole.clone();
        let end = (at + 4096).min(bytes.len());
        bytes[at..end].fill(0xa5);
        shapes.push(bytes);
    }
    for shape in shapes {
        let mut bench = make();
        std::fs::write(bench.root().join("larder.redb"), &shape).unwrap();
        bench.store = Some(open(&bench.root()).unwrap());
        let store = bench.store();
        let lease = store.lease();
        layer(store, 2, &contents_of(2), &lease).unwrap();
        store
            .commit_image(&image_commit(1, &[2], &["r/a:1"]), &lease)
            .unwrap();
        drop(lease);
        assert_whole(store, 2, &contents_of(2));
        bench.reopen();
        assert!(bench.store().image_named("r/a:1").is_some());
        assert_counted(bench.store());
    }
}

#[test]
fn roots_that_cannot_be_are_refused_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for root in [&file, &file.join("below")] {
        let error = open(root).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    let store = open(&root).unwrap();
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o700);
    match open(&root) {
        Err(Error::Locked { pid, .. }) => assert_eq!(pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    drop(store);
    open(&root).unwrap();
}

#[test]
fn names_move_and_uses_are_kept() {
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    layer(store, 1, &contents_of(1), &lease).unwrap();
    let digest = "r/a@sha256:1";
    store
        .commit_image(&image_commit(1, &[1], &["r/a:z", "r/a:b", digest]), &lease)
        .unwrap();
    store
        .commit_image(&image_commit(2, &[1], &["r/a:z", "r/a:b"]), &lease)
        .unwrap();
    let (first, second) = (
        image_commit(1, &[], &[]).record.id,
        image_commit(2, &[], &[]).record.id,
    );
    let names = |store: &Store, id: &ImageId| -> Vec<String> {
        let image = store.image(id).unwrap();
        image.names.iter().map(|name| name.name.clone()).collect()
    };
    assert_eq!(names(store, &first), [digest]);
    assert_eq!(names(store, &second), ["r/a:b", "r/a:z"]);
    store.touch_image(&first, 42);
    assert_eq!(store.image(&first).unwrap().record.last_used_at, 42);
    store.pin_image(&second, true).unwrap();
    drop(lease);
    bench.reopen();
    let store = bench.store();
    assert_eq!(store.image(&first).unwrap().record.last_used_at, 42);
    assert!(store.image(&second).unwrap().record.pinned);
    store.touch_image(&first, 77);
    bench.reopen();
    let store = bench.store();
    assert_eq!(store.image(&first).unwrap().record.last_used_at, 77);
    let shared = store.remove_image(&first).unwrap().unwrap();
    assert_eq!(
        (shared.names.as_slice(), shared.layers.len()),
        (&[digest.to_owned()][..], 0)
    );
    assert_whole(store, 1, &contents_of(1));
    let last = store.remove_image(&second).unwrap().unwrap();
    assert_eq!(last.layers, [diff_id(1)]);
    assert!(last.freed_bytes > 1_500_000);
    assert_eq!(store.remove_image(&second).unwrap(), None);
    assert_eq!(files_below(&bench.root()), BTreeSet::new());
}

/// Unmounts at the end of a test, whatever its outcome.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let options = c"size=12m";
    if let Err(error) =
        rustix::mount::mount("larder-test", &disk, "tmpfs", MountFlags::empty(), options)
    {
        eprintln!("skipped: a_full_disk_is_said_and_leaves_nothing: no tmpfs: {error}");
        return;
    }
    let _unmount = Unmount(disk.clone());
    let root = disk.join("root");
    let store = open(&root).unwrap();
    let lease = store.lease();
    layer(&store, 1, &contents_of(1), &lease).unwrap();
    store
        .commit_image(&image_commit(1, &[1], &["r/a:1"]), &lease)
        .unwrap();
    let (files, bytes) = (files_below(&root), du(&root));
    let error = layer(&store, 50, &[noise(50, 20 << 20)], &lease).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert_eq!(files_below(&root), files);
    assert!(du(&root) <= bytes);
    assert_counted(&store);
    // To the last byte: small writes fail too, and whatever failed works again once there is space.
    let ballast = disk.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let failed = layer(&store, 4, &contents_of(4), &lease).unwrap_err();
    assert!(matches!(failed, Error::NoSpace { .. }), "{failed}");
    let blob = vec![noise(5, 4000)];
    let failed = layer(&store, 60, &blob, &lease);
    assert!(matches!(failed, Err(Error::NoSpace { .. })), "{failed:?}");
    let id = image_commit(1, &[], &[]).record.id;
    assert!(store.image(&id).is_some());
    assert_eq!(files_below(&root), files);
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    layer(&store, 4, &contents_of(4), &lease).unwrap();
    store
        .commit_image(&image_commit(2, &[4], &[]), &lease)
        .unwrap();
    assert_whole(&store, 1, &contents_of(1));
    assert_whole(&store, 4, &contents_of(4));
}

#[test]
fn images_are_mounted_and_keep_their_bytes_while_they_are() {
    let name = "images_are_mounted_and_keep_their_bytes_while_they_are";
    let mut bench = Bench::new();
    let target = bench.dir.path().join("target");
    let _unmount = Unmount(target.clone());
    let store = bench.store();
    let lease = store.lease();
    let mut refs = Vec::new();
    for seed in 0..3_u64 {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in [
            (format!("own-{seed}"), noise(seed, 300_000)),
            ("top".into(), noise(50 + seed, 2000)),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes.as_slice())
                .unwrap();
        }
        let blob = tar.into_inner().unwrap();
        let source = LayerSource {
            blob: Digest::sha256(&blob),
            size: blob.len() as u64,
            compression: Compression::None,
        };
        let layer = store
            .ingest(
                &source,
                &mut blob.as_slice(),
                &LayerCounters::default(),
                &lease,
            )
            .unwrap();
        refs.push(LayerRef {
            diff_id: layer.diff_id,
            blob: source.blob,
            size: source.size,
            media_type: String::new(),
        });
    }
    let mut images = Vec::new();
    for (seed, layers) in [(1, &refs[..]), (2, &refs[..1])] {
        let mut commit = image_commit(seed, &[], &[]);
        commit.record.layers = layers.to_vec();
        images.push(commit.record.id.clone());
        store.commit_image(&commit, &lease).unwrap();
    }
    drop(lease);
    let single = bench.dir.path().join("single");
    let _single = Unmount(single.clone());
    for (id, at) in images.iter().zip([&target, &single]) {
        match store.mount(id, at) {
            Ok(()) => {}
            Err(Error::MountUnsupported { cause }) => return eprintln!("skipped: {name}: {cause}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(matches!(
        store.mount(&images[0], &target),
        Err(Error::Busy { .. })
    ));
    let check = || {
        for seed in 0..3 {
            assert!(
                std::fs::read(target.join(format!("own-{seed}"))).unwrap() == noise(seed, 300_000)
            );
        }
        assert!(std::fs::read(target.join("top")).unwrap() == noise(52, 2000));
        assert!(std::fs::read(single.join("top")).unwrap() == noise(50, 2000));
        assert!(std::fs::write(target.join("new"), "").is_err());
    };
    check();
    store.remove_image(&images[0]).unwrap().unwrap();
    assert_eq!(store.images().len(), 1);
    check();
    bench.reopen();
    let store = bench.store();
    assert_eq!(store.mounts().len(), 2);
    assert_eq!(store.fsck(true, &mut |_, _| {}).unwrap().damaged, vec![]);
    check();
    let before = store.usage().stored_bytes;
    store.umount(&target).unwrap();
    assert!(store.usage().stored_bytes + 600_000 < before);
    assert_eq!(store.usage().layers, 1);
    assert!(std::fs::read(single.join("top")).unwrap() == noise(50, 2000));
    store.umount(&single).unwrap();
    assert!(store.umount(&single).is_err());
    assert!(store.mounts().is_empty());
    store.remove_image(&images[1]).unwrap();
    assert_eq!(files_below(&bench.root()), BTreeSet::new());
    assert_counted(store);
}

/// Numbers for people: `cargo test --release --lib store::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn speed() {
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let timed = |what: &str, began: std::time::Instant| eprintln!("{what}: {:?}", began.elapsed());
    for seed in 0..7_u64 {
        let contents: Vec<Vec<u8>> = (0..15_000)
            .map(|n| noise(seed * 100_000 + n, 1500))
            .collect();
        let packed = pack(store, &contents).unwrap();
        let staging = store.staging().unwrap();
        staging
            .create_erofs()
            .unwrap()
            .write_all(&noise(seed, 3 << 20))
            .unwrap();
        let parts = LayerParts {
            diff_id: diff_id(seed),
            source: source(seed),
            tar_bytes: 1,
            content_bytes: 1,
            entries: 1,
            pack: packed,
            staging,
            idx: IdxParts {
                segments: vec![0],
                inlines: Vec::new(),
                recipe: noise(seed, 1 << 20),
            },
        };
        let began = std::time::Instant::now();
        store.commit_layer(parts, &lease).unwrap();
        timed("commit_layer, 15k contents", began);
    }
    store
        .commit_image(&image_commit(1, &[0, 1, 2], &[]), &lease)
        .unwrap();
    store
        .commit_image(&image_commit(2, &[3, 4, 5, 6], &[]), &lease)
        .unwrap();
    drop(lease);
    let began = std::time::Instant::now();
    bench.reopen();
    timed("close and open, 105k contents", began);
    let began = std::time::Instant::now();
    bench
        .store()
        .remove_image(&image_commit(1, &[], &[]).record.id)
        .unwrap();
    timed("remove, 45k contents", began);
}

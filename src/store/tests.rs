//! The store as a whole: layers in, images visible, crashes survived, everything given back.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::image::{Compression, Digest, Platform};

/// Deterministic bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn open(root: &Path) -> Store {
    let options = Options {
        root: root.to_path_buf(),
        limits: Limits::default(),
    };
    Store::open(options, Metrics::default()).unwrap()
}

fn ingest(store: &Store, tar: &[u8], lease: &Lease) -> Result<Layer, Error> {
    let blob = gzip(tar);
    let source = LayerSource {
        blob: Digest::sha256(&blob),
        size: blob.len() as u64,
        compression: Compression::Gzip,
    };
    store.ingest(&source, &mut &blob[..], &LayerCounters::default(), lease)
}

fn commit(store: &Store, name: &str, layers: &[&Layer], lease: &Lease) -> Arc<Image> {
    let config = Bytes::from(format!("config of {name}"));
    let id = ImageId(Digest::sha256(&config));
    let record = ImageRecord {
        id: id.clone(),
        platform: Platform::host(),
        manifest: id.0.clone(),
        layers: layers
            .iter()
            .map(|layer| LayerRef {
                diff_id: layer.diff_id.clone(),
                blob: layer.diff_id.0.clone(),
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
    };
    let commit = ImageCommit {
        record,
        names: vec![Name {
            name: name.to_owned(),
            target: id.0.clone(),
        }],
        blobs: vec![(id.0, config)],
    };
    store.commit_image(commit, lease).unwrap()
}

/// What a directory occupies, counted without the store's help.
fn du(path: &Path) -> u64 {
    let meta = fs::symlink_metadata(path).unwrap();
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sum += du(&entry.unwrap().path());
        }
    }
    sum
}

fn exported(store: &Store, layer: &Layer) -> Vec<u8> {
    let mut out = Vec::new();
    store.export_tar(&layer.diff_id, &mut out).unwrap();
    out
}

#[test]
fn an_image_comes_stays_and_goes() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let empty = du(root.path());
    let (big, small) = (noise(1, 3_000_000), noise(2, 700));
    let first = tar(&[("a/big", &big), ("a/small", &small), ("a/again", &big)]);
    let second = tar(&[("b/same", &big), ("b/other", &noise(3, 5000))]);
    let lease = store.lease();
    let one = ingest(&store, &first, &lease).unwrap();
    let two = ingest(&store, &second, &lease).unwrap();
    assert!(two.added_bytes < 100_000, "{two:?}");
    let image = commit(&store, "docker.io/library/x:1", &[&one, &two], &lease);
    drop(lease);
    assert_eq!(store.usage().stored_bytes, du(root.path()));
    assert_eq!(store.usage().layers, 2);
    drop(store);

    let store = open(root.path());
    assert_eq!(store.images(), [image.clone()]);
    assert_eq!(exported(&store, &one), first);
    assert_eq!(exported(&store, &two), second);
    let report = store.fsck(false, &mut |_, _| {}).unwrap();
    assert!(report.damaged.is_empty(), "{report:?}");
    let removed = store.remove_image(&image.record.id).unwrap().unwrap();
    assert_eq!(removed.layers.len(), 2);
    assert!(removed.freed_bytes > 3_000_000);
    assert!(store.remove_image(&image.record.id).unwrap().is_none());
    assert_eq!(store.usage().stored_bytes, du(root.path()));
    // The database may have grown; contents must be gone.
    assert!(du(root.path()) < empty + 200_000);
}

#[test]
fn shared_contents_outlive_the_first_owner() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let shared = noise(1, 2_500_000);
    let lease = store.lease();
    let one = ingest(
        &store,
        &tar(&[("x", &shared), ("y", &noise(2, 900_000))]),
        &lease,
    )
    .unwrap();
    let second = tar(&[("z", &shared)]);
    let two = ingest(&store, &second, &lease).unwrap();
    let first = commit(&store, "one", &[&one], &lease);
    commit(&store, "two", &[&two], &lease);
    drop(lease);
    let removed = store.remove_image(&first.record.id).unwrap().unwrap();
    assert!(removed.freed_bytes > 900_000 && removed.freed_bytes < 1_200_000);
    assert_eq!(exported(&store, &two), second);
    drop(store);
    assert_eq!(exported(&open(root.path()), &two), second);
}

#[test]
fn a_failed_ingest_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let before = du(root.path());
    let lease = store.lease();
    let good = tar(&[("x", &noise(1, 3_000_000))]);
    let blob = gzip(&good);
    let source = LayerSource {
        blob: Digest::sha256(b"something else"),
        size: blob.len() as u64,
        compression: Compression::Gzip,
    };
    let error = store
        .ingest(&source, &mut &blob[..], &LayerCounters::default(), &lease)
        .unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let short = LayerSource {
        blob: Digest::sha256(&blob),
        ..source
    };
    store
        .ingest(
            &short,
            &mut &blob[..blob.len() / 2],
            &LayerCounters::default(),
            &lease,
        )
        .unwrap_err();
    drop(lease);
    assert_eq!(du(root.path()), before);
    // And a layer that no image took.
    let lease = store.lease();
    ingest(&store, &good, &lease).unwrap();
    drop(lease);
    assert_eq!(store.usage().layers, 0);
    assert!(du(root.path()) < before + 100_000);
}

#[test]
fn a_crash_before_the_image_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let before = du(root.path());
    let lease = store.lease();
    ingest(&store, &tar(&[("x", &noise(1, 3_000_000))]), &lease).unwrap();
    let crashed = tempfile::tempdir().unwrap();
    copy(root.path(), crashed.path());
    // What an ingest under way would have appended, and left in staging.
    fs::write(crashed.path().join("packs/77.pack"), noise(5, 10_000)).unwrap();
    fs::create_dir(crashed.path().join("staging/0")).unwrap();
    fs::write(crashed.path().join("staging/0/erofs"), b"half").unwrap();
    let store = open(crashed.path());
    assert_eq!(store.usage().layers, 0);
    let after = du(crashed.path());
    let database = fs::metadata(crashed.path().join("larder.redb"))
        .unwrap()
        .len();
    assert!(
        after < before + 400_000,
        "{before} {after}, database {database}"
    );
    assert_eq!(
        fs::read_dir(crashed.path().join("packs")).unwrap().count(),
        0
    );
    drop(lease);
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn one_process_a_root() {
    let root = tempfile::tempdir().unwrap();
    let _store = open(root.path());
    let options = Options {
        root: root.path().to_path_buf(),
        limits: Limits::default(),
    };
    let error = Store::open(options, Metrics::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&std::process::id().to_string()), "{text}");
}

#[test]
fn damage_is_found_named_and_healed() {
    let root = tempfile::tempdir().unwrap();
    let layer_tar = tar(&[("x", &noise(1, 3_000_000)), ("y", &noise(2, 100))]);
    let good = {
        let store = open(root.path());
        let lease = store.lease();
        let layer = ingest(&store, &layer_tar, &lease).unwrap();
        commit(&store, "docker.io/library/x:1", &[&layer], &lease);
        layer
    };
    let erofs = format!("layers/{}.erofs", good.diff_id.0.hex());
    let idx = format!("layers/{}.idx", good.diff_id.0.hex());
    for (file, at, kind) in [
        ("packs/0.pack", 1_000_000, "pack"),
        (erofs.as_str(), 1030, "layer"),
        (idx.as_str(), 100, "layer"),
    ] {
        let path = root.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let store = open(root.path());
        let report = store.fsck(false, &mut |_, _| {}).unwrap();
        assert!(
            report
                .damaged
                .iter()
                .any(|d| d.kind == kind && d.images == ["docker.io/library/x:1"]),
            "{file}: {report:?}"
        );
        assert!(store.images().is_empty());
        let lease = store.lease();
        assert!(store.layer(&good.diff_id, &lease).is_none());
        let layer = ingest(&store, &layer_tar, &lease).unwrap();
        commit(&store, "docker.io/library/x:1", &[&layer], &lease);
        drop(lease);
        let report = store.fsck(false, &mut |_, _| {}).unwrap();
        assert!(report.damaged.is_empty(), "{file}: {report:?}");
        assert_eq!(exported(&store, &layer), layer_tar);
        assert_eq!(store.images().len(), 1);
        // A damaged pack may keep the extent until the next start.
        drop(store);
        fs::rename(
            fs::read_dir(root.path().join("packs"))
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path(),
            root.path().join("packs/0.pack"),
        )
        .ok();
        drop(open(root.path()));
    }
}

#[test]
fn a_broken_database_begins_anew() {
    let root = tempfile::tempdir().unwrap();
    {
        let store = open(root.path());
        let lease = store.lease();
        let layer = ingest(&store, &tar(&[("x", &noise(1, 300_000))]), &lease).unwrap();
        commit(&store, "x", &[&layer], &lease);
    }
    fs::write(root.path().join("larder.redb"), noise(9, 50_000)).unwrap();
    let store = open(root.path());
    assert!(store.images().is_empty());
    let report = store.fsck(false, &mut |_, _| {}).unwrap();
    assert_eq!(report.damaged[0].kind, "database");
    assert_eq!(fs::read_dir(root.path().join("packs")).unwrap().count(), 0);
    let lease = store.lease();
    let layer = ingest(&store, &tar(&[("x", &noise(1, 300_000))]), &lease).unwrap();
    commit(&store, "x", &[&layer], &lease);
}

#[test]
fn scrub_goes_round() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let lease = store.lease();
    for n in 0..3 {
        let layer = ingest(
            &store,
            &tar(&[("x", &noise(n, 200_000)), ("y", &noise(n + 10, 200_000))]),
            &lease,
        )
        .unwrap();
        commit(&store, &format!("x{n}"), &[&layer], &lease);
    }
    let mut bytes = 0;
    for _ in 0..6 {
        bytes += store.scrub_step(1).unwrap().bytes;
    }
    assert_eq!(bytes, 1_200_000);
    let mut pack = fs::read(root.path().join("packs/0.pack")).unwrap();
    let at = pack.len() - 8000;
    pack[at] ^= 1;
    fs::write(root.path().join("packs/0.pack"), pack).unwrap();
    let mut found = 0;
    for _ in 0..7 {
        found += store.scrub_step(1).unwrap().damaged.len();
    }
    assert_eq!(found, 1);
    assert_eq!(store.images().len(), 2);
}

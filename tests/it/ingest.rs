//! Layers through a real store: what goes in comes out, bit for bit, or is refused and leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use larder::image::{Compression, DiffId, Digest, ImageId, Platform};
use larder::store::{
    Error, ImageCommit, ImageRecord, Layer, LayerCounters, LayerRef, LayerSource, Lease, Limits,
    Metrics, Options, Store,
};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use crate::support::skip;

struct Bench {
    store: Store,
    root: tempfile::TempDir,
    leases: RefCell<Vec<Lease>>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = Options {
            root: root.path().join("root"),
            limits,
        };
        let store = Store::open(options, Metrics::default()).unwrap();
        Bench {
            store,
            root,
            leases: RefCell::default(),
        }
    }

    /// Ingests and keeps the layer for the whole test.
    fn ingest(
        &self,
        blob: &[u8],
        compression: Compression,
    ) -> Result<(Layer, LayerCounters), Error> {
        let source = LayerSource {
            blob: Digest::sha256(blob),
            size: blob.len() as u64,
            compression,
        };
        self.ingest_as(&source, blob)
    }

    fn ingest_as(
        &self,
        source: &LayerSource,
        blob: &[u8],
    ) -> Result<(Layer, LayerCounters), Error> {
        let counters = LayerCounters::default();
        let lease = self.store.lease();
        let layer = self
            .store
            .ingest(source, &mut Cursor::new(blob), &counters, &lease)?;
        self.leases.borrow_mut().push(lease);
        Ok((layer, counters))
    }

    fn export(&self, diff_id: &DiffId) -> Vec<u8> {
        let mut tar = Vec::new();
        self.store.export_tar(diff_id, &mut tar).unwrap();
        tar
    }

    fn unpack(&self, layers: &[&Layer], name: &str) -> std::path::PathBuf {
        let dir = self.root.path().join(name);
        let layers: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        self.store.unpack(&layers, &dir).unwrap();
        dir
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed
        .wrapping_mul(2_862_933_555_777_941_757)
        .wrapping_add(3_037_000_493);
    let next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Adds entries one by one; names are taken as they are.
struct Tar(Vec<u8>);

impl Tar {
    fn new() -> Self {
        Tar(Vec::new())
    }
    fn entry(mut self, typeflag: u8, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(typeflag));
        header.set_size(data.len() as u64);
        header.set_mode(if typeflag == b'5' { 0o755 } else { 0o644 });
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        if matches!(typeflag, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        let bytes = header.as_old_mut();
        bytes.name[..name.len()].copy_from_slice(name.as_bytes());
        bytes.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", data)
    }
    fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }
    fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, b"")
    }
    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, b"")
    }
    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// All there is to know of the files below a directory.
pub(crate) fn facts(dir: &Path) -> BTreeMap<String, String> {
    fn walk(top: &Path, dir: &Path, facts: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let name = path
                .strip_prefix(top)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let content = if meta.is_symlink() {
                format!("{:?}", path.read_link().unwrap())
            } else if meta.is_file() {
                Digest::sha256(&std::fs::read(&path).unwrap()).to_string()
            } else {
                String::new()
            };
            let mut xattrs = Vec::new();
            let mut names = vec![0_u8; 64 << 10];
            let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
            for name in names[..len]
                .split(|&b| b == 0)
                .filter(|name| !name.is_empty())
            {
                let mut value = vec![0_u8; 64 << 10];
                let len = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
                xattrs.push((
                    String::from_utf8_lossy(name).into_owned(),
                    value[..len].to_vec(),
                ));
            }
            xattrs.sort();
            let size = if meta.is_dir() { 0 } else { meta.size() };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            facts.insert(
                name,
                format!(
                    "{:o} {}:{} {}.{:09} rdev {} size {size} links {links} {xattrs:?} {content}",
                    meta.mode(),
                    meta.uid(),
                    meta.gid(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                    meta.rdev()
                ),
            );
            if meta.is_dir() {
                walk(top, &path, facts);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(dir, dir, &mut all);
    all
}

/// A folder with files of many kinds; special ones only as root.
fn populate(dir: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    std::fs::create_dir_all(dir.join("usr/lib/deep/er")).unwrap();
    write("empty", b"");
    write("small", b"small");
    write("usr/lib/edge", &noise(1, 1024));
    write("usr/lib/over", &noise(2, 1025));
    write("usr/lib/block", &noise(3, 4096));
    write("usr/lib/large", &noise(4, 3_000_001));
    write("usr/lib/copy", &noise(4, 3_000_001));
    write(&format!("usr/{}", "n".repeat(200)), b"long name");
    std::fs::hard_link(dir.join("usr/lib/large"), dir.join("usr/lib/deep/er/hard")).unwrap();
    std::fs::hard_link(dir.join("small"), dir.join("usr/small-too")).unwrap();
    std::os::unix::fs::symlink("../over", dir.join("usr/lib/deep/sym")).unwrap();
    std::os::unix::fs::symlink("/absolute", dir.join("dangling")).unwrap();
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(16 << 20).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(&noise(5, 70_000), 10_000_003).unwrap();
    sparse.write_all_at(b"end", (16 << 20) - 3).unwrap();
    let holey = std::fs::File::create(dir.join("holey")).unwrap();
    for n in 0..60 {
        holey.write_all_at(&noise(n, 5000), n * 50_000).unwrap();
    }
    std::fs::File::create(dir.join("holes"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    std::fs::File::create(dir.join("tiny-hole"))
        .unwrap()
        .set_len(700)
        .unwrap();
    let xattr = |name: &str, attr: &str, value: &[u8]| {
        let _ = rustix::fs::lsetxattr(dir.join(name), attr, value, rustix::fs::XattrFlags::empty());
    };
    xattr("small", "user.note", b"line\n=\0x");
    xattr("usr/lib", "user.dir", b"d");
    if rustix::process::geteuid().is_root() {
        // cap_net_raw=ep
        let capability = [
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        xattr("usr/lib/over", "security.capability", &capability);
        std::os::unix::fs::chown(dir.join("usr/lib/block"), Some(70_000), Some(4_000_000_000))
            .unwrap();
        std::os::unix::fs::lchown(dir.join("dangling"), Some(12), Some(34)).unwrap();
        let node = |name: &str, kind, major, minor| {
            let path = dir.join(name);
            let device = rustix::fs::makedev(major, minor);
            let mode = rustix::fs::Mode::from_raw_mode(0o640);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, device).unwrap();
        };
        node("null", rustix::fs::FileType::CharacterDevice, 1, 3);
        node("disk", rustix::fs::FileType::BlockDevice, 8, 17);
        node("pipe", rustix::fs::FileType::Fifo, 0, 0);
    }
    let mode = |name: &str, mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(dir.join(name), permissions).unwrap();
    };
    mode("usr/lib/block", 0o4755);
    mode("usr/lib/deep", 0o1777);
    let root = rustix::process::geteuid().is_root();
    mode("empty", if root { 0o000 } else { 0o400 });
    let old = std::time::UNIX_EPOCH - std::time::Duration::new(1000, 250_000_000);
    std::fs::File::open(dir.join("usr/lib/edge"))
        .unwrap()
        .set_modified(old)
        .unwrap();
}

#[test]
fn unpacking_gives_what_tar_gives() {
    if Command::new("tar").arg("--version").output().is_err() {
        return skip("unpacking_gives_what_tar_gives", "tar is not installed");
    }
    let bench = Bench::new();
    let from = bench.root.path().join("from");
    populate(&from);
    let forms: &[&[&str]] = &[
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--xattrs", "--xattrs-include=*"],
        &[
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--sparse",
            "--sparse-version=0.0",
        ],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for (number, form) in forms.iter().enumerate() {
        let made = Command::new("tar")
            .args(*form)
            .arg("-C")
            .arg(&from)
            .args(["-cf", "-", "."])
            .output()
            .unwrap();
        assert!(made.status.success(), "{form:?}");
        let tar = made.stdout;
        let blob = gzip(&tar);
        let (layer, counters) = bench.ingest(&blob, Compression::Gzip).unwrap();
        assert_eq!(layer.diff_id, DiffId(Digest::sha256(&tar)));
        assert_eq!(layer.tar_bytes, tar.len() as u64);
        assert_eq!(counters.read.load(Ordering::Relaxed), blob.len() as u64);
        assert_eq!(counters.inflated.load(Ordering::Relaxed), tar.len() as u64);
        assert!(bench.export(&layer.diff_id) == tar, "{form:?}");

        let ours = bench.unpack(&[&layer], &format!("ours{number}"));
        let theirs = bench.root.path().join(format!("theirs{number}"));
        std::fs::create_dir(&theirs).unwrap();
        let mut extract = Command::new("tar")
            .args([
                "--xattrs",
                "--xattrs-include=*",
                "--same-permissions",
                "-xf",
                "-",
                "-C",
            ])
            .arg(&theirs)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        extract.stdin.take().unwrap().write_all(&tar).unwrap();
        assert!(extract.wait().unwrap().success());
        assert_eq!(facts(&ours), facts(&theirs), "{form:?}");
        if form.contains(&"--sparse") {
            let blocks = ours.join("sparse").metadata().unwrap().blocks();
            assert!(blocks * 512 < 2 << 20, "holes are kept: {blocks} blocks");
        }
    }
}

#[test]
fn every_compression_gives_the_same_layer() {
    let tar = Tar::new()
        .dir("d/")
        .file("d/f", &noise(1, 100_000))
        .file("d/g", b"g")
        .end();
    let (one, two) = tar.split_at(50_000);
    let blobs = [
        (tar.clone(), Compression::None),
        (gzip(&tar), Compression::Gzip),
        ([gzip(one), gzip(two)].concat(), Compression::Gzip),
        (zstd_of(&tar), Compression::Zstd),
        ([zstd_of(one), zstd_of(two)].concat(), Compression::Zstd),
        (zstd_of(&tar), Compression::Gzip),
    ];
    let bench = Bench::new();
    for (blob, compression) in &blobs {
        let (layer, _) = bench.ingest(blob, *compression).unwrap();
        assert_eq!(layer.diff_id, DiffId(Digest::sha256(&tar)));
        assert_eq!(layer.content_bytes, 100_001);
        assert_eq!(layer.entries, 4);
        let lease = bench.store.lease();
        let known = bench
            .store
            .layer_of_blob(&Digest::sha256(blob), &lease)
            .unwrap();
        assert_eq!(known.diff_id, layer.diff_id);
    }
    assert_eq!(bench.store.usage().layers, 1);
    assert!(bench.export(&DiffId(Digest::sha256(&tar))) == tar);
}

#[test]
fn equal_contents_are_kept_once() {
    let contents: Vec<_> = (0..40).map(|n| noise(n, 20_000 + n as usize)).collect();
    let image = |prefix: &str, extra: &[u8]| {
        let mut tar = Tar::new().dir("d/");
        for (n, content) in contents.iter().enumerate() {
            tar = tar.file(&format!("d/{prefix}{n}"), content);
        }
        tar.file("d/own", extra).end()
    };
    let bench = Bench::new();
    let (first, counters) = bench
        .ingest(&image("a", &noise(100, 5000)), Compression::None)
        .unwrap();
    assert_eq!(counters.deduplicated.load(Ordering::Relaxed), 0);
    let (second, counters) = bench
        .ingest(&image("b", &noise(101, 5000)), Compression::None)
        .unwrap();
    let shared: u64 = contents.iter().map(|content| content.len() as u64).sum();
    assert_eq!(counters.deduplicated.load(Ordering::Relaxed), shared);
    assert_eq!(counters.written.load(Ordering::Relaxed), 5000);
    assert!(
        second.added_bytes * 10 < first.added_bytes,
        "{first:?} {second:?}"
    );
}

#[test]
fn what_later_entries_replaced_is_still_in_the_tar() {
    let tar = Tar::new()
        .file("a", b"first a")
        .file("big", &noise(1, 10_000))
        .link("hard", "a")
        .file("gone", b"gone")
        .file("a", b"second a")
        .file("big", &noise(2, 10_000))
        .dir("d/")
        .file("d/x", b"below")
        .file("d/y", &noise(3, 9_999))
        .file("d", b"no directory")
        .entry(b'V', "label", "", &noise(4, 5_000))
        .entry(b'V', "label", "", b"short")
        .file(".wh.gone", b"a whiteout with data")
        .end();
    let tar = [tar, b"after the end".to_vec()].concat();
    let bench = Bench::new();
    let (layer, _) = bench.ingest(&tar, Compression::None).unwrap();
    assert!(bench.export(&layer.diff_id) == tar);
    let dir = bench.unpack(&[&layer], "out");
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    assert_eq!(read("a"), b"second a");
    assert_eq!(read("hard"), b"first a");
    assert_eq!(read("big"), noise(2, 10_000));
    assert_eq!(read("d"), b"no directory");
    assert_eq!(read("gone"), b"gone");
}

#[test]
fn layers_merge_with_whiteouts() {
    let base = Tar::new()
        .dir("etc/")
        .file("etc/keep", b"keep")
        .file("etc/drop", b"drop")
        .dir("var/")
        .file("var/old", &noise(1, 5000))
        .file("file", b"file")
        .symlink("usr", "etc")
        .end();
    let upper = Tar::new()
        .file("etc/.wh.drop", b"")
        .dir("var/")
        .file("var/.wh..wh..opq", b"")
        .file("var/new", b"new")
        .dir("file/")
        .file("file/inner", b"inner")
        .dir("usr/")
        .file("usr/bin", b"bin")
        .end();
    let bench = Bench::new();
    let (base, _) = bench.ingest(&gzip(&base), Compression::Gzip).unwrap();
    let (upper, _) = bench.ingest(&zstd_of(&upper), Compression::Zstd).unwrap();
    let dir = bench.unpack(&[&base, &upper], "out");
    let names: Vec<_> = facts(&dir).into_keys().collect();
    assert_eq!(
        names,
        [
            "etc",
            "etc/keep",
            "file",
            "file/inner",
            "usr",
            "usr/bin",
            "var",
            "var/new"
        ]
    );
    assert_eq!(std::fs::read(dir.join("etc/keep")).unwrap(), b"keep");
}

#[test]
fn the_kernel_shows_what_unpacking_gives() {
    let name = "the_kernel_shows_what_unpacking_gives";
    let bench = Bench::new();
    let from = bench.root.path().join("from");
    populate(&from);
    let Ok(made) = Command::new("tar")
        .args([
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--sparse",
            "-cf",
            "-",
            "-C",
        ])
        .args([&from, Path::new(".")])
        .output()
    else {
        return skip(name, "tar is not installed");
    };
    let upper = Tar::new()
        .dir("./")
        .dir("usr/")
        .dir("usr/lib/")
        .file("usr/lib/.wh.copy", b"")
        .dir("usr/lib/deep/")
        .file("usr/lib/deep/.wh..wh..opq", b"")
        .file("usr/lib/deep/new", b"new")
        .dir("empty/")
        .file("empty/inner", &noise(50, 5000))
        .file("usr/lib/large", &noise(51, 2_000_000))
        .file(".wh.dangling", b"")
        .end();
    let (lower, _) = bench
        .ingest(&gzip(&made.stdout), Compression::Gzip)
        .unwrap();
    let (upper, _) = bench.ingest(&gzip(&upper), Compression::Gzip).unwrap();
    let digest = Digest::sha256(b"{}");
    let layer = |layer: &Layer| LayerRef {
        diff_id: layer.diff_id.clone(),
        blob: digest.clone(),
        size: 1,
        media_type: String::new(),
    };
    let record = ImageRecord {
        id: ImageId(digest.clone()),
        platform: Platform::new("linux", "amd64", ""),
        manifest: digest.clone(),
        layers: vec![layer(&lower), layer(&upper)],
        created: None,
        size: 1,
        user: String::new(),
        labels: BTreeMap::new(),
        pulled_at: 0,
        last_used_at: 0,
        pinned: false,
        staged: false,
    };
    let commit = ImageCommit {
        record,
        names: Vec::new(),
        blobs: vec![(digest.clone(), bytes::Bytes::from_static(b"{}"))],
    };
    bench
        .store
        .commit_image(&commit, &bench.store.lease())
        .unwrap();
    let target = bench.root.path().join("mounted");
    std::fs::create_dir(&target).unwrap();
    match bench.store.mount(&ImageId(digest), &target) {
        Err(Error::MountUnsupported { cause }) => return skip(name, &cause),
        mounted => mounted.unwrap(),
    }
    let shown = std::panic::catch_unwind(|| facts(&target));
    bench.store.umount(&target).unwrap();
    let dir = bench.unpack(&[&lower, &upper], "unpacked");
    let (shown, written) = (shown.unwrap(), facts(&dir));
    let names = |facts: &BTreeMap<String, String>| facts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&shown), names(&written));
    for (name, fact) in shown {
        assert_eq!(fact, written[&name], "{name}");
    }
}

#[test]
fn damage_is_named() {
    let tar = Tar::new()
        .file("f", &noise(1, 100_000))
        .file("s", b"small")
        .end();
    let only = |bench: &Bench, folder: &str, end: &str| {
        let files = std::fs::read_dir(bench.store.root().join(folder)).unwrap();
        let mut paths = files.map(|file| file.unwrap().path());
        paths
            .find(|path| path.to_str().unwrap().ends_with(end))
            .unwrap()
    };
    let flip = |path: &Path, at: u64| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"damaged", at).unwrap();
    };
    type Spoil<'a> = Box<dyn Fn(&Bench) + 'a>;
    let cases: Vec<(&str, &str, Spoil<'_>)> = vec![
        (
            "packs/",
            "flipped",
            Box::new(|bench| flip(&only(bench, "packs", ".pack"), 50_000)),
        ),
        (
            "packs/",
            "absent",
            Box::new(|bench| std::fs::remove_file(only(bench, "packs", ".pack")).unwrap()),
        ),
        (
            "packs/",
            "cut",
            Box::new(|bench| {
                let pack = std::fs::File::options()
                    .write(true)
                    .open(only(bench, "packs", ".pack"))
                    .unwrap();
                pack.set_len(4096).unwrap();
            }),
        ),
        (
            "layers/",
            "tree",
            Box::new(|bench| flip(&only(bench, "layers", ".erofs"), 1030)),
        ),
        (
            "layers/",
            "recipe",
            Box::new(|bench| flip(&only(bench, "layers", ".idx"), 100)),
        ),
    ];
    for (subject, name, spoil) in cases {
        let bench = Bench::new();
        let (layer, _) = bench.ingest(&tar, Compression::None).unwrap();
        spoil(&bench);
        let to = bench.root.path().join("out");
        let unpacked = bench
            .store
            .unpack(std::slice::from_ref(&layer.diff_id), &to);
        let Err(Error::Damaged { subject: found, .. }) = &unpacked else {
            panic!("{name}: {unpacked:?}")
        };
        assert!(found.starts_with(subject), "{name}: {found}");
        let exported = bench.store.export_tar(&layer.diff_id, &mut Vec::new());
        assert!(
            matches!(exported, Err(Error::Damaged { .. } | Error::Invalid(_))),
            "{name}: {exported:?}"
        );
    }
}

#[test]
fn unpacking_never_leaves_its_directory() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    let bench = Bench::new();
    let one = Tar::new()
        .symlink("out", &target)
        .symlink("up", "../..")
        .end();
    let two = Tar::new()
        .file("out/file", b"x")
        .file("up/file", b"x")
        .end();
    let (one, _) = bench.ingest(&one, Compression::None).unwrap();
    let (two, _) = bench.ingest(&two, Compression::None).unwrap();
    let dir = bench.unpack(&[&one, &two], "unpacked");
    assert_eq!(std::fs::read(dir.join("out/file")).unwrap(), b"x");
    assert!(dir.join("up").symlink_metadata().unwrap().is_dir());
    let same = Tar::new()
        .symlink("out", &target)
        .file("out/file", b"x")
        .end();
    let (same, _) = bench.ingest(&same, Compression::None).unwrap();
    bench.unpack(&[&same], "same");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(!bench.root.path().join("file").exists());
}

#[test]
fn a_directory_that_is_in_use_is_not_unpacked_into() {
    let bench = Bench::new();
    let (layer, _) = bench
        .ingest(&Tar::new().file("a", b"a").end(), Compression::None)
        .unwrap();
    std::fs::write(bench.root.path().join("precious"), b"").unwrap();
    let refused = bench.store.unpack(&[layer.diff_id], bench.root.path());
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

/// Everything below the data directory but the database, with sizes.
fn left_over(bench: &Bench) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                walk(&path, found);
            } else if path.as_os_str().as_bytes().ends_with(b".pack") && meta.blocks() == 0 {
                // An empty segment holds nothing.
            } else {
                found.push(path.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(bench.store.root(), &mut found);
    found.retain(|path| {
        path.contains("/packs/") || path.contains("/layers/") || path.contains("/staging/")
    });
    found
}

#[test]
fn bad_layers_are_refused_by_name_and_leave_nothing() {
    let data = noise(1, 300_000);
    let good = || Tar::new().file("good", &data);
    let long = "long/".repeat(1000);
    let long_name = {
        let mut tar = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(0);
        tar.append_data(&mut header, &long, &[][..]).unwrap();
        tar.into_inner().unwrap()
    };
    let negative = {
        let mut tar = good().end();
        tar[512 * (1 + data.len().div_ceil(512))..][124..136].copy_from_slice(&[0xff; 12]);
        tar
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (good().file("../evil", b"").end(), "../evil"),
        (good().file("a/../../evil", b"").end(), "a/../../evil"),
        (good().file("", b"").end(), "without a name"),
        (long_name, "max_path"),
        (
            good().file("f", b"").file("f/below", b"").end(),
            "not a directory",
        ),
        (
            good().link("h", "nothing").end(),
            "hard link \"h\" to \"nothing\"",
        ),
        (
            good().link("h", "../../etc/passwd").end(),
            "hard link \"h\"",
        ),
        (good().dir("d/").link("h", "d").end(), "hard link \"h\""),
        (negative, "checksum"),
        (good().end()[..300_000].to_vec(), "ends inside"),
        (b"<html>not found</html>".repeat(100), "checksum"),
        (gzip(&good().end())[..200_000].to_vec(), "truncated"),
        ([gzip(&good().end()), noise(9, 100)].concat(), "garbage"),
        (zstd_of(&good().end())[..200_000].to_vec(), "truncated"),
    ];
    let bench = Bench::new();
    let before = bench.store.usage();
    for (blob, want) in &cases {
        match bench.ingest(blob, Compression::None) {
            Err(error @ (Error::BadLayer { .. } | Error::Limit { .. })) => {
                let text = error.to_string();
                assert!(text.contains(want), "{want}: {text}");
                assert!(text.contains(&Digest::sha256(blob).to_string()), "{text}");
            }
            other => panic!("{want}: {other:?}"),
        }
        assert_eq!(left_over(&bench), [""; 0], "{want}");
        assert_eq!(bench.store.usage().layers, before.layers);
    }
    // And the store still works.
    bench.ingest(&good().end(), Compression::None).unwrap();
}

#[test]
fn limits_are_kept() {
    let limits = Limits {
        max_entries: 100,
        max_layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let bench = Bench::with(limits);
    let mut many = Tar::new();
    for n in 0..101 {
        many = many.file(&format!("{n}"), b"");
    }
    let large = Tar::new().file("large", &noise(1, 2 << 20)).end();
    let bomb = Tar::new()
        .file("zeros", &vec![0; 900_000])
        .file("zeros2", &vec![0; 900_000])
        .end();
    for (blob, key) in [
        (many.end(), "max_entries"),
        (gzip(&large), "max_layer_bytes"),
        (gzip(&bomb), "max_layer_bytes"),
    ] {
        let text = bench
            .ingest(&blob, Compression::Gzip)
            .unwrap_err()
            .to_string();
        assert!(text.contains(key), "{text}");
        assert_eq!(left_over(&bench), [""; 0], "{key}");
    }
}

#[test]
fn a_few_bytes_cannot_ask_for_endless_zeros() {
    let map: Vec<_> = (0..100_u64).map(|n| format!("{},1", n << 24)).collect();
    let mut records = String::new();
    for (key, value) in [
        ("GNU.sparse.size", (1_u64 << 40).to_string()),
        ("GNU.sparse.map", map.join(",")),
    ] {
        let body = key.len() + value.len() + 3;
        let len = (1..9)
            .find(|digits| (body + digits).to_string().len() == *digits)
            .unwrap()
            + body;
        records += &format!("{len} {key}={value}\n");
    }
    let tar = Tar::new()
        .entry(b'x', "pax", "", records.as_bytes())
        .file("sparse", &[1; 100])
        .end();
    for (max_layer_bytes, key) in [(1 << 40, "max_ratio"), (1 << 20, "max_layer_bytes")] {
        let bench = Bench::with(Limits {
            max_layer_bytes,
            ..Limits::default()
        });
        let text = bench
            .ingest(&tar, Compression::None)
            .unwrap_err()
            .to_string();
        assert!(text.contains(key) && text.contains("sparse"), "{text}");
        assert_eq!(left_over(&bench), [""; 0]);
    }
}

#[test]
fn wrong_blobs_are_told_from_bad_ones() {
    let blob = gzip(&Tar::new().file("f", &noise(1, 500_000)).end());
    let source = LayerSource {
        blob: Digest::sha256(&blob),
        size: blob.len() as u64,
        compression: Compression::Gzip,
    };
    let bench = Bench::new();
    let mut flipped = blob.clone();
    flipped[1000] ^= 0xff;
    let html = b"<html>sorry</html> ".repeat(blob.len() / 19 + 1)[..blob.len()].to_vec();
    for wrong in [flipped, html] {
        let result = bench.ingest_as(&source, &wrong).map(drop);
        assert!(
            matches!(result, Err(Error::DigestMismatch { .. })),
            "{result:?}"
        );
    }
    for wrong in [&blob[..blob.len() - 10], &[&blob[..], b"more"].concat()] {
        let result = bench.ingest_as(&source, wrong).map(drop);
        assert!(
            matches!(result, Err(Error::SizeMismatch { .. })),
            "{result:?}"
        );
    }
    assert_eq!(left_over(&bench), [""; 0]);
    bench.ingest_as(&source, &blob).unwrap();
}

#[test]
fn a_source_that_fails_leaves_nothing() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(room)? {
                0 => Err(std::io::ErrorKind::ConnectionReset.into()),
                len => Ok(len),
            }
        }
    }
    let tar = Tar::new().file("f", &noise(1, 5_000_000)).end();
    let source = LayerSource {
        blob: Digest::sha256(&tar),
        size: tar.len() as u64,
        compression: Compression::None,
    };
    let bench = Bench::new();
    let lease = bench.store.lease();
    let result = bench.store.ingest(
        &source,
        &mut Failing(&tar[..4_000_000]),
        &LayerCounters::default(),
        &lease,
    );
    match result {
        Err(Error::Source { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::ConnectionReset);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(left_over(&bench), [""; 0]);
}

#[derive(Clone, Debug)]
enum Item {
    File(u64, usize),
    Directory,
    Symlink(String),
    HardLink(usize),
    Whiteout,
}

fn items() -> impl Strategy<Value = Vec<(String, Item)>> {
    let name = "[a-c](/[a-c]{1,2}){0,3}";
    let item = prop_oneof![
        3 => (0..6_u64, prop_oneof![0..1500_usize, 4000..4200_usize, 10_000..300_000_usize])
            .prop_map(|(seed, len)| Item::File(seed, len)),
        2 => Just(Item::Directory),
        1 => "[a-c/.]{1,5}".prop_map(Item::Symlink),
        1 => any::<usize>().prop_map(Item::HardLink),
        1 => Just(Item::Whiteout),
    ];
    proptest::collection::vec((name, item), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_tar_is_refused_or_comes_back_bit_for_bit(items in items()) {
        let mut tar = Tar::new();
        let mut files: Vec<String> = Vec::new();
        for (name, item) in &items {
            tar = match item {
                Item::File(seed, len) => {
                    files.push(name.clone());
                    tar.file(name, &noise(*seed, *len))
                }
                Item::Directory => tar.dir(name),
                Item::Symlink(target) => tar.symlink(name, target),
                Item::HardLink(at) if files.is_empty() => tar.link(name, &format!("x{at}")),
                Item::HardLink(at) => tar.link(name, &files[at % files.len()]),
                Item::Whiteout => match name.rsplit_once('/') {
                    Some((parent, last)) => tar.file(&format!("{parent}/.wh.{last}"), b""),
                    None => tar.file(&format!(".wh.{name}"), b""),
                },
            };
        }
        let tar = tar.end();
        let bench = Bench::new();
        match bench.ingest(&zstd_of(&tar), Compression::Zstd) {
            Ok((layer, _)) => {
                prop_assert!(bench.export(&layer.diff_id) == tar);
                bench.unpack(&[&layer], "out");
            }
            Err(Error::BadLayer { .. }) => prop_assert_eq!(left_over(&bench), [""; 0]),
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }
}

//! What a mount shows is what unpacking writes, attribute for attribute.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;

use super::*;

/// One name of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    device: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Bytes of a file, target of a symlink.
    content: Vec<u8>,
    /// The first name of the same file.
    first: PathBuf,
}

/// Every name below a directory, itself included.
fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(name) = todo.pop() {
        // Without the slash that an empty name would leave.
        let path = root
            .components()
            .chain(name.components())
            .collect::<PathBuf>();
        let meta = path
            .symlink_metadata()
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = meta.file_type();
        let mut content = Vec::new();
        let kind = if kind.is_dir() {
            let mut names: Vec<OsString> = std::fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort_by(|a, b| b.cmp(a));
            todo.extend(names.into_iter().map(|child| name.join(child)));
            'd'
        } else if kind.is_symlink() {
            content = std::fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .as_bytes()
                .to_vec();
            'l'
        } else if kind.is_file() {
            content = std::fs::read(&path).unwrap();
            'f'
        } else if kind.is_fifo() {
            'p'
        } else {
            'c'
        };
        let first = match kind {
            'd' => name.clone(),
            _ => firsts
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| name.clone())
                .clone(),
        };
        let is = Seen {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            device: meta.rdev(),
            xattrs: xattrs(&path),
            content,
            first,
        };
        seen.insert(name, is);
    }
    seen
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 4096];
            let len =
                rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()).unwrap();
            value.truncate(len);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

/// A tar entry; its attributes follow from the seed.
#[derive(Clone, Debug)]
struct Item {
    path: String,
    what: What,
    seed: u32,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Directory,
    File,
    Symlink,
    Link(String),
    Fifo,
    Device,
    Whiteout,
    Opaque,
}

fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for Item { path, what, seed } in items {
        let mtime = format!(
            "{}.{:09}",
            1_600_000_000 + i64::from(*seed),
            seed * 7919 % 1_000_000_000
        );
        let mut pax = vec![("mtime", mtime.as_bytes().to_vec())];
        if matches!(what, What::Directory | What::File) && seed % 3 == 0 {
            pax.push(("SCHILY.xattr.user.note", seed.to_le_bytes().to_vec()));
        }
        if *what != What::Opaque && seed % 5 == 0 {
            pax.push(("SCHILY.xattr.trusted.note", vec![7; 3]));
        }
        tar.append_pax_extensions(pax.iter().map(|(key, value)| (*key, value.as_slice())))
            .unwrap();
        let content = match what {
            // Kept in the tree, or in a pack.
            What::File => noise(u64::from(*seed), if seed % 2 == 0 { 20 } else { 5000 }),
            _ => Vec::new(),
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(match what {
            What::Directory => tar::EntryType::Directory,
            What::File | What::Whiteout | What::Opaque => tar::EntryType::Regular,
            What::Symlink => tar::EntryType::Symlink,
            What::Link(_) => tar::EntryType::Link,
            What::Fifo => tar::EntryType::Fifo,
            What::Device => tar::EntryType::Char,
        });
        header.set_mode([0o755, 0o700, 0o1777, 0o4750, 0o644][*seed as usize % 5]);
        header.set_uid(u64::from(seed % 4) * 1000);
        header.set_gid(u64::from(seed % 3) * 100);
        header.set_size(content.len() as u64);
        if *what == What::Device {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3 + seed % 3).unwrap();
        }
        let name = match (what, path.rsplit_once('/')) {
            (What::Opaque, _) if path.is_empty() => ".wh..wh..opq".to_owned(),
            (What::Opaque, _) => format!("{path}/.wh..wh..opq"),
            (What::Whiteout, Some((parent, name))) => format!("{parent}/.wh.{name}"),
            (What::Whiteout, None) => format!(".wh.{path}"),
            (What::Directory, _) => format!("{path}/"),
            _ => path.clone(),
        };
        let name = if name == "/" { "./".to_owned() } else { name };
        match what {
            What::Symlink => tar
                .append_link(&mut header, &name, format!("to-{seed}"))
                .unwrap(),
            What::Link(target) => tar.append_link(&mut header, &name, target).unwrap(),
            _ => tar
                .append_data(&mut header, &name, content.as_slice())
                .unwrap(),
        }
    }
    tar.into_inner().unwrap()
}

fn item(path: &str, what: What, seed: u32) -> Item {
    Item {
        path: path.to_owned(),
        what,
        seed,
    }
}

/// Mounts and unpacks an image of these layers; both trees, or why the machine cannot.
#[expect(clippy::type_complexity, reason = "two of a kind")]
fn both(
    layers: &[Vec<Item>],
) -> Result<(BTreeMap<PathBuf, Seen>, BTreeMap<PathBuf, Seen>), String> {
    let bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let refs: Vec<LayerRef> = layers
        .iter()
        .map(|items| ingest(store, &tar_of(items), &lease).unwrap())
        .collect();
    let id = commit(store, 1, &refs, &lease);
    let (mounted, unpacked) = (
        bench.dir.path().join("mounted"),
        bench.dir.path().join("unpacked"),
    );
    let _unmount = Unmount(mounted.clone());
    match store.mount(&id, &mounted) {
        Ok(()) => {}
        Err(Error::MountUnsupported { cause }) => return Err(cause),
        Err(error) => panic!("{error}"),
    }
    let shown = look(&mounted);
    store.umount(&mounted).unwrap();
    assert_eq!(names_below(&bench.root().join("mounts")), [""; 0]);
    let ids: Vec<DiffId> = refs.iter().map(|layer| layer.diff_id.clone()).collect();
    store.unpack(&ids, &unpacked).unwrap();
    Ok((shown, look(&unpacked)))
}

/// But for the folder that is always empty.
fn names_below(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "empty").collect()
}

fn assert_same(shown: &BTreeMap<PathBuf, Seen>, written: &BTreeMap<PathBuf, Seen>) {
    let names = |tree: &BTreeMap<PathBuf, Seen>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(shown), names(written));
    for (name, is) in shown {
        assert_eq!(is, &written[name], "{}", name.display());
    }
}

#[test]
fn directories_that_a_layer_does_not_name_keep_their_attributes() {
    let name = "directories_that_a_layer_does_not_name_keep_their_attributes";
    use What::*;
    let base = vec![
        item("", Directory, 30),
        item("d", Directory, 1),
        item("d/e", Directory, 33),
        item("d/e/f", File, 3),
        item("d/gone", Directory, 21),
        item("d/gone/x", File, 5),
        item("d/file", File, 7),
    ];
    let again = vec![item("d/e", Directory, 12), item("d/e/g", File, 8)];
    let whiteouts = vec![
        item("d/gone", Whiteout, 0),
        item("d/file", Whiteout, 0),
        item("new/not-there", Whiteout, 0),
    ];
    let top = vec![
        item("d/e/h/i", File, 9),
        item("d/gone/y", File, 10),
        item("d/file/z", File, 11),
        item("new/w", File, 13),
    ];
    let (shown, written) = match both(&[base, again, whiteouts, top]) {
        Ok(trees) => trees,
        Err(cause) => return eprintln!("skipped: {name}: {cause}"),
    };
    assert_same(&shown, &written);
    let at = |path: &str| &shown[Path::new(path)];
    let mtime = |seed: i64| (1_600_000_000 + seed, seed * 7919);
    assert_eq!(at("").mtime, mtime(30));
    assert_eq!(at("").xattrs.len(), 2);
    assert_eq!((at("d").mtime, at("d").mode), (mtime(1), 0o700));
    assert_eq!((at("d/e").mtime, at("d/e").mode), (mtime(12), 0o1777));
    assert_eq!(at("d/e").xattrs.len(), 1);
    // Nothing is known of what no layer names, nor of what was removed in between.
    for path in ["d/e/h", "d/gone", "d/file", "new"] {
        let Seen {
            mode, owner, mtime, ..
        } = at(path);
        assert_eq!((*mode, *owner, *mtime), (0o755, (0, 0), (0, 0)), "{path}");
    }
    assert!(!shown.contains_key(Path::new("d/gone/x")));
    assert!(!shown.contains_key(Path::new("new/not-there")));
}

#[test]
fn what_hides_the_root_hides_all_below() {
    let layers = [
        vec![
            item("", Directory, 4),
            item("old", Directory, 1),
            item("old/x", File, 2),
        ],
        vec![item("", Opaque, 0), item("new/y", File, 3)],
        vec![item("new/z", File, 5)],
    ];
    use What::*;
    match both(&layers) {
        Ok((shown, written)) => {
            assert_same(&shown, &written);
            assert!(!shown.contains_key(Path::new("old")));
        }
        Err(cause) => eprintln!("skipped: what_hides_the_root_hides_all_below: {cause}"),
    }
}

/// Layers of which each entry can be: no file is a parent, no hard link leads nowhere.
fn layers() -> impl Strategy<Value = Vec<Vec<Item>>> {
    let path = proptest::collection::vec(0_u8..3, 0..4);
    let raw = (path.clone(), path, 0_u8..20, 0_u32..10_000);
    let layer = proptest::collection::vec(raw, 0..9);
    proptest::collection::vec(layer, 1..5).prop_map(|layers| {
        layers
            .into_iter()
            .map(|raws| {
                let word = |parts: &[u8]| {
                    parts
                        .iter()
                        .map(|part| ["a", "b", "c"][usize::from(*part)])
                        .collect::<Vec<_>>()
                        .join("/")
                };
                // Paths of this layer, and whether they are directories.
                let mut known: BTreeMap<String, bool> = BTreeMap::new();
                let mut items = Vec::new();
                for (path, other, what, seed) in raws {
                    let (path, other) = (word(&path), word(&other));
                    let parents: Vec<String> = path
                        .match_indices('/')
                        .map(|(at, _)| path[..at].to_owned())
                        .collect();
                    if parents
                        .iter()
                        .any(|parent| known.get(parent) == Some(&false))
                    {
                        continue;
                    }
                    let what = match what {
                        _ if path.is_empty() && what < 16 => What::Directory,
                        0..6 => What::Directory,
                        6..10 => What::File,
                        10 => What::Symlink,
                        11 | 12 if known.get(&other) == Some(&false) && other != path => {
                            What::Link(other)
                        }
                        11 | 12 => What::File,
                        13 => What::Fifo,
                        14 => What::Device,
                        15..18 if !path.is_empty() => What::Whiteout,
                        _ if known.get(&path) == Some(&false) => continue,
                        _ => What::Opaque,
                    };
                    for parent in parents {
                        known.insert(parent, true);
                    }
                    match what {
                        What::Directory | What::Opaque => drop(known.insert(path.clone(), true)),
                        What::Whiteout => {}
                        _ => {
                            known.retain(|name, _| !name.starts_with(&format!("{path}/")));
                            known.insert(path.clone(), false);
                        }
                    }
                    items.push(Item { path, what, seed });
                }
                items
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_mount_shows_what_unpacking_writes(layers in layers()) {
        match both(&layers) {
            Ok((shown, written)) => assert_same(&shown, &written),
            Err(cause) => eprintln!("skipped: a_mount_shows_what_unpacking_writes: {cause}"),
        }
    }
}

/// What the store keeps for itself must not become an order to overlayfs, nor travel into a container's own layer.
#[test]
fn the_marks_of_the_store_stay_below_a_writable_layer() {
    let name = "the_marks_of_the_store_stay_below_a_writable_layer";
    use What::*;
    let bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let layers = [
        vec![
            item("", Directory, 4),
            item("d/e/x", File, 1),
            item("gone", File, 2),
        ],
        vec![
            item("d/e/y", File, 3),
            item("gone", Whiteout, 0),
            item("d/w", Whiteout, 0),
        ],
    ];
    let refs: Vec<LayerRef> = layers
        .iter()
        .map(|items| ingest(store, &tar_of(items), &lease).unwrap())
        .collect();
    let id = commit(store, 1, &refs, &lease);
    let (target, writable) = (
        bench.dir.path().join("target"),
        bench.dir.path().join("writable"),
    );
    let _unmount = Unmount(target.clone());
    if let Err(Error::MountUnsupported { cause }) = store.mount(&id, &target) {
        return eprintln!("skipped: {name}: {cause}");
    }
    let lower: Vec<String> = refs
        .iter()
        .rev()
        .map(|layer| {
            store
                .inner
                .layout
                .mount(&layer.diff_id)
                .display()
                .to_string()
        })
        .collect();
    let [upper, work] = ["upper", "work"].map(|name| bench.dir.path().join(name));
    for folder in [&upper, &work, &writable] {
        std::fs::create_dir(folder).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let _writable = Unmount(writable.clone());
    rustix::mount::mount(
        "overlay",
        &writable,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .unwrap();
    for path in ["", "d", "d/e"] {
        let shown: Vec<String> = xattrs(&writable.join(path)).into_keys().collect();
        assert!(
            !shown.iter().any(|name| name.contains("overlay")),
            "{path}: {shown:?}"
        );
    }
    std::fs::write(writable.join("d/e/new"), "").unwrap();
    std::fs::write(writable.join("d/w"), "").unwrap();
    let is: Vec<String> = names_below(&writable);
    assert_eq!(is, ["d"]);
    for path in ["d", "d/e"] {
        let copied: Vec<String> = xattrs(&upper.join(path)).into_keys().collect();
        assert!(
            !copied.iter().any(|name| name.contains("larder")),
            "{path}: {copied:?}"
        );
    }
    drop(Unmount(writable));
    store.umount(&target).unwrap();
}

#[test]
fn the_attributes_on_top_are_shared_and_go_with_the_last_mount_or_after_a_crash() {
    let name = "the_attributes_on_top_are_shared_and_go_with_the_last_mount_or_after_a_crash";
    use What::*;
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let refs = [vec![item("d", Directory, 1)], vec![item("d/x", File, 2)]]
        .map(|items| ingest(store, &tar_of(&items), &lease).unwrap());
    let ids = [1, 2].map(|seed| commit(store, seed, &refs, &lease));
    drop(lease);
    let targets = ["one", "two"].map(|name| bench.dir.path().join(name));
    let _unmount = targets.clone().map(Unmount);
    for (id, target) in ids.iter().zip(&targets) {
        if let Err(Error::MountUnsupported { cause }) = store.mount(id, target) {
            return eprintln!("skipped: {name}: {cause}");
        }
    }
    let is_true = |target: &Path| {
        let meta = target.join("d").symlink_metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o700, 1000));
    };
    let mounts = bench.root().join("mounts");
    // Two layers and one image of attributes for both.
    assert_eq!(names_below(&mounts).len(), 3);
    assert_eq!(names_below(&bench.root().join("staging")), [""; 0]);
    store.umount(&targets[0]).unwrap();
    is_true(&targets[1]);
    bench.reopen();
    is_true(&targets[1]);
    // Gone without a word, as after a reboot or a crash half way.
    rustix::mount::unmount(&targets[1], UnmountFlags::empty()).unwrap();
    assert_eq!(names_below(&mounts).len(), 3);
    bench.reopen();
    assert_eq!(names_below(&mounts), [""; 0]);
    assert!(bench.store().mounts().is_empty());
    bench.store().mount(&ids[0], &targets[0]).unwrap();
    is_true(&targets[0]);
    bench.store().umount(&targets[0]).unwrap();
    assert_counted(bench.store());
}

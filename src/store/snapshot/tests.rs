//! Snapshots on layers of a real store. What mounts needs root and a kernel that mounts EROFS from files.

use std::path::Path;

use super::*;
use crate::image::{Compression, DiffId, Digest};
use crate::store::{LayerSource, Lease, Limits, Metrics, Options};

struct Bench {
    dir: tempfile::TempDir,
    store: Option<Store>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench { dir, store: None };
        bench.open();
        bench
    }

    fn open(&mut self) -> &Store {
        self.store = None;
        let options = Options {
            root: self.dir.path().join("root"),
            limits: Limits::default(),
        };
        self.store = Some(Store::open(options, Metrics::default()).unwrap());
        self.store()
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn folders(&self) -> usize {
        std::fs::read_dir(self.folder("snapshots")).unwrap().count()
    }
}

impl Drop for Bench {
    /// What snapshots stand on stays mounted.
    fn drop(&mut self) {
        self.store = None;
        for entry in std::fs::read_dir(self.folder("mounts"))
            .into_iter()
            .flatten()
        {
            let at = entry.unwrap().path();
            let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn ingest(store: &Store, seed: u8, lease: &Lease) -> DiffId {
    ingest_entry(store, &format!("file-{seed}"), &[seed; 5000], lease)
}

/// A layer of one file, or of one directory of mode 0700 where the path ends in a slash.
fn ingest_entry(store: &Store, path: &str, bytes: &[u8], lease: &Lease) -> DiffId {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    if path.ends_with('/') {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o700);
    }
    tar.append_data(&mut header, path, bytes).unwrap();
    let tar = tar.into_inner().unwrap();
    let source = LayerSource {
        blob: Digest::sha256(&tar),
        size: tar.len() as u64,
        compression: Compression::None,
    };
    let counters = crate::store::LayerCounters::default();
    let layer = store.ingest(&source, &mut tar.as_slice(), &counters, lease);
    layer.unwrap().diff_id
}

fn new(key: &str, parent: &str, labels: &[(&str, &str)]) -> NewSnapshot {
    let labels = labels.iter();
    NewSnapshot {
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        now_ms: 7,
    }
}

/// What of a call is not an answer, by its kind.
fn fault<T: std::fmt::Debug>(outcome: Result<T>) -> &'static str {
    match outcome {
        Ok(answer) => panic!("{answer:?}"),
        Err(SnapshotError::NotFound(_)) => "not found",
        Err(SnapshotError::Exists(_)) => "exists",
        Err(SnapshotError::Precondition { .. }) => "precondition",
        Err(SnapshotError::Invalid(_)) => "invalid",
        Err(SnapshotError::Store(_)) => "store",
    }
}

#[test]
fn a_layer_that_is_here_is_a_snapshot_and_stays_until_the_snapshot_goes() {
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let (a, b) = (ingest(store, 1, &lease), ingest(store, 2, &lease));
    let base = a.to_string();
    let both = chain::of(Some(&a.0), &b).to_string();
    let prepare = |key: &str, parent: &str, chain: &str| {
        store.prepare_snapshot(&new(key, parent, &[(REF, chain)]))
    };
    assert_eq!(fault(prepare("x", "", &base)), "exists");
    let bottom = format!("larder/{base}");
    assert_eq!(fault(prepare("x", &bottom, &both)), "exists");
    assert_eq!(fault(prepare("y", &bottom, &both)), "exists");
    let top = store.snapshot(&format!("larder/{both}")).unwrap();
    assert_eq!(top.parent.as_deref(), Some(bottom.as_str()));
    assert_eq!(top.kind, SnapshotKind::Committed);
    assert_eq!(top.labels.get(REF), Some(&both));
    assert!(store.snapshot_usage(&top.name).unwrap().bytes > 4096);
    assert_eq!(store.snapshots().len(), 2);
    // A chain that is not here gets a folder.
    let other = chain::of(Some(&b.0), &a).to_string();
    assert_eq!(prepare("z", "", &other).unwrap()[0].kind, "bind");
    drop(lease);
    assert_eq!(store.usage().layers, 2);
    let store = bench.open();
    assert_eq!(store.usage().layers, 2);
    assert_eq!(fault(store.remove_snapshot(&bottom)), "precondition");
    store.remove_snapshot(&top.name).unwrap();
    assert_eq!(store.usage().layers, 1);
    store.remove_snapshot(&bottom).unwrap();
    assert_eq!(store.usage().layers, 0);
    store.remove_snapshot("z").unwrap();
    assert!(store.snapshots().is_empty());
    assert_eq!(bench.folders(), 0);
}

#[test]
fn what_a_runtime_unpacks_is_a_folder_with_its_usage() {
    let mut bench = Bench::new();
    let store = bench.store();
    let chain = Digest::sha256(b"somewhere else").to_string();
    let labels = [(REF, chain.as_str())];
    let mounts = store.prepare_snapshot(&new("1", "", &labels)).unwrap();
    assert_eq!(mounts[0].options, ["rw", "rbind"]);
    let unpacked = Path::new(&mounts[0].source);
    std::fs::write(unpacked.join("file"), vec![1; 10_000]).unwrap();
    std::fs::hard_link(unpacked.join("file"), unpacked.join("again")).unwrap();
    let usage = store.snapshot_usage("1").unwrap();
    assert_eq!(usage.inodes, 2);
    assert!((10_000..60_000).contains(&usage.bytes), "{usage:?}");
    assert_eq!(fault(store.view_snapshot(&new("2", "1", &[]))), "invalid");
    store.commit_snapshot("1", &new("a", "", &labels)).unwrap();
    assert_eq!(fault(store.snapshot("1")), "not found");
    assert_eq!(fault(store.snapshot_mounts("a")), "precondition");
    // Somebody else's unpacking of the same chain is spared.
    assert_eq!(
        fault(store.prepare_snapshot(&new("3", "", &labels))),
        "exists"
    );
    let store = bench.open();
    assert_eq!(store.snapshot_usage("a").unwrap(), usage);
    let view = store.view_snapshot(&new("v", "a", &[])).unwrap();
    assert_eq!((view[0].kind, &view[0].options[0][..]), ("bind", "ro"));
    let mounts = store.prepare_snapshot(&new("w", "a", &[])).unwrap();
    let options = mounts[0].options.join(",");
    assert_eq!(mounts[0].kind, "overlay");
    for part in ["snapshots/1/fs", "upperdir=", "workdir="] {
        assert!(options.contains(part), "{options}");
    }
    // Lost in a power cut.
    std::fs::remove_dir_all(bench.folder("snapshots/3")).unwrap();
    assert_eq!(bench.store().snapshot_mounts("w").unwrap(), mounts);
    assert!(bench.folder("snapshots/3/work").is_dir());
}

#[test]
fn calls_that_cannot_be_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let store = bench.store();
    store.prepare_snapshot(&new("a", "", &[])).unwrap();
    store.commit_snapshot("a", &new("A", "", &[])).unwrap();
    store.prepare_snapshot(&new("b", "A", &[])).unwrap();
    store.view_snapshot(&new("v", "A", &[])).unwrap();
    let folders = bench.folders();
    let long = "x".repeat(MAX_NAME + 1);
    let heavy = "x".repeat(MAX_LABEL + 1);
    let prepare = |key: &str, parent: &str| store.prepare_snapshot(&new(key, parent, &[]));
    for (outcome, wanted) in [
        (fault(prepare("", "")), "invalid"),
        (fault(prepare(&long, "")), "invalid"),
        (fault(prepare("c", &long)), "invalid"),
        (fault(prepare("b", "A")), "exists"),
        (fault(prepare("A", "")), "exists"),
        (fault(prepare("c", "absent")), "not found"),
        (fault(prepare("c", "b")), "invalid"),
        (fault(store.snapshot_mounts("absent")), "not found"),
        (fault(store.snapshot_mounts("A")), "precondition"),
        (fault(store.snapshot_usage("absent")), "not found"),
        (fault(store.remove_snapshot("absent")), "not found"),
        (fault(store.remove_snapshot("A")), "precondition"),
        (
            fault(store.commit_snapshot("absent", &new("d", "", &[]))),
            "not found",
        ),
        (
            fault(store.commit_snapshot("v", &new("d", "", &[]))),
            "precondition",
        ),
        (
            fault(store.commit_snapshot("b", &new("A", "", &[]))),
            "exists",
        ),
        (
            fault(store.commit_snapshot("b", &new("d", "other", &[]))),
            "invalid",
        ),
        (
            fault(store.prepare_snapshot(&new("c", "", &[("l", &heavy)]))),
            "invalid",
        ),
        (
            fault(store.label_snapshot("absent", &BTreeMap::new(), None, 0)),
            "not found",
        ),
    ] {
        assert_eq!(outcome, wanted);
    }
    assert_eq!(store.snapshots().len(), 3);
    assert_eq!(bench.folders(), folders);
}

#[test]
fn labels_are_replaced_or_changed_one_by_one() {
    let bench = Bench::new();
    let store = bench.store();
    let first = [("a", "1"), ("b", "2")];
    store.prepare_snapshot(&new("s", "", &first)).unwrap();
    let change = |labels: &[(&str, &str)], named: Option<&[String]>| {
        let labels = new("", "", labels).labels;
        let info = store.label_snapshot("s", &labels, named, 9).unwrap();
        assert_eq!((info.created_at, info.updated_at), (7, 9));
        assert_eq!(store.snapshot("s").unwrap(), info);
        info.labels.into_iter().collect::<Vec<_>>()
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let named = ["b".to_owned(), "a".to_owned()];
    assert_eq!(
        change(&[("b", "3"), ("c", "4")], Some(&named)),
        [pair("b", "3")]
    );
    assert_eq!(change(&[("d", "5")], None), [pair("d", "5")]);
}

#[test]
fn folders_without_a_row_go() {
    let mut bench = Bench::new();
    std::fs::create_dir_all(bench.folder("snapshots/77/fs")).unwrap();
    bench.open();
    assert_eq!(bench.folders(), 0);
    std::fs::create_dir_all(bench.folder("snapshots/78/fs")).unwrap();
    bench.store().clean_snapshots().unwrap();
    assert_eq!(bench.folders(), 0);
    // With a damaged database aside the rows may be lost: a container may write there.
    std::fs::create_dir_all(bench.folder("snapshots/1/fs")).unwrap();
    std::fs::write(bench.folder("larder.redb.damaged"), "").unwrap();
    let store = bench.open();
    let mounts = store.prepare_snapshot(&new("s", "", &[])).unwrap();
    assert!(mounts[0].source.ends_with("/2/fs"), "{mounts:?}");
    assert_eq!(bench.folders(), 2);
}

#[test]
fn layers_are_mounted_when_they_are_needed_and_damage_is_named() {
    let name = "layers_are_mounted_when_they_are_needed_and_damage_is_named";
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let a = ingest(store, 1, &lease);
    let base = a.to_string();
    let labels = [(REF, base.as_str())];
    assert_eq!(
        fault(store.prepare_snapshot(&new("x", "", &labels))),
        "exists"
    );
    drop(lease);
    let parent = format!("larder/{base}");
    let mounts = match store.prepare_snapshot(&new("s", &parent, &[])) {
        Ok(mounts) => mounts,
        Err(SnapshotError::Store(Error::MountUnsupported { cause })) => {
            return eprintln!("skipped: {name}: {cause}");
        }
        Err(error) => panic!("{error}"),
    };
    let lower = mounts[0]
        .options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))
        .unwrap()
        .to_owned();
    let file = Path::new(&lower).join("file-1");
    assert_eq!(std::fs::read(&file).unwrap(), vec![1; 5000]);
    // As after a reboot.
    rustix::mount::unmount(&*lower, rustix::mount::UnmountFlags::empty()).unwrap();
    let store = bench.open();
    assert!(!file.exists());
    assert_eq!(store.snapshot_mounts("s").unwrap(), mounts);
    assert_eq!(std::fs::read(&file).unwrap(), vec![1; 5000]);
    // A view has the attributes of an empty root on top.
    let view = store.view_snapshot(&new("v", &parent, &[])).unwrap();
    assert!(
        view[0].options.last().unwrap().contains("/mounts/empty:"),
        "{view:?}"
    );
    store.inner.quarantine(&a, "it rots").unwrap();
    let error = store.snapshot_mounts("s").unwrap_err().to_string();
    assert!(
        error.contains(&base) && error.contains("it rots"),
        "{error}"
    );
    assert_eq!(store.snapshots().len(), 3);
}

#[test]
fn what_was_said_of_mounts_is_said_again_only_where_it_is_true() {
    let name = "what_was_said_of_mounts_is_said_again_only_where_it_is_true";
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let a = ingest(store, 1, &lease);
    let base = a.to_string();
    let labels = [(REF, base.as_str())];
    let taken = store.prepare_snapshot(&new("x", "", &labels));
    assert_eq!(fault(taken), "exists");
    drop(lease);
    let parent = format!("larder/{base}");
    let mounts = match store.prepare_snapshot(&new("s", &parent, &[])) {
        Ok(mounts) => mounts,
        Err(SnapshotError::Store(Error::MountUnsupported { cause })) => {
            return eprintln!("skipped: {name}: {cause}");
        }
        Err(error) => panic!("{error}"),
    };
    let told = |store: &Store, key: &str| store.told_snapshot_mounts(key);
    assert_eq!(told(store, "s").as_ref(), Some(&mounts));
    let view = store.view_snapshot(&new("v", &parent, &[])).unwrap();
    assert_eq!(told(store, "v").as_ref(), Some(&view));
    assert_eq!(told(store, &parent), None);
    assert_eq!(told(store, "absent"), None);
    // Of each way to be no longer true, the next full answer is the end.
    let unmount = |store: &Store| {
        let at = store.inner.layout.mount(&a);
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    };
    unmount(store);
    assert_eq!(told(store, "s"), None);
    assert_eq!(store.snapshot_mounts("s").unwrap(), mounts);
    assert_eq!(told(store, "s").as_ref(), Some(&mounts));
    store
        .label_snapshot("s", &BTreeMap::new(), None, 9)
        .unwrap();
    assert_eq!(told(store, "s"), None);
    assert_eq!(store.snapshot_mounts("s").unwrap(), mounts);
    // A name that is used again.
    store.remove_snapshot("s").unwrap();
    assert_eq!(told(store, "s"), None);
    let other = store.prepare_snapshot(&new("s", &parent, &[])).unwrap();
    assert_ne!(other, mounts);
    assert_eq!(told(store, "s").as_ref(), Some(&other));
    for at in 0..2 * 64 {
        let key = format!("many-{at}");
        store.prepare_snapshot(&new(&key, &parent, &[])).unwrap();
        assert!(told(store, &key).is_some());
    }
    assert_eq!(told(store, "s"), None);
    assert_eq!(store.snapshot_mounts("s").unwrap(), other);
    store.inner.quarantine(&a, "it rots").unwrap();
    assert_eq!(told(store, "s"), None);
    let store = bench.open();
    assert_eq!(told(store, "v"), None);
}

#[test]
fn true_attributes_stay_mounted_for_the_next_container_until_the_layers_go() {
    let name = "true_attributes_stay_mounted_for_the_next_container_until_the_layers_go";
    let bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let a = ingest_entry(store, "d/", &[], &lease);
    let b = ingest_entry(store, "d/file", &[1; 5000], &lease);
    let chains = [a.to_string(), chain::of(Some(&a.0), &b).to_string()];
    let names = chains.clone().map(|chain| format!("larder/{chain}"));
    for (parent, chain) in ["", &names[0]].into_iter().zip(&chains) {
        let taken = store.prepare_snapshot(&new("x", parent, &[(REF, chain)]));
        assert_eq!(fault(taken), "exists");
    }
    drop(lease);
    let container = |key: &str| match store.prepare_snapshot(&new(key, &names[1], &[])) {
        Ok(mounts) => Some(mounts),
        Err(SnapshotError::Store(Error::MountUnsupported { cause })) => {
            eprintln!("skipped: {name}: {cause}");
            None
        }
        Err(error) => panic!("{error}"),
    };
    let Some(mounts) = container("one") else {
        return;
    };
    let lowers = mounts[0].options.last().unwrap();
    let lowers = lowers.strip_prefix("lowerdir=").unwrap();
    let top = Path::new(lowers.split(':').next().unwrap()).to_path_buf();
    let mode = || {
        let meta = std::fs::symlink_metadata(top.join("d"));
        meta.map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777)
            .ok()
    };
    assert!(lowers.contains("/mounts/attributes-"), "{lowers}");
    assert_eq!(mode(), Some(0o700));
    store.remove_snapshot("one").unwrap();
    assert_eq!(mode(), Some(0o700));
    // Somebody took it away meanwhile.
    rustix::mount::unmount(&top, rustix::mount::UnmountFlags::empty()).unwrap();
    let again = container("two").unwrap();
    assert!(again[0].options.last().unwrap().ends_with(lowers));
    assert_eq!(mode(), Some(0o700));
    store.remove_snapshot("two").unwrap();
    store.remove_snapshot(&names[1]).unwrap();
    assert_eq!(mode(), None);
}

#[test]
fn a_snapshot_that_a_lost_database_had_comes_back_with_its_image() {
    let bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    let layers = [ingest(store, 1, &lease), ingest(store, 2, &lease)];
    let both = chain::of(Some(&layers[0].0), &layers[1]);
    let name = format!("larder/{both}");
    assert_eq!(fault(store.snapshot(&name)), "not found");
    let record = |id: &[u8]| crate::store::ImageRecord {
        id: crate::image::ImageId(Digest::sha256(id)),
        platform: crate::image::Platform::host(),
        manifest: Digest::sha256(b"manifest"),
        layers: layers
            .iter()
            .map(|layer| crate::store::LayerRef {
                diff_id: layer.clone(),
                blob: layer.0.clone(),
                size: 1,
                media_type: String::new(),
            })
            .collect(),
        created: None,
        size: 1,
        user: String::new(),
        labels: BTreeMap::new(),
        pulled_at: 5,
        last_used_at: 5,
        pinned: false,
        staged: false,
    };
    let commit = crate::store::ImageCommit {
        record: record(b"config"),
        names: Vec::new(),
        blobs: Vec::new(),
    };
    store.commit_image(&commit, &lease).unwrap();
    let info = store.snapshot(&name).unwrap();
    let below = format!("larder/{}", layers[0]);
    assert_eq!(info.parent, Some(below.clone()));
    assert_eq!(info.labels.get(REF), Some(&both.to_string()));
    assert_eq!(store.snapshot(&below).unwrap().parent, None);
    assert_eq!(store.snapshots().len(), 2);
    for unknown in ["larder/", "larder/x", &format!("larder/{}", layers[1])] {
        assert_eq!(fault(store.snapshot(unknown)), "not found", "{unknown}");
    }
}

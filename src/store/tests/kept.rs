//! Blobs kept as registries serve them.

use std::io::Read;
use std::time::{Duration, SystemTime};

use super::*;

fn name(bytes: &[u8]) -> KeptName {
    KeptName::new(&Digest::sha256(bytes), "registry.example")
}

fn keep(store: &Store, bytes: &[u8]) -> KeptName {
    let name = name(bytes);
    let mut writer = store.keep_blob(&name, bytes.len() as u64).unwrap();
    for piece in bytes.chunks(1000) {
        writer.write(piece).unwrap();
    }
    writer.finish().unwrap();
    name
}

fn read(store: &Store, name: &KeptName) -> Option<Vec<u8>> {
    let blob = store.kept(name).unwrap()?;
    let mut bytes = Vec::new();
    blob.reader().read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

fn file(bench: &Bench, name: &KeptName) -> PathBuf {
    bench.root().join("kept/sha256").join(name.file())
}

#[test]
fn what_is_kept_is_there_after_a_start() {
    let mut bench = Bench::new();
    let (one, two) = (noise(1, 300_000), noise(2, 10));
    let names = [keep(bench.store(), &one), keep(bench.store(), &two)];
    for _ in 0..2 {
        assert_eq!(bench.store().kept_usage(), (2, 300_010));
        assert_eq!(read(bench.store(), &names[0]).unwrap(), one);
        assert_eq!(read(bench.store(), &names[1]).unwrap(), two);
        let blob = bench.store().kept(&names[0]).unwrap().unwrap();
        let mut part = [0; 10];
        assert_eq!(blob.read_at(&mut part, 299_995).unwrap(), 5);
        assert_eq!(part[..5], one[299_995..]);
        assert!(bench.store().usage().stored_bytes > 300_000);
        bench.reopen();
    }
    assert_eq!(read(bench.store(), &name(b"other")), None);
    // What one registry has proves nothing about another.
    let elsewhere = KeptName::new(names[0].digest(), "registry.example:443");
    assert_eq!(read(bench.store(), &elsewhere), None);
}

#[test]
fn what_is_not_whole_is_not_kept() {
    let mut bench = Bench::new();
    let (bytes, other) = (noise(1, 5000), noise(2, 5000));
    let name = name(&bytes);
    {
        let store = bench.store();
        let mut short = store.keep_blob(&name, 5000).unwrap();
        short.write(&bytes[..4999]).unwrap();
        assert!(matches!(short.finish(), Err(Error::SizeMismatch { .. })));
        let mut wrong = store.keep_blob(&name, 5000).unwrap();
        wrong.write(&other).unwrap();
        assert!(matches!(wrong.finish(), Err(Error::DigestMismatch { .. })));
        let mut long = store.keep_blob(&name, 5000).unwrap();
        long.write(&bytes).unwrap();
        assert!(matches!(long.write(b"x"), Err(Error::SizeMismatch { .. })));
        drop(long);
        assert_eq!(store.kept_usage(), (0, 0));
        assert_eq!(
            std::fs::read_dir(bench.root().join("staging"))
                .unwrap()
                .count(),
            0
        );
    }
    // A crash leaves the file that was being written.
    std::fs::write(bench.root().join("staging/kept-7"), &bytes).unwrap();
    std::fs::write(bench.root().join("kept/sha256/README"), "not ours").unwrap();
    bench.reopen();
    assert_eq!(bench.store().kept_usage(), (0, 0));
    for folder in ["staging", "kept/sha256"] {
        assert_eq!(
            std::fs::read_dir(bench.root().join(folder))
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn what_is_read_while_it_comes_is_what_was_written() {
    let bench = Bench::new();
    let bytes = noise(1, 9000);
    let name = name(&bytes);
    let mut writer = bench.store().keep_blob(&name, 9000).unwrap();
    let reader = writer.reader().unwrap();
    let mut buffer = vec![0; 10_000];
    writer.write(&bytes[..4000]).unwrap();
    assert_eq!(reader.read_at(&mut buffer, 0).unwrap(), 4000);
    writer.write(&bytes[4000..]).unwrap();
    writer.finish().unwrap();
    assert_eq!(reader.read_at(&mut buffer, 4000).unwrap(), 5000);
    assert_eq!(buffer[..5000], bytes[4000..]);
    // And after it was removed.
    assert_eq!(bench.store().trim_kept(0).unwrap(), 9000);
    assert!(!file(&bench, &name).exists());
    assert_eq!(reader.read_at(&mut buffer, 0).unwrap(), 9000);
}

#[test]
fn damage_is_found_and_goes() {
    let mut bench = Bench::new();
    let names: Vec<KeptName> = (0..3)
        .map(|n| keep(bench.store(), &noise(n, 5000)))
        .collect();
    bench.reopen();
    let change = |at: usize| {
        let options = std::fs::File::options()
            .write(true)
            .open(file(&bench, &names[at]));
        options.unwrap().write_all_at(b"!", 77).unwrap();
    };
    change(0);
    change(1);
    assert_eq!(read(bench.store(), &names[0]), None);
    assert!(!file(&bench, &names[0]).exists());
    let report = bench.store().fsck(false, &mut |_, _| {}).unwrap();
    let [damage] = &report.damaged[..] else {
        panic!("{report:?}")
    };
    assert_eq!(damage.kind, "blob");
    assert!(
        damage.subject.ends_with(&names[1].file()) && damage.repaired,
        "{damage:?}"
    );
    assert_eq!(bench.store().kept_usage(), (1, 5000));
    // Somebody took the file away.
    std::fs::remove_file(file(&bench, &names[2])).unwrap();
    assert_eq!(read(bench.store(), &names[2]), None);
    assert_eq!(bench.store().kept_usage(), (0, 0));
}

#[test]
fn the_least_recently_used_go_first() {
    let mut bench = Bench::new();
    let names: Vec<KeptName> = (0..4)
        .map(|n| keep(bench.store(), &noise(n, 1000)))
        .collect();
    for (age, name) in [
        (50, &names[2]),
        (40, &names[0]),
        (30, &names[3]),
        (20, &names[1]),
    ] {
        let file = std::fs::File::options()
            .write(true)
            .open(file(&bench, name))
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age * 3600))
            .unwrap();
    }
    bench.reopen();
    let store = bench.store();
    assert!(read(store, &names[2]).is_some());
    assert_eq!(store.trim_kept(4000).unwrap(), 0);
    assert_eq!(store.trim_kept(3999).unwrap(), 1000);
    assert_eq!(store.kept_size(&names[0]), None);
    assert_eq!(store.free_kept(1500).unwrap(), 2000);
    assert_eq!(store.kept_size(&names[2]), Some(1000));
    assert_eq!(store.free_kept(u64::MAX).unwrap(), 1000);
    assert_eq!(store.kept_usage(), (0, 0));
}

#[test]
fn the_reserved_band_is_not_entered() {
    let bench = Bench::new();
    bench.store().set_reserve(u64::MAX / 2);
    let error = bench.store().keep_blob(&name(b"x"), 1).unwrap_err();
    assert!(matches!(error, Error::Reserved { .. }), "{error}");
}

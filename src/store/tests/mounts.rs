//! Mounted images.

use super::*;

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
        refs.push(ingest(store, &tar.into_inner().unwrap(), &lease).unwrap());
    }
    let images = [
        commit(store, 1, &refs, &lease),
        commit(store, 2, &refs[..1], &lease),
    ];
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

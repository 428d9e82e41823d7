//! Roots, names and uses.

use super::*;

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

#[test]
fn names_by_digest_and_their_documents_are_bounded() {
    let mut bench = Bench::new();
    let store = bench.store();
    let lease = store.lease();
    layer(store, 1, &contents_of(1), &lease).unwrap();
    let rounds = 3 * records::MAX_DIGEST_NAMES as i64;
    for round in 0..rounds {
        // The same image in another index, as a daily build gives it.
        let index = Bytes::from(format!("index {round}"));
        let target = Digest::sha256(&index);
        let mut image = image_commit(1, &[1], &[]);
        image.record.pulled_at = round;
        image.blobs.push((target.clone(), index));
        image.names = vec![
            Name {
                name: "r/a:1".to_owned(),
                target: target.clone(),
            },
            Name {
                name: format!("r/a@{target}"),
                target,
            },
        ];
        store.commit_image(&image, &lease).unwrap();
    }
    let image = store.image_named("r/a:1").unwrap();
    assert_eq!(image.names.len(), 1 + records::MAX_DIGEST_NAMES);
    let target = |round: i64| Digest::sha256(format!("index {round}").as_bytes());
    let oldest = rounds - records::MAX_DIGEST_NAMES as i64;
    for (round, kept) in [
        (0, false),
        (oldest - 1, false),
        (oldest, true),
        (rounds - 1, true),
    ] {
        let name = format!("r/a@{}", target(round));
        assert_eq!(store.image_named(&name).is_some(), kept, "{round}");
        assert_eq!(store.blob(&target(round)).unwrap().is_some(), kept);
    }
    let blobs = |bench: &Bench| {
        std::fs::read_dir(bench.root().join("blobs/sha256"))
            .unwrap()
            .count()
    };
    assert_eq!(blobs(&bench), 2 + records::MAX_DIGEST_NAMES);
    assert_counted(store);
    drop(lease);
    bench.reopen();
    assert_eq!(blobs(&bench), 2 + records::MAX_DIGEST_NAMES);
}

//! A crash at any point, made good by the next start.

use super::*;

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

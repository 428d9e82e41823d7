//! Numbers for people.

use super::*;

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
            implied: 0,
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
    // What the file system takes for it: files of the same sizes, written past the page cache as packs are.
    let copies = bench.dir.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    for pack in std::fs::read_dir(bench.root().join("packs")).unwrap() {
        let pack = pack.unwrap();
        let status = Command::new("dd")
            .arg(format!("if={}", pack.path().display()))
            .arg(format!("of={}", copies.join(pack.file_name()).display()))
            .args(["bs=1M", "oflag=direct", "status=none"])
            .status()
            .unwrap();
        assert!(status.success());
    }
    let began = std::time::Instant::now();
    std::fs::remove_dir_all(&copies).unwrap();
    timed("plain unlink of files of the packs' sizes", began);
    let began = std::time::Instant::now();
    bench
        .store()
        .remove_image(&image_commit(1, &[], &[]).record.id)
        .unwrap();
    timed("remove, 45k of 105k contents", began);
    let began = std::time::Instant::now();
    bench
        .store()
        .remove_image(&image_commit(2, &[], &[]).record.id)
        .unwrap();
    timed("remove, the other 60k contents", began);
}

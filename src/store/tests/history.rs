//! What pulls, removals and restarts leave, in any order and at once.

use super::*;

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

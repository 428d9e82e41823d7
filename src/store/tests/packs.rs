//! What an ingest gives to packs.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Lengths around blocks and buffers, many contents twice, given in pieces of any size.
    #[test]
    fn packs_keep_each_content_once(
        picks in proptest::collection::vec((0_u64..5, 0_usize..12, 1_usize..2_000_000), 1..14),
        split in any::<proptest::sample::Index>(),
    ) {
        const LENGTHS: [usize; 12] = [
            1, 4095, 4096, 4097, 12_288, (1 << 20) - 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1,
            (2 << 20) + 4096, (3 << 20) + 17, 3 << 20,
        ];
        let bench = Bench::new();
        let store = bench.store();
        let lease = store.lease();
        // Some contents are in the store already.
        let contents: Vec<Vec<u8>> = picks.iter().map(|(seed, length, _)| noise(*seed, LENGTHS[*length])).collect();
        let early = split.index(contents.len());
        layer(store, 1, &contents[..early], &lease).unwrap();

        let mut writer = store.pack_writer().unwrap();
        let mut placed = Vec::new();
        for (content, (_, _, piece)) in contents.iter().zip(&picks) {
            writer.begin(content.len() as u64).unwrap();
            for piece in content.chunks(*piece) {
                writer.write(piece).unwrap();
            }
            placed.push(writer.end().unwrap());
        }
        let commit = writer.finish().unwrap();
        let mut seen: BTreeSet<&Vec<u8>> = contents[..early].iter().collect();
        let mut places: BTreeMap<Vec<u8>, Extent> = BTreeMap::new();
        for (content, placed) in contents.iter().zip(&placed) {
            prop_assert_eq!(placed.deduplicated, !seen.insert(content));
            prop_assert!(blake3::hash(content) == placed.hash.0);
            prop_assert!(read(store, placed.extent) == *content);
            prop_assert_eq!(*places.entry(content.clone()).or_insert(placed.extent), placed.extent);
        }
        prop_assert_eq!(commit.used().len(), places.len());
        // Nothing overlaps, and nothing lies between.
        let distinct: BTreeSet<&Vec<u8>> = contents.iter().collect();
        let wanted: u64 = distinct.iter().map(|content| contents::occupied(content.len() as u64)).sum();
        let length: u64 = std::fs::read_dir(bench.root().join("packs")).unwrap()
            .map(|pack| pack.unwrap().metadata().unwrap().len()).sum();
        prop_assert_eq!(length, wanted);
        drop(commit);
        drop(lease);
        prop_assert_eq!(files_below(&bench.root()), BTreeSet::new());
        assert_counted(store);
    }
}

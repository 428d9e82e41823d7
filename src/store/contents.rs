//! Which contents the packs hold, and how many layers use each: rebuilt at start-up from the layers' indexes.

use std::collections::BTreeMap;

use hashbrown::HashTable;

use super::pack::{ContentHash, Extent};

/// One place of a content. References are counted per place: the layers that use it, and the ingests under way that
/// were given it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: ContentHash,
    extent: Extent,
    /// 0 in a vacant slot.
    refs: u32,
    /// Never given out again.
    damaged: bool,
}

/// Every place has one entry, found by place; the first sound place of a content is also found by its hash.
#[derive(Debug, Default)]
pub(super) struct Contents {
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    by_hash: HashTable<u32>,
    by_place: HashTable<u32>,
    /// Bytes in use, by segment.
    live: BTreeMap<u32, u64>,
}

/// What an extent occupies.
pub(super) fn occupied(len: u64) -> u64 {
    len.div_ceil(4096) * 4096
}

fn hash_key(hash: &ContentHash) -> u64 {
    let (head, _) = hash.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*head)
}

fn place_key(extent: &Extent) -> u64 {
    let key = u64::from(extent.segment) << 32 | u64::from(extent.block);
    // The table looks at high and at low bits.
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl Contents {
    fn slot_at(&self, extent: &Extent) -> Option<u32> {
        let is = |slot: &u32| {
            self.entries.get(*slot as usize).is_some_and(|entry| {
                (entry.extent.segment, entry.extent.block) == (extent.segment, extent.block)
            })
        };
        self.by_place.find(place_key(extent), is).copied()
    }

    fn slot_of(&self, hash: &ContentHash) -> Option<u32> {
        let is = |slot: &u32| {
            let entry = self.entries.get(*slot as usize);
            entry.is_some_and(|entry| entry.hash == *hash)
        };
        self.by_hash.find(hash_key(hash), is).copied()
    }

    /// The place of a content, with one more reference to it.
    pub(super) fn take(&mut self, hash: &ContentHash, len: u64) -> Option<Extent> {
        let slot = self.slot_of(hash)?;
        let entry = self.entries.get_mut(slot as usize)?;
        if entry.extent.len != len {
            return None;
        }
        entry.refs = entry.refs.saturating_add(1);
        Some(entry.extent)
    }

    /// One more reference to a place; the first makes it known, and given out unless its content has another place.
    pub(super) fn add(&mut self, hash: ContentHash, extent: Extent) {
        let Some(slot) = self.refer(hash, extent) else {
            return;
        };
        if self.slot_of(&hash).is_none() {
            let entries = &self.entries;
            self.by_hash.insert_unique(hash_key(&hash), slot, |slot| {
                let entry = entries.get(*slot as usize);
                entry.map_or(0, |entry| hash_key(&entry.hash))
            });
        }
    }

    /// One more reference to a place; the first makes it known, but it is not given out.
    pub(super) fn add_other(&mut self, hash: ContentHash, extent: Extent) {
        self.refer(hash, extent);
    }

    /// Counts a reference. The slot, where the place is new.
    fn refer(&mut self, hash: ContentHash, extent: Extent) -> Option<u32> {
        if let Some(slot) = self.slot_at(&extent) {
            let entry = self.entries.get_mut(slot as usize)?;
            entry.refs = entry.refs.saturating_add(1);
            return None;
        }
        let entry = Entry {
            hash,
            extent,
            refs: 1,
            damaged: false,
        };
        let slot = match self.vacant.pop() {
            Some(slot) => {
                *self.entries.get_mut(slot as usize)? = entry;
                slot
            }
            None => {
                let slot = u32::try_from(self.entries.len()).ok()?;
                self.entries.push(entry);
                slot
            }
        };
        let entries = &self.entries;
        self.by_place
            .insert_unique(place_key(&extent), slot, |slot| {
                let entry = entries.get(*slot as usize);
                entry.map_or(0, |entry| place_key(&entry.extent))
            });
        *self.live.entry(extent.segment).or_default() += occupied(extent.len);
        Some(slot)
    }

    /// One reference less. True when it was the last: the place is free.
    pub(super) fn release(&mut self, extent: Extent) -> bool {
        let Some(slot) = self.slot_at(&extent) else {
            return false;
        };
        let Some(entry) = self.entries.get_mut(slot as usize) else {
            return false;
        };
        entry.refs = entry.refs.saturating_sub(1);
        if entry.refs > 0 {
            return false;
        }
        let len = entry.extent.len;
        self.unlist(slot);
        if let Ok(found) = self
            .by_place
            .find_entry(place_key(&extent), |other| *other == slot)
        {
            found.remove();
        }
        self.vacant.push(slot);
        if let Some(live) = self.live.get_mut(&extent.segment) {
            *live = live.saturating_sub(occupied(len));
            if *live == 0 {
                self.live.remove(&extent.segment);
            }
        }
        true
    }

    /// Stops giving out a damaged place; its references stay.
    pub(super) fn distrust(&mut self, extent: Extent) {
        if let Some(slot) = self.slot_at(&extent) {
            self.unlist(slot);
            if let Some(entry) = self.entries.get_mut(slot as usize) {
                entry.damaged = true;
            }
        }
    }

    /// Whether a place was found damaged.
    pub(super) fn is_damaged(&self, extent: Extent) -> bool {
        self.slot_at(&extent)
            .and_then(|slot| self.entries.get(slot as usize))
            .is_some_and(|entry| entry.damaged)
    }

    fn unlist(&mut self, slot: u32) {
        let Some(entry) = self.entries.get(slot as usize) else {
            return;
        };
        if let Ok(found) = self
            .by_hash
            .find_entry(hash_key(&entry.hash), |other| *other == slot)
        {
            found.remove();
        }
    }

    /// Bytes in use in a segment.
    pub(super) fn live(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// Every place in use, ordered by segment and block.
    pub(super) fn places(&self) -> Vec<Extent> {
        let mut places: Vec<Extent> = self
            .entries
            .iter()
            .filter(|entry| entry.refs > 0)
            .map(|entry| entry.extent)
            .collect();
        places.sort_unstable();
        places
    }

    /// Gives memory back once everything is gone; slots in use cannot move.
    pub(super) fn shrink(&mut self) {
        if self.by_place.is_empty() {
            *self = Contents::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(segment: u32, block: u32, len: u64) -> Extent {
        Extent {
            segment,
            block,
            len,
        }
    }

    #[test]
    fn counts_references_by_place() {
        let mut contents = Contents::default();
        let hash = ContentHash([7; 32]);
        let (first, second) = (place(1, 0, 5000), place(2, 8, 5000));
        contents.add(hash, first);
        contents.add(hash, second);
        assert_eq!(contents.take(&hash, 5000), Some(first));
        assert_eq!(contents.take(&hash, 5001), None);
        assert_eq!((contents.live(1), contents.live(2)), (8192, 8192));
        assert!(!contents.release(first));
        assert!(contents.release(second));
        assert!(contents.release(first));
        assert_eq!((contents.live(1), contents.live(2)), (0, 0));
        assert_eq!(contents.take(&hash, 5000), None);
        assert!(!contents.release(first), "released once only");
    }

    #[test]
    fn never_gives_out_what_is_damaged() {
        let mut contents = Contents::default();
        let hash = ContentHash([7; 32]);
        let (bad, good) = (place(1, 0, 5000), place(1, 2, 5000));
        contents.add(hash, bad);
        contents.distrust(bad);
        assert!(contents.is_damaged(bad));
        assert_eq!(contents.take(&hash, 5000), None);
        contents.add(hash, good);
        assert_eq!(contents.take(&hash, 5000), Some(good));
        assert!(contents.release(bad));
        assert_eq!(contents.live(1), 8192);
    }

    #[test]
    fn a_place_that_sound_and_damaged_layers_share_has_one_count() {
        for damaged_first in [false, true] {
            let mut contents = Contents::default();
            let (hash, shared) = (ContentHash([7; 32]), place(1, 0, 5000));
            if damaged_first {
                contents.add_other(hash, shared);
                contents.add(hash, shared);
            } else {
                contents.add(hash, shared);
                contents.add_other(hash, shared);
            }
            assert_eq!(contents.live(1), 8192);
            assert!(!contents.release(shared), "the other layer still uses it");
            assert!(contents.release(shared));
            assert_eq!(contents.live(1), 0);
        }
    }

    proptest! {
        #[test]
        fn counts_as_a_map_does(ops in proptest::collection::vec((0_u8..6, 0_u32..12, 0_u8..5), 0..200)) {
            let mut contents = Contents::default();
            let mut model: BTreeMap<u32, (u8, u32)> = BTreeMap::new();
            for (n, block, op) in ops {
                let n = model.get(&block).map_or(n, |entry| entry.0);
                let (hash, extent) = (ContentHash([n; 32]), place(1, block, u64::from(n) + 1));
                match op {
                    0 | 1 => {
                        contents.add(hash, extent);
                        model.entry(block).or_insert((n, 0)).1 += 1;
                    }
                    2 => {
                        if let Some(found) = contents.take(&hash, u64::from(n) + 1) {
                            let entry = model.get_mut(&found.block).unwrap();
                            prop_assert_eq!(entry.0, n);
                            entry.1 += 1;
                        }
                    }
                    3 => contents.distrust(extent),
                    _ => {
                        let last = model.get(&block).is_some_and(|entry| entry.1 == 1);
                        prop_assert_eq!(contents.release(extent), last);
                        if last {
                            model.remove(&block);
                        } else if let Some(entry) = model.get_mut(&block) {
                            entry.1 -= 1;
                        }
                    }
                }
                let places: Vec<u32> = contents.places().iter().map(|place| place.block).collect();
                prop_assert_eq!(places, model.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!(contents.live(1), 4096 * model.len() as u64);
            }
        }
    }
}

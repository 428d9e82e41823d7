//! Which contents the packs hold, and how many layers use each: rebuilt at start-up from the layers' indexes.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::pack::{ContentHash, Extent};

/// A content's primary place, the one that later ingests are given.
#[derive(Clone, Copy, Debug)]
struct Entry {
    segment: u32,
    block: u32,
    len: u64,
    refs: u32,
}

impl Entry {
    fn extent(&self) -> Extent {
        Extent {
            segment: self.segment,
            block: self.block,
            len: self.len,
        }
    }
}

/// References are counted per place: the layers that use it, and the ingests under way that were given it.
#[derive(Debug, Default)]
pub(super) struct Contents {
    primary: HashMap<ContentHash, Entry>,
    /// Places of contents that have another primary place (two ingests at once), or are damaged.
    others: HashMap<(u32, u32), (u64, u32)>,
    /// Bytes in use, by segment.
    live: BTreeMap<u32, u64>,
}

/// What an extent occupies.
pub(super) fn occupied(len: u64) -> u64 {
    len.div_ceil(4096) * 4096
}

impl Contents {
    /// The place of a content, with one more reference to it.
    pub(super) fn take(&mut self, hash: &ContentHash, len: u64) -> Option<Extent> {
        let entry = self.primary.get_mut(hash)?;
        if entry.len != len {
            return None;
        }
        entry.refs += 1;
        Some(entry.extent())
    }

    /// One more reference to a place; the first makes it known.
    pub(super) fn add(&mut self, hash: ContentHash, extent: Extent) {
        match self.primary.get_mut(&hash) {
            Some(entry) if entry.extent() == extent => entry.refs += 1,
            Some(_) => self.add_other(extent),
            None => {
                // A place may be known already as one that must not be given out.
                if self.others.contains_key(&(extent.segment, extent.block)) {
                    self.add_other(extent);
                    return;
                }
                *self.live.entry(extent.segment).or_default() += occupied(extent.len);
                self.primary.insert(
                    hash,
                    Entry {
                        segment: extent.segment,
                        block: extent.block,
                        len: extent.len,
                        refs: 1,
                    },
                );
            }
        }
    }

    /// One more reference to a place that is not given out.
    pub(super) fn add_other(&mut self, extent: Extent) {
        let (_, refs) = self
            .others
            .entry((extent.segment, extent.block))
            .or_insert((extent.len, 0));
        *refs += 1;
        if *refs == 1 {
            *self.live.entry(extent.segment).or_default() += occupied(extent.len);
        }
    }

    /// One reference less. True when it was the last: the place is free.
    pub(super) fn release(&mut self, hash: &ContentHash, extent: Extent) -> bool {
        let freed = match self.primary.get_mut(hash) {
            Some(entry) if entry.extent() == extent => {
                entry.refs = entry.refs.saturating_sub(1);
                let last = entry.refs == 0;
                if last {
                    self.primary.remove(hash);
                }
                last
            }
            _ => {
                let place = (extent.segment, extent.block);
                match self.others.get_mut(&place) {
                    Some((_, refs)) => {
                        *refs = refs.saturating_sub(1);
                        let last = *refs == 0;
                        if last {
                            self.others.remove(&place);
                        }
                        last
                    }
                    None => false,
                }
            }
        };
        if freed && let Some(live) = self.live.get_mut(&extent.segment) {
            *live = live.saturating_sub(occupied(extent.len));
        }
        freed
    }

    /// Stops giving out a damaged place; its references stay.
    pub(super) fn distrust(&mut self, hash: &ContentHash, extent: Extent) {
        if let Some(entry) = self.primary.get(hash)
            && entry.extent() == extent
        {
            let refs = entry.refs;
            self.primary.remove(hash);
            self.others
                .insert((extent.segment, extent.block), (extent.len, refs));
        }
    }

    /// Bytes in use in a segment.
    pub(super) fn live(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// Every place in use, ordered by segment and block.
    pub(super) fn places(&self) -> Vec<Extent> {
        let mut places: Vec<Extent> = self
            .primary
            .values()
            .map(Entry::extent)
            .chain(
                self.others
                    .iter()
                    .map(|(&(segment, block), &(len, _))| Extent {
                        segment,
                        block,
                        len,
                    }),
            )
            .collect();
        places.sort_unstable();
        places
    }

    /// Gives memory back after many removals.
    pub(super) fn shrink(&mut self) {
        if self.primary.capacity() > 4 * self.primary.len() + 1024 {
            self.primary.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert!(!contents.release(&hash, first));
        assert!(contents.release(&hash, second));
        assert!(contents.release(&hash, first));
        assert_eq!((contents.live(1), contents.live(2)), (0, 0));
        assert_eq!(contents.take(&hash, 5000), None);
        assert!(!contents.release(&hash, first), "released once only");
    }

    #[test]
    fn never_gives_out_what_is_damaged() {
        let mut contents = Contents::default();
        let hash = ContentHash([7; 32]);
        let (bad, good) = (place(1, 0, 5000), place(1, 2, 5000));
        contents.add(hash, bad);
        contents.distrust(&hash, bad);
        assert_eq!(contents.take(&hash, 5000), None);
        contents.add(hash, good);
        assert_eq!(contents.take(&hash, 5000), Some(good));
        assert!(contents.release(&hash, bad));
        assert_eq!(contents.live(1), 8192);
    }
}

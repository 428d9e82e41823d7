//! Room on the disk: what pulls under way are expected to write, and the band that none may enter.
//!
//! How much a layer will take is known only when it is there. Before that it counts for its compressed size, which its
//! contents never fall short of unless the store has them already; while it is ingested, for what it wrote and for what
//! is left of it: byte for byte in the first half, and then as the first half went. So a pull is refused before it
//! starts only where it could not fit however well it is compressed, and one that turns out larger as soon as that shows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::Digest;
use crate::store::LayerCounters;

/// Of what was read, before its ratio of written to read bytes says anything.
const TOO_LITTLE: u64 = 1 << 20;
/// A layer that grew more than this is taken to grow no further.
const MAX_GROWTH: u64 = 16;

/// Bytes that pulls under way are expected to write. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    claims: Arc<Mutex<Claims>>,
}

#[derive(Debug, Default)]
struct Claims {
    next: u64,
    layers: HashMap<Digest, Expected>,
    pulls: BTreeMap<u64, BTreeSet<Digest>>,
}

#[derive(Debug)]
struct Expected {
    size: u64,
    counters: Option<Arc<LayerCounters>>,
    landed: bool,
    pulls: u32,
}

impl Expected {
    /// Bytes still to be written.
    fn left(&self) -> u64 {
        if self.landed {
            return 0;
        }
        let Some(counters) = &self.counters else {
            return self.size;
        };
        left(
            self.size,
            counters.read.load(Ordering::Relaxed),
            counters.written.load(Ordering::Relaxed),
        )
    }

    fn whole(&self) -> u64 {
        let written = |counters: &Arc<LayerCounters>| counters.written.load(Ordering::Relaxed);
        let written = self.counters.as_ref().map_or(0, written);
        self.left().saturating_add(written)
    }
}

/// Bytes that a layer of `size` compressed bytes still writes, after it wrote `written` for `read` of them.
fn left(size: u64, read: u64, written: u64) -> u64 {
    let rest = size.saturating_sub(read);
    if read < TOO_LITTLE.min(size / 2) || read == 0 {
        return rest;
    }
    let most = if read >= size / 2 { MAX_GROWTH } else { 1 };
    let grown = u128::from(rest) * u128::from(written) / u128::from(read);
    let limit = u128::from(rest) * u128::from(most);
    u64::try_from(grown.min(limit)).unwrap_or(u64::MAX)
}

/// A pull does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short {
    /// Bytes that this pull and those before it are still expected to write.
    pub(super) needed: u64,
}

/// The expectations of one pull, while it runs.
#[derive(Debug)]
pub(super) struct Claim {
    room: Room,
    number: u64,
}

impl Room {
    /// Claims room for layers, by blob with their compressed sizes, where `free` bytes may be written. Layers that
    /// another pull claims already count once.
    pub(super) fn claim(
        &self,
        layers: impl IntoIterator<Item = (Digest, u64)>,
        free: u64,
    ) -> Result<Claim, Short> {
        let layers: BTreeMap<Digest, u64> = layers.into_iter().collect();
        let mut claims = self.claims();
        let new = layers
            .iter()
            .filter(|(blob, _)| !claims.layers.contains_key(blob));
        let own: u64 = new.fold(0, |sum, (_, size)| sum.saturating_add(*size));
        let needed = claims.left().saturating_add(own);
        if needed > free && own > 0 {
            return Err(Short { needed });
        }
        let number = claims.next;
        claims.next += 1;
        for (blob, size) in &layers {
            let entry = claims.layers.entry(blob.clone());
            let expected = entry.or_insert(Expected {
                size: *size,
                counters: None,
                landed: false,
                pulls: 0,
            });
            expected.pulls += 1;
        }
        claims.pulls.insert(number, layers.into_keys().collect());
        Ok(Claim {
            room: self.clone(),
            number,
        })
    }

    /// Bytes that all pulls are still expected to write.
    pub(super) fn expected(&self) -> u64 {
        self.claims().left()
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claims {
    fn left(&self) -> u64 {
        let layers = self.layers.values();
        layers.fold(0, |sum, layer| sum.saturating_add(layer.left()))
    }
}

impl Claim {
    /// A layer of the pull is being ingested.
    pub(super) fn started(&self, blob: &Digest, counters: &Arc<LayerCounters>) {
        if let Some(expected) = self.room.claims().layers.get_mut(blob) {
            expected.counters = Some(counters.clone());
        }
    }

    /// It is in the store.
    pub(super) fn landed(&self, blob: &Digest) {
        if let Some(expected) = self.room.claims().layers.get_mut(blob) {
            expected.landed = true;
        }
    }

    /// Bytes that the whole pull takes, as far as it is known by now, without what is in the store.
    pub(super) fn whole(&self) -> u64 {
        let claims = self.room.claims();
        let blobs = claims.pulls.get(&self.number);
        let layers = blobs.into_iter().flatten();
        let expected = layers.filter_map(|blob| claims.layers.get(blob));
        expected
            .filter(|layer| !layer.landed)
            .fold(0, |sum, layer| sum.saturating_add(layer.whole()))
    }

    /// Whether there is not room for all and this is the youngest that still writes: the older ones go on.
    pub(super) fn must_yield(&self, free: u64) -> bool {
        let claims = self.room.claims();
        if claims.left() <= free {
            return false;
        }
        let writes = |blobs: &BTreeSet<Digest>| {
            let mut layers = blobs.iter().filter_map(|blob| claims.layers.get(blob));
            layers.any(|layer| layer.left() > 0)
        };
        let youngest = claims.pulls.iter().rev().find(|(_, blobs)| writes(blobs));
        youngest.is_some_and(|(number, _)| *number == self.number)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.room.claims();
        for blob in claims.pulls.remove(&self.number).unwrap_or_default() {
            if let Some(expected) = claims.layers.get_mut(&blob) {
                expected.pulls = expected.pulls.saturating_sub(1);
                if expected.pulls == 0 {
                    claims.layers.remove(&blob);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u8) -> Digest {
        Digest::sha256(&[n])
    }

    #[test]
    fn what_is_left_follows_what_was_written() {
        const M: u64 = 1 << 20;
        for (size, read, written, expected) in [
            // Nothing known yet, or too little.
            (100 * M, 0, 0, 100 * M),
            (100 * M, M / 2, 5 * M, 100 * M - M / 2),
            // Early: not more than byte for byte, but less where the store has it.
            (100 * M, 10 * M, 30 * M, 90 * M),
            (100 * M, 10 * M, 5 * M, 45 * M),
            // From the half on: as it went.
            (100 * M, 50 * M, 150 * M, 150 * M),
            (100 * M, 50 * M, 0, 0),
            (100 * M, 50 * M, 5000 * M, 50 * 16 * M),
            (100 * M, 100 * M, 300 * M, 0),
            // More than the manifest says.
            (100 * M, 200 * M, 300 * M, 0),
            (0, 0, 0, 0),
            (u64::MAX, u64::MAX / 2 + 1, u64::MAX, u64::MAX - 2),
        ] {
            assert_eq!(
                left(size, read, written),
                expected,
                "{size} {read} {written}"
            );
        }
    }

    #[test]
    fn pulls_count_each_other_and_shared_layers_once() {
        let room = Room::default();
        let one = room.claim([(blob(1), 60), (blob(2), 10)], 100).unwrap();
        let refused = room.claim([(blob(3), 40)], 100).unwrap_err();
        assert_eq!(refused, Short { needed: 110 });
        let two = room.claim([(blob(1), 60), (blob(3), 30)], 100).unwrap();
        assert_eq!((room.expected(), one.whole(), two.whole()), (100, 70, 90));
        // What is here already needs no room, full as the disk may be.
        let nothing = room.claim([], 0).unwrap();
        one.landed(&blob(1));
        assert_eq!((room.expected(), two.whole()), (40, 30));
        drop((one, nothing));
        assert_eq!(room.expected(), 30);
        drop(two);
        assert_eq!(room.expected(), 0);
        assert!(room.claims().layers.is_empty() && room.claims().pulls.is_empty());
    }

    #[test]
    fn the_youngest_yields() {
        let room = Room::default();
        let counters = |read: u64, written: u64| {
            let counters = Arc::new(LayerCounters::default());
            counters.read.store(read, Ordering::Relaxed);
            counters.written.store(written, Ordering::Relaxed);
            counters
        };
        let one = room.claim([(blob(1), 60)], 200).unwrap();
        let two = room.claim([(blob(2), 60)], 200).unwrap();
        let three = room.claim([(blob(3), 60)], 200).unwrap();
        three.landed(&blob(3));
        one.started(&blob(1), &counters(30, 90));
        assert_eq!((room.expected(), one.whole()), (150, 180));
        let yields = |free| [&one, &two, &three].map(|claim| claim.must_yield(free));
        assert_eq!(yields(150), [false; 3]);
        assert_eq!(yields(149), [false, true, false]);
        two.landed(&blob(2));
        assert_eq!(yields(89), [true, false, false]);
    }
}

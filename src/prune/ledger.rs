//! What removals free, where images share parts: a part goes with its last user.

use std::collections::{BTreeSet, HashMap};

use super::words::Candidate;

/// Who is removed so far, and what that frees. Images are numbers: their places in the list it was made from.
#[derive(Debug)]
pub(super) struct Ledger {
    images: Vec<Entry>,
    parts: Vec<Shared>,
    freed: u128,
}

#[derive(Debug)]
struct Entry {
    own: u64,
    parts: Vec<usize>,
    removed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: u64,
    users: usize,
}

impl Ledger {
    pub(super) fn new(images: &[&Candidate]) -> Self {
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut parts: Vec<Shared> = Vec::new();
        let mut entries = Vec::with_capacity(images.len());
        for image in images {
            // An image may have the same layer twice.
            let mut of_image = BTreeSet::new();
            for part in &image.layers {
                let place = *places.entry(&part.id).or_insert_with(|| {
                    parts.push(Shared::default());
                    parts.len() - 1
                });
                if let Some(shared) = parts.get_mut(place) {
                    shared.bytes = shared.bytes.max(part.bytes);
                    shared.users += usize::from(of_image.insert(place));
                }
            }
            entries.push(Entry {
                own: image.own_bytes,
                parts: of_image.into_iter().collect(),
                removed: false,
            });
        }
        Ledger {
            images: entries,
            parts,
            freed: 0,
        }
    }

    pub(super) fn freed(&self) -> u128 {
        self.freed
    }

    pub(super) fn removed(&self, image: usize) -> bool {
        self.images.get(image).is_some_and(|entry| entry.removed)
    }

    /// Removes an image. Answers with the bytes that this frees.
    pub(super) fn remove(&mut self, image: usize) -> u64 {
        let Some(entry) = self.images.get_mut(image).filter(|entry| !entry.removed) else {
            return 0;
        };
        entry.removed = true;
        let mut bytes = u128::from(entry.own);
        for part in &entry.parts {
            if let Some(shared) = self.parts.get_mut(*part) {
                shared.users = shared.users.saturating_sub(1);
                if shared.users == 0 {
                    bytes += u128::from(shared.bytes);
                }
            }
        }
        self.freed += bytes;
        saturated(bytes)
    }

    /// Takes a removal back.
    pub(super) fn restore(&mut self, image: usize) {
        let Some(entry) = self.images.get_mut(image).filter(|entry| entry.removed) else {
            return;
        };
        entry.removed = false;
        let mut bytes = u128::from(entry.own);
        for part in &entry.parts {
            if let Some(shared) = self.parts.get_mut(*part) {
                if shared.users == 0 {
                    bytes += u128::from(shared.bytes);
                }
                shared.users += 1;
            }
        }
        self.freed = self.freed.saturating_sub(bytes);
    }

    /// What would still be free if this removal were taken back.
    pub(super) fn freed_without(&self, image: usize) -> u128 {
        let Some(entry) = self.images.get(image).filter(|entry| entry.removed) else {
            return self.freed;
        };
        let parts = entry.parts.iter().filter_map(|part| self.parts.get(*part));
        let shared: u128 = parts
            .filter(|shared| shared.users == 0)
            .map(|shared| u128::from(shared.bytes))
            .sum();
        self.freed.saturating_sub(u128::from(entry.own) + shared)
    }
}

pub(super) fn saturated(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::words::Part;
    use super::*;

    fn image(own: u64, parts: &[(&str, u64)]) -> Candidate {
        Candidate {
            own_bytes: own,
            layers: parts
                .iter()
                .map(|(id, bytes)| Part {
                    id: (*id).to_owned(),
                    bytes: *bytes,
                })
                .collect(),
            ..Candidate::default()
        }
    }

    #[test]
    fn a_part_goes_with_its_last_user() {
        let (a, b) = (
            image(1, &[("base", 100), ("a", 10), ("a", 10)]),
            image(2, &[("base", 100), ("b", 20)]),
        );
        let mut ledger = Ledger::new(&[&a, &b]);
        assert_eq!(ledger.remove(0), 11);
        assert_eq!(ledger.remove(0), 0);
        assert_eq!(ledger.remove(1), 122);
        assert_eq!(ledger.freed(), 133);
        assert_eq!(ledger.freed_without(0), 133 - 111);
        ledger.restore(1);
        assert_eq!(ledger.freed(), 11);
        ledger.restore(0);
        ledger.restore(0);
        assert_eq!(ledger.freed(), 0);
        assert_eq!(ledger.remove(1), 22);
        assert_eq!(ledger.remove(9), 0);
    }
}

//! What goes when images go: bytes on disk, by the images that share them.
//!
//! A content is stored once, whatever number of layers has it, so what a removal frees depends on contents as much as on
//! layers. Contents that the same layers use are one unit: it goes with the last image that has one of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::image::{DiffId, ImageId};

use super::pack::BLOCK;
use super::{Error, Inner, Store, contents, idx};

/// Units of contents that are told apart. What is beyond, the smallest, counts as shared by all layers it is of.
const MAX_UNITS: usize = 16_384;
/// Layers that come and go while their indexes are read.
const TRIES: usize = 3;

/// What goes when images go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// The images it is about, sorted.
    pub images: Vec<ImageId>,
    /// What is on disk for them. What something else holds too, such as a pull or a mount, is not here.
    pub parts: Vec<SharedPart>,
}

/// Bytes that go with the last of their users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPart {
    /// Places in [`Sharing::images`], ascending, at least one.
    pub users: Vec<u32>,
    /// On disk.
    pub bytes: u64,
}

/// Contents by the layers that use them, as of one set of layers.
#[derive(Debug, Default)]
pub(super) struct Units {
    generation: u64,
    /// Sorted.
    layers: Vec<DiffId>,
    /// Places in `layers`, and bytes on disk.
    units: Vec<(Box<[u32]>, u64)>,
}

impl Store {
    /// What is freed when images are removed, and which share it. Blocking: the indexes of all layers are read where the
    /// layers are not those of the last time.
    pub fn sharing(&self) -> Result<Sharing, Error> {
        let inner = &self.inner;
        let units = inner.units()?;
        let occupied = inner.occupied();
        let state = inner.state();
        let records = &state.records;
        let images: Vec<ImageId> = records.images.keys().cloned().collect();

        // Who has which layer. `None`: something that is no image, so nothing of it goes.
        let mut users: HashMap<&DiffId, Option<BTreeSet<u32>>> = HashMap::new();
        for (at, row) in (0u32..).zip(records.images.values()) {
            for layer in &row.record.layers {
                let of_layer = users
                    .entry(&layer.diff_id)
                    .or_insert_with(|| Some(BTreeSet::new()));
                of_layer.iter_mut().for_each(|users| users.extend([at]));
            }
        }
        let mounted = records.mounts.values().flat_map(|row| &row.layers);
        let lived_in = records.lived_in();
        for layer in state.leases.keys().chain(mounted).chain(lived_in) {
            users.insert(layer, None);
        }

        let mut parts: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
        let mut add = |users: Option<BTreeSet<u32>>, bytes: u64| {
            if let Some(users) = users.filter(|users| !users.is_empty() && bytes > 0) {
                let sum = parts.entry(users.into_iter().collect()).or_default();
                *sum = sum.saturating_add(bytes);
            }
        };
        for (layers, bytes) in &units.units {
            let mut all = BTreeSet::new();
            let known = layers.iter().all(|at| {
                let layer = units.layers.get(*at as usize);
                // One that is gone meanwhile holds nothing, one that nobody knows does.
                match layer.and_then(|layer| users.get(layer)) {
                    Some(Some(users)) => {
                        all.extend(users);
                        true
                    }
                    _ => false,
                }
            });
            add(known.then_some(all), *bytes);
        }
        for (layer, users) in &users {
            let files = [inner.layout.erofs(layer), inner.layout.idx(layer)];
            add(
                users.clone(),
                files.iter().map(|path| occupied.of(path)).sum(),
            );
        }
        let mut blobs: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
        for (at, row) in (0u32..).zip(records.images.values()) {
            for blob in &row.blobs {
                blobs.entry(blob).or_default().insert(at);
            }
        }
        for (blob, users) in blobs {
            add(Some(users), occupied.of(&inner.layout.blob(blob)));
        }
        let parts = parts.into_iter();
        Ok(Sharing {
            images,
            parts: parts
                .map(|(users, bytes)| SharedPart { users, bytes })
                .collect(),
        })
    }
}

impl Inner {
    /// Contents by the layers that use them: those of the last time, unless layers came or went.
    fn units(&self) -> Result<Arc<Units>, Error> {
        for try_ in 0..TRIES {
            let (generation, mut layers) = {
                let state = self.state();
                let records = &state.records;
                if let Some(units) = &state.units
                    && units.generation == records.layers_generation()
                {
                    return Ok(units.clone());
                }
                let layers: Vec<DiffId> = records.layers.keys().cloned().collect();
                (records.layers_generation(), layers)
            };
            layers.sort_unstable();
            let units = self.count_units(layers);
            let mut state = self.state();
            let moved = state.records.layers_generation() != generation;
            if moved && try_ + 1 < TRIES {
                continue;
            }
            // Right for the layers it saw; the next who asks looks again.
            let units = Arc::new(Units {
                generation,
                ..units?
            });
            state.units = Some(units.clone());
            return Ok(units);
        }
        Ok(Arc::default())
    }

    /// Reads the indexes. Takes 16 bytes of memory for each content of each layer while it counts.
    fn count_units(&self, layers: Vec<DiffId>) -> Result<Units, Error> {
        let mut used: Vec<(u64, u32, u32)> = Vec::new();
        for (at, layer) in (0u32..).zip(&layers) {
            let path = self.layout.idx(layer);
            match idx::read_head(&path) {
                Ok(head) => used.extend(head.extents.iter().map(|(_, place)| {
                    let key = u64::from(place.segment) << 32 | u64::from(place.block);
                    let blocks = contents::occupied(place.len) / BLOCK;
                    (key, at, u32::try_from(blocks).unwrap_or(u32::MAX))
                })),
                // Removed meanwhile, or damaged: then what it holds stays until the next start finds it dead.
                Err(error) if super::files::is_damage(&error) => {}
                Err(error) => return Err(Error::io("read", &path, error)),
            }
        }
        used.sort_unstable();
        used.dedup_by_key(|(key, at, _)| (*key, *at));
        let mut units: HashMap<Box<[u32]>, u64> = HashMap::new();
        for same in used.chunk_by(|a, b| a.0 == b.0) {
            let users: Box<[u32]> = same.iter().map(|(_, at, _)| *at).collect();
            let blocks = same.first().map_or(0, |(_, _, blocks)| *blocks);
            *units.entry(users).or_default() += u64::from(blocks) * BLOCK;
        }
        let mut units: Vec<_> = units.into_iter().collect();
        units.sort_unstable_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
        if units.len() > MAX_UNITS {
            let rest = units.split_off(MAX_UNITS);
            let bytes = rest.iter().map(|(_, bytes)| bytes).sum();
            let of: BTreeSet<u32> = rest.iter().flat_map(|(users, _)| users).copied().collect();
            units.push((of.into_iter().collect(), bytes));
        }
        Ok(Units {
            generation: 0,
            layers,
            units,
        })
    }
}

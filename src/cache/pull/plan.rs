//! What a pull still has to fetch: a pure state machine over the layers of one manifest.
//!
//! A layer whose blob is known is present at once. The others are fetched at once where nothing could be known about
//! their diffIDs (an empty store); else they wait for the config, since the same layer may be here under another
//! compression.

use std::collections::{BTreeSet, HashMap};

use crate::image::{Compression, Descriptor, DiffId, Digest, Manifest, ManifestError};

/// Where a layer of the manifest stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// The config may tell that it is here already.
    WaitForConfig,
    /// To be fetched.
    Queued,
    /// Being fetched.
    Started,
    /// The same diffID is being fetched under another digest, or the same digest further down.
    Same,
    /// In the store, under the lease of the pull.
    Present(DiffId),
}

/// A blob to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) descriptor: Descriptor,
    pub(super) compression: Compression,
}

#[derive(Clone, Debug)]
struct Slot {
    descriptor: Descriptor,
    compression: Compression,
    state: State,
}

/// A contradiction between manifest, config and what came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The manifest has other layers than the config.
    Count { manifest: usize, config: usize },
    /// A layer is not what the config says.
    Mismatch {
        blob: Digest,
        expected: DiffId,
        found: DiffId,
    },
}

/// The layers of one image on their way into the store.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    slots: Vec<Slot>,
    diff_ids: Option<Vec<DiffId>>,
}

impl Plan {
    /// `known` tells which layer a blob was stored as. `fresh` says that the store holds no layer at all.
    pub(super) fn new(
        manifest: &Manifest,
        mut known: impl FnMut(&Digest) -> Option<DiffId>,
        fresh: bool,
    ) -> Result<Self, ManifestError> {
        let mut seen = BTreeSet::new();
        let mut slots = Vec::with_capacity(manifest.layers.len());
        for descriptor in &manifest.layers {
            let compression = descriptor.compression()?;
            let state = match known(&descriptor.digest) {
                Some(diff_id) => State::Present(diff_id),
                None if !seen.insert(descriptor.digest.clone()) => State::Same,
                None if fresh => State::Queued,
                None => State::WaitForConfig,
            };
            slots.push(Slot {
                descriptor: descriptor.clone(),
                compression,
                state,
            });
        }
        Ok(Plan {
            slots,
            diff_ids: None,
        })
    }

    /// Takes in the config. `have` tells whether a layer is in the store; it is asked about layers not yet started.
    pub(super) fn config(
        &mut self,
        diff_ids: &[DiffId],
        mut have: impl FnMut(&DiffId) -> bool,
    ) -> Result<(), Fault> {
        if diff_ids.len() != self.slots.len() {
            return Err(Fault::Count {
                manifest: self.slots.len(),
                config: diff_ids.len(),
            });
        }
        // The blob that brings each diffID, so that it is fetched under one digest only.
        let mut brought: HashMap<&DiffId, Digest> = HashMap::new();
        for (slot, diff_id) in self.slots.iter().zip(diff_ids) {
            if slot.state == State::Started {
                brought.insert(diff_id, slot.descriptor.digest.clone());
            }
        }
        let mut same_blob: HashMap<Digest, &DiffId> = HashMap::new();
        for (slot, diff_id) in self.slots.iter_mut().zip(diff_ids) {
            let blob = &slot.descriptor.digest;
            let first = *same_blob.entry(blob.clone()).or_insert(diff_id);
            if first != diff_id {
                return Err(Fault::Mismatch {
                    blob: blob.clone(),
                    expected: diff_id.clone(),
                    found: first.clone(),
                });
            }
            match &slot.state {
                State::Present(found) if found != diff_id => {
                    return Err(Fault::Mismatch {
                        blob: blob.clone(),
                        expected: diff_id.clone(),
                        found: found.clone(),
                    });
                }
                State::Present(_) | State::Started => {}
                State::WaitForConfig | State::Queued | State::Same => {
                    slot.state = if have(diff_id) {
                        State::Present(diff_id.clone())
                    } else if brought.contains_key(diff_id) {
                        State::Same
                    } else {
                        brought.insert(diff_id, blob.clone());
                        State::Queued
                    };
                }
            }
        }
        self.diff_ids = Some(diff_ids.to_vec());
        Ok(())
    }

    /// Blobs to fetch, the largest first; the manifest's order among equals.
    pub(super) fn queued(&self) -> Vec<Fetch> {
        let mut queued: Vec<&Slot> = self
            .slots
            .iter()
            .filter(|slot| slot.state == State::Queued)
            .collect();
        queued.sort_by_key(|slot| std::cmp::Reverse(slot.descriptor.size));
        queued
            .into_iter()
            .map(|slot| Fetch {
                descriptor: slot.descriptor.clone(),
                compression: slot.compression,
            })
            .collect()
    }

    /// True where a blob has to be fetched that nobody has started yet.
    pub(super) fn has_queued(&self) -> bool {
        self.slots.iter().any(|slot| slot.state == State::Queued)
    }

    /// A blob is being fetched.
    pub(super) fn started(&mut self, blob: &Digest) {
        self.shift(blob, &State::Queued, &State::Started);
    }

    /// A blob has to be fetched after all: what was started came to nothing.
    pub(super) fn requeue(&mut self, blob: &Digest) {
        self.shift(blob, &State::Started, &State::Queued);
    }

    fn shift(&mut self, blob: &Digest, from: &State, to: &State) {
        for slot in self
            .slots
            .iter_mut()
            .filter(|slot| slot.descriptor.digest == *blob && slot.state == *from)
        {
            slot.state = to.clone();
        }
    }

    /// A blob arrived and unpacked to `diff_id`.
    pub(super) fn landed(&mut self, blob: &Digest, diff_id: &DiffId) -> Result<(), Fault> {
        let expected = self.diff_ids.as_deref();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let wanted = expected.and_then(|ids| ids.get(at));
            let this = slot.descriptor.digest == *blob;
            if this
                && let Some(wanted) = wanted
                && wanted != diff_id
            {
                return Err(Fault::Mismatch {
                    blob: blob.clone(),
                    expected: wanted.clone(),
                    found: diff_id.clone(),
                });
            }
            let alias = slot.state == State::Same && wanted == Some(diff_id);
            if this || alias {
                slot.state = State::Present(diff_id.clone());
            }
        }
        Ok(())
    }

    /// Where each layer is, once all are here and agree with the config.
    pub(super) fn complete(&self) -> Option<&[DiffId]> {
        let here = self
            .slots
            .iter()
            .all(|slot| matches!(slot.state, State::Present(_)));
        self.diff_ids.as_deref().filter(|_| here)
    }

    /// Per layer of the manifest: blob, compressed size and whether it is in the store.
    pub(super) fn layers(&self) -> impl Iterator<Item = (&Descriptor, bool)> {
        self.slots
            .iter()
            .map(|slot| (&slot.descriptor, matches!(slot.state, State::Present(_))))
    }
}

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

    /// What the config says a blob unpacks to, once it has come.
    pub(super) fn expected(&self, blob: &Digest) -> Option<&DiffId> {
        let at = self
            .slots
            .iter()
            .position(|slot| slot.descriptor.digest == *blob)?;
        self.diff_ids.as_ref()?.get(at)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        format!("sha256:{n:064x}").parse().unwrap()
    }

    fn diff(n: u64) -> DiffId {
        DiffId(digest(1000 + n))
    }

    fn descriptor(n: u64, size: u64) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            digest: digest(n),
            size,
            platform: None,
            annotations: Default::default(),
        }
    }

    fn manifest(layers: &[(u64, u64)]) -> Manifest {
        Manifest {
            config: descriptor(999, 10),
            layers: layers
                .iter()
                .map(|(n, size)| descriptor(*n, *size))
                .collect(),
            annotations: Default::default(),
        }
    }

    fn queued(plan: &Plan) -> Vec<u64> {
        let number = |fetch: Fetch| {
            u64::from_str_radix(fetch.descriptor.digest.hex().trim_start_matches('0'), 16).unwrap()
        };
        plan.queued().into_iter().map(number).collect()
    }

    fn nothing(_: &Digest) -> Option<DiffId> {
        None
    }

    #[test]
    fn an_empty_store_fetches_at_once_and_the_largest_first() {
        let plan = Plan::new(
            &manifest(&[(1, 5), (2, 50), (3, 20), (4, 50)]),
            nothing,
            true,
        )
        .unwrap();
        assert_eq!(queued(&plan), [2, 4, 3, 1]);
    }

    #[test]
    fn otherwise_unknown_blobs_wait_for_the_config() {
        let known = |blob: &Digest| (*blob == digest(1)).then(|| diff(1));
        let mut plan = Plan::new(&manifest(&[(1, 5), (2, 50), (3, 20)]), known, false).unwrap();
        assert!(!plan.has_queued());
        plan.config(&[diff(1), diff(2), diff(3)], |id| *id == diff(2))
            .unwrap();
        assert_eq!(queued(&plan), [3]);
        plan.started(&digest(3));
        assert!(!plan.has_queued() && plan.complete().is_none());
        plan.landed(&digest(3), &diff(3)).unwrap();
        assert_eq!(plan.complete(), Some(&[diff(1), diff(2), diff(3)][..]));
    }

    #[test]
    fn a_known_image_has_nothing_to_fetch() {
        let mut plan = Plan::new(&manifest(&[(1, 5), (2, 6)]), nothing, false).unwrap();
        plan.config(&[diff(1), diff(2)], |_| true).unwrap();
        assert!(plan.complete().is_some() && !plan.has_queued());
    }

    #[test]
    fn no_layers_are_complete_with_the_config() {
        let mut plan = Plan::new(&manifest(&[]), nothing, true).unwrap();
        assert_eq!(plan.complete(), None);
        plan.config(&[], |_| false).unwrap();
        assert_eq!(plan.complete(), Some(&[][..]));
    }

    #[test]
    fn the_counts_of_layers_and_diff_ids_must_agree() {
        let mut plan = Plan::new(&manifest(&[(1, 5)]), nothing, true).unwrap();
        assert_eq!(
            plan.config(&[], |_| false),
            Err(Fault::Count {
                manifest: 1,
                config: 0
            })
        );
        assert_eq!(
            plan.config(&[diff(1), diff(2)], |_| false),
            Err(Fault::Count {
                manifest: 1,
                config: 2
            })
        );
    }

    #[test]
    fn the_same_blob_twice_is_fetched_once() {
        for fresh in [true, false] {
            let mut plan = Plan::new(&manifest(&[(1, 5), (2, 9), (1, 5)]), nothing, fresh).unwrap();
            plan.config(&[diff(1), diff(2), diff(1)], |_| false)
                .unwrap();
            assert_eq!(queued(&plan), [2, 1], "fresh {fresh}");
            for n in [1, 2] {
                plan.started(&digest(n));
                plan.landed(&digest(n), &diff(n)).unwrap();
            }
            assert!(plan.complete().is_some());
        }
    }

    #[test]
    fn the_same_blob_cannot_have_two_diff_ids() {
        let mut plan = Plan::new(&manifest(&[(1, 5), (1, 5)]), nothing, false).unwrap();
        let fault = plan.config(&[diff(1), diff(2)], |_| false);
        assert_eq!(
            fault,
            Err(Fault::Mismatch {
                blob: digest(1),
                expected: diff(2),
                found: diff(1)
            })
        );
    }

    #[test]
    fn the_same_layer_under_two_digests_is_fetched_once() {
        let mut plan = Plan::new(&manifest(&[(1, 5), (2, 9)]), nothing, false).unwrap();
        plan.config(&[diff(7), diff(7)], |_| false).unwrap();
        assert_eq!(queued(&plan), [1]);
        plan.started(&digest(1));
        plan.landed(&digest(1), &diff(7)).unwrap();
        assert!(plan.complete().is_some());
    }

    #[test]
    fn a_layer_that_is_not_what_the_config_says_is_named() {
        // The layer came first.
        let mut plan = Plan::new(&manifest(&[(1, 5)]), nothing, true).unwrap();
        plan.started(&digest(1));
        plan.landed(&digest(1), &diff(8)).unwrap();
        let fault = Fault::Mismatch {
            blob: digest(1),
            expected: diff(1),
            found: diff(8),
        };
        assert_eq!(plan.config(&[diff(1)], |_| false), Err(fault.clone()));
        // The config came first.
        let mut plan = Plan::new(&manifest(&[(1, 5)]), nothing, true).unwrap();
        plan.config(&[diff(1)], |_| false).unwrap();
        plan.started(&digest(1));
        assert_eq!(plan.landed(&digest(1), &diff(8)), Err(fault));
        // The blob was known.
        let mut plan = Plan::new(&manifest(&[(1, 5)]), |_| Some(diff(8)), false).unwrap();
        assert!(plan.config(&[diff(1)], |_| true).is_err());
    }

    #[test]
    fn the_config_spares_what_is_queued_but_not_what_is_started() {
        let mut plan = Plan::new(&manifest(&[(1, 5), (2, 9)]), nothing, true).unwrap();
        plan.started(&digest(2));
        plan.config(&[diff(1), diff(2)], |_| true).unwrap();
        assert!(!plan.has_queued() && plan.complete().is_none());
        plan.landed(&digest(2), &diff(2)).unwrap();
        assert!(plan.complete().is_some());
    }

    #[test]
    fn what_came_to_nothing_is_queued_again() {
        let mut plan = Plan::new(&manifest(&[(1, 5)]), nothing, true).unwrap();
        plan.started(&digest(1));
        plan.requeue(&digest(1));
        assert_eq!(queued(&plan), [1]);
    }

    #[test]
    fn an_unknown_kind_of_layer_is_refused_before_anything_is_fetched() {
        let mut manifest = manifest(&[(1, 5)]);
        manifest.layers[0].media_type = "application/vnd.example.chart".into();
        assert!(Plan::new(&manifest, nothing, true).is_err());
    }
}

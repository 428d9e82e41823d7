//! The nodes that one prepull chooses, in the order in which a rollout admits them.
//!
//! Kept up to date node by node: a change of one node costs a hash and a search, not a walk over all nodes.

use super::nodes::{Entry, Id, Nodes, id};
use super::wave::{Progress, Seat};
use crate::k8s::api::{SharedPrepullSpec, Slot, slot};

/// One chosen node: 16 bytes, since 500 prepulls may choose 5,000 nodes each.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    slot: Slot,
    node: u32,
    progress: Progress,
}

/// The nodes of one prepull and revision.
#[derive(Clone, Debug, Default)]
pub(super) struct Seats {
    prepull: String,
    prepull_id: Id,
    revision: String,
    revision_id: Id,
    /// Sorted by slot, then node.
    chosen: Vec<Chosen>,
}

impl Seats {
    /// Seats of all nodes that the spec chooses.
    pub(super) fn new(uid: &str, revision: &str, spec: &SharedPrepullSpec, nodes: &Nodes) -> Self {
        let mut seats = Seats {
            prepull: uid.to_owned(),
            prepull_id: id(uid),
            revision: revision.to_owned(),
            revision_id: id(revision),
            chosen: Vec::new(),
        };
        for (number, entry, node) in nodes.existing() {
            if spec.selects(&node.facts) {
                let chosen = seats.seat(number, entry, &node.facts.uid);
                seats.chosen.push(chosen);
            }
        }
        seats
            .chosen
            .sort_unstable_by_key(|chosen| (chosen.slot, chosen.node));
        seats.chosen.shrink_to_fit();
        seats
    }

    /// The revision that the order is of.
    pub(super) fn revision(&self) -> &str {
        &self.revision
    }

    fn slot(&self, node_uid: &str) -> Slot {
        slot(node_uid, &self.prepull, &self.revision)
    }

    fn seat(&self, number: u32, entry: &Entry, node_uid: &str) -> Chosen {
        Chosen {
            slot: self.slot(node_uid),
            node: number,
            progress: entry.progress(self.prepull_id, self.revision_id),
        }
    }

    fn find(&self, number: u32, node_uid: &str) -> Result<usize, usize> {
        let key = (self.slot(node_uid), number);
        self.chosen
            .binary_search_by_key(&key, |chosen| (chosen.slot, chosen.node))
    }

    /// A node is gone, or was replaced by one with another uid. True if it had a seat.
    pub(super) fn remove(&mut self, number: u32, node_uid: &str) -> bool {
        let found = self.find(number, node_uid);
        if let Ok(at) = found {
            self.chosen.remove(at);
        }
        found.is_ok()
    }

    /// A node appeared, changed, or reported. True if anything is different now.
    pub(super) fn update(&mut self, number: u32, spec: &SharedPrepullSpec, nodes: &Nodes) -> bool {
        let Some((entry, node)) = nodes
            .get(number)
            .and_then(|entry| Some((entry, entry.node.as_ref()?)))
        else {
            return false;
        };
        let uid = &node.facts.uid;
        match (self.find(number, uid), spec.selects(&node.facts)) {
            (Ok(at), true) => {
                let progress = entry.progress(self.prepull_id, self.revision_id);
                self.chosen.get_mut(at).is_some_and(|chosen| {
                    std::mem::replace(&mut chosen.progress, progress) != progress
                })
            }
            (Ok(at), false) => {
                self.chosen.remove(at);
                true
            }
            (Err(at), true) => {
                let chosen = self.seat(number, entry, uid);
                self.chosen.insert(at, chosen);
                true
            }
            (Err(_), false) => false,
        }
    }

    /// In the order of admission, as [`super::wave`] wants them.
    pub(super) fn iter(&self, nodes: &Nodes) -> impl Iterator<Item = Seat> + Clone {
        self.chosen.iter().map(|chosen| Seat {
            slot: chosen.slot,
            progress: chosen.progress,
            unreachable: nodes
                .get(chosen.node)
                .is_some_and(|entry| entry.unreachable),
        })
    }

    /// Numbers of nodes with slot and progress, in the order of admission.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (u32, Slot, Progress)> {
        self.chosen
            .iter()
            .map(|chosen| (chosen.node, chosen.slot, chosen.progress))
    }

    pub(super) fn len(&self) -> u64 {
        self.chosen.len() as u64
    }
}

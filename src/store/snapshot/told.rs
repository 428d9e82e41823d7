//! What was last said of a snapshot's mounts. A runtime asks for them two or three times before a container runs, and
//! each wait of a call is one of the container's.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::SnapshotMount;
use super::stack::Below;
use crate::image::DiffId;
use crate::store::records::SnapshotRow;
use crate::store::{Inner, mount};

/// Containers that are being started at once, and more.
const MAX_TOLD: usize = 64;

/// The latest answers, the oldest first.
#[derive(Debug, Default)]
pub(in crate::store) struct Told(VecDeque<Answer>);

#[derive(Clone, Debug)]
struct Answer {
    key: String,
    row: SnapshotRow,
    layers: Vec<DiffId>,
    mounted: Vec<PathBuf>,
    mounts: Vec<SnapshotMount>,
}

impl Inner {
    pub(super) fn tell(&self, key: &str, row: SnapshotRow, below: Below, mounts: &[SnapshotMount]) {
        let told = &mut self.state().told.0;
        told.retain(|answer| answer.key != key);
        if told.len() >= MAX_TOLD {
            told.pop_front();
        }
        told.push_back(Answer {
            key: key.to_owned(),
            row,
            mounted: below.mounted().to_vec(),
            layers: below.layers,
            mounts: mounts.to_vec(),
        });
    }

    /// The last answer, where it would be the same now: of the same snapshot, on layers that are sound and mounted.
    /// From memory, but for a look at each mount point.
    pub(super) fn told(&self, key: &str) -> Option<Vec<SnapshotMount>> {
        let answer = {
            let state = self.state();
            let records = &state.records;
            let answer = state.told.0.iter().find(|answer| answer.key == key)?;
            let sound = |layer| {
                let row = records.layers.get(layer);
                row.is_some_and(|row| row.damaged.is_none())
            };
            let holds =
                records.snapshots.get(key) == Some(&answer.row) && answer.layers.iter().all(sound);
            holds.then(|| answer.clone())?
        };
        let mut mounted = answer.mounted.iter();
        let holds = mounted.all(|at| mount::is_mounted(at).unwrap_or(false));
        holds.then_some(answer.mounts)
    }
}

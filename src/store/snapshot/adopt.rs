//! Layers of the store as committed snapshots: found by the chain that the runtime names, or made anew.

use super::{
    MAX_NAME, NewSnapshot, OURS, REF, Result, SnapshotError, SnapshotKind, SnapshotUsage, chain,
};
use crate::image::{DiffId, Digest};
use crate::store::records::{ChainedLayer, Change, SnapshotRow};
use crate::store::{Error, Inner, State};

/// Names the layer on top of it, where the runtime is new enough.
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";

impl Inner {
    /// Whether there is, or now is, a committed snapshot of the chain `target` on top of `parent`. The caller holds the
    /// commit lock, so no layer is removed meanwhile.
    pub(super) fn adopt(
        &self,
        target: &str,
        parent: Option<&str>,
        new: &NewSnapshot,
    ) -> Result<bool> {
        let layer = {
            let state = self.state();
            let rows = &state.records.snapshots;
            let known = |row: &SnapshotRow| {
                row.kind == SnapshotKind::Committed
                    && row.parent.as_deref() == parent
                    && row.labels.get(REF).is_some_and(|chain| chain == target)
            };
            if rows.values().any(known) {
                return Ok(true);
            }
            let Ok(chain) = target.parse::<Digest>() else {
                return Ok(false);
            };
            let below = match parent.map(|parent| rows.get(parent)) {
                None => None,
                Some(Some(SnapshotRow {
                    layer: Some(below), ..
                })) => Some(&below.chain),
                // What stands on a folder is unpacked too: what it hides of the folder's directories, a layer cannot tell.
                Some(_) => return Ok(false),
            };
            let hint = new.labels.get(DIFF_ID).map(String::as_str);
            let Some(diff_id) = state.layer_of_chain(&chain, below, hint) else {
                return Ok(false);
            };
            ChainedLayer { diff_id, chain }
        };
        let row = self.state().records.layers.get(&layer.diff_id).cloned();
        let Some(row) = row else { return Ok(false) };
        match self.verify_once(&row) {
            Ok(()) => {}
            // Then the runtime unpacks it itself.
            Err(Error::Damaged { subject, cause }) => {
                self.quarantine(&layer.diff_id, &format!("{subject}: {cause}"))?;
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        let mut row = shown(layer, parent.map(str::to_owned), new.now_ms);
        row.1.labels.extend(new.labels.clone());
        self.apply(vec![Change::PutSnapshot(row.0, row.1)])?;
        self.count_snapshots();
        Ok(true)
    }

    /// Makes the snapshot of a chain anew, and those below it, where the store has an image that begins with it. A runtime
    /// asks for one that is not here when our database was lost and the image was pulled again. The caller holds the
    /// commit lock.
    pub(super) fn revive(&self, key: &str) -> Result<SnapshotRow> {
        let lost = || SnapshotError::NotFound(key.chars().take(MAX_NAME).collect());
        let chain = key.strip_prefix(OURS).and_then(|chain| chain.parse().ok());
        let chain: Digest = chain.ok_or_else(lost)?;
        let rows = {
            let state = self.state();
            let mut images = state.records.visible().values();
            let found = images.find_map(|image| {
                let mut rows: Vec<(String, SnapshotRow)> = Vec::new();
                for layer in &image.record.layers {
                    let below = rows.last().map(|(name, _)| name.clone());
                    let chained = ChainedLayer {
                        chain: chain::of(
                            rows.last()
                                .and_then(|(_, row)| row.layer.as_ref())
                                .map(|below| &below.chain),
                            &layer.diff_id,
                        ),
                        diff_id: layer.diff_id.clone(),
                    };
                    let last = chained.chain == chain;
                    rows.push(shown(chained, below, image.record.pulled_at));
                    if last {
                        return Some(rows);
                    }
                }
                None
            });
            let mut rows = found.ok_or_else(lost)?;
            rows.retain(|(name, _)| !state.records.snapshots.contains_key(name));
            rows
        };
        tracing::info!(snapshot = key, "Made a snapshot anew that containerd knows");
        let changes = rows.into_iter();
        let changes = changes.map(|(name, row)| Change::PutSnapshot(name, row));
        self.apply(changes.collect())?;
        self.count_snapshots();
        self.snapshot_row(key)
    }
}

impl State {
    /// A sound layer that makes `chain` of the chain below it.
    fn layer_of_chain(
        &self,
        chain: &Digest,
        below: Option<&Digest>,
        hint: Option<&str>,
    ) -> Option<DiffId> {
        let usable = |id: &DiffId| self.records.is_sound(id) && !self.doomed.contains(id);
        let hinted = hint
            .and_then(|hint| hint.parse().ok())
            .map(DiffId)
            .filter(|id| chain::of(below, id) == *chain && usable(id));
        hinted.or_else(|| {
            let mut ids = self.records.layers.keys();
            ids.find(|id| chain::of(below, id) == *chain && usable(id))
                .cloned()
        })
    }
}

/// The committed snapshot of a layer, with its name.
fn shown(layer: ChainedLayer, parent: Option<String>, at: i64) -> (String, SnapshotRow) {
    let name = format!("{OURS}{}", layer.chain);
    let row = SnapshotRow {
        id: 0,
        kind: SnapshotKind::Committed,
        parent,
        labels: [(REF.to_owned(), layer.chain.to_string())].into(),
        created_at: at,
        updated_at: at,
        layer: Some(layer),
        usage: SnapshotUsage::default(),
        fixup: None,
    };
    (name, row)
}

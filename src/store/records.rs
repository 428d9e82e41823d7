//! The rows of the database, and the state of the store in memory: one set of changes is applied to both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::image::{DiffId, Digest, ImageId};

use super::clock::ClockRow;
use super::snapshot::{SnapshotKind, SnapshotUsage};
use super::types::{Image, ImageRecord, Layer, Name};

/// An image with the blobs it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRow {
    pub(super) record: ImageRecord,
    /// Manifest, index and config.
    pub(super) blobs: Vec<Digest>,
    /// Set when one of its blobs was found damaged.
    #[serde(default)]
    pub(super) damaged: bool,
    /// By the store's clock; absent in rows from before there was one, until the store is opened.
    #[serde(default)]
    pub(super) seen: Seen,
    /// Namespaces that declared it.
    #[serde(default)]
    pub(super) namespaces: BTreeSet<String>,
}

/// Namespaces kept with an image.
pub(super) const MAX_NAMESPACES: usize = 64;

/// When an image was pulled and last used, in milliseconds of the store's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) pulled: u64,
    pub(super) used: u64,
    /// The last use that is on disk.
    #[serde(skip)]
    pub(super) stored: u64,
    /// False where nobody has set it.
    pub(super) known: bool,
}

/// Where a name points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NameRow {
    pub(super) image: ImageId,
    pub(super) target: Digest,
    /// When it was first given to the image, in milliseconds since the epoch.
    #[serde(default)]
    pub(super) since: i64,
}

/// A layer, with the checksums of its two files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRow {
    pub(super) diff_id: DiffId,
    pub(super) tar_bytes: u64,
    pub(super) content_bytes: u64,
    pub(super) added_bytes: u64,
    pub(super) entries: u64,
    /// Directories of its tree that its tar does not name; absent where nobody counted.
    #[serde(default)]
    pub(super) implied: Option<u64>,
    pub(super) erofs_bytes: u64,
    /// blake3, hex.
    pub(super) erofs_hash: String,
    pub(super) idx_bytes: u64,
    /// blake3, hex.
    pub(super) idx_hash: String,
    /// Why it must not be used; a re-pull replaces it.
    #[serde(default)]
    pub(super) damaged: Option<String>,
}

/// A mounted image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountRow {
    pub(super) image: ImageId,
    pub(super) layers: Vec<DiffId>,
    /// The small image of attributes on top of them, below `mounts/`.
    #[serde(default)]
    pub(super) fixup: Option<String>,
}

/// A snapshot of a container runtime; see [`super::snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotRow {
    /// Its folder below `snapshots/`; a layer of the store has none, whatever the number.
    pub(super) id: u64,
    pub(super) kind: SnapshotKind,
    pub(super) parent: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    /// Milliseconds since the epoch.
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
    /// Set for one that shows a layer of the store.
    #[serde(default)]
    pub(super) layer: Option<ChainedLayer>,
    /// Of a folder that was committed.
    #[serde(default)]
    pub(super) usage: SnapshotUsage,
    /// As in [`MountRow`].
    #[serde(default)]
    pub(super) fixup: Option<String>,
}

/// A layer on top of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChainedLayer {
    pub(super) diff_id: DiffId,
    /// Of it and all below.
    pub(super) chain: Digest,
}

/// Digest names of one image. A tag that is published again and again with other indexes around the same manifest leaves
/// one each time.
pub(super) const MAX_DIGEST_NAMES: usize = 64;

/// One change of the records; several make a transaction.
#[derive(Clone, Debug)]
pub(super) enum Change {
    PutImage(ImageRow),
    DeleteImage(ImageId),
    PutName(String, NameRow),
    DeleteName(String),
    PutLayer(LayerRow),
    DeleteLayer(DiffId),
    /// A compressed blob and the layer it inflates to.
    PutBlob(Digest, DiffId),
    DeleteBlob(Digest),
    /// A segment and its committed length in bytes.
    PutSegment(u32, u64),
    DeleteSegment(u32),
    /// The first segment id never used.
    NextSegment(u32),
    PutMount(PathBuf, MountRow),
    DeleteMount(PathBuf),
    PutSnapshot(String, SnapshotRow),
    DeleteSnapshot(String),
    Clock(ClockRow),
}

/// All rows, in memory. Reads never touch the disk.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) images: BTreeMap<ImageId, ImageRow>,
    pub(super) names: BTreeMap<String, NameRow>,
    pub(super) layers: HashMap<DiffId, LayerRow>,
    pub(super) blobs: HashMap<Digest, DiffId>,
    pub(super) segments: BTreeMap<u32, u64>,
    pub(super) mounts: BTreeMap<PathBuf, MountRow>,
    pub(super) snapshots: BTreeMap<String, SnapshotRow>,
    pub(super) next_segment: u32,
    pub(super) clock: Option<ClockRow>,
    /// Counts changes of the set of layers.
    layers_generation: u64,
    visible: BTreeMap<ImageId, Arc<Image>>,
}

impl Records {
    /// Applies changes that are durable already. True where what is visible may have changed.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> bool {
        let mut shown = false;
        for change in changes {
            shown |= match &change {
                Change::PutImage(_)
                | Change::DeleteImage(_)
                | Change::PutName(..)
                | Change::DeleteName(_) => true,
                // A new layer changes nothing that is seen, unless it brings back an image that lacked it.
                Change::PutLayer(row) => {
                    self.layers.contains_key(&row.diff_id)
                        || self.images.len() != self.visible.len()
                }
                // No image needs it.
                Change::DeleteLayer(_) => false,
                _ => false,
            };
            self.apply_one(change);
        }
        if shown {
            self.show();
        }
        shown
    }

    fn apply_one(&mut self, change: Change) {
        match change {
            Change::PutImage(mut row) => {
                row.seen.stored = row.seen.used;
                // It may have been used since the change was made up.
                if let Some(known) = self.images.get(&row.record.id) {
                    let last = known.record.last_used_at;
                    row.record.last_used_at = row.record.last_used_at.max(last);
                    row.seen.used = row.seen.used.max(known.seen.used);
                }
                self.images.insert(row.record.id.clone(), row);
            }
            Change::DeleteImage(id) => {
                self.images.remove(&id);
            }
            Change::PutName(name, row) => {
                self.names.insert(name, row);
            }
            Change::DeleteName(name) => {
                self.names.remove(&name);
            }
            Change::PutLayer(row) => {
                self.layers_generation = self.layers_generation.wrapping_add(1);
                self.layers.insert(row.diff_id.clone(), row);
            }
            Change::DeleteLayer(id) => {
                self.layers_generation = self.layers_generation.wrapping_add(1);
                self.layers.remove(&id);
            }
            Change::PutBlob(blob, id) => {
                self.blobs.insert(blob, id);
            }
            Change::DeleteBlob(blob) => {
                self.blobs.remove(&blob);
            }
            Change::PutSegment(segment, len) => {
                self.segments.insert(segment, len);
            }
            Change::DeleteSegment(segment) => {
                self.segments.remove(&segment);
            }
            // Another ingest may have taken an id while the change was on its way to the disk.
            Change::NextSegment(next) => self.next_segment = self.next_segment.max(next),
            Change::PutMount(target, row) => {
                self.mounts.insert(target, row);
            }
            Change::DeleteMount(target) => {
                self.mounts.remove(&target);
            }
            Change::PutSnapshot(name, row) => {
                self.snapshots.insert(name, row);
            }
            Change::DeleteSnapshot(name) => {
                self.snapshots.remove(&name);
            }
            Change::Clock(row) => self.clock = Some(row),
        }
    }

    /// Another where layers came or went.
    pub(super) fn layers_generation(&self) -> u64 {
        self.layers_generation
    }

    /// The changes that make these records out of none.
    pub(super) fn dump(&self) -> Vec<Change> {
        let mut rows = vec![Change::NextSegment(self.next_segment)];
        rows.extend(self.clock.map(Change::Clock));
        rows.extend(self.images.values().cloned().map(Change::PutImage));
        rows.extend(self.layers.values().cloned().map(Change::PutLayer));
        let names = self.names.iter();
        rows.extend(names.map(|(name, row)| Change::PutName(name.clone(), row.clone())));
        let blobs = self.blobs.iter();
        rows.extend(blobs.map(|(blob, id)| Change::PutBlob(blob.clone(), id.clone())));
        let segments = self.segments.iter();
        rows.extend(segments.map(|(id, len)| Change::PutSegment(*id, *len)));
        let mounts = self.mounts.iter();
        rows.extend(mounts.map(|(at, row)| Change::PutMount(at.clone(), row.clone())));
        let snapshots = self.snapshots.iter();
        rows.extend(snapshots.map(|(name, row)| Change::PutSnapshot(name.clone(), row.clone())));
        rows
    }

    /// Rebuilds what is visible: sound images with their names, tags first, each group sorted.
    pub(super) fn show(&mut self) {
        let mut names: BTreeMap<&ImageId, Vec<Name>> = BTreeMap::new();
        for (name, row) in &self.names {
            names.entry(&row.image).or_default().push(Name {
                name: name.clone(),
                target: row.target.clone(),
            });
        }
        let mut visible = BTreeMap::new();
        for (id, row) in &self.images {
            if row.damaged || !row.record.layers.iter().all(|l| self.is_sound(&l.diff_id)) {
                continue;
            }
            let mut names = names.remove(id).unwrap_or_default();
            names.sort_by(|a, b| {
                (a.name.contains('@'), &a.name).cmp(&(b.name.contains('@'), &b.name))
            });
            let image = Image {
                record: row.record.clone(),
                names,
            };
            let image = match self.visible.get(id) {
                Some(same) if **same == image => same.clone(),
                _ => Arc::new(image),
            };
            visible.insert(id.clone(), image);
        }
        self.visible = visible;
    }

    /// Records a use, by the wall clock and by the store's. How long the last one that is on disk is before it, in
    /// milliseconds; `None` where there is no such image.
    pub(super) fn touch(&mut self, id: &ImageId, at_ms: i64, tick: u64) -> Option<u64> {
        let row = self.images.get_mut(id)?;
        row.seen.used = row.seen.used.max(tick);
        let behind = row.seen.used.saturating_sub(row.seen.stored);
        // For people: the wall clock may have been put back.
        row.record.last_used_at = at_ms;
        if let Some(image) = self.visible.get_mut(id) {
            Arc::make_mut(image).record.last_used_at = at_ms;
        }
        Some(behind)
    }

    /// The uses that were written.
    pub(super) fn stored(&mut self, rows: &[Change]) {
        for change in rows {
            if let Change::PutImage(row) = change
                && let Some(known) = self.images.get_mut(&row.record.id)
            {
                known.seen.stored = row.seen.used;
            }
        }
    }

    /// Gives images that the store's clock knows nothing of the time from which they age: now, in the order in which they
    /// were pulled.
    pub(super) fn begin_ageing(&mut self, now: u64) -> Vec<Change> {
        let mut rows: Vec<&mut ImageRow> = self.images.values_mut().collect();
        for row in &mut rows {
            row.seen.stored = row.seen.used;
        }
        rows.retain(|row| !row.seen.known);
        rows.sort_by_key(|row| row.record.pulled_at);
        let count = rows.len() as u64;
        for (row, at) in rows.iter_mut().zip(0u64..) {
            let at = now.saturating_sub(count - at);
            row.seen = Seen {
                pulled: at,
                used: now,
                stored: now,
                known: true,
            };
        }
        rows.into_iter()
            .map(|row| Change::PutImage(row.clone()))
            .collect()
    }

    /// Present and not damaged.
    pub(super) fn is_sound(&self, layer: &DiffId) -> bool {
        self.layers
            .get(layer)
            .is_some_and(|row| row.damaged.is_none())
    }

    pub(super) fn visible(&self) -> &BTreeMap<ImageId, Arc<Image>> {
        &self.visible
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<Image>> {
        self.visible.get(&self.names.get(name)?.image).cloned()
    }

    /// Layers that an image, a mount or a snapshot needs, `without` one image.
    pub(super) fn needed(&self, without: Option<&ImageId>) -> BTreeSet<DiffId> {
        self.images
            .iter()
            .filter(|(id, _)| Some(*id) != without)
            .flat_map(|(_, row)| row.record.layers.iter().map(|layer| layer.diff_id.clone()))
            .chain(self.mounts.values().flat_map(|row| row.layers.clone()))
            .chain(self.snapshot_layers().cloned())
            .collect()
    }

    /// Layers that snapshots show.
    pub(super) fn snapshot_layers(&self) -> impl Iterator<Item = &DiffId> {
        let layers = self.snapshots.values().filter_map(|row| row.layer.as_ref());
        layers.map(|layer| &layer.diff_id)
    }

    /// Layers below the snapshots that containers write to or read from. Those that merely stand for an image in a
    /// runtime go when it learns that the image has gone.
    pub(super) fn lived_in(&self) -> BTreeSet<&DiffId> {
        let mut layers = BTreeSet::new();
        for row in self.snapshots.values() {
            if row.kind == SnapshotKind::Committed {
                continue;
            }
            let mut below = row.parent.as_ref();
            let mut steps = 0;
            while let Some(parent) = below.and_then(|name| self.snapshots.get(name)) {
                layers.extend(parent.layer.as_ref().map(|layer| &layer.diff_id));
                below = parent.parent.as_ref();
                steps += 1;
                // A chain has no circle; damage might make one.
                if steps > self.snapshots.len() {
                    break;
                }
            }
        }
        layers
    }

    /// The oldest digest names that an image has beyond the limit, once it has `new` ones too. Never one of those, nor one
    /// of what a tag points at.
    pub(super) fn surplus_names(&self, image: &ImageId, new: &[Name]) -> Vec<String> {
        let is_new = |name: &str| new.iter().any(|new| new.name == name);
        let known = self.names.iter().filter(|(_, row)| row.image == *image);
        let (digests, tags): (Vec<_>, Vec<_>) = known
            .filter(|(name, _)| !is_new(name))
            .partition(|(name, _)| name.contains('@'));
        let fresh = new.iter().filter(|new| new.name.contains('@')).count();
        let surplus = (digests.len() + fresh).saturating_sub(MAX_DIGEST_NAMES);
        let mut candidates: Vec<_> = digests
            .into_iter()
            .filter(|(_, row)| !tags.iter().any(|(_, tag)| tag.target == row.target))
            .collect();
        candidates.sort_by_key(|(name, row)| (row.since, *name));
        let oldest = candidates.into_iter().take(surplus);
        oldest.map(|(name, _)| name.clone()).collect()
    }

    /// The changes that forget a layer and the blobs known to inflate to it.
    pub(super) fn forget_layer(&self, layer: &DiffId) -> Vec<Change> {
        let mut changes = vec![Change::DeleteLayer(layer.clone())];
        changes.extend(
            self.blobs
                .iter()
                .filter(|(_, id)| *id == layer)
                .map(|(blob, _)| Change::DeleteBlob(blob.clone())),
        );
        changes
    }

    /// What people call an image: its names, else its id.
    pub(super) fn names_of(&self, id: &ImageId) -> Vec<String> {
        let names: Vec<String> = self
            .names
            .iter()
            .filter(|(_, row)| row.image == *id)
            .map(|(name, _)| name.clone())
            .collect();
        if names.is_empty() {
            vec![id.to_string()]
        } else {
            names
        }
    }

    /// Names of all images with this layer.
    pub(super) fn users_of(&self, layer: &DiffId) -> Vec<String> {
        self.images
            .iter()
            .filter(|(_, row)| row.record.layers.iter().any(|l| l.diff_id == *layer))
            .flat_map(|(id, _)| self.names_of(id))
            .collect()
    }
}

impl LayerRow {
    pub(super) fn layer(&self) -> Layer {
        Layer {
            diff_id: self.diff_id.clone(),
            tar_bytes: self.tar_bytes,
            content_bytes: self.content_bytes,
            added_bytes: self.added_bytes,
            entries: self.entries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_record_from_before_staging_is_not_staged() {
        let id = Digest::sha256(b"config");
        let old = serde_json::json!({
            "record": {
                "id": id, "platform": {"os": "linux", "architecture": "amd64", "variant": ""}, "manifest": id,
                "layers": [], "created": null, "size": 1, "user": "", "labels": {}, "pulled_at": 0,
                "last_used_at": 0, "pinned": true
            },
            "blobs": []
        });
        let row: ImageRow = serde_json::from_value(old).unwrap();
        assert!(row.record.pinned && !row.record.staged);
    }

    #[test]
    fn an_id_taken_during_a_commit_is_not_given_out_again() {
        let mut records = Records {
            next_segment: 2,
            ..Records::default()
        };
        records.apply(vec![Change::NextSegment(1)]);
        assert_eq!(records.next_segment, 2);
        records.apply(vec![Change::NextSegment(3)]);
        assert_eq!(records.next_segment, 3);
    }
}

//! Removal of images, and collection of what nothing uses.
//!
//! First one durable transaction, then the freeing: a crash in between leaves files that no row names, for start-up.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::image::{DiffId, Digest, ImageId};

use super::records::Change;
use super::types::Removed;
use super::{Error, Inner, State, Store, files, idx};

impl Store {
    /// Removes an image with all its names and frees what only it used, before returning. Blocking. An image that is
    /// absent is `None`. Layers that are mounted or leased stay until they are released.
    pub fn remove_image(&self, id: &ImageId) -> Result<Option<Removed>, Error> {
        let began = Instant::now();
        let inner = &self.inner;
        let _commits = inner.commits();
        let (changes, removed, blobs) = {
            let mut state = inner.state();
            let records = &state.records;
            let Some(row) = records.images.get(id) else {
                return Ok(None);
            };
            let needed = records.needed(Some(id));
            let layers: Vec<DiffId> = row
                .record
                .layers
                .iter()
                .map(|layer| layer.diff_id.clone())
                .filter(|layer| !needed.contains(layer) && !state.leases.contains_key(layer))
                .filter(|layer| records.layers.contains_key(layer))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            let names: Vec<String> = records
                .names
                .iter()
                .filter(|(_, name)| name.image == *id)
                .map(|(name, _)| name.clone())
                .collect();
            let mut changes = vec![Change::DeleteImage(id.clone())];
            changes.extend(names.iter().cloned().map(Change::DeleteName));
            changes.extend(layers.iter().flat_map(|layer| records.forget_layer(layer)));
            let others: BTreeSet<&Digest> = records
                .images
                .iter()
                .filter(|(other, _)| *other != id)
                .flat_map(|(_, row)| &row.blobs)
                .collect();
            let blobs: Vec<Digest> = row
                .blobs
                .iter()
                .filter(|blob| !others.contains(blob))
                .cloned()
                .collect();
            let removed = Removed {
                names,
                layers,
                freed_bytes: 0,
            };
            state.doomed.extend(removed.layers.iter().cloned());
            (changes, removed, blobs)
        };
        inner.while_doomed(&removed.layers, || inner.apply(changes))?;
        let mut removed = removed;
        for blob in &blobs {
            removed.freed_bytes += removed_or_kept(files::remove(&inner.layout.blob(blob)));
        }
        removed.freed_bytes += inner.free_layers(&removed.layers);
        inner.measure();
        inner.metrics.took("remove_image", began.elapsed());
        Ok(Some(removed))
    }
}

/// Bytes freed. The image is gone whether its files go now or at the next start.
fn removed_or_kept(outcome: Result<u64, Error>) -> u64 {
    outcome.unwrap_or_else(|error| {
        tracing::warn!(err = %error, "Kept a file that nothing names, until the next start");
        0
    })
}

impl Inner {
    /// Frees layers whose rows are gone: extents nobody else uses, the two files, segments without a live extent.
    /// The caller holds the commit lock. Returns the bytes freed.
    fn free_layers(&self, layers: &[DiffId]) -> u64 {
        let mut freed = 0;
        for layer in layers {
            self.unmount_layer(layer);
            match idx::read_head(&self.layout.idx(layer)) {
                Ok(head) => freed += self.release(&head.extents),
                // Its extents are found dead at the next start, when they are counted anew.
                Err(error) => {
                    tracing::warn!(%layer, err = %error, "Kept the contents of a damaged layer");
                }
            }
            freed += removed_or_kept(files::remove(&self.layout.erofs(layer)));
            freed += removed_or_kept(files::remove(&self.layout.idx(layer)));
        }
        removed_or_kept(self.drop_empty_segments().map(|()| 0));
        self.metrics.freed(freed, layers.len() as u64);
        freed
    }

    /// Unlinks segments that hold nothing and that no ingest has.
    pub(super) fn drop_empty_segments(&self) -> Result<(), Error> {
        let empty: Vec<(u32, u64)> = {
            let mut state = self.state();
            let empty: Vec<(u32, u64)> = state
                .idle_segments
                .iter()
                .map(|(id, len)| (*id, *len))
                .filter(|(segment, _)| state.contents.live(*segment) == 0)
                .collect();
            // Nobody can check them out from here on.
            for (segment, _) in &empty {
                state.idle_segments.remove(segment);
            }
            empty
        };
        if empty.is_empty() {
            return Ok(());
        }
        let gone = empty.iter().map(|(id, _)| Change::DeleteSegment(*id));
        if let Err(error) = self.apply(gone.collect()) {
            self.state().idle_segments.extend(empty);
            return Err(error);
        }
        for (segment, _) in empty {
            files::remove(&self.layout.pack(segment))?;
        }
        Ok(())
    }

    /// Removes those of `layers` that no image, mount or lease needs.
    pub(super) fn sweep(&self, layers: &BTreeSet<DiffId>) -> Result<(), Error> {
        let began = Instant::now();
        // Mostly there is nothing to do, and then nobody is waited for.
        if self.state().unused(layers).is_empty() {
            return Ok(());
        }
        let _commits = self.commits();
        let (unused, changes) = {
            let mut state = self.state();
            let unused = state.unused(layers);
            state.doomed.extend(unused.iter().cloned());
            let changes: Vec<Change> = unused
                .iter()
                .flat_map(|layer| state.records.forget_layer(layer))
                .collect();
            (unused, changes)
        };
        if unused.is_empty() {
            return Ok(());
        }
        self.while_doomed(&unused, || self.apply(changes))?;
        self.free_layers(&unused);
        self.measure();
        self.metrics.took("sweep", began.elapsed());
        Ok(())
    }
}

impl State {
    /// Those of `layers` that no image, mount or lease needs.
    fn unused(&self, layers: &BTreeSet<DiffId>) -> Vec<DiffId> {
        let mut unused: Vec<DiffId> = layers
            .iter()
            .filter(|layer| self.records.layers.contains_key(*layer))
            .filter(|layer| !self.leases.contains_key(*layer))
            .cloned()
            .collect();
        if !unused.is_empty() {
            let needed = self.records.needed(None);
            unused.retain(|layer| !needed.contains(layer));
        }
        unused
    }
}

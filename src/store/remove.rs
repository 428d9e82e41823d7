//! Removal of images, and collection of what nothing uses.
//!
//! First one durable transaction, then the freeing: a crash in between leaves files that no row names, for start-up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::image::{DiffId, Digest, ImageId};

use super::pack::{ContentHash, Extent};
use super::records::{Change, ImageRow};
use super::types::{Hold, Removed};
use super::{Error, Inner, State, Store, files, idx};

impl Store {
    /// Removes an image with all its names and frees what only it used, before returning. Blocking. An image that is
    /// absent is `None`. Layers that are mounted or leased stay until they are released.
    pub fn remove_image(&self, id: &ImageId) -> Result<Option<Removed>, Error> {
        self.remove_checked(id, |_, _| Ok(()))
    }

    /// As [`Store::remove_image`], of an image that is not wanted: unless it was used since `mark` ([`Age::mark`]), is
    /// pinned, mounted, or being pulled or unpacked. Whoever begins one of these later finds the image gone.
    ///
    /// # Errors
    /// [`Error::Busy`], and nothing has changed.
    pub fn remove_unused(&self, id: &ImageId, mark: u64) -> Result<Option<Removed>, Error> {
        self.remove_checked(id, |state, row| {
            let busy = |user: String| {
                Err(Error::Busy {
                    subject: id.to_string(),
                    user,
                })
            };
            if row.record.pinned {
                return busy("a pin".to_owned());
            }
            if let Some(user) = state.user_of(row) {
                return busy(user);
            }
            if row.seen.used != mark {
                return busy("somebody who asked for it a moment ago".to_owned());
            }
            Ok(())
        })
    }

    /// What keeps each image from removal now: mounts, pulls and other work. From memory.
    pub fn held(&self) -> BTreeMap<ImageId, Hold> {
        let state = self.inner.state();
        let images = state.records.images.iter();
        images
            .filter_map(|(id, row)| Some((id.clone(), state.hold_of(row)?)))
            .collect()
    }

    fn remove_checked(
        &self,
        id: &ImageId,
        check: impl FnOnce(&State, &ImageRow) -> Result<(), Error>,
    ) -> Result<Option<Removed>, Error> {
        let began = Instant::now();
        let inner = &self.inner;
        let commits = inner.commits();
        let (changes, removed, blobs, leased) = {
            let mut state = inner.state();
            let records = &state.records;
            let Some(row) = records.images.get(id) else {
                return Ok(None);
            };
            // Under the lock that leases and mounts are taken with.
            check(&state, row)?;
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
            let layers = row.record.layers.iter().map(|layer| layer.diff_id.clone());
            let leased: BTreeSet<DiffId> = layers
                .filter(|layer| state.leases.contains_key(layer))
                .collect();
            state.doomed.extend(removed.layers.iter().cloned());
            (changes, removed, blobs, leased)
        };
        inner.while_doomed(&removed.layers, || inner.apply(changes))?;
        let mut removed = removed;
        for blob in &blobs {
            removed.freed_bytes += removed_or_kept(files::remove(&inner.layout.blob(blob)));
        }
        removed.freed_bytes += inner.free_layers(&removed.layers);
        inner.measure_again(blobs.iter().map(|blob| inner.layout.blob(blob)));
        drop(commits);
        // Whose lease ended before the image was gone saw that an image needed them.
        inner.sweep(&leased)?;
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
        let mut extents = Vec::new();
        for layer in layers {
            self.unmount_layer(layer);
            match idx::read_head(&self.layout.idx(layer)) {
                Ok(head) => extents.extend(head.extents),
                // Its extents are found dead at the next start, when they are counted anew.
                Err(error) => {
                    tracing::warn!(%layer, err = %error, "Kept the contents of a damaged layer");
                }
            }
            freed += removed_or_kept(files::remove(&self.layout.erofs(layer)));
            freed += removed_or_kept(files::remove(&self.layout.idx(layer)));
            self.state().verified.remove(layer);
        }
        // All layers at once: what lies side by side goes in one piece, and a segment that holds nothing any more is
        // unlinked whole.
        freed += self.release_or_unlink(&extents);
        let segments: BTreeSet<u32> = extents.iter().map(|(_, place)| place.segment).collect();
        let files = layers
            .iter()
            .flat_map(|id| [self.layout.erofs(id), self.layout.idx(id)]);
        self.measure_again(files.chain(segments.into_iter().map(|id| self.layout.pack(id))));
        self.metrics.freed(freed, layers.len() as u64);
        freed
    }

    fn release_or_unlink(&self, extents: &[(ContentHash, Extent)]) -> u64 {
        let (mut freed, empty) = {
            let mut state = self.state();
            (state.let_go(extents), state.take_empty_segments())
        };
        let unlinked = match self.drop_segments(&empty) {
            Ok(bytes) => {
                freed.retain(|extent| !empty.contains_key(&extent.segment));
                bytes
            }
            Err(error) => {
                tracing::warn!(%error, "Kept segments that hold nothing");
                0
            }
        };
        unlinked + self.punch_all(freed)
    }

    /// Unlinks segments that hold nothing and that no ingest has.
    pub(super) fn drop_empty_segments(&self) -> Result<(), Error> {
        let empty = self.state().take_empty_segments();
        self.drop_segments(&empty).map(drop)
    }

    /// Unlinks segments that nobody can get any more. Returns the bytes freed.
    fn drop_segments(&self, segments: &BTreeMap<u32, u64>) -> Result<u64, Error> {
        let gone = segments.keys().map(|id| Change::DeleteSegment(*id));
        if let Err(error) = self.apply(gone.collect()) {
            self.state().idle_segments.extend(segments);
            return Err(error);
        }
        let remove = |id: &u32| removed_or_kept(files::remove(&self.layout.pack(*id)));
        Ok(segments.keys().map(remove).sum())
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
        self.metrics.took("sweep", began.elapsed());
        Ok(())
    }
}

impl State {
    /// What keeps an image: a mount of it, or work on all its layers, such as a pull of it.
    fn hold_of(&self, row: &ImageRow) -> Option<Hold> {
        let id = &row.record.id;
        let mut mounts = self.records.mounts.iter();
        if let Some((target, _)) = mounts.find(|(_, mount)| mount.image == *id) {
            return Some(Hold::Mounted(target.clone()));
        }
        let layers = &row.record.layers;
        let lived_in = self.records.lived_in();
        let mut below = layers.iter().map(|l| lived_in.contains(&l.diff_id));
        if !layers.is_empty() && below.all(|below| below) {
            return Some(Hold::LivedIn);
        }
        let mut leased = layers.iter().map(|l| self.leases.contains_key(&l.diff_id));
        (!layers.is_empty() && leased.all(|leased| leased)).then_some(Hold::Leased)
    }

    fn user_of(&self, row: &ImageRow) -> Option<String> {
        Some(match self.hold_of(row)? {
            Hold::Mounted(target) => format!("the mount at {}", target.display()),
            Hold::LivedIn => "a container's file system".to_owned(),
            Hold::Leased => "a pull or other work on its layers".to_owned(),
        })
    }

    /// Gives references back; the places that nobody uses any more.
    pub(super) fn let_go(&mut self, extents: &[(ContentHash, Extent)]) -> Vec<Extent> {
        let freed = extents
            .iter()
            .filter(|(_, extent)| self.contents.release(*extent))
            .map(|(_, extent)| *extent)
            .collect();
        self.contents.shrink();
        freed
    }

    /// Segments that hold nothing and that no ingest has, with their lengths: no ingest gets them from here on.
    fn take_empty_segments(&mut self) -> BTreeMap<u32, u64> {
        let (empty, held) = std::mem::take(&mut self.idle_segments)
            .into_iter()
            .partition(|(segment, _)| self.contents.live(*segment) == 0);
        self.idle_segments = held;
        empty
    }

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

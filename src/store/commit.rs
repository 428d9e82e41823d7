//! Makes layers and images visible: the only writers of the database besides removal.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use crate::image::Digest;

use super::idx::LayerParts;
use super::records::{Change, ImageRow, LayerRow, NameRow, Seen};
use super::types::{Image, ImageCommit, Layer};
use super::{Error, Lease, Store, files, idx};

impl Store {
    /// Makes a layer durable under its diffID and protects it by the lease.
    ///
    /// Order: the extents are on disk already ([`super::pack::PackWriter::finish`]); `.erofs` and `.idx` are written
    /// and fsynced under temporary names, renamed, the folder is fsynced; one durable transaction names them. A crash
    /// before it leaves files that no row names.
    pub(crate) fn commit_layer(&self, parts: LayerParts, lease: &Lease) -> Result<Layer, Error> {
        let began = Instant::now();
        let inner = &self.inner;
        let id = parts.diff_id.clone();
        let bytes = idx::encode(parts.pack.used(), &parts.idx);
        let (staged_erofs, staged_idx) = (parts.staging.erofs(), parts.staging.idx());
        // The tree is written already; what it left must still be enough.
        inner.check_space(bytes.len() as u64)?;
        let (erofs_bytes, erofs_hash) = files::hash(&staged_erofs)?;
        // Guards the tree: without it a power cut could leave a row that names an empty file.
        fs::File::open(&staged_erofs)
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io("fsync", &staged_erofs, error))?;
        files::write_durable(
            &parts.staging.idx().with_extension("part"),
            &staged_idx,
            &bytes,
        )?;

        let _commits = inner.commits();
        let before = {
            let mut state = inner.state();
            let row = state.records.layers.get(&id).cloned();
            match row {
                Some(row) if row.damaged.is_none() && inner.has_files(&row) => {
                    // Somebody else was quicker: theirs stays, dropping `parts` takes ours back.
                    lease.hold(&mut state, &id);
                    let known = state.records.blobs.get(&parts.source.blob) == Some(&id);
                    drop(state);
                    if !known {
                        let blob = Change::PutBlob(parts.source.blob.clone(), id.clone());
                        inner.apply(vec![blob])?;
                    }
                    return Ok(row.layer());
                }
                other => other,
            }
        };
        if let Some(extent) = parts.pack.damaged() {
            return Err(Error::Damaged {
                subject: inner.layout.relative(&inner.layout.pack(extent.segment)),
                cause: "a content found in it turned out to be damaged meanwhile".to_owned(),
            });
        }
        // A damaged layer gives its extents back once the new one is in place.
        let replaced = before
            .and_then(|_| idx::read_head(&inner.layout.idx(&id)).ok())
            .map(|head| head.extents);
        // No row names them yet: on an error they go now rather than at the next start.
        let give_up = |error| {
            let _ = files::remove(&inner.layout.erofs(&id));
            let _ = files::remove(&inner.layout.idx(&id));
            error
        };
        let rename = |from: &std::path::Path, to: &std::path::Path| {
            fs::rename(from, to).map_err(|error| Error::io("rename to", to, error))
        };
        rename(&staged_erofs, &inner.layout.erofs(&id))
            .and_then(|()| rename(&staged_idx, &inner.layout.idx(&id)))
            .and_then(|()| files::sync_folder(&inner.layout.layers()))
            .map_err(give_up)?;
        let row = LayerRow {
            diff_id: id.clone(),
            tar_bytes: parts.tar_bytes,
            content_bytes: parts.content_bytes,
            added_bytes: parts.pack.added() + erofs_bytes + bytes.len() as u64,
            entries: parts.entries,
            implied: Some(parts.implied),
            erofs_bytes,
            erofs_hash,
            idx_bytes: bytes.len() as u64,
            idx_hash: blake3::hash(&bytes).to_hex().to_string(),
            damaged: None,
        };
        let layer = row.layer();
        let mut changes = vec![
            Change::PutLayer(row),
            Change::PutBlob(parts.source.blob.clone(), id.clone()),
            Change::NextSegment(inner.state().records.next_segment),
        ];
        changes.extend(
            parts
                .pack
                .segments()
                .into_iter()
                .filter(|(_, len)| *len > 0)
                .map(|(segment, len)| Change::PutSegment(segment, len)),
        );
        lease.hold(&mut inner.state(), &id);
        inner.apply(changes).map_err(give_up)?;
        // What is mounted of the damaged one stays with those who use it; others get the new one.
        if replaced.is_some() {
            inner.unmount_layer(&id);
        }
        // They were hashed a moment ago.
        if let Some(stamp) = inner.stamp(&id) {
            inner.state().verified.insert(id.clone(), stamp);
        }
        let added = parts.pack.added();
        let mut touched: Vec<_> = parts
            .pack
            .segments()
            .into_iter()
            .map(|(segment, _)| inner.layout.pack(segment))
            .collect();
        inner
            .metrics
            .saved(layer.content_bytes.saturating_sub(added));
        parts.pack.keep();
        if let Some(extents) = replaced {
            inner.release(&extents);
            let segments: BTreeSet<u32> = extents.iter().map(|(_, place)| place.segment).collect();
            touched.extend(segments.into_iter().map(|id| inner.layout.pack(id)));
        }
        touched.extend([inner.layout.erofs(&id), inner.layout.idx(&id)]);
        inner.measure_again(touched);
        inner.metrics.took("commit_layer", began.elapsed());
        Ok(layer)
    }

    /// Makes an image visible. Blocking: its blobs are fsynced, then one durable transaction names it.
    ///
    /// # Errors
    /// [`Error::LayerMissing`] when the store lacks one of its layers.
    pub fn commit_image(&self, commit: &ImageCommit, lease: &Lease) -> Result<Arc<Image>, Error> {
        let began = Instant::now();
        let inner = &self.inner;
        let id = commit.record.id.clone();
        let commits = inner.commits();
        {
            let mut state = inner.state();
            for layer in &commit.record.layers {
                if !state.records.is_sound(&layer.diff_id) {
                    return Err(Error::LayerMissing {
                        image: id,
                        diff_id: layer.diff_id.clone(),
                    });
                }
                // Held while the transaction runs; the image itself holds them afterwards.
                lease.hold(&mut state, &layer.diff_id);
            }
        }
        // What no image names after a failure goes now rather than at the next start.
        let give_up = |error| {
            let state = inner.state();
            for (digest, _) in &commit.blobs {
                let mut images = state.records.images.values();
                if !images.any(|row| row.blobs.contains(digest)) {
                    let _ = files::remove(&inner.layout.blob(digest));
                }
            }
            error
        };
        for (digest, bytes) in &commit.blobs {
            inner.put_blob(digest, bytes).map_err(give_up)?;
        }
        let mut dropped = Vec::new();
        let mut left = BTreeSet::new();
        let now = inner.tick();
        let changes = {
            let state = inner.state();
            let surplus = state.records.surplus_names(&id, &commit.names);
            let mut row = ImageRow {
                record: commit.record.clone(),
                blobs: commit
                    .blobs
                    .iter()
                    .map(|(digest, _)| digest.clone())
                    .collect(),
                damaged: false,
                seen: Seen {
                    pulled: now,
                    used: now,
                    stored: now,
                    known: true,
                },
                namespaces: BTreeSet::new(),
            };
            if let Some(known) = state.records.images.get(&id) {
                row.namespaces.clone_from(&known.namespaces);
                if known.record.pulled_at == row.record.pulled_at {
                    row.seen.pulled = known.seen.pulled;
                }
                row.record.pinned |= known.record.pinned;
                // What everybody may see already stays so, however two pulls of it end.
                row.record.staged &= known.record.staged;
                left.extend(
                    known
                        .record
                        .layers
                        .iter()
                        .map(|layer| layer.diff_id.clone()),
                );
                // Of what it had, the documents that its names still point at.
                let names = state.records.names.iter();
                let is_target = |blob: &Digest| {
                    names.clone().any(|(name, row)| {
                        let moved = commit.names.iter().any(|moved| moved.name == *name);
                        let stays = !moved && !surplus.contains(name);
                        row.image == id && row.target == *blob && stays
                    })
                };
                for blob in &known.blobs {
                    if row.blobs.contains(blob) {
                        continue;
                    }
                    if is_target(blob) {
                        row.blobs.push(blob.clone());
                    } else {
                        dropped.push(blob.clone());
                    }
                }
            }
            let mut changes = vec![Change::PutImage(row)];
            for name in &commit.names {
                let row = NameRow {
                    image: id.clone(),
                    target: name.target.clone(),
                    since: commit.record.pulled_at,
                };
                let known = state.records.names.get(&name.name);
                if known.is_none_or(|known| (&known.image, &known.target) != (&id, &row.target)) {
                    changes.push(Change::PutName(name.name.clone(), row));
                }
            }
            changes.extend(surplus.into_iter().map(Change::DeleteName));
            changes
        };
        inner.apply(changes).map_err(give_up)?;
        let blobs = commit.blobs.iter().map(|(digest, _)| digest);
        let touched: Vec<_> = blobs
            .chain(&dropped)
            .map(|blob| inner.layout.blob(blob))
            .collect();
        for blob in dropped {
            let named = {
                let state = inner.state();
                let mut images = state.records.images.values();
                images.any(|row| row.blobs.contains(&blob))
            };
            if !named {
                // Otherwise an orphan for start-up.
                let _ = files::remove(&inner.layout.blob(&blob));
            }
        }
        inner.measure_again(touched);
        drop(commits);
        // A config tells its layers, so it has lost none; should it have, they go.
        inner.sweep(&left)?;
        inner.metrics.took("commit_image", began.elapsed());
        let image = inner.state().records.visible().get(&id).cloned();
        image.ok_or_else(|| Error::Damaged {
            subject: id.to_string(),
            cause: "it is not visible after its commit".to_owned(),
        })
    }
}

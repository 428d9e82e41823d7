//! Verification: every byte the store promised to keep, against its checksum.
//!
//! What is damaged is quarantined at once, repair or not: its images are no longer visible and a re-pull fetches what
//! is missing, since nothing damaged may be served. Repair also removes what no pull can heal: records that point
//! nowhere, and files that no record names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use hashbrown::{HashMap, HashSet};

use crate::image::{DiffId, ImageId};

use super::idx::{self, OpenLayer};
use super::pack::{ContentHash, Extent};
use super::records::{Change, LayerRow};
use super::types::{Damage, FsckReport};
use super::{Error, Inner, Store, files};

/// Read at once when contents are hashed again.
const BUFFER: usize = 1 << 20;

impl Store {
    /// Verifies everything; `progress` is told bytes done and bytes in all. Blocking; images stay usable meanwhile.
    pub fn fsck(
        &self,
        repair: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<FsckReport, Error> {
        let (inner, began) = (&self.inner, Instant::now());
        let mut report = FsckReport::default();
        if let Some(cause) = inner.take_database_damage() {
            report.damaged.push(Damage {
                kind: "database".to_owned(),
                subject: inner.layout.relative(&inner.layout.database()),
                cause: format!(
                    "{cause}; it was moved aside and the store began anew: pull the images again"
                ),
                images: Vec::new(),
                repaired: true,
            });
        }
        // Rows of a snapshot; a lease keeps the layers from being collected while they are read.
        let lease = self.lease();
        let rows: Vec<LayerRow> = {
            let mut state = inner.state();
            let layers = state.records.layers.values();
            let rows: Vec<LayerRow> = layers
                .filter(|row| !state.doomed.contains(&row.diff_id))
                .cloned()
                .collect();
            for row in &rows {
                lease.hold(&mut state, &row.diff_id);
            }
            rows
        };
        let mut sound: Vec<(DiffId, Vec<(ContentHash, Extent)>)> = Vec::new();
        for row in rows {
            report.layers += 1;
            let outcome = match &row.damaged {
                Some(cause) => Err(cause.clone()),
                None => match inner.verify_layer_files(&row) {
                    Ok(extents) => Ok(extents),
                    Err(error @ Error::Damaged { .. }) => Err(cause_of(&error)),
                    // An I/O error is no damage: it may pass.
                    Err(error) => return Err(error),
                },
            };
            match outcome {
                Ok(extents) => sound.push((row.diff_id.clone(), extents)),
                Err(cause) => {
                    inner.report_layer(&mut report, &row.diff_id, "layer", &cause)?;
                }
            }
        }
        let bad = inner.verify_extents(&sound, &mut report, progress)?;
        inner.report_extents(&mut report, &sound, &bad)?;
        inner.verify_images(&mut report, repair)?;
        inner.report_orphans(&mut report, repair)?;
        inner.metrics.found(&report);
        inner.metrics.took("fsck", began.elapsed());
        inner.measure();
        Ok(report)
    }

    /// Hashes some contents again, going round through all layers over many calls, and quarantines what is damaged.
    /// Reads at least one content and stops after `budget` bytes. Blocking.
    pub fn scrub_step(&self, budget: u64) -> Result<FsckReport, Error> {
        let inner = &self.inner;
        let lease = self.lease();
        let (row, first) = {
            let mut state = inner.state();
            let (last, first) = state.scrub.clone();
            let mut ids: Vec<&DiffId> = state.records.layers.keys().collect();
            ids.sort_unstable();
            let at = match &last {
                Some(last) => ids.partition_point(|id| *id < last),
                None => 0,
            };
            let Some(id) = ids.get(at).or_else(|| ids.first()).map(|id| (*id).clone()) else {
                return Ok(FsckReport::default());
            };
            let first = if Some(&id) == last.as_ref() { first } else { 0 };
            let row = state.records.layers.get(&id).cloned();
            lease.hold(&mut state, &id);
            match row {
                Some(row) if row.damaged.is_none() => (row, first),
                _ => {
                    state.scrub = (successor(&state.records.layers, &id), 0);
                    return Ok(FsckReport::default());
                }
            }
        };
        let mut report = FsckReport {
            layers: 1,
            ..FsckReport::default()
        };
        let next = |layers: &std::collections::HashMap<DiffId, LayerRow>| {
            (successor(layers, &row.diff_id), 0)
        };
        match inner.verify_layer_files(&row) {
            Ok(extents) => {
                let mut taken = 0;
                let part: Vec<_> = extents
                    .iter()
                    .skip(first)
                    .take_while(|(_, extent)| {
                        let go_on = taken < budget;
                        taken = taken.saturating_add(extent.len);
                        go_on
                    })
                    .copied()
                    .collect();
                let reached = first + part.len();
                let done = reached >= extents.len();
                let part = vec![(row.diff_id.clone(), part)];
                let bad = inner.verify_extents(&part, &mut report, &mut |_, _| {})?;
                inner.report_extents(&mut report, &part, &bad)?;
                let mut state = inner.state();
                state.scrub = if done {
                    next(&state.records.layers)
                } else {
                    (Some(row.diff_id.clone()), reached)
                };
            }
            Err(error @ Error::Damaged { .. }) => {
                inner.report_layer(&mut report, &row.diff_id, "layer", &cause_of(&error))?;
                let mut state = inner.state();
                state.scrub = next(&state.records.layers);
            }
            Err(error) => return Err(error),
        }
        inner.metrics.scrubbed(report.bytes);
        inner.metrics.found(&report);
        Ok(report)
    }

    /// A committed layer's files, verified against the checksums of its row. A damaged layer is quarantined, so that
    /// the next pull replaces it.
    pub(crate) fn open_layer(&self, diff_id: &DiffId) -> Result<OpenLayer, Error> {
        let row = || self.inner.state().records.layers.get(diff_id).cloned();
        let before = row();
        let opened = self.read_layer(diff_id);
        if let Err(Error::Damaged { subject, cause }) = &opened {
            let _commits = self.inner.commits();
            // A pull may have replaced it while it was read.
            if row() == before {
                self.inner
                    .quarantine(diff_id, &format!("{subject}: {cause}"))?;
            }
        }
        opened
    }

    fn read_layer(&self, diff_id: &DiffId) -> Result<OpenLayer, Error> {
        let row = self.inner.state().records.layers.get(diff_id).cloned();
        let Some(row) = row else {
            return Err(Error::Invalid(format!("no layer {diff_id}")));
        };
        let layout = &self.inner.layout;
        let erofs = read_checked(&layout.erofs(diff_id), row.erofs_bytes, &row.erofs_hash)
            .map_err(|error| self.inner.damaged(&layout.erofs(diff_id), error))?;
        let bytes = read_checked(&layout.idx(diff_id), row.idx_bytes, &row.idx_hash)
            .map_err(|error| self.inner.damaged(&layout.idx(diff_id), error))?;
        let (head, recipe) =
            idx::decode(&bytes).map_err(|error| self.inner.damaged(&layout.idx(diff_id), error))?;
        Ok(OpenLayer {
            erofs,
            segments: head.segments,
            extents: head.extents,
            inlines: head.inlines,
            recipe,
        })
    }
}

impl Inner {
    fn damaged(&self, path: &Path, error: io::Error) -> Error {
        if files::is_damage(&error) {
            return Error::Damaged {
                subject: self.layout.relative(path),
                cause: error.to_string(),
            };
        }
        Error::io("read", path, error)
    }

    /// Both files against the row; returns the extents the layer uses.
    fn verify_layer_files(&self, row: &LayerRow) -> Result<Vec<(ContentHash, Extent)>, Error> {
        let erofs = self.layout.erofs(&row.diff_id);
        let wrong = |path: &Path, cause: &str| Error::Damaged {
            subject: self.layout.relative(path),
            cause: cause.to_owned(),
        };
        if !erofs.exists() {
            return Err(wrong(&erofs, "it is missing"));
        }
        let (len, hash) = files::hash(&erofs)?;
        if len != row.erofs_bytes {
            return Err(wrong(&erofs, "its length is wrong"));
        }
        if hash != row.erofs_hash {
            return Err(wrong(&erofs, "its checksum is wrong"));
        }
        let idx = self.layout.idx(&row.diff_id);
        let bytes = read_checked(&idx, row.idx_bytes, &row.idx_hash)
            .map_err(|error| self.damaged(&idx, error))?;
        let (head, _) = idx::decode(&bytes).map_err(|error| self.damaged(&idx, error))?;
        Ok(head.extents)
    }

    /// Hashes each distinct extent once; returns those whose bytes are wrong, with the reason.
    fn verify_extents(
        &self,
        layers: &[(DiffId, Vec<(ContentHash, Extent)>)],
        report: &mut FsckReport,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<HashMap<Extent, String>, Error> {
        let distinct: HashSet<(ContentHash, Extent)> = layers
            .iter()
            .flat_map(|(_, extents)| extents.iter().copied())
            .collect();
        let mut distinct: Vec<_> = distinct.into_iter().collect();
        distinct.sort_unstable_by_key(|(_, extent)| *extent);
        let total = distinct.iter().map(|(_, extent)| extent.len).sum();
        let mut bad = HashMap::new();
        let mut open: Option<(u32, io::Result<File>)> = None;
        let mut buffer = vec![0; BUFFER];
        let mut told = 0;
        progress(0, total);
        for (hash, extent) in distinct {
            let file = match open.take() {
                Some((segment, file)) if segment == extent.segment => file,
                _ => File::open(self.layout.pack(extent.segment)),
            };
            let outcome = match &file {
                Ok(file) => hash_range(file, extent, &mut buffer),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            open = Some((extent.segment, file));
            match outcome {
                Ok(found) if found == hash => {}
                Ok(_) => {
                    bad.insert(extent, "its checksum is wrong".to_owned());
                }
                Err(error) if files::is_damage(&error) => {
                    bad.insert(extent, error.to_string());
                }
                Err(error) => {
                    return Err(Error::io("read", &self.layout.pack(extent.segment), error));
                }
            }
            report.extents += 1;
            report.bytes += extent.len;
            if report.bytes >= told + (8 << 20) {
                told = report.bytes;
                progress(report.bytes.min(total), total);
            }
        }
        progress(total, total);
        Ok(bad)
    }

    /// Quarantines the layers that use damaged extents; one line a segment and layer.
    fn report_extents(
        &self,
        report: &mut FsckReport,
        layers: &[(DiffId, Vec<(ContentHash, Extent)>)],
        bad: &HashMap<Extent, String>,
    ) -> Result<(), Error> {
        if bad.is_empty() {
            return Ok(());
        }
        // A scrub step sees some layers only, the damage is in all that share the extent.
        let everyone: Vec<DiffId> = self.state().records.layers.keys().cloned().collect();
        let mut using: BTreeMap<DiffId, (u32, usize, String)> = BTreeMap::new();
        for layer in everyone {
            let read;
            let extents = match layers.iter().find(|(id, _)| *id == layer) {
                Some((_, extents)) => extents,
                None => match idx::read_head(&self.layout.idx(&layer)) {
                    Ok(head) => {
                        read = head.extents;
                        &read
                    }
                    Err(_) => continue,
                },
            };
            for (_, extent) in extents {
                if let Some(cause) = bad.get(extent) {
                    self.state().contents.distrust(*extent);
                    let entry =
                        using
                            .entry(layer.clone())
                            .or_insert((extent.segment, 0, cause.clone()));
                    entry.1 += 1;
                }
            }
        }
        let _commits = self.commits();
        for (layer, (segment, count, cause)) in using {
            let images = self.state().records.users_of(&layer);
            let pack = self.layout.relative(&self.layout.pack(segment));
            let cause = format!("{count} contents of layer {layer}: {cause}");
            self.quarantine(&layer, &format!("{pack}: {cause}"))?;
            report.damaged.push(Damage {
                kind: "pack".to_owned(),
                subject: pack,
                cause,
                images,
                repaired: false,
            });
        }
        Ok(())
    }

    fn report_layer(
        &self,
        report: &mut FsckReport,
        layer: &DiffId,
        kind: &str,
        cause: &str,
    ) -> Result<(), Error> {
        let _commits = self.commits();
        let images = self.state().records.users_of(layer);
        self.quarantine(layer, cause)?;
        report.damaged.push(Damage {
            kind: kind.to_owned(),
            subject: layer.to_string(),
            cause: cause.to_owned(),
            images,
            repaired: false,
        });
        Ok(())
    }

    /// Blobs of images, and images whose layers have no row.
    fn verify_images(&self, report: &mut FsckReport, repair: bool) -> Result<(), Error> {
        let _commits = self.commits();
        let rows: Vec<_> = self.state().records.images.values().cloned().collect();
        for mut row in rows {
            let id = row.record.id.clone();
            let mut causes = Vec::new();
            for digest in &row.blobs {
                let cause = match self.read_blob(digest) {
                    Ok(Some(_)) => continue,
                    Ok(None) => "it is missing".to_owned(),
                    Err(error @ Error::Damaged { .. }) => cause_of(&error),
                    Err(error) => return Err(error),
                };
                causes.push(("blob", digest.to_string(), cause));
            }
            for layer in &row.record.layers {
                if !self.state().records.layers.contains_key(&layer.diff_id) {
                    let cause = "the store has no such layer".to_owned();
                    causes.push(("layer", layer.diff_id.to_string(), cause));
                }
            }
            if causes.is_empty() {
                continue;
            }
            let images = self.state().records.names_of(&id);
            if !row.damaged {
                row.damaged = true;
                self.apply(vec![Change::PutImage(row)])?;
            }
            for (kind, subject, cause) in causes {
                report.damaged.push(Damage {
                    kind: kind.to_owned(),
                    subject,
                    cause,
                    images: images.clone(),
                    repaired: false,
                });
            }
        }
        if repair {
            self.drop_broken_images(report)?;
        }
        Ok(())
    }

    /// Forgets images that are not visible, with their names and damaged layers: a pull brings them back.
    fn drop_broken_images(&self, report: &mut FsckReport) -> Result<(), Error> {
        let changes = {
            let state = self.state();
            let records = &state.records;
            let broken: Vec<ImageId> = records
                .images
                .keys()
                .filter(|id| !records.visible().contains_key(*id))
                .cloned()
                .collect();
            let mut changes: Vec<Change> =
                broken.iter().cloned().map(Change::DeleteImage).collect();
            changes.extend(
                records
                    .names
                    .iter()
                    .filter(|(_, row)| broken.contains(&row.image))
                    .map(|(name, _)| Change::DeleteName(name.clone())),
            );
            changes
        };
        // Their layers are held by the lease of the fsck until it ends; then the sweep takes them.
        self.apply(changes)?;
        for damage in &mut report.damaged {
            damage.repaired = true;
        }
        Ok(())
    }

    fn report_orphans(&self, report: &mut FsckReport, repair: bool) -> Result<(), Error> {
        let _commits = self.commits();
        for path in self.orphans()? {
            if repair {
                files::remove(&path)?;
            }
            report.damaged.push(Damage {
                kind: "orphan".to_owned(),
                subject: self.layout.relative(&path),
                cause: "no record names this file".to_owned(),
                images: Vec::new(),
                repaired: repair,
            });
        }
        Ok(())
    }
}

fn successor(
    layers: &std::collections::HashMap<DiffId, LayerRow>,
    after: &DiffId,
) -> Option<DiffId> {
    layers.keys().filter(|id| *id > after).min().cloned()
}

fn cause_of(error: &Error) -> String {
    match error {
        Error::Damaged { subject, cause } => format!("{subject}: {cause}"),
        other => other.to_string(),
    }
}

fn read_checked(path: &Path, len: u64, hash: &str) -> io::Result<Vec<u8>> {
    let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = File::open(path)?;
    if file.metadata()?.len() != len {
        return Err(bad("its length is wrong"));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, len), &mut bytes)?;
    if blake3::hash(&bytes).to_hex().as_str() != hash {
        return Err(bad("its checksum is wrong"));
    }
    Ok(bytes)
}

fn hash_range(file: &File, extent: Extent, buffer: &mut [u8]) -> io::Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    let (mut at, end) = (extent.offset(), extent.offset().saturating_add(extent.len));
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hasher.update(part);
        at += want as u64;
    }
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}

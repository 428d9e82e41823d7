//! Verification: every byte the store promised to keep, against its checksum.
//!
//! What is damaged is quarantined at once, repair or not: its images are no longer visible and a re-pull fetches what
//! is missing, since nothing damaged may be served. Repair also removes what no pull can heal: records that point
//! nowhere, and files that no record names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use hashbrown::{HashMap, HashSet};

use crate::image::{DiffId, ImageId};

use super::idx;
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
        inner.report_lost_database(&mut report, repair)?;
        inner.verify_database(&mut report)?;
        // Rows of a snapshot. No lease: what is removed meanwhile is freed at once, and what is found wrong counts only
        // where a layer still has it.
        let rows: Vec<LayerRow> = {
            let state = inner.state();
            let layers = state.records.layers.values();
            layers
                .filter(|row| !state.doomed.contains(&row.diff_id))
                .cloned()
                .collect()
        };
        inner.verify_layers(&rows, &mut report, progress)?;
        let unused = inner.verify_images(&mut report, repair)?;
        inner.report_orphans(&mut report, repair)?;
        inner.verify_kept(&mut report)?;
        inner.sweep(&unused)?;
        inner.metrics.found(&report);
        inner.metrics.took("fsck", began.elapsed());
        inner.measure();
        Ok(report)
    }

    /// Hashes some contents again, going round through all layers over many calls, and quarantines what is damaged.
    /// Reads at least one content and stops after `budget` bytes. Blocking.
    pub fn scrub_step(&self, budget: u64) -> Result<FsckReport, Error> {
        let inner = &self.inner;
        let (row, first, begins) = {
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
            match row {
                Some(row) if row.damaged.is_none() => (row, first, last.is_none()),
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
        // Once a round.
        if begins {
            inner.verify_database(&mut report)?;
        }
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
                let bad = inner.verify_extents(
                    part.into_iter().collect(),
                    &mut report,
                    &mut |_, _| {},
                )?;
                inner.report_extents(&mut report, &bad)?;
                let mut state = inner.state();
                state.scrub = if done {
                    next(&state.records.layers)
                } else {
                    (Some(row.diff_id.clone()), reached)
                };
            }
            Err(error @ Error::Damaged { .. }) => {
                inner.report_layer(&mut report, &row, &cause_of(&error))?;
                let mut state = inner.state();
                state.scrub = next(&state.records.layers);
            }
            Err(error) => return Err(error),
        }
        inner.metrics.scrubbed(report.bytes);
        inner.metrics.found(&report);
        Ok(report)
    }

    /// Where a reader came upon damage, verifies the layers it read: what is damaged is quarantined, so that the next
    /// pull heals it. Gives the error back.
    pub(super) fn look_into(&self, error: Error, layers: &[DiffId]) -> Error {
        if !matches!(error, Error::Damaged { .. }) {
            return error;
        }
        let rows: Vec<LayerRow> = {
            let state = self.inner.state();
            let rows = layers.iter().filter_map(|id| state.records.layers.get(id));
            rows.cloned().collect()
        };
        let mut report = FsckReport::default();
        let verified = self.inner.verify_layers(&rows, &mut report, &mut |_, _| {});
        if let Err(error) = verified {
            tracing::warn!(%error, "Damage was found, but not all of it");
        }
        self.inner.metrics.found(&report);
        error
    }
}

impl Inner {
    /// A database that could not be read at start is told of as long as nothing was pulled again.
    fn report_lost_database(&self, report: &mut FsckReport, repair: bool) -> Result<(), Error> {
        let _commits = self.commits();
        let Some(lost) = self.lost_database() else {
            return Ok(());
        };
        if repair {
            files::remove(&self.layout.damaged_database())?;
        }
        report.damaged.push(self.database_damage(lost, repair));
        Ok(())
    }

    /// A damaged database is written anew at once: its rows are all in memory.
    fn verify_database(&self, report: &mut FsckReport) -> Result<(), Error> {
        let _commits = self.commits();
        let Some(cause) = self.db.verify()? else {
            return Ok(());
        };
        let database = self.layout.database();
        tracing::error!(database = %database.display(), %cause, "The database is damaged: written anew");
        let rows = self.state().records.dump();
        let aside = self.layout.damaged_database();
        self.db
            .rewrite(&self.layout.fresh_database(), &aside, &rows)?;
        let aside = self.layout.relative(&aside);
        let cause = format!("{cause}; it was written anew, the damaged one is {aside}");
        report.damaged.push(self.database_damage(cause, true));
        Ok(())
    }

    fn database_damage(&self, cause: String, repaired: bool) -> Damage {
        Damage {
            kind: "database".to_owned(),
            subject: self.layout.relative(&self.layout.database()),
            cause,
            images: Vec::new(),
            repaired,
        }
    }

    /// Verifies layers and quarantines those that are damaged.
    pub(super) fn verify_layers(
        &self,
        rows: &[LayerRow],
        report: &mut FsckReport,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        let mut extents = HashSet::new();
        for row in rows {
            report.layers += 1;
            let outcome = match &row.damaged {
                Some(cause) => Err(cause.clone()),
                None => match self.verify_layer_files(row) {
                    Ok(extents) => Ok(extents),
                    Err(error @ Error::Damaged { .. }) => Err(cause_of(&error)),
                    // An I/O error is no damage: it may pass.
                    Err(error) => return Err(error),
                },
            };
            match outcome {
                Ok(used) => extents.extend(used),
                Err(cause) => self.report_layer(report, row, &cause)?,
            }
        }
        let bad = self.verify_extents(extents, report, progress)?;
        self.report_extents(report, &bad)
    }

    /// Hashes extents in the order of their places; returns those whose bytes are wrong, with the reason.
    fn verify_extents(
        &self,
        extents: HashSet<(ContentHash, Extent)>,
        report: &mut FsckReport,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<HashMap<Extent, String>, Error> {
        let mut distinct: Vec<_> = extents.into_iter().collect();
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

    /// Quarantines the layers that use damaged extents; one line a segment and layer. What was removed since it was read
    /// is in no layer's index any more.
    fn report_extents(
        &self,
        report: &mut FsckReport,
        bad: &HashMap<Extent, String>,
    ) -> Result<(), Error> {
        if bad.is_empty() {
            return Ok(());
        }
        let _commits = self.commits();
        let layers: Vec<DiffId> = self.state().records.layers.keys().cloned().collect();
        let mut using: BTreeMap<DiffId, (u32, usize, String)> = BTreeMap::new();
        for layer in layers {
            // Without an index it is quarantined already, or found so by its own verification.
            let Ok(head) = idx::read_head(&self.layout.idx(&layer)) else {
                continue;
            };
            for (_, extent) in head.extents {
                if let Some(cause) = bad.get(&extent) {
                    self.state().contents.distrust(extent);
                    let entry =
                        using
                            .entry(layer.clone())
                            .or_insert((extent.segment, 0, cause.clone()));
                    entry.1 += 1;
                }
            }
        }
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

    /// Somebody came upon a pack that is not there: the layers that use it are quarantined, and nothing is found in it
    /// any more. The caller holds the commit lock.
    pub(super) fn missing_segment(&self, segment: u32) -> Result<Error, Error> {
        let pack = self.layout.relative(&self.layout.pack(segment));
        let cause = "it is missing";
        // Nothing is appended to it.
        self.state().idle_segments.remove(&segment);
        let layers: Vec<DiffId> = self.state().records.layers.keys().cloned().collect();
        for layer in layers {
            let Ok(head) = idx::read_head(&self.layout.idx(&layer)) else {
                continue;
            };
            let mut uses = false;
            for (_, extent) in head.extents {
                if extent.segment == segment {
                    uses = true;
                    self.state().contents.distrust(extent);
                }
            }
            if uses {
                self.quarantine(&layer, &format!("{pack}: {cause}"))?;
            }
        }
        Ok(Error::Damaged {
            subject: pack,
            cause: cause.to_owned(),
        })
    }

    fn report_layer(
        &self,
        report: &mut FsckReport,
        row: &LayerRow,
        cause: &str,
    ) -> Result<(), Error> {
        let _commits = self.commits();
        let layer = &row.diff_id;
        let (images, now) = {
            let records = &self.state().records;
            (records.users_of(layer), records.layers.get(layer).cloned())
        };
        // It was removed, or replaced, while it was read.
        let Some(now) = now.filter(|now| now.damaged.is_some() || now == row) else {
            return Ok(());
        };
        if now.damaged.is_none() {
            self.quarantine(layer, cause)?;
        }
        report.damaged.push(Damage {
            kind: "layer".to_owned(),
            subject: layer.to_string(),
            cause: cause.to_owned(),
            images,
            repaired: false,
        });
        Ok(())
    }

    /// Blobs of images, and images whose layers have no row.
    /// Returns the layers of those that a repair forgot.
    fn verify_images(
        &self,
        report: &mut FsckReport,
        repair: bool,
    ) -> Result<BTreeSet<DiffId>, Error> {
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
            return self.drop_broken_images(report);
        }
        Ok(BTreeSet::new())
    }

    /// Forgets images that are not visible, with their names: a pull brings them back. Returns their layers.
    fn drop_broken_images(&self, report: &mut FsckReport) -> Result<BTreeSet<DiffId>, Error> {
        let (changes, layers) = {
            let state = self.state();
            let records = &state.records;
            let broken: Vec<ImageId> = records
                .images
                .keys()
                .filter(|id| !records.visible().contains_key(*id))
                .cloned()
                .collect();
            let rows = broken.iter().filter_map(|id| records.images.get(id));
            let layers: BTreeSet<DiffId> = rows
                .flat_map(|row| row.record.layers.iter().map(|layer| layer.diff_id.clone()))
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
            (changes, layers)
        };
        self.apply(changes)?;
        for damage in &mut report.damaged {
            damage.repaired = true;
        }
        Ok(layers)
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

//! Start-up: makes of whatever a crash left a store that is whole, without help and without losing a visible image.

use std::collections::BTreeSet;
use std::fs::{self, File};

use crate::image::{DiffId, Digest};

use super::db::{Db, OpenError};
use super::layout::Layout;
use super::pack::BLOCK;
use super::records::{Change, LayerRow, Records};
use super::{Error, Inner, files, idx};

/// Opens the database; one whose bytes make no sense is moved aside and a fresh one begun, since everything in the
/// store can be pulled again. An I/O error is no such thing: it is reported.
pub(super) fn open_database(layout: &Layout) -> Result<(Db, Records, Option<String>), Error> {
    let path = layout.database();
    match Db::open(&path, layout.root()) {
        Ok((db, records)) => Ok((db, records, None)),
        Err(OpenError::Other(error)) => Err(error),
        Err(OpenError::Corrupted(cause)) => {
            let aside = layout.damaged_database();
            tracing::error!(database = %path.display(), kept = %aside.display(), %cause,
                "The database is damaged: moved aside, the store starts empty, images must be pulled again");
            fs::rename(&path, &aside).map_err(|error| Error::io("move aside", &path, error))?;
            match Db::open(&path, layout.root()) {
                Ok((db, records)) => Ok((db, records, Some(cause))),
                Err(OpenError::Other(error)) => Err(error),
                Err(OpenError::Corrupted(cause)) => Err(Error::Database {
                    root: layout.root().to_path_buf(),
                    cause,
                }),
            }
        }
    }
}

impl Inner {
    /// Brings files and rows together again. Nothing else uses the store yet.
    pub(super) fn recover(&self) -> Result<(), Error> {
        let staging = self.layout.staging();
        for name in files::names(&staging)? {
            let path = staging.join(&name);
            let gone = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            gone.map_err(|error| Error::io("remove", &path, error))?;
        }
        // A database that a crash kept from taking its place.
        files::remove(&self.layout.fresh_database())?;
        self.forget_gone_mounts()?;
        self.forget_unused_layers()?;
        let ageing = self.state().records.begin_ageing(self.tick());
        self.apply(ageing)?;
        self.note_missing_layers()?;
        self.remove_orphans()?;
        self.trim_segments()?;
        self.count_contents()?;
        self.punch_unused()?;
        self.unmount_unused();
        self.recover_snapshots();
        self.find_kept()?;
        self.measure();
        Ok(())
    }

    /// Layers of pulls that were interrupted.
    fn forget_unused_layers(&self) -> Result<(), Error> {
        let changes: Vec<Change> = {
            let state = self.state();
            let needed = state.records.needed(None);
            let unused = state
                .records
                .layers
                .keys()
                .filter(|id| !needed.contains(*id));
            unused
                .flat_map(|id| state.records.forget_layer(id))
                .collect()
        };
        self.apply(changes)
    }

    /// Whether a layer's two files are there, with the lengths they were committed with.
    pub(super) fn has_files(&self, row: &LayerRow) -> bool {
        let is = |path: &std::path::Path, len: u64| {
            fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == len)
        };
        is(&self.layout.erofs(&row.diff_id), row.erofs_bytes)
            && is(&self.layout.idx(&row.diff_id), row.idx_bytes)
    }

    fn note_missing_layers(&self) -> Result<(), Error> {
        let missing: Vec<DiffId> = {
            let state = self.state();
            let rows = state.records.layers.values();
            rows.filter(|row| row.damaged.is_none() && !self.has_files(row))
                .map(|row| row.diff_id.clone())
                .collect()
        };
        for layer in missing {
            self.quarantine(&layer, "its files are missing or cut short")?;
        }
        Ok(())
    }

    /// Files that no row names.
    fn remove_orphans(&self) -> Result<(), Error> {
        for path in self.orphans()? {
            tracing::info!(file = %self.layout.relative(&path), "Removed what an interrupted operation left");
            files::remove(&path)?;
        }
        Ok(())
    }

    /// Files of layers, packs and blobs that no row names.
    pub(super) fn orphans(&self) -> Result<Vec<std::path::PathBuf>, Error> {
        let state = self.state();
        let records = &state.records;
        let layers: BTreeSet<String> = records
            .layers
            .keys()
            .map(|id| id.0.hex().to_owned())
            .collect();
        let blobs: BTreeSet<&Digest> = records.images.values().flat_map(|row| &row.blobs).collect();
        let mut orphans = Vec::new();
        for name in files::names(&self.layout.layers())? {
            let id = name.split('.').next().unwrap_or_default();
            if !layers.contains(id) {
                orphans.push(self.layout.layers().join(name));
            }
        }
        for name in files::names(&self.layout.packs())? {
            let known = Layout::segment_of(&name).is_some_and(|segment| {
                records.segments.contains_key(&segment)
                    || (self.recovered() && !state.idle_segments.contains_key(&segment))
            });
            if !known {
                orphans.push(self.layout.packs().join(name));
            }
        }
        for folder in ["sha256", "sha512"] {
            for name in files::names(&self.layout.blobs().join(folder))? {
                let known = format!("{folder}:{name}")
                    .parse::<Digest>()
                    .is_ok_and(|digest| blobs.contains(&digest));
                if !known {
                    orphans.push(self.layout.blobs().join(folder).join(name));
                }
            }
        }
        Ok(orphans)
    }

    /// Cuts what an interrupted ingest appended beyond the committed length.
    fn trim_segments(&self) -> Result<(), Error> {
        let segments: Vec<(u32, u64)> = {
            let state = self.state();
            let segments = &state.records.segments;
            segments.iter().map(|(id, len)| (*id, *len)).collect()
        };
        for (id, committed) in segments {
            let path = self.layout.pack(id);
            let trim = || -> std::io::Result<u64> {
                let file = File::options().write(true).open(&path)?;
                let len = file.metadata()?.len();
                if len > committed {
                    file.set_len(committed)?;
                }
                Ok(len)
            };
            match trim() {
                Ok(len) if len >= committed => {
                    self.state().idle_segments.insert(id, committed);
                }
                // Its layers are found damaged by whoever reads them; nothing is appended to it.
                Ok(_) => tracing::error!(segment = id, "A pack is shorter than it was"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    tracing::error!(segment = id, "A pack is missing");
                }
                Err(error) => return Err(Error::io("open", &path, error)),
            }
        }
        let mut state = self.state();
        let next = state
            .records
            .segments
            .keys()
            .next_back()
            .map_or(0, |id| id + 1);
        state.records.next_segment = state.records.next_segment.max(next);
        Ok(())
    }

    /// Counts who uses which extent, from the layers' indexes.
    fn count_contents(&self) -> Result<(), Error> {
        let layers: Vec<(DiffId, bool)> = {
            let state = self.state();
            let rows = state.records.layers.values();
            let mut layers: Vec<_> = rows
                .map(|row| (row.diff_id.clone(), row.damaged.is_some()))
                .collect();
            // Sound ones first, so that what they share with damaged ones is given out.
            layers.sort_unstable_by_key(|(_, damaged)| *damaged);
            layers
        };
        for (layer, damaged) in layers {
            let head = match idx::read_head(&self.layout.idx(&layer)) {
                Ok(head) => head,
                Err(error) if !files::is_damage(&error) => {
                    return Err(Error::io("read", &self.layout.idx(&layer), error));
                }
                Err(error) => {
                    if !damaged {
                        self.quarantine(&layer, &format!("its index: {error}"))?;
                    }
                    continue;
                }
            };
            let outside = {
                let mut state = self.state();
                let mut outside = false;
                for (hash, extent) in head.extents {
                    let inside = state
                        .idle_segments
                        .get(&extent.segment)
                        .is_some_and(|len| extent.end() <= *len);
                    outside |= !inside;
                    if damaged || !inside {
                        state.contents.add_other(hash, extent);
                    } else {
                        state.contents.add(hash, extent);
                    }
                }
                outside
            };
            if outside && !damaged {
                self.quarantine(&layer, "a pack it uses is missing or cut short")?;
            }
        }
        Ok(())
    }

    /// Punches what no layer uses, where the file system says that there is something to win.
    fn punch_unused(&self) -> Result<(), Error> {
        let (places, segments) = {
            let state = self.state();
            (state.contents.places(), state.idle_segments.clone())
        };
        for (segment, len) in segments {
            let path = self.layout.pack(segment);
            let live = self.state().contents.live(segment);
            // The file system's own bookkeeping of a fragmented file counts too.
            let slack = 64 * BLOCK;
            if files::occupied(&path) <= live + slack {
                continue;
            }
            let file = self.open_segment(segment)?;
            let mut at = 0;
            let first = places.partition_point(|place| place.segment < segment);
            let mine = places
                .iter()
                .skip(first)
                .take_while(|place| place.segment == segment);
            for place in mine {
                if place.offset() > at {
                    self.punch(segment, &file, at, place.offset() - at)?;
                }
                at = place.end();
            }
            if at < len {
                self.punch(segment, &file, at, len - at)?;
            }
        }
        self.drop_empty_segments()
    }

    /// Takes a layer out of use: its images are not visible until a pull replaces it. The caller may hold the commit
    /// lock.
    pub(super) fn quarantine(&self, layer: &DiffId, cause: &str) -> Result<(), Error> {
        let (row, images) = {
            let state = self.state();
            let Some(row) = state.records.layers.get(layer) else {
                return Ok(());
            };
            if row.damaged.is_some() {
                return Ok(());
            }
            let mut row = row.clone();
            row.damaged = Some(cause.to_owned());
            (row, state.records.users_of(layer))
        };
        tracing::error!(%layer, cause, ?images, "A layer is damaged: its images must be pulled again");
        self.apply(vec![Change::PutLayer(row)])
    }
}

//! A layer's two files, its tree and its index, against the checksums of its row.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::image::DiffId;

use super::idx::{self, OpenLayer};
use super::pack::{ContentHash, Extent};
use super::records::LayerRow;
use super::{Error, Inner, Store, files};

/// What tells whether a file was touched since it was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(FileStamp {
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Of a layer's two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([FileStamp; 2]);

impl Store {
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
    /// Of a layer's files as they are now; `None` where one is absent.
    pub(super) fn stamp(&self, layer: &DiffId) -> Option<Stamp> {
        Some(Stamp([
            FileStamp::of(&self.layout.erofs(layer))?,
            FileStamp::of(&self.layout.idx(layer))?,
        ]))
    }

    /// Whether a layer's files were verified, and nobody touched them since.
    pub(super) fn is_verified(&self, layer: &DiffId) -> bool {
        let stamp = self.stamp(layer);
        stamp.is_some() && self.state().verified.get(layer) == stamp.as_ref()
    }

    /// Verifies a layer's tree and index, unless that was done and nobody touched them since.
    pub(super) fn verify_once(&self, row: &LayerRow) -> Result<(), Error> {
        let id = &row.diff_id;
        if self.is_verified(id) {
            return Ok(());
        }
        // Before the files are read: what changes meanwhile is read again next time.
        let stamp = self.stamp(id);
        self.verify_layer_files(row)?;
        if let Some(stamp) = stamp {
            self.state().verified.insert(id.clone(), stamp);
        }
        Ok(())
    }

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
    pub(super) fn verify_layer_files(
        &self,
        row: &LayerRow,
    ) -> Result<Vec<(ContentHash, Extent)>, Error> {
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

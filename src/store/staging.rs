//! Private folders of ingests: what is in them is not yet part of the store, and start-up wipes them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Error, Store, files};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A private folder, removed on drop.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    pub(super) fn new(parent: &Path) -> Result<Self, Error> {
        let path = parent.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).map_err(|error| Error::io("create", &path, error))?;
        Ok(Staging { path })
    }

    /// The file for the layer's EROFS image.
    pub(crate) fn create_erofs(&self) -> Result<File, Error> {
        files::create_new(&self.erofs())
    }

    pub(super) fn erofs(&self) -> PathBuf {
        self.path.join("erofs")
    }

    pub(super) fn idx(&self) -> PathBuf {
        self.path.join("idx")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is wiped at the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Store {
    pub(crate) fn staging(&self) -> Result<Staging, Error> {
        Staging::new(&self.inner.layout.staging())
    }
}

//! Which blobs are kept as they came, besides what is made of them.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use crate::prune::Pattern;
use crate::store::{KeptName, KeptWriter, Store};

/// A policy for blobs.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Of repositories.
    pub images: Vec<Pattern>,
    /// Of all that is kept, in bytes; the least recently used goes first.
    pub max_bytes: u64,
}

impl Keep {
    /// Whether blobs of a repository (`domain/path`) are kept.
    pub(super) fn wants(&self, repository: &str) -> bool {
        self.images
            .iter()
            .any(|pattern| pattern.matches(repository))
    }
}

/// The policy in force: none before there is a mirror, since nobody else wants them.
pub(super) type Keeping = Arc<OnceLock<Keep>>;

/// Reads a blob, and keeps what it reads.
pub(super) struct Tee<R> {
    from: R,
    to: Option<KeptWriter>,
}

impl<R: Read> Tee<R> {
    /// Keeps nothing where there is no room.
    pub(super) fn new(from: R, store: &Store, name: &KeptName, size: u64) -> Self {
        let to = store.keep_blob(name, size).inspect_err(not_kept).ok();
        Tee { from, to }
    }

    /// As the reader alone.
    pub(super) fn none(from: R) -> Self {
        Tee { from, to: None }
    }

    /// What was kept, to be finished where all was read.
    pub(super) fn kept(self) -> Option<KeptWriter> {
        self.to
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        if let Some(writer) = &mut self.to {
            let bytes = buffer.get(..count).unwrap_or_default();
            if let Err(error) = writer.write(bytes) {
                not_kept(&error);
                self.to = None;
            }
        }
        Ok(count)
    }
}

/// Shows what was kept under its name, and lets go of what is too much then. Blocking.
pub(super) fn finish(writer: KeptWriter, store: &Store, limit: u64) {
    let finished = writer.finish().and_then(|()| store.trim_kept(limit));
    if let Err(error) = finished {
        not_kept(&error);
    }
}

fn not_kept(error: &crate::store::Error) {
    tracing::debug!(err = %error, "A blob is not kept");
}

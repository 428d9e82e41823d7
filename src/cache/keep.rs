//! Which blobs are kept as they came, besides what is made of them.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use crate::prune::{Amount, Pattern};
use crate::store::{self, KeptName, KeptWriter, Space, Store};

/// A policy for blobs.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Of repositories.
    pub images: Vec<Pattern>,
    /// Of all that is kept, in bytes; the least recently used goes first.
    pub max_bytes: u64,
    /// What must stay free of the file system: what is kept makes room for it.
    pub min_free: Amount,
}

impl Keep {
    /// Whether blobs of a repository (`domain/path`) are kept.
    pub(super) fn wants(&self, repository: &str) -> bool {
        self.images
            .iter()
            .any(|pattern| pattern.matches(repository))
    }

    /// Bytes that have to go where so many more come.
    pub(super) fn missing(&self, space: &Space, coming: u64) -> u64 {
        let wanted = self.free_bytes(space).saturating_add(coming);
        wanted.saturating_sub(space.available)
    }

    fn free_bytes(&self, space: &Space) -> u64 {
        // What is set aside for root is nobody's here.
        self.min_free.of(space.used.saturating_add(space.available))
    }

    /// Begins to keep a blob, if there is room. Blocking.
    pub(super) fn begin(
        &self,
        store: &Store,
        name: &KeptName,
        size: u64,
    ) -> Result<KeptWriter, store::Error> {
        let space = store.space()?;
        let missing = self.missing(&space, size);
        if missing > 0 && store.free_kept(missing)? < missing {
            return Err(store::Error::Reserved {
                root: store.root().to_path_buf(),
                free: space.available,
                reserve: self.free_bytes(&space),
            });
        }
        store.keep_blob(name, size)
    }

    /// Shows what was kept under its name, and lets go of what is too much then. Blocking.
    pub(super) fn finish(&self, writer: KeptWriter, store: &Store) -> Result<(), store::Error> {
        writer.finish()?;
        if let Err(error) = store.trim_kept(self.max_bytes) {
            tracing::warn!(err = %error, "More blobs are kept than should be");
        }
        Ok(())
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
    /// As the reader alone where there is nothing to keep it in.
    pub(super) fn new(from: R, to: Option<KeptWriter>) -> Self {
        Tee { from, to }
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

/// Leaves a trace of what is kept no further.
pub(super) fn not_kept(error: &store::Error) {
    tracing::debug!(err = %error, "A blob is not kept");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_leaves_room() {
        let keep = |min_free| Keep {
            images: Vec::new(),
            max_bytes: 0,
            min_free,
        };
        let space = Space {
            capacity: 1200,
            available: 300,
            used: 700,
        };
        for (min_free, coming, missing) in [
            (Amount::Percent(20), 0, 0),
            (Amount::Percent(20), 100, 0),
            (Amount::Percent(20), 150, 50),
            (Amount::Percent(40), 0, 100),
            (Amount::Bytes(0), 300, 0),
            (Amount::Bytes(0), 301, 1),
            (Amount::Bytes(u64::MAX), u64::MAX, u64::MAX - 300),
        ] {
            assert_eq!(keep(min_free).missing(&space, coming), missing);
        }
    }
}

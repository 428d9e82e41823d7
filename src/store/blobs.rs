//! Manifests, indexes and configs, by digest, as they were received.

use std::fs;
use std::io;

use bytes::Bytes;

use crate::image::Digest;

use super::{Error, Inner, Store, files};

/// A larger blob is not kept here: manifests are limited to 4 MiB, configs to less.
const MAX_BLOB: u64 = 16 << 20;

impl Inner {
    /// Writes a blob durably; one that is there already is left alone if it is whole.
    pub(super) fn put_blob(&self, digest: &Digest, bytes: &Bytes) -> Result<(), Error> {
        let found = Digest::of(digest.algorithm(), bytes);
        if found != *digest {
            return Err(Error::DigestMismatch {
                expected: digest.clone(),
                found,
            });
        }
        let path = self.layout.blob(digest);
        if fs::read(&path).is_ok_and(|known| known == **bytes) {
            return Ok(());
        }
        let temporary = self.layout.staging().join(format!("blob-{}", digest.hex()));
        files::write_durable(&temporary, &path, bytes)?;
        // Guards the name; the bytes were synced before the rename.
        files::sync_folder(&self.layout.blob_folder(digest))
    }

    /// Reads a blob and verifies its digest.
    pub(super) fn read_blob(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let path = self.layout.blob(digest);
        let damaged = |cause: String| Error::Damaged {
            subject: self.layout.relative(&path),
            cause,
        };
        match fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_BLOB => return Err(damaged("it is too large".to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path, error)),
        }
        let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let found = Digest::of(digest.algorithm(), &bytes);
        if found != *digest {
            return Err(damaged(format!("its digest is {found}")));
        }
        Ok(Some(bytes.into()))
    }
}

impl Store {
    /// A manifest, index or config; its digest is verified. Blocking.
    ///
    /// # Errors
    /// [`Error::Damaged`] when its bytes are not those the digest names.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        self.inner.read_blob(digest)
    }

    /// As [`Store::blob`], of images only that have a name in a registry's domain. Blocking.
    ///
    /// # Errors
    /// As [`Store::blob`].
    pub fn blob_of(&self, digest: &Digest, domain: &str) -> Result<Option<Bytes>, Error> {
        if self.has_blob_of(digest, domain) {
            self.inner.read_blob(digest)
        } else {
            Ok(None)
        }
    }

    /// Whether there is one for [`Store::blob_of`]. From memory.
    pub fn has_blob_of(&self, digest: &Digest, domain: &str) -> bool {
        let state = self.inner.state();
        let visible = state.records.visible();
        let named = |id| {
            let names = visible.get(id).into_iter().flat_map(|image| &image.names);
            names
                .filter_map(|name| name.name.strip_prefix(domain))
                .any(|rest| rest.starts_with('/'))
        };
        let mut rows = state.records.images.iter();
        rows.any(|(id, row)| row.blobs.contains(digest) && named(id))
    }
}

//! Blobs as registries serve them, kept for those who want the very bytes: compressed layers, and the documents of images
//! that are not here.
//!
//! No image needs them, so they have no rows: a file under `kept/` is named by its digest and by the registry it is from,
//! and under that name it is whole, verified and durable. That another registry claims to have the same blob proves
//! nothing about who may read this one, so each has its own. The least recently used go first; the time of a file's last
//! use is its own.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::image::{Digest, Hasher};

use super::types::{Damage, FsckReport};
use super::{Error, Inner, Store, files};

/// Read at once when a blob is hashed again.
const BUFFER: usize = 256 << 10;
/// The last use of a blob is written down again after so many seconds.
const STEP: u64 = 60;
/// Digits that tell registries apart.
const FROM: usize = 16;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A blob of a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeptName {
    digest: Digest,
    /// The beginning of the hash of the registry's domain, in hex: domains make no file names.
    from: String,
}

impl KeptName {
    /// `domain` as references have it, such as `docker.io`.
    pub fn new(digest: &Digest, domain: &str) -> Self {
        let hash = blake3::hash(domain.as_bytes()).to_hex();
        KeptName {
            digest: digest.clone(),
            from: hash.chars().take(FROM).collect(),
        }
    }

    /// Of its bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn file(&self) -> String {
        format!("{}-{}", self.digest.hex(), self.from)
    }

    fn of_file(algorithm: &str, file: &str) -> Option<Self> {
        let (hex, from) = file.split_once('-')?;
        let is_hash = from.len() == FROM && from.bytes().all(|b| b.is_ascii_hexdigit());
        Some(KeptName {
            digest: format!("{algorithm}:{hex}").parse().ok()?,
            from: is_hash.then(|| from.to_owned())?,
        })
    }
}

/// What is kept, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Kept {
    rows: HashMap<KeptName, Row>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    size: u64,
    used: SystemTime,
    /// Its bytes were hashed since the store was opened.
    verified: bool,
}

impl Kept {
    fn insert(&mut self, name: KeptName, row: Row) {
        self.remove(&name);
        self.bytes = self.bytes.saturating_add(row.size);
        self.rows.insert(name, row);
    }

    fn remove(&mut self, name: &KeptName) {
        if let Some(row) = self.rows.remove(name) {
            self.bytes = self.bytes.saturating_sub(row.size);
        }
    }

    /// The least recently used, up to the point where `excess` bytes are gone.
    fn oldest(&self, excess: u64) -> Vec<KeptName> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(name, row)| (row.used, *name));
        let mut gone = 0_u64;
        let going = rows.into_iter().take_while(|(_, row)| {
            let go_on = gone < excess;
            gone = gone.saturating_add(row.size);
            go_on
        });
        going.map(|(name, _)| name.clone()).collect()
    }
}

/// A kept blob, open for reading. It stays readable if it is removed meanwhile.
#[derive(Debug)]
pub struct KeptBlob {
    file: File,
    size: u64,
}

impl KeptBlob {
    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads at a place; fewer bytes only at the end. Blocking.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        read_at(&self.file, buffer, offset)
    }

    /// The blob from its first byte. Blocking.
    pub fn reader(&self) -> impl Read + '_ {
        Sequential {
            blob: self,
            offset: 0,
        }
    }
}

struct Sequential<'a> {
    blob: &'a KeptBlob,
    offset: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.blob.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// A blob on its way in. Dropped before [`KeptWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct KeptWriter {
    store: Store,
    file: File,
    path: PathBuf,
    name: KeptName,
    size: u64,
    written: u64,
    hasher: Option<Hasher>,
    /// Bytes that may come before the disk is looked at again.
    room: u64,
}

impl KeptWriter {
    /// What is written so far, to be read while more comes: the first `written` bytes hold.
    pub fn reader(&self) -> Result<KeptBlob, Error> {
        let file = File::open(&self.path).map_err(|error| Error::io("open", &self.path, error))?;
        Ok(KeptBlob {
            file,
            size: self.size,
        })
    }

    /// Appends. Blocking.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let coming = bytes.len() as u64;
        self.written = self.written.saturating_add(coming);
        if self.written > self.size {
            return Err(self.unlike(self.written));
        }
        if coming > self.room {
            self.room = self.store.inner.check_space(coming)?;
        }
        self.room = self.room.saturating_sub(coming);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.file
            .write_all(bytes)
            .map_err(|error| Error::io("write", &self.path, error))
    }

    /// Verifies size and digest, makes the blob durable, and shows it under its name. Blocking.
    pub fn finish(mut self) -> Result<(), Error> {
        if self.written != self.size {
            return Err(self.unlike(self.written));
        }
        let inner = self.store.inner.clone();
        let found = self.hasher.take().map(Hasher::finish);
        if let Some(found) = found.filter(|found| *found != self.name.digest) {
            return Err(Error::DigestMismatch {
                expected: self.name.digest.clone(),
                found,
            });
        }
        let path = inner.layout.kept_blob(&self.name);
        // Guards the bytes: under its name a blob is whole.
        self.file
            .sync_all()
            .map_err(|error| Error::io("fsync", &self.path, error))?;
        fs::rename(&self.path, &path).map_err(|error| Error::io("rename to", &path, error))?;
        // Guards the name.
        files::sync_folder(&inner.layout.kept_folder(&self.name.digest))?;
        inner.kept().insert(
            self.name.clone(),
            Row {
                size: self.size,
                used: SystemTime::now(),
                verified: true,
            },
        );
        inner.measure_again([path]);
        Ok(())
    }

    fn unlike(&self, found: u64) -> Error {
        Error::SizeMismatch {
            blob: self.name.digest.clone(),
            expected: self.size,
            found,
        }
    }
}

impl Drop for KeptWriter {
    fn drop(&mut self) {
        // Renamed if it was finished; what cannot be removed now is wiped at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// Begins to keep a blob of `size` bytes. Blocking.
    ///
    /// # Errors
    /// [`Error::Reserved`] where it would take of what must stay free.
    pub fn keep_blob(&self, name: &KeptName, size: u64) -> Result<KeptWriter, Error> {
        self.inner.check_space(size)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.layout.staging().join(format!("kept-{number}"));
        Ok(KeptWriter {
            store: self.clone(),
            file: files::create_new(&path)?,
            path,
            name: name.clone(),
            size,
            written: 0,
            hasher: Some(Hasher::new(name.digest.algorithm())),
            room: 0,
        })
    }

    /// A kept blob; this is a use of it. The first time after a start its bytes are hashed, and what is damaged is removed.
    /// Blocking.
    pub fn kept(&self, name: &KeptName) -> Result<Option<KeptBlob>, Error> {
        let inner = &self.inner;
        let Some(row) = inner.kept().rows.get(name).copied() else {
            return Ok(None);
        };
        let path = inner.layout.kept_blob(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                inner.forget_kept(name)?;
                return Ok(None);
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        if !row.verified {
            if let Err(cause) = hash(&file, &name.digest, row.size) {
                tracing::warn!(blob = %name.digest, cause, "A kept blob is damaged: removed");
                inner.forget_kept(name)?;
                return Ok(None);
            }
            if let Some(row) = inner.kept().rows.get_mut(name) {
                row.verified = true;
            }
        }
        let now = SystemTime::now();
        let behind = now.duration_since(row.used).unwrap_or_default().as_secs();
        if behind >= STEP || now < row.used {
            // Only the order of removals hangs on it.
            let _ = file.set_times(FileTimes::new().set_modified(now));
            if let Some(row) = inner.kept().rows.get_mut(name) {
                row.used = now;
            }
        }
        Ok(Some(KeptBlob {
            file,
            size: row.size,
        }))
    }

    /// Size of a kept blob, in bytes. From memory.
    pub fn kept_size(&self, name: &KeptName) -> Option<u64> {
        self.inner.kept().rows.get(name).map(|row| row.size)
    }

    /// Kept blobs and their bytes. From memory.
    pub fn kept_usage(&self) -> (u64, u64) {
        let kept = self.inner.kept();
        (kept.rows.len() as u64, kept.bytes)
    }

    /// Removes the least recently used blobs until at most `limit` bytes are kept. Returns the bytes removed. Blocking.
    pub fn trim_kept(&self, limit: u64) -> Result<u64, Error> {
        let excess = self.inner.kept().bytes.saturating_sub(limit);
        self.free_kept(excess)
    }

    /// Removes the least recently used blobs until `wanted` bytes went, or all of them. Returns the bytes removed. Blocking.
    pub fn free_kept(&self, wanted: u64) -> Result<u64, Error> {
        let going = self.inner.kept().oldest(wanted);
        let mut freed = 0_u64;
        for name in going {
            let size = self.kept_size(&name).unwrap_or_default();
            self.inner.forget_kept(&name)?;
            freed = freed.saturating_add(size);
        }
        Ok(freed)
    }
}

impl Inner {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Each critical section is a few assignments.
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn forget_kept(&self, name: &KeptName) -> Result<(), Error> {
        let path = self.layout.kept_blob(name);
        files::remove(&path)?;
        self.kept().remove(name);
        self.measure_again([path]);
        Ok(())
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept().bytes
    }

    /// Start-up: what is there. Files with other names than digests are not ours and go.
    pub(super) fn find_kept(&self) -> Result<(), Error> {
        for algorithm in ["sha256", "sha512"] {
            let folder = self.layout.kept_blobs().join(algorithm);
            for file in files::names(&folder)? {
                let path = folder.join(&file);
                let meta = fs::metadata(&path).ok().filter(fs::Metadata::is_file);
                let name = KeptName::of_file(algorithm, &file);
                let (Some(meta), Some(name)) = (meta, name) else {
                    files::remove(&path)?;
                    continue;
                };
                self.kept().insert(
                    name,
                    Row {
                        size: meta.len(),
                        used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                        verified: false,
                    },
                );
            }
        }
        Ok(())
    }

    /// Hashes what is kept; what is damaged goes, for a registry has it.
    pub(super) fn verify_kept(&self, report: &mut FsckReport) -> Result<(), Error> {
        let rows: Vec<(KeptName, Row)> = {
            let kept = self.kept();
            let rows = kept.rows.iter();
            rows.map(|(name, row)| (name.clone(), *row)).collect()
        };
        for (name, row) in rows {
            let path = self.layout.kept_blob(&name);
            let checked = match File::open(&path) {
                Ok(file) => hash(&file, &name.digest, row.size),
                // It was removed meanwhile, by whomever.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("open", &path, error)),
            };
            report.bytes = report.bytes.saturating_add(row.size);
            if let Err(cause) = checked {
                self.forget_kept(&name)?;
                report.damaged.push(Damage {
                    kind: "blob".to_owned(),
                    subject: self.layout.relative(&path),
                    cause: format!("{cause}; it was removed, registries have it"),
                    images: Vec::new(),
                    repaired: true,
                });
            }
        }
        Ok(())
    }
}

/// Whether a file's bytes are those of a digest.
fn hash(file: &File, digest: &Digest, size: u64) -> Result<(), String> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0_u64;
    loop {
        let count = read_at(file, &mut buffer, offset).map_err(|error| error.to_string())?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        offset += count as u64;
    }
    if offset != size {
        return Err(format!("it has {offset} of {size} bytes"));
    }
    let found = hasher.finish();
    if found != *digest {
        return Err(format!("its digest is {found}"));
    }
    Ok(())
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut at = 0;
    while let Some(rest) = buffer.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(at as u64)) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

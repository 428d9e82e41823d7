//! The metadata database: few rows, durable transactions.
//!
//! redb commits with `Durability::Immediate`: when [`Db::commit`] returns, the transaction is on disk, and a crash
//! leaves either all of it or nothing.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableHandle,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::clock::ClockRow;
use super::records::{Change, Records};
use super::{Error, files};

const IMAGES: TableDefinition<&str, &[u8]> = TableDefinition::new("images");
const NAMES: TableDefinition<&str, &[u8]> = TableDefinition::new("names");
const LAYERS: TableDefinition<&str, &[u8]> = TableDefinition::new("layers");
const BLOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("blobs");
const MOUNTS: TableDefinition<&str, &[u8]> = TableDefinition::new("mounts");
const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
const SEGMENTS: TableDefinition<u32, u64> = TableDefinition::new("segments");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const NEXT_SEGMENT: &str = "next-segment";
/// The store's clock, the kernel's then, and the boot that it was of.
const CLOCK: [&str; 3] = ["clock", "clock-monotonic", "clock-boot"];

/// The rows are few: a small cache holds them all.
const CACHE: usize = 2 << 20;

/// Why the database did not open.
pub(super) enum OpenError {
    /// Its bytes make no sense: a fresh one must take its place.
    Corrupted(String),
    /// Anything else, such as an I/O error, which may pass.
    Other(Error),
}

#[derive(Debug)]
pub(super) struct Db {
    /// Absent after an I/O error, until the next transaction opens it again: redb goes no further by itself.
    database: Mutex<Option<Database>>,
    path: PathBuf,
    root: PathBuf,
}

/// Why a transaction did not happen.
enum Failure {
    /// The disk; a full one may have space later.
    Io(std::io::Error),
    Other(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Io(error) => Failure::Io(error),
            other => Failure::Other(other.to_string()),
        }
    }
}

impl Db {
    pub(super) fn open(path: &Path, root: &Path) -> Result<(Self, Records), OpenError> {
        // redb panics on some pages that make no sense. Nothing of what it had in hands then is used again.
        std::panic::catch_unwind(|| Self::open_and_load(path, root)).unwrap_or_else(|_| {
            let cause = "its pages make no sense to the database's own code".to_owned();
            Err(OpenError::Corrupted(cause))
        })
    }

    fn open_and_load(path: &Path, root: &Path) -> Result<(Self, Records), OpenError> {
        // An empty file is what a crash before the first sync leaves.
        let fresh = std::fs::metadata(path).map_or(true, |meta| meta.len() == 0);
        let database = open_file(path, fresh).map_err(|error| judge(error, path, root))?;
        let db = Db {
            database: Mutex::new(Some(database)),
            path: path.to_path_buf(),
            root: root.to_path_buf(),
        };
        if fresh {
            db.commit(&[Change::NextSegment(0)])
                .map_err(OpenError::Other)?;
        }
        let records = db.load().map_err(OpenError::Corrupted)?;
        Ok((db, records))
    }

    /// One durable transaction.
    pub(super) fn commit<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> Result<(), Error> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => Ok(database),
            None => open_file(&self.path, false).map_err(Failure::from),
        };
        let outcome = database.and_then(|database| {
            write(&database, changes)?;
            *slot = Some(database);
            Ok(())
        });
        outcome.map_err(|failure| self.failed(failure))
    }

    /// Reads every page anew and checks it: what is wrong with it, if anything is.
    ///
    /// # Errors
    /// Those of input and output, which may pass.
    pub(super) fn verify(&self) -> Result<Option<String>, Error> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => Ok(database),
            None => open_file(&self.path, false),
        };
        let checked = database.and_then(|mut database| {
            let sound = database.check_integrity()?;
            *slot = Some(database);
            Ok(sound)
        });
        match checked.map_err(|error| judge(error, &self.path, &self.root)) {
            Ok(true) => Ok(None),
            Ok(false) => Ok(Some(
                "some of its pages do not match their checksums".to_owned(),
            )),
            Err(OpenError::Corrupted(cause)) => Ok(Some(cause)),
            Err(OpenError::Other(error)) => Err(error),
        }
    }

    /// Writes all rows into a fresh file that takes the place of a damaged one, which is kept under another name. A
    /// crash leaves one or the other in place.
    pub(super) fn rewrite(&self, fresh: &Path, aside: &Path, rows: &[Change]) -> Result<(), Error> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        files::remove(fresh)?;
        files::remove(aside)?;
        let written = open_file(fresh, true)
            .map_err(Failure::from)
            .and_then(|database| write(&database, rows));
        written.map_err(|failure| self.failed(failure))?;
        // It may be gone.
        let _ = std::fs::hard_link(&self.path, aside);
        std::fs::rename(fresh, &self.path)
            .map_err(|error| Error::io("rename to", &self.path, error))?;
        files::sync_folder(&self.root)
    }

    fn failed(&self, failure: Failure) -> Error {
        match failure {
            Failure::Io(error) => Error::io("write", &self.path, error),
            Failure::Other(cause) => Error::Database {
                root: self.root.clone(),
                cause,
            },
        }
    }

    fn load(&self) -> Result<Records, String> {
        let slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = slot.as_ref().ok_or("it is not open")?;
        let transaction = database.begin_read().map_err(text)?;
        let mut records = Records::default();
        for row in rows::<super::records::ImageRow>(&transaction, IMAGES)? {
            records.images.insert(row.1.record.id.clone(), row.1);
        }
        records.names = rows(&transaction, NAMES)?.into_iter().collect();
        for row in rows::<super::records::LayerRow>(&transaction, LAYERS)? {
            records.layers.insert(row.1.diff_id.clone(), row.1);
        }
        for (blob, layer) in rows(&transaction, BLOBS)? {
            let blob = blob.parse().map_err(text)?;
            records.blobs.insert(blob, layer);
        }
        for (target, row) in rows(&transaction, MOUNTS)? {
            records.mounts.insert(target.into(), row);
        }
        // A root from before there were snapshots has no such table until the next transaction.
        if has_table(&transaction, SNAPSHOTS)? {
            records.snapshots = rows(&transaction, SNAPSHOTS)?.into_iter().collect();
        }
        let segments = transaction.open_table(SEGMENTS).map_err(text)?;
        for row in segments.iter().map_err(text)? {
            let (segment, len) = row.map_err(text)?;
            records.segments.insert(segment.value(), len.value());
        }
        let counters = transaction.open_table(COUNTERS).map_err(text)?;
        let next = counters.get(NEXT_SEGMENT).map_err(text)?;
        records.next_segment = next
            .and_then(|value| u32::try_from(value.value()).ok())
            .unwrap_or(0);
        let clock = |key: &str| -> Result<Option<u64>, String> {
            let value = counters.get(key).map_err(text)?;
            Ok(value.map(|value| value.value()))
        };
        let [observed, monotonic, boot] = CLOCK;
        if let (Some(observed), Some(monotonic), Some(boot)) =
            (clock(observed)?, clock(monotonic)?, clock(boot)?)
        {
            records.clock = Some(ClockRow {
                observed,
                monotonic,
                boot,
            });
        }
        records.show();
        Ok(records)
    }
}

/// Tells an error of the disk from bytes that make no sense.
fn judge(error: DatabaseError, path: &Path, root: &Path) -> OpenError {
    let text = error.to_string();
    match error {
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != std::io::ErrorKind::InvalidData
                && source.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            OpenError::Other(Error::io("open", path, source))
        }
        DatabaseError::DatabaseAlreadyOpen => OpenError::Other(Error::Locked {
            root: root.to_path_buf(),
            pid: 0,
        }),
        _ => OpenError::Corrupted(text),
    }
}

fn open_file(path: &Path, create: bool) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    if create {
        builder.create(path)
    } else {
        builder.open(path)
    }
}

fn write<'a>(
    database: &Database,
    changes: impl IntoIterator<Item = &'a Change>,
) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    {
        let mut images = transaction.open_table(IMAGES)?;
        let mut names = transaction.open_table(NAMES)?;
        let mut layers = transaction.open_table(LAYERS)?;
        let mut blobs = transaction.open_table(BLOBS)?;
        let mut mounts = transaction.open_table(MOUNTS)?;
        let mut snapshots = transaction.open_table(SNAPSHOTS)?;
        let mut segments = transaction.open_table(SEGMENTS)?;
        let mut counters = transaction.open_table(COUNTERS)?;
        for change in changes {
            match change {
                Change::PutImage(row) => {
                    let key = row.record.id.to_string();
                    images.insert(&*key, &*json(row).map_err(Failure::Other)?)?;
                }
                Change::DeleteImage(id) => {
                    images.remove(&*id.to_string())?;
                }
                Change::PutName(name, row) => {
                    names.insert(&**name, &*json(row).map_err(Failure::Other)?)?;
                }
                Change::DeleteName(name) => {
                    names.remove(&**name)?;
                }
                Change::PutLayer(row) => {
                    let key = row.diff_id.to_string();
                    layers.insert(&*key, &*json(row).map_err(Failure::Other)?)?;
                }
                Change::DeleteLayer(id) => {
                    layers.remove(&*id.to_string())?;
                }
                Change::PutBlob(blob, id) => {
                    let key = blob.to_string();
                    blobs.insert(&*key, &*json(id).map_err(Failure::Other)?)?;
                }
                Change::DeleteBlob(blob) => {
                    blobs.remove(&*blob.to_string())?;
                }
                Change::PutSegment(segment, len) => {
                    segments.insert(segment, len)?;
                }
                Change::DeleteSegment(segment) => {
                    segments.remove(segment)?;
                }
                Change::NextSegment(next) => {
                    counters.insert(NEXT_SEGMENT, u64::from(*next))?;
                }
                Change::Clock(row) => {
                    for (key, value) in CLOCK.iter().zip([row.observed, row.monotonic, row.boot]) {
                        counters.insert(key, value)?;
                    }
                }
                Change::PutMount(target, row) => {
                    let key = target.to_string_lossy();
                    mounts.insert(&*key, &*json(row).map_err(Failure::Other)?)?;
                }
                Change::DeleteMount(target) => {
                    mounts.remove(&*target.to_string_lossy())?;
                }
                Change::PutSnapshot(name, row) => {
                    snapshots.insert(&**name, &*json(row).map_err(Failure::Other)?)?;
                }
                Change::DeleteSnapshot(name) => {
                    snapshots.remove(&**name)?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn has_table(
    transaction: &redb::ReadTransaction,
    table: TableDefinition<&str, &[u8]>,
) -> Result<bool, String> {
    let mut tables = transaction.list_tables().map_err(text)?;
    Ok(tables.any(|known| known.name() == table.name()))
}

fn rows<T: DeserializeOwned>(
    transaction: &redb::ReadTransaction,
    table: TableDefinition<&str, &[u8]>,
) -> Result<Vec<(String, T)>, String> {
    let table = transaction.open_table(table).map_err(text)?;
    let mut rows = Vec::new();
    for row in table.iter().map_err(text)? {
        let (key, value) = row.map_err(text)?;
        let value = serde_json::from_slice(value.value())
            .map_err(|error| format!("row {:?}: {error}", key.value()))?;
        rows.push((key.value().to_owned(), value));
    }
    Ok(rows)
}

fn json(row: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(row).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

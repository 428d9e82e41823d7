//! The metadata database: few rows, durable transactions.
//!
//! redb commits with `Durability::Immediate`: when [`Db::commit`] returns, the transaction is on disk, and a crash
//! leaves either all of it or nothing.

use std::path::Path;

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;
use super::records::{Change, Records};

const IMAGES: TableDefinition<&str, &[u8]> = TableDefinition::new("images");
const NAMES: TableDefinition<&str, &[u8]> = TableDefinition::new("names");
const LAYERS: TableDefinition<&str, &[u8]> = TableDefinition::new("layers");
const BLOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("blobs");
const MOUNTS: TableDefinition<&str, &[u8]> = TableDefinition::new("mounts");
const SEGMENTS: TableDefinition<u32, u64> = TableDefinition::new("segments");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const NEXT_SEGMENT: &str = "next-segment";

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
    database: Database,
    root: std::path::PathBuf,
}

impl Db {
    pub(super) fn open(path: &Path, root: &Path) -> Result<(Self, Records), OpenError> {
        // An empty file is what a crash before the first sync leaves.
        let fresh = std::fs::metadata(path).map_or(true, |meta| meta.len() == 0);
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let opened = if fresh {
            builder.create(path)
        } else {
            builder.open(path)
        };
        let database = opened.map_err(|error| {
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
        })?;
        let db = Db {
            database,
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
    pub(super) fn commit(&self, changes: &[Change]) -> Result<(), Error> {
        self.write(changes).map_err(|cause| Error::Database {
            root: self.root.clone(),
            cause,
        })
    }

    fn write(&self, changes: &[Change]) -> Result<(), String> {
        let transaction = self.database.begin_write().map_err(text)?;
        {
            let mut images = transaction.open_table(IMAGES).map_err(text)?;
            let mut names = transaction.open_table(NAMES).map_err(text)?;
            let mut layers = transaction.open_table(LAYERS).map_err(text)?;
            let mut blobs = transaction.open_table(BLOBS).map_err(text)?;
            let mut mounts = transaction.open_table(MOUNTS).map_err(text)?;
            let mut segments = transaction.open_table(SEGMENTS).map_err(text)?;
            let mut counters = transaction.open_table(COUNTERS).map_err(text)?;
            for change in changes {
                match change {
                    Change::PutImage(row) => {
                        let key = row.record.id.to_string();
                        images.insert(&*key, &*json(row)?).map_err(text)?;
                    }
                    Change::DeleteImage(id) => {
                        images.remove(&*id.to_string()).map_err(text)?;
                    }
                    Change::PutName(name, row) => {
                        names.insert(&**name, &*json(row)?).map_err(text)?;
                    }
                    Change::DeleteName(name) => {
                        names.remove(&**name).map_err(text)?;
                    }
                    Change::PutLayer(row) => {
                        let key = row.diff_id.to_string();
                        layers.insert(&*key, &*json(row)?).map_err(text)?;
                    }
                    Change::DeleteLayer(id) => {
                        layers.remove(&*id.to_string()).map_err(text)?;
                    }
                    Change::PutBlob(blob, id) => {
                        let key = blob.to_string();
                        blobs.insert(&*key, &*json(id)?).map_err(text)?;
                    }
                    Change::DeleteBlob(blob) => {
                        blobs.remove(&*blob.to_string()).map_err(text)?;
                    }
                    Change::PutSegment(segment, len) => {
                        segments.insert(segment, len).map_err(text)?;
                    }
                    Change::DeleteSegment(segment) => {
                        segments.remove(segment).map_err(text)?;
                    }
                    Change::NextSegment(next) => {
                        counters
                            .insert(NEXT_SEGMENT, u64::from(*next))
                            .map_err(text)?;
                    }
                    Change::PutMount(target, row) => {
                        let key = target.to_string_lossy();
                        mounts.insert(&*key, &*json(row)?).map_err(text)?;
                    }
                    Change::DeleteMount(target) => {
                        mounts.remove(&*target.to_string_lossy()).map_err(text)?;
                    }
                }
            }
        }
        transaction.commit().map_err(text)
    }

    fn load(&self) -> Result<Records, String> {
        let transaction = self.database.begin_read().map_err(text)?;
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
        records.show();
        Ok(records)
    }
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

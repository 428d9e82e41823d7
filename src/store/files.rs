//! Files of the data directory: durable writes and what they occupy.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::Error;

/// Opens for writing a file that must not exist, readable by the owner only.
pub(super) fn create_new(path: &Path) -> Result<File, Error> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io("create", path, error))
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("fsync", path, error))
}

/// Writes a whole file durably under its final name: temporary file, fsync, rename. The caller syncs the folder.
pub(super) fn write_durable(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(temporary);
        Error::io("write", path, error)
    })
}

/// Removes a file; one that is absent is as good. Returns what it occupied on disk, in bytes.
pub(super) fn remove(path: &Path) -> Result<u64, Error> {
    let occupied = occupied(path);
    match fs::remove_file(path) {
        Ok(()) => Ok(occupied),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

/// Whether an error of reading means that the bytes are wrong or gone. Others, such as EIO, may pass.
pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
    )
}

/// Bytes that a file occupies on disk; 0 if it is absent.
pub(super) fn occupied(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// Names of the files of a folder.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    };
    read().map_err(|error| Error::io("list", folder, error))
}

/// Length and blake3 (hex) of a file.
pub(super) fn hash(path: &Path) -> Result<(u64, String), Error> {
    let mut hasher = blake3::Hasher::new();
    let mut read = || -> io::Result<u64> {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 256 << 10];
        let mut len = 0;
        loop {
            match io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(len),
                n => {
                    hasher.update(buffer.get(..n).unwrap_or_default());
                    len += n as u64;
                }
            }
        }
    };
    let len = read().map_err(|error| Error::io("read", path, error))?;
    Ok((len, hasher.finalize().to_hex().to_string()))
}

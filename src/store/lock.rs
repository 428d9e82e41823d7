//! One process per root.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{FlockOperation, flock};

use super::Error;
use super::layout::Layout;

/// Held while the store is open; the kernel releases it whatever way the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(layout: &Layout) -> Result<Self, Error> {
        let path = layout.lock();
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(Error::io("lock", &path, error.into()));
            }
            let mut text = String::new();
            let _ = (&file).take(32).read_to_string(&mut text);
            return Err(Error::Locked {
                root: layout.root().to_path_buf(),
                pid: text.trim().parse().unwrap_or(0),
            });
        }
        // For the message above only; the lock is the kernel's.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| Error::io("write", &path, error))?;
        Ok(Lock { _file: file })
    }
}

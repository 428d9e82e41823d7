//! Free space of the file system, and the band of it that no pull enters.

use std::sync::atomic::Ordering;

use super::{Error, Inner, Store};

/// Free space is looked at after so many bytes at the latest, and more often near the band.
const SELDOM: u64 = 64 << 20;

/// A file system's size, and what may still be written to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// In bytes.
    pub capacity: u64,
    /// In bytes, without what is set aside for root.
    pub available: u64,
    /// In bytes, by whomever.
    pub used: u64,
}

impl Store {
    /// Of the file system that the store is on. Blocking.
    pub fn space(&self) -> Result<Space, Error> {
        self.inner.space()
    }

    /// Sets how many bytes must stay free; what the limits say counts where it is more.
    pub fn set_reserve(&self, bytes: u64) {
        self.inner.reserve.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that must stay free: an ingest that would take of them is refused.
    pub fn reserve(&self) -> u64 {
        self.inner.reserve()
    }
}

impl Inner {
    fn space(&self) -> Result<Space, Error> {
        let root = self.layout.root();
        let stat =
            rustix::fs::statvfs(root).map_err(|error| Error::io("statvfs", root, error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space {
            capacity: bytes(stat.f_blocks),
            available: bytes(stat.f_bavail),
            used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        })
    }

    fn reserve(&self) -> u64 {
        let wanted = self.reserve.load(Ordering::Relaxed);
        wanted.max(self.limits.reserved_bytes)
    }

    /// Refuses to write `coming` bytes where less than the reserve would be free then. How many more may be written
    /// before it has to be asked again.
    pub(super) fn check_space(&self, coming: u64) -> Result<u64, Error> {
        let reserve = self.reserve();
        if reserve == 0 {
            return Ok(SELDOM);
        }
        let free = self.space()?.available;
        match free.checked_sub(reserve.saturating_add(coming)) {
            Some(room) => Ok((room / 4).min(SELDOM)),
            None => Err(Error::Reserved {
                root: self.layout.root().to_path_buf(),
                free,
                reserve,
            }),
        }
    }
}

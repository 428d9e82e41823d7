//! A file system of a test's own.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags};

use super::{is_root, skip};

/// A small file system, unmounted at the end.
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
}

impl Disk {
    /// In a folder that is made for it; `None` after a notice that `test` was skipped.
    pub(crate) fn new(test: &str, path: PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let mounted = is_root().then(|| {
            rustix::mount::mount(
                "larder-test",
                &path,
                "tmpfs",
                MountFlags::empty(),
                &*options,
            )
        });
        if !matches!(mounted, Some(Ok(()))) {
            skip(test, &format!("no tmpfs: {mounted:?}"));
            return None;
        }
        Some(Disk { path })
    }

    /// Bytes that may still be written.
    pub(crate) fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

//! The folder of a demo, and how nothing of it stays.
//!
//! Owns everything below its path, mounts included. Never follows a link and never removes what is on a file system
//! that was mounted there.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use rustix::mount::{UnmountFlags, unmount};

/// How long a thread that has not ended may go on putting files into the folder.
const PATIENCE: Duration = Duration::from_secs(5);
/// Mounts on top of each other that are taken off one place.
const MOST_MOUNTS: usize = 16;

/// A folder of this process, removed with all that is in it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    removed: bool,
}

impl Folder {
    /// Makes it below `parent`, for this user alone.
    pub fn new(parent: &Path) -> anyhow::Result<Self> {
        let parent = fs::canonicalize(parent).with_context(|| parent.display().to_string())?;
        // In a container every process has the same few numbers.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().subsec_nanos();
        let path = parent.join(format!("larder-demo-{}-{now:08x}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Folder {
            path,
            removed: false,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts what is mounted below it, then removes it. Blocking.
    ///
    /// # Errors
    /// What stays, and why.
    pub fn remove(mut self) -> anyhow::Result<()> {
        self.removed = true;
        clear_away(&self.path).map_err(|(path, error)| {
            anyhow!(
                "{}: {error}; {} is left behind: remove it by hand",
                path.display(),
                self.path.display()
            )
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.removed {
            // On the way out of a failure that is told already.
            let _ = clear_away(&self.path);
        }
    }
}

type Stuck = (PathBuf, io::Error);

fn clear_away(path: &Path) -> Result<(), Stuck> {
    let began = Instant::now();
    loop {
        match remove(path) {
            Ok(()) => return Ok(()),
            Err((_, error)) if error.kind() == io::ErrorKind::NotFound && !path.exists() => {
                return Ok(());
            }
            Err(stuck) if began.elapsed() > PATIENCE => return Err(stuck),
            // Somebody still works there.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Removes a folder. A folder in it that is on another device is a mount point.
fn remove(folder: &Path) -> Result<(), Stuck> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let device = fs::symlink_metadata(folder).map_err(at(folder))?.dev();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let mut meta = fs::symlink_metadata(&path).map_err(at(&path))?;
        for _ in 0..MOST_MOUNTS {
            if meta.dev() == device {
                break;
            }
            // Somebody may look into it: it goes from the tree now, and altogether when they are done.
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            unmount(&path, flags).map_err(|error| (path.clone(), error.into()))?;
            meta = fs::symlink_metadata(&path).map_err(at(&path))?;
        }
        if meta.dev() != device {
            return Err((
                path,
                io::Error::other("more is mounted there than expected"),
            ));
        }
        if meta.is_dir() {
            remove(&path)?;
        } else {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    fs::remove_dir(folder).map_err(at(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        for by_drop in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let folder = Folder::new(parent.path()).unwrap();
            let deep = folder.path().join("a/b");
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join("file"), "x").unwrap();
            std::os::unix::fs::symlink(outside.path(), deep.join("link")).unwrap();
            if by_drop {
                drop(folder);
            } else {
                folder.remove().unwrap();
            }
            assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        }
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn a_parent_that_is_not_there_is_named() {
        let error = Folder::new(Path::new("/nonexistent/x")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/x"), "{error:#}");
    }
}

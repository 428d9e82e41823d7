//! Mounts: each layer once, as EROFS, shared by all images that have it; an image is an overlay of its layers.
//!
//! Needs root and file-backed EROFS (Linux 6.12 or newer). Only images that this store wrote are ever mounted. Mounts
//! outlive the process; their rows in the database keep their layers from being collected.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::image::{DiffId, ImageId};

use super::records::{Change, MountRow};
use super::types::Mount;
use super::{Error, Inner, Store, idx};

/// A lower directory with nothing in it: overlayfs wants two at least.
const EMPTY: &str = "empty";

impl Store {
    /// Mounts an image read-only at `target`, which is made if absent. Blocking.
    ///
    /// # Errors
    /// [`Error::MountUnsupported`] without root or on a kernel that cannot, [`Error::Busy`] when something is mounted
    /// at `target` already.
    pub fn mount(&self, image: &ImageId, target: &Path) -> Result<(), Error> {
        let inner = &self.inner;
        if !rustix::process::geteuid().is_root() {
            return Err(Error::MountUnsupported {
                cause: "mounting needs root".to_owned(),
            });
        }
        fs::create_dir_all(target).map_err(|error| Error::io("create", target, error))?;
        let target =
            fs::canonicalize(target).map_err(|error| Error::io("resolve", target, error))?;
        let lease = self.lease();
        let layers: Vec<DiffId> = {
            let mut state = inner.state();
            let Some(image) = state.records.visible().get(image).cloned() else {
                return Err(Error::Invalid(format!("no image {image}")));
            };
            let layers = image.record.layers.iter().map(|l| l.diff_id.clone());
            let layers: Vec<DiffId> = layers.collect();
            for layer in &layers {
                if state.doomed.contains(layer) {
                    return Err(Error::Invalid(format!(
                        "image {} is being removed",
                        image.record.id
                    )));
                }
                lease.hold(&mut state, layer);
            }
            layers
        };
        if layers.is_empty() {
            return Err(Error::Invalid(format!(
                "image {image} has no layers: there is nothing to mount"
            )));
        }
        let _commits = inner.commits();
        if mounted()?.contains(&target) {
            return Err(Error::Busy {
                subject: target.display().to_string(),
                user: "another mount".to_owned(),
            });
        }
        let empty = inner.layout.mounts().join(EMPTY);
        fs::create_dir_all(&empty).map_err(|error| Error::io("create", &empty, error))?;
        for layer in &layers {
            inner.mount_layer(layer)?;
        }
        let mut lowers: Vec<PathBuf> = Vec::new();
        // The topmost comes first; a layer that occurs twice counts where it is on top.
        for layer in layers.iter().rev() {
            let lower = inner.layout.mount(layer);
            if !lowers.contains(&lower) {
                lowers.push(lower);
            }
        }
        // More than 500 would be refused.
        if lowers.len() == 1 {
            lowers.push(empty);
        }
        // The row first: should we die in between, start-up finds no such mount and forgets it.
        let row = MountRow {
            image: image.clone(),
            layers,
        };
        inner.apply(vec![Change::PutMount(target.clone(), row)])?;
        if let Err(error) = overlay(&lowers, &target) {
            inner.apply(vec![Change::DeleteMount(target)])?;
            return Err(error);
        }
        Ok(())
    }

    /// Unmounts what [`Store::mount`] mounted, and the layers that nothing else uses. Blocking.
    pub fn umount(&self, target: &Path) -> Result<(), Error> {
        let inner = &self.inner;
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
        let layers: BTreeSet<DiffId> = {
            let _commits = inner.commits();
            let row = inner.state().records.mounts.get(&target).cloned();
            let Some(row) = row else {
                return Err(Error::Invalid(format!(
                    "{} is not a mount of this store",
                    target.display()
                )));
            };
            match unmount(&target, UnmountFlags::empty()) {
                // Somebody else unmounted it.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(Errno::BUSY) => {
                    return Err(Error::Busy {
                        subject: target.display().to_string(),
                        user: "a process that has a file of it open, or works below it".to_owned(),
                    });
                }
                Err(error) => return Err(Error::io("unmount", &target, error.into())),
            }
            inner.apply(vec![Change::DeleteMount(target)])?;
            inner.unmount_unused_layers();
            row.layers.into_iter().collect()
        };
        inner.sweep(&layers)
    }

    /// Mounted images. From memory.
    pub fn mounts(&self) -> Vec<Mount> {
        let state = self.inner.state();
        let mounts = state.records.mounts.iter();
        mounts
            .map(|(target, row)| Mount {
                target: target.clone(),
                image: row.image.clone(),
            })
            .collect()
    }
}

impl Inner {
    fn mount_layer(&self, layer: &DiffId) -> Result<(), Error> {
        let at = self.layout.mount(layer);
        fs::create_dir_all(&at).map_err(|error| Error::io("create", &at, error))?;
        let real = fs::canonicalize(&at).map_err(|error| Error::io("resolve", &at, error))?;
        if mounted()?.contains(&real) {
            return Ok(());
        }
        let path = self.layout.idx(layer);
        let head = idx::read_head(&path).map_err(|error| Error::Damaged {
            subject: self.layout.relative(&path),
            cause: error.to_string(),
        })?;
        let devices: Vec<PathBuf> = head
            .segments
            .iter()
            .map(|segment| self.layout.pack(*segment))
            .collect();
        let image = self.layout.erofs(layer);
        // Without `directio` the page cache would hold every byte twice; file systems that cannot do it go without.
        erofs(&image, &devices, &at, true).or_else(|error| match error {
            Errno::INVAL | Errno::OPNOTSUPP => erofs(&image, &devices, &at, false),
            other => Err(other),
        })
        .map_err(|error| match error {
            Errno::PERM | Errno::NODEV | Errno::NOTBLK | Errno::NOSYS => Error::MountUnsupported {
                cause: format!(
                    "the kernel refuses file-backed EROFS ({error}); it needs Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE, and CAP_SYS_ADMIN"
                ),
            },
            other => Error::io("mount", &image, other.into()),
        })
    }

    /// Unmounts layers that no mounted image uses. One that is busy is left to the next time.
    pub(super) fn unmount_unused_layers(&self) {
        let used: BTreeSet<DiffId> = {
            let state = self.state();
            let mounts = state.records.mounts.values();
            mounts.flat_map(|row| row.layers.clone()).collect()
        };
        let used: BTreeSet<String> = used.iter().map(|id| id.0.hex().to_owned()).collect();
        let Ok(entries) = fs::read_dir(self.layout.mounts()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !used.contains(&name) && name != EMPTY {
                unmount_folder(&entry.path());
            }
        }
    }

    pub(super) fn unmount_layer(&self, layer: &DiffId) {
        unmount_folder(&self.layout.mount(layer));
    }

    /// Mounts that a reboot, or somebody, took away.
    pub(super) fn forget_gone_mounts(&self) -> Result<(), Error> {
        let known: Vec<PathBuf> = self.state().records.mounts.keys().cloned().collect();
        if known.is_empty() {
            return Ok(());
        }
        let mounted = mounted()?;
        let gone = known.into_iter().filter(|at| !mounted.contains(at));
        self.apply(gone.map(Change::DeleteMount).collect())
    }
}

fn unmount_folder(at: &Path) {
    // Not mounted, or in use: either way the folder says so by not going.
    let _ = unmount(at, UnmountFlags::NOFOLLOW);
    let _ = fs::remove_dir(at);
}

fn erofs(image: &Path, devices: &[PathBuf], at: &Path, directio: bool) -> Result<(), Errno> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", image)?;
    for device in devices {
        fsconfig_set_string(&context, "device", device)?;
    }
    if directio {
        fsconfig_set_flag(&context, "directio")?;
    }
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    attach(&context, at, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn overlay(lowers: &[PathBuf], at: &Path) -> Result<(), Error> {
    let mount = || -> Result<(), Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "larder")?;
        for lower in lowers {
            fsconfig_set_string(&context, "lowerdir+", lower)?;
        }
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)?;
        // For looking into: nothing in an image gets rights here.
        attach(
            &context,
            at,
            MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    mount().map_err(|error| Error::io("mount an overlay at", at, error.into()))
}

fn attach(
    context: &rustix::fd::OwnedFd,
    at: &Path,
    attributes: MountAttrFlags,
) -> Result<(), Errno> {
    let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Every mount point of this mount namespace.
fn mounted() -> Result<BTreeSet<PathBuf>, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    Ok(mount_points(&text))
}

/// The fifth field of each line of mountinfo, with its octal escapes undone (proc(5)).
fn mount_points(mountinfo: &[u8]) -> BTreeSet<PathBuf> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| {
            let mut bytes = Vec::with_capacity(field.len());
            let mut rest = field;
            while let Some((first, after)) = rest.split_first() {
                let octal = after
                    .get(..3)
                    .filter(|_| *first == b'\\')
                    .and_then(|digits| std::str::from_utf8(digits).ok())
                    .and_then(|digits| u8::from_str_radix(digits, 8).ok());
                match octal {
                    Some(byte) => {
                        bytes.push(byte);
                        rest = after.get(3..).unwrap_or_default();
                    }
                    None => {
                        bytes.push(*first);
                        rest = after;
                    }
                }
            }
            PathBuf::from(std::ffi::OsString::from_vec(bytes))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn reads_mount_points() {
        let text =
            b"22 1 8:1 / / rw - ext4 /dev/sda rw\n30 22 0:5 / /a\\040b/c\\134d rw - tmpfs x rw\n\n";
        let points = mount_points(text);
        let names: Vec<&[u8]> = points.iter().map(|p| p.as_os_str().as_bytes()).collect();
        assert_eq!(names, [&b"/"[..], b"/a b/c\\d"]);
    }
}

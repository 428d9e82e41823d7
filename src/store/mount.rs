//! Mounts: each layer once, as EROFS, shared by all images that have it; an image is an overlay of its layers, with a
//! small image of attributes on top where some layer would hide the true ones ([`fixup`]).
//!
//! Needs root and file-backed EROFS (Linux 6.12 or newer). Only images that this store wrote are ever mounted. Mounts
//! outlive the process; their rows in the database keep their layers from being collected.

mod fetch;
mod fixup;
mod stacks;

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::image::{DiffId, ImageId};

use super::layout::{EMPTY, Layout};
use super::records::{Change, MountRow};
use super::staging::Staging;
use super::types::Mount;
use super::{Error, Inner, Store, files, idx};
pub(super) use fetch::Fetcher;
use stacks::Fixup;
pub(super) use stacks::Stacks;

/// The lower directories of an image, mounted.
#[derive(Debug, Default)]
pub(super) struct Stack {
    /// The topmost comes first.
    pub(super) lowers: Vec<PathBuf>,
    /// Below `mounts/`, where the stack has one.
    pub(super) fixup: Option<String>,
    /// What the kernel reads to look into it.
    pub(super) trees: Vec<PathBuf>,
}

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
        let mounted = inner.mount_stack(&layers).and_then(|mut stack| {
            inner.fetch(std::mem::take(&mut stack.trees));
            // Overlayfs wants two at least where nothing is written.
            if stack.lowers.len() == 1 {
                stack.lowers.push(inner.empty_folder()?);
            }
            // The row first: should we die in between, start-up finds no such mount and forgets it.
            let row = MountRow {
                image: image.clone(),
                layers,
                fixup: stack.fixup,
            };
            inner.apply(vec![Change::PutMount(target.clone(), row)])?;
            overlay(&stack.lowers, &target).or_else(|error| {
                inner.apply(vec![Change::DeleteMount(target)])?;
                Err(error)
            })
        });
        if mounted.is_err() {
            inner.unmount_unused();
        }
        mounted
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
            inner.unmount_unused();
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
    /// Mounts what an overlay of these layers, base first, is made of. The caller holds the commit lock. What was mounted
    /// for it is unmounted if something goes wrong.
    pub(super) fn mount_stack(&self, layers: &[DiffId]) -> Result<Stack, Error> {
        let mut fresh = Vec::new();
        self.mount_parts(layers, &mut fresh)
            .inspect_err(|_| fresh.iter().for_each(|at| unmount_folder(at)))
    }

    fn mount_parts(&self, layers: &[DiffId], fresh: &mut Vec<PathBuf>) -> Result<Stack, Error> {
        let known = self.state().stacks.get(layers);
        let planned = match known {
            Some(planned) => {
                for layer in &planned.ids {
                    self.verify_lower(layer)?;
                }
                planned
            }
            None => {
                let planned = Arc::new(self.plan_stack(layers)?);
                let stacks = &mut self.state().stacks;
                stacks.insert(layers.to_vec(), planned.clone());
                planned
            }
        };
        for layer in &planned.ids {
            if self.mount_layer(layer)? {
                fresh.push(self.layout.mount(layer));
            }
        }
        if !fresh.is_empty() {
            self.count_mounts();
        }
        let mut lowers = Vec::with_capacity(planned.ids.len() + 1);
        if let Some(fixup) = &planned.fixup {
            let at = self.layout.fixup(&fixup.name);
            self.mount_fixup(fixup, &at)?;
            lowers.push(at);
        }
        lowers.extend(planned.ids.iter().map(|layer| self.layout.mount(layer)));
        let fixup = planned.fixup.as_ref().map(|fixup| fixup.name.clone());
        let trees = planned.ids.iter().map(|layer| self.layout.erofs(layer));
        Ok(Stack {
            lowers,
            fixup,
            trees: trees.collect(),
        })
    }

    /// Has the beginnings of trees read for somebody who looks into them at once.
    pub(super) fn fetch_first(&self, trees: &[PathBuf]) {
        fetch::begin(trees);
    }

    /// Has trees read for somebody who is about to look into them.
    pub(super) fn fetch(&self, trees: Vec<PathBuf>) {
        let fetcher = self.fetcher.get_or_init(Fetcher::new);
        trees.into_iter().for_each(|tree| fetcher.fetch(tree));
    }

    /// A folder with nothing in it, of an owner and mode that overlayfs may show.
    pub(super) fn empty_folder(&self) -> Result<PathBuf, Error> {
        let empty = self.layout.empty();
        fs::create_dir_all(&empty)
            .and_then(|()| fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)))
            .map_err(|error| Error::io("create", &empty, error))?;
        Ok(empty)
    }

    /// Its file is unlinked once it is mounted: the kernel holds it as long as the mount lives, and a crash leaves none.
    fn mount_fixup(&self, fixup: &Fixup, at: &Path) -> Result<(), Error> {
        if is_mounted(at)? {
            return Ok(());
        }
        let staging = Staging::new(&self.layout.staging())?;
        let image = staging.erofs();
        let written = staging.create_erofs()?.write_all(&fixup.image);
        written.map_err(|error| Error::io("write", &image, error))?;
        self.mount_erofs(&image, &[], at)
    }

    /// False where it was mounted already.
    fn mount_layer(&self, layer: &DiffId) -> Result<bool, Error> {
        let at = self.layout.mount(layer);
        if is_mounted(&at)? {
            return Ok(false);
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
        match self.mount_erofs(&self.layout.erofs(layer), &devices, &at) {
            Ok(()) => Ok(true),
            Err(error) => {
                // The kernel does not say which of the files it misses.
                let absent = devices.iter().zip(&head.segments);
                let absent = absent.filter(|(path, _)| !path.exists());
                match absent.map(|(_, segment)| *segment).next() {
                    Some(segment) => Err(self.missing_segment(segment)?),
                    None => Err(error),
                }
            }
        }
    }

    fn mount_erofs(&self, image: &Path, devices: &[PathBuf], at: &Path) -> Result<(), Error> {
        fs::create_dir_all(at).map_err(|error| Error::io("create", at, error))?;
        self.mount_erofs_at(image, devices, at)
            .inspect_err(|_| unmount_folder(at))
    }

    fn mount_erofs_at(&self, image: &Path, devices: &[PathBuf], at: &Path) -> Result<(), Error> {
        // Without `directio` the page cache would hold every byte twice; file systems that cannot do it go without.
        mount_image(image, devices, at, true).or_else(|error| match error {
            Errno::INVAL | Errno::OPNOTSUPP => mount_image(image, devices, at, false),
            other => Err(other),
        })
        .map_err(|error| match error {
            Errno::PERM | Errno::NODEV | Errno::NOTBLK | Errno::NOSYS => Error::MountUnsupported {
                cause: format!(
                    "the kernel refuses file-backed EROFS ({error}); it needs Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE, CAP_SYS_ADMIN, and the data directory on a disk's file system such as ext4 or xfs, not in memory"
                ),
            },
            other => Error::io("mount", image, other.into()),
        })
    }

    /// Unmounts layers and fixups that no mounted image and no snapshot uses. Whoever has one in an overlay keeps it. A
    /// layer stays mounted while a runtime knows a snapshot of it, container or not, so that what its files have in the
    /// page cache is there for the next container; so does the fixup of such layers, where it is known.
    pub(super) fn unmount_unused(&self) {
        let used: BTreeSet<String> = {
            let state = self.state();
            let mounts = state.records.mounts.values();
            let snapshots = state.records.snapshots.values();
            let layers: HashSet<&DiffId> = state.records.snapshot_layers().collect();
            let fixups = state.stacks.fixups(|layer| layers.contains(layer));
            mounts
                .flat_map(|row| {
                    let layers = row.layers.iter().map(Layout::mount_name);
                    layers.chain(row.fixup.clone())
                })
                .chain(layers.iter().map(|layer| Layout::mount_name(layer)))
                .chain(fixups.map(str::to_owned))
                .chain(snapshots.filter_map(|row| row.fixup.clone()))
                .collect()
        };
        let Ok(entries) = fs::read_dir(self.layout.mounts()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !used.contains(&name) && name != EMPTY {
                unmount_folder(&entry.path());
            }
        }
        self.count_mounts();
    }

    pub(super) fn unmount_layer(&self, layer: &DiffId) {
        unmount_folder(&self.layout.mount(layer));
        self.count_mounts();
    }

    pub(super) fn count_mounts(&self) {
        let mounted = files::names(&self.layout.mounts()).unwrap_or_default();
        let mounted = mounted.iter().filter(|name| *name != EMPTY).count();
        self.metrics.mounted(mounted);
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

fn mount_image(image: &Path, devices: &[PathBuf], at: &Path, directio: bool) -> Result<(), Errno> {
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

/// Whether a folder of the store is the root of a mount.
pub(super) fn is_mounted(at: &Path) -> Result<bool, Error> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, at, flags, StatxFlags::empty()) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(Error::io("look at", at, error.into())),
    }
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
        .map(|field| PathBuf::from(unescaped(field)))
        .collect()
}

/// A field of mountinfo without its octal escapes (proc(5)).
pub fn unescaped(field: &[u8]) -> OsString {
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
    OsString::from_vec(bytes)
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

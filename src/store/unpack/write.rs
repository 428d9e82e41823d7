//! Writes a merged tree below a directory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::Contents;
use super::merge::{FileId, Merged};
use crate::erofs::{Inode, Kind, Tree};
use crate::store::Error;

/// Writes files below one directory.
pub(super) struct Writer<'a, 'c> {
    dir: &'a Path,
    root: OwnedFd,
    trees: &'a [Tree],
    contents: &'a mut Contents<'c>,
    privileged: bool,
    skipped: Skipped,
}

/// What this process or file system could not write.
#[derive(Debug, Default)]
struct Skipped {
    devices: u64,
    xattrs: u64,
}

/// A file that has several names, once it was written.
struct Linked {
    directory: Vec<u8>,
    name: Vec<u8>,
}

impl<'a, 'c> Writer<'a, 'c> {
    /// Makes `dir` where it is absent; refuses it where it is not empty.
    pub(super) fn new(
        dir: &'a Path,
        trees: &'a [Tree],
        contents: &'a mut Contents<'c>,
    ) -> Result<Self, Error> {
        let fail = |action| move |source| Error::io(action, dir, source);
        std::fs::create_dir_all(dir).map_err(fail("make directory"))?;
        if std::fs::read_dir(dir)
            .map_err(fail("read directory"))?
            .next()
            .is_some()
        {
            return Err(Error::Invalid(format!(
                "{} is not empty: name a directory that is empty or absent",
                dir.display()
            )));
        }
        let root = rustix::fs::open(dir, DIRECTORY, Mode::empty())
            .map_err(|errno| fail("open")(errno.into()))?;
        Ok(Writer {
            dir,
            root,
            trees,
            contents,
            privileged: rustix::process::geteuid().is_root(),
            skipped: Skipped::default(),
        })
    }

    /// Writes the tree, then waits until the file system has it.
    pub(super) fn write(mut self, merged: &Merged) -> Result<(), Error> {
        let mut names: HashMap<FileId, u32> = HashMap::new();
        for node in merged
            .nodes
            .iter()
            .filter_map(|node| node.children.as_ref())
        {
            for child in node.values().filter_map(|&child| merged.nodes.get(child)) {
                *names.entry(child.file).or_default() += 1;
            }
        }
        let mut linked: HashMap<FileId, Linked> = HashMap::new();
        // Parents come before their children, so the reverse order is right for times and modes.
        let mut done: Vec<(Vec<u8>, FileId)> = Vec::new();
        let mut todo = vec![(Vec::new(), 0)];
        while let Some((path, node)) = todo.pop() {
            let Some(node) = merged.nodes.get(node) else {
                continue;
            };
            let directory = self.open(&path)?;
            for (name, &id) in node.children.iter().flatten() {
                let Some(child) = merged.nodes.get(id) else {
                    continue;
                };
                if child.children.is_some() {
                    rustix::fs::mkdirat(&directory, &**name, Mode::RWXU)
                        .map_err(|errno| self.fail("make directory", &path, name, errno))?;
                    todo.push((join(&path, name), id));
                    continue;
                }
                if let Some(first) = linked.get(&child.file) {
                    let from = self.open(&first.directory)?;
                    rustix::fs::linkat(&from, &*first.name, &directory, &**name, AtFlags::empty())
                        .map_err(|errno| self.fail("link", &path, name, errno))?;
                    continue;
                }
                let written = self.file(directory.as_fd(), &path, name, child.file)?;
                if written && names.get(&child.file).is_some_and(|&names| names > 1) {
                    linked.insert(
                        child.file,
                        Linked {
                            directory: path.clone(),
                            name: name.to_vec(),
                        },
                    );
                }
            }
            done.push((path, node.file));
        }
        for (path, file) in done.iter().rev() {
            let Some(inode) = self.inode(*file) else {
                continue;
            };
            let directory = self.open(path)?;
            self.metadata(directory.as_fd(), inode)
                .map_err(|errno| self.fail("set attributes of", path, b"", errno))?;
        }
        rustix::fs::syncfs(&self.root).map_err(|errno| self.fail("sync", b"", b"", errno))?;
        if self.skipped.devices > 0 || self.skipped.xattrs > 0 {
            tracing::warn!(
                dir = %self.dir.display(),
                devices = self.skipped.devices,
                xattrs = self.skipped.xattrs,
                "some device nodes or extended attributes could not be written here; run as root on a file system that has them"
            );
        }
        Ok(())
    }

    /// A directory that was just made.
    fn open(&self, path: &[u8]) -> Result<OwnedFd, Error> {
        let name = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&self.root, name, DIRECTORY, Mode::empty(), resolve) {
            // Some sandboxes do not have the call.
            Err(Errno::NOSYS | Errno::PERM) => open_stepwise(self.root.as_fd(), path),
            opened => opened,
        }
        .map_err(|errno| self.fail("open directory", path, b"", errno))
    }

    /// Writes anything but a directory; false where it had to be left out.
    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        file: FileId,
    ) -> Result<bool, Error> {
        let Some(inode) = self.inode(file) else {
            return Ok(false);
        };
        let special = match &inode.kind {
            Kind::Directory(_) => return Ok(false),
            Kind::Inline(_) | Kind::Chunked { .. } => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let out: File = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|errno| self.fail("create", path, name, errno))?
                    .into();
                self.content(&out, path, name, inode, file.layer)?;
                return self
                    .metadata(out.as_fd(), inode)
                    .map(|()| true)
                    .map_err(|errno| self.fail("set attributes of", path, name, errno));
            }
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(&**target, directory, name)
                    .map_err(|errno| self.fail("make symlink", path, name, errno))?;
                None
            }
            Kind::CharDevice { major, minor } => Some((FileType::CharacterDevice, *major, *minor)),
            Kind::BlockDevice { major, minor } => Some((FileType::BlockDevice, *major, *minor)),
            Kind::Fifo => Some((FileType::Fifo, 0, 0)),
            Kind::Socket => Some((FileType::Socket, 0, 0)),
        };
        if let Some((file_type, major, minor)) = special {
            let device = rustix::fs::makedev(major, minor);
            match rustix::fs::mknodat(directory, name, file_type, Mode::RUSR | Mode::WUSR, device) {
                Ok(()) => {}
                Err(Errno::PERM) => {
                    self.skipped.devices += 1;
                    return Ok(false);
                }
                Err(errno) => return Err(self.fail("make device", path, name, errno)),
            }
        }
        self.metadata_by_name(directory, name, inode, special.is_some())
            .map(|()| true)
            .map_err(|errno| self.fail("set attributes of", path, name, errno))
    }

    fn content(
        &mut self,
        out: &File,
        path: &[u8],
        name: &[u8],
        inode: &Inode,
        layer: usize,
    ) -> Result<(), Error> {
        let target = self.dir.join(OsStr::from_bytes(&join(path, name)));
        let fail = |source| Error::io("write", &target, source);
        match &inode.kind {
            Kind::Inline(content) => {
                let mut out = out;
                out.write_all(content).map_err(fail)
            }
            Kind::Chunked {
                size,
                chunk_bits,
                chunks,
            } => {
                if chunks.contains(&None) {
                    out.set_len(*size).map_err(fail)?;
                }
                self.contents
                    .read(layer, *size, *chunk_bits, chunks, &mut |at, part| {
                        out.write_all_at(part, at).map_err(fail)
                    })
            }
            _ => Ok(()),
        }
    }

    /// Owner, mode, extended attributes, times, in the order in which the kernel keeps them.
    fn metadata(&mut self, file: BorrowedFd<'_>, inode: &Inode) -> Result<(), Errno> {
        if self.privileged {
            let (uid, gid) = owner(inode);
            rustix::fs::fchown(file, uid, gid)?;
        }
        for (name, value) in kept_xattrs(inode) {
            let set = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
            self.xattr_set(set)?;
        }
        // After the attributes: without root a file must be writable for them.
        rustix::fs::fchmod(file, Mode::from_raw_mode(inode.mode.into()))?;
        rustix::fs::futimens(file, &times(inode))
    }

    fn metadata_by_name(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        inode: &Inode,
        has_mode: bool,
    ) -> Result<(), Errno> {
        if self.privileged {
            let (uid, gid) = owner(inode);
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let mut xattrs = kept_xattrs(inode).peekable();
        if xattrs.peek().is_some() {
            // There is no call with a directory and a name before Linux 6.13.
            let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            for (name, value) in xattrs {
                let set = rustix::fs::lsetxattr(path.as_slice(), name, value, XattrFlags::empty());
                self.xattr_set(set)?;
            }
        }
        if has_mode {
            // Not a symlink: it was just made as something else.
            rustix::fs::chmodat(
                directory,
                name,
                Mode::from_raw_mode(inode.mode.into()),
                AtFlags::empty(),
            )?;
        }
        rustix::fs::utimensat(directory, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn xattr_set(&mut self, set: Result<(), Errno>) -> Result<(), Errno> {
        match set {
            Err(Errno::PERM | Errno::NOTSUP | Errno::ACCESS | Errno::NOENT) => {
                self.skipped.xattrs += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn inode(&self, file: FileId) -> Option<&'a Inode> {
        self.trees.get(file.layer)?.inodes.get(file.inode as usize)
    }

    fn fail(&self, action: &'static str, path: &[u8], name: &[u8], errno: Errno) -> Error {
        let mut target: PathBuf = self.dir.join(OsStr::from_bytes(path));
        if !name.is_empty() {
            target.push(OsStr::from_bytes(name));
        }
        Error::io(action, &target, errno.into())
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory component by component; none may be a symlink.
fn open_stepwise(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut at = rustix::fs::openat(root, c".", DIRECTORY, Mode::empty())?;
    for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
        at = rustix::fs::openat(&at, part, DIRECTORY, Mode::empty())?;
    }
    Ok(at)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, b"/", name].concat()
}

/// Attributes of the file itself: what told overlayfs how to merge has been done.
fn kept_xattrs(inode: &Inode) -> impl Iterator<Item = (&[u8], &[u8])> {
    inode
        .xattrs
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .filter(|(name, _)| !name.starts_with(b"trusted.overlay."))
}

/// The largest number is no id but says that nothing changes.
fn owner(inode: &Inode) -> (Option<Uid>, Option<Gid>) {
    let uid = (inode.uid != u32::MAX).then(|| Uid::from_raw(inode.uid));
    let gid = (inode.gid != u32::MAX).then(|| Gid::from_raw(inode.gid));
    (uid, gid)
}

fn times(inode: &Inode) -> Timestamps {
    let time = Timespec {
        tv_sec: inode.mtime,
        tv_nsec: inode.mtime_nsec.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_open_a_directory_refuse_symlinks() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("s")).unwrap();
        let root = rustix::fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        for (path, opens) in [
            ("", true),
            ("a/b", true),
            ("s", false),
            ("s/b", false),
            ("a/c", false),
        ] {
            let opened = open_stepwise(root.as_fd(), path.as_bytes());
            assert_eq!(opened.is_ok(), opens, "{path}");
        }
    }
}

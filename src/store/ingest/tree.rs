//! Builds the file tree of one layer from tar entries, with the rules container runtimes share.
//!
//! - Missing parents become directories of root:root, 0755, at the epoch. They are marked: where a lower layer has the
//!   directory, its metadata is the one to show, since this layer says nothing about it.
//! - A later entry replaces an earlier one with all below it; a directory over a directory only changes its metadata.
//! - A parent that is a symlink is followed inside the layer, as if its root were `/`; what it points at and is not
//!   there becomes directories. A parent that is any other file is refused.
//! - A hard link takes the inode that its target has at that point; its own metadata does not count.
//! - `.wh.NAME` becomes a character device 0:0, `.wh..wh..opq` the xattr `trusted.overlay.opaque`, other `.wh..wh.`
//!   names are bookkeeping of old drivers and ignored. A whiteout hides what lower layers have, never what this layer
//!   brings: beside a directory of that name it makes the directory opaque, beside another file it means nothing.
//! - Extended attributes `trusted.overlay.*` of the tar are dropped: they would be orders to overlayfs.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::fault::{Fault, show};
use super::path::CleanPath;
use super::tar::{Entry, Xattrs};
use crate::erofs::{Inode, InodeId, Kind, Tree};
use crate::store::Limits;

/// Marks a directory that hides all that lower layers have below it.
pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// On a directory that holds whiteouts: without it overlayfs lists them where no other layer has the directory. Empty, it
/// says "of unknown origin".
const ORIGIN: &[u8] = b"trusted.overlay.origin";
/// Marks a directory that no entry names. In overlayfs's own name space, so that nobody sees it in a mount.
pub(crate) const IMPLIED: &[u8] = b"trusted.overlay.larder.implied";
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Symlinks followed on the way to one parent, as Linux has it.
const MAX_HOPS: usize = 40;
/// Components walked on the way to one parent, symlinks included.
const MAX_STEPS: usize = 4096;
/// Names, link targets and attributes of one layer together, in bytes; they are held in memory.
const MAX_METADATA: u64 = 256 << 20;
/// Value of an extended attribute, as Linux has it.
const MAX_XATTR_VALUE: usize = 65535;
/// Full name of an extended attribute, as Linux has it.
const MAX_XATTR_NAME: usize = 255;
/// Extended attributes of one file together, in bytes.
const MAX_XATTRS: usize = 128 << 10;

const ROOT: InodeId = 0;

/// A tree that grows entry by entry.
#[derive(Debug)]
pub(crate) struct TreeBuilder {
    inodes: Vec<Inode>,
    /// The one inode of all whiteouts.
    whiteout: Option<InodeId>,
    metadata_bytes: u64,
    max_entries: u64,
    max_path: usize,
}

impl TreeBuilder {
    /// A tree of an empty root directory.
    pub(crate) fn new(limits: &Limits) -> Self {
        TreeBuilder {
            inodes: vec![implied_directory()],
            whiteout: None,
            metadata_bytes: 0,
            max_entries: limits.max_entries,
            max_path: limits.max_path,
        }
    }

    /// True if an entry of this name brings a file of its own (and not a whiteout, or nothing).
    pub(crate) fn is_file_name(name: &[u8], max_path: usize) -> Result<bool, Fault> {
        let path = CleanPath::new(name, max_path)?;
        Ok(!path.0.last().is_some_and(|last| last.starts_with(WHITEOUT)) && !is_bookkeeping(&path))
    }

    /// Puts an entry of any kind but a hard link in its place. Returns its inode, `None` where it brings none.
    pub(crate) fn insert(&mut self, entry: &Entry, kind: Kind) -> Result<Option<InodeId>, Fault> {
        let path = CleanPath::new(&entry.path, self.max_path)?;
        if is_bookkeeping(&path) {
            return Ok(None);
        }
        let Some((parent, name)) = path.split() else {
            if !matches!(kind, Kind::Directory(_)) {
                return Err(bad(&entry.path, "the root must be a directory"));
            }
            let xattrs = self.kept_xattrs(&entry.path, &entry.xattrs)?;
            self.set_metadata(ROOT, entry, xattrs);
            return Ok(Some(ROOT));
        };
        let parent = self.parent(parent, name, &entry.path)?;
        if name == WHITEOUT_OPAQUE {
            self.set_opaque(parent);
            return Ok(None);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(bad(&entry.path, "a whiteout of nothing"));
            }
            self.white_out(parent, hidden)?;
            return Ok(None);
        }
        let xattrs = self.kept_xattrs(&entry.path, &entry.xattrs)?;
        let mut opaque = false;
        if let Some(old) = self.child(parent, name) {
            if Some(old) == self.whiteout {
                opaque = true;
            } else if matches!(kind, Kind::Directory(_)) && self.is_directory(old) {
                self.set_metadata(old, entry, xattrs);
                return Ok(Some(old));
            }
        }
        if let Kind::Symlink(target) = &kind {
            self.count_bytes(target.len())?;
        }
        opaque &= matches!(kind, Kind::Directory(_));
        let id = self.add(Inode {
            // Linux knows no other for a symlink, whatever a tar says.
            mode: if matches!(kind, Kind::Symlink(_)) {
                0o777
            } else {
                entry.mode
            },
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            xattrs,
            kind,
        })?;
        self.set_child(parent, name, id)?;
        if opaque {
            self.set_opaque(id);
        }
        Ok(Some(id))
    }

    /// Gives the file at `target` another name.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Fault> {
        let fail = |cause: &str| {
            Fault::Bad(format!(
                "hard link {} to {}: {cause}",
                show(path),
                show(target)
            ))
        };
        let link = CleanPath::new(path, self.max_path)?;
        if is_bookkeeping(&link) {
            return Ok(());
        }
        let to = CleanPath::new(target, self.max_path).map_err(|fault| match fault {
            Fault::Bad(cause) => fail(&cause),
            other => other,
        })?;
        let Some((to_parent, to_name)) = to.split() else {
            return Err(fail("the target is a directory"));
        };
        let absent = || fail(&format!("{} is not in this layer", show(target)));
        let to_parent = self.find_directory(to_parent).ok_or_else(absent)?;
        let inode = self
            .child(to_parent, to_name)
            .filter(|&id| Some(id) != self.whiteout)
            .ok_or_else(absent)?;
        if self.is_directory(inode) {
            return Err(fail("the target is a directory"));
        }
        let Some((parent, name)) = link.split() else {
            return Err(fail("the root must be a directory"));
        };
        let parent = self.parent(parent, name, path)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if name != WHITEOUT_OPAQUE {
                return self.white_out(parent, hidden);
            }
            self.set_opaque(parent);
            return Ok(());
        }
        self.set_child(parent, name, inode)
    }

    /// The inode of an id this builder gave out.
    pub(crate) fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id as usize)
    }

    /// The tree. Inodes that were replaced are still in it, with no name.
    pub(crate) fn finish(self) -> Tree {
        Tree {
            inodes: self.inodes,
        }
    }

    /// The directory that is to hold `name`, made where it is missing.
    fn parent(&mut self, parts: &[&[u8]], name: &[u8], entry: &[u8]) -> Result<InodeId, Fault> {
        let mut walk = Walk::new(parts);
        while let Some(part) = walk.todo.pop() {
            walk.steps += 1;
            if walk.steps > MAX_STEPS {
                return Err(bad(entry, "symlinks on the way are too long"));
            }
            if &*part == b".." {
                walk.up();
                continue;
            }
            let at = walk.at();
            let next = match self.child(at, &part) {
                Some(id) if Some(id) != self.whiteout => id,
                hidden => {
                    let id = self.add(implied_directory())?;
                    self.set_child(at, &part, id)?;
                    if hidden.is_some() {
                        self.set_opaque(id);
                    }
                    id
                }
            };
            match self.inode(next).map(|inode| &inode.kind) {
                Some(Kind::Directory(_)) => walk.down(next, part.len()),
                Some(Kind::Symlink(target)) => {
                    if !walk.follow(target) {
                        return Err(bad(
                            entry,
                            &format!("too many symlinks on the way, at {}", show(&part)),
                        ));
                    }
                }
                _ => {
                    return Err(bad(
                        entry,
                        &format!("its parent {} is not a directory", show(&part)),
                    ));
                }
            }
        }
        let len = walk.len + name.len();
        if len > self.max_path {
            return Err(Fault::Limit {
                what: format!(
                    "{}: a path of {len} bytes once symlinks are followed",
                    show(entry)
                ),
                limit: self.max_path as u64,
                key: "max_path",
            });
        }
        Ok(walk.at())
    }

    /// The directory at `parts` if it is there, symlinks followed.
    fn find_directory(&self, parts: &[&[u8]]) -> Option<InodeId> {
        let mut walk = Walk::new(parts);
        while let Some(part) = walk.todo.pop() {
            walk.steps += 1;
            if walk.steps > MAX_STEPS {
                return None;
            }
            if &*part == b".." {
                walk.up();
                continue;
            }
            let next = self.child(walk.at(), &part)?;
            match &self.inode(next)?.kind {
                Kind::Directory(_) => walk.down(next, part.len()),
                Kind::Symlink(target) => {
                    if !walk.follow(target) {
                        return None;
                    }
                }
                _ => return None,
            }
        }
        Some(walk.at())
    }

    fn white_out(&mut self, parent: InodeId, name: &[u8]) -> Result<(), Fault> {
        match self.child(parent, name) {
            Some(id) if self.is_directory(id) => self.set_opaque(id),
            Some(_) => {}
            None => {
                let id = match self.whiteout {
                    Some(id) => id,
                    None => {
                        let id = self.add(Inode {
                            mode: 0,
                            kind: Kind::CharDevice { major: 0, minor: 0 },
                            xattrs: BTreeMap::new(),
                            ..implied_directory()
                        })?;
                        self.whiteout = Some(id);
                        id
                    }
                };
                self.set_child(parent, name, id)?;
                if let Some(inode) = self.inodes.get_mut(parent as usize) {
                    inode.xattrs.insert(ORIGIN.into(), Box::default());
                }
            }
        }
        Ok(())
    }

    fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(directory)?.kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, id: InodeId) -> bool {
        matches!(
            self.inode(id).map(|inode| &inode.kind),
            Some(Kind::Directory(_))
        )
    }

    fn set_child(&mut self, directory: InodeId, name: &[u8], id: InodeId) -> Result<(), Fault> {
        self.count_bytes(name.len())?;
        if let Some(Inode {
            kind: Kind::Directory(children),
            ..
        }) = self.inodes.get_mut(directory as usize)
        {
            children.insert(name.into(), id);
        }
        Ok(())
    }

    fn set_opaque(&mut self, id: InodeId) {
        if let Some(inode) = self.inodes.get_mut(id as usize) {
            inode.xattrs.insert(OPAQUE.into(), (*b"y").into());
            // Nothing below it shows.
            inode.xattrs.remove(IMPLIED);
        }
    }

    fn set_metadata(&mut self, id: InodeId, entry: &Entry, xattrs: Xattrs) {
        if let Some(inode) = self.inodes.get_mut(id as usize) {
            inode.mode = entry.mode;
            inode.uid = entry.uid;
            inode.gid = entry.gid;
            inode.mtime = entry.mtime;
            inode.mtime_nsec = entry.mtime_nsec;
            inode.xattrs.remove(IMPLIED);
            inode.xattrs.extend(xattrs);
        }
    }

    fn add(&mut self, inode: Inode) -> Result<InodeId, Fault> {
        // The root is in every tree and does not count.
        if self.inodes.len() as u64 > self.max_entries {
            return Err(too_many(self.max_entries));
        }
        let id = InodeId::try_from(self.inodes.len()).map_err(|_| too_many(self.max_entries))?;
        self.inodes.push(inode);
        Ok(id)
    }

    fn count_bytes(&mut self, bytes: usize) -> Result<(), Fault> {
        self.metadata_bytes += bytes as u64;
        if self.metadata_bytes > MAX_METADATA {
            return Err(Fault::Bad(format!(
                "names, links and attributes take more than {MAX_METADATA} bytes"
            )));
        }
        Ok(())
    }

    /// The attributes that a file system can hold. Others are dropped, as it would refuse them.
    fn kept_xattrs(&mut self, path: &[u8], xattrs: &Xattrs) -> Result<Xattrs, Fault> {
        let mut kept = BTreeMap::new();
        let mut bytes = 0;
        for (name, value) in xattrs.iter().filter(|(name, _)| is_kept_xattr(name)) {
            bytes += name.len() + value.len();
            if value.len() > MAX_XATTR_VALUE || bytes > MAX_XATTRS {
                return Err(bad(
                    path,
                    &format!(
                        "extended attribute {} of {} bytes is too large",
                        show(name),
                        value.len()
                    ),
                ));
            }
            kept.insert(name.clone(), value.clone());
        }
        self.count_bytes(bytes)?;
        Ok(kept)
    }
}

/// Attributes that Linux and EROFS can hold and that are no orders to overlayfs.
fn is_kept_xattr(name: &[u8]) -> bool {
    crate::erofs::xattr_is_storable(name, 0)
        && name.len() <= MAX_XATTR_NAME
        && !name.contains(&0)
        && !name.starts_with(b"trusted.overlay.")
}

/// Names that old union file systems kept for themselves.
fn is_bookkeeping(path: &CleanPath<'_>) -> bool {
    path.split().is_some_and(|(parent, name)| {
        (name.starts_with(WHITEOUT_META) && name != WHITEOUT_OPAQUE)
            || parent.iter().any(|part| part.starts_with(WHITEOUT_META))
    })
}

fn implied_directory() -> Inode {
    Inode {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
        xattrs: BTreeMap::from([(IMPLIED.into(), (*b"y").into())]),
        kind: Kind::Directory(BTreeMap::new()),
    }
}

fn bad(path: &[u8], cause: &str) -> Fault {
    Fault::Bad(format!("{}: {cause}", show(path)))
}

pub(crate) fn too_many(limit: u64) -> Fault {
    Fault::Limit {
        what: "entries".to_owned(),
        limit,
        key: "max_entries",
    }
}

/// A walk through directories that keeps where it came from, for `..`.
struct Walk<'a> {
    /// Directories from the root down, each with the length of its name.
    stack: Vec<(InodeId, usize)>,
    /// Components to come, last first.
    todo: Vec<Cow<'a, [u8]>>,
    steps: usize,
    hops: usize,
    /// Bytes of the path so far, a slash after each component.
    len: usize,
}

impl<'a> Walk<'a> {
    fn new(parts: &[&'a [u8]]) -> Self {
        Walk {
            stack: Vec::new(),
            todo: parts
                .iter()
                .rev()
                .map(|&part| Cow::Borrowed(part))
                .collect(),
            steps: 0,
            hops: 0,
            len: 0,
        }
    }

    fn at(&self) -> InodeId {
        self.stack.last().map_or(ROOT, |&(id, _)| id)
    }

    fn down(&mut self, id: InodeId, name_len: usize) {
        self.stack.push((id, name_len));
        self.len += name_len + 1;
    }

    /// `..` of the root is the root, as for a process confined to it.
    fn up(&mut self) {
        if let Some((_, name_len)) = self.stack.pop() {
            self.len -= name_len + 1;
        }
    }

    /// False after too many.
    fn follow(&mut self, target: &[u8]) -> bool {
        self.hops += 1;
        if target.starts_with(b"/") {
            self.stack.clear();
            self.len = 0;
        }
        // Those that lead nowhere cost time too.
        self.steps += target.iter().filter(|&&b| b == b'/').count();
        let parts = target.split(|&b| b == b'/').rev();
        self.todo.extend(
            parts
                .filter(|part| !matches!(*part, b"" | b"."))
                .map(|part| Cow::Owned(part.to_vec())),
        );
        self.hops <= MAX_HOPS && self.todo.len() <= MAX_STEPS
    }
}

#[cfg(test)]
mod tests;

//! What a mount needs on top of its layers: the true attributes of directories that an upper layer hides by accident.
//!
//! A layer whose tar names `usr/bin/tool` alone has the directories `usr` and `usr/bin` in its tree all the same. Nothing
//! is known of them, so they are written with defaults and marked. Overlayfs shows a directory with the attributes of the
//! topmost layer that has it, and so would show those defaults over the owner, mode and time that a lower layer gave.
//! Here is found for which directories of a stack that happens, and a tree of just these is made, with the attributes of
//! the highest layer that names them. Most stacks need none. Reads images; mounts and writes nothing.

use std::collections::BTreeMap;

use crate::erofs::{FileType, Inode, InodeId, Kind, Node, ReadAt, ReadError, Reader, Tree};
use crate::store::ingest::{IMPLIED, OPAQUE};

/// One layer of a stack.
pub(super) struct Lower<S> {
    pub(super) reader: Reader<S>,
    /// Marked directories of its tree, as the ingest counted them.
    pub(super) implied: Option<u64>,
}

/// Names own to overlayfs and to the store.
const PRIVATE: &[u8] = b"trusted.overlay.";

/// Whether a layer hides everything below it: overlayfs does not look for that mark on the root of a layer.
pub(super) fn hides_all_below<S: ReadAt>(reader: &Reader<S>) -> Result<bool, ReadError> {
    Ok(is_opaque(&reader.xattrs(&reader.root()?)?))
}

/// The tree to put on top of a stack, topmost layer first; `None` where the layers alone show the truth.
pub(super) fn plan<S: ReadAt>(stack: &[Lower<S>]) -> Result<Option<Tree>, ReadError> {
    let Some((_, uppers)) = stack.split_last() else {
        return Ok(None);
    };
    let mut suspects = Suspects::default();
    for lower in uppers {
        suspects.add(lower)?;
    }
    if suspects.dirs.is_empty() {
        return Ok(None);
    }
    resolve(stack, &suspects)
}

/// Paths of directories that some layer marks, as a tree of names; the root is the first.
#[derive(Default)]
struct Suspects {
    dirs: Vec<BTreeMap<Box<[u8]>, usize>>,
}

impl Suspects {
    fn add<S: ReadAt>(&mut self, lower: &Lower<S>) -> Result<(), ReadError> {
        let reader = &lower.reader;
        if lower.implied == Some(0) {
            return Ok(());
        }
        let root = reader.root()?;
        let mut found = u64::from(is_implied(&reader.xattrs(&root)?));
        if found > 0 {
            self.insert(&[]);
        }
        // Directories to look into, each with the depth of its own name; the last is the next.
        let mut todo = vec![(root, 0, Box::default())];
        let mut path: Vec<Box<[u8]>> = Vec::new();
        while let Some((directory, depth, name)) = todo.pop() {
            if lower.implied == Some(found) {
                break;
            }
            if depth > 0 {
                path.truncate(depth - 1);
                path.push(name);
            }
            for entry in reader.read_dir(&directory)? {
                if entry.file_type != FileType::Directory {
                    continue;
                }
                let child = reader.inode(entry.nid)?;
                if is_implied(&reader.xattrs(&child)?) {
                    found += 1;
                    path.push(entry.name.clone());
                    self.insert(&path);
                    path.pop();
                }
                todo.push((child, depth + 1, entry.name));
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &[Box<[u8]>]) {
        if self.dirs.is_empty() {
            self.dirs.push(BTreeMap::new());
        }
        let mut at = 0;
        for name in path {
            let next = self.dirs.len();
            let Some(children) = self.dirs.get_mut(at) else {
                return;
            };
            at = *children.entry(name.clone()).or_insert(next);
            if at == next {
                self.dirs.push(BTreeMap::new());
            }
        }
    }

    fn children(&self, at: usize) -> impl Iterator<Item = (&[u8], usize)> {
        let children = self.dirs.get(at).into_iter().flatten();
        children.map(|(name, id)| (&**name, *id))
    }
}

/// A directory that the whole stack shows.
struct Shown {
    parent: usize,
    name: Box<[u8]>,
    inode: Inode,
    /// Overlayfs would show other attributes.
    wrong: bool,
}

/// A directory of one layer: its position in the stack, and the inode.
type Part = (usize, Node);

/// A directory to look at.
struct Suspect {
    /// Among the suspects.
    id: usize,
    name: Box<[u8]>,
    /// What overlayfs merges to it, topmost first; none where the stack does not show it.
    parts: Vec<Part>,
}

fn resolve<S: ReadAt>(stack: &[Lower<S>], suspects: &Suspects) -> Result<Option<Tree>, ReadError> {
    let mut roots = Vec::with_capacity(stack.len());
    for (layer, lower) in stack.iter().enumerate() {
        roots.push((layer, lower.reader.root()?));
    }
    let mut shown: Vec<Shown> = Vec::new();
    let root = Suspect {
        id: 0,
        name: Box::default(),
        parts: roots,
    };
    let mut todo = vec![(0, root)];
    while let Some((parent, suspect)) = todo.pop() {
        let Some((inode, wrong)) = attributes(stack, &suspect.parts)? else {
            continue;
        };
        let id = shown.len();
        shown.push(Shown {
            parent,
            name: suspect.name,
            inode,
            wrong,
        });
        let children = below(stack, suspects.children(suspect.id), &suspect.parts)?;
        todo.extend(children.into_iter().map(|child| (id, child)));
    }
    Ok(tree_of(shown))
}

/// The attributes that the highest layer gives that knows any, and whether a mount would show others.
fn attributes<S: ReadAt>(
    stack: &[Lower<S>],
    parts: &[Part],
) -> Result<Option<(Inode, bool)>, ReadError> {
    let mut top = None;
    for (layer, node) in parts {
        let Some(lower) = stack.get(*layer) else {
            continue;
        };
        let mut xattrs = lower.reader.xattrs(node)?;
        let implied = is_implied(&xattrs);
        xattrs.retain(|name, _| !name.starts_with(PRIVATE));
        let inode = Inode {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            mtime_nsec: node.mtime_nsec,
            xattrs,
            kind: Kind::Directory(BTreeMap::new()),
        };
        if !implied {
            let wrong = top.is_some_and(|top: Inode| !same(&top, &inode));
            return Ok(Some((inode, wrong)));
        }
        top.get_or_insert(inode);
    }
    Ok(top.map(|inode| (inode, false)))
}

fn same(a: &Inode, b: &Inode) -> bool {
    let fields = |inode: &Inode| {
        let Inode {
            mode,
            uid,
            gid,
            mtime,
            mtime_nsec,
            ..
        } = *inode;
        (mode, uid, gid, mtime, mtime_nsec)
    };
    fields(a) == fields(b) && a.xattrs == b.xattrs
}

/// The same for children of a directory.
fn below<'a, S: ReadAt>(
    stack: &[Lower<S>],
    children: impl Iterator<Item = (&'a [u8], usize)>,
    parts: &[Part],
) -> Result<Vec<Suspect>, ReadError> {
    struct Child {
        suspect: Suspect,
        ended: bool,
    }
    let mut children: Vec<Child> = children
        .map(|(name, id)| Child {
            suspect: Suspect {
                id,
                name: name.into(),
                parts: Vec::new(),
            },
            ended: false,
        })
        .collect();
    for (layer, directory) in parts {
        let Some(lower) = stack.get(*layer) else {
            continue;
        };
        if children.iter().all(|child| child.ended) {
            break;
        }
        let entries = lower.reader.read_dir(directory)?;
        for child in children.iter_mut().filter(|child| !child.ended) {
            let found = entries.binary_search_by(|entry| entry.name.cmp(&child.suspect.name));
            let Some(entry) = found.ok().and_then(|at| entries.get(at)) else {
                continue;
            };
            // A whiteout or a file ends what is merged: nothing below it shows.
            child.ended = entry.file_type != FileType::Directory;
            if !child.ended {
                let node = lower.reader.inode(entry.nid)?;
                child.ended = is_opaque(&lower.reader.xattrs(&node)?);
                child.suspect.parts.push((*layer, node));
            }
        }
    }
    Ok(children.into_iter().map(|child| child.suspect).collect())
}

/// The directories that are wrong, and those on the way to them.
fn tree_of(shown: Vec<Shown>) -> Option<Tree> {
    // Parents come before their children.
    let mut kept: Vec<bool> = shown.iter().map(|dir| dir.wrong).collect();
    for (at, dir) in shown.iter().enumerate().rev() {
        let keep = kept.get(at).copied().unwrap_or_default();
        if let Some(parent) = kept.get_mut(dir.parent) {
            *parent |= keep;
        }
    }
    if !*kept.first()? {
        return None;
    }
    let mut tree = Tree::default();
    let mut ids: Vec<InodeId> = Vec::with_capacity(shown.len());
    for (dir, keep) in shown.into_iter().zip(kept) {
        let id = InodeId::try_from(tree.inodes.len()).ok()?;
        // For one that is left out it does not matter: so is all below it.
        ids.push(id);
        if !keep {
            continue;
        }
        let parent = ids.get(dir.parent).copied().unwrap_or_default();
        tree.inodes.push(dir.inode);
        if id > 0
            && let Some(parent) = tree.inodes.get_mut(parent as usize)
            && let Kind::Directory(children) = &mut parent.kind
        {
            children.insert(dir.name, id);
        }
    }
    Some(tree)
}

fn is_implied(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> bool {
    xattrs.contains_key(IMPLIED)
}

fn is_opaque(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> bool {
    xattrs.get(OPAQUE).is_some_and(|value| **value == *b"y")
}

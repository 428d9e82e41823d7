//! Walks a tree from its root: which inodes are reached, in what order they are laid out, and how many links each has.

use super::check::WriteError;
use super::ondisk::NAME_MAX;
use super::tree::{InodeId, Kind, Tree};

/// What the walk found.
pub(super) struct Walk {
    /// Reached inodes; the root first, then the entries of each directory side by side, parents before children.
    pub(super) order: Vec<InodeId>,
    /// Per inode id. Zero for an unreached one.
    pub(super) nlink: Vec<u32>,
    /// Per inode id: a directory that names it (the root names itself).
    pub(super) parent: Vec<InodeId>,
}

impl Walk {
    /// Checks names and links on the way.
    pub(super) fn new(tree: &Tree) -> Result<Self, WriteError> {
        let count = tree.inodes.len();
        let mut walk = Walk {
            order: Vec::new(),
            nlink: vec![0; count],
            parent: vec![0; count],
        };
        match tree.inodes.first() {
            Some(root) if matches!(root.kind, Kind::Directory(_)) => walk.reach(0, 0, 2),
            _ => return Err(WriteError::Root),
        }
        let mut pending = vec![0];
        while let Some(directory) = pending.pop() {
            let Some(Kind::Directory(entries)) = tree.get(directory).map(|inode| &inode.kind)
            else {
                continue;
            };
            let first_child = pending.len();
            for (name, child) in entries {
                if !is_name(name) {
                    return Err(WriteError::Name {
                        path: walk.path(tree, directory),
                        name: String::from_utf8_lossy(name).into_owned(),
                    });
                }
                let Some(inode) = tree.get(*child) else {
                    return Err(WriteError::Missing {
                        path: walk.path(tree, directory),
                        name: String::from_utf8_lossy(name).into_owned(),
                        inode: *child,
                    });
                };
                let links = walk.links(*child);
                if matches!(inode.kind, Kind::Directory(_)) {
                    if links != 0 {
                        return Err(WriteError::DirectoryLinked {
                            path: walk.path(tree, *child),
                        });
                    }
                    walk.reach(*child, directory, 2);
                    walk.link(directory);
                    pending.push(*child);
                } else if links == 0 {
                    walk.reach(*child, directory, 1);
                } else {
                    walk.link(*child);
                }
            }
            // The last pushed is the next visited: keep the names' order.
            if let Some(children) = pending.get_mut(first_child..) {
                children.reverse();
            }
        }
        Ok(walk)
    }

    fn links(&self, id: InodeId) -> u32 {
        self.nlink.get(id as usize).copied().unwrap_or_default()
    }

    fn link(&mut self, id: InodeId) {
        if let Some(links) = self.nlink.get_mut(id as usize) {
            *links = links.saturating_add(1);
        }
    }

    fn reach(&mut self, id: InodeId, parent: InodeId, links: u32) {
        if let (Some(to), Some(nlink)) = (
            self.parent.get_mut(id as usize),
            self.nlink.get_mut(id as usize),
        ) {
            *to = parent;
            *nlink = links;
            self.order.push(id);
        }
    }

    /// The path of a reached inode, for people. Slow, and so only for errors.
    pub(super) fn path(&self, tree: &Tree, id: InodeId) -> String {
        let mut names: Vec<String> = Vec::new();
        let mut id = id;
        while id != 0 {
            let Some(parent) = self.parent.get(id as usize).copied() else {
                break;
            };
            let Some(Kind::Directory(entries)) = tree.get(parent).map(|inode| &inode.kind) else {
                break;
            };
            let name = entries
                .iter()
                .find(|(_, child)| **child == id)
                .map(|(name, _)| name);
            names.push(name.map_or_else(String::new, |name| {
                String::from_utf8_lossy(name).into_owned()
            }));
            id = parent;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_MAX
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

impl Tree {
    pub(super) fn get(&self, id: InodeId) -> Option<&super::tree::Inode> {
        self.inodes.get(id as usize)
    }
}

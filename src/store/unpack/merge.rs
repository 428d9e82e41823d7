//! The merged tree of an image: what overlayfs would show of its layers. Pure.

use std::collections::BTreeMap;

use crate::erofs::{Inode, InodeId, Kind, Tree};
use crate::store::ingest::{IMPLIED, OPAQUE};

/// A tree whose files are those of several layers.
#[derive(Debug)]
pub(super) struct Merged {
    /// The root is the first.
    pub(super) nodes: Vec<Node>,
}

/// One name's file, or a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Whose metadata and content it has.
    pub(super) file: FileId,
    /// Names to nodes, for a directory.
    pub(super) children: Option<BTreeMap<Box<[u8]>, usize>>,
}

/// An inode of a layer. Names that share one are hard links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId {
    /// Position among the layers, base first.
    pub(super) layer: usize,
    /// In that layer.
    pub(super) inode: InodeId,
}

/// Merges layers, base first. Whiteouts and opaque directories have done their work and are gone.
pub(super) fn merge(layers: &[Tree]) -> Merged {
    let root = FileId { layer: 0, inode: 0 };
    let mut merged = Merged {
        nodes: vec![Node::directory(root)],
    };
    for (layer, tree) in layers.iter().enumerate() {
        merged.apply(layer, tree);
    }
    merged
}

impl Node {
    fn directory(file: FileId) -> Self {
        Node {
            file,
            children: Some(BTreeMap::new()),
        }
    }
}

impl Merged {
    fn apply(&mut self, layer: usize, tree: &Tree) {
        // Directories to merge: the node below, the inode above.
        let mut todo = vec![(0, 0, layer > 0)];
        while let Some((node, inode, has_below)) = todo.pop() {
            let Some(above) = tree.inodes.get(inode as usize) else {
                continue;
            };
            let Kind::Directory(entries) = &above.kind else {
                continue;
            };
            if let Some(node) = self.nodes.get_mut(node) {
                // What no entry names keeps the metadata it has below.
                if !has_below || !above.xattrs.contains_key(IMPLIED) {
                    node.file = FileId { layer, inode };
                }
                if is_opaque(above) {
                    node.children = Some(BTreeMap::new());
                }
            }
            for (name, &child) in entries {
                let kind = tree.inodes.get(child as usize).map(|inode| &inode.kind);
                match kind {
                    None => {}
                    Some(Kind::CharDevice { major: 0, minor: 0 }) => self.remove(node, name),
                    Some(Kind::Directory(_)) => {
                        let below = self
                            .child(node, name)
                            .filter(|&below| self.is_directory(below));
                        let file = FileId {
                            layer,
                            inode: child,
                        };
                        let to =
                            below.unwrap_or_else(|| self.set(node, name, Node::directory(file)));
                        todo.push((to, child, below.is_some()));
                    }
                    Some(_) => {
                        let file = FileId {
                            layer,
                            inode: child,
                        };
                        self.set(
                            node,
                            name,
                            Node {
                                file,
                                children: None,
                            },
                        );
                    }
                }
            }
        }
    }

    fn child(&self, node: usize, name: &[u8]) -> Option<usize> {
        self.nodes.get(node)?.children.as_ref()?.get(name).copied()
    }

    fn is_directory(&self, node: usize) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|node| node.children.is_some())
    }

    fn remove(&mut self, node: usize, name: &[u8]) {
        if let Some(children) = self
            .nodes
            .get_mut(node)
            .and_then(|node| node.children.as_mut())
        {
            children.remove(name);
        }
    }

    fn set(&mut self, parent: usize, name: &[u8], node: Node) -> usize {
        let id = self.nodes.len();
        self.nodes.push(node);
        if let Some(children) = self
            .nodes
            .get_mut(parent)
            .and_then(|node| node.children.as_mut())
        {
            children.insert(name.into(), id);
        }
        id
    }
}

fn is_opaque(inode: &Inode) -> bool {
    inode
        .xattrs
        .get(OPAQUE)
        .is_some_and(|value| **value == *b"y")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `path/` directory, `path!` opaque directory, `path?/` implied directory, `-path` whiteout, else a file.
    /// Parents come first.
    fn tree(paths: &[&str]) -> Tree {
        let inode = |kind, opaque| Inode {
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: if opaque {
                BTreeMap::from([(OPAQUE.into(), (*b"y").into())])
            } else {
                BTreeMap::new()
            },
            kind,
        };
        let directory = || Kind::Directory(BTreeMap::new());
        let mut tree = Tree {
            inodes: vec![inode(directory(), paths.contains(&"!"))],
        };
        for path in paths.iter().filter(|&&path| path != "!") {
            let opaque = path.ends_with('!');
            let implied = path.ends_with("?/");
            let path = &path.replace('?', "");
            let (path, kind) = if let Some(path) = path.strip_prefix('-') {
                (path, Kind::CharDevice { major: 0, minor: 0 })
            } else if let Some(path) = path.strip_suffix(['/', '!']) {
                (path, directory())
            } else {
                (path.as_str(), Kind::Inline(Box::default()))
            };
            let mut parent = 0;
            let mut parts: Vec<&str> = path.split('/').collect();
            let name = parts.pop().unwrap();
            for part in parts {
                let Kind::Directory(children) = &tree.inodes[parent].kind else {
                    panic!("{path}")
                };
                parent = children[part.as_bytes()] as usize;
            }
            let id = InodeId::try_from(tree.inodes.len()).unwrap();
            let mut inode = inode(kind, opaque);
            if implied {
                inode.xattrs.insert(IMPLIED.into(), (*b"y").into());
            }
            tree.inodes.push(inode);
            let Kind::Directory(children) = &mut tree.inodes[parent].kind else {
                panic!("{path}")
            };
            children.insert(name.as_bytes().into(), id);
        }
        tree
    }

    /// Paths with the layer they come from.
    fn list(merged: &Merged) -> Vec<String> {
        fn walk(merged: &Merged, node: usize, path: &str, lines: &mut Vec<String>) {
            for (name, &child) in merged.nodes[node].children.iter().flatten() {
                let node = &merged.nodes[child];
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                let slash = if node.children.is_some() { "/" } else { "" };
                lines.push(format!("{path}{slash} {}", node.file.layer));
                walk(merged, child, &path, lines);
            }
        }
        let mut lines = Vec::new();
        walk(merged, 0, "", &mut lines);
        lines
    }

    #[test]
    fn layers_merge_as_overlayfs_does() {
        let base: &[&str] = &["a", "d/", "d/x", "d/y", "d/s/", "d/s/z"];
        let cases: &[(&[&str], &[&str])] = &[
            (
                &[],
                &["/a 0", "/d/ 0", "/d/s/ 0", "/d/s/z 0", "/d/x 0", "/d/y 0"],
            ),
            (
                &["d/", "d/x", "-a"],
                &["/d/ 1", "/d/s/ 0", "/d/s/z 0", "/d/x 1", "/d/y 0"],
            ),
            (
                &["d?/", "d/n", "new?/", "new/x"],
                &[
                    "/a 0", "/d/ 0", "/d/n 1", "/d/s/ 0", "/d/s/z 0", "/d/x 0", "/d/y 0",
                    "/new/ 1", "/new/x 1",
                ],
            ),
            (&["-d"], &["/a 0"]),
            (
                &["-nothing"],
                &["/a 0", "/d/ 0", "/d/s/ 0", "/d/s/z 0", "/d/x 0", "/d/y 0"],
            ),
            (&["d!", "d/new"], &["/a 0", "/d/ 1", "/d/new 1"]),
            (
                &["d/", "d/s!"],
                &["/a 0", "/d/ 1", "/d/s/ 1", "/d/x 0", "/d/y 0"],
            ),
            (&["d"], &["/a 0", "/d 1"]),
            (
                &["a/", "a/b"],
                &[
                    "/a/ 1", "/a/b 1", "/d/ 0", "/d/s/ 0", "/d/s/z 0", "/d/x 0", "/d/y 0",
                ],
            ),
            (&["!", "only"], &["/only 1"]),
        ];
        for (upper, want) in cases {
            let merged = merge(&[tree(base), tree(upper)]);
            assert_eq!(list(&merged), *want, "{upper:?}");
            assert_eq!(merged.nodes[0].file.layer, 1);
        }
    }

    #[test]
    fn what_was_removed_can_come_back() {
        let layers = [tree(&["d/", "d/x"]), tree(&["-d"]), tree(&["d/", "d/y"])];
        assert_eq!(list(&merge(&layers)), ["/d/ 2", "/d/y 2"]);
        assert_eq!(list(&merge(&[])), [""; 0]);
        assert_eq!(list(&merge(&[tree(&["-x", "y"])])), ["/y 0"]);
    }
}

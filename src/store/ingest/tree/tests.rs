//! Tests of the tree builder.

use super::*;
use crate::store::ingest::tar::EntryKind;

fn builder() -> TreeBuilder {
    TreeBuilder::new(&Limits::default())
}

fn entry(path: &str) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: 3,
        mtime_nsec: 4,
        xattrs: Xattrs::new(),
        kind: EntryKind::Regular,
        body: 0,
    }
}

/// What a test adds: `path/` is a directory, `path -> target` a symlink, `path = target` a hard link, else a file
/// that holds its own name.
fn add(tree: &mut TreeBuilder, what: &str) -> Result<(), Fault> {
    if let Some((path, target)) = what.split_once(" -> ") {
        let kind = Kind::Symlink(target.as_bytes().into());
        return tree.insert(&entry(path), kind).map(drop);
    }
    if let Some((path, target)) = what.split_once(" = ") {
        return tree.link(path.as_bytes(), target.as_bytes());
    }
    let kind = if what.ends_with('/') {
        Kind::Directory(BTreeMap::new())
    } else {
        Kind::Inline(what.as_bytes().into())
    };
    tree.insert(&entry(what), kind).map(drop)
}

/// One line per name, sorted.
fn list(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, id: InodeId, path: &str, lines: &mut Vec<String>) {
        let inode = &tree.inodes[id as usize];
        let opaque = if inode.xattrs.contains_key(OPAQUE) {
            " opaque"
        } else {
            ""
        };
        match &inode.kind {
            Kind::Directory(children) => {
                lines.push(format!("{path}/{opaque}"));
                for (name, &child) in children {
                    let name = String::from_utf8_lossy(name);
                    walk(tree, child, &format!("{path}/{name}"), lines);
                }
            }
            Kind::Inline(content) => {
                lines.push(format!("{path} {}", String::from_utf8_lossy(content)));
            }
            Kind::Symlink(target) => {
                lines.push(format!("{path} -> {}", String::from_utf8_lossy(target)));
            }
            Kind::CharDevice { major, minor } => lines.push(format!("{path} c{major}:{minor}")),
            other => panic!("{other:?}"),
        }
    }
    let mut lines = Vec::new();
    walk(tree, 0, "", &mut lines);
    lines
}

#[test]
fn entries_land_where_runtimes_put_them() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["a/b/c"], &["/", "/a/", "/a/b/", "/a/b/c a/b/c"]),
        (&["./", "/x", "y/../z"], &["/", "/x /x", "/z y/../z"]),
        // Later entries replace earlier ones.
        (&["a", "./a"], &["/", "/a ./a"]),
        (&["d/x", "d/"], &["/", "/d/", "/d/x d/x"]),
        (&["d/x", "d"], &["/", "/d d"]),
        (&["d", "d/"], &["/", "/d/"]),
        (&["l -> d", "l/"], &["/", "/l/"]),
        (&["d/x", "d -> y"], &["/", "/d -> y"]),
        // Symlinks on the way are followed inside the layer.
        (
            &["bin -> usr/bin", "usr/bin/", "bin/sh"],
            &[
                "/",
                "/bin -> usr/bin",
                "/usr/",
                "/usr/bin/",
                "/usr/bin/sh bin/sh",
            ],
        ),
        (
            &["lib -> /usr/lib", "lib/x"],
            &[
                "/",
                "/lib -> /usr/lib",
                "/usr/",
                "/usr/lib/",
                "/usr/lib/x lib/x",
            ],
        ),
        (
            &["a/up -> ../../../b", "a/up/x"],
            &["/", "/a/", "/a/up -> ../../../b", "/b/", "/b/x a/up/x"],
        ),
        (&["s -> .", "s/s/x"], &["/", "/s -> .", "/x s/s/x"]),
        // Hard links.
        (&["a", "b = a", "a"], &["/", "/a a", "/b a"]),
        (&["d/a", "b = ./d/../d/a", "d"], &["/", "/b d/a", "/d d"]),
        (
            &["bin -> usr/bin", "usr/bin/a", "b = bin/a"],
            &[
                "/",
                "/b usr/bin/a",
                "/bin -> usr/bin",
                "/usr/",
                "/usr/bin/",
                "/usr/bin/a usr/bin/a",
            ],
        ),
        (&["l -> x", "m = l"], &["/", "/l -> x", "/m -> x"]),
        (&["a", "a = a"], &["/", "/a a"]),
        // Whiteouts.
        (&[".wh.a", "d/.wh.b"], &["/", "/a c0:0", "/d/", "/d/b c0:0"]),
        (&["d/.wh..wh..opq"], &["/", "/d/ opaque"]),
        (&["d/x", "d/.wh..wh..opq"], &["/", "/d/ opaque", "/d/x d/x"]),
        (&[".wh..wh..opq"], &["/ opaque"]),
        (&["a", ".wh.a"], &["/", "/a a"]),
        (&[".wh.a", "a"], &["/", "/a a"]),
        (&["d/x", ".wh.d"], &["/", "/d/ opaque", "/d/x d/x"]),
        (&[".wh.d", "d/", "d/x"], &["/", "/d/ opaque", "/d/x d/x"]),
        (&[".wh.d", "d/x"], &["/", "/d/ opaque", "/d/x d/x"]),
        (&[".wh.d", "d/", "d/"], &["/", "/d/ opaque"]),
        (&[".wh..wh.plnk/1.2", ".wh..wh.aufs", "x"], &["/", "/x x"]),
    ];
    for (adds, want) in cases {
        let mut tree = builder();
        for what in *adds {
            add(&mut tree, what).unwrap_or_else(|fault| panic!("{adds:?}: {what}: {fault:?}"));
        }
        assert_eq!(list(&tree.finish()), *want, "{adds:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let cases: &[(&[&str], &str)] = &[
        (&["../x"], "\"../x\": the name leaves the layer's root"),
        (
            &["a", "a/b"],
            "\"a/b\": its parent \"a\" is not a directory",
        ),
        (
            &["l -> a", "a", "l/b"],
            "\"l/b\": its parent \"a\" is not a directory",
        ),
        (
            &["l -> m", "m -> l", "l/x"],
            "\"l/x\": too many symlinks on the way",
        ),
        (
            &["b = a"],
            "hard link \"b\" to \"a\": \"a\" is not in this layer",
        ),
        (
            &["b = ../a"],
            "hard link \"b\" to \"../a\": \"../a\": the name leaves",
        ),
        (
            &[".wh.a", "b = a"],
            "hard link \"b\" to \"a\": \"a\" is not in this layer",
        ),
        (
            &["d/", "b = d"],
            "hard link \"b\" to \"d\": the target is a directory",
        ),
        (
            &["b = /"],
            "hard link \"b\" to \"/\": the target is a directory",
        ),
        (
            &["l -> m", "m -> l", "b = l/x"],
            "\"l/x\" is not in this layer",
        ),
        (&[". -> x"], "\".\": the root must be a directory"),
        (&["d/.wh."], "\"d/.wh.\": a whiteout of nothing"),
        (&["d/.wh.."], "\"d/.wh..\": a whiteout of nothing"),
        (&["d/.wh..."], "\"d/.wh...\": a whiteout of nothing"),
    ];
    for (adds, want) in cases {
        let mut tree = builder();
        let (last, first) = adds.split_last().unwrap();
        for what in first {
            add(&mut tree, what).unwrap();
        }
        match add(&mut tree, last) {
            Err(Fault::Bad(cause)) => assert!(cause.contains(want), "{adds:?}: {cause}"),
            other => panic!("{adds:?}: {other:?}"),
        }
    }
}

#[test]
fn directories_take_the_metadata_of_their_last_entry() {
    let mut tree = builder();
    add(&mut tree, "d/x").unwrap();
    let implied = tree.inode(1).unwrap().clone();
    assert_eq!(
        (
            implied.mode,
            implied.uid,
            implied.gid,
            implied.mtime,
            implied.mtime_nsec
        ),
        (0o755, 0, 0, 0, 0)
    );
    let mut given = entry("d");
    assert!(implied.xattrs.contains_key(IMPLIED));
    given.mode = 0o1777;
    given.xattrs.insert((*b"user.a").into(), (*b"1").into());
    tree.insert(&given, Kind::Directory(BTreeMap::new()))
        .unwrap();
    let mut root = entry("./");
    root.mode = 0o700;
    tree.insert(&root, Kind::Directory(BTreeMap::new()))
        .unwrap();
    let tree = tree.finish();
    let d = &tree.inodes[1];
    assert_eq!(
        (d.mode, d.uid, d.gid, d.mtime, d.mtime_nsec),
        (0o1777, 1, 2, 3, 4)
    );
    assert!(d.xattrs.contains_key(&b"user.a"[..]) && !d.xattrs.contains_key(IMPLIED));
    assert!(!tree.inodes[0].xattrs.contains_key(IMPLIED));
    assert_eq!(tree.inodes[0].mode, 0o700);
    assert_eq!(list(&tree), ["/", "/d/", "/d/x d/x"]);
}

#[test]
fn attributes_that_are_orders_or_impossible_are_dropped() {
    let mut tree = builder();
    let mut file = entry("f");
    for name in [
        "user.a",
        "user.",
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.x",
        "security.capability",
        "system.posix_acl_access",
        "system.nfs4_acl",
        "com.apple.quarantine",
    ] {
        file.xattrs.insert(name.as_bytes().into(), (*b"v").into());
    }
    let id = tree
        .insert(&file, Kind::Inline(Box::default()))
        .unwrap()
        .unwrap();
    let names: Vec<_> = tree.inode(id).unwrap().xattrs.keys().cloned().collect();
    let want: [&[u8]; 4] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"trusted.x",
        b"user.a",
    ];
    assert!(names.iter().map(|name| &**name).eq(want), "{names:?}");
    let mut file = entry("g");
    file.xattrs
        .insert((*b"user.big").into(), vec![0; 70_000].into());
    assert!(matches!(tree.insert(&file, Kind::Fifo), Err(Fault::Bad(_))));
}

#[test]
fn implied_directories_count_as_entries() {
    let limits = Limits {
        max_entries: 10,
        ..Limits::default()
    };
    let mut tree = TreeBuilder::new(&limits);
    add(&mut tree, "1/2/3/4/5/6/7/8/9/10").unwrap();
    assert!(matches!(
        add(&mut tree, "11"),
        Err(Fault::Limit {
            key: "max_entries",
            limit: 10,
            ..
        })
    ));
}

#[test]
fn symlinks_cannot_build_paths_beyond_the_limit() {
    let limits = Limits {
        max_path: 100,
        ..Limits::default()
    };
    let mut tree = TreeBuilder::new(&limits);
    let deep = "deep/".repeat(15);
    add(&mut tree, &format!("l -> {deep}")).unwrap();
    add(&mut tree, "l/x").unwrap();
    add(&mut tree, &format!("{deep}m -> {deep}")).unwrap();
    assert!(matches!(
        add(&mut tree, &format!("{deep}m/x")),
        Err(Fault::Limit {
            key: "max_path",
            limit: 100,
            ..
        })
    ));
}

//! EROFS images against the room's own reader, `fsck.erofs` and the kernel.

// The builders and judges are not test functions themselves, which is all that the lints' own exception covers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod build;
mod judge;

use larder::erofs::{Chunk, Device, Kind, Place, Reader, Run, Tree, WriteError, write};
use proptest::prelude::*;

use self::build::{Builder, chunked, fifo, file, random_tree, symlink};
use self::judge::{Judge, flatten, image};

#[test]
fn an_empty_root() {
    Judge::new("an_empty_root", 0, 0).accepts(&Builder::new().tree);
}

#[test]
fn every_kind_of_file() {
    let mut tree = Builder::new();
    let etc = tree.dir(0, "etc");
    tree.add(etc, "empty", file(b""));
    tree.add(etc, "hostname", file(b"node\n"));
    tree.add(etc, "plain", file(&[7; 4096]));
    tree.add(etc, "plain-and-more", file(&[8; 9000]));
    tree.add(etc, "almost-a-block", file(&[9; 4032]));
    tree.add(etc, "just-too-long", file(&[9; 4033]));
    tree.add(0, "link", symlink(b"etc/hostname"));
    tree.add(0, "long-link", symlink(&[b'x'; 4095]));
    tree.add(0, "link-of-a-block", symlink(&[b'y'; 4032]));
    tree.add(0, "console", Kind::CharDevice { major: 5, minor: 1 });
    tree.add(0, "whiteout", Kind::CharDevice { major: 0, minor: 0 });
    tree.add(
        0,
        "last",
        Kind::CharDevice {
            major: 4095,
            minor: 0xf_ffff,
        },
    );
    tree.add(
        0,
        "disk",
        Kind::BlockDevice {
            major: 259,
            minor: 65_536,
        },
    );
    tree.add(0, "pipe", fifo());
    tree.add(0, "socket", Kind::Socket);
    tree.add(0, "packed", chunked(10_000, 2, &[Some((0, 3))]));
    tree.add(
        0,
        "scattered",
        chunked(10_000, 0, &[Some((1, 5)), None, Some((2, 9))]),
    );
    tree.add(0, "one-chunk", chunked(40_000, 31, &[Some((2, 0))]));
    tree.add(0, "chunked-and-empty", chunked(0, 3, &[]));
    Judge::new("every_kind_of_file", 3, 64).accepts(&tree.tree);
}

#[test]
fn metadata_is_exact() {
    let mut tree = Builder::new();
    for (name, mtime, nsec) in [
        ("now", 1_763_000_000, 123_456_789),
        ("before-the-epoch", -1, 999_999_999),
        ("long-before", -10_000_000_000, 1),
        ("after-2106", 5_000_000_000, 999_999_999),
        ("epoch", 0, 0),
        ("first", i64::MIN, 0),
        ("last", i64::MAX, 999_999_999),
    ] {
        let id = tree.add(0, name, file(name.as_bytes()));
        let inode = &mut tree.tree.inodes[id as usize];
        (inode.mtime, inode.mtime_nsec) = (mtime, nsec);
    }
    for (name, uid, gid) in [
        ("large-ids", u32::MAX - 1, 0x8000_0000),
        ("ids", 65_535, 65_536),
    ] {
        let id = tree.add(0, name, fifo());
        let inode = &mut tree.tree.inodes[id as usize];
        (inode.uid, inode.gid) = (uid, gid);
    }
    for mode in [0, 0o7777, 0o4755, 0o2755, 0o1777, 0o644] {
        let id = tree.add(0, format!("{mode:o}"), file(b"x"));
        tree.tree.inodes[id as usize].mode = mode;
    }
    tree.tree.inodes[0].mode = 0o1777;
    Judge::new("metadata_is_exact", 0, 0).accepts(&tree.tree);
}

#[test]
fn names_of_any_bytes() {
    let mut tree = Builder::new();
    for byte in (1..=255_u8).filter(|byte| !matches!(byte, b'/' | b'.')) {
        tree.add(0, [byte], fifo());
        tree.add(0, [byte, byte], fifo());
        tree.add(0, [b'.', byte], fifo());
        tree.add(0, [b'.', b'.', byte], fifo());
        tree.add(0, vec![byte; 255], fifo());
    }
    tree.add(0, "...", fifo());
    Judge::new("names_of_any_bytes", 0, 0).accepts(&tree.tree);
}

#[test]
fn hard_links_beyond_16_bits() {
    let mut tree = Builder::new();
    let id = tree.add(0, "first", file(b"one content"));
    let other = tree.dir(0, "other");
    for n in 0..66_000 {
        tree.link(other, format!("name-{n}"), id);
    }
    Judge::new("hard_links_beyond_16_bits", 0, 0).accepts(&tree.tree);
}

#[test]
fn a_directory_of_100k_entries() {
    let mut tree = Builder::new();
    let big = tree.dir(0, "big");
    for n in 0..100_000_u32 {
        tree.add(
            big,
            format!("{:08x}-{n}", n.wrapping_mul(2_654_435_761)),
            file(b""),
        );
    }
    Judge::new("a_directory_of_100k_entries", 0, 0).accepts(&tree.tree);
}

#[test]
fn more_directories_than_16_bits() {
    let mut tree = Builder::new();
    for n in 0..66_000 {
        tree.dir(0, format!("{n}"));
    }
    Judge::new("more_directories_than_16_bits", 0, 0).accepts(&tree.tree);
}

#[test]
fn directories_200_deep() {
    let mut tree = Builder::new();
    let mut parent = 0;
    for n in 0..200 {
        parent = tree.dir(parent, format!("level-{n}"));
        tree.add(parent, "file", file(format!("at {n}").as_bytes()));
    }
    Judge::new("directories_200_deep", 0, 0).accepts(&tree.tree);
}

#[test]
fn directories_around_a_block() {
    let mut tree = Builder::new();
    // 12 bytes an entry and 6 a name, `.` and `..` take 27: sizes from a little under one block to a little over two.
    for count in (218..235).chain(445..460) {
        let dir = tree.dir(0, format!("of-{count}"));
        for n in 0..count {
            tree.add(dir, format!("{n:06}"), fifo());
        }
    }
    Judge::new("directories_around_a_block", 0, 0).accepts(&tree.tree);
}

#[test]
fn five_gibibytes_with_holes() {
    let mut tree = Builder::new();
    let size = 5_u64 << 30;
    let mut chunks = vec![None; (size >> 20) as usize];
    chunks[0] = Some((0, 0));
    chunks[4095] = Some((1, 256));
    chunks[5119] = Some((0, 256));
    tree.add(0, "sparse", chunked(size, 8, &chunks));
    tree.add(0, "hole", chunked(size, 31, &[None]));
    tree.add(0, "not-round", chunked(size - 1, 8, &chunks));
    Judge::new("five_gibibytes_with_holes", 2, 512).accepts(&tree.tree);
}

#[test]
fn large_and_shared_xattrs() {
    let mut tree = Builder::new();
    // A label on all, as SELinux puts it; a value of the greatest length; several of them on one file; and all on a symlink
    // and a directory too, whose data must keep out of their way.
    for n in 0..300 {
        let id = tree.add(0, format!("labelled-{n}"), file(b"content"));
        tree.xattr(
            id,
            "security.selinux",
            b"system_u:object_r:container_file_t:s0\0",
        );
        tree.xattr(id, "user.number", format!("{}", n / 7).as_bytes());
    }
    for (name, kind) in [
        ("file", file(b"small")),
        ("link", symlink(b"target")),
        ("packed", chunked(8192, 1, &[Some((0, 1))])),
        ("pipe", fifo()),
    ] {
        let id = tree.add(0, name, kind);
        tree.xattr(id, "user.large", &[0xa5; 65_535]);
        tree.xattr(id, "trusted.unique", name.repeat(900).as_bytes());
        tree.xattr(id, "user.empty", b"");
        tree.xattr(id, format!("user.{}", "n".repeat(250)), b"long name");
    }
    let dir = tree.dir(0, "dir");
    for n in 0..3 {
        tree.xattr(dir, format!("trusted.own-{n}"), &[n; 65_535]);
    }
    tree.add(dir, "inside", fifo());
    let capable = tree.add(0, "capable", file(b"ping"));
    tree.xattr(
        capable,
        "security.capability",
        b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    // user::rwx, user:1000:r--, group::r-x, mask::r-x, other::r-x
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\
        \x10\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    let guarded = tree.dir(0, "guarded");
    tree.xattr(guarded, "system.posix_acl_access", acl);
    tree.xattr(guarded, "system.posix_acl_default", acl);
    Judge::new("large_and_shared_xattrs", 1, 8).accepts(&tree.tree);
}

#[test]
fn more_shared_xattrs_than_an_inode_can_refer_to() {
    let mut tree = Builder::new();
    for name in ["one", "two"] {
        let id = tree.add(0, name, file(b"content"));
        for n in 0..400 {
            tree.xattr(id, format!("user.{n}"), b"the same");
        }
    }
    Judge::new("more_shared_xattrs_than_an_inode_can_refer_to", 0, 0).accepts(&tree.tree);
}

#[test]
fn three_hundred_devices() {
    let mut tree = Builder::new();
    for n in 0..300 {
        tree.add(0, format!("in-{n}"), chunked(4096, 0, &[Some((n, 0))]));
    }
    Judge::new("three_hundred_devices", 300, 1).accepts(&tree.tree);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(tree in random_tree(3, 64)) {
        Judge::new("any_tree_comes_back", 3, 64).accepts(&tree);
    }
}

#[test]
fn runs_join_neighbours() {
    let mut tree = Builder::new();
    let chunks = [
        Some((0, 3)),
        Some((0, 4)),
        None,
        None,
        Some((1, 5)),
        Some((0, 6)),
    ];
    tree.add(0, "file", chunked(5 * 4096 + 10, 0, &chunks));
    let devices = build::devices(2, 10);
    let (bytes, _) = image(&tree.tree, &devices);
    let reader = Reader::open(bytes).unwrap();
    let entry = &reader.read_dir(&reader.root().unwrap()).unwrap()[0];
    let run = |offset, len, place| Run { offset, len, place };
    assert_eq!(
        reader.runs(&reader.inode(entry.nid).unwrap()).unwrap(),
        [
            run(
                0,
                8192,
                Place::Device {
                    device: 0,
                    offset: 3 * 4096
                }
            ),
            run(8192, 8192, Place::Hole),
            run(
                16_384,
                4096,
                Place::Device {
                    device: 1,
                    offset: 5 * 4096
                }
            ),
            run(
                20_480,
                10,
                Place::Device {
                    device: 0,
                    offset: 6 * 4096
                }
            ),
        ]
    );
}

#[test]
fn unreached_inodes_are_left_out() {
    let mut tree = Builder::new();
    tree.add(0, "a", file(b"kept"));
    tree.tree.inodes.push(build::inode(file(b"orphan")));
    tree.add(0, "b", file(b"kept too"));
    let (bytes, written) = image(&tree.tree, &[]);
    assert_eq!(written.inodes, 3);
    assert_eq!(
        written
            .inline_offsets
            .iter()
            .map(Option::is_some)
            .collect::<Vec<_>>(),
        [false, true, false, true]
    );
    assert!(!bytes.windows(6).any(|window| window == b"orphan"));
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let mut tree = Builder::new();
    for n in 0..2000_u32 {
        let id = tree.add(
            0,
            format!("f{n}"),
            file(&vec![n as u8; (n * 37 % 3000) as usize]),
        );
        tree.xattr(id, "user.shared", format!("{}", n % 50).as_bytes());
    }
    assert_eq!(image(&tree.tree, &[]).0, image(&tree.tree.clone(), &[]).0);
}

#[test]
fn a_rebuilt_tree_writes_the_same_bytes() {
    let mut tree = Builder::new();
    let dir = tree.dir(0, "dir");
    tree.add(dir, "packed", chunked(5000, 1, &[Some((0, 2))]));
    let id = tree.add(dir, "small", file(b"small"));
    tree.link(0, "small-too", id);
    let devices = build::devices(1, 8);
    let (bytes, _) = image(&tree.tree, &devices);
    let reader = Reader::open(bytes.as_slice()).unwrap();
    let again = reader.tree().unwrap();
    assert_eq!(image(&again, reader.devices()).0, bytes);
}

#[test]
fn what_erofs_cannot_hold_is_refused_with_its_path() {
    type Make = fn(&mut Builder);
    let table: [(&str, Make); 15] = [
        ("/d/x", |t| {
            t.bad(Kind::CharDevice {
                major: 4096,
                minor: 0,
            });
        }),
        ("/d/x", |t| {
            t.bad(Kind::BlockDevice {
                major: 1,
                minor: 1 << 20,
            });
        }),
        ("/d/x", |t| {
            t.bad(symlink(b""));
        }),
        ("/d/x", |t| {
            t.bad(symlink(&[b'a'; 4096]));
        }),
        ("/d/x", |t| {
            t.bad(chunked(4097, 0, &[None]));
        }),
        ("/d/x", |t| {
            t.bad(chunked(4096, 32, &[None]));
        }),
        ("/d/x", |t| {
            t.bad(chunked(u64::MAX, 31, &vec![None; 1 << 21]));
        }),
        ("/d/x", |t| {
            t.bad(chunked(4096, 0, &[Some((1, 0))]));
        }),
        ("/d/x", |t| {
            t.bad(chunked(8192, 1, &[Some((0, 7))]));
        }),
        ("/d/x", |t| {
            let id = t.bad(fifo());
            t.xattr(id, "com.example.colour", b"red");
        }),
        ("/d/x", |t| {
            let id = t.bad(fifo());
            t.xattr(id, "user.large", &[0; 65_536]);
        }),
        ("/d/x", |t| {
            let id = t.bad(fifo());
            (0..5).for_each(|n| t.xattr(id, format!("user.{n}"), &[n; 65_535]));
        }),
        ("/d/x", |t| {
            let id = t.bad(fifo());
            t.tree.inodes[id as usize].mtime_nsec = 1_000_000_000;
        }),
        ("/d", |t| {
            let dir = t.dir(0, "d");
            t.link(dir, "loop", dir);
        }),
        ("/d", |t| {
            let dir = t.dir(0, "d");
            t.add(dir, "a/b", fifo());
        }),
    ];
    for (number, (path, make)) in table.into_iter().enumerate() {
        let mut tree = Builder::new();
        make(&mut tree);
        let mut out = Vec::new();
        let error = write(&tree.tree, &build::devices(1, 8), [0; 16], &mut out).unwrap_err();
        assert!(error.to_string().contains(path), "case {number}: {error}");
        assert!(out.is_empty(), "case {number}");
    }
}

#[test]
fn a_tree_without_a_root_directory_is_refused() {
    let only_a_pipe = Tree {
        inodes: vec![build::inode(fifo())],
    };
    for tree in [Tree::default(), only_a_pipe] {
        let error = write(&tree, &[], [0; 16], &mut std::io::sink()).unwrap_err();
        assert!(matches!(error, WriteError::Root), "{error}");
    }
    let mut to_the_root = Builder::new();
    to_the_root.link(0, "self", 0);
    let error = write(&to_the_root.tree, &[], [0; 16], &mut std::io::sink()).unwrap_err();
    assert!(
        matches!(error, WriteError::DirectoryLinked { .. }),
        "{error}"
    );
}

#[test]
fn long_tags_and_wild_entries_are_refused() {
    let long = [Device {
        tag: "t".repeat(65),
        blocks: 1,
    }];
    let tree = Builder::new().tree;
    let error = write(&tree, &long, [0; 16], &mut std::io::sink()).unwrap_err();
    assert!(matches!(error, WriteError::Tag(_)), "{error}");
    let mut wild = Builder::new();
    wild.link(0, "wild", 99);
    let error = write(&wild.tree, &[], [0; 16], &mut std::io::sink()).unwrap_err();
    assert!(
        matches!(error, WriteError::Missing { inode: 99, .. }),
        "{error}"
    );
}

/// Device slots begin at 1152 and have 128 bytes: a tag, blocks, and the place in the common address space.
#[test]
fn devices_and_image_share_no_address() {
    let blocks = [10, 20, u32::MAX, 30];
    let devices: Vec<Device> = blocks
        .iter()
        .map(|blocks| Device {
            tag: String::new(),
            blocks: *blocks,
        })
        .collect();
    let (bytes, written) = image(&Builder::new().tree, &devices);
    let mapped: Vec<u32> = (0..4)
        .map(|n| 1152 + n * 128 + 68)
        .map(|at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
        .collect();
    let image = (written.bytes / 4096) as u32;
    assert_eq!(mapped, [image, image + 10, image + 30, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// With a checksum made right again, so that the damage gets past the first look.
    #[test]
    fn damaged_images_never_panic(
        tree in random_tree(3, 64),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let (mut bytes, _) = image(&tree, &build::devices(3, 64));
        for (at, value) in &damage {
            // Most of an image is padding: three of four hit the first blocks.
            let range = if value % 4 == 0 { bytes.len() } else { bytes.len().min(8192) };
            bytes[at.index(range)] = *value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        judge::mend_checksum(&mut bytes);
        if let Ok(reader) = Reader::open(bytes) {
            _ = reader.tree();
        }
    }

    #[test]
    fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        if bytes.len() > 1100 {
            bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        }
        judge::mend_checksum(&mut bytes);
        if let Ok(reader) = Reader::open(bytes) {
            _ = reader.tree();
        }
    }
}

#[test]
fn a_flipped_superblock_bit_is_found() {
    let (mut bytes, _) = image(&Builder::new().tree, &[]);
    bytes[1024 + 50] ^= 1;
    assert!(Reader::open(bytes).is_err());
}

#[test]
fn chunks_keep_their_device_and_block() {
    let mut tree = Builder::new();
    tree.add(
        0,
        "file",
        chunked(20_000, 1, &[Some((1, 8)), None, Some((0, 2))]),
    );
    let devices = build::devices(2, 64);
    let (bytes, _) = image(&tree.tree, &devices);
    let reader = Reader::open(bytes).unwrap();
    assert_eq!(reader.devices()[1].tag, devices[1].tag);
    let again = reader.tree().unwrap();
    assert_eq!(flatten(&again), flatten(&tree.tree));
    assert!(matches!(&again.inodes[1].kind, Kind::Chunked { chunks, .. }
        if chunks[0] == Some(Chunk { device: 1, block: 8 })));
}

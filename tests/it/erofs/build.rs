//! Trees to test with.

use std::collections::BTreeMap;

use larder::erofs::{Chunk, Device, Inode, InodeId, Kind, Tree};
use proptest::prelude::*;

/// A tree that grows.
pub(super) struct Builder {
    pub(super) tree: Tree,
}

impl Builder {
    pub(super) fn new() -> Self {
        Builder {
            tree: Tree {
                inodes: vec![inode(Kind::Directory(BTreeMap::new()))],
            },
        }
    }

    pub(super) fn add(&mut self, parent: InodeId, name: impl AsRef<[u8]>, kind: Kind) -> InodeId {
        let id = self.tree.inodes.len() as InodeId;
        self.tree.inodes.push(inode(kind));
        self.link(parent, name, id);
        id
    }

    pub(super) fn dir(&mut self, parent: InodeId, name: impl AsRef<[u8]>) -> InodeId {
        self.add(parent, name, Kind::Directory(BTreeMap::new()))
    }

    pub(super) fn link(&mut self, parent: InodeId, name: impl AsRef<[u8]>, id: InodeId) {
        let Kind::Directory(entries) = &mut self.tree.inodes[parent as usize].kind else {
            panic!("inode {parent} is no directory");
        };
        assert_eq!(entries.insert(name.as_ref().into(), id), None);
    }

    pub(super) fn xattr(&mut self, id: InodeId, name: impl AsRef<[u8]>, value: &[u8]) {
        self.tree.inodes[id as usize]
            .xattrs
            .insert(name.as_ref().into(), value.into());
    }

    /// Something that will be refused, at /d/x.
    pub(super) fn bad(&mut self, kind: Kind) -> InodeId {
        let dir = self.dir(0, "d");
        self.add(dir, "x", kind)
    }
}

pub(super) fn inode(kind: Kind) -> Inode {
    Inode {
        mode: if matches!(kind, Kind::Directory(_)) {
            0o755
        } else {
            0o644
        },
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        mtime_nsec: 5,
        xattrs: BTreeMap::new(),
        kind,
    }
}

pub(super) fn file(content: &[u8]) -> Kind {
    Kind::Inline(content.into())
}

pub(super) fn symlink(target: &[u8]) -> Kind {
    Kind::Symlink(target.into())
}

pub(super) fn fifo() -> Kind {
    Kind::Fifo
}

pub(super) fn chunked(size: u64, chunk_bits: u8, chunks: &[Option<(u16, u32)>]) -> Kind {
    let chunk = |(device, block)| Chunk { device, block };
    Kind::Chunked {
        size,
        chunk_bits,
        chunks: chunks.iter().map(|place| place.map(chunk)).collect(),
    }
}

pub(super) fn devices(count: u16, blocks: u32) -> Vec<Device> {
    (0..count)
        .map(|n| Device {
            tag: format!("pack-{n}"),
            blocks,
        })
        .collect()
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => b'a'..=b'c', 1 => any::<u8>(), 1 => Just(b'.')];
    let length = prop_oneof![6 => 1..=4_usize, 1 => 1..=255_usize];
    length
        .prop_flat_map(move |length| prop::collection::vec(byte.clone(), length))
        .prop_filter("a file name", |name| {
            !matches!(name.as_slice(), b"." | b"..")
                && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
        })
}

/// Chunks that lie within devices of this many blocks.
fn any_chunked(devices: u16, blocks: u32) -> impl Strategy<Value = Kind> {
    let place = prop::option::weighted(0.7, (0..devices, any::<prop::sample::Index>()));
    (
        0..=31_u8,
        1..=u64::from(blocks) * 4096,
        prop::collection::vec(place, 64),
    )
        .prop_map(move |(chunk_bits, size, places)| {
            let chunk_size = 4096_u64 << chunk_bits;
            let count = size.div_ceil(chunk_size) as usize;
            let longest = chunk_size.min(size).div_ceil(4096) as usize;
            let chunks = places.iter().take(count).map(|place| {
                let (device, block) = place.as_ref()?;
                let block = block.index(blocks as usize - longest + 1) as u32;
                Some(Chunk {
                    device: *device,
                    block,
                })
            });
            Kind::Chunked {
                size,
                chunk_bits,
                chunks: chunks.collect(),
            }
        })
}

fn any_bytes(longest: usize) -> impl Strategy<Value = Box<[u8]>> {
    let length = prop_oneof![4 => 0..=50_usize, 2 => 0..=longest.min(5000), 1 => 0..=longest];
    (length, any::<u8>()).prop_map(|(length, first)| {
        (0..length)
            .map(|n| first.wrapping_add((n * 7 % 253) as u8))
            .collect()
    })
}

fn any_kind(devices: u16, blocks: u32) -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Directory(BTreeMap::new())),
        4 => any_bytes(20_000).prop_map(Kind::Inline),
        4 => any_chunked(devices, blocks),
        2 => (1..=4095_usize, b'a'..=b'z').prop_map(|(length, byte)| Kind::Symlink(vec![byte; length].into())),
        1 => (0..4096_u32, 0..1_u32 << 20).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        1 => (0..4096_u32, 0..1_u32 << 20).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

fn any_xattrs() -> impl Strategy<Value = BTreeMap<Box<[u8]>, Box<[u8]>>> {
    let name = prop_oneof![
        Just("user.a".to_owned()),
        Just("trusted.b".to_owned()),
        Just("security.c".to_owned()),
        (1..=250_usize).prop_map(|length| format!("user.{}", "x".repeat(length))),
    ];
    let value = prop_oneof![3 => Just(Box::from(b"shared".as_slice())), 2 => any_bytes(65_535)];
    let some =
        prop::collection::btree_map(name.prop_map(|name| name.into_bytes().into()), value, 1..4);
    prop_oneof![3 => Just(BTreeMap::new()), 1 => some]
}

fn any_inode(devices: u16, blocks: u32) -> impl Strategy<Value = Inode> {
    let mtime = prop_oneof![
        Just(0),
        1_600_000_000..1_800_000_000_i64,
        -5_000_000_000..5_000_000_000_i64
    ];
    (
        0..=0o7777_u16,
        0..u32::MAX,
        0..u32::MAX,
        mtime,
        0..1_000_000_000_u32,
        any_xattrs(),
        any_kind(devices, blocks),
    )
        .prop_map(|(mode, uid, gid, mtime, mtime_nsec, xattrs, kind)| Inode {
            mode,
            uid,
            gid,
            mtime,
            mtime_nsec,
            xattrs,
            kind,
        })
}

/// A tree of up to 150 inodes with hard links.
pub(super) fn random_tree(devices: u16, blocks: u32) -> impl Strategy<Value = Tree> {
    let entry = (
        any::<prop::sample::Index>(),
        any_name(),
        any_inode(devices, blocks),
        prop::option::weighted(0.15, any::<prop::sample::Index>()),
    );
    prop::collection::vec(entry, 0..150).prop_map(|entries| {
        let mut builder = Builder::new();
        let mut directories = vec![0];
        for (parent, name, inode, link) in entries {
            let parent = directories[parent.index(directories.len())];
            let Kind::Directory(names) = &builder.tree.inodes[parent as usize].kind else {
                unreachable!("only directories are pushed");
            };
            if names.contains_key(name.as_slice()) {
                continue;
            }
            let others: Vec<InodeId> = (1..builder.tree.inodes.len() as InodeId)
                .filter(|id| !directories.contains(id))
                .collect();
            match link {
                Some(link) if !others.is_empty() => {
                    builder.link(parent, name, others[link.index(others.len())]);
                }
                _ => {
                    let id = builder.add(parent, name, Kind::Fifo);
                    if matches!(inode.kind, Kind::Directory(_)) {
                        directories.push(id);
                    }
                    builder.tree.inodes[id as usize] = inode;
                }
            }
        }
        builder.tree
    })
}

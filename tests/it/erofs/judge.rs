//! Has an image judged: by our own reader, by `fsck.erofs` and by the kernel's file system.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::erofs::{Device, Inode, InodeId, Kind, Reader, Tree, Written, write};
use tempfile::TempDir;

use super::build;
use crate::support::skip;

/// More than these, and `fsck.erofs` has no room for them.
const FSCK_DEVICES_MAX: usize = 255;

pub(super) fn image(tree: &Tree, devices: &[Device]) -> (Vec<u8>, Written) {
    let mut bytes = Vec::new();
    let written = write(tree, devices, *b"0123456789abcdef", &mut bytes).unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    (bytes, written)
}

/// Makes the superblock's checksum right, if there is room for one.
pub(super) fn mend_checksum(bytes: &mut [u8]) {
    let Some(block) = bytes.get_mut(1024..4096) else {
        return;
    };
    block[4..8].fill(0);
    let mut crc = u32::MAX;
    for byte in &*block {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1));
        }
    }
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Each path with its inode's fields and the first path of that inode: equal for trees that differ only in inode numbers.
pub(super) fn flatten(tree: &Tree) -> BTreeMap<Vec<u8>, (String, Vec<u8>)> {
    let mut flat = BTreeMap::new();
    let mut first: HashMap<InodeId, Vec<u8>> = HashMap::new();
    let mut pending = vec![(Vec::new(), 0)];
    while let Some((path, id)) = pending.pop() {
        let inode = &tree.inodes[id as usize];
        let known = first.entry(id).or_insert_with(|| path.clone());
        if path < *known {
            known.clone_from(&path);
        }
        let mut shallow = inode.clone();
        if let Kind::Directory(entries) = &mut shallow.kind {
            for (name, child) in std::mem::take(entries) {
                pending.push(([path.as_slice(), b"/", &name].concat(), child));
            }
        }
        // An empty file is an empty file, however it was to be kept.
        if matches!(shallow.kind, Kind::Chunked { size: 0, .. }) {
            shallow.kind = Kind::Inline(Box::default());
        }
        flat.insert(path, (shallow, id));
    }
    flat.into_iter()
        .map(|(path, (inode, id))| (path, (format!("{inode:?}"), first[&id].clone())))
        .collect()
}

/// A folder with an image's devices.
pub(super) struct Judge {
    test: &'static str,
    folder: TempDir,
    devices: Vec<Device>,
    paths: Vec<PathBuf>,
}

impl Judge {
    pub(super) fn new(test: &'static str, devices: u16, blocks: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let devices = build::devices(devices, blocks);
        let paths: Vec<PathBuf> = devices
            .iter()
            .map(|device| folder.path().join(&device.tag))
            .collect();
        for (number, path) in paths.iter().enumerate() {
            let bytes: Vec<u8> = (0..blocks)
                .flat_map(|block| device_block(number, block))
                .collect();
            std::fs::write(path, bytes).unwrap();
        }
        Judge {
            test,
            folder,
            devices,
            paths,
        }
    }

    pub(super) fn accepts(&self, tree: &Tree) {
        let (bytes, written) = image(tree, &self.devices);
        self.read_back(tree, &bytes, &written);
        let path = self.folder.path().join("image.erofs");
        std::fs::write(&path, &bytes).unwrap();
        self.fsck(&path);
        self.kernel(tree, &path, false);
        // A large tree is about many inodes, which are read the same way; once is enough.
        if tree.inodes.len() < 10_000 {
            self.kernel(tree, &path, true);
        }
    }

    fn read_back(&self, tree: &Tree, bytes: &[u8], written: &Written) {
        let reader = Reader::open(bytes).unwrap();
        assert_eq!(reader.uuid(), *b"0123456789abcdef");
        assert_eq!(reader.inodes(), written.inodes);
        assert_eq!(reader.devices().len(), self.devices.len());
        let again = reader.tree().unwrap();
        assert_eq!(again.inodes.len() as u64, written.inodes);
        assert!(
            flatten(&again) == flatten(tree),
            "the reader sees another tree"
        );
        for (inode, offset) in tree.inodes.iter().zip(&written.inline_offsets) {
            if let Kind::Inline(content) = &inode.kind {
                let start = offset.unwrap() as usize;
                assert_eq!(bytes[start..start + content.len()], **content);
            }
        }
    }

    fn fsck(&self, image: &Path) {
        if self.devices.len() > FSCK_DEVICES_MAX {
            return skip(self.test, "fsck.erofs cannot open so many devices");
        }
        for (tool, option) in [("fsck.erofs", "--extract"), ("dump.erofs", "-s")] {
            let devices = self
                .paths
                .iter()
                .map(|path| format!("--device={}", path.display()));
            match Command::new(tool)
                .args(devices)
                .arg(option)
                .arg(image)
                .output()
            {
                Err(error) => skip(self.test, &format!("{tool}: {error}")),
                Ok(run) => assert!(
                    run.status.success(),
                    "{tool}: {}{}",
                    String::from_utf8_lossy(&run.stdout),
                    String::from_utf8_lossy(&run.stderr)
                ),
            }
        }
    }

    /// `direct`: without a second copy of the backing files in the page cache, which takes other paths in the kernel.
    fn kernel(&self, tree: &Tree, image: &Path, direct: bool) {
        if !rustix::process::geteuid().is_root() {
            return skip(self.test, "mounting needs root");
        }
        let mounted = match mount(image, &self.paths, direct) {
            Ok(mounted) => mounted,
            Err(Unmountable::Unknown(reason)) => return skip(self.test, &reason),
            Err(Unmountable::Refused(reason)) => panic!("the kernel refuses the image: {reason}"),
        };
        // A mount that is attached nowhere goes away with its last descriptor, whatever becomes of this test.
        let root = PathBuf::from(format!("/proc/self/fd/{}/.", mounted.as_raw_fd()));
        let mut numbers = HashMap::new();
        let links = links(tree);
        let mut pending = vec![(root, 0)];
        while let Some((path, id)) = pending.pop() {
            let inode = &tree.inodes[id as usize];
            let number = compare_metadata(&path, inode, links[id as usize]);
            assert_eq!(
                *numbers.entry(id).or_insert(number),
                number,
                "{path:?} is another inode"
            );
            compare_xattrs(&path, inode);
            match &inode.kind {
                Kind::Directory(entries) => {
                    compare_names(&path, entries);
                    for (name, child) in entries {
                        pending.push((path.join(OsStr::from_bytes(name)), *child));
                    }
                }
                Kind::Symlink(target) => {
                    assert_eq!(
                        std::fs::read_link(&path)
                            .unwrap()
                            .into_os_string()
                            .into_vec(),
                        **target
                    );
                }
                Kind::Inline(content) => assert_eq!(std::fs::read(&path).unwrap(), **content),
                Kind::Chunked { .. } => compare_chunks(&path, &inode.kind),
                _ => {}
            }
        }
        let reached = numbers.len();
        let mut distinct: Vec<u64> = numbers.into_values().collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), reached, "two inodes have one number");
    }
}

/// No two blocks are alike, and none is zero.
fn device_block(device: usize, block: u32) -> Vec<u8> {
    let seed = (device as u32).wrapping_mul(0x9e37_79b9) ^ block.wrapping_mul(0x85eb_ca6b) | 1;
    (0..1024_u32)
        .flat_map(|n| seed.wrapping_mul(n | 1).wrapping_add(n).to_le_bytes())
        .collect()
}

enum Unmountable {
    /// This machine cannot mount any such image.
    Unknown(String),
    Refused(String),
}

fn mount(image: &Path, devices: &[PathBuf], direct: bool) -> Result<OwnedFd, Unmountable> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    };
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| Unmountable::Unknown(format!("the kernel offers no EROFS: {error}")))?;
    let refused = |error: rustix::io::Errno| {
        let mut log = Vec::new();
        let mut line = [0; 512];
        while let Ok(len @ 1..) = rustix::io::read(&context, &mut line) {
            log.push(String::from_utf8_lossy(&line[..len]).into_owned());
        }
        format!("{error}: {log:?}")
    };
    if direct {
        fsconfig_set_flag(&context, "directio")
            .map_err(|error| Unmountable::Unknown(format!("no directio: {error}")))?;
    }
    (|| {
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_set_string(&context, "source", image)?;
        for device in devices {
            fsconfig_set_string(&context, "device", device)?;
        }
        fsconfig_create(&context)
    })()
    .map_err(|error| match error {
        rustix::io::Errno::NOTBLK => {
            Unmountable::Unknown("the kernel mounts EROFS from block devices only".to_owned())
        }
        rustix::io::Errno::PERM => Unmountable::Unknown("mounting is not permitted".to_owned()),
        _ => Unmountable::Refused(refused(error)),
    })?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .map_err(|error| Unmountable::Refused(refused(error)))
}

/// What `st_nlink` must be.
fn links(tree: &Tree) -> Vec<u64> {
    let mut links = vec![0; tree.inodes.len()];
    links[0] = 2;
    for (id, inode) in tree.inodes.iter().enumerate() {
        let Kind::Directory(entries) = &inode.kind else {
            continue;
        };
        for child in entries.values() {
            if matches!(tree.inodes[*child as usize].kind, Kind::Directory(_)) {
                links[*child as usize] += 2;
                links[id] += 1;
            } else {
                links[*child as usize] += 1;
            }
        }
    }
    links
}

/// The inode number.
fn compare_metadata(path: &Path, inode: &Inode, links: u64) -> u64 {
    let found = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let kind = found.file_type();
    let (right, size, number) = match &inode.kind {
        Kind::Directory(_) => (kind.is_dir(), None, None),
        Kind::Inline(content) => (kind.is_file(), Some(content.len() as u64), None),
        Kind::Chunked { size, .. } => (kind.is_file(), Some(*size), None),
        Kind::Symlink(target) => (kind.is_symlink(), Some(target.len() as u64), None),
        Kind::CharDevice { major, minor } => {
            (kind.is_char_device(), Some(0), Some((*major, *minor)))
        }
        Kind::BlockDevice { major, minor } => {
            (kind.is_block_device(), Some(0), Some((*major, *minor)))
        }
        Kind::Fifo => (kind.is_fifo(), Some(0), None),
        Kind::Socket => (kind.is_socket(), Some(0), None),
    };
    assert!(right, "{path:?} is a {kind:?}");
    let device = (
        rustix::fs::major(found.rdev()),
        rustix::fs::minor(found.rdev()),
    );
    assert_eq!(
        (
            found.mode() & 0o7777,
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec(),
            found.nlink()
        ),
        (
            inode.mode.into(),
            inode.uid,
            inode.gid,
            inode.mtime,
            inode.mtime_nsec.into(),
            links
        ),
        "{path:?}"
    );
    assert_eq!(
        (size.unwrap_or(found.size()), number.unwrap_or((0, 0))),
        (found.size(), device),
        "{path:?}"
    );
    found.ino()
}

fn compare_xattrs(path: &Path, inode: &Inode) {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let mut found: Vec<&[u8]> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    found.sort_unstable();
    let expected: Vec<&[u8]> = inode.xattrs.keys().map(AsRef::as_ref).collect();
    assert_eq!(found, expected, "{path:?}");
    let mut value = vec![0; 65_536];
    // The VFS answers for these itself: user attributes are for regular files and directories.
    let user = matches!(
        inode.kind,
        Kind::Directory(_) | Kind::Inline(_) | Kind::Chunked { .. }
    );
    for (name, expected) in &inode.xattrs {
        let found = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice());
        if !user && name.starts_with(b"user.") {
            assert_eq!(found, Err(rustix::io::Errno::NODATA), "{path:?}");
        } else {
            let found = found.map(|len| value[..len].to_vec());
            assert!(
                found.as_deref() == Ok(expected),
                "{path:?}: {}",
                name.escape_ascii()
            );
        }
    }
    let missing = rustix::fs::lgetxattr(path, "user.not-there", value.as_mut_slice());
    assert_eq!(missing, Err(rustix::io::Errno::NODATA), "{path:?}");
}

fn compare_names(path: &Path, entries: &BTreeMap<Box<[u8]>, InodeId>) {
    let found: Vec<Vec<u8>> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_vec())
        .collect();
    let expected: Vec<&[u8]> = entries.keys().map(AsRef::as_ref).collect();
    assert_eq!(
        found.iter().map(Vec::as_slice).collect::<Vec<_>>(),
        expected,
        "{path:?}"
    );
    for name in [&b"!"[..], b"-absent", b"\xff\xff\xff"] {
        if !entries.contains_key(name) {
            let error = std::fs::symlink_metadata(path.join(OsStr::from_bytes(name))).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{path:?}");
        }
    }
}

/// All of the data; of a hole only its first and last blocks.
fn compare_chunks(path: &Path, kind: &Kind) {
    let Kind::Chunked {
        size,
        chunk_bits,
        chunks,
    } = kind
    else {
        return;
    };
    let file = File::open(path).unwrap();
    let chunk_size = 4096_u64 << chunk_bits;
    for (number, chunk) in (0..).zip(chunks) {
        let start = number * chunk_size;
        let blocks = chunk_size.min(size - start).div_ceil(4096);
        for block in
            (0..blocks).filter(|block| chunk.is_some() || *block == 0 || *block == blocks - 1)
        {
            let offset = start + block * 4096;
            let len = (size - offset).min(4096) as usize;
            let mut found = vec![0xee; len];
            file.read_exact_at(&mut found, offset).unwrap();
            let expected = match chunk {
                Some(chunk) => device_block(chunk.device.into(), chunk.block + block as u32),
                None => vec![0; 4096],
            };
            assert!(found == expected[..len], "{path:?} differs at {offset}");
        }
    }
    assert_eq!(file.read_at(&mut [0; 10], *size).unwrap(), 0);
}

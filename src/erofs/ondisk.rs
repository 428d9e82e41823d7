//! Constants and fixed-size records of the format. All numbers are little-endian.

/// Bytes in a block. The only block size that every kernel with EROFS mounts, whatever its page size.
pub const BLOCK_SIZE: u64 = 4096;
/// [`BLOCK_SIZE`] as a length of memory.
pub(super) const BLOCK: usize = 4096;

pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
pub(super) const SUPER_OFFSET: usize = 1024;
pub(super) const SUPER_SIZE: usize = 128;
/// `blkszbits`: log2 of the block size.
pub(super) const BLOCK_BITS: u8 = 12;
/// The checksum covers block 0 from the superblock to the end of the block.
pub(super) const CHECKSUM_FIELD: usize = SUPER_OFFSET + 4;

pub(super) const COMPAT_SB_CHKSUM: u32 = 0x1;
pub(super) const COMPAT_MTIME: u32 = 0x2;
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
pub(super) const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

pub(super) const DEVICE_SLOT_SIZE: u64 = 128;
pub(super) const DEVICE_TAG_SIZE: usize = 64;
/// The first slot: right behind the superblock.
pub(super) const DEVICE_SLOT_FIRST: u16 = ((SUPER_OFFSET + SUPER_SIZE) / 128) as u16;

/// A node id counts slots of this many bytes from the start of the metadata area.
pub(super) const SLOT: u64 = 32;
pub(super) const INODE_EXTENDED_SIZE: u64 = 64;
/// Bit 0 of `i_format`: a 64-byte inode.
pub(super) const FORMAT_EXTENDED: u16 = 1;
pub(super) const LAYOUT_FLAT_PLAIN: u16 = 0;
pub(super) const LAYOUT_FLAT_INLINE: u16 = 2;
pub(super) const LAYOUT_CHUNKED: u16 = 4;

pub(super) const CHUNK_BITS_MASK: u16 = 0x1f;
pub(super) const CHUNK_INDEXES: u16 = 0x20;
pub(super) const CHUNK_INDEX_SIZE: u64 = 8;
/// A block address that stands for a hole.
pub(super) const NULL_BLOCK: u32 = u32::MAX;

pub(super) const DIRENT_SIZE: usize = 12;
pub(super) const NAME_MAX: usize = 255;
/// The page a kernel reads a symlink into also holds a terminating zero.
pub(super) const SYMLINK_MAX: usize = 4095;

pub(super) const XATTR_HEADER_SIZE: u64 = 12;
pub(super) const XATTR_ENTRY_SIZE: u64 = 4;
/// `i_xattr_icount` is 16 bits: one for the header, the others count 4 bytes each.
pub(super) const XATTR_AREA_MAX: u64 = XATTR_HEADER_SIZE + 4 * (u16::MAX as u64 - 1);

pub(super) const S_IFMT: u16 = 0o170_000;
pub(super) const S_IFIFO: u16 = 0o010_000;
pub(super) const S_IFCHR: u16 = 0o020_000;
pub(super) const S_IFDIR: u16 = 0o040_000;
pub(super) const S_IFBLK: u16 = 0o060_000;
pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFLNK: u16 = 0o120_000;
pub(super) const S_IFSOCK: u16 = 0o140_000;

/// The superblock's fields that vary.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) xattr_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) incompat: u32,
    pub(super) devices: u16,
    pub(super) device_slot: u16,
}

impl Superblock {
    /// The record, with a checksum of zero.
    pub(super) fn encode(&self) -> [u8; SUPER_SIZE] {
        let mut out = [0; SUPER_SIZE];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in out.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        put(44, &self.xattr_block.to_le_bytes());
        put(48, &self.uuid);
        put(80, &self.incompat.to_le_bytes());
        put(86, &self.devices.to_le_bytes());
        put(88, &self.device_slot.to_le_bytes());
        out
    }
}

/// An extended inode without what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeRecord {
    /// One of the `LAYOUT_` values.
    pub(super) layout: u16,
    /// The number for `i_xattr_icount`.
    pub(super) xattr_count: u16,
    /// With the file type.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// Block address, device number or chunk format, as the type and the layout say.
    pub(super) union: u32,
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
    pub(super) nlink: u32,
}

impl InodeRecord {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(FORMAT_EXTENDED | (self.layout << 1)).to_le_bytes());
        out.extend_from_slice(&self.xattr_count.to_le_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.union.to_le_bytes());
        out.extend_from_slice(&self.serial.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        // The kernel reads these 64 bits back as signed seconds.
        out.extend_from_slice(&self.mtime.to_le_bytes());
        out.extend_from_slice(&self.mtime_nsec.to_le_bytes());
        out.extend_from_slice(&self.nlink.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
    }
}

/// Linux's 32-bit form of a device number: 12 bits of major, 20 of minor. `None` where one does not fit.
pub(super) fn encode_device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The inverse of [`encode_device_number`]: major and minor.
pub(super) fn decode_device_number(number: u32) -> (u32, u32) {
    (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xfff00),
    )
}

/// CRC-32C as the kernel keeps it: starts from all ones, not inverted at the end.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        let at = ((crc ^ u32::from(*byte)) & 0xff) as usize;
        (crc >> 8) ^ CRC_TABLE.get(at).copied().unwrap_or_default()
    })
}

const CRC_TABLE: [u32; 256] = crc_table();

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

// These read zeros beyond the end; every caller has a slice that is long enough.

pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

pub(super) fn le_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|index| byte(bytes, at + index)))
}

pub(super) fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| byte(bytes, at + index)))
}

pub(super) fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| byte(bytes, at + index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn device_numbers_round_trip_at_their_bounds() {
        for (major, minor) in [
            (0, 0),
            (1, 3),
            (8, 255),
            (8, 256),
            (4095, 0xf_ffff),
            (259, 70_000),
        ] {
            let number = encode_device_number(major, minor).unwrap();
            assert_eq!(decode_device_number(number), (major, minor));
        }
        assert_eq!(encode_device_number(4096, 0), None);
        assert_eq!(encode_device_number(0, 1 << 20), None);
        assert_eq!(encode_device_number(1, 3), Some(0x103));
    }

    #[test]
    fn records_have_their_size() {
        let mut out = Vec::new();
        InodeRecord {
            layout: LAYOUT_CHUNKED,
            xattr_count: 0,
            mode: S_IFREG,
            size: 0,
            union: 0,
            serial: 1,
            uid: 0,
            gid: 0,
            mtime: -1,
            mtime_nsec: 5,
            nlink: 1,
        }
        .encode(&mut out);
        assert_eq!(out.len() as u64, INODE_EXTENDED_SIZE);
        assert_eq!(out[0], 9);
        assert_eq!(out[32..40], [0xff; 8]);
    }
}

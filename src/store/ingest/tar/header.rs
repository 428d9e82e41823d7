//! Fields of the 512-byte tar header, in all its dialects.

use std::ops::Range;

use super::super::fault::Fault;

/// Unit of a tar.
pub(crate) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;
/// Old GNU sparse: four regions in the header, a flag, the real size.
const GNU_SPARSE: Range<usize> = 386..482;
const GNU_EXTENDED: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;
/// Old GNU sparse: 21 regions in each further block, a flag.
const MORE_SPARSE: Range<usize> = 0..504;
const MORE_EXTENDED: usize = 504;

/// Which dialect a header is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Gnu,
}

/// A header as written.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) dialect: Dialect,
    pub(super) typeflag: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) major: i64,
    pub(super) minor: i64,
}

impl Header {
    /// Parses a header whose block is not all zero.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, String> {
        if !checksum_matches(block) {
            return Err(
                "a tar header has a wrong checksum: this is no tar, or it is damaged".to_owned(),
            );
        }
        let dialect = match &block[MAGIC] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        };
        let mut name = text(&block[NAME]).to_vec();
        if dialect == Dialect::Ustar {
            let star = &block[STAR_TRAILER] == b"tar\0";
            let prefix = text(&block[if star { STAR_PREFIX } else { PREFIX }]);
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        let devices = dialect != Dialect::V7;
        Ok(Header {
            dialect,
            typeflag: block[TYPE],
            link: text(&block[LINK]).to_vec(),
            mode: number("mode", &block[MODE])?,
            uid: number("uid", &block[UID])?,
            gid: number("gid", &block[GID])?,
            size: number("size", &block[SIZE])?,
            mtime: number("mtime", &block[MTIME])?,
            major: if devices {
                number("device", &block[MAJOR])?
            } else {
                0
            },
            minor: if devices {
                number("device", &block[MINOR])?
            } else {
                0
            },
            name,
        })
    }
}

/// Regions of an old GNU sparse header or of a block that extends it, and whether another block follows.
pub(super) fn sparse_regions(
    block: &[u8; BLOCK],
    extension: bool,
    regions: &mut Vec<(u64, u64)>,
) -> Result<bool, String> {
    let (range, flag) = if extension {
        (MORE_SPARSE, MORE_EXTENDED)
    } else {
        (GNU_SPARSE, GNU_EXTENDED)
    };
    for slot in block[range].chunks_exact(24) {
        let (offset, len) = slot.split_at(12);
        if offset.first() == Some(&0) && len.first() == Some(&0) {
            break;
        }
        regions.push((
            unsigned("sparse offset", offset)?,
            unsigned("sparse length", len)?,
        ));
    }
    Ok(block[flag] != 0)
}

/// Size of an old GNU sparse file with its holes.
pub(super) fn sparse_real_size(block: &[u8; BLOCK]) -> Result<u64, String> {
    unsigned("sparse size", &block[GNU_REAL_SIZE])
}

/// A size that fits.
pub(super) fn to_size(what: &str, value: i64) -> Result<u64, String> {
    u64::try_from(value).map_err(|_| format!("{what} {value} is negative"))
}

/// An owner: 32 bits. Small negative numbers are what some systems write for their last ids.
pub(super) fn to_id(what: &str, value: i64) -> Result<u32, String> {
    u32::try_from(value)
        .or_else(|_| i32::try_from(value).map(i32::cast_unsigned))
        .map_err(|_| format!("{what} {value} does not fit in 32 bits"))
}

/// Device numbers as Linux encodes them: 12 and 20 bits.
pub(super) fn to_device(major: i64, minor: i64) -> Result<(u32, u32), String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
        _ => Err(format!("device {major}:{minor} cannot exist")),
    }
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or(field)
}

fn unsigned(what: &'static str, field: &[u8]) -> Result<u64, String> {
    to_size(what, number(what, field)?)
}

/// Octal digits between spaces and NULs, or base 256 when the first bit is set.
fn number(what: &'static str, field: &[u8]) -> Result<i64, String> {
    let Some((&first, rest)) = field.split_first() else {
        return Ok(0);
    };
    if first & 0x80 != 0 {
        // Two's complement, whose sign is the second bit.
        let negative = first & 0x40 != 0;
        let top = if negative { first | 0x80 } else { first & 0x7f };
        let mut value = if negative { -1_i128 } else { 0 };
        for &byte in [top].iter().chain(rest) {
            value = value << 8 | i128::from(byte);
            // 12 bytes fit i128; what the field starts with is only sign.
        }
        return i64::try_from(value).map_err(|_| format!("{what} does not fit in 64 bits"));
    }
    let start = field.iter().position(|&b| b != b' ' && b != 0);
    let digits = start.and_then(|at| field.get(at..)).unwrap_or_default();
    let end = digits
        .iter()
        .position(|&b| b == 0 || b == b' ')
        .unwrap_or(digits.len());
    let (digits, after) = digits.split_at(end);
    if after.iter().any(|&b| b != 0 && b != b' ') && after.first() == Some(&b' ') {
        return Err(format!("{what} is not a number"));
    }
    digits.iter().try_fold(0_i64, |value, &b| match b {
        // A field has at most 12 digits: 36 bits.
        b'0'..=b'7' => Ok(value << 3 | i64::from(b - b'0')),
        _ => Err(format!("{what} is not a number")),
    })
}

/// The sum of all bytes with the field itself as spaces; some writers summed signed bytes.
fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let Ok(stated) = number("checksum", &block[CHECKSUM]) else {
        return false;
    };
    let (mut plain, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
        plain += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stated == plain || stated == signed
}

impl From<String> for Fault {
    fn from(cause: String) -> Self {
        Fault::Bad(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_both_forms() {
        let cases: &[(&[u8], Result<i64, ()>)] = &[
            (b"0000644\0", Ok(0o644)),
            (b"   644 \0", Ok(0o644)),
            (b"644     ", Ok(0o644)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"777777777777", Ok((1 << 36) - 1)),
            (b"0000008\0", Err(())),
            (b"-000001\0", Err(())),
            (b"12 34   ", Err(())),
            (b"\x80\0\0\0\0\0\x01\0", Ok(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Err(())),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", Err(())),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Ok(i64::MIN)),
            (b"\xff\xff\xff\xfe\x80\0\0\0\0\0\0\0", Err(())),
        ];
        for (field, want) in cases {
            assert_eq!(number("x", field).map_err(drop), *want, "{field:?}");
        }
    }

    #[test]
    fn ids_take_32_bits() {
        assert_eq!(to_id("uid", 4_294_967_294), Ok(4_294_967_294));
        assert_eq!(to_id("uid", -2), Ok(4_294_967_294));
        assert!(to_id("uid", 1 << 32).is_err());
        assert!(to_id("uid", -(1 << 32)).is_err());
    }

    #[test]
    fn devices_take_what_linux_has() {
        assert_eq!(to_device(4095, 1_048_575), Ok((4095, 1_048_575)));
        assert!(to_device(4096, 0).is_err());
        assert!(to_device(1, -1).is_err());
    }
}

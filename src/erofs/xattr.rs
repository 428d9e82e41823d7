//! Extended attributes: name prefixes, entries, and which of them are worth sharing.

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::ondisk::{XATTR_AREA_MAX, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE};

/// Extended attributes of one inode: full names to values.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Prefix and its index on disk. The two ACL names are whole names.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];
const ACL_INDEXES: std::ops::RangeInclusive<u8> = 2..=3;

/// The shared attributes of an inode are counted in one byte.
const SHARED_MAX: usize = u8::MAX as usize;

/// Prefix index and the rest of the name; `None` for a name EROFS cannot keep.
pub(super) fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        let fits = if ACL_INDEXES.contains(index) {
            rest.is_empty()
        } else {
            !rest.is_empty() && rest.len() <= u8::MAX.into() && !rest.contains(&0)
        };
        fits.then_some((*index, rest))
    })
}

/// The full name behind a prefix index; `None` for an index this writer never uses.
pub(super) fn join(index: u8, rest: &[u8]) -> Option<Box<[u8]>> {
    let (_, prefix) = PREFIXES.iter().find(|(known, _)| *known == index)?;
    Some([prefix, rest].concat().into())
}

/// Whether EROFS can keep an attribute of this name and value length: names under `user.`, `trusted.` and `security.` with
/// up to 255 more bytes, and the two POSIX ACL names; values of up to 65535 bytes.
#[must_use]
pub fn is_storable(name: &[u8], value_len: usize) -> bool {
    split(name).is_some() && value_len <= u16::MAX.into()
}

/// Bytes of an entry, which starts and ends on a multiple of 4.
fn entry_size(rest: &[u8], value: &[u8]) -> u64 {
    (XATTR_ENTRY_SIZE + rest.len() as u64 + value.len() as u64).next_multiple_of(4)
}

/// Appends an entry, padded to a multiple of 4 bytes (`out` must be at one).
fn encode_entry(index: u8, rest: &[u8], value: &[u8], out: &mut Vec<u8>) {
    // Both lengths were checked by `Shared::area_size`, which every written inode has passed.
    out.push(rest.len() as u8);
    out.push(index);
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Why an inode's attributes cannot be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unstorable {
    /// Unknown prefix or over-long name.
    Name(Box<[u8]>),
    /// More than 65535 bytes in one value.
    Value(Box<[u8]>),
    /// All together pass the area of an inode.
    Total,
}

/// Name and value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// Attributes that several inodes have in common, kept once.
#[derive(Default)]
pub(super) struct Shared<'a> {
    /// Number of inodes, then the place in the shared area in units of 4 bytes.
    places: HashMap<Pair<'a>, (u32, Option<u32>)>,
    /// In the order of their places.
    order: Vec<Pair<'a>>,
    size: u64,
}

impl<'a> Shared<'a> {
    /// Counts the attributes of one inode.
    pub(super) fn count(&mut self, xattrs: &'a Xattrs) {
        for (name, value) in xattrs {
            let uses = &mut self
                .places
                .entry((name.as_ref(), value.as_ref()))
                .or_default()
                .0;
            *uses = uses.saturating_add(1);
        }
    }

    /// Gives each attribute of this inode that has several users its place. Only after all inodes are counted, and in an
    /// order that depends on the tree alone.
    pub(super) fn assign(&mut self, xattrs: &'a Xattrs) {
        for (name, value) in xattrs {
            let key = (name.as_ref(), value.as_ref());
            let Some((2.., place @ None)) = self.places.get_mut(&key) else {
                continue;
            };
            let Some((_, rest)) = split(name) else {
                continue;
            };
            // An area too large for 32-bit places just takes no more.
            if let Ok(at) = u32::try_from(self.size / 4) {
                *place = Some(at);
                self.order.push(key);
                self.size += entry_size(rest, value);
            }
        }
    }

    /// Bytes of the shared area.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The entries of the shared area one by one, each encoded.
    pub(super) fn encode(&self) -> impl Iterator<Item = Vec<u8>> {
        self.order.iter().filter_map(|(name, value)| {
            let (index, rest) = split(name)?;
            let mut out = Vec::new();
            encode_entry(index, rest, value, &mut out);
            Some(out)
        })
    }

    /// Which attributes of an inode are shared: their places; and the others.
    fn divide<'b>(&self, xattrs: &'b Xattrs) -> (Vec<u32>, Vec<Pair<'b>>) {
        let mut places = Vec::new();
        let mut own = Vec::new();
        for (name, value) in xattrs {
            let place = self
                .places
                .get(&(name.as_ref(), value.as_ref()))
                .and_then(|found| found.1);
            match place {
                Some(place) if places.len() < SHARED_MAX => places.push(place),
                _ => own.push((name.as_ref(), value.as_ref())),
            }
        }
        (places, own)
    }

    /// Bytes between the inode and its data.
    pub(super) fn area_size(&self, xattrs: &Xattrs) -> Result<u64, Unstorable> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        for (name, value) in xattrs {
            if split(name).is_none() {
                return Err(Unstorable::Name(name.clone()));
            }
            if value.len() > u16::MAX.into() {
                return Err(Unstorable::Value(name.clone()));
            }
        }
        let (places, own) = self.divide(xattrs);
        let size = own
            .iter()
            .filter_map(|(name, value)| Some(entry_size(split(name)?.1, value)))
            .fold(
                XATTR_HEADER_SIZE + 4 * places.len() as u64,
                u64::saturating_add,
            );
        if size > XATTR_AREA_MAX {
            Err(Unstorable::Total)
        } else {
            Ok(size)
        }
    }

    /// Appends the area of one inode.
    pub(super) fn encode_area(&self, xattrs: &Xattrs, out: &mut Vec<u8>) {
        if xattrs.is_empty() {
            return;
        }
        let (places, own) = self.divide(xattrs);
        out.extend_from_slice(&[0; 4]);
        out.push(places.len() as u8);
        out.extend_from_slice(&[0; 7]);
        for place in places {
            out.extend_from_slice(&place.to_le_bytes());
        }
        for (name, value) in own {
            if let Some((index, rest)) = split(name) {
                encode_entry(index, rest, value, out);
            }
        }
    }
}

/// The number for `i_xattr_icount` of an area of this many bytes.
pub(super) fn area_count(size: u64) -> u16 {
    match size.checked_sub(XATTR_HEADER_SIZE) {
        Some(rest) => u16::try_from(rest / 4 + 1).unwrap_or(u16::MAX),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_by_prefix() {
        let long = [b"user.".as_slice(), &[b'a'; 255]].concat();
        let too_long = [b"user.".as_slice(), &[b'a'; 256]].concat();
        type Split<'a> = Option<(u8, &'a [u8])>;
        let table: [(&[u8], Split<'_>); 9] = [
            (b"user.a", Some((1, b"a"))),
            (b"system.posix_acl_access", Some((2, b""))),
            (b"system.posix_acl_default", Some((3, b""))),
            (b"trusted.overlay.opaque", Some((4, b"overlay.opaque"))),
            (b"security.capability", Some((6, b"capability"))),
            (b"user.", None),
            (b"system.posix_acl_accessory", None),
            (b"com.example", None),
            (&too_long, None),
        ];
        for (name, expected) in table {
            assert_eq!(split(name), expected);
            assert_eq!(is_storable(name, 65_535), expected.is_some());
            assert!(!is_storable(name, 65_536));
            if let Some((index, rest)) = expected {
                assert_eq!(join(index, rest).as_deref(), Some(name));
            }
        }
        assert!(is_storable(&long, 0));
        assert_eq!(join(5, b"x"), None);
    }

    #[test]
    fn only_repeated_pairs_are_shared() {
        let one: Xattrs = [
            (
                Box::from(b"user.a".as_slice()),
                Box::from(b"same".as_slice()),
            ),
            (Box::from(b"user.b".as_slice()), Box::from(b"1".as_slice())),
        ]
        .into();
        let two: Xattrs = [
            (
                Box::from(b"user.a".as_slice()),
                Box::from(b"same".as_slice()),
            ),
            (Box::from(b"user.b".as_slice()), Box::from(b"2".as_slice())),
        ]
        .into();
        let mut shared = Shared::default();
        shared.count(&one);
        shared.count(&two);
        shared.assign(&one);
        shared.assign(&two);
        assert_eq!(shared.size(), 12);
        assert_eq!(
            shared.encode().collect::<Vec<_>>(),
            [b"\x01\x01\x04\0asame\0\0\0".to_vec()]
        );
        assert_eq!(shared.area_size(&one), Ok(12 + 4 + 8));
        let mut out = Vec::new();
        shared.encode_area(&one, &mut out);
        assert_eq!(out.len(), 24);
        assert_eq!(out[4], 1);
        assert_eq!(area_count(24), 4);
        assert_eq!(area_count(0), 0);
    }
}

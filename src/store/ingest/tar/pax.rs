//! PAX extended headers (POSIX.1-2001 pax, with the keys of GNU tar, star and libarchive).

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::entry::Xattrs;
use super::header::to_id;

/// A larger extended header is refused.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// What extended headers say about the entries after them. `None` leaves the word to the header itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: Sparse,
}

/// The three ways GNU tar writes sparse files in PAX.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    pub(super) version: (Option<u64>, Option<u64>),
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`.
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn, of versions 0.0 and 0.1.
    pub(super) map: Option<Vec<u64>>,
}

impl Pax {
    /// Takes in the records of one extended header; an empty value takes a key back.
    pub(super) fn apply(&mut self, mut records: &[u8]) -> Result<(), String> {
        while !records.is_empty() {
            let (key, value, rest) = split_record(records)
                .ok_or_else(|| "a PAX header is not a list of records".to_owned())?;
            self.set(key, value)
                .map_err(|cause| format!("PAX {}: {cause}", String::from_utf8_lossy(key)))?;
            records = rest;
        }
        Ok(())
    }

    /// Bytes that extended attributes take.
    pub(super) fn xattr_bytes(&self) -> u64 {
        self.xattrs
            .iter()
            .map(|(name, value)| name.len() as u64 + value.len() as u64)
            .sum()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| no_nul(value)).transpose()?,
            b"linkpath" => self.link = given.then(|| no_nul(value)).transpose()?,
            b"size" => self.size = given.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = given.then(|| id(value)).transpose()?,
            b"gid" => self.gid = given.then(|| id(value)).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            b"GNU.sparse.major" => {
                self.sparse.version.0 = given.then(|| decimal(value)).transpose()?;
            }
            b"GNU.sparse.minor" => {
                self.sparse.version.1 = given.then(|| decimal(value)).transpose()?;
            }
            b"GNU.sparse.name" => self.sparse.name = given.then(|| no_nul(value)).transpose()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.size = given.then(|| decimal(value)).transpose()?;
            }
            b"GNU.sparse.map" => {
                self.sparse.map = given
                    .then(|| value.split(|&b| b == b',').map(decimal).collect())
                    .transpose()?;
            }
            b"GNU.sparse.offset" => {
                let map = self.sparse.map.get_or_insert_default();
                if !map.len().is_multiple_of(2) {
                    return Err("two offsets without a length between them".to_owned());
                }
                map.push(decimal(value)?);
            }
            b"GNU.sparse.numbytes" => {
                let map = self.sparse.map.get_or_insert_default();
                if map.len().is_multiple_of(2) {
                    return Err("a length without an offset before it".to_owned());
                }
                map.push(decimal(value)?);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.into(), value.into());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = url_decoded(name).ok_or("the name is not URL-encoded")?;
                    let value = STANDARD
                        .decode(value)
                        .or_else(|_| STANDARD_NO_PAD.decode(value))
                        .map_err(|_| "the value is not base64")?;
                    // Writers that give both forms mean the same; the plain one is exact.
                    self.xattrs.entry(name.into()).or_insert(value.into());
                }
            }
        }
        Ok(())
    }
}

/// `LEN KEY=VALUE\n`, where LEN counts itself and the newline.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let (len, _) = bytes.split_at(space);
    let len = usize::try_from(decimal(len).ok()?).ok()?;
    if len > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(len);
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let (key, value) = record.split_at(equals);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value.get(1..)?, rest))
}

fn no_nul(value: &[u8]) -> Result<Vec<u8>, String> {
    if value.contains(&0) {
        return Err("the value has a NUL in it".to_owned());
    }
    Ok(value.to_vec())
}

/// Digits only, 64 bits.
pub(super) fn decimal(value: &[u8]) -> Result<u64, String> {
    let not = || "not a decimal number of 64 bits".to_owned();
    if value.is_empty() {
        return Err(not());
    }
    value.iter().try_fold(0_u64, |sum, &b| match b {
        b'0'..=b'9' => sum
            .checked_mul(10)
            .and_then(|sum| sum.checked_add(u64::from(b - b'0')))
            .ok_or_else(not),
        b'-' => Err("a negative number".to_owned()),
        _ => Err(not()),
    })
}

fn signed(value: &[u8]) -> Result<i64, String> {
    let range = |_| "out of range".to_owned();
    match value.strip_prefix(b"-") {
        Some(digits) => i64::try_from(-i128::from(decimal(digits)?)).map_err(range),
        None => i64::try_from(decimal(value)?).map_err(range),
    }
}

fn id(value: &[u8]) -> Result<u32, String> {
    to_id("the id", signed(value)?)
}

/// Seconds with an optional fraction; nanoseconds are the rest that counts.
fn time(value: &[u8]) -> Result<(i64, u32), String> {
    let (whole, fraction) = match value.iter().position(|&b| b == b'.') {
        Some(at) => {
            let (whole, fraction) = value.split_at(at);
            (whole, fraction.get(1..).unwrap_or_default())
        }
        None => (value, &[][..]),
    };
    let negative = whole.starts_with(b"-");
    let seconds = signed(whole)?;
    let mut nanos = 0_u32;
    for at in 0..9 {
        nanos = nanos * 10
            + match fraction.get(at) {
                Some(&b @ b'0'..=b'9') => u32::from(b - b'0'),
                None => 0,
                Some(_) => return Err("not a time".to_owned()),
            };
    }
    if fraction.iter().any(|b| !b.is_ascii_digit()) {
        return Err("not a time".to_owned());
    }
    if negative && nanos > 0 {
        let seconds = seconds.checked_sub(1).ok_or("out of range")?;
        return Ok((seconds, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

fn url_decoded(name: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [*bytes.next()?, *bytes.next()?];
        decoded.extend(hex::decode(digits).ok()?);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len.to_string().len() + body != len {
            len += 1;
        }
        let mut record = format!("{len} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    #[test]
    fn times_are_exact() {
        let cases: &[(&str, Option<(i64, u32)>)] = &[
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-9223372036854775808", Some((i64::MIN, 0))),
            ("-9223372036854775808.1", None),
            ("9223372036854775808", None),
            ("1.x", None),
            ("", None),
            ("1e3", None),
        ];
        for (text, want) in cases {
            assert_eq!(time(text.as_bytes()).ok(), *want, "{text}");
        }
    }

    #[test]
    fn records_are_applied_in_order_and_taken_back() {
        let mut pax = Pax::default();
        let records = [
            record("path", b"a"),
            record("path", b"b"),
            record("uid", b"4294967294"),
            record("comment", b"no key of ours"),
            record("VENDOR.weird.key", &[0, 255]),
            record("SCHILY.xattr.user.x", b"a=b\n"),
            record("LIBARCHIVE.xattr.user.y%3D", b"aGk"),
            record("gid", b"7"),
            record("gid", b""),
        ]
        .concat();
        pax.apply(&records).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.uid, Some(4_294_967_294));
        assert_eq!(pax.gid, None);
        assert_eq!(&*pax.xattrs[&b"user.x"[..]], b"a=b\n");
        assert_eq!(&*pax.xattrs[&b"user.y="[..]], b"hi");
    }

    #[test]
    fn bad_records_are_refused() {
        let bad: &[&[u8]] = &[
            b"6 a=b",
            b"7 a=b\n",
            b"5 ab\n",
            b"99999999999999999999 a=b\n",
            b"5 =b\n",
            b"-5 a=b\n",
            b"0 a=b\n",
            b"\0\0\0",
        ];
        for records in bad {
            assert!(Pax::default().apply(records).is_err(), "{records:?}");
        }
        let size = Pax::default().apply(&record("size", b"-1")).unwrap_err();
        assert_eq!(size, "PAX size: a negative number");
        assert!(
            Pax::default()
                .apply(&record("size", b"18446744073709551616"))
                .is_err()
        );
        assert!(Pax::default().apply(&record("path", b"a\0b")).is_err());
        assert!(
            Pax::default()
                .apply(&record("GNU.sparse.numbytes", b"1"))
                .is_err()
        );
    }
}

//! Why the tar of a layer is refused, before the layer's name is added.

use std::fmt::Write;

use crate::image::Digest;
use crate::store::Error;

/// What stops an ingest. Knows the entry, not the layer: [`Fault::of`] adds that.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The tar is not one, or says something that cannot be.
    Bad(String),
    /// More of something than the limits allow.
    Limit {
        /// What there was too much of.
        what: String,
        /// Allowed.
        limit: u64,
        /// Configuration key.
        key: &'static str,
    },
    /// The store could not take it.
    Store(Error),
}

impl Fault {
    /// The error of the layer `blob`.
    pub(crate) fn of(self, blob: &Digest) -> Error {
        match self {
            Fault::Bad(cause) => Error::BadLayer {
                blob: blob.clone(),
                cause,
            },
            Fault::Limit { what, limit, key } => Error::Limit {
                blob: blob.clone(),
                what,
                limit,
                key,
            },
            Fault::Store(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Store(error)
    }
}

/// Bytes of a name that an error message repeats.
const SHOWN: usize = 160;

/// A name of the tar for an error message: quoted, escaped, shortened.
pub(crate) fn show(name: &[u8]) -> String {
    let mut shown = String::from("\"");
    let head = name.get(..SHOWN).unwrap_or(name);
    for chunk in head.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => shown.extend(['\\', c]),
                c if c.is_control() => shown.extend(c.escape_default()),
                c => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown.push('"');
    if name.len() > SHOWN {
        let _ = write!(shown, "… ({} bytes)", name.len());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_safely() {
        assert_eq!(show(b"a/b"), "\"a/b\"");
        assert_eq!(show(b"a\n\"\xff"), "\"a\\n\\\"\\xff\"");
        let long = show(&[b'x'; 5000]);
        assert!(long.ends_with("(5000 bytes)") && long.len() < 200, "{long}");
    }
}

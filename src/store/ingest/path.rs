//! Names of tar entries as paths below the root of a layer.

use super::fault::{Fault, show};

/// Bytes of one component, as Linux and EROFS have it.
pub(crate) const MAX_COMPONENT: usize = 255;

/// A cleaned path: components without `.`, `..` and empty ones. The root has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CleanPath<'a>(pub(crate) Vec<&'a [u8]>);

impl<'a> CleanPath<'a> {
    /// Cleans a name lexically. Absolute names are relative to the root. Refuses what leaves the root and what no
    /// file can be called.
    pub(crate) fn new(name: &'a [u8], max_path: usize) -> Result<Self, Fault> {
        if name.is_empty() {
            return Err(Fault::Bad("an entry without a name".to_owned()));
        }
        if name.contains(&0) {
            return Err(Fault::Bad(format!("{}: a NUL in the name", show(name))));
        }
        if name.len() > max_path {
            return Err(Fault::Limit {
                what: format!("{}: a name of {} bytes", show(name), name.len()),
                limit: max_path as u64,
                key: "max_path",
            });
        }
        let mut parts = Vec::new();
        for part in name.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    if parts.pop().is_none() {
                        return Err(Fault::Bad(format!(
                            "{}: the name leaves the layer's root",
                            show(name)
                        )));
                    }
                }
                part if part.len() > MAX_COMPONENT => {
                    return Err(Fault::Bad(format!(
                        "{}: a component of {} bytes; at most {MAX_COMPONENT} are possible",
                        show(name),
                        part.len()
                    )));
                }
                part => parts.push(part),
            }
        }
        Ok(CleanPath(parts))
    }

    /// Parent and last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[&'a [u8]], &'a [u8])> {
        let (last, parent) = self.0.split_last()?;
        Some((parent, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned() {
        type Parts = &'static [&'static [u8]];
        let cases: &[(&[u8], Option<Parts>)] = &[
            (b"a/b", Some(&[b"a", b"b"])),
            (b"./a//b/./", Some(&[b"a", b"b"])),
            (b"/etc/passwd", Some(&[b"etc", b"passwd"])),
            (b"a/../b", Some(&[b"b"])),
            (b"./", Some(&[])),
            (b"/", Some(&[])),
            (b"a/..", Some(&[])),
            (b"...", Some(&[b"..."])),
            (b"..", None),
            (b"../a", None),
            (b"a/../../b", None),
            (b"/..", None),
            (b"", None),
            (b"a\0b", None),
        ];
        for (name, want) in cases {
            let got = CleanPath::new(name, 4095).ok().map(|path| path.0);
            assert_eq!(got.as_deref(), *want, "{name:?}");
        }
    }

    #[test]
    fn long_names_are_refused() {
        assert!(CleanPath::new(&[b'x'; 255], 4095).is_ok());
        assert!(matches!(
            CleanPath::new(&[b'x'; 256], 4095),
            Err(Fault::Bad(_))
        ));
        let name = b"x/".repeat(2500);
        assert!(matches!(
            CleanPath::new(&name, 4095),
            Err(Fault::Limit {
                key: "max_path",
                limit: 4095,
                ..
            })
        ));
    }
}

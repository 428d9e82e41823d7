//! Where in a TOML text its tables and keys stand. Pure.
//!
//! Expects a text that a parser has taken; of any other it says that it does not understand it, or something wrong,
//! so whoever edits by this compares what a parser makes of the text before and after.

use std::ops::Range;

use toml::{Table, Value};

/// What an expression is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `[a.b]`
    Table,
    /// `[[a.b]]`
    Array,
    /// `a.b = …`
    Pair,
}

/// A header, or a key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) kind: Kind,
    /// From the root: of a pair with those of the header above it.
    pub(super) path: Vec<String>,
    /// Its lines, with the end of the last.
    pub(super) lines: Range<usize>,
    /// The key as it is written, without its value; of a header what is between the brackets.
    pub(super) key: String,
    /// What stands before it on its first line.
    pub(super) indent: String,
}

/// All of a text, in its order; `None` where it is not understood.
pub(super) fn expressions(text: &str) -> Option<Vec<Expression>> {
    let mut found = Vec::new();
    let mut header: Vec<String> = Vec::new();
    let mut scan = Scan { text, at: 0 };
    if text.starts_with('\u{feff}') {
        scan.at = '\u{feff}'.len_utf8();
    }
    while scan.at < text.len() {
        let start = scan.at;
        scan.blanks();
        let indent = text.get(start..scan.at)?.to_owned();
        let (kind, key) = match scan.peek() {
            None => break,
            Some(b'\n' | b'\r' | b'#') => {
                scan.rest_of_line();
                continue;
            }
            Some(b'[') => {
                scan.step();
                let kind = match scan.peek() {
                    Some(b'[') => {
                        scan.step();
                        Kind::Array
                    }
                    _ => Kind::Table,
                };
                (kind, scan.until(b']')?)
            }
            Some(_) => {
                let key = scan.until(b'=')?;
                scan.blanks();
                scan.value()?;
                (Kind::Pair, key)
            }
        };
        scan.rest_of_line();
        let key = key.trim().to_owned();
        let own = keys(&key)?;
        let path = match kind {
            Kind::Table | Kind::Array => {
                header = own;
                header.clone()
            }
            Kind::Pair => header.iter().cloned().chain(own).collect(),
        };
        found.push(Expression {
            kind,
            path,
            lines: start..scan.at,
            key,
            indent,
        });
    }
    Some(found)
}

/// The parts of a dotted key, by the parser itself.
fn keys(written: &str) -> Option<Vec<String>> {
    let mut table: Table = format!("{written} = 0").parse().ok()?;
    let mut keys = Vec::new();
    loop {
        let (key, value) = table.into_iter().next()?;
        keys.push(key);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(keys),
        }
    }
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn step(&mut self) {
        self.at = self.at.saturating_add(1).min(self.text.len());
    }

    fn starts_with(&self, what: &str) -> bool {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        rest.starts_with(what.as_bytes())
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\t') = self.peek() {
            self.step();
        }
    }

    /// To the beginning of the next line.
    fn rest_of_line(&mut self) {
        while let Some(byte) = self.peek() {
            self.step();
            if byte == b'\n' {
                return;
            }
        }
    }

    /// What stands before the next such byte outside of quotes; goes beyond it.
    fn until(&mut self, end: u8) -> Option<String> {
        let start = self.at;
        loop {
            match self.peek()? {
                byte if byte == end => {
                    let found = self.text.get(start..self.at)?.to_owned();
                    self.step();
                    return Some(found);
                }
                b'"' | b'\'' => self.string()?,
                b'\n' => return None,
                _ => self.step(),
            }
        }
    }

    fn value(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek() {
                Some(b'"' | b'\'') => self.string()?,
                Some(b'[' | b'{') => {
                    depth = depth.saturating_add(1);
                    self.step();
                }
                Some(b']' | b'}') => {
                    depth = depth.checked_sub(1)?;
                    self.step();
                }
                Some(b'#') if depth > 0 => self.rest_of_line(),
                None | Some(b'\n' | b'#') if depth == 0 => return Some(()),
                None => return None,
                Some(_) => self.step(),
            }
        }
    }

    fn string(&mut self) -> Option<()> {
        for quotes in ["\"\"\"", "'''"] {
            if self.starts_with(quotes) {
                let escapes = quotes.starts_with('"');
                self.at = self.at.checked_add(quotes.len())?;
                while !self.starts_with(quotes) {
                    self.character(escapes)?;
                }
                self.at = self.at.checked_add(quotes.len())?;
                // Up to two quotes may stand before those that end it.
                let quote = quotes.as_bytes().first().copied();
                for _ in 0..2 {
                    if self.peek() == quote {
                        self.step();
                    }
                }
                return Some(());
            }
        }
        let quote = self.peek()?;
        self.step();
        while self.peek()? != quote {
            if self.peek()? == b'\n' {
                return None;
            }
            self.character(quote == b'"')?;
        }
        self.step();
        Some(())
    }

    fn character(&mut self, escapes: bool) -> Option<()> {
        if escapes && self.peek()? == b'\\' {
            self.step();
        }
        self.peek()?;
        self.step();
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<(Kind, String, String)> {
        let found = expressions(text).unwrap();
        let mut end = 0;
        let shown = found.iter().map(|one| {
            assert!(one.lines.start >= end, "{text}");
            end = one.lines.end;
            let lines = text.get(one.lines.clone()).unwrap().to_owned();
            (one.kind, one.path.join("/"), lines)
        });
        shown.collect()
    }

    #[test]
    fn headers_and_keys_with_their_lines() {
        let text = concat!(
            "# [no]\n",
            "version = 3 # [no]\n",
            "\n",
            "  [plugins.'io.containerd.cri.v1.images' . registry] # c\n",
            "\tconfig_path = \"a]#\\\"b\"\n",
            "a . \"b.c\" = '''x\n",
            "[no]\n",
            "''''' # five\n",
            "list = [ # ]\n",
            "  'x', \"\"\"y\n",
            "z\\\"\"\"\"\", { q = ']' },\n",
            "]\n",
            "[[x.\"y=\"]]\r\n",
            "n=1",
        );
        let registry = "plugins/io.containerd.cri.v1.images/registry";
        let expected = [
            (Kind::Pair, "version".to_owned(), "version = 3 # [no]\n"),
            (
                Kind::Table,
                registry.to_owned(),
                "  [plugins.'io.containerd.cri.v1.images' . registry] # c\n",
            ),
            (
                Kind::Pair,
                format!("{registry}/config_path"),
                "\tconfig_path = \"a]#\\\"b\"\n",
            ),
            (
                Kind::Pair,
                format!("{registry}/a/b.c"),
                "a . \"b.c\" = '''x\n[no]\n''''' # five\n",
            ),
            (
                Kind::Pair,
                format!("{registry}/list"),
                "list = [ # ]\n  'x', \"\"\"y\nz\\\"\"\"\"\", { q = ']' },\n]\n",
            ),
            (Kind::Array, "x/y=".to_owned(), "[[x.\"y=\"]]\r\n"),
            (Kind::Pair, "x/y=/n".to_owned(), "n=1"),
        ];
        let expected = expected.map(|(kind, path, lines)| (kind, path, lines.to_owned()));
        assert_eq!(shown(text), expected);
        text.parse::<Table>().unwrap();
    }

    #[test]
    fn what_is_no_toml_does_no_harm() {
        for text in [
            "[", "[[", "a", "a =", "a = [", "a = \"", "a = '''", "= 1", "a = ]", "[a\n]", "é = 1",
            "\\", "a = \"\\",
        ] {
            // Any answer will do.
            let _ = expressions(text);
        }
        assert_eq!(expressions(""), Some(Vec::new()));
    }

    proptest::proptest! {
        #[test]
        fn any_text_has_an_answer(text in "[\\[\\]{}a.='\"#\\\\\n é]{0,40}") {
            if let Some(found) = expressions(&text) {
                for one in found {
                    proptest::prop_assert!(text.get(one.lines).is_some());
                }
            }
        }
    }
}

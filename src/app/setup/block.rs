//! Marked blocks of lines within somebody else's text: how they are put in, and how they are taken out again so that
//! every byte is as before. Pure; knows nothing of what the lines mean.
//!
//! ```text
//! # BEGIN larder setup containerd
//! # Taken out again by: larder setup containerd --undo
//! # was: snapshotter = "overlayfs"
//! snapshotter = "larder"
//! # END larder setup containerd
//! ```

use std::ops::Range;

const BEGIN: &str = "# BEGIN larder setup containerd";
const END: &str = "# END larder setup containerd";
const HOW: &str = "# Taken out again by: larder setup containerd --undo";
/// Before each line that a block stands in place of.
const WAS: &str = "# was: ";
const NEW: &str = "new file";
const FOLDERS: &str = "new folders: ";

/// What was made for a block besides itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// The file.
    pub(super) file: bool,
    /// As many of the folders above it.
    pub(super) folders: usize,
}

/// A text without its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bare {
    pub(super) text: String,
    /// What goes with the blocks if nothing else is left.
    pub(super) made: Made,
}

/// A block that begins and does not end, or the other way round: the line, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) usize);

/// Lines in place of others, or between others.
#[derive(Clone, Debug)]
pub(super) struct Edit {
    /// Whole lines; empty where lines are put between others.
    pub(super) at: Range<usize>,
    /// Before each line.
    pub(super) indent: String,
    /// Without line ends.
    pub(super) lines: Vec<String>,
}

/// A text that is all block.
pub(super) fn whole(lines: &[String], made: Made) -> String {
    let mut text = rendered("", &[], lines, made);
    text.push('\n');
    text
}

/// Puts blocks into a text. Edits must not overlap.
pub(super) fn edited(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.at.start, edit.at.end));
    let mut out = String::new();
    let mut done = 0;
    for edit in edits {
        out.push_str(text.get(done..edit.at.start).unwrap_or_default());
        let old = text.get(edit.at.clone()).unwrap_or_default();
        let was: Vec<&str> = old.split_inclusive('\n').collect();
        let block = rendered(&edit.indent, &was, &edit.lines, Made::default());
        // Where the last line has no end, the block has none either, so that it can be told on the way back.
        let open = edit.at.end >= text.len() && !text.is_empty() && !text.ends_with('\n');
        if open && was.is_empty() {
            out.push('\n');
        }
        out.push_str(&block);
        if !open {
            out.push('\n');
        }
        done = edit.at.end;
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

fn rendered(indent: &str, was: &[&str], lines: &[String], made: Made) -> String {
    let mut begin = BEGIN.to_owned();
    if made.file {
        begin = format!("{begin} ({NEW})");
    }
    if made.file && made.folders > 0 {
        begin = format!("{BEGIN} ({NEW}, {FOLDERS}{})", made.folders);
    }
    let mut all = vec![begin, HOW.to_owned()];
    // A line is kept as it is, with its own indent and, from another system, its carriage return.
    let was = was
        .iter()
        .map(|line| line.strip_suffix('\n').unwrap_or(line));
    all.extend(was.map(|line| format!("{WAS}{line}")));
    all.extend(lines.iter().cloned());
    all.push(END.to_owned());
    let all: Vec<String> = all
        .into_iter()
        .map(|line| match line.is_empty() {
            true => line,
            false => format!("{indent}{line}"),
        })
        .collect();
    all.join("\n")
}

/// Takes all blocks out.
pub(super) fn bare(text: &str) -> Result<Bare, Broken> {
    let mut out = String::new();
    let mut made = Made::default();
    let mut began = None;
    let mut was = 0usize;
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let number = at.saturating_add(1);
        let trimmed = line.trim();
        match began {
            None if trimmed.starts_with(BEGIN) => {
                began = Some(number);
                was = 0;
                let told = told(trimmed);
                if told.file {
                    made = told;
                }
            }
            None if trimmed.starts_with(END) => return Err(Broken(number)),
            None => out.push_str(line),
            Some(_) if trimmed.starts_with(BEGIN) => return Err(Broken(number)),
            Some(_) if trimmed.starts_with(END) => {
                began = None;
                let open = !line.ends_with('\n');
                // Both ends were put there with the block.
                if open && out.ends_with('\n') {
                    out.pop();
                }
            }
            Some(_) => {
                if let Some(old) = line.trim_start().strip_prefix(WAS) {
                    out.push_str(old);
                    was = was.saturating_add(1);
                }
            }
        }
    }
    match began {
        Some(number) => Err(Broken(number)),
        None => Ok(Bare { text: out, made }),
    }
}

/// What the first line of a block says.
fn told(line: &str) -> Made {
    let count = line.split(FOLDERS).nth(1).and_then(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    Made {
        file: line.contains(NEW),
        folders: count.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(at: Range<usize>, line: &str) -> Edit {
        Edit {
            at,
            indent: "  ".to_owned(),
            lines: vec![line.to_owned()],
        }
    }

    #[test]
    fn what_was_put_in_comes_out_again() {
        for (text, at) in [
            ("", 0..0),
            ("a = 1\n", 0..0),
            ("a = 1\n", 6..6),
            ("a = 1\n", 0..6),
            ("a = 1", 5..5),
            ("a = 1", 0..5),
            ("a = 1\r\nb = 2\r\n", 0..7),
            ("a = 1\r\nb = 2", 7..12),
            ("a = [\n  1,\n]\nb = 2\n", 0..13),
            ("\n\n", 1..1),
            ("\n", 0..1),
            ("  a = 1", 0..7),
        ] {
            let with = edited(text, vec![edit(at.clone(), "x = 2")]);
            assert_ne!(with, text);
            assert!(with.contains("  x = 2"), "{with}");
            let out = bare(&with).unwrap();
            assert_eq!(
                (out.text.as_str(), out.made),
                (text, Made::default()),
                "{at:?}"
            );
        }
    }

    #[test]
    fn several_at_once_and_at_the_end() {
        for text in ["a = 1\nb = 2\nc = 3", "a = 1\nb = 2\nc = 3\n"] {
            let end = text.len();
            let edits = vec![
                edit(end..end, "last = 1"),
                edit(6..12, "b = 3"),
                edit(0..0, "first = 1"),
            ];
            let with = edited(text, edits);
            assert_eq!(bare(&with).unwrap().text, text, "{with}");
            assert_eq!(with.ends_with('\n'), text.ends_with('\n'));
        }
    }

    #[test]
    fn a_file_of_its_own_says_what_was_made() {
        for made in [
            Made {
                file: true,
                folders: 0,
            },
            Made {
                file: true,
                folders: 2,
            },
        ] {
            let text = whole(&["a = 1".to_owned()], made);
            assert_eq!(
                bare(&text).unwrap(),
                Bare {
                    text: String::new(),
                    made
                }
            );
        }
    }

    #[test]
    fn halves_are_refused() {
        for (text, line) in [
            ("a = 1\n# BEGIN larder setup containerd\n", 2),
            ("# END larder setup containerd\n", 1),
            (
                "# BEGIN larder setup containerd\n# BEGIN larder setup containerd\n# END larder setup containerd\n",
                2,
            ),
        ] {
            assert_eq!(bare(text), Err(Broken(line)), "{text}");
        }
    }
}

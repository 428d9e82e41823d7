//! What verbs print: tables for people, JSON and YAML for programs, and sizes, ages and names as people read them.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::failure::Failure;
use crate::image::Reference;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Yaml,
}

impl Format {
    /// Prints a value for programs; `false` where a table is wanted.
    pub(super) fn print(self, value: &impl Serialize) -> Result<bool, Failure> {
        let text = match self {
            Format::Table => return Ok(false),
            Format::Json => serde_json::to_string_pretty(value).map_err(Failure::new)?,
            Format::Yaml => serde_saphyr::to_string(value).map_err(Failure::new)?,
        };
        say(text.trim_end())?;
        Ok(true)
    }
}

/// One line, or several, to standard output.
pub(super) fn say(text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Text columns without borders, as docker and crictl print them. `numbers` are the columns that stand at the right.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    numbers: &[usize],
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| printable(&cell)));
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at + 1 == N { 0 } else { 3 }));
        if numbers.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Names and values below each other, values in one column. Beside names of seven letters an id fills 80 columns.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> = facts
        .iter()
        .map(|(name, value)| format!("{name:width$}  {}", printable(value)))
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// Text of an image's maker must not speak to the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Decimal units and three digits, as docker prints sizes: `4.26MB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        // What would be printed as 1000 is 1 of the next.
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

/// `part` of `whole` in percent, rounded; `None` of nothing.
pub(super) fn percent(part: u64, whole: u64) -> Option<u64> {
    let (part, whole) = (u128::from(part), u128::from(whole));
    (part * 100 + whole / 2)
        .checked_div(whole)
        .and_then(|percent| u64::try_from(percent).ok())
}

/// How long ago a time in RFC 3339 was, in docker's words.
pub(super) fn ago(created: &str, now: Timestamp) -> String {
    let Ok(then) = created.parse::<Timestamp>() else {
        return "N/A".to_owned();
    };
    let seconds = now.as_second().saturating_sub(then.as_second());
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        // Clocks differ; builds for reproduction are dated 1970 or 1980.
        () if seconds < 1 => "Less than a second ago".to_owned(),
        () if seconds == 1 => "1 second ago".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds ago"),
        () if minutes == 1 => "About a minute ago".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes ago"),
        () if hours == 1 => "About an hour ago".to_owned(),
        () if hours < 48 => format!("{hours} hours ago"),
        () if days < 14 => format!("{days} days ago"),
        () if days < 60 => format!("{} weeks ago", days / 7),
        () if days < 730 => format!("{} months ago", days / 30),
        () => format!("{} years ago", days / 365),
    }
}

/// The first digits of a layer's digest, as docker shows them.
pub(super) fn short(digest: &str) -> &str {
    digits(digest, 12)
}

/// The first digits of an image's id, as crictl shows them.
pub(super) fn short_id(id: &str) -> &str {
    digits(id, 13)
}

fn digits(digest: &str, most: usize) -> &str {
    let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
    digits.get(..most).unwrap_or(digits)
}

/// A name as people type it: without `docker.io/library/`.
pub(super) fn familiar(name: &str) -> String {
    name.parse::<Reference>()
        .map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// Repository and tag of a tagged name. A colon before the last slash is a port.
pub(super) fn split_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, ""),
    }
}

/// The text in at most `room` columns; of a longer one the end is shown, where names differ.
pub(super) fn end_of(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    let left_out = (length + 3).saturating_sub(room);
    format!("...{}", text.chars().skip(left_out).collect::<String>())
}

/// The text in lines of at most `width` columns, each with `indent` before it. A word that is longer has a line of its
/// own.
pub(super) fn wrapped(text: &str, indent: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines.join("\n")
}

/// Columns of the terminal that standard output is, if it is one.
pub(super) fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col.into()).filter(|columns| *columns > 0)
}

/// `1 layer`, `2 layers`.
pub(super) fn count(number: u64, one: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {one}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (4_260_000, "4.26MB"),
            (9_994_000, "9.99MB"),
            (9_996_000, "10.0MB"),
            (99_960_000, "100MB"),
            (999_499_999, "999MB"),
            (999_500_000, "1.00GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn percents() {
        assert_eq!(percent(1, 3), Some(33));
        assert_eq!(percent(0, 0), None);
        assert_eq!(percent(u64::MAX, u64::MAX), Some(100));
    }

    #[test]
    fn ages() {
        let now: Timestamp = "2026-06-15T12:00:00Z".parse().unwrap();
        for (created, text) in [
            ("2026-06-15T12:00:00Z", "Less than a second ago"),
            ("2027-01-01T00:00:00Z", "Less than a second ago"),
            ("2026-06-15T11:59:30Z", "30 seconds ago"),
            ("2026-06-15T11:58:31Z", "About a minute ago"),
            ("2026-06-15T11:15:00Z", "45 minutes ago"),
            ("2026-06-14T12:00:00Z", "24 hours ago"),
            ("2026-06-10T12:00:00Z", "5 days ago"),
            ("2026-05-15T12:00:00.5Z", "4 weeks ago"),
            ("2026-01-15T12:00:00+02:00", "5 months ago"),
            ("1970-01-01T00:00:00Z", "56 years ago"),
            ("", "N/A"),
            ("yesterday", "N/A"),
        ] {
            assert_eq!(ago(created, now), text, "{created}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(familiar("docker.io/library/busybox:1"), "busybox:1");
        assert_eq!(familiar("127.0.0.1:5000/app:1"), "127.0.0.1:5000/app:1");
        assert_eq!(familiar("NOT A NAME"), "NOT A NAME");
        assert_eq!(
            split_tag("127.0.0.1:5000/app:1"),
            ("127.0.0.1:5000/app", "1")
        );
        assert_eq!(split_tag("127.0.0.1:5000/app"), ("127.0.0.1:5000/app", ""));
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("sha256:é"), "é");
        assert_eq!(end_of("registry/app", 12), "registry/app");
        assert_eq!(end_of("registry/app", 9), "...ry/app");
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrapped("one two three", "  ", 9), "  one two\n  three");
        assert_eq!(wrapped("a verylongword b", "", 6), "a\nverylongword\nb");
        assert_eq!(wrapped("", "  ", 9), "");
    }

    #[test]
    fn tables_are_plain_text() {
        let rows = [
            ["busybox".to_owned(), "4.26MB".to_owned()],
            ["a\x1b[2Jb\n".to_owned(), "12B".to_owned()],
        ];
        assert_eq!(
            table(["NAME", "SIZE"], rows, &[1]),
            "NAME        SIZE\nbusybox   4.26MB\na\u{fffd}[2Jb\u{fffd}      12B"
        );
        assert_eq!(table(["NAME", "SIZE"], [], &[]), "NAME   SIZE");
        assert_eq!(
            facts(&[("IMAGES", "3".to_owned()), ("X", String::new())]),
            "IMAGES  3\nX"
        );
    }
}

//! Printing: tables that line up, JSON, YAML; figures as people read them.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use jiff::Timestamp;
use serde::Serialize;

use super::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// Prints a value as JSON or YAML; `false` means that a table is wanted.
pub(super) fn structured(format: Format, value: &impl Serialize) -> Result<bool, Failure> {
    let text = match format {
        Format::Table => return Ok(false),
        Format::Json => serde_json::to_string_pretty(value)
            .map_err(|error| Failure::failed(error.to_string()))?,
        Format::Yaml => serde_saphyr::to_string(value)
            .map_err(|error| Failure::failed(error.to_string()))?
            .trim_end()
            .to_owned(),
    };
    line(&text)?;
    Ok(true)
}

/// Prints a line on standard output.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(())
}

/// Says on standard error what went wrong.
pub(super) fn complain(text: &str) {
    let (red, plain) = if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        ("\x1b[31m", "\x1b[0m")
    } else {
        ("", "")
    };
    let _ = writeln!(io::stderr(), "{red}larder:{plain} {text}");
}

/// A table without lines, its columns three spaces apart. `right` names columns of numbers.
pub(super) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 3));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Bytes with three significant digits, in decimal units as docker and crictl have them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if value < 9.995 {
        format!("{value:.2}{unit}")
    } else if value < 99.95 {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}

/// How long ago, roughly: `3 days ago`.
pub(super) fn ago(created: &str, now: Timestamp) -> String {
    let Ok(then) = created.parse::<Timestamp>() else {
        return "N/A".to_owned();
    };
    let seconds = now.as_second().saturating_sub(then.as_second());
    if seconds < 0 {
        return "in the future".to_owned();
    }
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

/// `sha256:` and 64 digits as 13 digits, as crictl shows ids.
pub(super) fn short(id: &str) -> &str {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.get(..13).unwrap_or(hex)
}

/// `docker.io/library/busybox:latest` as people type it.
pub(super) fn familiar(name: &str) -> String {
    name.parse::<crate::image::Reference>()
        .map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_three_digits() {
        for (count, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (12_345, "12.3kB"),
            (999_499, "999kB"),
            (999_500, "1.00MB"),
            (2_097_152, "2.10MB"),
            (939_000_000, "939MB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn tells_time_roughly() {
        let now: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        for (then, text) in [
            ("2026-02-28T23:59:59Z", "1 second ago"),
            ("2026-02-28T23:00:00Z", "1 hour ago"),
            ("2026-02-25T00:00:00Z", "4 days ago"),
            ("2026-02-01T00:00:00Z", "4 weeks ago"),
            ("2025-09-01T00:00:00Z", "6 months ago"),
            ("1970-01-01T00:00:00Z", "56 years ago"),
            ("2026-03-02T00:00:00Z", "in the future"),
            ("", "N/A"),
        ] {
            assert_eq!(ago(then, now), text, "{then}");
        }
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![
            vec!["busybox".into(), "4.26MB".into()],
            vec!["a".into(), "939MB".into()],
        ];
        assert_eq!(
            table(&["REPOSITORY", "SIZE"], &[1], rows),
            "REPOSITORY     SIZE\nbusybox      4.26MB\na             939MB"
        );
    }
}

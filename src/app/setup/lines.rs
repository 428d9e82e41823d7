//! Lines for containerd's configuration: as a file of their own, or within a text that somebody else wrote. Pure.

use std::path::Path;

use toml::{Table, Value};

use super::block::{self, Edit};
use super::config::{BY_HAND, TRANSFER};
use super::expressions::{Expression, Kind, expressions};
use super::sources::get;
use super::{Refusal, parsed, quoted};

/// A key that has to have a value.
#[derive(Clone, Debug)]
pub(super) struct Need {
    pub(super) table: Vec<String>,
    pub(super) key: &'static str,
    /// As it is written.
    literal: String,
    pub(super) value: Value,
}

impl Need {
    pub(super) fn new(table: &[&str], key: &'static str, literal: String) -> Option<Self> {
        let mut parsed: Table = format!("x = {literal}").parse().ok()?;
        Some(Need {
            table: table.iter().map(|key| (*key).to_owned()).collect(),
            key,
            value: parsed.remove("x")?,
            literal,
        })
    }

    pub(super) fn path(&self) -> Vec<&str> {
        let table = self.table.iter().map(String::as_str);
        table.chain([self.key]).collect()
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", header(&self.table), self.key)
    }
}

/// `[a."b.c"]` without the brackets.
pub(super) fn header(keys: &[String]) -> String {
    let bare = |key: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        match !key.is_empty() && key.chars().all(plain) {
            true => key.clone(),
            false => quoted(key),
        }
    };
    keys.iter().map(bare).collect::<Vec<_>>().join(".")
}

fn unpack_lines() -> Vec<String> {
    let table = header(&["plugins", TRANSFER, "unpack_config"].map(str::to_owned));
    vec![
        format!("[[{table}]]"),
        "  platform = \"linux\"".to_owned(),
        "  snapshotter = \"larder\"".to_owned(),
    ]
}

/// Tables with their keys, each after an empty line.
fn tables(needs: &[Need]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut last: Option<&[String]> = None;
    for need in needs {
        if last != Some(&need.table) {
            lines.push(String::new());
            lines.push(format!("[{}]", header(&need.table)));
            last = Some(&need.table);
        }
        lines.push(format!("  {} = {}", need.key, need.literal));
    }
    lines
}

/// A file of larder's own.
pub(super) fn lines(version: i64, needs: &[Need], unpack: bool) -> Vec<String> {
    let mut lines = vec![format!("version = {}", version)];
    lines.extend(tables(needs));
    if unpack {
        lines.push(String::new());
        lines.extend(unpack_lines());
    }
    lines
}

/// Puts keys into a text that somebody else wrote.
pub(super) fn set(
    path: &Path,
    text: &str,
    needs: &[Need],
    unpack: bool,
) -> Result<String, Refusal> {
    let odd = || {
        Refusal::new(
            path,
            "its tables are written in a way in which larder's lines cannot be put in",
            BY_HAND,
        )
    };
    let found = expressions(text).ok_or_else(odd)?;
    let mut edits: Vec<Edit> = Vec::new();
    let mut missing: Vec<Need> = Vec::new();
    for need in needs {
        let pair = found
            .iter()
            .find(|one| one.kind == Kind::Pair && one.path == need.path());
        match pair {
            Some(pair) => edits.push(in_place(pair, &need.literal)),
            None => missing.push(need.clone()),
        }
    }
    let mut appended: Vec<Need> = Vec::new();
    for need in missing {
        let line = format!("{} = {}", need.key, need.literal);
        let table = found
            .iter()
            .find(|one| one.kind == Kind::Table && one.path == need.table);
        let Some(table) = table else {
            appended.push(need);
            continue;
        };
        let at = table.lines.end;
        // Keys of one table go into one block.
        match edits.iter_mut().find(|edit| edit.at == (at..at)) {
            Some(edit) => edit.lines.push(line),
            None => edits.push(Edit {
                at: at..at,
                indent: format!("{}  ", table.indent),
                lines: vec![line],
            }),
        }
    }
    let mut lines = tables(&appended);
    if unpack {
        let keys = ["plugins", TRANSFER, "unpack_config"];
        let empty = found
            .iter()
            .find(|one| one.kind == Kind::Pair && one.path == keys);
        match empty {
            Some(pair) => {
                let literal = "[{ platform = \"linux\", snapshotter = \"larder\" }]";
                edits.push(in_place(pair, literal));
            }
            None => {
                lines.push(String::new());
                lines.extend(unpack_lines());
            }
        }
    }
    if !lines.is_empty() {
        lines.remove(0);
        edits.push(Edit {
            at: text.len()..text.len(),
            indent: String::new(),
            lines,
        });
    }
    let after = block::edited(text, edits);
    // The parser has the last word on whether the text says what it is to say, and nothing else is changed by it.
    let mut expected = parsed(path, text)?;
    for need in needs {
        insert(&mut expected, &need.path(), need.value.clone()).ok_or_else(odd)?;
    }
    if unpack {
        let keys = ["plugins", TRANSFER, "unpack_config"];
        let mut list = match get(&expected, &keys) {
            Some(Value::Array(list)) => list.clone(),
            _ => Vec::new(),
        };
        let entry = [("platform", "linux"), ("snapshotter", "larder")];
        let entry = entry.map(|(key, value)| (key.to_owned(), Value::String(value.to_owned())));
        list.push(Value::Table(entry.into_iter().collect()));
        insert(&mut expected, &keys, Value::Array(list)).ok_or_else(odd)?;
    }
    match after.parse::<Table>() {
        Ok(table) if table == expected => Ok(after),
        _ => Err(odd()),
    }
}

fn in_place(pair: &Expression, literal: &str) -> Edit {
    Edit {
        at: pair.lines.clone(),
        indent: pair.indent.clone(),
        lines: vec![format!("{} = {literal}", pair.key)],
    }
}

/// Sets a key, with the tables above it; `None` where something else stands in their place.
fn insert(table: &mut Table, keys: &[&str], value: Value) -> Option<()> {
    let (first, rest) = keys.split_first()?;
    if rest.is_empty() {
        table.insert((*first).to_owned(), value);
        return Some(());
    }
    let below = table
        .entry((*first).to_owned())
        .or_insert_with(|| Value::Table(Table::new()));
    insert(below.as_table_mut()?, rest, value)
}

//! The files of containerd's configuration: what they import, in which order they count, and which value does. Pure.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::config::{BY_HAND, Layout};
use super::{Entry, Files, Refusal, parsed, quoted};

/// Files that one configuration may consist of.
const MAX_SOURCES: usize = 256;

/// One file of the configuration.
pub(super) struct Source<'a> {
    pub(super) path: PathBuf,
    pub(super) text: &'a str,
    pub(super) table: Table,
}

/// All files in the order in which containerd reads them; later ones count more.
pub(super) fn sources<'a>(files: &'a Files, main: &Path) -> Result<Vec<Source<'a>>, Refusal> {
    let mut found: Vec<Source<'a>> = Vec::new();
    let mut waiting = VecDeque::from([main.to_owned()]);
    while let Some(path) = waiting.pop_front() {
        if found.iter().any(|known| known.path == path) {
            continue;
        }
        let Some(text) = files.text(&path)? else {
            if path == *main {
                return Ok(found);
            }
            let cause = "it is imported, and is not there";
            return Err(Refusal::new(
                &path,
                cause,
                "make it, or take it out of imports",
            ));
        };
        if found.len() >= MAX_SOURCES {
            return Err(Refusal::new(
                main,
                format!("more than {MAX_SOURCES} files are imported"),
                BY_HAND,
            ));
        }
        let table = parsed(&path, text)?;
        for pattern in imports(&path, &table)? {
            waiting.extend(matching(files, &pattern));
        }
        found.push(Source { path, text, table });
    }
    Ok(found)
}

/// What a file imports, from the root; the last part of each may have a star.
pub(super) fn imports(path: &Path, table: &Table) -> Result<Vec<PathBuf>, Refusal> {
    let wrong = |what: &Value| {
        let cause = format!(
            "imports: {what:?} is not understood: it may have one star, in the file's name"
        );
        Refusal::new(path, cause, "name the files")
    };
    let list = match table.get("imports") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong(other)),
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let one = |item: &Value| {
        let text = item.as_str().ok_or_else(|| wrong(item))?;
        let pattern = folder.join(text);
        let parent = pattern.parent().unwrap_or(Path::new("/")).to_string_lossy();
        let name = pattern.file_name().unwrap_or_default().to_string_lossy();
        let strange = ['?', '[', '\\'];
        if text.is_empty()
            || name.matches('*').count() > 1
            || parent.contains('*')
            || text.contains(strange)
            || pattern
                .components()
                .any(|part| part == std::path::Component::ParentDir)
        {
            return Err(wrong(item));
        }
        Ok(pattern.components().collect())
    };
    list.iter().map(one).collect()
}

fn matching(files: &Files, pattern: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else {
        return Vec::new();
    };
    match name.to_string_lossy().split_once('*') {
        None => vec![pattern.to_owned()],
        Some((beginning, end)) => {
            let names = files.names(folder).into_iter();
            let names = names.filter(|name| fits(name, beginning, end));
            names
                .map(|name| folder.join(name))
                .filter(|path| !matches!(files.get(path), Some(Entry::Folder)))
                .collect()
        }
    }
}

pub(super) fn fits(name: &str, beginning: &str, end: &str) -> bool {
    name.strip_prefix(beginning)
        .is_some_and(|rest| rest.ends_with(end))
}

/// The value that counts, and where it is from.
pub(super) fn effective<'s>(
    sources: &'s [Source<'_>],
    layout: &Layout,
    path: &[&str],
) -> Result<Option<(&'s Source<'s>, &'s Value)>, Refusal> {
    // A later file replaces such a table as a whole.
    let whole = match path {
        ["plugins", ..] if !layout.is_old() => 0,
        ["plugins" | "proxy_plugins", _, ..] => 2,
        _ => 0,
    };
    let has = |source: &&Source<'_>| match path.get(..whole) {
        Some(whole) if !whole.is_empty() => get(&source.table, whole).is_some(),
        _ => get(&source.table, path).is_some(),
    };
    let mut having = sources.iter().filter(has);
    let (first, second) = (having.next(), having.next());
    if let (Some(first), Some(second), true, Some(name)) =
        (first, second, layout.is_old(), path.get(1))
        && path.first() == Some(&"plugins")
    {
        return Err(Refusal::new(
            &second.path,
            format!(
                "[plugins.{}] is in {} too: containerd 1.7 takes the last alone, and later ones both",
                quoted(name),
                first.path.display()
            ),
            "put it into one file",
        ));
    }
    let last = sources.iter().rfind(has);
    Ok(last.and_then(|source| Some((source, get(&source.table, path)?))))
}

pub(super) fn get<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (first, rest) = keys.split_first()?;
    let mut value = table.get(*first)?;
    for key in rest {
        value = value.as_table()?.get(*key)?;
    }
    Some(value)
}

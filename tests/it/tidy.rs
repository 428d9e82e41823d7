//! House rules that a program can check: who may know whom, module docs, file length, words.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms each room may use. A room that is not listed here does not belong in `src/`.
const MATRIX: &[(&str, &[&str])] = &[
    ("image", &[]),
    ("erofs", &[]),
    ("lifecycle", &[]),
    ("telemetry", &[]),
    ("registry", &["image"]),
    ("store", &["image", "erofs"]),
    ("prune", &["image"]),
    (
        "cache",
        &["image", "registry", "store", "prune", "lifecycle"],
    ),
    ("cri", &["image", "cache", "lifecycle", "telemetry"]),
    (
        "control",
        &["image", "prune", "cache", "lifecycle", "telemetry"],
    ),
    ("snapshotter", &["image", "cache", "lifecycle", "telemetry"]),
    ("mirror", &["image", "cache", "lifecycle", "telemetry"]),
    ("admin", &["lifecycle", "telemetry"]),
    ("runtime", &["image", "lifecycle", "telemetry"]),
    ("k8s", &["image", "prune", "lifecycle", "telemetry"]),
    (
        "cli",
        &[
            "image",
            "prune",
            "app",
            "control",
            "k8s",
            "lifecycle",
            "telemetry",
        ],
    ),
    ("app", &["*"]),
];

/// Most lines of a source file, its tests apart. Longer files hold more than one thing.
const MOST_LINES: usize = 600;

/// Words of unfinished work.
const UNFINISHED: [&str; 6] = ["todo!", "unimplemented!", "dbg!", "TODO", "FIXME", "XXX"];

struct Source {
    /// Relative to the package, such as `src/store/pack.rs`.
    path: String,
    text: String,
}

impl Source {
    /// The room a file belongs to; `None` for `src/lib.rs` and the programs.
    fn room(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        rest.split_once('/').map(|(room, _)| room)
    }

    /// Lines before the tests at the end of the file.
    fn code(&self) -> &str {
        let end = self
            .text
            .find("\n#[cfg(test)]\n")
            .unwrap_or(self.text.len());
        self.text.get(..end).unwrap_or_default()
    }

    fn only_tests(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name == "tests.rs" || name.ends_with("_tests.rs") || self.path.contains("/tests/")
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![package().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let name = path.strip_prefix(package()).unwrap();
                found.push(Source {
                    path: name.to_str().unwrap().replace('\\', "/"),
                    text: fs::read_to_string(&path).unwrap(),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

/// The text without comments. Strings may hold `//`, which hides the rest of their line: that can only hide a
/// use within one line, and rustfmt keeps `use` on lines of its own.
fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names that follow `crate::`, through a group such as `crate::{image::Digest, store}` too.
fn rooms_used(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.push(ident(rest)),
        }
    }
    found.sort();
    found.dedup();
    found
}

fn ident(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// First names of the members of a `{...}` group whose opening brace is gone.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0usize;
    let mut member = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(ident(member.trim()));
                member.clear();
                continue;
            }
            _ => {}
        }
        member.push(c);
    }
    heads.push(ident(member.trim()));
    heads.retain(|head| !head.is_empty());
    heads
}

/// Longest run of `super::` in the text.
fn supers(text: &str) -> usize {
    let mut most = 0;
    let mut rest = text;
    while let Some(at) = rest.find("super::") {
        let mut run = 0;
        rest = rest.get(at..).unwrap_or_default();
        while let Some(after) = rest.strip_prefix("super::") {
            run += 1;
            rest = after;
        }
        most = most.max(run);
    }
    most
}

#[test]
fn rooms_know_only_whom_they_may() {
    let matrix: BTreeMap<_, _> = MATRIX.iter().copied().collect();
    let mut faults = Vec::new();
    for source in sources("src") {
        let Some(room) = source.room() else { continue };
        let Some(allowed) = matrix.get(room) else {
            faults.push(format!("{}: no room is called {room}", source.path));
            continue;
        };
        for used in rooms_used(&without_comments(&source.text)) {
            let known = matrix.contains_key(used.as_str());
            if used != room && !(known && (allowed.contains(&used.as_str()) || *allowed == ["*"])) {
                faults.push(format!("{}: {room} may not use {used}", source.path));
            }
        }
        // The way round `crate::` is closed too.
        let depth =
            source.path.matches('/').count() - usize::from(source.path.ends_with("/mod.rs"));
        if supers(&without_comments(source.code())) >= depth {
            faults.push(format!(
                "{}: super:: leaves the room; write crate::",
                source.path
            ));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_matrix_has_no_circle() {
    // A room stands below those that list it; a list from the bottom up proves that there is no circle.
    let mut below: Vec<&str> = Vec::new();
    while below.len() < MATRIX.len() {
        let before = below.len();
        for (room, uses) in MATRIX {
            let ready = uses
                .iter()
                .all(|used| below.contains(used) || (*used == "*"));
            if ready && !below.contains(room) {
                below.push(room);
            }
        }
        assert!(
            before < below.len(),
            "the rooms after {below:?} form a circle"
        );
    }
}

#[test]
fn every_file_says_what_it_is() {
    let bare: Vec<_> = ["src", "tests", "proto"]
        .into_iter()
        .flat_map(sources)
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    assert!(bare.is_empty(), "no //! at the top of {bare:?}");
}

#[test]
fn files_are_short() {
    let long: Vec<_> = sources("src")
        .into_iter()
        .filter(|source| !source.only_tests())
        .map(|source| (source.code().lines().count(), source.path))
        .filter(|(lines, _)| *lines > MOST_LINES)
        .collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines: {long:?}");
}

#[test]
fn nothing_is_unfinished_or_unsafe() {
    let mut faults = Vec::new();
    for source in ["src", "tests", "proto"].into_iter().flat_map(sources) {
        if source.path == "tests/it/tidy.rs" {
            continue;
        }
        for (number, line) in (1..).zip(source.text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            let unsafe_code = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .into_iter()
                .any(|word| code.contains(word));
            if unsafe_code || UNFINISHED.into_iter().any(|word| has_word(line, word)) {
                faults.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Whether `word` stands in the line by itself, not as a part of a longer word such as a mktemp pattern.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line
            .get(at + word.len()..)
            .and_then(|text| text.chars().next());
        !part(before) && !part(after)
    })
}

#[test]
fn the_scanner_sees_each_form_of_use() {
    for (text, want) in [
        ("use crate::image::Digest;", &["image"][..]),
        ("crate::store::open(crate::image::x())", &["image", "store"]),
        (
            "use crate::{image::{Digest, DiffId}, store, erofs::Node};",
            &["erofs", "image", "store"],
        ),
        ("use crate::{\n    a,\n    b::{self, c},\n};", &["a", "b"]),
        ("pub(crate) fn f() {}", &[]),
    ] {
        assert_eq!(rooms_used(text), want, "{text}");
    }
    assert_eq!(supers("use super::super::a; super::b"), 2);
    assert!(has_word("// TODO: x", "TODO") && !has_word("a.XXXXXX", "XXX"));
    assert_eq!(without_comments("a // crate::b\nc"), "a \nc");
}

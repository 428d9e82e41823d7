//! What the program is built from: licences that may be combined with ours, and known faults.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::{has_program, skip};

/// Licences (SPDX names) that may be shipped in an Apache-2.0 program without further duties than attribution.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages of the lock file that are built on this machine's kind.
fn packages() -> Result<Vec<Value>, String> {
    let version = Command::new("rustc")
        .arg("-vV")
        .output()
        .map_err(|error| format!("rustc: {error}"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or("rustc -vV names no host")?;
    // Without the filter cargo would want the sources of other systems' packages, which nobody has fetched.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    match metadata.get("packages") {
        Some(Value::Array(packages)) => Ok(packages.clone()),
        _ => Err("cargo metadata lists no packages".to_owned()),
    }
}

/// Whether an SPDX expression can be met with the allowed licences alone. `/` is the old way to write `OR`.
fn allows(expression: &str) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    any_of(&mut words) == Some(true) && words.is_empty()
}

fn any_of(words: &mut Vec<&str>) -> Option<bool> {
    let mut met = all_of(words)?;
    while words.last() == Some(&"OR") {
        words.pop();
        met |= all_of(words)?;
    }
    Some(met)
}

fn all_of(words: &mut Vec<&str>) -> Option<bool> {
    let mut met = one(words)?;
    while words.last() == Some(&"AND") {
        words.pop();
        met &= one(words)?;
    }
    Some(met)
}

fn one(words: &mut Vec<&str>) -> Option<bool> {
    match words.pop()? {
        "(" => {
            let met = any_of(words)?;
            (words.pop()? == ")").then_some(met)
        }
        ")" | "OR" | "AND" | "WITH" => None,
        name if words.last() == Some(&"WITH") => {
            words.pop();
            let name = format!("{name} WITH {}", words.pop()?);
            Some(ALLOWED.contains(&name.as_str()))
        }
        name => Some(ALLOWED.contains(&name)),
    }
}

#[test]
fn every_dependency_may_be_shipped() {
    let packages = packages().unwrap_or_else(|reason| panic!("{reason}"));
    assert!(packages.len() > 50, "only {} packages", packages.len());
    let text = |package: &Value, key: &str| match package.get(key) {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    };
    let refused: BTreeSet<String> = packages
        .iter()
        .filter(|package| !allows(&text(package, "license")))
        .map(|package| {
            format!(
                "{} {}: {:?}",
                text(package, "name"),
                text(package, "version"),
                text(package, "license")
            )
        })
        .collect();
    assert!(refused.is_empty(), "licences not allowed: {refused:#?}");
}

#[test]
fn expressions_are_read_as_spdx_defines_them() {
    for (expression, want) in [
        ("MIT", true),
        ("MIT OR GPL-3.0-only", true),
        ("GPL-3.0-only OR MIT", true),
        ("MIT/Apache-2.0", true),
        ("Apache-2.0 / MIT", true),
        ("MIT AND GPL-3.0-only", false),
        ("(MIT OR GPL-3.0-only) AND ISC", true),
        (
            "(MIT OR Apache-2.0) AND (GPL-2.0-only OR LGPL-2.1-only)",
            false,
        ),
        ("MIT OR ISC AND GPL-2.0-only", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-2.0-only WITH Classpath-exception-2.0", false),
        ("GPL-3.0-only", false),
        ("", false),
        ("MIT MIT", false),
        ("(MIT", false),
        ("MIT OR", false),
        ("MIT WITH", false),
    ] {
        assert_eq!(allows(expression), want, "{expression}");
    }
}

/// Runs only where the advisory database is already on the machine: a test does not fetch.
#[test]
fn no_dependency_has_a_known_fault() {
    const NAME: &str = "no_dependency_has_a_known_fault";
    let database = match std::env::var_os("LARDER_ADVISORY_DB") {
        Some(path) => Some(PathBuf::from(path)),
        None => std::env::home_dir().map(|home| home.join(".cargo/advisory-db")),
    };
    let Some(database) = database.filter(|path| path.join("crates").is_dir()) else {
        return skip(
            NAME,
            "no RustSec advisory-db on this machine; set LARDER_ADVISORY_DB to a checkout",
        );
    };
    if !has_program("cargo-audit") {
        return skip(NAME, "cargo-audit is not installed");
    }
    let output = Command::new("cargo-audit")
        .args(["audit", "--no-fetch", "--stale", "--db"])
        .arg(&database)
        .args(["--file", "Cargo.lock"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

//! `docs/tutorial.md`, typed word for word: each command of its consoles, in order, in one shell; and what they print.
//!
//! In what is expected, `...` stands for anything within a line, a line of its own for any lines, and blanks for blanks.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::docs::blocks;
use crate::support::{is_root, need, skip};

/// Printed after each command, with its status.
const DONE: &str = "==done==";

struct Step {
    command: String,
    expected: Vec<String>,
}

/// The commands of a page, with what they print.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in blocks(page, "console") {
        let mut lines = block.lines();
        while let Some(line) = lines.next() {
            let Some(command) = line.strip_prefix("$ ") else {
                steps.last_mut().unwrap().expected.push(line.to_owned());
                continue;
            };
            let mut command = command.to_owned();
            if command.ends_with("<<END") {
                for line in lines.by_ref() {
                    command.push('\n');
                    command.push_str(line);
                    if line == "END" {
                        break;
                    }
                }
            }
            steps.push(Step {
                command,
                expected: Vec::new(),
            });
        }
    }
    steps
}

/// Whether a line is what is expected of it.
fn fits(expected: &str, line: &str) -> bool {
    let blanks = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, line) = (blanks(expected), blanks(line));
    let mut parts = expected.split("...");
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = rest.get(at + part.len()..).unwrap_or_default();
        last = Some(part);
    }
    // What follows the last wildcard ends the line.
    rest.is_empty() || last == Some("") || last.is_some_and(|part| line.ends_with(part))
}

/// Whether lines are what is expected of them.
fn all_fit(expected: &[String], lines: &[String]) -> bool {
    match (expected.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((first, others)), _) if first == "..." => {
            all_fit(others, lines)
                || lines
                    .split_first()
                    .is_some_and(|(_, rest)| all_fit(expected, rest))
        }
        (Some((first, others)), Some((line, rest))) => fits(first, line) && all_fit(others, rest),
        _ => false,
    }
}

#[test]
fn wildcards_stand_for_what_differs() {
    for (expected, line, want) in [
        ("a b", "a    b", true),
        ("a ... c", "a b c", true),
        ("...MB", "1.98MB", true),
        ("...MB", "1.98MB more", false),
        ("a...", "a", true),
        ("v1...", "v2", false),
        ("a...b...c", "a1b2b3c", true),
        ("a", "ab", false),
        ("<none> ... x", "<none> 5 x", true),
    ] {
        assert_eq!(fits(expected, line), want, "{expected:?} {line:?}");
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    for (expected, text, want) in [
        ("...\nend", "a\nb\nend", true),
        ("...\nend", "end", true),
        ("...", "", true),
        ("a\n...\nb", "a\nb\nc", false),
        ("", "a", false),
        ("a", "", false),
    ] {
        assert_eq!(
            all_fit(&lines(expected), &lines(text)),
            want,
            "{expected:?} {text:?}"
        );
    }
}

/// A shell that is told one command after the other.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(folder: &Path) -> Self {
        let mut command = Command::new("bash");
        command.arg("--norc").arg("--noprofile").current_dir(folder);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["KUBE", "LARDER_", "CARGO", "MAKE", "CLUSTER"]
                .iter()
                .any(|head| name.starts_with(head))
                && name != "LARDER_BED"
            {
                command.env_remove(name);
            }
        }
        // What the page builds is built already: this test is run by the same build.
        let mut child = command
            .env("CARGO", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"exec 2>&1\n").unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Shell {
            child,
            input,
            output,
        }
    }

    fn run(&mut self, command: &str) -> Vec<String> {
        let text = format!("{command}\necho {DONE}\n");
        self.input.write_all(text.as_bytes()).unwrap();
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "the shell ended after {command:?}: {lines:#?}");
            let line = line.trim_end_matches('\n').to_owned();
            if let Some(before) = line.strip_suffix(DONE) {
                if !before.is_empty() {
                    lines.push(before.to_owned());
                }
                return lines;
            }
            lines.push(line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends the cluster of the page when the test ends, however that ends.
struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    fn over(cluster: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/cluster.sh");
        let mut child = Command::new("sh")
            .args(["-c", "cat >/dev/null; exec \"$0\" down \"$1\""])
            .arg(script)
            .arg(cluster)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pipe = child.stdin.take();
        Guard { child, pipe }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// Makes a folder look like the checkout after a build.
fn checkout(folder: &Path) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(folder.join("target/debug")).unwrap();
    let link = |from: &Path, to: &str| std::os::unix::fs::symlink(from, folder.join(to)).unwrap();
    for name in ["Makefile", "tests", "manifests"] {
        link(&package.join(name), name);
    }
    link(
        Path::new(env!("CARGO_BIN_EXE_larder")),
        "target/debug/larder",
    );
}

#[test]
fn the_tutorial_is_true() {
    const NAME: &str = "the_tutorial_is_true";
    if !is_root() {
        return skip(NAME, "a kubelet needs root");
    }
    let tools = [
        "bash",
        "make",
        "python3",
        "openssl",
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubectl",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
        "kubelet",
        "cni/bridge",
        "busybox",
        "ip",
    ];
    if need(NAME, tools).is_none() {
        return;
    }
    // A short name: there are sockets far below it, whose paths have a limit.
    let dir = tempfile::Builder::new()
        .prefix("larder-")
        .rand_bytes(4)
        .tempdir()
        .unwrap();
    let folder = dir.path();
    checkout(folder);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorial.md");
    let steps = steps(&std::fs::read_to_string(page).unwrap());
    assert!(steps.len() > 15, "{}", steps.len());
    let _guard = Guard::over(&folder.join("target/cluster"));
    let mut shell = Shell::start(folder);
    for step in steps {
        let printed = shell.run(&step.command);
        let said = printed.join("\n");
        assert!(
            all_fit(&step.expected, &printed),
            "$ {}\nexpected:\n{}\nprinted:\n{said}",
            step.command,
            step.expected.join("\n")
        );
    }
}

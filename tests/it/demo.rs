//! `larder demo`, whole: it checks its own claims, and leaves nothing behind, also when it is broken off.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{can_mount_erofs, skip};

/// Far more than a demo takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn demo(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(["demo", "--dir"]).arg(dir);
    command.stdin(Stdio::null());
    command
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A signal that is heeded, with the exit code it makes: what whoever runs the tests has told his programs to ignore (a
/// background job does, for one), the demo ignores too.
fn heeded(signal: Signal, code: i32) -> (Signal, i32) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
    if mask >> (signal.as_raw() - 1) & 1 == 1 {
        return (Signal::TERM, 143);
    }
    (signal, code)
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// Mount points below a folder.
fn mounts(dir: &Path) -> Vec<String> {
    let begin = format!("{}/", dir.canonicalize().unwrap().display());
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| point.starts_with(&begin))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_claim_holds_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let output = demo(dir.path()).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("1 request, 0 bytes of layers"), "{out}");
    let wide: Vec<&str> = out
        .lines()
        .filter(|line| line.chars().count() > 80)
        .collect();
    assert!(wide.is_empty(), "{wide:?}");
    assert_eq!(mounts(dir.path()), Vec::<String>::new());
    assert_eq!(entries(dir.path()), 0);
}

/// Where a demo is broken off.
enum At {
    /// As soon as its folder is there.
    Folder,
    /// As soon as it prints a line that begins so.
    Line(&'static str),
    /// As soon as something is mounted below its folder.
    Mount,
}

/// Waits until the demo is there; `false` where it ended before.
fn reach(at: &At, child: &mut Child, dir: &Path) -> bool {
    let began = Instant::now();
    if let At::Line(begin) = at {
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let found = lines.any(|line| line.unwrap().starts_with(begin));
        // What is not read would end it by itself.
        std::thread::spawn(move || lines.for_each(drop));
        return found;
    }
    let mut out = child.stdout.take().unwrap();
    std::thread::spawn(move || out.read_to_string(&mut String::new()));
    loop {
        let there = match at {
            At::Mount => !mounts(dir).is_empty(),
            _ => entries(dir) > 0,
        };
        if there || child.try_wait().unwrap().is_some() {
            return there;
        }
        assert!(began.elapsed() < PATIENCE, "the demo hangs");
        std::thread::yield_now();
    }
}

#[test]
fn an_interrupt_at_any_step_leaves_nothing() {
    let mounted = match can_mount_erofs() {
        Ok(()) => At::Mount,
        Err(reason) => {
            skip("an_interrupt_at_any_step_leaves_nothing (mounted)", &reason);
            At::Line("== A look inside")
        }
    };
    let steps = [
        (At::Folder, Signal::INT, 130),
        (At::Folder, Signal::TERM, 143),
        (At::Line("== Four images"), Signal::HUP, 129),
        (At::Line("== An image that shares"), Signal::INT, 130),
        (mounted, Signal::TERM, 143),
    ];
    for (number, (at, signal, code)) in steps.into_iter().enumerate() {
        let (signal, code) = heeded(signal, code);
        let dir = tempfile::tempdir().unwrap();
        let mut child = demo(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let reached = reach(&at, &mut child, dir.path());
        assert!(reached, "step {number} was not reached");
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "step {number}: {err}");
        assert!(!err.contains("larder: "), "step {number}: {err}");
        assert_eq!(mounts(dir.path()), Vec::<String>::new(), "step {number}");
        assert_eq!(entries(dir.path()), 0, "step {number}: {err}");
    }
}

#[test]
fn a_second_interrupt_ends_at_once_and_says_what_it_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = demo(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(reach(&At::Line("== A first pull"), &mut child, dir.path()));
    // Two of a kind could be one by the time they are seen.
    send(&child, Signal::INT);
    send(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert!(
        matches!(output.status.code(), Some(130 | 143)),
        "{output:?}"
    );
    let err = String::from_utf8_lossy(&output.stderr);
    if entries(dir.path()) > 0 {
        let said = err.lines().any(|line| {
            line.starts_with("larder: ended at once; left behind: ")
                && line.contains(dir.path().to_str().unwrap())
        });
        assert!(said, "{err}");
    }
    assert_eq!(mounts(dir.path()), Vec::<String>::new());
}

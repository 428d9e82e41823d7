//! `larder demo`, whole: it checks its own claims, and leaves nothing behind.

use std::process::Command;

#[test]
fn every_claim_holds_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(["demo", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
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
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

//! The terminal as scripts and people use it: the real binary, on a store of its own and through an agent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::build::{BuiltImage, config, gzip, noise, tar, zstd};
use crate::support::hub::Hub;
use crate::support::process::AgentProcess;

const VERBS: [&str; 19] = [
    "agent",
    "controller",
    "crds",
    "pull",
    "images",
    "inspect",
    "rmi",
    "prune",
    "status",
    "df",
    "doctor",
    "setup",
    "fsck",
    "unpack",
    "mount",
    "umount",
    "export-store",
    "version",
    "completions",
];

fn larder() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    // What the tester's own shell has must not count.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command
        .env_remove("REGISTRY_AUTH_FILE")
        .env("DOCKER_CONFIG", "/nonexistent")
        .env("LARDER_SOCKET", "/nonexistent/larder.sock")
        .env("LARDER_HOSTS_DIR", "/nonexistent")
        .stdin(Stdio::null());
    command
}

/// How a command ended and what it printed.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
    fn line(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.strip_suffix('\n').unwrap()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn run(command: &mut Command) -> Ran {
    command.output().unwrap().into()
}

fn bare(args: &[&str]) -> Ran {
    run(larder().args(args))
}

fn on(root: &Path, args: &[&str]) -> Ran {
    run(larder().arg("--root").arg(root).args(args))
}

/// As [`on`], while the registry of this process answers.
async fn on_async(root: &Path, args: &[&str]) -> Ran {
    let root = root.to_owned();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    tokio::task::spawn_blocking(move || run(larder().arg("--root").arg(root).args(args)))
        .await
        .unwrap()
}

fn base() -> crate::support::build::BuiltLayer {
    let content = noise(1, 300_000);
    gzip(&tar(&[("bin/tool", &content), ("etc/motd", b"hello\n")]))
}

/// A registry with `app:1` of two layers, and `other:1` that shares the first.
async fn hub() -> Hub {
    let hub = Hub::start().await;
    let content = noise(2, 200_000);
    let app = gzip(&tar(&[("app/main", &content)]));
    let other = zstd(&tar(&[("other/main", &noise(3, 100_000))]));
    hub.push("app", "1", &BuiltImage::new(&[base(), app]));
    hub.push("other", "1", &BuiltImage::new(&[base(), other]));
    hub
}

#[test]
fn usage_is_2_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    for (args, holds) in [
        (&["bogus"][..], "bogus"),
        (&["pull"], "<REF>"),
        (&["rmi"], "<NAME>"),
        (&["images", "-o", "xml"], "xml"),
        (&["pull", "A B"], "not an image reference"),
        (
            &["pull", "--platform", "a/b/c/d", "busybox"],
            "os/architecture",
        ),
        (&["pull", "--creds", "ann", "busybox"], "--password-stdin"),
        (&["pull", "--password-stdin", "busybox"], "--creds"),
        (&["completions", "csh"], "csh"),
        (&["--root", "", "images"], "a value is required"),
        (&["agent", "--http", "here"], "--http"),
    ] {
        let ran = bare(args);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.out.is_empty(), "{args:?}: {ran:?}");
        assert!(
            ran.err.starts_with("larder: ") && ran.err.contains(holds),
            "{args:?}: {ran:?}"
        );
    }
    assert_eq!(on(dir.path(), &["pull"]).code, 2);
    // Without a verb there is help, and no success.
    let ran = bare(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("Usage: larder"), "{ran:?}");
}

#[test]
fn help_fits_a_terminal_and_shows_by_example() {
    let check = |verb: &str, help: &Ran| {
        assert_eq!(help.code, 0, "{help:?}");
        assert!(help.out.contains("Examples:\n  larder "), "{verb}");
        for line in help.out.lines() {
            assert!(line.chars().count() <= 80, "{verb}: {line}");
        }
    };
    for flag in ["-h", "--help"] {
        let top = run(larder().arg(flag).env("COLUMNS", "80"));
        check("larder", &top);
        for verb in VERBS {
            assert!(top.out.contains(&format!("\n  {verb} ")), "{verb}");
            check(verb, &run(larder().args([verb, flag]).env("COLUMNS", "80")));
        }
    }
    // No verb is left out above.
    let top = bare(&["--help"]);
    let commands = top.out.split("Commands:\n").nth(1).unwrap();
    let listed = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    assert_eq!(
        listed.count(),
        VERBS.len() + usize::from(top.out.contains("\n  demo "))
    );
    assert!(bare(&["--version"]).line().starts_with("larder "));
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = bare(&["completions", shell]);
        assert_eq!(script.code, 0, "{script:?}");
        for verb in VERBS {
            assert!(script.out.contains(verb), "{shell}: {verb}");
        }
    }
}

#[test]
fn completions_load() {
    let dir = tempfile::tempdir().unwrap();
    for (shell, ask) in [
        (
            "bash",
            "set -eu; . ./script; COMP_WORDS=(larder im); COMP_CWORD=1; _larder larder im larder; echo ${COMPREPLY[@]}",
        ),
        (
            "zsh",
            "autoload -U compinit; compinit -u -D; . ./script; whence _larder >/dev/null; echo images",
        ),
        ("fish", ". ./script; complete -C 'larder im'"),
    ] {
        let Some(program) = crate::support::program(shell) else {
            crate::support::skip(
                &format!("completions_load ({shell})"),
                &format!("{shell} is not installed"),
            );
            continue;
        };
        std::fs::write(dir.path().join("script"), bare(&["completions", shell]).out).unwrap();
        let ran = run(Command::new(program)
            .args(["-c", ask])
            .env("HOME", dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::null()));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{shell}: {ran:?}");
        assert!(ran.out.starts_with("images"), "{shell}: {ran:?}");
    }
}

#[test]
fn a_full_disk_below_the_output_is_a_failure() {
    for args in [&["--help"][..], &["completions", "bash"], &["version"]] {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let ran = run(larder().args(args).stdout(full));
        assert_eq!(ran.code, 1, "{args:?}: {ran:?}");
        assert!(ran.err.contains("standard output"), "{args:?}: {ran:?}");
    }
}

#[test]
fn the_configuration_in_force_can_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[registry]\nattempts = 2\nmax_per_host = 3\n").unwrap();
    let check = |args: &[&str]| {
        run(larder()
            .env("LARDER_REGISTRY_ATTEMPTS", "4")
            .args(["--root", "/flag", "agent", "--check", "--config"])
            .arg(&file)
            .args(args))
    };
    let shown = check(&[]);
    for (key, origin) in [
        ("root = \"/flag\"", "# --root".to_owned()),
        (
            "hosts_dirs = [\"/nonexistent\"]",
            "# LARDER_HOSTS_DIR".to_owned(),
        ),
        (
            "registry.attempts = 4",
            "# LARDER_REGISTRY_ATTEMPTS".to_owned(),
        ),
        (
            "registry.max_per_host = 3",
            format!("# {}: line 3", file.display()),
        ),
        ("drain_timeout = \"20s\"", "# default".to_owned()),
    ] {
        let line = shown.line().lines().find(|line| line.starts_with(key));
        assert!(
            line.is_some_and(|line| line.ends_with(&origin)),
            "{key}: {shown:?}"
        );
    }
    // What it prints is a configuration that makes the same.
    let again = dir.path().join("again.toml");
    std::fs::write(&again, &shown.out).unwrap();
    let ran = run(larder()
        .env_remove("LARDER_SOCKET")
        .env_remove("LARDER_HOSTS_DIR")
        .args(["agent", "--check", "-o", "json", "--config"])
        .arg(&again));
    let (before, after) = (check(&["-o", "json"]).json(), ran.json());
    for (before, after) in before
        .as_array()
        .unwrap()
        .iter()
        .zip(after.as_array().unwrap())
    {
        assert_eq!(
            (&before["key"], &before["value"]),
            (&after["key"], &after["value"])
        );
    }
    std::fs::write(&file, "[registry]\nattempts = 0\n").unwrap();
    let ran = run(larder().args(["agent", "--check", "--config"]).arg(&file));
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("line 2: registry.attempts: 0 is not"),
        "{ran:?}"
    );
}

#[test]
fn a_silent_socket_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    let ask = || run(larder().arg("--socket").arg(&socket).arg("images"));
    let absent = ask();
    assert_eq!(absent.code, 1);
    for word in ["s.sock", "larder agent", "--root"] {
        assert!(absent.err.contains(word), "{absent:?}");
    }
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let left = ask();
    assert_eq!(left.code, 1);
    assert!(left.err.contains("nobody listens"), "{left:?}");
    // A listener that hangs up at once is no agent.
    std::fs::remove_file(&socket).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let hang_up = std::thread::spawn(move || drop(listener.accept()));
    let hung_up = ask();
    hang_up.join().unwrap();
    assert_eq!(hung_up.code, 1);
    assert!(hung_up.err.contains("s.sock"), "{hung_up:?}");
    // For version an absent agent is no failure.
    let version = bare(&["version", "-o", "json"]).json();
    assert_eq!(version["client"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(version["agent"].is_null());
}

#[test]
fn only_a_pull_makes_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let (absent, empty) = (dir.path().join("absent"), dir.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    let target = dir.path().join("target");
    let target = target.to_str().unwrap();
    for args in [
        &["images"][..],
        &["images", "-q"],
        &["inspect", "busybox"],
        &["rmi", "busybox"],
        &["rmi", "--force", "busybox"],
        &["df"],
        &["fsck", "--repair"],
        &["unpack", "busybox", target],
        &["mount", "busybox", target],
        &["umount", target],
    ] {
        let ran = on(&absent, args);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains("there is no such directory"), "{ran:?}");
        let ran = on(&empty, args);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains("there is no store"), "{ran:?}");
    }
    assert!(!absent.exists());
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    // Whatever becomes of the pull.
    let ran = on(&absent, &["pull", "127.0.0.1:1/app"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(on(&absent, &["images", "-q"]).code, 0);
}

#[test]
fn an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    assert_eq!(on(&root, &["pull", "127.0.0.1:1/app"]).code, 1);
    assert_eq!(
        on(&root, &["images", "-o", "json"]).json(),
        Value::Array(Vec::new())
    );
    assert!(on(&root, &["images"]).line().starts_with("REPOSITORY"));
    assert_eq!(on(&root, &["images", "-q"]).out, "");
    let usage = on(&root, &["df", "-o", "json"]).json();
    for key in ["logicalBytes", "layers", "images"] {
        assert_eq!(usage[key], 0, "{key}");
    }
    assert!(usage["storedBytes"].as_u64().unwrap() < 1 << 20, "{usage}");
    let report = on(&root, &["fsck", "-o", "json"]).json();
    assert_eq!(report["damaged"], Value::Array(Vec::new()));
    for verb in ["inspect", "rmi"] {
        let ran = on(&root, &[verb, "nope"]);
        assert_eq!(ran.code, 3, "{ran:?}");
        assert_eq!(
            ran.err,
            "larder: nope: no such image; larder images lists what is here\n"
        );
    }
    let target = dir.path().join("out");
    for verb in ["unpack", "mount"] {
        let ran = on(&root, &[verb, "nope", target.to_str().unwrap()]);
        // Without root there is no mounting at all.
        assert!(
            ran.code == 3 || (verb == "mount" && ran.code == 1),
            "{ran:?}"
        );
    }
    assert_eq!(on(&root, &["rmi", "--force", "nope"]).code, 0);
    let ran = on(&root, &["umount", dir.path().to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_list_inspect_unpack_and_remove_without_an_agent() {
    let hub = hub().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let (app, other) = (hub.reference("app:1"), hub.reference("other:1"));

    // Nothing but the id on standard output, progress elsewhere.
    let pulled = on_async(&root, &["pull", &app]).await;
    let id = pulled.line().to_owned();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{pulled:?}");
    assert_eq!(pulled.err.matches(": Done, ").count(), 2, "{pulled:?}");
    assert!(pulled.err.contains("2 layers"), "{pulled:?}");
    assert!(!pulled.err.contains('\x1b'), "{pulled:?}");

    let again = on_async(&root, &["pull", "-q", &app]).await;
    assert_eq!((again.line(), again.err.as_str()), (id.as_str(), ""));
    let again = on_async(&root, &["pull", "-o", "json", &app]).await.json();
    assert_eq!(again["id"], id.as_str());
    assert_eq!(again["upToDate"], true);
    assert_eq!(again["fetchedBytes"], 0);

    let pulled = on_async(&root, &["pull", "-o", "json", &other])
        .await
        .json();
    let sources: Vec<_> = pulled["layers"].as_array().unwrap().iter().collect();
    assert_eq!(sources[0]["source"], "present");
    assert_eq!(sources[1]["source"], "registry");

    let images = on(&root, &["images", "-o", "json"]).json();
    let images = images.as_array().unwrap();
    assert_eq!(images.len(), 2);
    let image = images
        .iter()
        .find(|image| image["id"] == id.as_str())
        .unwrap();
    assert_eq!(image["repoTags"][0], app.as_str());
    assert!(
        image["repoDigests"][0]
            .as_str()
            .unwrap()
            .contains("/app@sha256:")
    );
    // The files, the config and the manifest.
    let size = image["size"].as_u64().unwrap();
    assert!((500_006..502_000).contains(&size), "{image}");
    assert_eq!(image["created"], "2024-01-02T03:04:05Z");
    assert_eq!(image["pinned"], false);
    assert_eq!(image["platform"], "linux/amd64");
    let filtered = on(&root, &["images", "-q", "*/app"]);
    assert_eq!(filtered.line(), id);
    let yaml = on(&root, &["images", "-o", "yaml"]);
    assert!(yaml.out.contains(&format!("id: {id}")), "{yaml:?}");
    let table = on(&root, &["images"]);
    assert!(
        table.line().lines().all(|line| line.len() <= 80),
        "{table:?}"
    );
    assert!(
        table.out.contains(&id[7..20]) && !table.out.contains(&id[7..21]),
        "{table:?}"
    );
    assert!(on(&root, &["images", "--no-trunc"]).out.contains(&id));
    assert!(on(&root, &["images", "--digests"]).out.contains("sha256:"));

    let details = on(&root, &["inspect", &id[7..20], &other]).json();
    assert_eq!(details.as_array().unwrap().len(), 2);
    assert_eq!(details[0]["id"], id.as_str());
    assert_eq!(details[0]["config"]["config"]["User"], "1002:users");
    assert_eq!(details[0]["manifestDocument"]["schemaVersion"], 2);
    assert_eq!(details[0]["layers"][0]["users"], 2);
    assert_eq!(details[0]["layers"][1]["users"], 1);
    assert!(
        details[0]["chainId"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    // What is there is shown even if something else is not.
    let ran = on(&root, &["inspect", "-o", "table", "nope", &app]);
    assert_eq!(ran.code, 3);
    assert!(ran.out.contains("linux/amd64"), "{ran:?}");

    let usage = on(&root, &["df", "-o", "json"]).json();
    assert_eq!(usage["images"], 2);
    assert_eq!(usage["layers"], 3);
    assert_eq!(usage["logicalBytes"], 600_006, "{usage}");
    let stored = usage["storedBytes"].as_u64().unwrap();
    assert!(stored > 600_000, "{usage}");

    let target = dir.path().join("tree");
    let ran = on(&root, &["unpack", &app, target.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(std::fs::read(target.join("etc/motd")).unwrap(), b"hello\n");
    // A relative path is the caller's, and a full directory is refused.
    let ran = run(larder()
        .current_dir(dir.path())
        .arg("--root")
        .arg(&root)
        .args(["unpack", &app, "tree"]));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains(target.to_str().unwrap()), "{ran:?}");

    let ran = on(&root, &["rmi", "nope", &app]);
    assert_eq!(ran.code, 3, "{ran:?}");
    for line in [
        format!("Untagged: {app}"),
        format!("Deleted: {id}"),
        "Freed: ".to_owned(),
    ] {
        assert!(ran.out.contains(&line), "{ran:?}");
    }
    let freed = stored
        - on(&root, &["df", "-o", "json"]).json()["storedBytes"]
            .as_u64()
            .unwrap();
    assert!(freed > 200_000, "{freed}");
    let removed = on(&root, &["rmi", "-o", "json", &other]).json();
    assert!(
        removed[0]["freedBytes"].as_u64().unwrap() > 400_000,
        "{removed}"
    );
    assert_eq!(on(&root, &["images", "-q"]).out, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_pulls() {
    let hub = hub().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let absent = on_async(root, &["pull", &hub.reference("nope:1")]).await;
    assert_eq!(absent.code, 3, "{absent:?}");
    assert!(absent.err.contains("nope"), "{absent:?}");
    let platform = on_async(
        root,
        &["pull", "--platform", "linux/s390x", &hub.reference("app:1")],
    )
    .await;
    assert_eq!(platform.code, 1, "{platform:?}");
    assert!(platform.err.contains("linux/amd64"), "{platform:?}");

    hub.require("app", &["ann:secret"]);
    let app = hub.reference("app:1");
    let denied = on_async(root, &["pull", &app]).await;
    assert_eq!(denied.code, 1, "{denied:?}");
    let denied = on_async(root, &["pull", "-u", "ann:wrong", &app]).await;
    assert_eq!(denied.code, 1, "{denied:?}");
    assert!(!denied.err.contains("wrong"), "{denied:?}");
    let allowed = on_async(root, &["pull", "-q", "--creds", "ann:secret", &app]).await;
    assert_eq!(allowed.code, 0, "{allowed:?}");

    let with_stdin = {
        let (root, app) = (root.to_owned(), app.clone());
        tokio::task::spawn_blocking(move || {
            let mut child = larder()
                .arg("--root")
                .arg(root)
                .args(["pull", "-q", "-u", "ann", "--password-stdin", &app])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(b"secret\n").unwrap();
            child.wait().unwrap().code()
        })
    };
    assert_eq!(with_stdin.await.unwrap(), Some(0));

    // As docker login leaves it; "ann:secret".
    let file = root.join("auth.json");
    let auths = serde_json::json!({ "auths": { &hub.host: { "auth": "YW5uOnNlY3JldA==" } } });
    std::fs::write(&file, auths.to_string()).unwrap();
    let by_file = on_async(
        root,
        &["pull", "-q", "--authfile", file.to_str().unwrap(), &app],
    )
    .await;
    assert_eq!(by_file.code, 0, "{by_file:?}");
    let no_file = on_async(root, &["pull", "--authfile", "/nonexistent/a.json", &app]).await;
    assert_eq!(no_file.code, 1, "{no_file:?}");
    assert!(no_file.err.contains("/nonexistent/a.json"), "{no_file:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_named_and_healed() {
    let hub = hub().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let app = hub.reference("app:1");
    assert_eq!(on_async(&root, &["pull", "-q", &app]).await.code, 0);
    let sound = on(&root, &["fsck"]);
    assert!(sound.line().ends_with("no damage."), "{sound:?}");

    let pack = std::fs::read_dir(root.join("packs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ext| ext == "pack"))
        .unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    // In the first content, whichever it is.
    let at = bytes.iter().position(|byte| *byte != 0).unwrap();
    bytes[at] ^= 0xff;
    std::fs::write(&pack, bytes).unwrap();

    let found = on(&root, &["fsck", "-o", "json"]);
    assert_eq!(found.code, 1, "{found:?}");
    let report: Value = serde_json::from_str(&found.out).unwrap();
    let damage = &report["damaged"][0];
    for key in ["kind", "subject", "cause"] {
        assert!(!damage[key].as_str().unwrap().is_empty(), "{report}");
    }
    assert_eq!(damage["images"][0], app.as_str(), "{report}");

    let repaired = on(&root, &["fsck", "--repair"]);
    assert_eq!(repaired.code, 0, "{repaired:?}");
    let healed = on_async(&root, &["pull", "-q", &app]).await;
    assert_eq!(healed.code, 0, "{healed:?}");
    let sound = on(&root, &["fsck"]);
    assert!(sound.line().ends_with("no damage."), "{sound:?}");
}

/// Damages a store in place, as a disk or a hand may: no file changes its length, but for the database's.
fn damage(root: &Path, kind: &str) {
    if kind == "database" {
        return std::fs::write(root.join("larder.redb"), noise(9, 70_000)).unwrap();
    }
    let folder = if kind == "pack" { "packs" } else { "layers" };
    let files = std::fs::read_dir(root.join(folder)).unwrap();
    let path = files
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ext| ext == kind))
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = match kind {
        // In the first content, whichever it is.
        "pack" => bytes.iter().position(|byte| *byte != 0).unwrap(),
        _ => bytes.len() / 2,
    };
    bytes[at] ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_every_kind_is_healed_by_a_pull() {
    let hub = hub().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let app = hub.reference("app:1");
    assert_eq!(on_async(&root, &["pull", "-q", &app]).await.code, 0);
    for (kind, named) in [
        ("pack", "packs/"),
        ("erofs", ".erofs"),
        ("idx", "checksum"),
        ("database", "larder.redb"),
    ] {
        for verified in [false, true] {
            damage(&root, kind);
            if verified {
                let found = on(&root, &["fsck", "-o", "json"]);
                assert_eq!(found.code, 1, "{kind}: {found:?}");
                assert!(found.out.contains(named), "{kind}: {found:?}");
                let repaired = on(&root, &["fsck", "--repair"]);
                assert_eq!(repaired.code, 0, "{kind}: {repaired:?}");
            } else if kind == "pack" {
                // Contents are too many to read at each pull: whoever reads them finds out.
                let target = dir.path().join("refused");
                let read = on(&root, &["unpack", &app, target.to_str().unwrap()]);
                assert_eq!(read.code, 1, "{read:?}");
                assert!(
                    read.err.contains(named) && read.err.contains("pull"),
                    "{read:?}"
                );
            } else if kind == "database" {
                // Not only to the first who asks.
                for _ in 0..2 {
                    let listed = on(&root, &["images", "-q"]);
                    assert!(listed.err.contains(named), "{listed:?}");
                    assert!(listed.err.contains("pull the images again"), "{listed:?}");
                }
            }
            let healed = on_async(&root, &["pull", "-q", &app]).await;
            assert_eq!(healed.code, 0, "{kind}: {healed:?}");
            let sound = on(&root, &["fsck"]);
            assert!(sound.line().ends_with("no damage."), "{kind}: {sound:?}");
            let target = dir.path().join(format!("{kind}-{verified}"));
            let read = on(&root, &["unpack", &app, target.to_str().unwrap()]);
            assert_eq!(read.code, 0, "{kind}: {read:?}");
            let content = std::fs::read(target.join("app/main")).unwrap();
            assert!(content == noise(2, 200_000), "{kind}");
        }
    }
}

#[test]
fn a_reader_that_hangs_up_is_no_failure() {
    let mut child = larder()
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(16, child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_through_an_agent_which_holds_its_root() {
    let hub = hub().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let agent = tokio::task::spawn_blocking(move || AgentProcess::start(&path))
        .await
        .unwrap();
    let socket = agent.socket.clone();
    let ask = |args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let socket = socket.clone();
        // The flag after the verb means the same.
        tokio::task::spawn_blocking(move || run(larder().args(args).arg("--socket").arg(socket)))
    };
    let app = hub.reference("app:1");
    let pulled = ask(&["pull", &app]).await.unwrap();
    let id = pulled.line().to_owned();
    let images = ask(&["images", "-o", "json"]).await.unwrap().json();
    assert_eq!(images[0]["id"], id.as_str());
    let version = ask(&["version", "-o", "json"]).await.unwrap().json();
    assert_eq!(version["agent"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(ask(&["rmi", "nope"]).await.unwrap().code, 3);
    assert_eq!(ask(&["fsck"]).await.unwrap().code, 0);

    let root = dir.path().join("root");
    let second = on(&root, &["images"]);
    assert_eq!(second.code, 1);
    for word in ["in use by process", "--socket"] {
        assert!(second.err.contains(word), "{second:?}");
    }
    assert_eq!(ask(&["rmi", &id]).await.unwrap().code, 0);
    tokio::task::spawn_blocking(move || agent.terminate())
        .await
        .unwrap();
}

#[test]
fn flags_before_the_verb_are_the_agents_too() {
    let dir = tempfile::tempdir().unwrap();
    let (root, socket) = (dir.path().join("given"), dir.path().join("s.sock"));
    let mut command = larder();
    command
        .arg("--root")
        .arg(&root)
        .arg("--socket")
        .arg(&socket)
        .args(["agent", "--http", "", "--log-format", "json"])
        .stdout(Stdio::null());
    let agent = AgentProcess::start_with(dir.path(), command)
        .unwrap_or_else(|(status, log)| panic!("{status}: {log}"));
    assert!(root.join("meta.json").exists());
    let ran = run(larder().arg("--socket").arg(&socket).arg("df"));
    assert!(ran.out.contains(root.to_str().unwrap()), "{ran:?}");
    agent.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_an_images_maker_does_not_speak_to_the_terminal() {
    let hub = Hub::start().await;
    let layer = gzip(&tar(&[("f", b"x")]));
    let mut evil = config("amd64", &[layer.diff_id.as_str()]);
    evil["config"]["User"] = "a\u{1b}]0;owned\u{7}".into();
    hub.push("evil", "1", &BuiltImage::with_config(&[layer], &evil));
    let dir = tempfile::tempdir().unwrap();
    let reference = hub.reference("evil:1");
    assert_eq!(
        on_async(dir.path(), &["pull", "-q", &reference]).await.code,
        0
    );
    for format in ["table", "json", "yaml"] {
        let shown = on(dir.path(), &["inspect", "-o", format, &reference]);
        assert_eq!(shown.code, 0, "{shown:?}");
        assert!(!shown.out.contains(['\u{1b}', '\u{7}']), "{shown:?}");
    }
}

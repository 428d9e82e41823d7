//! `larder setup containerd` at the terminal, and what a real containerd makes of what it writes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::support::containerd::{Containerd, programs, runs};
use crate::support::hub::Hub;
use crate::support::process::{AgentProcess, Ended, run};
use crate::support::{need, skip};

fn setup(config: &Path, args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command
        .args(["setup", "containerd", "--config"])
        .arg(config);
    run(command.args(args).stdin(Stdio::null()))
}

/// Everything below a folder, with its text.
fn tree(folder: &Path) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let text = path.is_file().then(|| fs::read_to_string(&path).unwrap());
            found.push((path.display().to_string(), text));
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn it_shows_asks_writes_and_takes_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let certs = dir.path().join("certs.d");
    let certs = certs.to_str().unwrap();
    fs::write(
        &config,
        "version = 3\nimports = [\"conf.d/*.toml\"] # ours\n",
    )
    .unwrap();
    let before = tree(dir.path());

    let ran = setup(&config, &["--certs-dir", certs]);
    assert!(!ran.success, "{ran:?}");
    assert!(ran.stderr.contains("give --yes"), "{ran:?}");
    assert!(
        ran.stdout.contains("\n+[proxy_plugins.larder]\n"),
        "{ran:?}"
    );
    let ran = setup(&config, &["--certs-dir", certs, "--dry-run"]);
    assert!(
        ran.success && ran.stdout.contains("_default/hosts.toml\n@@ -0,0 +1,"),
        "{ran:?}"
    );
    assert_eq!(tree(dir.path()), before);

    let ran = setup(&config, &["--certs-dir", certs, "--yes"]);
    assert!(ran.success, "{ran:?}");
    for words in [
        "Made ",
        "conf.d/larder.toml",
        "systemctl restart containerd",
        "larder doctor",
    ] {
        assert!(ran.stdout.contains(words), "{words}: {ran:?}");
    }
    let after = tree(dir.path());
    assert_eq!(after.len(), before.len() + 5);
    let ran = setup(&config, &["--yes"]);
    assert!(
        ran.success && ran.stdout == "Nothing to change.\n",
        "{ran:?}"
    );
    assert_eq!(tree(dir.path()), after);

    let ran = setup(&config, &["--undo", "-y", "-o", "json"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(told["restartContainerd"], true, "{ran:?}");
    assert_eq!(told["changes"][0]["action"], "remove", "{ran:?}");
    assert_eq!(tree(dir.path()), before);

    // With another certs.d the configuration has to agree.
    fs::write(
        &config,
        "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/srv\"\n",
    )
    .unwrap();
    let ran = setup(&config, &["--certs-dir", certs, "--yes"]);
    assert!(ran.stderr.contains("leave --certs-dir out"), "{ran:?}");
    for args in [
        &["--mirror", "192.0.2.1:1"][..],
        &["--undo", "--registry", "x"],
    ] {
        assert!(!setup(&config, args).success, "{args:?}");
    }
}

/// What containerd makes of a configuration.
fn dumped(containerd: &Path, config: &Path) -> toml::Table {
    let mut command = Command::new(containerd);
    command.arg("--config").arg(config).args(["config", "dump"]);
    run(&mut command).ok().parse().unwrap()
}

#[test]
fn containerd_reads_what_is_written() {
    const TEST: &str = "containerd_reads_what_is_written";
    let Some([containerd]) = need(TEST, ["containerd"]) else {
        return;
    };
    let default = run(Command::new(&containerd).args(["config", "default"])).ok();
    if default.contains("\nversion = 2\n") {
        return skip(TEST, "this containerd has a configuration of its own: 1.7");
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let certs = dir.path().join("certs.d");
    let imports = "imports = ['/etc/containerd/conf.d/*.toml']";
    assert!(default.contains(imports), "{default}");
    let here = format!("imports = ['{}/conf.d/*.toml']", dir.path().display());
    for main in [
        default.replace(imports, &here),
        default.replace(imports, "imports = []"),
        "version = 3\n".to_owned(),
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause:1\"\n"
            .to_owned(),
    ] {
        fs::write(&config, &main).unwrap();
        let before = dumped(&containerd, &config);
        let args = [
            "--yes",
            "--certs-dir",
            certs.to_str().unwrap(),
            "--socket",
            "/run/l.sock",
        ];
        let ran = setup(&config, &args);
        assert!(ran.success, "{ran:?}\n{main}");
        let dump = dumped(&containerd, &config);
        let images = &dump["plugins"]["io.containerd.cri.v1.images"];
        assert_eq!(images["snapshotter"].as_str(), Some("larder"), "{main}");
        assert_eq!(
            images["registry"]["config_path"].as_str(),
            certs.to_str(),
            "{main}"
        );
        let unpack = &dump["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"];
        assert_eq!(unpack[0]["snapshotter"].as_str(), Some("larder"), "{main}");
        let proxy = &dump["proxy_plugins"]["larder"];
        assert_eq!(proxy["address"].as_str(), Some("/run/l.sock"), "{main}");
        assert_eq!(
            proxy["exports"]["root"].as_str(),
            Some("/var/lib/larder"),
            "{main}"
        );
        // Nothing of what was there is lost.
        assert_eq!(
            images["pinned_images"],
            before["plugins"]["io.containerd.cri.v1.images"]["pinned_images"]
        );
        assert!(setup(&config, &["--undo", "--yes"]).success);
        assert_eq!(fs::read_to_string(&config).unwrap(), main);
        assert_eq!(tree(dir.path()).len(), 1);
    }
}

/// Takes down what it is asked, and has nothing.
fn empty_mirror() -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, asks) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            while lines
                .next()
                .and_then(Result::ok)
                .is_some_and(|line| !line.is_empty())
            {}
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
            if asked.send(first).is_err() {
                return;
            }
        }
    });
    (address, asks)
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_asks_the_mirror_and_unpacks_for_larder() {
    const TEST: &str = "containerd_asks_the_mirror_and_unpacks_for_larder";
    let Some(programs) = programs(TEST) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    hub.push(
        "app",
        "1",
        &runs(&[programs.shell()], &["/bin/sleep", "2147483647"]),
    );
    let image = hub.reference("app:1");
    // It ends after containerd, whose containers stand on its mounts.
    let _agent = AgentProcess::start(dir.path());
    let mut containerd = Containerd::without_larder(programs, dir.path(), &image);
    let (mirror, asks) = empty_mirror();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let ran = setup(
        &containerd.config(),
        &[
            "--yes",
            "--registry",
            &hub.host,
            "--mirror",
            &mirror.to_string(),
            "--certs-dir",
            &path("certs.d"),
            "--socket",
            &path("s.sock"),
            "--root",
            &path("root"),
        ],
    );
    assert!(ran.success, "{ran:?}");
    // The doctor finds what it looks for.
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_larder"));
    doctor
        .env("LARDER_MIRROR", mirror.to_string())
        .args(["doctor", "-o", "json", "--containerd-config"])
        .arg(containerd.config());
    let told: Value = serde_json::from_str(&run(&mut doctor).stdout).unwrap();
    let told = told.as_array().unwrap().iter();
    let told: Vec<_> = told.filter(|one| one["check"] == "mirror").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["verdict"], "ok", "{told:?}");
    let _ = asks.try_iter().count();
    containerd.again();
    containerd.crictl(&["pull", &image]);
    // Setup itself only looked whether anybody listens.
    let asked: Vec<String> = asks.try_iter().filter(|line| !line.is_empty()).collect();
    let namespace = format!("?ns={} ", hub.host.replace(':', "%3A"));
    let heads = asked
        .iter()
        .filter(|line| line.starts_with("HEAD /v2/app/manifests/1"));
    assert!(heads.count() > 0, "{asked:?}");
    assert!(
        asked.iter().all(|line| line.contains(&namespace)),
        "{asked:?}"
    );
    // Its own mirror had nothing, so the registry was asked, and larder keeps what was unpacked.
    let listed = containerd
        .ctr(&["snapshots", "--snapshotter", "larder", "ls"])
        .ok();
    assert!(listed.contains("Committed"), "{listed}");
    let (_, container) = containerd.pod("one", &image);
    assert_eq!(containerd.exec(&container, "echo it runs"), "it runs");
}

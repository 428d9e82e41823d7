//! Images that podman runs from larder's layers: the additional image store.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::build::{gzip, tar};
use crate::support::containerd::{remove_control_groups, runs, shell};
use crate::support::hub::Hub;
use crate::support::process::{AgentProcess, Ended, run};
use crate::support::{can_mount_erofs, need, skip};

/// podman on folders of its own, with an additional image store.
struct Podman {
    program: PathBuf,
    runc: PathBuf,
    dir: PathBuf,
}

impl Podman {
    fn try_run(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(&self.program);
        for (flag, folder) in [
            ("--root", "podman"),
            ("--runroot", "podman-run"),
            ("--tmpdir", "podman-tmp"),
        ] {
            command.arg(flag).arg(self.dir.join(folder));
        }
        let store = self.dir.join("store").display().to_string();
        command.args(["--storage-driver", "overlay", "--storage-opt"]);
        command.arg(format!("additionalimagestore={store}"));
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        // crun has no word for machines with both kinds of control groups.
        command.arg("--runtime").arg(&self.runc);
        run(command.args(args))
    }

    /// Its control group, which nobody else uses.
    fn group(&self) -> String {
        let name = self.dir.file_name().unwrap().to_string_lossy();
        format!("larder-it{}", name.replace('.', "-"))
    }

    fn run(&self, args: &[&str]) -> String {
        self.try_run(args).ok()
    }

    /// What a command prints in a container that goes with it.
    fn sh(&self, image: &str, script: &str) -> String {
        // As many as any machine allows.
        let limits = [
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ];
        let flags = ["run", "--rm", "--pull", "never", "--network", "none"];
        let group = format!("/{}", self.group());
        let parent = ["--cgroup-parent", group.as_str()];
        let command = ["--entrypoint", "/bin/sh", image, "-c", script];
        self.run(&[&flags[..], &parent, &limits, &command].concat())
    }
}

/// What keeps podman from its folders goes, whatever happens.
impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.try_run(&["rm", "--all", "--force"]);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        // Those of larder, too, should the test end before its time.
        let points: Vec<&str> = points.collect();
        for at in points
            .into_iter()
            .rev()
            .filter(|at| Path::new(at).starts_with(&self.dir))
        {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
        remove_control_groups(&self.group());
    }
}

fn larder(dir: &Path, args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("--socket").arg(dir.join("s.sock")).args(args);
    run(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_runs_images_that_it_never_pulled() {
    const TEST: &str = "podman_runs_images_that_it_never_pulled";
    let Some([program, runc, busybox]) = need(TEST, ["podman", "runc", "busybox"]) else {
        return;
    };
    if let Err(reason) = can_mount_erofs() {
        return skip(TEST, &reason);
    }
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    let upper = gzip(&tar(&[("etc/greeting", b"hello\n"), ("bin/.wh.rm", b"")]));
    let command = ["/bin/sleep", "2147483647"];
    hub.push("base", "1", &runs(&[shell(&busybox)], &command));
    hub.push("app", "1", &runs(&[shell(&busybox), upper], &command));
    let (base, app) = (hub.reference("base:1"), hub.reference("app:1"));
    let hosts = dir.path().join("hosts.d").join(&hub.host);
    fs::create_dir_all(&hosts).unwrap();
    let text = format!("server = \"http://{}\"\n", hub.host);
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    let _agent = AgentProcess::start(dir.path());
    for image in [&base, &app] {
        larder(dir.path(), &["pull", "-q", image]).ok();
    }
    // From here on there is no registry.
    drop(hub);
    let store = dir.path().join("store").display().to_string();
    larder(dir.path(), &["export-store", &store, &base, &app]).ok();
    let podman = Podman {
        program,
        runc,
        dir: dir.path().to_owned(),
    };
    let images: Value = serde_json::from_str(&podman.run(&["images", "--format", "json"])).unwrap();
    let images = images.as_array().unwrap();
    assert_eq!(images.len(), 2, "{images:?}");
    assert!(
        images.iter().all(|image| image["ReadOnly"] == true),
        "{images:?}"
    );
    assert_eq!(
        podman.sh(&app, "cat /etc/greeting && [ ! -e /bin/rm ] && echo gone"),
        "hello\ngone\n"
    );
    assert_eq!(
        podman.sh(&base, "echo x > /etc/new && cat /etc/new && ls /bin/rm"),
        "x\n/bin/rm\n"
    );
    // Nothing of them was copied.
    let own: Value = serde_json::from_slice(
        &fs::read(dir.path().join("podman/overlay-layers/layers.json")).unwrap_or(b"[]".to_vec()),
    )
    .unwrap();
    assert_eq!(own.as_array().map(Vec::len), Some(0), "{own}");
    // Done again it changes nothing; after a reboot it mounts anew.
    let text = |dir: &Path| fs::read(dir.join("store/overlay-images/images.json")).unwrap();
    let before = text(dir.path());
    larder(dir.path(), &["export-store", &store]).ok();
    assert_eq!(text(dir.path()), before);
    // One goes, the other stays.
    larder(dir.path(), &["export-store", &store, "--remove", &app]).ok();
    assert!(
        !podman
            .try_run(&["run", "--rm", "--pull", "never", &app])
            .success
    );
    assert_eq!(podman.sh(&base, "echo on"), "on\n");
    let refused = larder(
        dir.path(),
        &["export-store", dir.path().to_str().unwrap(), &base],
    );
    assert!(
        refused.stderr.contains("something else is in it"),
        "{refused:?}"
    );
    larder(dir.path(), &["export-store", &store, "--remove", &base]).ok();
    drop(podman);
}

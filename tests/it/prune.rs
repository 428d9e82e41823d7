//! Removal of images that nothing needs, and what a nearly full disk does: the real binary, real file systems, real
//! containers.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder::app::images::{NodeImages, NodePruning};
use larder::k8s::agent::Pruning;
use larder::prune::{Candidate, Protection};
use larder::registry;
use larder::runtime::{self, RuntimeContainers, RuntimeImages};
use serde_json::Value;

use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::containers::{Containerd, hosts, push_pause, sleeper};
use crate::support::disk::Disk;
use crate::support::hub::{Hub, blob_path};
use crate::support::process::{AgentProcess, agent_command, agent_on};
use crate::support::{need, skip};

/// Far more than anything takes; who waits longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

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
    fn lines(&self) -> BTreeSet<&str> {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.lines().collect()
    }
}

/// Where commands go: a store of their own, or an agent.
#[derive(Clone)]
enum To {
    Root(PathBuf),
    Socket(PathBuf),
}

impl To {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LARDER_") {
                command.env_remove(name);
            }
        }
        command.env("DOCKER_CONFIG", "/nonexistent");
        command.env("LARDER_HOSTS_DIR", "/nonexistent");
        match self {
            To::Root(root) => command.arg("--root").arg(root),
            To::Socket(socket) => command.arg("--socket").arg(socket),
        };
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs `larder ARGS` while the registry of this process answers.
    async fn run(&self, args: &[&str]) -> Ran {
        let mut command = self.command(args);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn pull(&self, name: &str) {
        let ran = self.run(&["pull", "-q", "--plain-http", name]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    async fn ids(&self) -> BTreeSet<String> {
        let ran = self.run(&["images", "-q"]).await;
        ran.lines().into_iter().map(str::to_owned).collect()
    }

    async fn stored(&self) -> u64 {
        let usage = self.run(&["df", "-o", "json"]).await.json();
        usage.pointer("/storedBytes").unwrap().as_u64().unwrap()
    }
}

fn ids(plan: &Value, part: &str) -> Vec<String> {
    let of = |entry: &Value| entry.pointer("/id").unwrap().as_str().unwrap().to_owned();
    let entries = plan.get(part).unwrap().as_array().unwrap();
    entries.iter().map(of).collect()
}

fn bytes(plan: &Value) -> u64 {
    let entries = plan.get("remove").unwrap().as_array().unwrap().iter();
    entries
        .map(|entry| entry.pointer("/bytes").unwrap().as_u64().unwrap())
        .sum()
}

/// An image with a layer that all have, and one of its own with a file that its neighbour has too.
fn image(seed: u64) -> BuiltImage {
    let base = tar(&[("base", &noise(1, 2_000_000))]);
    let shared = noise(100 + seed / 2, 700_000);
    let own = tar(&[("shared", &shared), ("own", &noise(200 + seed, 400_000))]);
    BuiltImage::new(&[gzip(&base), gzip(&own)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_prunes_as_docker_does_and_as_policies_say() {
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let to = To::Root(dir.path().join("root"));
    for tag in 1..=4 {
        hub.push("ci/app", &tag.to_string(), &image(tag));
        to.pull(&hub.reference(&format!("ci/app:{tag}"))).await;
    }
    // A tag that moved on leaves an image with a digest for a name.
    for seed in [5, 6] {
        hub.push("moved", "1", &image(seed));
        to.pull(&hub.reference("moved:1")).await;
    }
    let all = to.ids().await;
    assert_eq!(all.len(), 6);
    let id = |seed: u64| image(seed).id();

    let plan = to.run(&["prune", "--dry-run", "-o", "json"]).await.json();
    assert_eq!(ids(&plan, "remove"), [id(5)]);
    assert_eq!(ids(&plan, "keep").len(), 5);
    assert_eq!(to.ids().await, all, "a dry run removed something");
    let before = to.stored().await;
    let done = to.run(&["prune", "-o", "json"]).await.json();
    assert_eq!(ids(&done, "remove"), [id(5)]);
    let freed = before - to.stored().await;
    assert!(bytes(&plan).abs_diff(freed) * 10 < freed, "{plan} {freed}");
    assert!(bytes(&done).abs_diff(freed) * 10 < freed, "{done} {freed}");

    // Filters leave out what they do not name.
    for filter in ["until=24h", "label=maker=nobody", "label!=maker"] {
        let ran = to.run(&["prune", "-a", "--filter", filter]).await;
        assert!(ran.out.starts_with("Nothing to remove"), "{ran:?}");
    }
    let with = to
        .run(&["prune", "-a", "--dry-run", "-q", "--filter", "label=maker"])
        .await;
    assert_eq!(with.lines().len(), 5);

    let policy = |mode: &str, name: &str, rules: &str| {
        format!(
            "apiVersion: larder.dev/v1alpha1\nkind: ImagePrunePolicy\nmetadata: {{name: {name}}}\nspec:\n  mode: {mode}\n  rules: [{rules}]\n---\n"
        )
    };
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let newest = format!(
        "{{match: {{images: [\"{}/ci/*\"]}}, keepLast: 2}}",
        hub.host
    );
    // Not enforced: nothing goes, and it says so.
    let dry = write("dry.yaml", &policy("DryRun", "ci", &newest));
    let ran = to.run(&["prune", "--policy", &dry, "--explain"]).await;
    assert_eq!((ran.code, to.ids().await.len()), (0, 5), "{ran:?}");
    assert!(ran.err.contains("not Enforce"), "{ran:?}");
    assert!(ran.out.contains("Would remove 2 images") && ran.out.contains("These stay:"));
    assert!(
        ran.out.lines().all(|line| line.chars().count() <= 80),
        "{}",
        ran.out
    );
    // Two policies in a folder: one is, the other is not.
    write("both/1.yaml", &policy("Enforce", "ci", &newest));
    write("both/2.yml", &policy("DryRun", "all", "{maxUsedBytes: 1}"));
    let both = dir.path().join("both").display().to_string();
    let rehearsed = to
        .run(&["prune", "--policy", &both, "--dry-run", "-o", "json"])
        .await
        .json();
    assert_eq!(ids(&rehearsed, "remove").len(), 5);
    let before = to.stored().await;
    let done = to
        .run(&["prune", "--policy", &both, "-o", "json"])
        .await
        .json();
    let gone = before - to.stored().await;
    assert_eq!(ids(&done, "remove")[..2], [id(1), id(2)]);
    let removed = |at: usize| {
        done.pointer(&format!("/remove/{at}/removed"))
            .unwrap()
            .clone()
    };
    let rules =
        ["/remove/0/rule", "/remove/2/rule"].map(|path| done.pointer(path).unwrap().clone());
    assert_eq!(
        [removed(0), removed(1), removed(2)],
        [true, true, false].map(Value::from)
    );
    assert_eq!(rules, ["keepLast 2", "maxUsedBytes 1"].map(Value::from));
    let freed = done.pointer("/freedBytes").unwrap().as_u64().unwrap();
    assert!(freed.abs_diff(gone) * 10 < gone, "{freed} {gone}");
    assert_eq!(to.ids().await, BTreeSet::from([id(3), id(4), id(6)]));

    for (args, says) in [
        (&["--policy", "/nonexistent.yaml"][..], "nonexistent"),
        (&["--filter", "since=1h"], "since=1h"),
        (&["--policy", &dry, "-a"], "--all"),
    ] {
        let ran = to.run(&[&["prune"], args].concat()).await;
        assert!(ran.code == 2 && ran.err.contains(says), "{ran:?}");
    }
    let ran = to.run(&["prune", "-a", "-q"]).await;
    assert_eq!(ran.lines().len(), 3);
    assert!(to.ids().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_real_container_uses_stays() {
    let test = "an_image_that_a_real_container_uses_stays";
    let Some([_, _, _]) = need(test, ["crictl", "busybox", "containerd-shim-runc-v2"]) else {
        return;
    };
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let pause = push_pause(&hub).unwrap();
    let [one, two] = [b"one", b"two"].map(|own| sleeper(own).unwrap());
    hub.push("app", "1", &one);
    hub.push("app", "2", &two);
    hub.push("free", "1", &image(1));
    let Some(containerd) = Containerd::start(test, dir.path(), &hub).await else {
        return;
    };
    let [app_1, app_2] = ["app:1", "app:2"].map(|name| hub.reference(name));
    let started = [("one", &app_1), ("two", &app_2)].map(|(name, image)| {
        containerd.crictl(&["pull", image]).unwrap();
        containerd.run(name, image)
    });
    let [Ok(running), Ok(stopped)] = &started else {
        return skip(test, &format!("containers do not run here: {started:?}"));
    };
    containerd.crictl(&["stop", stopped]).unwrap();
    let free = hub.reference("free:1");
    containerd.crictl(&["pull", &free]).unwrap();
    removes_what_the_runtime_has(
        &containerd,
        &dir.path().join("seen.json"),
        [&one, &two, &pause],
    )
    .await;
    assert!(!containerd.crictl(&["images"]).unwrap().contains("/free"));

    let mut command = agent_command(dir.path());
    command.arg("--runtime-endpoint");
    command.arg(format!("unix://{}", containerd.socket.display()));
    let agent = AgentProcess::start_with(dir.path(), command).unwrap();
    let to = To::Socket(agent.socket.clone());
    for name in [
        &app_1,
        &app_2,
        &hub.reference("pause:1"),
        &hub.reference("free:1"),
    ] {
        to.pull(name).await;
    }
    for (name, container, pod) in [(&app_1, running, "one"), (&app_2, stopped, "two")] {
        let ran = to.run(&["rmi", name]).await;
        let named = format!("container {} (main of team/{pod})", &container[..13]);
        assert!(ran.code == 1 && ran.err.contains(&named), "{ran:?}");
    }
    let plan = to
        .run(&["prune", "-a", "--dry-run", "-o", "json"])
        .await
        .json();
    assert_eq!(ids(&plan, "remove"), [image(1).id()]);
    let reasons = plan.get("keep").unwrap().to_string();
    for reason in [&running[..13], &stopped[..13], "starts each pod"] {
        assert!(reasons.contains(reason), "{reason} in {reasons}");
    }
    let done = to.run(&["prune", "-a", "-o", "json"]).await.json();
    assert_eq!(ids(&done, "remove"), [image(1).id()]);
    assert_eq!(
        to.ids().await,
        BTreeSet::from([one.id(), two.id(), pause.id()])
    );
    // A container that is gone holds nothing, and a person may insist.
    containerd.crictl(&["rm", stopped]).unwrap();
    let done = to.run(&["prune", "-a", "-o", "json"]).await.json();
    assert_eq!(ids(&done, "remove"), [two.id()]);
    assert_eq!(to.run(&["rmi", "--force", &app_1]).await.code, 0);
    assert_eq!(to.ids().await, BTreeSet::from([pause.id()]));
}

/// Policies on the runtime's own images.
async fn removes_what_the_runtime_has(
    containerd: &Containerd,
    file: &Path,
    in_use: [&BuiltImage; 3],
) {
    let client = registry::Config::default();
    let client = registry::Client::new(client, registry::Metrics::default()).unwrap();
    let metrics = runtime::Metrics::default();
    let images = RuntimeImages::new(&containerd.socket, metrics.clone());
    let images = NodeImages::new(images, client);
    let containers = RuntimeContainers::new(&containerd.socket, metrics);
    let pruning = NodePruning::new(images, containers, file.to_owned());
    let (candidates, disk) = pruning.candidates().await.unwrap();
    assert!(disk.capacity > disk.available, "{disk:?}");
    let lasting = |candidate: &Candidate| {
        let mut all = candidate.protections.iter();
        all.any(|one| !matches!(one, Protection::Grace { .. }))
    };
    let protected: BTreeSet<String> = candidates
        .iter()
        .filter(|candidate| lasting(candidate))
        .map(|candidate| candidate.id.clone())
        .collect();
    assert_eq!(protected, in_use.map(BuiltImage::id).into());
    let free = image(1).id();
    assert!(candidates.iter().any(|candidate| candidate.id == free));
    for id in protected {
        assert_eq!(pruning.remove(id).await.unwrap(), None);
    }
    assert!(pruning.remove(free.clone()).await.unwrap().unwrap() > 0);
    assert_eq!(pruning.remove(free).await.unwrap(), None);
    assert!(file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_while_nobody_tells_what_is_in_use() {
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    hosts(dir.path(), &hub);
    hub.push("app", "1", &image(1));
    let mut command = agent_command(dir.path());
    command
        .arg("--runtime-endpoint")
        .arg(dir.path().join("absent.sock"));
    let agent = AgentProcess::start_with(dir.path(), command).unwrap();
    let to = To::Socket(agent.socket.clone());
    let name = hub.reference("app:1");
    to.pull(&name).await;
    for args in [
        &["prune", "-a"][..],
        &["prune", "-a", "--dry-run"],
        &["rmi", &name],
    ] {
        let ran = to.run(args).await;
        assert!(
            ran.code == 1 && ran.err.contains("none is removed"),
            "{ran:?}"
        );
        assert!(ran.err.contains("absent.sock"), "{ran:?}");
    }
    assert_eq!(to.ids().await.len(), 1);
    assert!(agent.log().contains("none is pruned"), "{}", agent.log());
    assert_eq!(to.run(&["rmi", "--force", &name]).await.code, 0);
}

const MIB: usize = 1 << 20;

fn large(seed: u64, bytes: usize) -> BuiltImage {
    BuiltImage::new(&[gzip(&tar(&[("file", &noise(seed, bytes))]))])
}

fn agent_with_band(dir: &Path, disk: &Path, band: &str) -> AgentProcess {
    let mut command = agent_on(dir, &disk.join("root"));
    command.env("LARDER_LIMITS_RESERVED", band);
    AgentProcess::start_with(dir, command).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_leave_the_reserved_band_and_what_may_go_goes_for_them() {
    let test = "pulls_leave_the_reserved_band_and_what_may_go_goes_for_them";
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    hosts(dir.path(), &hub);
    let Some(disk) = Disk::new(test, dir.path().join("disk"), 50 << 20) else {
        return;
    };
    let agent = agent_with_band(dir.path(), &disk.path, "20%");
    let to = To::Socket(agent.socket.clone());
    let free = || disk.free();
    let empty = free();
    // To make them takes longer than to pull them.
    let images = [45, 20, 30, 22, 22].map(|size| size * MIB);
    let images: Vec<BuiltImage> = (1..)
        .zip(images)
        .map(|(seed, size)| large(seed, size))
        .collect();
    for (number, image) in (1..).zip(&images) {
        hub.push("app", &number.to_string(), image);
    }
    let image = |number: usize| images.get(number - 1).unwrap();
    let name = |number: usize| hub.reference(&format!("app:{number}"));
    let blob = |number: usize| blob_path("app", &image(number).layers[0].digest);

    // It could never fit: refused before a byte of it was asked for.
    hub.take_log();
    let ran = to.run(&["pull", "-q", &name(1)]).await;
    assert!(
        ran.code == 1 && ran.err.contains("InsufficientSpace"),
        "{ran:?}"
    );
    let asked = hub.take_log().iter().any(|line| line.contains(&blob(1)));
    assert!(!asked, "its layer was asked for");

    // What nothing needs makes room.
    to.pull(&name(2)).await;
    to.pull(&name(3)).await;
    assert_eq!(to.ids().await, BTreeSet::from([image(3).id()]));
    assert!(agent.log().contains("emergency"), "{}", agent.log());
    assert!(free() >= 10 << 20);
    assert_eq!(to.run(&["rmi", &name(3)]).await.code, 0);

    // Two at once count each other: the second does not fit beside the first, which is not in the store yet.
    let gate = hub.gate(&blob(4));
    let first = {
        let (to, name) = (to.clone(), name(4));
        tokio::spawn(async move { to.run(&["pull", "-q", &name]).await })
    };
    gate.reached().await;
    let second = to.run(&["pull", "-q", &name(5)]).await;
    assert!(
        second.code == 1 && second.err.contains("InsufficientSpace"),
        "{second:?}"
    );
    gate.open();
    assert_eq!(first.await.unwrap().code, 0);
    assert_eq!(to.run(&["rmi", &name(4)]).await.code, 0);

    // It looks small and is not: stopped at the band, and nothing is left of it.
    let text = noise(7, 1000).repeat(47 * 1000 + 500);
    let dense = BuiltImage::new(&[gzip(&tar(&[("text", &text)]))]);
    assert!(dense.layers[0].blob.len() < 5 * MIB);
    hub.push("dense", "1", &dense);
    let ran = to.run(&["pull", "-q", &hub.reference("dense:1")]).await;
    assert!(
        ran.code == 1 && ran.err.contains("InsufficientSpace"),
        "{ran:?}"
    );
    assert!(free() + MIB as u64 >= empty, "{} of {empty}", free());
    assert!(to.ids().await.is_empty());
    assert_eq!(to.run(&["fsck"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_others_fill_is_noticed() {
    let test = "a_disk_that_others_fill_is_noticed";
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    hosts(dir.path(), &hub);
    let Some(disk) = Disk::new(test, dir.path().join("disk"), 100 << 20) else {
        return;
    };
    let agent = agent_with_band(dir.path(), &disk.path, "20Mi");
    let to = To::Socket(agent.socket.clone());
    let images = [1, 2].map(|seed| large(seed, 20 * MIB));
    for (tag, image) in ["1", "2"].into_iter().zip(&images) {
        hub.push("app", tag, image);
        to.pull(&hub.reference(&format!("app:{tag}"))).await;
    }
    let ballast = vec![1u8; 45 * MIB];
    std::fs::write(disk.path.join("ballast"), &ballast).unwrap();
    let began = Instant::now();
    let newer = BTreeSet::from([images[1].id()]);
    // As few as will do, the longest unused.
    while to.ids().await != newer {
        assert!(began.elapsed() < PATIENCE, "{}", agent.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_in_the_middle_of_a_prune_starts_clean() {
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    hosts(dir.path(), &hub);
    for round in 0..2 {
        let agent = AgentProcess::start(dir.path());
        let to = To::Socket(agent.socket.clone());
        for seed in 1..=12 {
            hub.push("app", &seed.to_string(), &image(seed));
            to.pull(&hub.reference(&format!("app:{seed}"))).await;
        }
        let prune = {
            let to = to.clone();
            tokio::spawn(async move { to.run(&["prune", "-a"]).await })
        };
        let layers = dir.path().join("root/layers");
        let began = Instant::now();
        while std::fs::read_dir(&layers).unwrap().count() > 26 - 8 * (round + 1) {
            assert!(began.elapsed() < PATIENCE, "nothing goes: {}", agent.log());
        }
        agent.kill();
        assert_ne!(prune.await.unwrap().code, 0);
        let agent = AgentProcess::start(dir.path());
        let to = To::Socket(agent.socket.clone());
        assert_eq!(to.run(&["fsck"]).await.code, 0);
        let left = to.ids().await.len();
        assert!(left < 12, "{left}");
        let done = to.run(&["prune", "-a", "-q"]).await;
        assert_eq!(done.lines().len(), left);
        let stored = to.stored().await;
        assert!(stored < 4 << 20, "{stored} bytes for nothing");
        agent.terminate();
    }
}

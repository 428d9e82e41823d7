//! Containers on larder's snapshots: a real containerd, images that it knows and never pulled, and what becomes of both
//! when one of them is killed.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::containerd::{Containerd, Programs, programs, runs};
use crate::support::hub::Hub;
use crate::support::process::{AgentProcess, Ended, agent_command, run};
use crate::support::{need, skip};

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent, a containerd that has it as snapshotter, and a registry.
struct Bed {
    agent: Option<AgentProcess>,
    containerd: Containerd,
    hub: Option<Hub>,
    host: String,
    dir: tempfile::TempDir,
}

impl Bed {
    async fn start(programs: Programs, images: &[(&str, BuiltImage)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), programs, images).await
    }

    async fn start_in(
        dir: tempfile::TempDir,
        programs: Programs,
        images: &[(&str, BuiltImage)],
    ) -> Self {
        let hub = Hub::start().await;
        let hosts = dir.path().join("hosts.d").join(&hub.host);
        fs::create_dir_all(&hosts).unwrap();
        let text = format!("server = \"http://{}\"\n", hub.host);
        fs::write(hosts.join("hosts.toml"), text).unwrap();
        let pause = runs(&[programs.shell()], &["/bin/sleep", "2147483647"]);
        hub.push("pause", "1", &pause);
        for (name, image) in images {
            hub.push(name, "1", image);
        }
        let sandbox = hub.reference("pause:1");
        let agent = start_agent(dir.path());
        let containerd = Containerd::start(programs, dir.path(), &sandbox, &agent.socket);
        Bed {
            agent: Some(agent),
            containerd,
            host: hub.host.clone(),
            hub: Some(hub),
            dir,
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}:1", self.host)
    }

    fn try_larder(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.arg("--socket").arg(self.dir.path().join("s.sock"));
        run(command.args(args))
    }

    fn larder(&self, args: &[&str]) -> String {
        self.try_larder(args).ok()
    }

    fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill();
    }

    fn start_agent(&mut self) {
        self.agent = Some(start_agent(self.dir.path()));
    }

    /// Images of larder, by name.
    fn images(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.larder(&["images", "-o", "json"])).unwrap();
        let images = list.as_array().unwrap().iter();
        images
            .flat_map(|image| image["repoTags"].as_array().unwrap().clone())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    fn layers(&self) -> usize {
        let entries = fs::read_dir(self.dir.path().join("root/layers")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".erofs"))
            .count()
    }

    /// Pulls, and waits until containerd knows.
    fn prepull(&mut self, names: &[&str]) {
        for name in names {
            self.larder(&["pull", "-q", &self.name(name)]);
        }
        let wanted: Vec<String> = names.iter().map(|name| self.name(name)).collect();
        self.containerd.until("the images are known", |containerd| {
            let known = containerd.images();
            wanted.iter().all(|name| known.contains(name))
        });
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            let log = self.agent.as_ref().map(AgentProcess::log);
            assert!(
                started.elapsed() < PATIENCE,
                "{what}: {}\n{}",
                log.unwrap_or_default(),
                self.containerd.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn start_agent(dir: &Path) -> AgentProcess {
    let mut command = agent_command(dir);
    command.arg("--containerd").arg(dir.join("c.sock"));
    AgentProcess::start_with(dir, command).unwrap_or_else(|(status, log)| panic!("{status}: {log}"))
}

impl Drop for Bed {
    /// Before the folders go: mounts of layers are the agent's.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(agent) = &self.agent
        {
            eprintln!("the agent's log:\n{}", agent.log());
        }
        self.agent = None;
    }
}

/// Two layers, of which the upper one hides and replaces.
fn app(programs: &Programs) -> BuiltImage {
    let upper = gzip(&tar(&[
        ("etc/greeting", b"hello\n"),
        ("opt/data", &noise(7, 300_000)),
        ("bin/.wh.rm", b""),
    ]));
    runs(&[programs.shell(), upper], &["/bin/sleep", "2147483647"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_from_a_prepulled_image_with_the_registry_gone() {
    let name = "a_pod_runs_from_a_prepulled_image_with_the_registry_gone";
    let Some(programs) = programs(name) else {
        return;
    };
    let image = app(&programs);
    let mut bed = Bed::start(programs, &[("app", image)]).await;
    bed.prepull(&["pause", "app"]);
    bed.hub = None;
    let (pod, container) = bed.containerd.pod("one", &bed.name("app"));
    let script = "cat /etc/greeting; echo new > /etc/new; ls /bin/rm 2>/dev/null; stat -c %a /";
    assert_eq!(bed.containerd.exec(&container, script), "hello\n755");
    let root = bed.containerd.rootfs(&container);
    assert_eq!(fs::read(root.join("opt/data")).unwrap(), noise(7, 300_000));
    // Nothing was fetched or unpacked: containerd has the documents, larder the folders of the containers.
    let blobs = bed.containerd.ctr(&["content", "ls", "-q"]).ok();
    assert_eq!(blobs.lines().count(), 4, "{blobs}");
    let folders = fs::read_dir(bed.dir.path().join("root/snapshots")).unwrap();
    assert_eq!(folders.count(), 2);

    // Nothing that a container lives on is pruned, though no runtime was asked who uses what.
    let pruned = bed.larder(&["prune", "-a", "-o", "json"]);
    let pruned: serde_json::Value = serde_json::from_str(&pruned).unwrap();
    assert_eq!(pruned["remove"], serde_json::json!([]), "{pruned:#}");
    assert!(pruned["keep"].to_string().contains("mounted"), "{pruned:#}");

    // Gone here, gone there; the container runs on.
    bed.larder(&["rmi", &bed.name("app")]);
    assert_eq!(bed.containerd.images(), [bed.name("pause")]);
    assert_eq!(bed.containerd.exec(&container, "cat /etc/new"), "new");
    assert_eq!(bed.layers(), 2);
    bed.containerd.crictl(&["rmp", "-f", &pod]);
    bed.until("the layer went with its container", |bed| bed.layers() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_in_containerd_is_removed_here() {
    let name = "an_image_that_is_removed_in_containerd_is_removed_here";
    let Some(programs) = programs(name) else {
        return;
    };
    let images = [("app", app(&programs)), ("other", app(&programs))];
    let mut bed = Bed::start(programs, &images).await;
    bed.prepull(&["pause", "app"]);
    // One name of two: the image stays, and the name is not brought back.
    bed.larder(&["pull", "-q", &bed.name("other")]);
    let other = bed.name("other");
    bed.containerd
        .until("the second name is known", |containerd| {
            containerd.images().contains(&other)
        });
    bed.containerd.ctr(&["images", "rm", "--sync", &other]).ok();
    bed.larder(&["pull", "-q", &bed.name("pause")]);
    assert!(bed.images().contains(&bed.name("app")));
    // All of them.
    bed.containerd.crictl(&["rmi", &bed.name("app")]);
    bed.until("it is gone here", |bed| bed.images() == [bed.name("pause")]);
    bed.until("its own layer too", |bed| bed.layers() == 1);
    // A containerd that lost its data is told again.
    bed.containerd.lose_everything();
    fs::remove_dir_all(bed.dir.path().join("containerd")).unwrap();
    bed.containerd.again();
    let pause = bed.name("pause");
    bed.containerd.until("it is told again", |containerd| {
        containerd.images() == [pause.clone()]
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_image_is_pinned_by_itself() {
    let name = "the_sandbox_image_is_pinned_by_itself";
    let Some(programs) = programs(name) else {
        return;
    };
    let image = app(&programs);
    let mut bed = Bed::start(programs, &[("app", image)]).await;
    bed.prepull(&["pause", "app"]);
    let pinned = |bed: &Bed| {
        let list: Value = serde_json::from_str(&bed.larder(&["images", "-o", "json"])).unwrap();
        let images = list.as_array().unwrap().iter();
        let pinned = images.filter(|image| image["pinned"] == true);
        let mut names: Vec<String> = pinned
            .flat_map(|image| image["repoTags"].as_array().unwrap().clone())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let (app, pause) = (bed.name("app"), bed.name("pause"));
    bed.until("it is pinned", |bed| pinned(bed) == [pause.clone()]);
    // An agent that starts anew is told again; with a pin of its own or without.
    bed.kill_agent();
    bed.start_agent();
    bed.until("it is still pinned", |bed| pinned(bed) == [pause.clone()]);
    // Whoever takes it away there does not take it away here.
    bed.containerd.crictl(&["rmi", &pause]);
    bed.containerd.until("it is known again", |containerd| {
        containerd.images().contains(&pause)
    });
    bed.until("it is pinned again", |bed| pinned(bed) == [pause.clone()]);
    // A containerd with another sandbox image has that one pinned: what containerd 2 pinned once, it keeps.
    bed.containerd.kill();
    let config = fs::read_to_string(bed.containerd.config()).unwrap();
    let config = config.replace(&format!("'{pause}'"), &format!("'{app}'"));
    fs::write(bed.containerd.config(), config).unwrap();
    bed.containerd.again();
    bed.until("the other one is pinned", |bed| pinned(bed).contains(&app));
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_agent_and_containerd() {
    let name = "containers_outlive_the_agent_and_containerd";
    let Some(programs) = programs(name) else {
        return;
    };
    let image = app(&programs);
    let mut bed = Bed::start(programs, &[("app", image)]).await;
    bed.prepull(&["pause", "app"]);
    bed.hub = None;
    let (_, first) = bed.containerd.pod("first", &bed.name("app"));
    let works = |bed: &Bed, container: &str| {
        let greeting = bed.containerd.exec(container, "cat /etc/greeting");
        assert_eq!(greeting, "hello");
    };
    bed.kill_agent();
    works(&bed, &first);
    bed.start_agent();
    let (_, second) = bed.containerd.pod("second", &bed.name("app"));
    bed.containerd.kill();
    bed.containerd.again();
    for container in [&first, &second] {
        works(&bed, container);
    }
    bed.containerd.kill();
    bed.kill_agent();
    bed.start_agent();
    bed.containerd.again();
    let (_, third) = bed.containerd.pod("third", &bed.name("app"));
    for container in [&first, &second, &third] {
        works(&bed, container);
    }
    // As a reboot: all ended, nothing mounted.
    bed.containerd.lose_everything();
    bed.kill_agent();
    assert_eq!(bed.containerd.mounts(), Vec::<PathBuf>::new());
    bed.start_agent();
    bed.containerd.again();
    assert!(bed.containerd.images().contains(&bed.name("app")));
    let (_, fourth) = bed.containerd.pod("fourth", &bed.name("app"));
    works(&bed, &fourth);
    // Those of before can be cleaned up, and nothing is left of them.
    bed.containerd.crictl(&["rmp", "-f", "-a"]);
    let folders = bed.dir.path().join("root/snapshots");
    bed.until("all folders went", |_| {
        fs::read_dir(&folders).unwrap().count() == 0
    });
}

/// Turns over a byte that a pack has of a content; the name of the pack.
fn damage(packs: &Path, content: &[u8]) -> String {
    let begin = &content[..64];
    for entry in fs::read_dir(packs).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let Some(at) = bytes.windows(64).position(|window| window == begin) else {
            continue;
        };
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[!bytes[at + 5000]], at as u64 + 5000)
            .unwrap();
        file.sync_all().unwrap();
        return format!("packs/{}", path.file_name().unwrap().to_string_lossy());
    }
    panic!("no pack has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_below_a_container_is_named_and_healed_by_a_pull() {
    let name = "damage_below_a_container_is_named_and_healed_by_a_pull";
    let Some(programs) = programs(name) else {
        return;
    };
    let (image, data) = (app(&programs), noise(7, 300_000));
    let mut bed = Bed::start(programs, &[("app", image)]).await;
    bed.prepull(&["pause", "app"]);
    let app = bed.name("app");
    let (_, first) = bed.containerd.pod("first", &app);
    let shown = |bed: &Bed, container: &str| {
        let file = bed.containerd.rootfs(container).join("opt/data");
        fs::read(file).unwrap() == data
    };
    assert!(shown(&bed, &first));
    let parent = bed.containerd.parent(&first);
    let pack = damage(&bed.dir.path().join("root/packs"), &data);

    let found = bed.try_larder(&["fsck"]);
    assert_eq!(found.code, Some(1), "{}", found.stdout);
    assert!(
        found.stdout.contains(&pack) && found.stdout.contains(&app),
        "{}",
        found.stdout
    );
    // Nobody is given it: it is on neither list, and what still knows its layers is told why not.
    assert_eq!(bed.images(), [bed.name("pause")]);
    bed.containerd.until("it is gone there", |containerd| {
        !containerd.images().contains(&app)
    });
    let more = ["snapshots", "--snapshotter", "larder", "prepare", "more"];
    let more: Vec<&str> = more.into_iter().chain([parent.as_str()]).collect();
    let refused = bed.containerd.ctr(&more);
    assert!(
        !refused.success && refused.stderr.contains("damaged") && refused.stderr.contains("pull"),
        "{}",
        refused.stderr
    );
    // Who runs on it, runs.
    let greeting = bed.containerd.exec(&first, "cat /etc/greeting");
    assert_eq!(greeting, "hello");

    bed.prepull(&["app"]);
    let (_, second) = bed.containerd.pod("second", &app);
    assert!(shown(&bed, &second));
    bed.larder(&["fsck"]);
    let greeting = bed.containerd.exec(&first, "cat /etc/greeting");
    assert_eq!(greeting, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mounted_is_said_and_leaves_no_mount() {
    let name = "what_cannot_be_mounted_is_said_and_leaves_no_mount";
    let Some(programs) = programs(name) else {
        return;
    };
    let data = noise(8, 300_000);
    let layers = [
        programs.shell(),
        gzip(&tar(&[("opt/data", &data)])),
        // Small enough to need no pack: the only one that can be mounted below.
        gzip(&tar(&[("etc/greeting", b"hello\n")])),
    ];
    let image = runs(&layers, &["/bin/sleep", "2147483647"]);
    let mut bed = Bed::start(programs, &[("app", image)]).await;
    bed.prepull(&["pause", "app"]);
    assert_eq!(bed.containerd.mounts(), Vec::<PathBuf>::new());
    let root = bed.dir.path().join("root");
    let away = bed.dir.path().join("away");
    fs::rename(root.join("packs"), &away).unwrap();
    fs::create_dir(root.join("packs")).unwrap();
    let list = ["snapshots", "--snapshotter", "larder", "ls"];
    let list = bed.containerd.ctr(&list).ok();
    let rows = || list.lines().map(|line| line.split_whitespace());
    let parents: Vec<&str> = rows().filter_map(|mut row| row.nth(1)).collect();
    // The chain of all three: nothing stands on it, and it stands on something.
    let top = rows().find_map(|mut row| {
        let (key, parent) = (row.next()?, row.next()?);
        (parent.starts_with("sha256:") && !parents.contains(&key)).then_some(key)
    });
    let prepare = ["snapshots", "--snapshotter", "larder", "prepare", "one"];
    let prepare: Vec<&str> = prepare.into_iter().chain(top).collect();
    let refused = bed.containerd.ctr(&prepare);
    assert!(
        !refused.success && refused.stderr.contains("packs/") && refused.stderr.contains("pull"),
        "{}",
        refused.stderr
    );
    assert_eq!(bed.containerd.mounts(), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(root.join("snapshots")).unwrap().count(), 0);
    // As with any damage.
    bed.until("it is on no list", |bed| bed.images().is_empty());
    bed.prepull(&["pause", "app"]);
    let (_, container) = bed.containerd.pod("one", &bed.name("app"));
    let shown = bed.containerd.rootfs(&container).join("opt/data");
    assert!(fs::read(shown).unwrap() == data);
}

/// Entries of a tar, with all that they can have.
struct Entries(tar::Builder<Vec<u8>>);

impl Entries {
    fn new() -> Self {
        Entries(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: u8, path: &str, mode: u32, owner: u64, bytes: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_600_000_000 + u64::from(mode));
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(7).unwrap();
        }
        if matches!(kind, b'1' | b'2') {
            header.set_size(0);
            let target = std::str::from_utf8(bytes).unwrap();
            self.0.append_link(&mut header, path, target).unwrap();
        } else {
            header.set_size(bytes.len() as u64);
            self.0.append_data(&mut header, path, bytes).unwrap();
        }
        self
    }

    fn with(mut self, key: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    fn layer(self) -> crate::support::build::BuiltLayer {
        gzip(&self.0.into_inner().unwrap())
    }
}

/// Layers that hide, replace, leave out and mark whatever layers can.
fn hostile() -> BuiltImage {
    // cap_net_raw=ep
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let base = Entries::new()
        .add(b'5', "./", 0o700, 1000, b"")
        .add(b'5', "usr", 0o711, 5, b"")
        .add(b'5', "usr/bin", 0o2755, 6, b"")
        .with("SCHILY.xattr.security.capability", &capability)
        .add(b'0', "usr/bin/ping", 0o755, 0, &noise(1, 9000))
        .add(b'0', "usr/bin/su", 0o4755, 0, b"su")
        .add(b'1', "usr/bin/su-too", 0o4755, 0, b"usr/bin/su")
        .add(b'2', "usr/bin/sh", 0o777, 3, b"../../bin/nowhere")
        .with("SCHILY.xattr.user.note", b"line\n=\0x")
        .add(b'5', "etc", 0o750, 7, b"")
        .add(b'0', "etc/passwd", 0o640, 8, b"root")
        .add(b'0', "etc/gone", 0o640, 8, b"gone")
        .add(b'5', "tmp", 0o1777, 0, b"")
        .add(b'6', "pipe", 0o600, 9, b"")
        .add(b'3', "full", 0o666, 0, b"")
        .add(b'5', "opaque", 0o755, 0, b"")
        .add(b'0', "opaque/below", 0o644, 0, b"below")
        .add(b'5', "folder", 0o755, 0, b"")
        .add(b'0', "folder/file", 0o644, 0, b"file")
        .add(b'0', "file", 0o644, 0, b"file")
        .layer();
    let middle = Entries::new()
        // Neither usr nor usr/bin is named: theirs must show.
        .add(b'0', "usr/bin/tool", 0o755, 0, &noise(2, 70_000))
        .add(b'0', "tmp/left", 0o600, 1, b"left")
        .add(b'0', "etc/.wh.gone", 0o644, 0, b"")
        .add(b'0', "opaque/.wh..wh..opq", 0o644, 0, b"")
        .add(b'0', "opaque/above", 0o644, 0, b"above")
        .add(b'0', "folder", 0o644, 0, b"a file now")
        .add(b'5', "file", 0o700, 2, b"")
        .add(b'0', "file/within", 0o644, 0, b"a folder now")
        .layer();
    let top = Entries::new()
        .add(b'0', ".wh.pipe", 0o644, 0, b"")
        .add(b'0', "etc/passwd", 0o600, 0, b"root, again")
        .add(b'0', "new/deep/er", 0o644, 4, b"nobody named the folders")
        .layer();
    // A layer that occurs twice.
    let layers = [base, middle.clone(), top, middle];
    runs(&layers, &["/none"])
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_see_what_they_see_on_containerds_own_snapshots() {
    use std::os::unix::fs::MetadataExt;

    let name = "containers_see_what_they_see_on_containerds_own_snapshots";
    let Some(programs) = programs(name) else {
        return;
    };
    let image = hostile();
    let mut bed = Bed::start(programs, &[("app", image)]).await;
    let reference = bed.name("app");
    let look = |bed: &Bed, namespace: &str, snapshotter: &str, writable: bool| {
        let target = bed.dir.path().join(format!("{namespace}-{writable}"));
        fs::create_dir_all(&target).unwrap();
        let at = target.to_str().unwrap();
        let ctr = |args: &[&str]| {
            let all: Vec<&str> = ["images"].iter().chain(args).copied().collect();
            bed.containerd.ctr_in(namespace, &all).ok()
        };
        if namespace != "k8s.io" {
            let how = ["pull", "--local", "--plain-http", "--snapshotter"];
            let how: Vec<&str> = how.into_iter().chain([snapshotter, &reference]).collect();
            ctr(&how);
        }
        let mut how = vec!["mount", "--snapshotter", snapshotter];
        how.extend(writable.then_some("--rw"));
        how.extend([reference.as_str(), at]);
        ctr(&how);
        let root = fs::metadata(&target).unwrap();
        let mut facts = crate::ingest::facts(&target);
        facts.insert(
            String::new(),
            format!("{:o} {}:{}", root.mode(), root.uid(), root.gid()),
        );
        ctr(&["unmount", "--rm", "--snapshotter", snapshotter, at]);
        facts
    };
    let wanted = look(&bed, "plain", "overlayfs", false);
    assert!(wanted.len() > 20, "{wanted:#?}");
    let same = |found: &BTreeMap<String, String>| {
        let names = |facts: &BTreeMap<String, String>| facts.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(found), names(&wanted));
        for (name, wanted) in &wanted {
            let found = &found[name];
            // containerd leaves directories into which it unpacked another layer at the time of that.
            if is_recent(wanted) {
                assert_eq!(timeless(found), timeless(wanted), "{name}");
            } else {
                assert_eq!(found, wanted, "{name}");
            }
        }
    };
    // Unpacked by containerd into folders of larder's, and then of layers that larder pulled.
    same(&look(&bed, "folders", "larder", false));
    bed.prepull(&["app"]);
    for writable in [false, true] {
        same(&look(&bed, "k8s.io", "larder", writable));
    }
}

/// Whether a file's time is of this test and not of its image.
fn is_recent(fact: &str) -> bool {
    let seconds = fact
        .split([' ', '.'])
        .nth(2)
        .and_then(|time| time.parse().ok());
    seconds.is_some_and(|seconds: i64| seconds > 1_700_000_000)
}

fn timeless(fact: &str) -> Vec<&str> {
    let words = fact.split(' ').enumerate();
    words
        .filter(|(at, _)| *at != 2)
        .map(|(_, word)| word)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_130_layers_runs() {
    let name = "an_image_of_130_layers_runs";
    let Some(programs) = programs(name) else {
        return;
    };
    let mut layers = vec![programs.shell()];
    for number in 0..129 {
        let path = format!("etc/{number}");
        layers.push(gzip(&tar(&[(&path, path.as_bytes())])));
    }
    let image = runs(&layers, &["/bin/sleep", "2147483647"]);
    let mut bed = Bed::start(programs, &[("app", image)]).await;
    bed.prepull(&["pause", "app"]);
    let (_, container) = bed.containerd.pod("deep", &bed.name("app"));
    let count = bed.containerd.exec(&container, "ls /etc");
    assert!(count.lines().count() >= 129, "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_passes() {
    let name = "a_full_disk_is_said_and_passes";
    let Some(programs) = programs(name) else {
        return;
    };
    let Some([mkfs, mount]) = need(name, ["mkfs.ext4", "mount"]) else {
        return;
    };
    let image = app(&programs);
    let dir = tempfile::tempdir().unwrap();
    let (root, disk) = (dir.path().join("root"), dir.path().join("disk"));
    fs::create_dir_all(&root).unwrap();
    fs::File::create(&disk).unwrap().set_len(48 << 20).unwrap();
    run(Command::new(mkfs).arg("-q").arg(&disk)).ok();
    let mounted = run(Command::new(mount)
        .args(["-o", "loop"])
        .arg(&disk)
        .arg(&root));
    if !mounted.success {
        return skip(name, &format!("no loop device: {}", mounted.stderr.trim()));
    }
    let mut bed = Bed::start_in(dir, programs, &[("app", image)]).await;
    bed.prepull(&["pause", "app"]);
    let (_, container) = bed.containerd.pod("writer", &bed.name("app"));
    let script = "dd if=/dev/zero of=/big bs=1M count=100 2>&1 || echo refused";
    let written = bed.containerd.exec(&container, script);
    assert!(
        written.contains("No space left") && written.contains("refused"),
        "{written}"
    );
    // The disk is full to the last block: nothing new can be made, and nothing of it stays.
    let before = bed
        .containerd
        .ctr(&["snapshots", "--snapshotter", "larder", "ls"])
        .ok();
    let parent = before
        .lines()
        .filter(|line| line.contains("Committed"))
        .filter_map(|line| line.split_whitespace().next())
        .next_back()
        .unwrap();
    let prepare = [
        "snapshots",
        "--snapshotter",
        "larder",
        "prepare",
        "more",
        parent,
    ];
    let refused = bed.containerd.ctr(&prepare);
    let folders = || fs::read_dir(root.join("snapshots")).unwrap().count();
    if !refused.success {
        assert!(
            refused.stderr.contains("no space left"),
            "{}",
            refused.stderr
        );
        assert_eq!(folders(), 2);
    }
    assert_eq!(
        bed.containerd.exec(&container, "cat /etc/greeting"),
        "hello"
    );
    bed.containerd.exec(&container, "rm /big");
    let (_, second) = bed.containerd.pod("second", &bed.name("app"));
    assert_eq!(bed.containerd.exec(&second, "cat /etc/greeting"), "hello");
}

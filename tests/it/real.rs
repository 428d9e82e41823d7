//! Unmodified tools of others against a real agent and a real registry, each a process of its own.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::build::{self, BuiltImage};
use crate::support::hub::Hub;
use crate::support::need;
use crate::support::process::{AgentProcess, Distribution, Ended, run};

struct Crictl<'a> {
    program: PathBuf,
    agent: &'a AgentProcess,
}

impl Crictl<'_> {
    fn run(&self, args: &[&str]) -> Ended {
        let endpoint = self.agent.endpoint();
        // Its default of 2 s for calls is for production builds on quiet machines.
        let mut command = Command::new(&self.program);
        command.args(["-t", "30s", "-i", &endpoint, "-r", &endpoint]);
        run(command.args(args))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args).ok()).unwrap()
    }

    fn used_bytes(&self) -> u64 {
        let info = self.json(&["imagefsinfo"]);
        let value = &info["status"]["imageFilesystems"][0]["usedBytes"]["value"];
        value.as_str().unwrap().parse().unwrap()
    }
}

/// Sends what is asked of `domain` to a registry on loopback.
fn mirror(dir: &Path, domain: &str, host: &str) {
    let folder = dir.join("hosts.d").join(domain);
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "server = \"http://{host}\"\n[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
}

/// An image of one layer that nothing else shares, with a user.
fn small(name: &str, user: &str) -> BuiltImage {
    let tar = build::tar(&[
        ("etc/name", name.as_bytes()),
        ("bin/tool", &build::noise(7, 9000)),
    ]);
    let layer = build::gzip(&tar);
    let mut config = build::config("amd64", &[&layer.diff_id]);
    config["config"] = json!({ "User": user, "Labels": { "name": name } });
    BuiltImage::with_config(&[layer], &config)
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_pulls_lists_inspects_and_removes() {
    let Some([crictl, registry]) = need("crictl", ["crictl", "docker-registry"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let hub = Distribution::start(&registry, dir.path());
    let image = small("app", "1002:users");
    hub.push("team/app", &["1", "2"], &image).await;
    let agent = AgentProcess::start(dir.path());
    let crictl = Crictl {
        program: crictl,
        agent: &agent,
    };
    let empty = crictl.used_bytes();

    let one = hub.reference("team/app:1");
    assert!(crictl.run(&["pull", &one]).ok().contains(&image.id()));
    let two = hub.reference("team/app:2");
    assert!(crictl.run(&["pull", &two]).ok().contains(&image.id()));
    assert!(crictl.used_bytes() > empty);

    let by_digest = format!("{}@{}", hub.reference("team/app"), image.digest());
    let listed = crictl.json(&["images", "-o", "json"]);
    let [only] = &listed["images"].as_array().unwrap()[..] else {
        panic!("one image in {listed}")
    };
    assert_eq!(only["id"], image.id());
    assert_eq!(only["repoTags"], json!([one, two]));
    assert_eq!(only["repoDigests"], json!([by_digest]));
    assert_eq!(only["uid"]["value"], "1002");
    assert!(only["size"].as_str().unwrap().parse::<u64>().unwrap() > 9000);

    // Names are filtered by the agent: a repository, a tag, a digest, an id, its beginning; and nothing else.
    let id = image.id();
    let hex = id.strip_prefix("sha256:").unwrap();
    let repository = hub.reference("team/app");
    let short = &hex[..10];
    for name in [&repository, &one, &by_digest, &id, hex, short] {
        let found = crictl.run(&["images", "-q", name]).ok();
        assert_eq!(found.trim(), id, "{name}");
        // Inspected, it would mean the tag latest.
        if *name == repository {
            continue;
        }
        let inspected = crictl.json(&["inspecti", name]);
        assert_eq!(inspected["status"]["id"], id, "{name}");
        assert_eq!(
            inspected["info"]["imageSpec"]["config"]["Labels"]["name"],
            "app"
        );
    }
    assert_eq!(crictl.run(&["images", "-q", "absent"]).ok().trim(), "");
    let absent = crictl.run(&["inspecti", "absent"]).failure();
    assert!(absent.contains("no such image"), "{absent}");

    let removed = crictl.run(&["rmi", &one]).ok();
    assert!(
        removed.contains(&one) && removed.contains(&two),
        "{removed}"
    );
    assert_eq!(crictl.run(&["images", "-q"]).ok().trim(), "");
    assert!(
        crictl.used_bytes() <= empty + (64 << 10),
        "removal gives the space back"
    );
    let absent = crictl.run(&["rmi", &one]).failure();
    assert!(absent.contains("no such image"), "{absent}");

    crictl.run(&["pull", &by_digest]).ok();
    let listed = crictl.json(&["images", "-o", "json"]);
    assert_eq!(listed["images"][0]["repoTags"], json!([]));
    crictl.run(&["rmi", "-a"]).ok();
    assert_eq!(crictl.run(&["images", "-q"]).ok().trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_finds_its_way_by_reflection() {
    let Some([grpcurl]) = need("grpcurl", ["grpcurl"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path());
    let call = |args: &[&str]| {
        let mut command = Command::new(&grpcurl);
        command.args(["-plaintext", "-authority", "localhost"]);
        let (last, first) = args.split_last().unwrap();
        run(command
            .args(first)
            .arg(agent.endpoint())
            .args(last.split(' ')))
    };
    let services = call(&["list"]).ok();
    for service in [
        "grpc.health.v1.Health",
        "larder.v1.Images",
        "runtime.v1.ImageService",
        "runtime.v1.RuntimeService",
    ] {
        assert!(services.lines().any(|line| line == service), "{services}");
        assert!(
            call(&[&format!("describe {service}")])
                .ok()
                .contains("is a service")
        );
    }
    let health = call(&["grpc.health.v1.Health/Check"]).ok();
    assert!(health.contains("SERVING"), "{health}");
    for service in [
        "runtime.v1.ImageService",
        "runtime.v1.RuntimeService",
        "larder.v1.Images",
    ] {
        let asked = format!("{{\"service\":\"{service}\"}}");
        let health = call(&["-d", &asked, "grpc.health.v1.Health/Check"]).ok();
        assert!(health.contains("\"SERVING\""), "{service}: {health}");
    }
    let nobody = call(&[
        "-d",
        "{\"service\":\"no.Service\"}",
        "grpc.health.v1.Health/Check",
    ]);
    assert!(nobody.failure().contains("NotFound"));
    let version = call(&["runtime.v1.RuntimeService/Version"]).ok();
    assert!(version.contains("\"runtimeName\": \"larder\""), "{version}");
    let usage: Value = serde_json::from_str(&call(&["larder.v1.Images/Usage"]).ok()).unwrap();
    assert!(usage["storedBytes"].is_string(), "{usage}");
    let refused = call(&[
        "-d",
        r#"{"image":{"image":"a b"}}"#,
        "runtime.v1.ImageService/PullImage",
    ]);
    assert!(refused.failure().contains("InvalidArgument"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_runtime_are_shown_the_way_to_one() {
    let Some([crictl]) = need("calls_of_a_runtime_are_shown_the_way_to_one", ["crictl"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path());
    let crictl = Crictl {
        program: crictl,
        agent: &agent,
    };
    assert!(crictl.run(&["version"]).ok().contains("larder"));
    for verb in ["ps", "pods", "stats", "info"] {
        let told = crictl.run(&[verb]).failure();
        for word in [
            "Unimplemented",
            "larder serves images only",
            "--runtime-endpoint",
            "containerRuntimeEndpoint",
        ] {
            assert!(told.contains(word), "{verb}: {word}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_s_own_client_is_served() {
    let Some([client]) = need("kubelet_s_own_client_is_served", ["criclient"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    let image = small("app", "1002:users");
    hub.push("team/app", "1", &image);
    let agent = AgentProcess::start(dir.path());
    let name = hub.reference("team/app:1");
    for mode in ["unary", "stream"] {
        let mut command = Command::new(&client);
        command.args([&agent.endpoint(), &name, mode]);
        let ended = tokio::task::spawn_blocking(move || run(&mut command));
        let seen: Value = serde_json::from_str(&ended.await.unwrap().ok()).unwrap();
        assert_eq!(seen["Pulled"], image.id(), "{seen}");
        let [listed] = &seen["Listed"].as_array().unwrap()[..] else {
            panic!("{mode}: one image in {seen}")
        };
        assert_eq!(listed["id"], image.id());
        assert_eq!(listed["repo_tags"], json!([name]));
        assert_eq!(listed["uid"]["value"], 1002);
        assert_eq!(&seen["Status"], listed, "{mode}");
        assert!(seen["Info"]["info"].as_str().unwrap().contains("chainID"));
        assert_eq!(
            (&seen["Filtered"], &seen["Containers"]),
            (&json!(1), &json!(1))
        );
        assert!(dir.path().starts_with(seen["Mountpoint"].as_str().unwrap()));
        assert!(seen["UsedBytes"].as_u64().unwrap() > 9000);
        assert_eq!(seen["AfterRemoval"], Value::Null);
        assert_eq!(seen["Left"], 0);
        let refused = seen["Refused"].as_str().unwrap();
        assert!(refused.contains("code = NotFound"), "{refused}");
        assert!(refused.contains("check repository and tag"), "{refused}");
    }
}

/// Specs of images that need no container. One is bound by digest to content that is not ours to copy.
const FOCUS: &str = "Image Manager|Image Consistency|Idempotence.*RemoveImage";
const SKIP: &str = "public image with digest";

#[tokio::test(flavor = "multi_thread")]
async fn the_image_specs_of_critest_pass() {
    let Some([critest, registry]) = need("critest", ["critest", "docker-registry"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let hub = Distribution::start(&registry, dir.path());
    for (name, tags, user) in [
        ("test-image-tag", &["test", "all"][..], ""),
        ("test-image-latest", &["latest"], ""),
        ("test-image-user-uid", &["latest"], "1002"),
        ("test-image-user-username", &["latest"], "www-data"),
        ("test-image-user-uid-group", &["latest"], "1003:users"),
        (
            "test-image-user-username-group",
            &["latest"],
            "www-data:100",
        ),
        ("test-image-1", &["latest"], ""),
        ("test-image-2", &["latest"], ""),
        ("test-image-3", &["latest"], ""),
        ("test-image-tags", &["1", "2", "3"], ""),
    ] {
        let repository = format!("k8s-staging-cri-tools/{name}");
        hub.push(&repository, tags, &small(name, user)).await;
    }
    hub.push("pause", &["3.9"], &small("pause", "")).await;
    for domain in ["gcr.io", "registry.k8s.io", "k8s.gcr.io"] {
        mirror(dir.path(), domain, &hub.host);
    }
    let agent = AgentProcess::start(dir.path());
    let mut command = Command::new(critest);
    for flag in ["-runtime-endpoint", "-image-endpoint"] {
        command.arg(flag).arg(agent.endpoint());
    }
    command.args(["-ginkgo.no-color", "-ginkgo.focus", FOCUS]);
    command.args(["-ginkgo.skip", SKIP]).current_dir(dir.path());
    let report = run(&mut command).ok();
    let passed = report
        .split_once("SUCCESS! -- ")
        .and_then(|(_, rest)| rest.split_once(" Passed | 0 Failed"))
        .and_then(|(count, _)| count.parse::<u32>().ok());
    assert!(passed.is_some_and(|count| count >= 13), "{report}");
}

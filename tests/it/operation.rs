//! An agent's process under what operators and registries do to it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use axum::http::StatusCode;
use larder::cri::proto::image_service_client::ImageServiceClient;
use larder::cri::proto::{
    ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest,
    RemoveImageRequest,
};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::doors::connect;
use crate::support::build::{self, BuiltImage, BuiltLayer, MANIFEST};
use crate::support::hub::{Hub, Seen, blob_path};
use crate::support::process::{AgentProcess, agent_on};

type Client = ImageServiceClient<Channel>;

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    })
}

async fn pull(client: &mut Client, name: &str) -> Result<String, Status> {
    let request = PullImageRequest {
        image: spec(name),
        ..PullImageRequest::default()
    };
    let answer = client.pull_image(request).await?;
    Ok(answer.into_inner().image_ref)
}

async fn used(client: &mut Client) -> u64 {
    let info = client.image_fs_info(ImageFsInfoRequest {}).await.unwrap();
    let info = info.into_inner();
    let used = info.image_filesystems[0].used_bytes.as_ref();
    used.map(|bytes| bytes.value).unwrap()
}

fn layer(seed: u64) -> BuiltLayer {
    build::gzip(&build::tar(&[("a", &build::noise(seed, 300_000))]))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_gets_wrong_leaves_nothing_behind() {
    let hub = Hub::start().await;
    let good = BuiltImage::new(&[layer(1)]);
    hub.push("good", "1", &good);

    let refused = BuiltImage::new(&[layer(2)]);
    hub.push("layer-404", "1", &refused);
    hub.refuse(
        &blob_path("layer-404", &refused.layers[0].digest),
        Some(StatusCode::NOT_FOUND),
    );
    hub.push("private", "1", &refused);
    hub.require("private", &["someone:secret"]);
    // As long as it should be, and not what its digest says.
    let other = BuiltImage::new(&[layer(3)]);
    hub.push("other-bytes", "1", &other);
    let mut bytes = other.layers[0].blob.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    hub.put_blob("other-bytes", &other.layers[0].digest, &bytes);
    // The blob is what its digest says, the content is not what the config says.
    let mut swapped = layer(4);
    swapped.diff_id = build::digest(b"something else");
    hub.push("other-tar", "1", &BuiltImage::new(&[swapped]));
    let whole = layer(5);
    let half = whole.blob[..whole.blob.len() / 2].to_vec();
    let cut = BuiltLayer {
        digest: build::digest(&half),
        blob: half,
        ..whole
    };
    hub.push("cut-gzip", "1", &BuiltImage::new(&[cut]));
    let old =
        serde_json::to_vec(&json!({"schemaVersion": 1, "name": "old", "tag": "1", "fsLayers": []}));
    let old_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    hub.put_manifest("old", "1", &old.unwrap(), old_type);
    hub.push_index(
        "elsewhere",
        "1",
        &build::index(&[("windows/amd64", &good.manifest, MANIFEST)]),
    );
    hub.put_manifest("html", "1", b"<html>sign in</html>", "text/html");

    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path());
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    pull(&mut client, &hub.reference("good:1")).await.unwrap();
    let before = used(&mut client).await;

    let digest = format!("good@{}", build::digest(b"no such manifest"));
    for (name, codes, words) in [
        (hub.reference(&digest), &[Code::NotFound][..], "good"),
        (hub.reference("absent:1"), &[Code::NotFound], "absent"),
        (hub.reference("layer-404:1"), &[Code::NotFound], "layer-404"),
        (
            hub.reference("private:1"),
            &[Code::Unauthenticated],
            "private",
        ),
        (
            hub.reference("other-bytes:1"),
            &[Code::DataLoss, Code::Unknown],
            "other-bytes",
        ),
        (
            hub.reference("other-tar:1"),
            &[Code::DataLoss],
            "the config says",
        ),
        (hub.reference("cut-gzip:1"), &[Code::DataLoss], "cut-gzip"),
        (hub.reference("old:1"), &[Code::DataLoss], "schema 1"),
        (
            hub.reference("elsewhere:1"),
            &[Code::InvalidArgument],
            "windows/amd64",
        ),
        (hub.reference("html:1"), &[Code::DataLoss], "html"),
        (hub.reference("UPPER:1"), &[Code::InvalidArgument], "UPPER"),
        (hub.reference("a:b:c"), &[Code::InvalidArgument], "a:b:c"),
        (
            hub.reference("a@sha256:12"),
            &[Code::InvalidArgument],
            "sha256:12",
        ),
        (
            "../../etc/passwd".to_owned(),
            &[Code::InvalidArgument],
            "..",
        ),
        (
            format!("a:{}", "t".repeat(5000)),
            &[Code::InvalidArgument],
            "",
        ),
    ] {
        let error = pull(&mut client, &name).await.unwrap_err();
        assert!(codes.contains(&error.code()), "{name}: {error}");
        assert!(error.message().contains(words), "{name}: {error}");
        let request = ImageStatusRequest {
            image: spec(&name),
            verbose: false,
        };
        let status = client.image_status(request).await;
        assert!(
            status.is_err() || status.is_ok_and(|status| status.into_inner().image.is_none()),
            "{name} is visible"
        );
    }

    let list = client
        .list_images(ListImagesRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().images.len(), 1);
    let after = used(&mut client).await;
    // The database alone may have grown.
    assert!(
        after <= before + (64 << 10),
        "{before} before, {after} after"
    );
    pull(&mut client, &hub.reference("good:1")).await.unwrap();
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_json_and_follow_the_callers_trace() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let hub = Hub::start().await;
    hub.push("app", "1", &BuiltImage::new(&[layer(1)]));
    let name = hub.reference("app:1");
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path());
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    let mut request = tonic::Request::new(PullImageRequest {
        image: spec(&name),
        ..PullImageRequest::default()
    });
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let header = parent.parse().unwrap();
    request.metadata_mut().insert("traceparent", header);
    hub.take_seen();
    client.pull_image(request).await.unwrap();
    let traced = hub.take_seen();
    pull(&mut client, &hub.reference("absent:1"))
        .await
        .unwrap_err();
    // The registry learns whose trace it is in, and of none where there is none.
    let told = |request: &Seen| request.header("traceparent").map(str::to_owned);
    assert!(traced.len() >= 3, "{traced:?}");
    for request in &traced {
        assert_eq!(told(request).as_ref(), Some(&parent), "{request:?}");
    }
    for request in &hub.take_seen() {
        assert_eq!(told(request), None, "{request:?}");
    }
    let image = spec(&name);
    client
        .remove_image(RemoveImageRequest { image })
        .await
        .unwrap();

    let log = agent.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        for key in ["timestamp", "level", "message", "target"] {
            assert!(line[key].is_string(), "{key}: {line}");
        }
        let message = line["message"].as_str().unwrap();
        assert!(message.starts_with(|c: char| c.is_uppercase()), "{line}");
    }
    let said = |message: &str| {
        let line = lines.iter().find(|line| line["message"] == message);
        line.unwrap_or_else(|| panic!("no {message:?} in {log}"))
    };
    let pulled = said("Image pulled");
    assert_eq!(pulled["span"]["trace_id"], TRACE, "{pulled}");
    assert_eq!(pulled["reference"], name.as_str(), "{pulled}");
    let (failed, removed) = (said("Pull failed"), said("Image removed"));
    assert_eq!(failed["level"], "WARN", "{failed}");
    assert_eq!(failed["reason"], "not_found", "{failed}");
    assert!(failed["err"].is_string(), "{failed}");
    assert!(removed["freed_bytes"].as_u64() > Some(200_000), "{removed}");
    for line in [pulled, failed, removed] {
        assert!(line["duration_seconds"].is_f64(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_and_a_restart_keep_what_was_pulled() {
    let hub = Hub::start().await;
    hub.push("app", "1", &BuiltImage::new(&[layer(1), layer(2)]));
    let name = hub.reference("app:1");
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path());
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    let id = pull(&mut client, &name).await.unwrap();
    agent.kill();
    // The socket's file is still there.
    let agent = AgentProcess::start(dir.path());
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    let list = client
        .list_images(ListImagesRequest::default())
        .await
        .unwrap();
    let images = list.into_inner().images;
    assert_eq!(images[0].id, id);
    assert_eq!(images[0].repo_tags, [name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_agent_whose_peers_are_silent() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path());
    let mut idle = ImageServiceClient::new(connect(&agent.socket).await);
    let _mute = UnixStream::connect(&agent.socket).unwrap();
    let mut half = UnixStream::connect(&agent.socket).unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").unwrap();
    idle.list_images(ListImagesRequest::default())
        .await
        .unwrap();
    let socket = agent.socket.clone();
    let took = tokio::task::spawn_blocking(|| agent.terminate())
        .await
        .unwrap();
    // The limit on stopping and what comes after it.
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert!(!socket.exists());
}

#[test]
fn roots_that_cannot_be_served_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path());
    let second = tempfile::tempdir().unwrap();
    let refused = |command| {
        let Err((status, log)) = AgentProcess::start_with(second.path(), command) else {
            panic!("the root is served")
        };
        assert_eq!(status.code(), Some(1), "{log}");
        log
    };
    let log = refused(agent_on(second.path(), &dir.path().join("root")));
    assert!(log.contains("is in use by process"), "{log}");
    agent.terminate();

    let meta = dir.path().join("root/meta.json");
    let written = std::fs::read_to_string(&meta).unwrap();
    std::fs::write(
        &meta,
        written
            .replace("\"version\":1", "\"version\":2")
            .replace("\"version\": 1", "\"version\": 2"),
    )
    .unwrap();
    let log = refused(agent_on(second.path(), &dir.path().join("root")));
    assert!(log.contains("version 2"), "{log}");
    std::fs::write(&meta, written).unwrap();

    let file = second.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let log = refused(agent_on(second.path(), &file.join("root")));
    assert!(log.contains("file"), "{log}");
    AgentProcess::start(dir.path()).terminate();
}

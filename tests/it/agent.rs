//! A whole agent on a temporary directory, over its real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use larder::app::agent::Agent;
use larder::app::config::{AgentArgs, Config};
use larder::control::proto as v1;
use larder::control::proto::images_client::ImagesClient;
use larder::cri::proto::image_service_client::ImageServiceClient;
use larder::cri::proto::*;
use larder::lifecycle::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::doors::connect;
use crate::support::need;

struct Running {
    dir: tempfile::TempDir,
    http: std::net::SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

fn config(dir: &Path) -> Config {
    let args = AgentArgs {
        root: Some(dir.join("root")),
        socket: Some(dir.join("larder.sock")),
        hosts_dir: vec![dir.join("hosts.d")],
        http: Some("127.0.0.1:0".to_owned()),
        drain_timeout: Some("10s".to_owned()),
        ..AgentArgs::default()
    };
    Config::load(&args).unwrap()
}

/// Runs an agent until it is ready.
async fn agent() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::build(config(dir.path())).await.unwrap();
    let http = agent.http().unwrap();
    let shutdown = Shutdown::new();
    let mut task = tokio::spawn(agent.run(shutdown.clone()));
    let ready = async {
        while !get(http, "/readyz").await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = ready => {}
        ended = &mut task => panic!("the agent ended: {ended:?}"),
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("the agent is not ready after a minute"),
    }
    Running {
        dir,
        http,
        shutdown,
        task,
    }
}

impl Running {
    async fn channel(&self) -> Channel {
        connect(&self.dir.path().join("larder.sock")).await
    }
    async fn stop(self) {
        self.shutdown.request();
        tokio::time::timeout(Duration::from_secs(30), self.task)
            .await
            .expect("in time")
            .unwrap()
            .unwrap();
        assert!(!self.dir.path().join("larder.sock").exists());
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_agent_answers_every_call() {
    let agent = agent().await;
    let mut images = ImageServiceClient::new(agent.channel().await);
    assert!(
        images
            .list_images(ListImagesRequest { filter: None })
            .await
            .unwrap()
            .into_inner()
            .images
            .is_empty()
    );
    let mut stream = images
        .stream_images(StreamImagesRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_none());

    for verbose in [false, true] {
        let absent = ImageStatusRequest {
            image: spec("busybox"),
            verbose,
        };
        assert_eq!(
            images
                .image_status(absent)
                .await
                .unwrap()
                .into_inner()
                .image,
            None
        );
    }
    let zeros = "0".repeat(64);
    for name in ["busybox", zeros.as_str(), zeros.as_str()] {
        images
            .remove_image(RemoveImageRequest { image: spec(name) })
            .await
            .unwrap();
    }
    for name in ["", "UPPER/Case:x y"] {
        let request = PullImageRequest {
            image: spec(name),
            ..PullImageRequest::default()
        };
        assert_eq!(
            images.pull_image(request).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{name:?}"
        );
    }
    // Port 1 of the loopback: nobody is there.
    let request = PullImageRequest {
        image: spec("127.0.0.1:1/app:1"),
        ..PullImageRequest::default()
    };
    let error = images.pull_image(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown, "{error}");
    assert!(
        error.message().starts_with("RegistryUnavailable: "),
        "{error}"
    );

    let info = images
        .image_fs_info(ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.image_filesystems, info.container_filesystems);
    let [usage] = &info.image_filesystems[..] else {
        panic!("one entry")
    };
    assert!(usage.timestamp > 0 && usage.used_bytes.is_some() && usage.inodes_used.is_some());
    assert!(
        agent
            .dir
            .path()
            .starts_with(&usage.fs_id.as_ref().unwrap().mountpoint)
    );

    let mut control = ImagesClient::new(agent.channel().await);
    assert_eq!(
        control
            .usage(v1::UsageRequest {})
            .await
            .unwrap()
            .into_inner()
            .images,
        0
    );
    let absent = control
        .inspect(v1::InspectRequest {
            name: "busybox".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let absent = control
        .remove(v1::RemoveRequest {
            name: "busybox".to_owned(),
            unless_used: false,
        })
        .await
        .unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let mut fsck = control
        .fsck(v1::FsckRequest { repair: false })
        .await
        .unwrap()
        .into_inner();
    let mut report = None;
    while let Some(event) = fsck.message().await.unwrap() {
        report = event.report;
    }
    assert!(report.unwrap().damaged.is_empty());
    let refused = v1::PullRequest {
        reference: "127.0.0.1:1/app:1".to_owned(),
        ..v1::PullRequest::default()
    };
    let mut pull = control.pull(refused).await.unwrap().into_inner();
    let error = loop {
        match pull.message().await {
            Ok(event) => assert!(
                event.is_some_and(|event| event.result.is_none()),
                "no result without a registry"
            ),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::Unavailable);
    drop((images, control));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_metrics_health_and_reflection() {
    let agent = agent().await;
    let mut health = HealthClient::new(agent.channel().await);
    for service in [
        "",
        "runtime.v1.ImageService",
        "runtime.v1.RuntimeService",
        "larder.v1.Images",
    ] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        assert_eq!(
            health.check(request).await.unwrap().into_inner().status(),
            ServingStatus::Serving,
            "{service}"
        );
    }
    // A watcher stays on; it must not hold up the end.
    let mut watch = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();

    let mut reflection = ServerReflectionClient::new(agent.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("a list")
    };
    let services: HashSet<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for service in [
        "runtime.v1.ImageService",
        "runtime.v1.RuntimeService",
        "larder.v1.Images",
        "grpc.health.v1.Health",
    ] {
        assert!(
            services.contains(service),
            "{service} is not in {services:?}"
        );
    }

    let answer = get(agent.http, "/readyz?verbose").await;
    assert!(
        answer.contains("[+]store ok\n[+]socket ok\nreadyz check passed"),
        "{answer}"
    );
    let answer = get(agent.http, "/metrics").await;
    for name in [
        "larder_build_info",
        "process_resident_memory_bytes",
        "grpc_server_handled_total",
    ] {
        assert!(answer.contains(name), "{name} is not in {answer}");
    }
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    if let Some([promtool]) = need("probes_metrics_health_and_reflection (lint)", ["promtool"]) {
        let mut lint = std::process::Command::new(promtool)
            .args(["check", "metrics"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = lint.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, text.as_bytes()).unwrap();
        drop(stdin);
        let output = lint.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}\n{text}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_on_one_root_or_socket_are_refused() {
    let first = agent().await;
    let second = |change: fn(&mut Config)| {
        let mut config = config(first.dir.path());
        config.root = first.dir.path().join("other");
        change(&mut config);
        async move {
            Agent::build(config)
                .await
                .unwrap()
                .run(Shutdown::new())
                .await
                .unwrap_err()
        }
    };
    let error = second(|_| ()).await;
    assert!(
        error.to_string().contains("is served by another process"),
        "{error:#}"
    );
    let error = second(|config| config.root = config.socket.with_file_name("root")).await;
    assert!(
        format!("{error:#}").contains("is in use by process"),
        "{error:#}"
    );
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_a_pull_that_hangs() {
    let agent = agent().await;
    // A registry that accepts and never answers.
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = format!("{}/app:1", registry.local_addr().unwrap());
    let mut images = ImageServiceClient::new(agent.channel().await);
    let pull = tokio::spawn(async move {
        let image = spec(&image);
        let request = PullImageRequest {
            image,
            ..PullImageRequest::default()
        };
        images.pull_image(request).await
    });
    let _silent = registry.accept().await.unwrap();
    agent.shutdown.request();
    let error = pull.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Cancelled, "{error}");
    agent.stop().await;
}

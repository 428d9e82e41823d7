//! The socket and what is served on it, over a real unix socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use larder::app::serve::serve_socket;
use larder::cri::proto::VersionRequest;
use larder::cri::proto::runtime_service_client::RuntimeServiceClient;
use larder::cri::{Metrics, RpcLayer, RuntimeService, Socket};
use larder::lifecycle::Shutdown;
use larder::telemetry;
use prometheus_client::registry::Registry;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

pub(crate) async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // HTTP/2 has no place for a path in its authority.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

struct Server {
    _dir: tempfile::TempDir,
    path: PathBuf,
    metrics: Registry,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// The socket with what needs no cache.
fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("larder.sock");
    let mut metrics = Registry::default();
    let layer = RpcLayer::new(
        Metrics::register(&mut metrics),
        &[larder::cri::proto::DESCRIPTORS],
    )
    .unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::builder();
    routes
        .add_service(RuntimeService.server())
        .add_service(health);
    let shutdown = Shutdown::new();
    let incoming = Socket::bind(&path).unwrap().incoming();
    let task = tokio::spawn(serve_socket(
        routes.routes(),
        layer,
        incoming,
        shutdown.clone(),
    ));
    Server {
        _dir: dir,
        path,
        metrics,
        shutdown,
        task,
    }
}

#[tokio::test]
async fn version_is_answered_and_counted() {
    let server = server();
    let mut client = RuntimeServiceClient::new(connect(&server.path).await);
    let mut request = tonic::Request::new(VersionRequest::default());
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request
        .metadata_mut()
        .insert("traceparent", context.parse().unwrap());
    let answer = client.version(request).await.unwrap().into_inner();
    assert_eq!(answer.runtime_name, "larder");
    assert_eq!(answer.runtime_api_version, "v1");
    drop(client);
    server.shutdown.request();
    server.task.await.unwrap().unwrap();
    let text = telemetry::encode(&server.metrics, telemetry::TextForm::OpenMetrics).unwrap();
    let labels =
        "grpc_type=\"unary\",grpc_service=\"runtime.v1.RuntimeService\",grpc_method=\"Version\"";
    assert!(
        text.contains(&format!(
            "grpc_server_handled_total{{{labels},grpc_code=\"OK\"}} 1\n"
        )),
        "{text}"
    );
}

#[tokio::test]
async fn unknown_services_are_unimplemented() {
    let server = server();
    let channel = connect(&server.path).await;
    let mut client = larder::cri::proto::image_service_client::ImageServiceClient::new(channel);
    let error = client
        .image_fs_info(larder::cri::proto::ImageFsInfoRequest {})
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unimplemented);
    server.shutdown.request();
}

#[tokio::test]
async fn the_server_ends_though_peers_are_silent() {
    let server = server();
    let mut health = HealthClient::new(connect(&server.path).await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    // One that never speaks, one that stops in the preface, one that stops after it.
    let _mute = BlockingStream::connect(&server.path).unwrap();
    let mut half = BlockingStream::connect(&server.path).unwrap();
    half.write_all(b"PRI * HTTP/2.0").unwrap();
    let mut idle = BlockingStream::connect(&server.path).unwrap();
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    // Its answer proves that the connections before it were accepted.
    let mut second = RuntimeServiceClient::new(connect(&server.path).await);
    second.version(VersionRequest::default()).await.unwrap();
    let began = Instant::now();
    server.shutdown.request();
    tokio::time::timeout(Duration::from_secs(30), server.task)
        .await
        .expect("within the limit")
        .unwrap()
        .unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert!(!server.path.exists(), "the name goes with the socket");
}

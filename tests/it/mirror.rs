//! The registry mirror: what runtimes get from it, who gets it, and what the registry is asked for meanwhile.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use larder::cache::{self, Background, Cache, Keep, PullRequest, Relay};
use larder::lifecycle::Shutdown;
use larder::mirror::{self, Mirror};
use larder::prune::{Amount, Pattern};
use larder::{registry, store};
use reqwest::Response;
use tokio::task::JoinHandle;

use crate::support::build::{BuiltImage, MANIFEST, gzip, noise, tar};
use crate::support::containerd::{Containerd, programs, runs};
use crate::support::hub::{Fault, Hub, Seen, blob_path};
use crate::support::process::{AgentProcess, agent_command};

/// A mirror over a fresh store, as an agent serves it.
struct Served {
    cache: Cache,
    store: store::Store,
    base: String,
    http: reqwest::Client,
    shutdown: Shutdown,
    task: JoinHandle<std::io::Result<()>>,
    _root: tempfile::TempDir,
}

/// What came of a request.
#[derive(Debug)]
struct Got {
    status: u16,
    headers: axum::http::HeaderMap,
    /// Without its last bytes, if the connection broke.
    body: Result<Vec<u8>, Vec<u8>>,
}

impl Got {
    async fn of(mut response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) => body.extend_from_slice(&bytes),
                Ok(None) => break,
                Err(_) => {
                    return Got {
                        status,
                        headers,
                        body: Err(body),
                    };
                }
            }
        }
        Got {
            status,
            headers,
            body: Ok(body),
        }
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default()
    }

    /// All of them; what they are is not shown.
    fn bytes(&self) -> &[u8] {
        assert!(matches!(self.status, 200 | 206), "{}", self.status);
        match &self.body {
            Ok(bytes) => bytes,
            Err(part) => panic!("the connection broke after {} bytes", part.len()),
        }
    }
}

impl Served {
    async fn start() -> Self {
        Self::with(&["*"], 1 << 30, None).await
    }

    async fn with(keep: &[&str], max_bytes: u64, hosts: Option<&std::path::Path>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = store::Options {
            root: root.path().join("root"),
            limits: store::Limits::default(),
        };
        let store = store::Store::open(options, store::Metrics::default()).unwrap();
        let mirror = Mirror::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let base = format!("http://{}", mirror.address());
        let client = registry::Config {
            attempts: 2,
            hosts_dirs: hosts.into_iter().map(Into::into).collect(),
            own_port: Some(mirror.address().port()),
            ..registry::Config::default()
        };
        let client = registry::Client::new(client, registry::Metrics::default()).unwrap();
        let config = cache::Config {
            platform: "linux/amd64".parse().unwrap(),
            max_layers: 3,
            orphan_grace: Duration::ZERO,
            pinned: Vec::new(),
            authfile: None,
            background: Background::default(),
            reserved: None,
        };
        let cache = Cache::new(config, store.clone(), client, cache::Metrics::default());
        let keep = Keep {
            images: keep.iter().map(|pattern| Pattern::new(*pattern)).collect(),
            max_bytes,
            // Whatever machine this is.
            min_free: Amount::Bytes(0),
        };
        let relay = Relay::new(&cache, keep);
        let shutdown = Shutdown::new();
        let metrics = mirror::Metrics::default();
        let task = tokio::spawn(mirror.serve(relay, metrics, shutdown.clone()));
        Served {
            cache,
            store,
            base,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            shutdown,
            task,
            _root: root,
        }
    }

    /// `path` below `/v2/`, with the registry meant behind it.
    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self
            .http
            .request(method, format!("{}/v2/{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Got {
        Got::of(self.send(Method::GET, path, headers).await).await
    }

    async fn head(&self, path: &str, headers: &[(&str, &str)]) -> Got {
        Got::of(self.send(Method::HEAD, path, headers).await).await
    }

    /// As containerd pulls: the tag, the manifest, then config and layers.
    async fn pull(&self, hub: &str, image: &BuiltImage, headers: &[(&str, &str)]) {
        let (repository, ns) = ("org/app", format!("?ns={hub}"));
        let head = self
            .head(&format!("{repository}/manifests/1{ns}"), headers)
            .await;
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.header("docker-content-digest"), image.digest());
        assert_eq!(head.header("content-type"), MANIFEST);
        assert_eq!(
            head.header("content-length"),
            image.manifest.len().to_string()
        );
        let path = format!("{repository}/manifests/{}{ns}", image.digest());
        let manifest = self.get(&path, headers).await;
        assert!(manifest.bytes() == image.manifest);
        assert_eq!(manifest.header("content-type"), MANIFEST);
        let layers = image
            .layers
            .iter()
            .map(|layer| (layer.digest.clone(), &layer.blob));
        for (digest, bytes) in layers.chain([(image.id(), &image.config)]) {
            let blob = self
                .get(&format!("{repository}/blobs/{digest}{ns}"), headers)
                .await;
            assert!(blob.bytes() == bytes);
            assert_eq!(blob.header("docker-content-digest"), digest);
            assert_eq!(blob.header("content-length"), bytes.len().to_string());
        }
    }

    async fn stop(self) {
        self.shutdown.request();
        self.cache.shutdown().await;
        drop(self.http);
        self.task.await.unwrap().unwrap();
    }
}

fn image() -> BuiltImage {
    let layer = |seed, len| gzip(&tar(&[("file", &noise(seed, len))]));
    BuiltImage::new(&[layer(1, 3_000_000), layer(2, 5_000)])
}

fn basic(account: &str) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(account);
    format!("Basic {text}")
}

/// How often the registry was asked for the bytes of each blob.
fn fetched(hub: &Hub) -> Vec<String> {
    let log = hub.take_log();
    let mut blobs: Vec<String> = log
        .into_iter()
        .filter(|line| line.starts_with("GET ") && line.contains("/blobs/"))
        .collect();
    blobs.sort();
    blobs
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_once_is_here() {
    let (hub, served, image) = (Hub::start().await, Served::start().await, image());
    hub.push("org/app", "1", &image);
    assert!(served.get("", &[]).await.bytes() == b"{}");
    served.pull(&hub.host, &image, &[]).await;
    let mut wanted: Vec<String> = image
        .layers
        .iter()
        .map(|layer| layer.digest.clone())
        .chain([image.id()])
        .map(|digest| format!("GET {}", blob_path("org/app", &digest)))
        .collect();
    wanted.sort();
    assert_eq!(fetched(&hub), wanted);
    assert_eq!(served.store.kept_usage().0, 4);
    // The registry is asked whether it may be given out, and for nothing else.
    served.pull(&hub.host, &image, &[]).await;
    let log = hub.take_log();
    assert!(log.iter().all(|line| line.starts_with("HEAD ")), "{log:?}");
    // With it gone, what was proven counts.
    let host = hub.host.clone();
    hub.fault_all("/", Fault::Status(503));
    served.pull(&host, &image, &[]).await;
    drop(hub);
    served.pull(&host, &image, &[]).await;
    for (path, expected) in [("org/app/manifests/2", 401), ("org/other/manifests/1", 502)] {
        let got = served.get(&format!("{path}?ns={host}"), &[]).await;
        assert_eq!(got.status, expected, "{got:?}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_want_the_same_are_one_download() {
    let (hub, served, image) = (Hub::start().await, Served::start().await, image());
    hub.push("org/app", "1", &image);
    let digest = &image.layers[0].digest;
    let path = format!("org/app/blobs/{digest}?ns={}", hub.host);
    let stall = Fault::Drip(200_000, Duration::from_millis(1));
    hub.fault(Method::GET, digest, stall);
    let (one, two, part) = tokio::join!(
        served.get(&path, &[]),
        served.get(&path, &[]),
        served.get(&path, &[("range", "bytes=2000000-2000099")]),
    );
    assert!(one.bytes() == image.layers[0].blob);
    assert!(two.bytes() == image.layers[0].blob);
    assert!(part.bytes() == &image.layers[0].blob[2_000_000..2_000_100]);
    let log = fetched(&hub);
    let whole = format!("GET {}", blob_path("org/app", digest));
    // The part may have come before the download began.
    assert!(log.len() <= 2 && log.contains(&whole), "{log:?}");
    assert_eq!(served.store.kept_usage().0, 1);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_private_goes_to_who_could_not_pull_it() {
    let (hub, served, image) = (Hub::start().await, Served::start().await, image());
    hub.push("org/app", "1", &image);
    hub.require("org/app", &["bob:good"]);
    let (good, bad) = (basic("bob:good"), basic("bob:bad"));
    let (good, bad) = ([("authorization", &*good)], [("authorization", &*bad)]);
    let tag = format!("org/app/manifests/1?ns={}", hub.host);
    let by_digest = format!("org/app/manifests/{}?ns={}", image.digest(), hub.host);
    let blob = format!("org/app/blobs/{}?ns={}", image.layers[0].digest, hub.host);
    let config = format!("org/app/blobs/{}?ns={}", image.id(), hub.host);
    // Before anything is here, and after all of it is.
    for round in 0..2 {
        for path in [&tag, &by_digest, &blob, &config] {
            let nobody = served.get(path, &[]).await;
            assert_eq!(nobody.status, 401, "{path}: {nobody:?}");
            assert_eq!(nobody.header("www-authenticate"), "Basic realm=\"larder\"");
            let refused = served.get(path, &bad).await;
            assert!(matches!(refused.status, 401 | 403), "{path}: {refused:?}");
            let text = String::from_utf8_lossy(refused.body.as_ref().unwrap()).into_owned();
            assert!(text.contains("errors") && !text.contains("bad"), "{text}");
        }
        if round == 0 {
            served.pull(&hub.host, &image, &good).await;
        }
    }
    // Another registry's word about the same digests opens nothing of this one.
    let evil = Hub::start().await;
    evil.push("org/app", "1", &image);
    hub.take_log();
    served.pull(&evil.host, &image, &[]).await;
    assert_eq!(fetched(&evil).len(), 3);
    // A repository of the same registry that does not have them neither.
    hub.push("org/mine", "1", &BuiltImage::new(&[]));
    hub.put_manifest("org/mine", "2", &image.manifest, MANIFEST);
    let path = format!("org/mine/manifests/2?ns={}", hub.host);
    assert_eq!(served.get(&path, &[]).await.status, 200);
    let path = format!("org/mine/blobs/{}?ns={}", image.layers[0].digest, hub.host);
    assert_eq!(served.get(&path, &[]).await.status, 404);
    // With the registry gone, who proved himself goes on, and nobody else.
    let host = hub.host.clone();
    drop(hub);
    served.pull(&host, &image, &good).await;
    for path in [&tag, &by_digest, &blob, &config] {
        // A runtime shows its credentials only where it is asked for them.
        assert_eq!(served.get(path, &[]).await.status, 401, "{path}");
        assert_eq!(served.get(path, &bad).await.status, 502, "{path}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_heads_are_those_of_the_whole() {
    let (hub, served, image) = (Hub::start().await, Served::start().await, image());
    hub.push("org/app", "1", &image);
    let (bytes, size) = (&image.layers[0].blob, image.layers[0].blob.len());
    let path = format!("org/app/blobs/{}?ns={}", image.layers[0].digest, hub.host);
    // First from the registry, then from here.
    for _ in 0..2 {
        for (range, first, end) in [
            ("bytes=1000-".to_owned(), 1000, size),
            ("bytes=0-99".to_owned(), 0, 100),
            ("bytes=-5".to_owned(), size - 5, size),
            (format!("bytes=5-{}", size * 2), 5, size),
        ] {
            let part = served.get(&path, &[("range", &range)]).await;
            assert_eq!(part.status, 206, "{range}: {part:?}");
            assert!(part.bytes() == &bytes[first..end], "{range}");
            let place = format!("bytes {first}-{}/{size}", end - 1);
            assert_eq!(part.header("content-range"), place);
        }
        let beyond = format!("bytes={size}-");
        let none = served.get(&path, &[("range", &beyond)]).await;
        assert_eq!(none.status, 416);
        assert_eq!(none.header("content-range"), format!("bytes */{size}"));
        let head = served.head(&path, &[]).await;
        assert_eq!((head.status, head.header("accept-ranges")), (200, "bytes"));
        assert_eq!(head.header("content-length"), size.to_string());
        assert!(served.get(&path, &[]).await.bytes() == bytes);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_gets_wrong_is_not_kept() {
    let (hub, served, image) = (Hub::start().await, Served::start().await, image());
    hub.push("org/app", "1", &image);
    let layer = &image.layers[0];
    let path = format!("org/app/blobs/{}?ns={}", layer.digest, hub.host);
    // The last byte does not go out before the digest is right.
    hub.fault(Method::GET, &layer.digest, Fault::WrongBytes);
    let broken = served.get(&path, &[]).await;
    assert!(broken.body.unwrap_err().len() < layer.blob.len());
    assert_eq!(served.store.kept_usage().0, 0);
    hub.heal();
    // It breaks off, and goes on where it stopped.
    hub.fault_times(Method::GET, &layer.digest, Fault::Cut(1_000_000), 1);
    assert!(served.get(&path, &[]).await.bytes() == layer.blob);
    hub.heal();
    for (status, expected) in [(404, 404), (401, 401), (403, 401), (429, 429), (500, 502)] {
        hub.fault_all("org/other", Fault::Status(status));
        let got = served
            .get(&format!("org/other/manifests/1?ns={}", hub.host), &[])
            .await;
        assert_eq!(got.status, expected, "{got:?}");
        assert_eq!(got.header("content-type"), "application/json");
        hub.heal();
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_what_is_kept_and_how_much() {
    let hub = Hub::start().await;
    let image = image();
    hub.push("org/app", "1", &image);
    let served = Served::with(&["elsewhere.example/**"], 1 << 30, None).await;
    for _ in 0..2 {
        served.pull(&hub.host, &image, &[]).await;
    }
    // Documents and small blobs; the large layer came twice.
    assert_eq!(served.store.kept_usage().0, 3);
    let large = format!("GET {}", blob_path("org/app", &image.layers[0].digest));
    assert_eq!(
        fetched(&hub).iter().filter(|line| **line == large).count(),
        2
    );
    served.stop().await;
    // What is too large for it comes through, and does not drive out the rest.
    let served = Served::with(&["*"], 1 << 20, None).await;
    served.pull(&hub.host, &image, &[]).await;
    let (blobs, bytes) = served.store.kept_usage();
    assert!(blobs == 3 && bytes < 1 << 20, "{blobs} {bytes}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_and_the_mirror_have_one_set_of_blobs() {
    let (hub, served, image) = (Hub::start().await, Served::start().await, image());
    hub.push("org/app", "1", &image);
    let pull = async |tag: &str| {
        let reference = hub.reference(&format!("org/app:{tag}"));
        let pulled = served.cache.pull(PullRequest {
            plain_http: true,
            ..PullRequest::new(reference.parse().unwrap())
        });
        pulled.wait().await.unwrap()
    };
    // What a pull fetched is given out. It is kept a moment after the pull.
    pull("1").await;
    while served.store.kept_usage().0 < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fetched(&hub).len(), 3);
    served.pull(&hub.host, &image, &[]).await;
    assert_eq!(fetched(&hub), [""; 0]);
    // What was given out is not fetched by a pull: only the config is, which is not taken from there.
    let other = BuiltImage::new(&[gzip(&tar(&[("other", &noise(3, 2_000_000))]))]);
    hub.push("org/app", "1", &other);
    served.pull(&hub.host, &other, &[]).await;
    hub.take_log();
    pull("1").await;
    let config = format!("GET {}", blob_path("org/app", &other.id()));
    assert_eq!(fetched(&hub), [config]);
    let names: Vec<_> = served
        .cache
        .list()
        .iter()
        .map(|image| image.id.to_string())
        .collect();
    assert!(names.contains(&other.id()) && names.contains(&image.id()));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_never_asks_itself() {
    let (hub, hosts) = (Hub::start().await, tempfile::tempdir().unwrap());
    let image = image();
    hub.push("org/app", "1", &image);
    let served = Served::with(&["*"], 1 << 30, Some(hosts.path())).await;
    let folder = hosts.path().join("registry.example");
    std::fs::create_dir(&folder).unwrap();
    // As a runtime's own file has it.
    let file = format!(
        "server = \"http://{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        hub.host, served.base
    );
    std::fs::write(folder.join("hosts.toml"), file).unwrap();
    served.pull("registry.example", &image, &[]).await;
    let own = served.base.strip_prefix("http://").unwrap();
    let got = served
        .get(&format!("org/app/manifests/1?ns={own}"), &[])
        .await;
    assert_eq!(got.status, 500);
    let text = String::from_utf8(got.body.unwrap()).unwrap();
    assert!(text.contains("larder's own mirror"), "{text}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_pull_is_refused() {
    let served = Served::start().await;
    for (path, expected) in [
        ("app/tags/list", 404),
        ("_catalog", 404),
        ("app/manifests/1%00?ns=quay.io", 400),
        ("APP/manifests/1?ns=quay.io", 400),
        ("app/blobs/latest?ns=quay.io", 400),
    ] {
        let got = served.get(path, &[]).await;
        assert_eq!(got.status, expected, "{path}: {got:?}");
    }
    let got = served
        .get("app/manifests/1", &[("authorization", "Digest x")])
        .await;
    assert_eq!(got.status, 400);
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        let refused = served.send(method, "app/blobs/uploads/", &[]).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.headers()["allow"], "GET, HEAD");
    }
    served.stop().await;
}

/// A port that is free just now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_containerd_pulls_through_it() {
    let Some(programs) = programs("containerd_mirror") else {
        return;
    };
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let image = runs(&[programs.shell(), image().layers[0].clone()], &["/bin/sh"]);
    hub.push("org/app", "1", &image);
    hub.push("org/private", "1", &image);
    hub.require("org/private", &["bob:good"]);
    let mirror = format!("http://127.0.0.1:{}", free_port());
    let folder = dir.path().join("hosts.d").join(&hub.host);
    std::fs::create_dir_all(&folder).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        hub.host
    );
    std::fs::write(folder.join("hosts.toml"), hosts).unwrap();
    let mut command = agent_command(dir.path());
    command.args(["--mirror", mirror.strip_prefix("http://").unwrap()]);
    command.env("LARDER_KEEP_MIN_FREE", "1");
    let agent = AgentProcess::start_with(dir.path(), command);
    let agent = agent.unwrap_or_else(|(status, log)| panic!("{status}: {log}"));
    let containerd = Containerd::start(programs, dir.path(), "pause:1", &agent.socket);
    let (open, private) = (hub.reference("org/app:1"), hub.reference("org/private:1"));
    let pull_private = ["pull", "--creds", "bob:good", &private];
    containerd.crictl(&["pull", &open]);
    containerd.crictl(&pull_private);
    assert!(!containerd.try_crictl(&["pull", &private]).success);
    let asked_by = |seen: &[Seen]| -> HashSet<String> {
        let agents = seen.iter().filter_map(|seen| seen.header("user-agent"));
        agents
            .map(|agent| agent.split('/').next().unwrap().to_owned())
            .collect()
    };
    // The mirror asked for what there was; containerd itself only where it was refused.
    let seen = hub.take_seen();
    let (denied, rest): (Vec<_>, Vec<_>) = seen
        .into_iter()
        .partition(|seen| seen.path.contains("private"));
    assert_eq!(asked_by(&rest), HashSet::from(["larder".to_owned()]));
    assert!(
        denied
            .iter()
            .any(|seen| seen.header("authorization").is_some())
    );
    // containerd forgets everything, and the registry goes away.
    containerd.crictl(&["rmi", &open]);
    assert!(!containerd.images().contains(&private));
    drop(hub);
    containerd.crictl(&["pull", &open]);
    containerd.crictl(&pull_private);
    assert!(!containerd.try_crictl(&["pull", &private]).success);
    assert!(containerd.images().contains(&private));
    drop(containerd);
    assert!(!agent.log().contains("good"), "{}", agent.log());
}

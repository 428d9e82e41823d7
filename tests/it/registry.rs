//! The registry client against a registry that keeps the rules, breaks them, or is docker's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use http::Method;
use larder::image::{Descriptor, Digest, Reference};
use larder::registry::{
    Access, BlobStream, Client, Config, Credentials, Error, ErrorClass, Metrics, Repository,
};

use crate::support::build::{self, BuiltImage, BuiltLayer};
use crate::support::hub::{Auth, Authority, Fault, Hub, Tls, TokenServer};
use crate::support::skip;

fn config() -> Config {
    Config {
        stall_timeout: Duration::from_millis(300),
        attempts: 3,
        ..Config::default()
    }
}

fn client() -> Client {
    Client::new(config(), Metrics::default()).unwrap()
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn open(client: &Client, reference: &Reference, credentials: Credentials) -> Repository {
    let access = Access {
        credentials,
        plain_http: false,
        ..Access::default()
    };
    client.repository(reference, access).unwrap()
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        username: user.to_owned(),
        password: password.to_owned().into(),
    }
}

/// The descriptor of a blob with these bytes.
fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

/// An image of one layer, which is its own blob.
fn image(layer: &[u8]) -> BuiltImage {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer: BuiltLayer = build::layer(layer, layer.to_vec(), media_type);
    BuiltImage::new(&[layer])
}

/// A registry with one image, and a client that has made no request.
struct Bench {
    hub: Hub,
    client: Client,
    reference: Reference,
    layer: Vec<u8>,
    image: BuiltImage,
    /// Of the manifest.
    digest: Digest,
    config: Descriptor,
    blob: Descriptor,
}

impl Bench {
    async fn new() -> Self {
        Self::on(Hub::start().await, client())
    }
    fn on(hub: Hub, client: Client) -> Self {
        let layer: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let image = image(&layer);
        hub.push("team/app", "v1", &image);
        let reference = reference(&hub.reference("team/app:v1"));
        Bench {
            hub,
            client,
            reference,
            digest: Digest::sha256(&image.manifest),
            config: descriptor(build::CONFIG, &image.config),
            blob: descriptor(image.layers[0].media_type, &layer),
            layer,
            image,
        }
    }
    fn open(&self) -> Repository {
        self.open_as(Credentials::Anonymous)
    }
    fn open_as(&self, credentials: Credentials) -> Repository {
        open(&self.client, &self.reference, credentials)
    }
    fn blob(&self) -> &Descriptor {
        &self.blob
    }
}

async fn read(repository: &Repository, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    rest(repository.blob(descriptor).await?).await
}

async fn rest(mut stream: BlobStream) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    assert!(stream.next().await.is_none());
    Ok(bytes)
}

/// Pulls run on a runtime of several threads.
#[test]
fn everything_moves_between_threads() {
    fn moves<T: Send>(_: impl FnOnce(&'static Repository, &'static Descriptor) -> T) {}
    moves(|repository, blob| async move {
        let mut stream = repository.blob(blob).await?;
        stream.next().await.transpose()
    });
    moves(|repository, blob| repository.blob_bytes(blob, 1));
    moves(|repository, blob| repository.manifest(&blob.digest));
}

#[tokio::test]
async fn an_anonymous_resolve_is_one_request() {
    let bench = Bench::new().await;
    let resolved = bench.open().resolve(&bench.reference).await.unwrap();
    assert_eq!(resolved.digest, bench.digest);
    assert_eq!(resolved.size, bench.image.manifest.len() as u64);
    assert_eq!(resolved.host, bench.hub.host);
    assert!(resolved.body.is_none());
    assert_eq!(bench.hub.take_log(), ["HEAD /v2/team/app/manifests/v1"]);
}

#[tokio::test]
async fn an_image_comes_whole() {
    let bench = Bench::new().await;
    let repository = bench.open();
    let fetched = repository.manifest(&bench.digest).await.unwrap();
    assert_eq!(Digest::sha256(&fetched.bytes), bench.digest);
    assert_eq!(
        fetched.media_type,
        "application/vnd.oci.image.manifest.v1+json"
    );
    let config = repository.blob_bytes(&bench.config, 1 << 20).await.unwrap();
    assert_eq!(Digest::sha256(&config), bench.config.digest);
    assert!(read(&repository, bench.blob()).await.unwrap() == bench.layer);
    let empty = descriptor("x/y", b"");
    bench.hub.put_blob("team/app", &build::digest(b""), b"");
    assert!(read(&repository, &empty).await.unwrap().is_empty());
    let limit = repository.blob_bytes(bench.blob(), 10).await.unwrap_err();
    assert_eq!(limit.class(), ErrorClass::Protocol);
}

#[tokio::test]
async fn a_head_that_tells_too_little_becomes_a_get() {
    for fault in [
        Fault::NoDigest,
        Fault::WrongDigest("sha256:12".to_owned()),
        Fault::Status(405),
        Fault::Status(501),
    ] {
        let bench = Bench::new().await;
        bench.hub.fault(Method::HEAD, "/manifests/", fault.clone());
        let resolved = bench.open().resolve(&bench.reference).await.unwrap();
        assert_eq!(resolved.digest, bench.digest, "{fault:?}");
        let body = resolved.body.expect("the document is kept");
        assert_eq!(Digest::sha256(&body), bench.digest);
        assert_eq!(bench.hub.take_log().len(), 2);
    }
}

#[tokio::test]
async fn a_digest_rules_over_the_tag() {
    let bench = Bench::new().await;
    let other = image(b"other");
    bench.hub.push("team/app", "v2", &other);
    let text = format!("{}/team/app:v2@{}", bench.hub.host, bench.digest);
    let both = reference(&text);
    let resolved = bench.open().resolve(&both).await.unwrap();
    assert_eq!(resolved.digest, bench.digest);
    let told = Fault::WrongDigest(other.digest());
    bench.hub.fault(Method::HEAD, "/manifests/", told);
    let error = bench.open().resolve(&both).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    assert!(error.to_string().contains(&other.digest()), "{error}");
}

#[tokio::test]
async fn statuses_have_their_classes_and_final_ones_are_not_repeated() {
    for (status, class, requests) in [
        (401, ErrorClass::Unauthenticated, 1),
        (403, ErrorClass::Denied, 1),
        (404, ErrorClass::NotFound, 1),
        (429, ErrorClass::RateLimited, 3),
        (500, ErrorClass::Server, 3),
        (503, ErrorClass::Server, 3),
    ] {
        let bench = Bench::new().await;
        bench.hub.fault(Method::HEAD, "", Fault::Status(status));
        let error = bench.open().resolve(&bench.reference).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains("team/app:v1"), "{error}");
        assert!(error.to_string().contains(&bench.hub.host), "{error}");
        assert_eq!(bench.hub.take_seen().len(), requests, "{status}");
    }
}

#[tokio::test]
async fn missing_things_name_the_code_of_the_registry() {
    let bench = Bench::new().await;
    let digest = Digest::sha256(b"not there");
    let error = bench.open().manifest(&digest).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotFound);
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
    assert!(!error.to_string().contains("not for logs"), "{error}");
}

#[tokio::test]
async fn waits_asked_for_are_kept_and_long_ones_refused() {
    let bench = Bench::new().await;
    let busy = |wait: &str| Fault::StatusAfter(429, wait.to_owned());
    bench.hub.fault_times(Method::HEAD, "", busy("1"), 1);
    let start = std::time::Instant::now();
    bench.open().resolve(&bench.reference).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    bench.hub.take_seen();
    bench.hub.fault(Method::HEAD, "", busy("4000"));
    let error = bench.open().resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::RateLimited);
    assert!(error.to_string().contains("4000"), "{error}");
    assert_eq!(bench.hub.take_seen().len(), 1);
}

#[tokio::test]
async fn web_pages_and_wrong_bytes_are_no_manifests() {
    let bench = Bench::new().await;
    bench.hub.fault(Method::HEAD, "/manifests/", Fault::Html);
    bench.hub.fault(Method::GET, "/manifests/", Fault::Html);
    let error = bench.open().resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    assert!(error.to_string().contains("web page"), "{error}");
    bench.hub.heal();
    bench
        .hub
        .fault(Method::GET, "/manifests/", Fault::WrongBytes);
    let error = bench.open().manifest(&bench.digest).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    bench.hub.fault(Method::GET, "/blobs/", Fault::WrongBytes);
    let error = bench.open().blob_bytes(&bench.config, 1 << 20).await;
    assert_eq!(error.unwrap_err().class(), ErrorClass::Protocol);
}

#[tokio::test]
async fn a_manifest_over_the_limit_is_refused() {
    let bench = Bench::new().await;
    let large = vec![b' '; (4 << 20) + 1];
    bench
        .hub
        .put_manifest("team/app", "v1", &large, "application/json");
    let error = bench.open().resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    bench.hub.fault(Method::HEAD, "", Fault::NoDigest);
    let error = bench.open().resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
}

#[tokio::test]
async fn broken_transfers_go_on_where_they_stopped() {
    let bench = Bench::new().await;
    bench
        .hub
        .fault_times(Method::GET, "/blobs/", Fault::Cut(300_000), 1);
    bench
        .hub
        .fault_times(Method::GET, "/blobs/", Fault::Short(100_000), 2);
    bench
        .hub
        .fault_times(Method::GET, "/blobs/", Fault::Stall(50_000), 3);
    assert!(read(&bench.open(), bench.blob()).await.unwrap() == bench.layer);
    let seen = bench.hub.take_seen();
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[0].header("range"), None);
    for later in &seen[1..] {
        assert!(
            later.header("range").unwrap().starts_with("bytes="),
            "{later:?}"
        );
    }
}

#[tokio::test]
async fn slow_is_not_stalled() {
    let bench = Bench::new().await;
    let drip = Fault::Drip(100_000, Duration::from_millis(100));
    bench.hub.fault(Method::GET, "/blobs/", drip);
    assert!(read(&bench.open(), bench.blob()).await.unwrap() == bench.layer);
    assert_eq!(bench.hub.take_seen().len(), 1);
}

#[tokio::test]
async fn an_index_is_served_with_its_type() {
    let bench = Bench::new().await;
    let other = BuiltImage::with_config(&[], &build::config("arm64", &[]));
    let index = build::index(&[
        ("linux/amd64", &bench.image.manifest, build::MANIFEST),
        ("linux/arm64", &other.manifest, build::MANIFEST),
    ]);
    bench.hub.push_index("team/app", "v1", &index);
    let digest = Digest::sha256(&index);
    let resolved = bench.open().resolve(&bench.reference).await.unwrap();
    assert_eq!(resolved.digest, digest);
    assert_eq!(
        resolved.media_type,
        "application/vnd.oci.image.index.v1+json"
    );
    let typed = Fault::ContentType("application/vnd.oci.image.index.v1+json; charset=utf-8");
    bench.hub.fault(Method::GET, "/manifests/", typed);
    let fetched = bench.open().manifest(&digest).await.unwrap();
    assert_eq!(
        fetched.media_type,
        "application/vnd.oci.image.index.v1+json"
    );
}

#[tokio::test]
async fn a_server_without_ranges_serves_again_from_the_start() {
    let bench = Bench::new().await;
    bench.hub.fault(Method::GET, "/blobs/", Fault::IgnoreRange);
    bench
        .hub
        .fault_times(Method::GET, "/blobs/", Fault::Cut(300_000), 1);
    assert!(read(&bench.open(), bench.blob()).await.unwrap() == bench.layer);
    assert_eq!(bench.hub.take_seen().len(), 2);
}

#[tokio::test]
async fn transfers_without_progress_end() {
    let bench = Bench::new().await;
    bench
        .hub
        .fault_times(Method::GET, "/blobs/", Fault::Cut(1000), 1);
    bench.hub.fault(Method::GET, "/blobs/", Fault::Stall(0));
    let error = read(&bench.open(), bench.blob())
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Broken);
    assert!(error.is_transient());
    assert!(error.to_string().contains("1000 of 800000"), "{error}");
}

#[tokio::test]
async fn sizes_are_those_of_the_manifest() {
    let bench = Bench::new().await;
    let mut wrong = bench.blob().clone();
    wrong.size += 7;
    let error = read(&bench.open(), &wrong).await.map(drop).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    let message = error.to_string();
    assert!(
        message.contains("800000") && message.contains("800007"),
        "{error}"
    );
    bench.hub.fault(Method::GET, "/blobs/", Fault::Excess(5));
    let error = read(&bench.open(), bench.blob())
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    bench.hub.heal();
    bench
        .hub
        .fault(Method::GET, "/blobs/", Fault::Short(usize::MAX));
    let error = read(&bench.open(), &wrong).await.map(drop).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Broken);
}

#[tokio::test]
async fn a_silent_registry_is_unavailable() {
    let bench = Bench::new().await;
    bench.hub.fault(Method::HEAD, "", Fault::Never);
    let hosts = hosts_dir(
        &bench.hub.host,
        &format!("server = \"{}\"\ndial_timeout = \"200ms\"", bench.hub.url()),
    );
    let client = with_hosts(hosts.path());
    let repository = open(&client, &bench.reference, Credentials::Anonymous);
    let error = repository.resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert_eq!(bench.hub.take_seen().len(), 2);
}

#[tokio::test]
async fn a_registry_that_is_gone_is_unavailable() {
    let bench = Bench::new().await;
    let repository = bench.open();
    let Bench { hub, reference, .. } = bench;
    drop(hub);
    let error = repository.resolve(&reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn basic_credentials_are_shown_when_asked_for() {
    let bench = Bench::new().await;
    bench
        .hub
        .set_auth(Auth::Basic("u".to_owned(), "p".to_owned()));
    let repository = bench.open_as(basic("u", "p"));
    repository.resolve(&bench.reference).await.unwrap();
    repository.manifest(&bench.digest).await.unwrap();
    let seen = bench.hub.take_seen();
    let shown: Vec<bool> = seen
        .iter()
        .map(|s| s.header("authorization").is_some())
        .collect();
    assert_eq!(shown, [false, true, true]);
    for wrong in [Credentials::Anonymous, basic("u", "hunter2")] {
        let error = bench
            .open_as(wrong)
            .resolve(&bench.reference)
            .await
            .unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unauthenticated);
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn tokens_are_bought_once_and_anew_when_refused() {
    let bench = Bench::new().await;
    bench.hub.set_auth(Auth::Bearer(TokenServer::default()));
    bench.open().resolve(&bench.reference).await.unwrap();
    let lines = bench.hub.take_seen();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1].path, "/token");
    assert_eq!(
        lines[1].query,
        "service=fake&scope=repository%3Ateam%2Fapp%3Apull"
    );
    bench.open().resolve(&bench.reference).await.unwrap();
    assert_eq!(bench.hub.take_log(), ["HEAD /v2/team/app/manifests/v1"]);
    bench.hub.revoke_tokens();
    bench.open().resolve(&bench.reference).await.unwrap();
    assert_eq!(bench.hub.take_log().len(), 3);
}

#[tokio::test]
async fn many_requests_share_one_token() {
    let bench = Bench::new().await;
    bench.hub.set_auth(Auth::Bearer(TokenServer::default()));
    let repository = bench.open();
    let reads = (0..6).map(|_| repository.manifest(&bench.digest));
    for read in futures_util::future::join_all(reads).await {
        read.unwrap();
    }
    let bought = bench
        .hub
        .take_log()
        .iter()
        .filter(|line| line.contains("/token"))
        .count();
    assert_eq!(bought, 1);
}

#[tokio::test]
async fn passwords_buy_tokens_by_post_or_get() {
    for post in [false, true] {
        let bench = Bench::new().await;
        bench.hub.set_auth(Auth::Bearer(TokenServer {
            account: Some(("u".to_owned(), "p".to_owned())),
            identity: Some("refresh-me".to_owned()),
            post,
            ..TokenServer::default()
        }));
        bench
            .open_as(basic("u", "p"))
            .resolve(&bench.reference)
            .await
            .unwrap();
        let methods: Vec<_> = bench
            .hub
            .take_seen()
            .into_iter()
            .map(|s| s.method)
            .collect();
        assert_eq!(methods.len(), if post { 3 } else { 4 });
        assert_eq!(methods[1], Method::POST);
        let identity = Credentials::Identity("refresh-me".to_owned().into());
        let found = bench.open_as(identity).resolve(&bench.reference).await;
        assert_eq!(found.is_ok(), post);
        for wrong in [Credentials::Anonymous, basic("u", "hunter2")] {
            let error = bench
                .open_as(wrong)
                .resolve(&bench.reference)
                .await
                .unwrap_err();
            assert_eq!(error.class(), ErrorClass::Unauthenticated, "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_refused_account_is_shown_once_in_each_form() {
    let bench = Bench::new().await;
    bench.hub.set_auth(Auth::Bearer(TokenServer::default()));
    // As OAuth2 refuses a grant.
    bench.hub.fault_all("/token", Fault::Status(400));
    let repository = bench.open_as(basic("u", "p"));
    let error = repository.resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unauthenticated);
    let log = bench.hub.take_log();
    assert_eq!(log[1..], ["POST /token", "GET /token"]);
}

#[tokio::test]
async fn a_registry_token_is_shown_as_it_is() {
    let bench = Bench::new().await;
    bench.hub.set_auth(Auth::Bearer(TokenServer::default()));
    let raw = Credentials::Bearer("raw-token".to_owned().into());
    let error = bench
        .open_as(raw)
        .resolve(&bench.reference)
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unauthenticated);
    let seen = bench.hub.take_seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].header("authorization"), Some("Bearer raw-token"));
}

#[tokio::test]
async fn redirects_lose_credentials_and_keep_ranges() {
    let bench = Bench::new().await;
    let storage = Hub::start().await;
    storage.put_blob("team/app", &build::digest(&bench.layer), &bench.layer);
    bench
        .hub
        .set_auth(Auth::Basic("u".to_owned(), "p".to_owned()));
    let target = format!(
        "{}/v2/team/app/blobs/{}?sig=SECRET",
        storage.url(),
        bench.blob().digest
    );
    bench
        .hub
        .fault(Method::GET, "/blobs/", Fault::Redirect(target));
    storage.fault_times(Method::GET, "/blobs/", Fault::Cut(1000), 1);
    let repository = bench.open_as(basic("u", "p"));
    repository.resolve(&bench.reference).await.unwrap();
    assert!(read(&repository, bench.blob()).await.unwrap() == bench.layer);
    let seen = storage.take_seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|s| s.header("authorization").is_none()));
    assert_eq!(seen[1].header("range"), Some("bytes=1000-"));
    storage.fault(Method::GET, "/blobs/", Fault::Status(403));
    let error = read(&repository, bench.blob()).await.map(drop).unwrap_err();
    assert!(!error.to_string().contains("SECRET"), "{error}");
}

#[tokio::test]
async fn redirect_loops_and_strange_targets_are_refused() {
    let bench = Bench::new().await;
    let path = format!("/v2/team/app/blobs/{}", bench.blob().digest);
    for (target, word) in [
        (path.as_str(), "loop"),
        ("file:///etc/passwd", "not https"),
        ("http://[", "not a URL"),
    ] {
        bench.hub.heal();
        bench
            .hub
            .fault(Method::GET, "/blobs/", Fault::Redirect(target.to_owned()));
        let error = read(&bench.open(), bench.blob())
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(error.class(), ErrorClass::Protocol);
        assert!(error.to_string().contains(word), "{error}");
    }
}

fn hosts_dir(domain: &str, text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join(domain)).unwrap();
    std::fs::write(root.path().join(domain).join("hosts.toml"), text).unwrap();
    root
}

fn with_hosts(root: &Path) -> Client {
    let config = Config {
        hosts_dirs: vec![root.to_owned()],
        ..config()
    };
    Client::new(config, Metrics::default()).unwrap()
}

#[tokio::test]
async fn mirrors_are_asked_first_and_told_whose_content_is_wanted() {
    let bench = Bench::new().await;
    let mirror = Hub::start().await;
    mirror.put_blob("team/app", &build::digest(&bench.layer), &bench.layer);
    let dead = Hub::start().await;
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\n[host.\"{}\"]\nheader = {{ x-key = \"k\" }}\n",
        bench.hub.url(),
        dead.url(),
        mirror.url()
    );
    drop(dead);
    let hosts = hosts_dir(&bench.hub.host, &text);
    let client = with_hosts(hosts.path());
    let repository = open(&client, &bench.reference, Credentials::Anonymous);
    let resolved = repository.resolve(&bench.reference).await.unwrap();
    assert_eq!(resolved.host, bench.hub.host);
    // The mirror breaks for good: the rest comes from the registry itself.
    mirror.fault_times(Method::GET, "/blobs/", Fault::Cut(1000), 1);
    let stream = repository.blob(bench.blob()).await.unwrap();
    assert_eq!(stream.host(), mirror.host);
    assert!(!format!("{stream:?}").contains("ns="));
    mirror.fault(Method::GET, "/blobs/", Fault::Status(500));
    assert!(rest(stream).await.unwrap() == bench.layer);
    let seen = mirror.take_seen();
    let namespace = format!("ns={}", bench.hub.host.replace(':', "%3A"));
    assert!(seen.iter().all(|s| s.query == namespace), "{seen:?}");
    assert!(seen.iter().all(|s| s.header("x-key") == Some("k")));
    let own = bench.hub.take_seen();
    assert!(
        own.iter()
            .all(|s| s.query.is_empty() && s.header("x-key").is_none())
    );
    assert_eq!(own[1].header("range"), Some("bytes=1000-"));
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_cost_time_only() {
    let bench = Bench::new().await;
    let mirror = Bench::new().await;
    mirror.hub.fault(Method::GET, "", Fault::WrongBytes);
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\n",
        bench.hub.url(),
        mirror.hub.url()
    );
    let hosts = hosts_dir(&bench.hub.host, &text);
    let client = with_hosts(hosts.path());
    let repository = open(&client, &bench.reference, Credentials::Anonymous);
    let fetched = repository.manifest(&bench.digest).await.unwrap();
    assert_eq!(fetched.host, bench.hub.host);
    repository.blob_bytes(&bench.config, 1 << 20).await.unwrap();
}

#[tokio::test]
async fn tls_is_verified_against_the_configured_authority() {
    let authority = Authority::new("of the test");
    let fake = Hub::start_tls(&Tls::of(&authority)).await;
    let ca = authority.pem;
    let (domain, url) = (fake.host.clone(), fake.url());
    let strict = hosts_dir(&domain, &format!("server = \"{url}\"\n"));
    let trusted = hosts_dir(&domain, &format!("server = \"{url}\"\nca = \"ca.pem\"\n"));
    std::fs::write(trusted.path().join(&domain).join("ca.pem"), &ca).unwrap();
    let blind = hosts_dir(
        &domain,
        &format!("server = \"{url}\"\nskip_verify = true\n"),
    );
    let docker = tempfile::tempdir().unwrap();
    std::fs::create_dir(docker.path().join(&domain)).unwrap();
    std::fs::write(docker.path().join(&domain).join("ca.crt"), &ca).unwrap();
    let bench = Bench::on(fake, client());
    for dir in [trusted.path(), blind.path(), docker.path()] {
        let repository = open(&with_hosts(dir), &bench.reference, Credentials::Anonymous);
        let resolved = repository.resolve(&bench.reference).await.unwrap();
        assert_eq!(resolved.digest, bench.digest);
        assert!(read(&repository, bench.blob()).await.unwrap() == bench.layer);
    }
    let repository = open(
        &with_hosts(strict.path()),
        &bench.reference,
        Credentials::Anonymous,
    );
    let error = repository.resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert!(error.to_string().contains("hosts.toml"), "{error}");
}

/// `hosts.toml` and certificates in the folder of a domain.
fn certificates(domain: &str, text: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = hosts_dir(domain, text);
    for (name, content) in files {
        std::fs::write(root.path().join(domain).join(name), content).unwrap();
    }
    root
}

#[tokio::test]
async fn client_certificates_are_shown_until_one_is_taken() {
    let (servers, right, wrong) = (
        Authority::new("of servers"),
        Authority::new("of clients"),
        Authority::new("of others"),
    );
    let tls = Tls::of(&servers).for_clients_of(&right);
    let bench = Bench::on(Hub::start_tls(&tls).await, client());
    let (one, other) = (right.sign(&["node"]), wrong.sign(&["node"]));
    let both = format!("{}{}", one.certificate, one.key);
    let files = [
        ("ca.pem", servers.pem.as_str()),
        ("one.pem", &one.certificate),
        ("one.key", &one.key),
        ("both.pem", &both),
        ("other.pem", &other.certificate),
        ("other.key", &other.key),
    ];
    let hosts = |client: &str| {
        let text = format!(
            "server = \"{}\"\nca = \"ca.pem\"\n{client}",
            bench.hub.url()
        );
        certificates(&bench.hub.host, &text, &files)
    };
    for client in [
        "client = \"both.pem\"",
        "client = [\"both.pem\"]",
        "client = [[\"one.pem\", \"one.key\"]]",
        "client = [[\"other.pem\", \"other.key\"], [\"one.pem\", \"one.key\"]]",
        "client = [[\"other.pem\", \"other.key\"], \"both.pem\"]",
    ] {
        let dir = hosts(client);
        let opened = with_hosts(dir.path());
        let repository = open(&opened, &bench.reference, Credentials::Anonymous);
        for _ in 0..2 {
            let resolved = repository.resolve(&bench.reference).await;
            let resolved = resolved.unwrap_or_else(|error| panic!("{client}: {error}"));
            assert_eq!(resolved.digest, bench.digest, "{client}");
        }
        assert!(read(&repository, bench.blob()).await.unwrap() == bench.layer);
    }
    for (client, word) in [
        ("", "\"client\" in hosts.toml"),
        (
            "client = [[\"other.pem\", \"other.key\"]]",
            "client certificate",
        ),
    ] {
        let dir = hosts(client);
        let opened = with_hosts(dir.path());
        let repository = open(&opened, &bench.reference, Credentials::Anonymous);
        let error = repository.resolve(&bench.reference).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unavailable, "{error}");
        assert!(error.to_string().contains(word), "{client}: {error}");
    }
    // As docker keeps them: each pair beside its authority.
    let docker = tempfile::tempdir().unwrap();
    let folder = docker.path().join(&bench.hub.host);
    std::fs::create_dir(&folder).unwrap();
    for (name, content) in [
        ("ca.crt", &servers.pem),
        ("a.cert", &other.certificate),
        ("a.key", &other.key),
        ("b.cert", &one.certificate),
        ("b.key", &one.key),
    ] {
        std::fs::write(folder.join(name), content).unwrap();
    }
    let opened = with_hosts(docker.path());
    let repository = open(&opened, &bench.reference, Credentials::Anonymous);
    repository.resolve(&bench.reference).await.unwrap();
}

#[tokio::test]
async fn certificates_are_not_shown_to_another_server() {
    let (servers, clients) = (Authority::new("of servers"), Authority::new("of clients"));
    let storage = Tls::of(&servers).for_clients_of(&clients);
    let storage = Hub::start_tls(&storage).await;
    let front = Tls::of(&servers).for_clients_of(&clients);
    let bench = Bench::on(Hub::start_tls(&front).await, client());
    let target = format!(
        "{}/v2/team/app/blobs/{}",
        storage.url(),
        bench.blob().digest
    );
    let redirect = Fault::Redirect(target);
    bench.hub.fault(Method::GET, "/blobs/", redirect);
    let own = clients.sign(&["node"]);
    let files = [
        ("ca.pem", servers.pem.as_str()),
        ("one.pem", &own.certificate),
        ("one.key", &own.key),
    ];
    let text = format!(
        "server = \"{}\"\nca = \"ca.pem\"\nclient = [[\"one.pem\", \"one.key\"]]",
        bench.hub.url()
    );
    let dir = certificates(&bench.hub.host, &text, &files);
    let opened = with_hosts(dir.path());
    let repository = open(&opened, &bench.reference, Credentials::Anonymous);
    repository.resolve(&bench.reference).await.unwrap();
    let error = read(&repository, bench.blob()).await.map(drop).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable, "{error}");
    assert!(storage.take_seen().is_empty());
}

#[tokio::test]
async fn a_registry_on_this_node_may_speak_either() {
    let tls = Hub::start_tls(&Tls::of(&Authority::new("nobody knows"))).await;
    for hub in [tls, Hub::start().await] {
        let bench = Bench::on(hub, client());
        for _ in 0..2 {
            let resolved = bench.open().resolve(&bench.reference).await.unwrap();
            assert_eq!(resolved.digest, bench.digest);
        }
        assert!(read(&bench.open(), bench.blob()).await.unwrap() == bench.layer);
        assert_eq!(bench.hub.take_seen().len(), 3);
    }
}

#[tokio::test]
async fn plain_http_with_settings_for_tls_means_either() {
    let authority = Authority::new("of the test");
    let tls = Hub::start_tls(&Tls::of(&authority)).await;
    for hub in [tls, Hub::start().await] {
        let bench = Bench::on(hub, client());
        let text = format!("server = \"http://{}\"\nca = \"ca.pem\"\n", bench.hub.host);
        let dir = certificates(&bench.hub.host, &text, &[("ca.pem", &authority.pem)]);
        let opened = with_hosts(dir.path());
        let repository = open(&opened, &bench.reference, Credentials::Anonymous);
        repository.resolve(&bench.reference).await.unwrap();
        assert!(read(&repository, bench.blob()).await.unwrap() == bench.layer);
        assert!(
            bench
                .hub
                .take_seen()
                .iter()
                .all(|seen| seen.query.is_empty())
        );
    }
    // A certificate that is not trusted is no reason to go on without any.
    let other = Hub::start_tls(&Tls::of(&Authority::new("of somebody"))).await;
    let bench = Bench::on(other, client());
    let text = format!("server = \"http://{}\"\nca = \"ca.pem\"\n", bench.hub.host);
    let dir = certificates(&bench.hub.host, &text, &[("ca.pem", &authority.pem)]);
    let opened = with_hosts(dir.path());
    let repository = open(&opened, &bench.reference, Credentials::Anonymous);
    let error = repository.resolve(&bench.reference).await.unwrap_err();
    assert!(
        error.to_string().contains("\"ca\" in hosts.toml"),
        "{error}"
    );
}

#[tokio::test]
async fn the_default_folder_paths_headers_and_capabilities_are_heeded() {
    let (bench, mirror, late) = (Bench::new().await, Hub::start().await, Hub::start().await);
    late.push("team/app", "v1", &bench.image);
    let root = tempfile::tempdir().unwrap();
    let default = root.path().join("_default");
    std::fs::create_dir(&default).unwrap();
    let text = format!(
        "[host.\"{}/odd/api\"]\noverride_path = true\nheader = {{ x-one = [\"1\", \"2\"], x-two = \"3\" }}\n\
         [host.\"{}\"]\ncapabilities = [\"Pull\"]\n",
        mirror.url(),
        late.url()
    );
    std::fs::write(default.join("hosts.toml"), text).unwrap();
    let opened = with_hosts(root.path());
    let repository = open(&opened, &bench.reference, Credentials::Anonymous);
    let resolved = repository.resolve(&bench.reference).await.unwrap();
    assert_eq!(resolved.host, bench.hub.host);
    let seen = mirror.take_seen();
    assert_eq!(seen[0].line(), "HEAD /odd/api/team/app/manifests/v1");
    let namespace = format!("ns={}", bench.hub.host.replace(':', "%3A"));
    assert_eq!(seen[0].query, namespace);
    let values: Vec<_> = seen[0].headers.get_all("x-one").iter().collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(seen[0].header("x-two"), Some("3"));
    // It may not say what a tag names, and serves what has a digest.
    assert!(late.take_seen().is_empty());
    let fetched = repository.manifest(&bench.digest).await.unwrap();
    assert_eq!(fetched.host, late.host);
    // A folder of the domain itself hides the default.
    let own = root.path().join(bench.hub.host.replace(':', "_") + "_");
    std::fs::create_dir(&own).unwrap();
    let text = format!("server = \"{}\"\n", bench.hub.url());
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    let repository = open(&opened, &bench.reference, Credentials::Anonymous);
    mirror.take_seen();
    repository.resolve(&bench.reference).await.unwrap();
    assert!(mirror.take_seen().is_empty());
}

#[tokio::test]
async fn a_registry_that_trickles_or_stalls_again_and_again_is_given_up() {
    let config = |stall| Config {
        stall_timeout: Duration::from_millis(stall),
        ..config()
    };
    let stall = Fault::Stall(1000);
    let trickle = Fault::Drip(50, Duration::from_millis(30));
    for (fault, stall) in [(stall, 100), (trickle, 150)] {
        let bench = Bench::new().await;
        bench.hub.fault(Method::GET, "/blobs/", fault);
        let client = Client::new(config(stall), Metrics::default()).unwrap();
        let repository = open(&client, &bench.reference, Credentials::Anonymous);
        let error = read(&repository, bench.blob()).await.map(drop).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Broken);
        // On a busy machine a trickle may stall as well.
        let told = error.to_string();
        let words = ["no byte came", "bytes came in"];
        assert!(words.iter().any(|word| told.contains(word)), "{told}");
        assert_eq!(bench.hub.take_seen().len(), 3, "{told}");
    }
}

#[tokio::test]
async fn https_does_not_lead_to_plain_http() {
    let bench = Bench::on(
        Hub::start_tls(&Tls::of(&Authority::new("of the test"))).await,
        client(),
    );
    let plain = Bench::new().await;
    let text = format!("server = \"{}\"\nskip_verify = true\n", bench.hub.url());
    let hosts = hosts_dir(&bench.hub.host, &text);
    let target = format!(
        "{}/v2/team/app/blobs/{}",
        plain.hub.url(),
        bench.blob().digest
    );
    bench
        .hub
        .fault(Method::GET, "/blobs/", Fault::Redirect(target));
    let client = with_hosts(hosts.path());
    let repository = open(&client, &bench.reference, Credentials::Anonymous);
    let error = read(&repository, bench.blob()).await.map(drop).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    assert!(error.to_string().contains("plain http"), "{error}");
    assert!(plain.hub.take_seen().is_empty());
    // Nor may tokens be bought over it.
    bench.hub.set_auth(Auth::Bearer(TokenServer {
        realm: Some(format!("{}/token", plain.hub.url())),
        ..TokenServer::default()
    }));
    let repository = open(&client, &bench.reference, basic("u", "hunter2"));
    let error = repository.resolve(&bench.reference).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Protocol);
    assert!(plain.hub.take_seen().is_empty());
}

#[tokio::test]
async fn broken_hosts_files_are_errors() {
    let hosts = hosts_dir("reg.example", "server = \"https://reg.example\"\n[host\n");
    let error = with_hosts(hosts.path())
        .repository(&reference("reg.example/a:b"), Access::default())
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Config);
    assert!(error.to_string().contains("hosts.toml line 2"), "{error}");
}

#[tokio::test]
async fn requests_per_host_are_bounded() {
    let bench = Bench::new().await;
    let config = Config {
        max_per_host: 1,
        ..config()
    };
    let client = Client::new(config, Metrics::default()).unwrap();
    bench.hub.set_auth(Auth::Bearer(TokenServer::default()));
    let repository = open(&client, &bench.reference, Credentials::Anonymous);
    let first = repository.blob(bench.blob()).await.unwrap();
    // Documents pass while a blob is held open; a second blob waits.
    repository.resolve(&bench.reference).await.unwrap();
    let mut second = std::pin::pin!(repository.blob(bench.blob()));
    let waited = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
    assert!(waited.is_err());
    drop(first);
    second.await.unwrap();
}

#[tokio::test]
async fn the_real_registry_serves() {
    let name = "the_real_registry_serves";
    let Some(registry) = real::start().await else {
        return skip(name, "docker-registry is not installed");
    };
    let layer = b"layer".repeat(100_000);
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let layer_digest = registry.push_blob("a/b", &layer).await;
    let config_digest = registry.push_blob("a/b", config).await;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
    })
    .to_string();
    registry.push_manifest("a/b", "v1", &manifest).await;

    let reference = reference(&format!("{}/a/b:v1", registry.domain));
    let repository = open(&client(), &reference, Credentials::Anonymous);
    let resolved = repository.resolve(&reference).await.unwrap();
    assert_eq!(resolved.digest, Digest::sha256(manifest.as_bytes()));
    assert!(resolved.body.is_none());
    let fetched = repository.manifest(&resolved.digest).await.unwrap();
    assert_eq!(fetched.bytes, manifest.as_bytes());
    let descriptor = Descriptor {
        media_type: String::new(),
        digest: layer_digest,
        size: layer.len() as u64,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    };
    assert!(read(&repository, &descriptor).await.unwrap() == layer);
    let missing = repository
        .manifest(&Digest::sha256(b"?"))
        .await
        .unwrap_err();
    assert_eq!(missing.class(), ErrorClass::NotFound);
}

/// Debian's `docker-registry` on a free port.
mod real {
    use std::process::{Child, Command, Stdio};

    use larder::image::Digest;

    pub(super) struct Real {
        child: Child,
        pub(super) domain: String,
        http: reqwest::Client,
        _root: tempfile::TempDir,
    }

    impl Drop for Real {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    pub(super) async fn start() -> Option<Real> {
        let root = tempfile::tempdir().unwrap();
        // Freed again for the registry, which cannot take a bound socket.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            root.path().join("data").display()
        );
        let file = root.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let real = Real {
            child,
            domain: format!("127.0.0.1:{port}"),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            _root: root,
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while real
            .http
            .get(format!("http://{}/v2/", real.domain))
            .send()
            .await
            .is_err()
        {
            assert!(
                std::time::Instant::now() < deadline,
                "docker-registry does not answer"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Some(real)
    }

    impl Real {
        pub(super) async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
            let digest = Digest::sha256(bytes);
            let start = format!("http://{}/v2/{repository}/blobs/uploads/", self.domain);
            let started = self.http.post(start).send().await.unwrap();
            let location = started.headers()["location"].to_str().unwrap().to_owned();
            let place = format!("{location}&digest={digest}");
            let sent = self
                .http
                .put(place)
                .body(bytes.to_vec())
                .send()
                .await
                .unwrap();
            assert_eq!(sent.status(), 201);
            digest
        }
        pub(super) async fn push_manifest(&self, repository: &str, tag: &str, text: &str) {
            let place = format!("http://{}/v2/{repository}/manifests/{tag}", self.domain);
            let sent = self
                .http
                .put(place)
                .header("content-type", "application/vnd.oci.image.manifest.v1+json")
                .body(text.to_owned())
                .send()
                .await
                .unwrap();
            assert_eq!(sent.status(), 201);
        }
    }
}

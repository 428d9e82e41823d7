//! Pulls against a registry on loopback: what is fetched, by whom, what becomes visible and what is left behind.
#![allow(clippy::unwrap_used, clippy::cloned_ref_to_slice_refs)]

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use larder::cache::{
    self, Background, Cache, Credentials, ErrorKind, LayerSource, Phase, PullRequest, Pulled,
    Secret,
};
use larder::{registry, store};
use serde_json::json;

use crate::support::build::{self, BuiltImage, BuiltLayer, gzip, noise, tar, zstd};
use crate::support::hub::{Gate, Hub, blob_path};

/// A cache over a fresh store.
struct Node {
    cache: Cache,
    root: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Self::with_grace(Duration::from_secs(60))
    }

    fn with_grace(orphan_grace: Duration) -> Self {
        Self::with(orphan_grace, Background::default())
    }

    fn with(orphan_grace: Duration, background: Background) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = store::Options {
            root: root.path().join("root"),
            limits: store::Limits::default(),
        };
        let store = store::Store::open(options, store::Metrics::default()).unwrap();
        let client = registry::Config {
            attempts: 1,
            ..registry::Config::default()
        };
        let client = registry::Client::new(client, registry::Metrics::default()).unwrap();
        let config = cache::Config {
            platform: "linux/amd64".parse().unwrap(),
            max_layers: 3,
            orphan_grace,
            pinned: Vec::new(),
            authfile: None,
            background,
            reserved: None,
        };
        Node {
            cache: Cache::new(config, store, client, cache::Metrics::default()),
            root,
        }
    }

    async fn pull(&self, reference: &str) -> Result<Pulled, Arc<cache::Error>> {
        self.cache.pull(request(reference)).wait().await
    }

    async fn refused(&self, reference: &str) -> (ErrorKind, String) {
        let error = self.pull(reference).await.unwrap_err();
        (error.kind(), error.to_string())
    }

    /// Stops all work and asserts that nothing is left of it.
    async fn assert_empty(&self) {
        self.cache.shutdown().await;
        assert_eq!(self.cache.list(), []);
        let usage = self.cache.usage();
        assert_eq!(
            (usage.images, usage.layers, usage.logical_bytes),
            (0, 0, 0),
            "{usage:?}"
        );
    }
}

fn request(reference: &str) -> PullRequest {
    PullRequest {
        plain_http: true,
        ..PullRequest::new(reference.parse().unwrap())
    }
}

fn request_as(reference: &str, username: &str, password: &str) -> PullRequest {
    let password = Secret::from(password.to_owned());
    PullRequest {
        credentials: Credentials::Basic {
            username: username.to_owned(),
            password,
        },
        ..request(reference)
    }
}

/// A tar with one file of noise.
fn filled(seed: u64, len: usize) -> Vec<u8> {
    tar(&[(&format!("file-{seed}"), &noise(seed, len))])
}

fn two_layers() -> BuiltImage {
    BuiltImage::new(&[gzip(&filled(1, 300_000)), gzip(&filled(2, 5_000))])
}

/// Requests for blobs, without the path to them.
fn blobs_of(log: &[String]) -> Vec<String> {
    let mut blobs: Vec<String> = log
        .iter()
        .filter_map(|line| Some(line.split_once("/blobs/")?.1.to_owned()))
        .collect();
    blobs.sort();
    blobs
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_pull_fetches_each_document_and_blob_once_and_shows_the_image() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("team/app", "1", &image);
    let name = hub.reference("team/app:1");

    let pull = node.cache.pull(request(&name));
    let progress = pull.progress();
    let pulled = pull.wait().await.unwrap();

    assert_eq!(
        blobs_of(&hub.take_log()),
        sorted(vec![
            image.id(),
            image.layers[0].digest.clone(),
            image.layers[1].digest.clone()
        ])
    );
    let digested = hub.reference(&format!("team/app@{}", image.digest()));
    assert_eq!(pulled.image.id.to_string(), image.id());
    assert_eq!(pulled.image.repo_tags, [name.clone()]);
    assert_eq!(pulled.image.repo_digests, [digested.clone()]);
    assert_eq!(
        pulled.image.created.as_deref(),
        Some("2024-01-02T03:04:05Z")
    );
    assert_eq!(pulled.image.user, Some(larder::image::User::Uid(1002)));
    assert!(pulled.image.size > 305_000);
    assert!(!pulled.up_to_date && !pulled.image.pinned);
    assert_eq!(
        pulled.fetched_bytes,
        image
            .layers
            .iter()
            .map(|layer| layer.blob.len() as u64)
            .sum::<u64>()
    );

    let last = progress.borrow().clone();
    assert_eq!(last.phase, Phase::Done);
    assert!(last.layers.iter().all(|layer| layer.done
        && layer.source == LayerSource::Registry
        && layer.fetched == layer.size));

    assert_eq!(node.cache.list(), [pulled.image.clone()]);
    let hex = image.id()["sha256:".len()..].to_owned();
    for form in [
        name,
        digested,
        image.id(),
        hex.clone(),
        hex[..12].to_owned(),
        format!("sha256:{}", &hex[..12]),
    ] {
        assert_eq!(
            node.cache.status(&form).unwrap(),
            Some(pulled.image.clone()),
            "{form}"
        );
    }
    assert_eq!(
        node.cache.status(&image.digest()).unwrap(),
        None,
        "a manifest's digest alone is no name"
    );
    let details = node.cache.inspect(&image.id()).await.unwrap().unwrap();
    assert_eq!(details.config_json, image.config);
    assert_eq!(details.manifest_json, image.manifest);
    assert_eq!(
        details
            .layers
            .iter()
            .map(|layer| layer.users)
            .collect::<Vec<_>>(),
        [1, 1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_what_is_here_is_one_request() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    let other = BuiltImage::with_config(&[], &build::config("arm64", &[]));
    let index = build::index(&[
        ("linux/arm64", &other.manifest, build::MANIFEST),
        ("linux/amd64", &image.manifest, build::MANIFEST),
    ]);
    hub.push("app", "plain", &image);
    hub.push_index("app", "multi", &index);
    for tag in ["plain", "multi"] {
        let name = hub.reference(&format!("app:{tag}"));
        let first = node.pull(&name).await.unwrap();
        hub.take_log();
        let again = node.pull(&name).await.unwrap();
        assert_eq!(hub.take_log(), [format!("HEAD /v2/app/manifests/{tag}")]);
        assert!(again.up_to_date && again.fetched_bytes == 0);
        assert_eq!(again.image, first.image);
    }
    let digests = node
        .cache
        .status(&image.id())
        .unwrap()
        .unwrap()
        .repo_digests;
    assert_eq!(
        digests,
        sorted(vec![
            hub.reference(&format!("app@{}", image.digest())),
            hub.reference(&format!("app@{}", build::digest(&index))),
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recompressed_layer_is_not_fetched() {
    let (hub, node) = (Hub::start().await, Node::new());
    let (base, top) = (filled(1, 200_000), filled(2, 1_000));
    hub.push("app", "1", &BuiltImage::new(&[gzip(&base)]));
    let next = BuiltImage::new(&[zstd(&base), zstd(&top)]);
    hub.push("app", "2", &next);
    node.pull(&hub.reference("app:1")).await.unwrap();
    hub.take_log();

    let pull = node.cache.pull(request(&hub.reference("app:2")));
    let progress = pull.progress();
    pull.wait().await.unwrap();
    assert_eq!(
        blobs_of(&hub.take_log()),
        sorted(vec![next.id(), next.layers[1].digest.clone()])
    );
    let sources: Vec<_> = progress
        .borrow()
        .layers
        .iter()
        .map(|layer| layer.source)
        .collect();
    assert_eq!(sources, [LayerSource::Present, LayerSource::Registry]);
    let details = node.cache.inspect(&next.id()).await.unwrap().unwrap();
    assert_eq!(
        details
            .layers
            .iter()
            .map(|layer| layer.users)
            .collect::<Vec<_>>(),
        [2, 1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_recompressed_whole_moves_no_layer() {
    let (hub, node) = (Hub::start().await, Node::new());
    let base = filled(1, 200_000);
    let (old, new) = (
        BuiltImage::new(&[gzip(&base)]),
        BuiltImage::new(&[zstd(&base)]),
    );
    assert_eq!(old.id(), new.id());
    hub.push("app", "gzip", &old);
    hub.push("app", "zstd", &new);
    node.pull(&hub.reference("app:gzip")).await.unwrap();
    hub.take_log();
    let pulled = node.pull(&hub.reference("app:zstd")).await.unwrap();
    assert_eq!(blobs_of(&hub.take_log()), Vec::<String>::new());
    assert_eq!(pulled.image.repo_tags.len(), 2);
    assert_eq!(pulled.image.repo_digests.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_once_fetch_each_blob_once() {
    let (hub, node) = (Hub::start().await, Node::new());
    let shared = gzip(&filled(1, 300_000));
    let one = BuiltImage::new(&[shared.clone(), gzip(&filled(2, 1_000))]);
    let two = BuiltImage::new(&[shared.clone(), gzip(&filled(3, 1_000))]);
    hub.push("one", "1", &one);
    hub.push("two", "1", &two);
    let gate = hub.gate(&blob_path("one", &shared.digest));

    let first = node.cache.pull(request(&hub.reference("one:1")));
    gate.reached().await;
    // The same again joins the pull itself, the other image joins the layer.
    let same = node.cache.pull(request(&hub.reference("one:1")));
    let second = node.cache.pull(request(&hub.reference("two:1")));
    let mut progress = second.progress();
    progress
        .wait_for(|state| {
            state
                .layers
                .iter()
                .any(|layer| layer.source == LayerSource::Shared)
        })
        .await
        .unwrap();
    gate.open();

    let (first, same, second) = tokio::join!(first.wait(), same.wait(), second.wait());
    assert_eq!(first.unwrap().image.id, same.unwrap().image.id);
    assert_eq!(
        second.unwrap().fetched_bytes,
        two.layers[1].blob.len() as u64
    );
    let wanted = [&one, &two]
        .into_iter()
        .flat_map(|image| [image.id(), image.layers[1].digest.clone()]);
    assert_eq!(
        blobs_of(&hub.take_log()),
        sorted(wanted.chain([shared.digest]).collect())
    );
    assert_eq!(node.cache.list().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_does_not_stop_what_others_wait_for() {
    let (hub, node) = (Hub::start().await, Node::with_grace(Duration::ZERO));
    let shared = gzip(&filled(1, 300_000));
    hub.push("one", "1", &BuiltImage::new(&[shared.clone()]));
    hub.push(
        "two",
        "1",
        &BuiltImage::new(&[shared.clone(), gzip(&filled(2, 10))]),
    );
    let gate = hub.gate(&blob_path("one", &shared.digest));

    let first = node.cache.pull(request(&hub.reference("one:1")));
    gate.reached().await;
    let other = node.cache.pull(request(&hub.reference("two:1")));
    let mut progress = other.progress();
    progress
        .wait_for(|state| {
            state
                .layers
                .iter()
                .any(|layer| layer.source == LayerSource::Shared)
        })
        .await
        .unwrap();
    let mut gone = first.progress();
    drop(first);
    gone.wait_for(|state| state.phase == Phase::Failed)
        .await
        .unwrap();
    gate.open();

    other.wait().await.unwrap();
    assert_eq!(
        blobs_of(&hub.take_log())
            .iter()
            .filter(|blob| **blob == shared.digest)
            .count(),
        1
    );
    assert_eq!(node.cache.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_nobody_waits_for_is_given_up_and_leaves_nothing() {
    let (hub, node) = (Hub::start().await, Node::with_grace(Duration::ZERO));
    let image = two_layers();
    hub.push("app", "1", &image);
    let gate = hub.gate(&blob_path("app", &image.layers[0].digest));
    let pull = node.cache.pull(request(&hub.reference("app:1")));
    let mut progress = pull.progress();
    gate.reached().await;
    drop(pull);
    progress
        .wait_for(|state| state.phase == Phase::Failed)
        .await
        .unwrap();
    gate.left().await;
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_within_the_grace_period() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("app", "1", &image);
    let gate = hub.gate(&blob_path("app", &image.layers[0].digest));
    let pull = node.cache.pull(request(&hub.reference("app:1")));
    let mut progress = pull.progress();
    gate.reached().await;
    drop(pull);
    gate.open();
    progress
        .wait_for(|state| state.phase == Phase::Done)
        .await
        .unwrap();
    assert_eq!(node.cache.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_pulls_and_frees_what_they_had() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("app", "1", &image);
    let gate = hub.gate(&blob_path("app", &image.layers[0].digest));
    let pull = node.cache.pull(request(&hub.reference("app:1")));
    gate.reached().await;
    node.cache.shutdown().await;
    assert_eq!(pull.wait().await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(
        node.refused(&hub.reference("app:1")).await.0,
        ErrorKind::Cancelled
    );
    node.assert_empty().await;
}

fn lying(layer: &BuiltLayer, diff_id: &str) -> BuiltLayer {
    BuiltLayer {
        diff_id: diff_id.to_owned(),
        ..layer.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let (hub, node) = (Hub::start().await, Node::new());
    let layer = gzip(&filled(1, 1_000));
    let wrong = build::digest(b"something else");
    let image = BuiltImage::new(&[gzip(&filled(2, 50)), lying(&layer, &wrong)]);
    hub.push("app", "1", &image);
    let (kind, text) = node.refused(&hub.reference("app:1")).await;
    assert_eq!(kind, ErrorKind::BadImage);
    for part in [
        &layer.digest,
        &layer.diff_id,
        &wrong,
        &hub.reference("app:1"),
    ] {
        assert!(text.contains(part.as_str()), "{part} in {text}");
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_with_another_number_of_layers_is_refused() {
    let (hub, node) = (Hub::start().await, Node::new());
    let layer = gzip(&filled(1, 1_000));
    let image = BuiltImage::with_config(
        &[layer.clone(), gzip(&filled(2, 9))],
        &build::config("amd64", &[&layer.diff_id]),
    );
    hub.push("app", "1", &image);
    let (kind, text) = node.refused(&hub.reference("app:1")).await;
    assert_eq!(kind, ErrorKind::BadImage);
    assert!(text.contains("2 layers"), "{text}");
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused() {
    let (hub, node) = (Hub::start().await, Node::new());
    let (good, other) = (gzip(&filled(1, 3_000)), gzip(&filled(2, 3_000)));
    let image = BuiltImage::new(&[good.clone()]);
    hub.push("app", "1", &image);
    let mut bytes = other.blob.clone();
    bytes.resize(good.blob.len(), 0);
    hub.put_blob("app", &good.digest, &bytes);
    let (kind, text) = node.refused(&hub.reference("app:1")).await;
    assert!(
        matches!(kind, ErrorKind::BadImage | ErrorKind::Protocol),
        "{kind:?}: {text}"
    );
    assert!(text.contains(&good.digest), "{text}");
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_layer_or_image_is_not_found() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("app", "1", &image);
    hub.refuse(
        &blob_path("app", &image.layers[1].digest),
        Some(StatusCode::NOT_FOUND),
    );
    assert_eq!(
        node.refused(&hub.reference("app:1")).await.0,
        ErrorKind::NotFound
    );
    assert_eq!(
        node.refused(&hub.reference("app:2")).await.0,
        ErrorKind::NotFound
    );
    assert_eq!(
        node.refused(&hub.reference("nothing:1")).await.0,
        ErrorKind::NotFound
    );
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_platform_lists_what_is_offered() {
    let (hub, node) = (Hub::start().await, Node::new());
    let arm = BuiltImage::with_config(&[], &build::config("arm64", &[]));
    let nested = build::index(&[("linux/riscv64", &arm.manifest, build::MANIFEST)]);
    let index = build::index(&[
        ("linux/arm64", &arm.manifest, build::MANIFEST),
        ("linux/s390x", b"{}", build::MANIFEST),
    ]);
    hub.push("app", "plain", &arm);
    hub.push_index("app", "multi", &index);
    hub.push_index("app", "inner", &nested);
    hub.push_index(
        "app",
        "nested",
        &build::index(&[("", &nested, build::INDEX)]),
    );
    for (tag, offered) in [
        ("multi", "linux/s390x"),
        ("plain", "linux/arm64"),
        ("nested", "linux/riscv64"),
    ] {
        let (kind, text) = node.refused(&hub.reference(&format!("app:{tag}"))).await;
        assert_eq!(kind, ErrorKind::Platform, "{text}");
        assert!(
            text.contains(offered) && text.contains("linux/amd64"),
            "{text}"
        );
    }
    // Asked for, it is served, and stands beside others of the index.
    let asked = PullRequest {
        platform: Some("linux/arm64".parse().unwrap()),
        ..request(&hub.reference("app:multi"))
    };
    let pulled = node.cache.pull(asked).wait().await.unwrap();
    assert_eq!(pulled.image.platform.architecture, "arm64");
    assert_eq!(pulled.image.layers, []);
    assert!(pulled.image.size > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_indexes_are_followed_but_not_without_end() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("app", "image", &image);
    let mut inner = build::index(&[("linux/amd64", &image.manifest, build::MANIFEST)]);
    for depth in 1..=6 {
        hub.push_index("app", &format!("deep-{depth}"), &inner);
        inner = build::index(&[("", &inner, build::INDEX)]);
    }
    let pulled = node.pull(&hub.reference("app:deep-4")).await.unwrap();
    assert_eq!(pulled.image.id.to_string(), image.id());
    assert_eq!(
        node.refused(&hub.reference("app:deep-5")).await.0,
        ErrorKind::BadImage
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_index_names_no_platform_the_config_decides() {
    let (hub, node) = (Hub::start().await, Node::new());
    let (arm, amd) = (
        BuiltImage::with_config(&[], &build::config("arm64", &[])),
        two_layers(),
    );
    hub.push("app", "arm", &arm);
    hub.push("app", "amd", &amd);
    hub.push_index(
        "app",
        "1",
        &build::index(&[
            ("", &arm.manifest, build::MANIFEST),
            ("", &amd.manifest, build::MANIFEST),
        ]),
    );
    assert_eq!(
        node.pull(&hub.reference("app:1"))
            .await
            .unwrap()
            .image
            .id
            .to_string(),
        amd.id()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_leaves_the_old_image_with_its_digest() {
    let (hub, node) = (Hub::start().await, Node::new());
    let (old, new) = (two_layers(), BuiltImage::new(&[gzip(&filled(9, 100))]));
    hub.push("app", "1", &old);
    node.pull(&hub.reference("app:1")).await.unwrap();
    hub.push("app", "1", &new);
    node.pull(&hub.reference("app:1")).await.unwrap();

    let (old, new) = (
        node.cache.status(&old.id()).unwrap().unwrap(),
        node.cache.status(&new.id()).unwrap().unwrap(),
    );
    assert_eq!((old.repo_tags.len(), old.repo_digests.len()), (0, 1));
    assert_eq!(new.repo_tags, [hub.reference("app:1")]);
    assert_eq!(
        node.cache
            .status(&hub.reference("app:1"))
            .unwrap()
            .unwrap()
            .id,
        new.id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_one_image_are_one_image_and_go_together() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    for tag in ["1", "2", "3"] {
        hub.push("app", tag, &image);
        node.pull(&hub.reference(&format!("app:{tag}")))
            .await
            .unwrap();
    }
    let list = node.cache.list();
    assert_eq!(list.len(), 1);
    assert_eq!(
        list[0].repo_tags,
        ["1", "2", "3"].map(|tag| hub.reference(&format!("app:{tag}")))
    );
    assert_eq!(list[0].repo_digests.len(), 1);

    let removed = node
        .cache
        .remove(&hub.reference("app:2"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(removed.names.len(), 4);
    assert_eq!(
        node.cache.remove(&hub.reference("app:1")).await.unwrap(),
        None
    );
    assert_eq!(node.cache.remove(&"0".repeat(64)).await.unwrap(), None);
    assert_eq!(
        node.cache.remove("").await.unwrap_err().kind(),
        ErrorKind::InvalidReference
    );
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_gives_no_tag_and_one_with_both_gives_both() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("app", "1", &image);
    let digested = hub.reference(&format!("app@{}", image.digest()));
    let pulled = node.pull(&digested).await.unwrap();
    assert_eq!(
        (pulled.image.repo_tags, pulled.image.repo_digests),
        (vec![], vec![digested.clone()])
    );
    let pulled = node
        .pull(&hub.reference(&format!("app:1@{}", image.digest())))
        .await
        .unwrap();
    assert_eq!(
        (pulled.image.repo_tags, pulled.image.repo_digests),
        (vec![hub.reference("app:1")], vec![digested])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_is_asked_with_each_callers_credentials() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("app", "1", &image);
    hub.require("app", &["ann:secret-of-ann", "bob:secret-of-bob"]);
    let name = hub.reference("app:1");
    node.cache
        .pull(request_as(&name, "ann", "secret-of-ann"))
        .wait()
        .await
        .unwrap();
    // All is local, and still a stranger gets nothing.
    for stranger in [request(&name), request_as(&name, "eve", "secret-of-eve")] {
        let error = node.cache.pull(stranger).wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        assert!(
            !format!("{error} {error:?}").contains("secret-of"),
            "{error:?}"
        );
    }
    assert!(
        node.cache
            .pull(request_as(&name, "bob", "secret-of-bob"))
            .wait()
            .await
            .unwrap()
            .up_to_date
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_under_way_is_not_shared_with_other_credentials() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    hub.push("app", "1", &image);
    hub.require("app", &["ann:1"]);
    let gate = hub.gate(&blob_path("app", &image.layers[0].digest));
    let name = hub.reference("app:1");
    let ann = node.cache.pull(request_as(&name, "ann", "1"));
    gate.reached().await;
    let eve = node
        .cache
        .pull(request_as(&name, "eve", "1"))
        .wait()
        .await
        .unwrap_err();
    assert_eq!(eve.kind(), ErrorKind::Unauthenticated);
    gate.open();
    ann.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_download_that_fails_is_tried_with_ones_own_access() {
    let (hub, node) = (Hub::start().await, Node::new());
    let shared = gzip(&filled(1, 100_000));
    hub.push("one", "1", &BuiltImage::new(&[shared.clone()]));
    hub.push(
        "two",
        "1",
        &BuiltImage::new(&[shared.clone(), gzip(&filled(2, 10))]),
    );
    hub.refuse(
        &blob_path("one", &shared.digest),
        Some(StatusCode::FORBIDDEN),
    );
    let gate: Gate = hub.gate(&blob_path("one", &shared.digest));
    let one = node.cache.pull(request(&hub.reference("one:1")));
    gate.reached().await;
    let two = node.cache.pull(request(&hub.reference("two:1")));
    let mut progress = two.progress();
    progress
        .wait_for(|state| {
            state
                .layers
                .iter()
                .any(|layer| layer.source == LayerSource::Shared)
        })
        .await
        .unwrap();
    gate.open();
    assert_eq!(one.wait().await.unwrap_err().kind(), ErrorKind::Denied);
    two.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_does_not_fetch_finished_layers_again_and_a_removal_frees_them() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    let [done, failing] = [&image.layers[0].digest, &image.layers[1].digest];
    hub.push("app", "1", &image);
    let other = BuiltImage::with_config(&[], &build::config("amd64", &[]));
    hub.push("other", "1", &other);
    let path = blob_path("app", failing);
    hub.refuse(&path, Some(StatusCode::INTERNAL_SERVER_ERROR));
    let gate = hub.gate(&path);

    let pull = node.cache.pull(request(&hub.reference("app:1")));
    let mut progress = pull.progress();
    progress
        .wait_for(|state| state.layers.iter().any(|layer| layer.done))
        .await
        .unwrap();
    gate.open();
    assert_eq!(
        pull.wait().await.unwrap_err().kind(),
        ErrorKind::RegistryUnavailable
    );
    assert_eq!(node.cache.usage().layers, 1);
    assert_eq!(node.cache.list(), []);

    hub.take_log();
    hub.refuse(&path, None);
    node.pull(&hub.reference("app:1")).await.unwrap();
    assert!(!blobs_of(&hub.take_log()).contains(done));

    // A removal wants its space back at once.
    node.cache.remove(&image.id()).await.unwrap().unwrap();
    hub.refuse(&path, Some(StatusCode::INTERNAL_SERVER_ERROR));
    let pull = node.cache.pull(request(&hub.reference("app:1")));
    pull.wait().await.unwrap_err();
    node.pull(&hub.reference("other:1")).await.unwrap();
    node.cache
        .remove(&hub.reference("other:1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(node.cache.usage().layers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_blob_twice_and_the_same_layer_under_two_blobs_are_fetched_once() {
    let (hub, node) = (Hub::start().await, Node::new());
    let (a, b) = (filled(1, 2_000), filled(2, 100));
    // Something in the store, so that blobs wait for the config.
    hub.push("other", "1", &BuiltImage::new(&[gzip(&filled(7, 10))]));
    node.pull(&hub.reference("other:1")).await.unwrap();
    hub.take_log();
    let image = BuiltImage::new(&[gzip(&a), gzip(&b), gzip(&a), zstd(&b)]);
    hub.push("app", "1", &image);
    let pulled = node.pull(&hub.reference("app:1")).await.unwrap();
    assert_eq!(pulled.image.layers.len(), 4);
    assert_eq!(
        blobs_of(&hub.take_log()),
        sorted(vec![
            image.id(),
            image.layers[0].digest.clone(),
            image.layers[1].digest.clone()
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_container_image_is_refused() {
    let (hub, node) = (Hub::start().await, Node::new());
    let chart = build::layer(
        b"chart",
        b"chart".to_vec(),
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    );
    hub.push("chart", "1", &BuiltImage::with_config(&[chart], &json!({})));
    let empty = BuiltImage::with_config(&[gzip(&filled(1, 10))], &json!({}));
    hub.push("artifact", "1", &empty);
    hub.put_manifest("html", "1", b"<html>", "text/html");
    for repository in ["chart", "artifact", "html"] {
        let (kind, text) = node
            .refused(&hub.reference(&format!("{repository}:1")))
            .await;
        assert!(
            matches!(kind, ErrorKind::BadImage | ErrorKind::Protocol),
            "{repository}: {kind:?} {text}"
        );
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_pulls_than_slots_all_end() {
    let (hub, node) = (Hub::start().await, Node::new());
    let mut pulls = Vec::new();
    for image in 0..12u64 {
        let layers: Vec<BuiltLayer> = (0..6)
            .map(|n| gzip(&filled(image * 4 + n, 2_000)))
            .collect();
        hub.push(&format!("app-{image}"), "1", &BuiltImage::new(&layers));
        pulls.push(
            node.cache
                .pull(request(&hub.reference(&format!("app-{image}:1")))),
        );
    }
    for pull in pulls {
        pull.wait().await.unwrap();
    }
    let log = hub.take_log();
    let mut blobs = blobs_of(&log);
    let all = blobs.len();
    blobs.dedup();
    assert_eq!(blobs.len(), all, "a blob was fetched twice");
    assert_eq!(node.cache.list().len(), 12);
}

/// The files of a store with this in their names.
fn files_of(node: &Node, part: &str) -> Vec<std::path::PathBuf> {
    let mut folders = vec![node.root.path().to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains(part) {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_heals_damaged_documents() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = two_layers();
    let index = build::index(&[("linux/amd64", &image.manifest, build::MANIFEST)]);
    hub.push("app", "plain", &image);
    hub.push_index("app", "1", &index);
    let name = hub.reference("app:1");
    node.pull(&name).await.unwrap();
    hub.take_log();

    for digest in [build::digest(&index), image.digest(), image.id()] {
        let files = files_of(&node, &digest["sha256:".len()..]);
        assert!(!files.is_empty(), "{digest}");
        for file in files {
            std::fs::write(file, "damaged").unwrap();
        }
        node.pull(&name).await.unwrap();
        assert_eq!(hub.take_log().len(), 2, "{digest}");
        let again = node.pull(&name).await.unwrap();
        assert!(again.up_to_date);
        assert_eq!(hub.take_log().len(), 1, "{digest}");
        assert_eq!(
            node.cache
                .inspect(&name)
                .await
                .unwrap()
                .unwrap()
                .manifest_json,
            image.manifest
        );
    }
    let report = node.cache.fsck(false, |_, _| ()).await.unwrap();
    assert_eq!(report.damaged, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_unpacks_by_any_of_its_names() {
    let (hub, node) = (Hub::start().await, Node::new());
    let image = BuiltImage::new(&[
        gzip(&tar(&[("etc/motd", b"first"), ("etc/host", b"node")])),
        gzip(&tar(&[("etc/motd", b"second")])),
    ]);
    hub.push("app", "1", &image);
    node.pull(&hub.reference("app:1")).await.unwrap();
    for (at, name) in [hub.reference("app:1"), image.id()].iter().enumerate() {
        let to = node.root.path().join(format!("out-{at}"));
        node.cache.unpack(name, &to).await.unwrap();
        assert_eq!(std::fs::read(to.join("etc/motd")).unwrap(), b"second");
        assert_eq!(std::fs::read(to.join("etc/host")).unwrap(), b"node");
    }
    let error = node
        .cache
        .unpack("nothing:1", &node.root.path().join("none"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

//! Pulls that nobody waits for yet: after what pods wait for, within limits, and not shown to who may not have them.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::app::images::LarderImages;
use larder::cache::{
    self, Background, Cache, Credentials, Declaration, ErrorKind, Priority, PullRequest, Secret,
    Traffic, Visibility,
};
use larder::k8s::agent::{Declared, Images, Want, WantCredentials};
use larder::{registry, store};
use tokio::sync::watch;

use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::hub::{Hub, blob_path};

struct Node {
    cache: Cache,
    traffic: watch::Receiver<Traffic>,
    root: Arc<tempfile::TempDir>,
}

impl Node {
    fn new(background: Background) -> Self {
        Self::over(Arc::new(tempfile::tempdir().unwrap()), background)
    }

    fn over(root: Arc<tempfile::TempDir>, background: Background) -> Self {
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
            max_layers: 4,
            orphan_grace: Duration::ZERO,
            pinned: Vec::new(),
            authfile: None,
            background,
            reserved: None,
        };
        let cache = Cache::new(config, store, client, cache::Metrics::default());
        Node {
            traffic: cache.traffic(),
            cache,
            root,
        }
    }

    /// Ends the cache and opens the store again.
    async fn restart(self) -> Self {
        self.cache.shutdown().await;
        let root = self.root.clone();
        drop(self);
        Self::over(root, Background::default())
    }

    async fn until(&mut self, what: impl FnMut(&Traffic) -> bool) -> Traffic {
        let found = tokio::time::timeout(LONG, self.traffic.wait_for(what)).await;
        *found.unwrap().unwrap()
    }
}

/// Only a test that hangs waits so long.
const LONG: Duration = Duration::from_secs(60);

fn front(reference: &str) -> PullRequest {
    PullRequest {
        plain_http: true,
        ..PullRequest::new(reference.parse().unwrap())
    }
}

fn back(reference: &str, order: i32) -> PullRequest {
    PullRequest {
        priority: Priority::Background { order },
        ..front(reference)
    }
}

fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic {
        username: username.to_owned(),
        password: Secret::from(password.to_owned()),
    }
}

fn image(seeds: &[u64], len: usize) -> BuiltImage {
    let layer = |seed: &u64| gzip(&tar(&[(&format!("file-{seed}"), &noise(*seed, len))]));
    BuiltImage::new(&seeds.iter().map(layer).collect::<Vec<_>>())
}

fn layers_in(log: &[String], image: &BuiltImage) -> usize {
    let asked = |line: &&String| {
        image
            .layers
            .iter()
            .any(|layer| line.ends_with(&layer.digest))
    };
    log.iter().filter(asked).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_background_layer_begins_while_a_pod_waits() {
    let (hub, mut node) = (Hub::start().await, Node::new(Background::default()));
    let (urgent, later) = (image(&[1, 2], 5_000), image(&[3, 4, 5], 5_000));
    hub.push("urgent", "1", &urgent);
    hub.push("later", "1", &later);
    let gate = hub.gate(&blob_path("urgent", &urgent.layers[1].digest));

    let pod = node.cache.pull(front(&hub.reference("urgent:1")));
    gate.reached().await;
    hub.take_log();
    let ahead = node.cache.pull(back(&hub.reference("later:1"), 0));
    node.until(|traffic| traffic.background_waiting == 1).await;
    assert_eq!(layers_in(&hub.take_log(), &later), 0);

    gate.open();
    pod.wait().await.unwrap();
    ahead.wait().await.unwrap();
    assert_eq!(layers_in(&hub.take_log(), &later), 3);
    node.until(|traffic| *traffic == Traffic::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn background_layers_under_way_take_no_turn_from_a_pod() {
    let limits = Background {
        layers: 4,
        per_registry: 4,
        ..Background::default()
    };
    let (hub, mut node) = (Hub::start().await, Node::new(limits));
    let (urgent, later) = (image(&[1, 2, 3, 4], 5_000), image(&[5, 6, 7, 8], 5_000));
    hub.push("urgent", "1", &urgent);
    hub.push("later", "1", &later);
    let gates: Vec<_> = later
        .layers
        .iter()
        .map(|layer| hub.gate(&blob_path("later", &layer.digest)))
        .collect();
    let ahead = node.cache.pull(back(&hub.reference("later:1"), 0));
    for gate in &gates {
        gate.reached().await;
    }
    // Every turn is taken, and still the pod's image comes whole.
    let pulled = node.cache.pull(front(&hub.reference("urgent:1")));
    pulled.wait().await.unwrap();
    let traffic = node.until(|traffic| traffic.foreground_pulls == 0).await;
    assert_eq!((traffic.background_layers, traffic.held_back), (4, 0));
    for gate in &gates {
        gate.open();
    }
    ahead.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_joins_a_prepull_makes_it_urgent() {
    let (hub, mut node) = (Hub::start().await, Node::new(Background::default()));
    let (shared, other) = (image(&[1, 2], 5_000), image(&[3], 5_000));
    hub.push("shared", "1", &shared);
    hub.push("other", "1", &other);
    let held = hub.gate(&blob_path("other", &other.layers[0].digest));
    let blocker = node.cache.pull(front(&hub.reference("other:1")));
    held.reached().await;
    let ahead = node.cache.pull(back(&hub.reference("shared:1"), 0));
    node.until(|traffic| traffic.background_waiting == 1).await;

    // The other pod still waits; the prepull that this one joins goes on.
    let pod = node.cache.pull(front(&hub.reference("shared:1")));
    let (pulled, same) = (pod.wait().await.unwrap(), ahead.wait().await.unwrap());
    assert_eq!(pulled.image.id, same.image.id);
    held.open();
    blocker.wait().await.unwrap();
    node.until(|traffic| *traffic == Traffic::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_pod_needs_is_urgent_whoever_began_it() {
    let limits = Background {
        bytes_per_second: Some(1_000),
        ..Background::default()
    };
    let (hub, mut node) = (Hub::start().await, Node::new(limits));
    // At a thousand bytes a second this takes minutes.
    let ahead_of_time = image(&[1], 300_000);
    hub.push("team/a", "1", &ahead_of_time);
    hub.push("team/b", "1", &ahead_of_time);
    let ahead = node.cache.pull(back(&hub.reference("team/a:1"), 0));
    node.until(|traffic| traffic.background_layers == 1).await;
    let pod = node.cache.pull(front(&hub.reference("team/b:1")));
    tokio::time::timeout(LONG, pod.wait())
        .await
        .unwrap()
        .unwrap();
    ahead.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn background_pulls_keep_to_the_bandwidth_and_pods_do_not() {
    const RATE: u64 = 400_000;
    let limits = Background {
        bytes_per_second: Some(RATE),
        ..Background::default()
    };
    let (hub, node) = (Hub::start().await, Node::new(limits));
    let (later, urgent) = (image(&[1, 2], 300_000), image(&[3, 4], 2_000_000));
    hub.push("later", "1", &later);
    hub.push("urgent", "1", &urgent);
    let bytes = |image: &BuiltImage| -> u64 {
        image
            .layers
            .iter()
            .map(|layer| layer.blob.len() as u64)
            .sum()
    };
    let seconds = |bytes: u64| bytes as f64 / RATE as f64;

    let began = Instant::now();
    let pulled = node.cache.pull(back(&hub.reference("later:1"), 0));
    let pulled = pulled.wait().await.unwrap();
    let took = began.elapsed().as_secs_f64();
    assert_eq!(pulled.fetched_bytes, bytes(&later));
    // One burst is free.
    assert!(took >= 0.9 * seconds(bytes(&later)) - 0.1, "{took}");

    let began = Instant::now();
    node.cache
        .pull(front(&hub.reference("urgent:1")))
        .wait()
        .await
        .unwrap();
    let took = began.elapsed().as_secs_f64();
    assert!(took < 0.9 * seconds(bytes(&urgent)), "{took}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_higher_order_is_fetched_first() {
    let limits = Background {
        layers: 1,
        per_registry: 1,
        ..Background::default()
    };
    let (hub, mut node) = (Hub::start().await, Node::new(limits));
    let images: Vec<_> = (0..4).map(|seed| image(&[10 + seed], 3_000)).collect();
    for (at, image) in images.iter().enumerate() {
        hub.push(&format!("app{at}"), "1", image);
    }
    let gate = hub.gate(&blob_path("app0", &images[0].layers[0].digest));
    let name = |at: usize| hub.reference(&format!("app{at}:1"));
    let mut pulls = vec![node.cache.pull(back(&name(0), 0))];
    gate.reached().await;
    for (at, order) in [(1, 5), (2, 9), (3, 5)] {
        pulls.push(node.cache.pull(back(&name(at), order)));
        node.until(|traffic| traffic.background_waiting == at).await;
    }
    hub.take_log();
    gate.open();
    for pull in pulls {
        pull.wait().await.unwrap();
    }
    let log = hub.take_log();
    let at = |image: &BuiltImage| {
        let digest = &image.layers[0].digest;
        log.iter().position(|line| line.ends_with(digest)).unwrap()
    };
    assert!(at(&images[2]) < at(&images[1]) && at(&images[1]) < at(&images[3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_given_up_nothing_stays_behind() {
    let (hub, mut node) = (Hub::start().await, Node::new(Background::default()));
    let mut pulls = Vec::new();
    let mut gates = Vec::new();
    for at in 0..6u64 {
        let image = image(&[20 + at, 40 + at], 3_000);
        let repository = format!("app{at}");
        hub.push(&repository, "1", &image);
        for layer in &image.layers {
            gates.push(hub.gate(&blob_path(&repository, &layer.digest)));
        }
        let name = hub.reference(&format!("{repository}:1"));
        pulls.push(node.cache.pull(back(&name, 0)));
        if at == 3 {
            pulls.push(node.cache.pull(front(&name)));
        }
    }
    node.until(|traffic| traffic.foreground_layers == 2 && traffic.background_waiting > 0)
        .await;
    drop(pulls);
    node.until(|traffic| *traffic == Traffic::default()).await;
    // Whoever comes next finds all turns free.
    for gate in gates {
        gate.open();
    }
    let pull = node.cache.pull(back(&hub.reference("app5:1"), 0));
    pull.wait().await.unwrap();
}

/// A prepull's request with its tenant's secret.
fn with_secret(reference: &str, visibility: Visibility) -> PullRequest {
    PullRequest {
        secrets: vec![basic("eve", "wrong"), basic("ann", "pw")],
        visibility,
        ..back(reference, 0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_prepull_is_staged_until_somebody_proves_access() {
    let (hub, node) = (Hub::start().await, Node::new(Background::default()));
    let private = image(&[1, 2], 5_000);
    hub.push("team/app", "1", &private);
    hub.require("team/app", &["ann:pw", "bob:pw"]);
    let name = hub.reference("team/app:1");
    let pulled = node.cache.pull(with_secret(&name, Visibility::Authorized));
    let pulled = pulled.wait().await.unwrap();
    assert!(pulled.image.staged && pulled.fetched_bytes > 0);

    // A restart changes nothing.
    let node = node.restart().await;
    let absent = |node: &Node| {
        let shown = node.cache.shown();
        let id = private.id();
        let forms = [name.as_str(), id.as_str(), &id[..14], &id[7..20]];
        shown.list().is_empty()
            && forms
                .iter()
                .all(|form| shown.status(form).unwrap().is_none())
    };
    assert!(absent(&node));
    assert!(node.cache.shown().inspect(&name).await.unwrap().is_none());
    assert_eq!(node.cache.shown().remove(&name).await.unwrap(), None);
    assert!(node.cache.list()[0].staged && node.cache.usage().images == 1);

    // Who cannot have it at the registry does not get it here.
    for credentials in [Credentials::Anonymous, basic("eve", "wrong")] {
        let request = PullRequest {
            credentials,
            ..front(&name)
        };
        let error = node.cache.pull(request).wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(absent(&node));
    }
    hub.take_log();
    let request = PullRequest {
        credentials: basic("bob", "pw"),
        ..front(&name)
    };
    let pulled = node.cache.pull(request).wait().await.unwrap();
    assert!(!pulled.image.staged && pulled.up_to_date && pulled.fetched_bytes == 0);
    assert_eq!(layers_in(&hub.take_log(), &private), 0);
    assert!(node.cache.shown().status(&name).unwrap().is_some());

    // What was proven stays so, across the next prepull and the next restart.
    let again = node.cache.pull(with_secret(&name, Visibility::Authorized));
    assert!(!again.wait().await.unwrap().image.staged);
    let node = node.restart().await;
    assert_eq!(node.cache.shown().list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_secret_or_is_for_all_is_shown_at_once() {
    let (hub, node) = (Hub::start().await, Node::new(Background::default()));
    for (repository, accounts, visibility) in [
        ("public", None, Visibility::Authorized),
        ("forall", Some(["ann:pw"]), Visibility::NodeWide),
    ] {
        let image = image(&[repository.len() as u64], 2_000);
        hub.push(repository, "1", &image);
        if let Some(accounts) = accounts {
            hub.require(repository, &accounts);
        }
        let name = hub.reference(&format!("{repository}:1"));
        let pulled = node.cache.pull(with_secret(&name, visibility));
        assert!(!pulled.wait().await.unwrap().image.staged, "{repository}");
        assert!(node.cache.shown().status(&name).unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_images_are_pinned_as_they_say_and_known_by_who_declares_them() {
    let (hub, node) = (Hub::start().await, Node::new(Background::default()));
    let (one, two) = (image(&[1], 2_000), image(&[2], 2_000));
    hub.push("app", "1", &one);
    let name = hub.reference("app:1");
    node.cache.pull(front(&name)).wait().await.unwrap();
    let declare = |digest: Option<&BuiltImage>, pinned| Declaration {
        reference: name.parse().unwrap(),
        digest: digest.map(|image| image.digest().parse().unwrap()),
        pinned,
        by: "ClusterImagePrepull base".to_owned(),
        namespace: None,
    };
    let view = || node.cache.status(&one.id()).unwrap().unwrap();
    assert!(!view().pinned && node.cache.declared(&view()).is_empty());

    node.cache.declare(vec![declare(Some(&one), true)]);
    assert!(view().pinned);
    assert_eq!(view().declared_by, ["ClusterImagePrepull base"]);
    assert_eq!(node.cache.declared(&view()).len(), 1);
    // The tag moves on; the digest is what was meant.
    hub.push("app", "1", &two);
    node.cache.pull(front(&name)).wait().await.unwrap();
    assert!(view().pinned);
    assert!(!node.cache.status(&name).unwrap().unwrap().pinned);

    node.cache.declare(vec![declare(None, false)]);
    assert!(!view().pinned && view().declared_by.is_empty());
    let now = node.cache.status(&name).unwrap().unwrap();
    assert_eq!((now.pinned, now.declared_by.len()), (false, 1));
    node.cache.declare(Vec::new());
    assert!(
        node.cache
            .list()
            .iter()
            .all(|image| image.declared_by.is_empty())
    );
}

fn want(reference: &str, digest: Option<&BuiltImage>, secrets: &[&str]) -> Want {
    Want {
        reference: reference.parse().unwrap(),
        digest: digest.map(|image| image.digest().parse().unwrap()),
        platform: None,
        priority: 0,
        credentials: secrets
            .iter()
            .map(|secret| WantCredentials {
                source: "team/pull".to_owned(),
                docker_config: Arc::from(secret.as_bytes()),
            })
            .collect(),
        node_wide: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_seam_holds_declares_and_tells_why_not() {
    let (hub, node) = (Hub::start().await, Node::new(Background::default()));
    let (old, new) = (image(&[1], 2_000), image(&[2], 2_000));
    hub.push("app", "1", &old);
    hub.push("app", "1", &new);
    hub.push("private", "1", &old);
    hub.require("private", &["ann:pw"]);
    let images = LarderImages::new(node.cache.clone()).with_plain_http();

    // The revision's digest under the name that pods use, although the tag has moved on.
    let name = hub.reference("app:1");
    let held = images.pull(want(&name, Some(&old), &[])).await.unwrap();
    assert_eq!((held.id, held.tags), (old.id(), vec![name.clone()]));
    assert_eq!(
        held.digests,
        [hub.reference(&format!("app@{}", old.digest()))]
    );
    let declared = Declared {
        reference: name.parse().unwrap(),
        digest: Some(old.digest().parse().unwrap()),
        pinned: true,
        by: "ImagePrepull team/base".to_owned(),
    };
    images.declare(vec![declared]).await.unwrap();
    assert!(images.list().await.unwrap()[0].pinned);
    let figures = images.figures().await.unwrap();
    assert_eq!((figures.images, figures.layers), (1, 1));
    assert!(figures.pinned_bytes > 0 && figures.stored_bytes > 0 && figures.healthy);
    assert!(figures.capacity_bytes >= figures.available_bytes && figures.available_bytes > 0);

    let secret = |password: &str| {
        let host = &hub.host;
        format!(r#"{{"auths":{{"{host}":{{"username":"ann","password":"{password}"}}}}}}"#)
    };
    let private = hub.reference("private:1");
    for (reference, secrets, reason) in [
        (hub.reference("absent:1"), vec![], "NotFound"),
        (private.clone(), vec![], "Unauthorized"),
        (private.clone(), vec![secret("wrong")], "Unauthorized"),
        (private.clone(), vec!["{".to_owned()], "SecretMissing"),
        (
            "127.0.0.1:1/app:1".to_owned(),
            vec![],
            "RegistryUnavailable",
        ),
    ] {
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let failure = images
            .pull(want(&reference, None, &secrets))
            .await
            .unwrap_err();
        assert_eq!(failure.reason, reason, "{reference}: {failure}");
        let named = failure.message.contains(&reference) || failure.message.contains("team/pull");
        assert!(named && !failure.message.contains("wrong"), "{failure}");
    }
    images
        .pull(want(&private, Some(&old), &["{", &secret("pw")]))
        .await
        .unwrap();
}

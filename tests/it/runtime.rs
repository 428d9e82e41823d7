//! Declared images in a container runtime: containerd itself, and larder's own image service in its place.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use larder::app::agent::Agent;
use larder::app::config::{AgentArgs, Config};
use larder::app::images::NodeImages;
use larder::k8s::agent::{Images, Want, WantCredentials};
use larder::k8s::api::ALL;
use larder::lifecycle::Shutdown;
use larder::registry;
use larder::runtime::{self, RuntimeImages};
use serde_json::{Value, json};

use crate::declared::{declare, resolve};
use crate::support::build::{BuiltImage, gzip, noise, tar};
use crate::support::cluster::Cluster;
use crate::support::containers::{Containerd, hosts};
use crate::support::hub::Hub;
use crate::support::node::{Node, install, reported, told};

fn image(seed: u64) -> BuiltImage {
    BuiltImage::new(&[gzip(&tar(&[("file", &noise(seed, 5_000))]))])
}

fn want(reference: &str, digest: Option<&BuiltImage>, secret: Option<&str>) -> Want {
    let secret = secret.map(|secret| WantCredentials {
        source: "team/pull".to_owned(),
        docker_config: Arc::from(secret.as_bytes()),
    });
    Want {
        reference: reference.parse().unwrap(),
        digest: digest.map(|image| image.digest().parse().unwrap()),
        platform: None,
        priority: 0,
        credentials: secret.into_iter().collect(),
        node_wide: false,
    }
}

/// Everything that the agent asks of a runtime.
async fn serves_the_agent(socket: &Path, hub: &Hub) {
    let (old, new) = (image(1), image(2));
    let client = registry::Config {
        attempts: 1,
        ..registry::Config::default()
    };
    let client = registry::Client::new(client, registry::Metrics::default()).unwrap();
    let runtime = RuntimeImages::new(socket, runtime::Metrics::default());
    let images = NodeImages::new(runtime.clone(), client).with_plain_http();

    // The tag is still what the revision says: the runtime gets to know it.
    hub.push("app", "1", &old);
    let name = hub.reference("app:1");
    let digested = hub.reference(&format!("app@{}", old.digest()));
    let held = images.pull(want(&name, Some(&old), None)).await.unwrap();
    assert_eq!(held.id, old.id());
    assert_eq!(
        (held.tags, held.digests),
        (vec![name.clone()], vec![digested])
    );
    // It is here, so nobody is asked, although the tag has moved on.
    hub.push("app", "1", &new);
    hub.take_log();
    let held = images.pull(want(&name, Some(&old), None)).await.unwrap();
    assert_eq!((held.id, hub.take_log().len()), (old.id(), 0));
    // Without a digest it is followed.
    let held = images.pull(want(&name, None, None)).await.unwrap();
    assert_eq!(held.id, new.id());

    // The tag has moved before it ever came: by digest, and the tag stays unknown.
    hub.push("moved", "1", &old);
    hub.push("moved", "1", &new);
    let name = hub.reference("moved:1");
    let held = images.pull(want(&name, Some(&old), None)).await.unwrap();
    assert_eq!(held.id, old.id());
    assert!(!held.tags.contains(&name), "{held:?}");
    assert!(runtime.status(&name).await.unwrap().is_none());

    hub.push("private", "1", &old);
    hub.require("private", &["ann:pw"]);
    let secret = |password: &str| {
        let host = &hub.host;
        format!(r#"{{"auths":{{"{host}":{{"username":"ann","password":"{password}"}}}}}}"#)
    };
    let private = hub.reference("private:1");
    for (reference, secret, reason) in [
        (hub.reference("absent:1"), None, "NotFound"),
        (private.clone(), None, "Unauthorized"),
        (private.clone(), Some(secret("wrong")), "Unauthorized"),
        (private.clone(), Some("{".to_owned()), "SecretMissing"),
        ("127.0.0.1:1/app:1".to_owned(), None, "RegistryUnavailable"),
    ] {
        let wanted = want(&reference, None, secret.as_deref());
        let failure = images.pull(wanted).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{reference}: {failure}");
        assert!(!failure.message.contains("wrong"), "{failure}");
    }
    let wanted = want(&private, Some(&old), Some(&secret("pw")));
    let held = images.pull(wanted).await.unwrap();
    assert!(held.tags.contains(&private), "{held:?}");

    let list = images.list().await.unwrap();
    let figures = images.figures().await.unwrap();
    assert_eq!(figures.images, list.len() as u64);
    assert!(list.iter().any(|image| image.id == new.id()));
    // containerd counts what is used every ten seconds, so that may be nothing yet.
    assert!(figures.capacity_bytes > 0, "{figures:?}");
    images.declare(Vec::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_service_holds_declared_images() {
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let args = AgentArgs {
        root: Some(dir.path().join("root")),
        socket: Some(dir.path().join("larder.sock")),
        hosts_dir: vec![hosts(dir.path(), &hub)],
        http: Some(String::new()),
        ..AgentArgs::default()
    };
    let agent = Agent::build(Config::load(&args).unwrap()).await.unwrap();
    let (readiness, shutdown) = (agent.readiness(), Shutdown::new());
    let task = tokio::spawn(agent.run(shutdown.clone()));
    while !readiness.ready() {
        assert!(!task.is_finished());
        tokio::task::yield_now().await;
    }
    serves_the_agent(&dir.path().join("larder.sock"), &hub).await;
    shutdown.request();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_holds_declared_images() {
    let name = "containerd_holds_declared_images";
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let Some(containerd) = Containerd::start(name, dir.path(), &hub).await else {
        return;
    };
    serves_the_agent(&containerd.socket, &hub).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_a_runtime_follows_an_api_server() {
    let name = "an_agent_of_a_runtime_follows_an_api_server";
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let Some(cluster) = Cluster::get(name) else {
        return;
    };
    let Some(containerd) = Containerd::start(name, dir.path(), &hub).await else {
        return;
    };
    let socket = &containerd.socket;
    install(cluster);
    cluster.create_nodes(&[("runtime-1", &[("pool", "runtime")])]);
    let (app, private) = (image(31), image(32));
    hub.push("app", "1", &app);
    hub.push("private", "1", &private);
    hub.require("private", &["ann:pw"]);
    let config = cluster.kubeconfig();
    let mut node = Node::start(&[
        "--images",
        "runtime",
        "--runtime-endpoint",
        socket.to_str().unwrap(),
        "--node-name",
        "runtime-1",
        "--kubeconfig",
        config.to_str().unwrap(),
    ]);
    assert!(node.http("/readyz").contains("200 OK"));
    let (app_name, private_name) = (hub.reference("app:1"), hub.reference("private:1"));
    let uid = declare(cluster, "runtime", std::slice::from_ref(&app_name));
    let held = [(app_name.clone(), app.digest())];
    resolve(cluster, "runtime", "00000000000000dd", ALL, &held);
    let ready = |report: &Value| reported(report, &uid)["state"] == "Ready";
    let report = told(cluster, "runtime-1", ready).await;
    assert_eq!(report["status"]["inventory"]["images"], 1);
    let runtime = RuntimeImages::new(socket, runtime::Metrics::default());
    let shown = runtime.status(&app_name).await.unwrap().unwrap();
    assert_eq!(shown.id, app.id());

    // Killed, it goes on from what it wrote down, and pulls nothing again.
    hub.take_log();
    node.kill();
    node.again();
    node.until("held on", |status| {
        status["api"]["synced"] == true && status["prepulls"][0]["state"] == "Ready"
    })
    .await;
    assert_eq!(hub.take_log(), [""; 0]);

    // What it may not have: the report says which and why, and the revision of before stays.
    let both = [held[0].clone(), (private_name.clone(), private.digest())];
    resolve(cluster, "runtime", "00000000000000ee", ALL, &both);
    let report = told(cluster, "runtime-1", |report| {
        reported(report, &uid)["state"] == "Failed"
    })
    .await;
    let failure = &report["status"]["failures"][0];
    assert_eq!(
        (&failure["image"], &failure["reason"]),
        (&json!(private_name), &json!("Unauthorized"))
    );
    assert_eq!(node.status()["prepulls"][0]["revision"], "00000000000000dd");
    cluster
        .kubectl(&["delete", "clusterimageprepull", "runtime"])
        .ok();
    node.until("released", |status| {
        status["prepulls"].as_array().unwrap().is_empty()
    })
    .await;
    assert!(runtime.status(&app_name).await.unwrap().is_some());
    node.agent.take().unwrap().terminate();
    cluster.delete_nodes(&["runtime-1"]);
}

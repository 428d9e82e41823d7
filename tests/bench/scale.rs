//! `make bench-scale`: what thousands of agents cost an API server.
//!
//! Runs the real agents' code, all in this process, each with a connection of its own that impersonates the token of a
//! pod on its Node; only the pulls are pretended. The controller is the real program. Figures come from the API
//! server's and the kernel's own accounts. `tests/bench/scale.sh` starts the control plane.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use clap::Parser;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use larder::k8s::agent::{
    self, Agent, BoxFuture, Declared, Figures, HeldImage, Images, Limits, Metrics, PullFailure,
    Want,
};
use larder::k8s::api::{ClusterImagePrepull, NodeImageCache};
use larder::k8s::connect::Connection;
use larder::lifecycle::Shutdown;
use prometheus_client::registry::Registry;
use serde_json::json;

const NAME: &str = "bench";
const LABEL: &str = "larder.dev/bench";
/// Requests of the set-up at once.
const AT_ONCE: usize = 32;

#[derive(Parser)]
struct Args {
    /// Of an administrator
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The program, for the controller
    #[arg(long)]
    larder: PathBuf,
    /// Of the API server and etcd, to read their memory and time
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Audit log of the API server: what the busiest second is taken from
    #[arg(long)]
    audit: PathBuf,
    /// Simulated nodes
    #[arg(long, default_value_t = 500)]
    nodes: usize,
    /// Images of the prepull
    #[arg(long, default_value_t = 20)]
    images: usize,
    /// Nodes that pull at once
    #[arg(long, default_value = "10%")]
    max_in_flight: String,
    /// Agents that start each second
    #[arg(long, default_value_t = 50)]
    starts: u64,
    /// Seconds of the quiet time that is measured
    #[arg(long, default_value_t = 60)]
    steady: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Holds what it is told to, after a second each.
#[derive(Default)]
struct Pretended {
    held: Mutex<BTreeMap<String, HeldImage>>,
}

impl Images for Pretended {
    fn list(&self) -> BoxFuture<'_, Result<Vec<HeldImage>, PullFailure>> {
        Box::pin(async { Ok(self.held.lock().unwrap().values().cloned().collect()) })
    }

    fn pull(&self, want: Want) -> BoxFuture<'_, Result<HeldImage, PullFailure>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let digest = want.digest.clone().map(|digest| digest.to_string());
            let id = digest.unwrap_or_else(|| "sha256:0".to_owned());
            let held = HeldImage {
                tags: want.reference.tagged().into_iter().collect(),
                digests: want
                    .digest
                    .iter()
                    .map(|digest| want.reference.digested(digest))
                    .collect(),
                pinned: false,
                staged: false,
                size: 1 << 20,
                id: id.clone(),
            };
            self.held.lock().unwrap().insert(id, held.clone());
            Ok(held)
        })
    }

    fn declare(&self, _: Vec<Declared>) -> BoxFuture<'_, Result<(), PullFailure>> {
        Box::pin(async { Ok(()) })
    }

    fn figures(&self) -> BoxFuture<'_, Result<Figures, PullFailure>> {
        let images = self.held.lock().unwrap().len() as u64;
        Box::pin(async move {
            Ok(Figures {
                images,
                healthy: true,
                ..Figures::default()
            })
        })
    }
}

/// Counters of the API server, summed over what does not matter here.
#[derive(Clone, Debug, Default)]
struct Counters {
    /// Writes by resource, leases apart.
    writes: BTreeMap<String, f64>,
    /// Bytes of etcd's file.
    etcd_bytes: f64,
    at: Option<Instant>,
}

impl Counters {
    async fn read(client: &Client) -> Self {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = client.request_text(request).await.unwrap();
        let mut counters = Counters {
            at: Some(Instant::now()),
            ..Counters::default()
        };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("apiserver_request_total{") {
                let label = |name: &str| {
                    let at = rest.split(&format!("{name}=\"")).nth(1)?;
                    at.split('"').next()
                };
                let verb = label("verb").unwrap_or_default();
                let resource = label("resource").unwrap_or_default();
                if ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb)
                    && ["nodeimagecaches", "clusterimageprepulls", "events", "nodes"]
                        .contains(&resource)
                {
                    *counters.writes.entry(resource.to_owned()).or_default() += value(line);
                }
            } else if line.starts_with("apiserver_storage_size_bytes") {
                counters.etcd_bytes = value(line);
            }
        }
        counters
    }

    fn total(&self) -> f64 {
        self.writes.values().sum()
    }
}

fn value(line: &str) -> f64 {
    line.rsplit(' ')
        .next()
        .and_then(|v| v.parse().ok())
        .unwrap_or_default()
}

/// Kilobytes now and at most, and seconds of processor time.
fn account(pid: u32) -> (u64, u64, f64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_default()
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: f64 = [11, 12]
        .iter()
        .filter_map(|at| fields.get(*at)?.parse::<f64>().ok())
        .sum();
    (kilobytes("VmRSS"), kilobytes("VmHWM"), ticks / 100.0)
}

/// Most writes that the API server answered within any one second since then. Polled counters would not do: on a busy
/// machine one poll takes longer than the next.
fn busiest(audit: &Path, since: Timestamp) -> usize {
    let log = std::fs::read_to_string(audit).unwrap();
    let mut times: Vec<Timestamp> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|event| {
            let uri = event["requestURI"].as_str().unwrap_or_default();
            !uri.contains("dryRun=")
        })
        .filter_map(|event| event["stageTimestamp"].as_str()?.parse().ok())
        .filter(|at| *at >= since)
        .collect();
    times.sort_unstable();
    let second = jiff::SignedDuration::from_secs(1);
    let within = |(at, first): (usize, &Timestamp)| {
        times[at..]
            .iter()
            .take_while(|time| time.duration_since(*first) < second)
            .count()
    };
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let args = Args::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .unwrap();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(run(args));
}

async fn config(path: &Path) -> Config {
    let file = Kubeconfig::read_from(path).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.default_retry = false;
    config
}

/// A registry in which every reference is an image, for who only asks (HEAD).
async fn registry() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let answer = |request: axum::extract::Request| async move {
        let digest = larder::image::Digest::sha256(request.uri().path().as_bytes());
        let headers = [
            ("docker-content-digest", digest.to_string()),
            ("content-length", "2".to_owned()),
            (
                "content-type",
                "application/vnd.oci.image.manifest.v1+json".to_owned(),
            ),
        ];
        (StatusCode::OK, headers)
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    host
}

async fn create_nodes(client: &Client, nodes: usize) -> Vec<(String, String)> {
    let api: Api<Node> = Api::all(client.clone());
    stream::iter(0..nodes)
        .map(|at| {
            let api = api.clone();
            async move {
                let name = format!("bench-{at:05}");
                let node: Node = serde_json::from_value(json!({
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": name, "labels": {LABEL: "true"}},
                }))
                .unwrap();
                let node = api.create(&PostParams::default(), &node).await.unwrap();
                let ready = json!({"status": {"conditions": [{
                    "type": "Ready", "status": "True", "reason": "Bench", "message": "",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
                }]}});
                api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&ready))
                    .await
                    .unwrap();
                (name, node.uid().unwrap())
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

async fn run(args: Args) {
    let admin = Client::try_from(config(&args.kubeconfig).await).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let host = registry().await;

    let began = Instant::now();
    let nodes = create_nodes(&admin, args.nodes).await;
    println!("{} nodes made in {:.1?}", nodes.len(), began.elapsed());

    let controller = Command::new(&args.larder)
        .arg("controller")
        .arg("--kubeconfig")
        .arg(&args.kubeconfig)
        .args(["--http", "", "--log-level", "warn"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let controller = Ended(controller);

    // Agents start as a DaemonSet's pods do, one after the other.
    let shutdown = Shutdown::new();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let began = Instant::now();
    let before = args
        .pids
        .iter()
        .map(|pid| account(*pid))
        .collect::<Vec<_>>();
    let mut agents = tokio::task::JoinSet::new();
    let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 / args.starts));
    let synced = Arc::new(AtomicU64::new(0));
    for (name, uid) in &nodes {
        pace.tick().await;
        let mut config = config(&args.kubeconfig).await;
        for (header, value) in [
            (
                "impersonate-user",
                "system:serviceaccount:larder:larder-agent",
            ),
            ("impersonate-group", "system:serviceaccounts"),
            (
                "impersonate-extra-authentication.kubernetes.io%2fnode-name",
                name,
            ),
            (
                "impersonate-extra-authentication.kubernetes.io%2fnode-uid",
                uid,
            ),
        ] {
            config
                .headers
                .push((header.parse().unwrap(), value.parse().unwrap()));
        }
        let connection = Connection::of_client(Client::try_from(config).unwrap());
        let agent = Agent::new(
            agent::Config {
                node: name.clone(),
                labels: BTreeMap::new(),
                state: scratch.path().join(name),
                manifests: None,
                pruned: PathBuf::new(),
                prune_timing: larder::k8s::agent::PruneTiming::default(),
                limits: Limits::default(),
            },
            Some(Arc::new(connection)),
            Arc::new(Pretended::default()),
            metrics.clone(),
        );
        let mut view = agent.view();
        let (synced, shutdown) = (synced.clone(), shutdown.clone());
        agents.spawn(async move {
            let seen = async {
                let _ = view
                    .wait_for(|view| view.api.as_ref().is_some_and(|api| api.synced))
                    .await;
                synced.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = agent.run(shutdown) => {}
                () = seen => {}
            }
        });
    }
    println!("{} agents started in {:.1?}", nodes.len(), began.elapsed());
    while synced.load(Ordering::Relaxed) < nodes.len() as u64 {
        assert!(
            began.elapsed() < Duration::from_secs(900),
            "agents do not get in step"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("all in step after {:.1?}", began.elapsed());
    // The first report of each is spread; without prepulls over a second.
    wait_reports(&admin, nodes.len()).await;
    println!("all reported after {:.1?}", began.elapsed());
    for (pid, before) in args.pids.iter().zip(&before) {
        let (rss, _, cpu) = account(*pid);
        println!(
            "  process {pid}: {:.1} s of processor time for it, {} MB now",
            cpu - before.2,
            rss >> 10
        );
    }

    let quiet = Counters::read(&admin).await;
    rollout(&args, &admin, &host, &controller, &quiet).await;

    // What the delayed writes of the end leave behind.
    settle(&admin).await;
    let (first, cpu) = (Counters::read(&admin).await, account(controller.0.id()).2);
    tokio::time::sleep(Duration::from_secs(args.steady)).await;
    let (last, after) = (Counters::read(&admin).await, account(controller.0.id()));
    let seconds = last
        .at
        .unwrap()
        .duration_since(first.at.unwrap())
        .as_secs_f64();
    println!(
        "steady for {seconds:.0} s: {:.2} writes/s (leases apart), controller {:.3} cores, {} MB now, {} MB at most",
        (last.total() - first.total()) / seconds,
        (after.2 - cpu) / seconds,
        after.0 >> 10,
        after.1 >> 10,
    );
    println!("etcd {:.1} MB", last.etcd_bytes / 1e6);
    for pid in &args.pids {
        let (rss, most, cpu) = account(*pid);
        println!(
            "  process {pid}: {} MB now, {} MB at most, {cpu:.0} s in all",
            rss >> 10,
            most >> 10
        );
    }

    shutdown.request();
    while agents.join_next().await.is_some() {}
    drop(controller);
    let prepulls: Api<ClusterImagePrepull> = Api::all(admin.clone());
    let _ = prepulls.delete(NAME, &DeleteParams::default()).await;
    let api: Api<Node> = Api::all(admin.clone());
    let chosen = ListParams::default().labels(LABEL);
    let _ = api
        .delete_collection(&DeleteParams::default(), &chosen)
        .await;
}

async fn wait_reports(client: &Client, wanted: usize) {
    let api: Api<NodeImageCache> = Api::all(client.clone());
    loop {
        let list = api
            .list_metadata(&ListParams::default().match_any())
            .await
            .unwrap();
        let names: BTreeSet<String> = list.iter().map(ResourceExt::name_any).collect();
        if names.len() >= wanted {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Until nothing was written for some seconds.
async fn settle(client: &Client) {
    let mut last = Counters::read(client).await.total();
    let mut calm = 0;
    for _ in 0..180 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = Counters::read(client).await.total();
        calm = if now > last { 0 } else { calm + 1 };
        last = now;
        if calm >= 10 {
            return;
        }
    }
}

async fn rollout(args: &Args, client: &Client, host: &str, controller: &Ended, quiet: &Counters) {
    let images: Vec<String> = (0..args.images)
        .map(|at| format!("{host}/bench/image-{at}:1"))
        .collect();
    let prepull: ClusterImagePrepull = serde_json::from_value(json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "ClusterImagePrepull",
        "metadata": {"name": NAME},
        "spec": {
            "images": images,
            "nodeSelector": {"matchLabels": {LABEL: "true"}},
            "rollout": {"maxInFlight": args.max_in_flight},
        },
    }))
    .unwrap();
    let api: Api<ClusterImagePrepull> = Api::all(client.clone());
    api.create(&PostParams::default(), &prepull).await.unwrap();
    let began = Instant::now();
    let since = Timestamp::now();
    let (mut in_flight, mut wrong, cpu) = (0, 0, account(controller.0.id()).2);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let status = api.get(NAME).await.unwrap().status.unwrap_or_default();
        let nodes = status.nodes;
        in_flight = in_flight.max(nodes.admitted - nodes.ready - nodes.failed);
        wrong += i32::from(nodes.ready > nodes.admitted || nodes.admitted > nodes.desired);
        if nodes.ready as usize == args.nodes {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(1800),
            "not rolled out: {nodes:?}"
        );
    }
    let seconds = began.elapsed().as_secs_f64();
    let last = Counters::read(client).await;
    let writes = last.total() - quiet.total();
    let most = busiest(&args.audit, since);
    println!(
        "rollout of {} images, {} in flight at most (seen {in_flight}): {seconds:.0} s, {writes:.0} writes, \
         {:.1}/s on average, {most} in the busiest second; controller {:.2} cores; wrong counts seen: {wrong}",
        args.images,
        args.max_in_flight,
        writes / seconds,
        (account(controller.0.id()).2 - cpu) / seconds,
    );
    for (resource, total) in &last.writes {
        let before = quiet.writes.get(resource).copied().unwrap_or_default();
        println!("  {resource}: {:.0} writes", total - before);
    }
}

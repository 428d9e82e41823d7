//! Writes this node's `NodeImageCache`, and only that: server-side apply, compared before it is sent, spread in time.
//!
//! Owns when to write. An object whose Node is gone is left to the garbage collector.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{ACCEPT, HeaderValue};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, GetParams, Patch, PatchParams, Resource};
use kube::core::{PartialObjectMeta, Request};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Message;
use super::metrics::Metrics;
use super::report::Essence;
use super::retry::{self, Draw, News};
use super::watch::Trouble;
use crate::k8s::api::{AGENT_MANAGER, NodeImageCache, NodeImageCacheStatus};
use crate::k8s::connect::{Connection, REQUEST_TIMEOUT};

/// An unchanged report is written again after this,
const REFRESH: Duration = Duration::from_secs(11 * 3600);
/// and up to this much more.
const REFRESH_SPREAD: Duration = Duration::from_secs(2 * 3600);
/// The answer without the object: a fifth of the bytes.
const METADATA_ONLY: HeaderValue = HeaderValue::from_static(
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
);

/// What the agent would report now.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// All of it.
    pub(super) status: NodeImageCacheStatus,
    /// Nodes of each prepull, by uid.
    pub(super) desired: BTreeMap<String, u64>,
    /// Whether enough is known to speak: the first report waits for that.
    pub(super) settled: bool,
    /// Uid of the Node, as its watch has it; `None` while it is unknown or gone.
    pub(super) node_uid: Option<String>,
}

/// An unchanged report is no news to anybody.
const REFRESHED: News = News {
    nodes: 1,
    begun: false,
};

/// The writer's side of a `NodeImageCache`.
#[derive(Debug)]
pub(super) struct Writer {
    /// Hears what an earlier run reported, so that conditions keep their transition times, and refusals.
    pub(super) to: mpsc::Sender<Message>,
    /// To the API server.
    pub(super) connection: Arc<Connection>,
    /// Name of the node, and of the object.
    pub(super) node: String,
    /// Counters.
    pub(super) metrics: Metrics,
    /// Nodes of the cluster, as far as known.
    pub(super) nodes: Arc<AtomicU64>,
}

/// Why a write did not happen.
#[derive(Debug)]
enum Fault {
    /// No Node, or another one than was known: nothing is written for it.
    NodeGone,
    Api(Trouble, String),
}

impl Fault {
    fn of(error: &kube::Error) -> Self {
        let message = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        Fault::Api(Trouble::of(error), message.chars().take(512).collect())
    }
}

/// What is at the API server, as far as this writer knows.
#[derive(Debug)]
struct Written {
    /// Uid of the Node that owns the object.
    owner: String,
    essence: Essence,
    /// Nodes of each prepull in it: one that is released is spread over them too.
    desired: BTreeMap<String, u64>,
    refresh: Instant,
    /// `metadata.resourceVersion` after it was written.
    version: String,
    /// When to see whether somebody else wrote it since.
    verify: Instant,
}

impl Writer {
    async fn client(&self) -> Result<kube::Client, Fault> {
        let client = self.connection.client().await;
        client.map_err(|error| Fault::of(&error))
    }

    /// What is reported there already, if anything is: so that a restart is no reason for a write.
    async fn read(&self) -> Result<Option<NodeImageCache>, Fault> {
        let client = self.client().await?;
        let api: Api<NodeImageCache> = Api::all(client);
        match timeout(REQUEST_TIMEOUT, api.get_opt(&self.node)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(Fault::of(&error)),
            Err(_) => Err(timed_out()),
        }
    }

    /// Nodes that may have news at the same moment as this one.
    fn everybody(&self) -> u64 {
        self.nodes.load(Ordering::Relaxed)
    }

    /// When to look next whether somebody else wrote the object.
    fn verify_at(&self) -> Instant {
        Instant::now() + retry::look_again(self.everybody(), retry::roll())
    }

    /// Tells why the API server does not let this agent write, once, and that it does again.
    async fn refused(&self, before: &mut Option<String>, now: Option<String>) {
        if *before != now {
            before.clone_from(&now);
            let _ = self.to.send(Message::Refused(now)).await;
        }
    }

    /// Writes what is new until nobody reports any more.
    pub(super) async fn run(self, mut reports: watch::Receiver<Arc<Report>>) {
        let mut written: Option<Written> = None;
        let mut last: Option<Instant> = None;
        let mut first = true;
        let mut drawn: Option<Draw<Instant>> = None;
        let mut refusal: Option<String> = None;
        let mut failures: u32 = 0;
        let mut last_fault: Option<Trouble> = None;
        let mut gone: Option<Option<String>> = None;
        loop {
            let report = reports.borrow_and_update().clone();
            if gone.as_ref().is_some_and(|gone| *gone != report.node_uid) {
                tracing::info!(node = self.node, "Node is there again; reports go on");
                gone = None;
                written = None;
            }
            let change = match (&written, &report.node_uid) {
                _ if !report.settled || gone.is_some() => None,
                // Without its Node there is nothing to report about.
                (_, None) => None,
                (Some(written), Some(uid)) if written.owner == *uid => {
                    let mut desired = written.desired.clone();
                    desired.extend(report.desired.clone());
                    written
                        .essence
                        .change(&Essence::of(&report.status), &desired, self.everybody())
                        .or((Instant::now() >= written.refresh).then_some(REFRESHED))
                }
                // To make the object is a write, too.
                _ => Some(News {
                    nodes: self.everybody().saturating_mul(2),
                    begun: false,
                }),
            };
            match change {
                // What was new is as before again.
                None if failures == 0 => drawn = None,
                Some(news) if failures == 0 => {
                    let now = Instant::now();
                    drawn = Some(match drawn {
                        None => Draw::new(news, last, now, retry::roll()),
                        Some(before) => before.hurried(news, last, now),
                    });
                }
                _ => {}
            }
            let due = drawn.map(|drawn| drawn.due);
            let wake = due.or_else(|| {
                written
                    .as_ref()
                    .filter(|_| gone.is_none())
                    .map(|written| written.refresh.min(written.verify))
            });
            let now_due = tokio::select! {
                changed = reports.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
                () = at(wake) => due.is_some_and(|due| due <= Instant::now()),
            };
            if !now_due {
                if let Some(written) = &mut written
                    && due.is_none()
                    && written.verify <= Instant::now()
                {
                    self.verify(written).await;
                }
                continue;
            }
            let report = reports.borrow_and_update().clone();
            let result = if first {
                self.first(&report, &mut written, &mut first).await
            } else {
                self.write(&report, &mut written).await
            };
            match result {
                Ok(wrote) => {
                    if last_fault.take().is_some() {
                        tracing::info!(node = self.node, "NodeImageCache is written again");
                    }
                    failures = 0;
                    drawn = None;
                    last = wrote.then(Instant::now).or(last);
                    self.refused(&mut refusal, None).await;
                }
                Err(Fault::NodeGone) => {
                    self.metrics.written("node_gone");
                    tracing::warn!(
                        node = self.node,
                        "Node is gone or was made anew; nothing is reported until it is seen again"
                    );
                    gone = Some(report.node_uid.clone());
                    written = None;
                    failures = 0;
                    drawn = None;
                }
                Err(Fault::Api(trouble, message)) => {
                    self.metrics.written("failed");
                    if last_fault != Some(trouble) {
                        tracing::warn!(
                            node = self.node,
                            reason = trouble.as_str(),
                            err = message,
                            "NodeImageCache was not written; tried again"
                        );
                        last_fault = Some(trouble);
                    }
                    if trouble == Trouble::Unauthorized {
                        let _ = self.connection.renew().await;
                    }
                    if trouble.is_refusal() {
                        let told =
                            format!("NodeImageCache {} is not written: {message}", self.node);
                        self.refused(&mut refusal, Some(told)).await;
                    }
                    failures = failures.saturating_add(1);
                    let nodes = self.everybody();
                    let overloaded = trouble == Trouble::Overloaded;
                    let pause = retry::reconnect(failures, nodes, overloaded, retry::roll());
                    let spread = retry::spread(nodes).mul_f64(retry::roll());
                    drawn = Some(Draw::at(Instant::now() + pause.max(spread)));
                }
            }
        }
    }

    /// Before the first write: what is there may be as it should be. Then it is only tried whether it could be written,
    /// so that a grant that is missing does not show hours later.
    async fn first(
        &self,
        report: &Report,
        written: &mut Option<Written>,
        first: &mut bool,
    ) -> Result<bool, Fault> {
        let object = self.read().await?;
        *first = false;
        let Some(object) = object else {
            return self.write(report, written).await;
        };
        let owner = object
            .owner_references()
            .first()
            .map(|owner| owner.uid.clone())
            .unwrap_or_default();
        let version = object.resource_version().unwrap_or_default();
        let Some(status) = object
            .status
            .filter(|_| report.node_uid.as_ref() == Some(&owner))
        else {
            return self.write(report, written).await;
        };
        self.apply(None, &self.object(&owner), true).await?;
        *written = Some(Written {
            owner,
            essence: Essence::of(&status),
            desired: report.desired.clone(),
            refresh: refresh(),
            version,
            verify: self.verify_at(),
        });
        // The next report is made with its transition times, and decides.
        let _ = self.to.send(Message::Reported(status)).await;
        Ok(false)
    }

    /// Whether anything was written.
    async fn write(&self, report: &Report, written: &mut Option<Written>) -> Result<bool, Fault> {
        let Some(uid) = &report.node_uid else {
            return Ok(false);
        };
        if written.as_ref().is_none_or(|written| written.owner != *uid) {
            self.own(uid).await?;
        }
        let version = match self.apply_status(&report.status).await {
            Err(Fault::Api(Trouble::KindMissing, _)) => {
                // Of the object, or of the kind: making it tells.
                self.own(uid).await?;
                self.apply_status(&report.status).await?
            }
            other => other?,
        };
        self.metrics.written("written");
        *written = Some(Written {
            owner: uid.clone(),
            essence: Essence::of(&report.status),
            desired: report.desired.clone(),
            refresh: refresh(),
            version,
            verify: self.verify_at(),
        });
        Ok(true)
    }

    /// Looks whether the object is as it was written; if it is not, the next report is news.
    async fn verify(&self, written: &mut Written) {
        written.verify = self.verify_at();
        let params = GetParams::at("0");
        let asked = async {
            let client = self.connection.client().await?;
            let api: Api<NodeImageCache> = Api::all(client);
            api.get_metadata_with(&self.node, &params).await
        };
        let changed = match timeout(REQUEST_TIMEOUT, asked).await {
            Ok(Ok(found)) => found.resource_version().as_ref() != Some(&written.version),
            Ok(Err(kube::Error::Api(status))) => status.code == 404,
            Ok(Err(_)) | Err(_) => false,
        };
        if changed {
            tracing::info!(
                node = self.node,
                "NodeImageCache was changed by somebody else; it is written again"
            );
            written.essence = Essence::default();
        }
    }

    /// Makes the object, owned by the Node; first of all the Node must still be the one that was seen.
    async fn own(&self, uid: &str) -> Result<(), Fault> {
        let client = self.client().await?;
        let nodes: Api<PartialObjectMeta<Node>> = Api::all(client);
        let node = match timeout(REQUEST_TIMEOUT, nodes.get_opt(&self.node)).await {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => return Err(Fault::of(&error)),
            Err(_) => return Err(timed_out()),
        };
        if node.and_then(|node| node.uid()).as_deref() != Some(uid) {
            return Err(Fault::NodeGone);
        }
        self.apply(None, &self.object(uid), false).await.map(drop)
    }

    /// Without its status.
    fn object(&self, uid: &str) -> serde_json::Value {
        json!({
            "apiVersion": NodeImageCache::api_version(&()),
            "kind": NodeImageCache::kind(&()),
            "metadata": {
                "name": self.node,
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid}
                ],
            },
        })
    }

    /// The answer is the object's new version.
    async fn apply_status(&self, status: &NodeImageCacheStatus) -> Result<String, Fault> {
        let object = json!({
            "apiVersion": NodeImageCache::api_version(&()),
            "kind": NodeImageCache::kind(&()),
            "metadata": {"name": self.node},
            "status": status,
        });
        self.apply(Some("status"), &object, false).await
    }

    async fn apply(
        &self,
        part: Option<&str>,
        object: &serde_json::Value,
        dry_run: bool,
    ) -> Result<String, Fault> {
        let params = PatchParams {
            dry_run,
            ..PatchParams::apply(AGENT_MANAGER).force()
        };
        let requests = Request::new(NodeImageCache::url_path(&(), None));
        let patch = Patch::Apply(object);
        let request = match part {
            None => requests.patch(&self.node, &params, &patch),
            Some(part) => requests.patch_subresource(part, &self.node, &params, &patch),
        };
        let mut request = request.map_err(|error| {
            Fault::Api(
                Trouble::Refused,
                format!("node name {:?}: {error}", self.node),
            )
        })?;
        request.headers_mut().insert(ACCEPT, METADATA_ONLY);
        let client = self.client().await?;
        let sent = client.request_text(request);
        match timeout(REQUEST_TIMEOUT, sent).await {
            Ok(Ok(text)) => {
                let answer = serde_json::from_str::<Answer>(&text);
                Ok(
                    answer
                        .map_or_else(|_| String::new(), |answer| answer.metadata.resource_version),
                )
            }
            Ok(Err(error)) => Err(Fault::of(&error)),
            Err(_) => Err(timed_out()),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    metadata: AnswerMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerMetadata {
    #[serde(default)]
    resource_version: String,
}

fn timed_out() -> Fault {
    Fault::Api(
        Trouble::Unreachable,
        "the API server did not answer in time".to_owned(),
    )
}

fn refresh() -> Instant {
    Instant::now() + REFRESH + REFRESH_SPREAD.mul_f64(retry::roll())
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

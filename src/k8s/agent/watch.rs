//! Follows one kind at the API server: a list, then a watch from there, for ever.
//!
//! Owns reconnecting and what is said about the connection. Lists come from the server's cache (gzip makes them
//! smaller than a streamed list) but never older than what was seen. An object that cannot be read is skipped and
//! counted; nothing is ever said to be gone because it could not be read.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Resource, VersionMatch, WatchEvent, WatchParams};
use kube::core::DeserializeGuard;
use kube::core::response::Status;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch as cell};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::metrics::Metrics;
use super::retry;
use crate::k8s::connect::Connection;

/// Of a list, which may be megabytes on a slow line.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// Of the answer to a watch's beginning.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds that a watch lives are drawn from here on,
const WATCH_LEAST: u32 = 240;
/// and over so many, so that watches that began together do not end together.
const WATCH_SPREAD: f64 = 55.0;
/// A watch that ends so long before its time was broken off.
const EARLY: Duration = Duration::from_secs(5);
/// Beginnings that fail in a row before the kind is listed again.
const STARTS: u32 = 3;
/// Objects of one kind that are kept; more are skipped and counted.
pub(super) const MAX_OBJECTS: usize = 20_000;

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watched {
    /// `ClusterImagePrepull`s.
    ClusterImagePrepulls,
    /// `ImagePrepull`s.
    ImagePrepulls,
    /// `ImagePrunePolicy`s.
    ImagePrunePolicies,
    /// This node's Node.
    Node,
}

impl Watched {
    /// All, in order.
    pub const ALL: [Watched; 4] = [
        Watched::ClusterImagePrepulls,
        Watched::ImagePrepulls,
        Watched::ImagePrunePolicies,
        Watched::Node,
    ];

    /// As the API calls it; a label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Watched::ClusterImagePrepulls => "clusterimageprepulls",
            Watched::ImagePrepulls => "imageprepulls",
            Watched::ImagePrunePolicies => "imageprunepolicies",
            Watched::Node => "nodes",
        }
    }
}

/// Why the API server does not answer as hoped: a closed set, safe as label and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trouble {
    /// Not reached, or an answer that is none.
    Unreachable,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404 of the kind: the definition is not installed.
    KindMissing,
    /// 410: too far behind.
    Expired,
    /// 429 and 5xx.
    Overloaded,
    /// Anything else.
    Refused,
}

impl Trouble {
    /// CamelCase.
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::Unreachable => "Unreachable",
            Trouble::Unauthorized => "Unauthorized",
            Trouble::Forbidden => "Forbidden",
            Trouble::KindMissing => "KindMissing",
            Trouble::Expired => "Expired",
            Trouble::Overloaded => "Overloaded",
            Trouble::Refused => "Refused",
        }
    }

    /// Of a request that names no object, or whose object's absence is told apart before.
    pub fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            _ => Trouble::Unreachable,
        }
    }

    /// Whether a person has to do something about it.
    pub(super) fn is_refusal(self) -> bool {
        matches!(
            self,
            Trouble::Forbidden | Trouble::KindMissing | Trouble::Refused
        )
    }

    /// Whether another resource version might help.
    fn may_be_the_version(self) -> bool {
        matches!(self, Trouble::Expired | Trouble::Refused)
    }

    fn of_status(status: &Status) -> Self {
        match status.code {
            401 => Trouble::Unauthorized,
            403 => Trouble::Forbidden,
            404 => Trouble::KindMissing,
            410 => Trouble::Expired,
            // A server that was restored, or lags behind another one: it waits a little for the version to come.
            504 if too_new(status) => Trouble::Expired,
            429 | 500..=599 => Trouble::Overloaded,
            _ => Trouble::Refused,
        }
    }
}

/// Whether the server was asked for a version that it does not have yet.
fn too_new(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "ResourceVersionTooLarge")
}

/// How the connection for one kind is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not listed yet.
    Starting,
    /// Listed, and followed since.
    Synced,
    /// Not followed at the moment.
    Lost {
        /// Why.
        trouble: Trouble,
        /// For people.
        message: String,
    },
}

/// What happened to objects of a kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Delta<T> {
    /// All there are.
    All {
        /// Those that can be read.
        objects: Vec<T>,
        /// Uids of the others.
        unreadable: Vec<String>,
    },
    /// A new or changed one.
    One(T),
    /// One is gone.
    Gone {
        /// Its `metadata.uid`.
        uid: String,
    },
}

/// A message of a watch to the agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told<T> {
    /// About objects.
    Objects(Delta<T>),
    /// About the connection.
    Link(Link),
}

/// What all watches of an agent have in common. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Following {
    /// To the API server.
    pub(super) connection: Arc<Connection>,
    /// Nodes of the cluster, as far as known: what reconnects are spread by.
    pub(super) nodes: Arc<AtomicU64>,
    /// Counters.
    pub(super) metrics: Metrics,
    /// When to begin, once that is known: all nodes may have started at the same moment.
    pub(super) begin: cell::Receiver<Option<Instant>>,
}

impl Following {
    /// Returns when it is time to begin.
    pub(super) async fn begun(&self) {
        let mut begin = self.begin.clone();
        // Who was to say so is gone: it may be any time.
        let at = begin
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|at| *at);
        if let Some(at) = at {
            sleep_until(at).await;
        }
    }
}

/// One kind to follow.
pub(super) struct Kind<K, T> {
    pub(super) watched: Watched,
    pub(super) fields: Option<String>,
    pub(super) compile: fn(&K) -> T,
}

/// Why a watch is not gone on with.
enum End {
    /// List again.
    List,
    /// Watch again.
    Watch,
    /// Nobody listens any more.
    Closed,
}

struct Watch<K, T, M> {
    following: Following,
    kind: Kind<K, T>,
    tell: fn(Told<T>) -> M,
    to: mpsc::Sender<M>,
    link: Link,
    attempt: u32,
    version: String,
}

/// Follows a kind until nobody listens.
pub(super) async fn follow<K, T, M>(
    following: Following,
    kind: Kind<K, T>,
    tell: fn(Told<T>) -> M,
    to: mpsc::Sender<M>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let mut watch = Watch {
        following,
        kind,
        tell,
        to,
        link: Link::Starting,
        attempt: 0,
        version: "0".to_owned(),
    };
    watch.following.begun().await;
    while watch.list().await {
        let mut starts = 0;
        loop {
            match watch.watch(&mut starts).await {
                End::Watch if starts < STARTS => {}
                End::Watch | End::List => break,
                End::Closed => return,
            }
        }
    }
}

impl<K, T, M> Watch<K, T, M>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    async fn api(&self) -> Result<Api<DeserializeGuard<K>>, kube::Error> {
        Ok(Api::all(self.following.connection.client().await?))
    }

    /// Lists, as often as it takes. `false` once nobody listens.
    async fn list(&mut self) -> bool {
        loop {
            let params = ListParams {
                field_selector: self.kind.fields.clone(),
                resource_version: Some(self.version.clone()).filter(|version| !version.is_empty()),
                version_match: (!self.version.is_empty()).then_some(VersionMatch::NotOlderThan),
                ..ListParams::default()
            };
            let answer = timeout(LIST_TIMEOUT, async {
                self.api().await?.list(&params).await
            });
            let answer = answer.await;
            let list = match answer {
                Ok(Ok(list)) => list,
                Ok(Err(error)) => {
                    let trouble = Trouble::of(&error);
                    if trouble.may_be_the_version() {
                        // The server knows no such version yet, or any more: whatever it has now, then.
                        self.version = String::new();
                    }
                    if !self.lost(trouble, &describe(&error)).await {
                        return false;
                    }
                    continue;
                }
                Err(_) => {
                    if !self
                        .lost(Trouble::Unreachable, "the list took too long")
                        .await
                    {
                        return false;
                    }
                    continue;
                }
            };
            self.version = list.metadata.resource_version.unwrap_or_default();
            let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
            for object in list.items {
                match object.0 {
                    Ok(object) if objects.len() < MAX_OBJECTS => {
                        objects.push((self.kind.compile)(&object));
                    }
                    Ok(object) => unreadable.push(object.uid().unwrap_or_default()),
                    Err(invalid) => {
                        self.malformed(&invalid);
                        unreadable.push(invalid.metadata.uid.unwrap_or_default());
                    }
                }
            }
            let all = Delta::All {
                objects,
                unreadable,
            };
            return self.say(Told::Objects(all)).await && self.synced().await;
        }
    }

    /// One watch, to its end.
    async fn watch(&mut self, starts: &mut u32) -> End {
        let seconds = WATCH_LEAST + (WATCH_SPREAD * retry::roll()) as u32;
        let life = Duration::from_secs(seconds.into());
        let params = WatchParams {
            field_selector: self.kind.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let started = Instant::now();
        let beginning = timeout(START_TIMEOUT, async {
            self.api().await?.watch(&params, &self.version).await
        });
        let stream = match beginning.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let trouble = Trouble::of(&error);
                // A server that is away leaves the version as good as it was: no list of all nodes at once.
                *starts += u32::from(trouble.may_be_the_version());
                return self.broken(trouble, &describe(&error)).await;
            }
            Err(_) => {
                return self
                    .broken(Trouble::Unreachable, "the watch did not begin in time")
                    .await;
            }
        };
        *starts = 0;
        if !self.synced().await {
            return End::Closed;
        }
        let mut stream = pin!(stream);
        // The server ends a watch at its time. A line that is dead never tells.
        let last = started + life + START_TIMEOUT;
        loop {
            let event = match tokio::time::timeout_at(last, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(kube::Error::SerdeError(error)))) => {
                    self.following.metrics.malformed(self.kind.watched);
                    tracing::debug!(kind = self.kind.watched.as_str(), err = %error, "Event was skipped");
                    continue;
                }
                Ok(Some(Err(error))) => {
                    return self.broken(Trouble::of(&error), &describe(&error)).await;
                }
                Ok(None) if started.elapsed() + EARLY < life => {
                    // A server that stops ends all watches of all nodes at once.
                    return self
                        .broken(Trouble::Unreachable, "the watch was broken off")
                        .await;
                }
                Ok(None) | Err(_) => return End::Watch,
            };
            let told = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    if let Some(version) = object.resource_version() {
                        self.version = version;
                    }
                    match object.0 {
                        Ok(object) => Told::Objects(Delta::One((self.kind.compile)(&object))),
                        Err(invalid) => {
                            // What it said before it became unreadable goes on to count.
                            self.malformed(&invalid);
                            continue;
                        }
                    }
                }
                WatchEvent::Deleted(object) => {
                    if let Some(version) = object.resource_version() {
                        self.version = version;
                    }
                    match object.uid() {
                        Some(uid) => Told::Objects(Delta::Gone { uid }),
                        None => continue,
                    }
                }
                WatchEvent::Bookmark(mark) => {
                    self.version = mark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => {
                    let trouble = Trouble::of_status(&status);
                    return self.broken(trouble, &status.message).await;
                }
            };
            if !self.say(told).await {
                return End::Closed;
            }
        }
    }

    /// After a watch that ended badly.
    async fn broken(&mut self, trouble: Trouble, message: &str) -> End {
        match trouble {
            // Nothing is wrong with the connection; there is only much to catch up with.
            Trouble::Expired => {
                self.following.metrics.restart(self.kind.watched, trouble);
                sleep(self.pause(1, trouble)).await;
                End::List
            }
            _ if !self.lost(trouble, message).await => End::Closed,
            // Versions of a kind that was installed anew mean nothing.
            Trouble::KindMissing => End::List,
            _ => End::Watch,
        }
    }

    /// Says so, and waits before the next attempt. `false` once nobody listens.
    async fn lost(&mut self, trouble: Trouble, message: &str) -> bool {
        self.following.metrics.restart(self.kind.watched, trouble);
        self.attempt = self.attempt.saturating_add(1);
        if trouble == Trouble::Unauthorized
            && let Err(error) = self.following.connection.renew().await
        {
            tracing::debug!(err = %error, "Credentials were not read again");
        }
        let link = Link::Lost {
            trouble,
            message: message.chars().take(256).collect(),
        };
        let news = match &self.link {
            Link::Lost {
                trouble: before, ..
            } => *before != trouble,
            Link::Starting | Link::Synced => true,
        };
        // A first hiccup of a watch that goes on at once is nothing to speak of.
        if news && (self.attempt > 1 || self.link == Link::Starting) {
            tracing::warn!(
                kind = self.kind.watched.as_str(),
                reason = trouble.as_str(),
                err = message,
                "Objects are not followed; what is held stays"
            );
            self.link = link.clone();
            if !self.say(Told::Link(link)).await {
                return false;
            }
        }
        tokio::select! {
            () = sleep(self.pause(self.attempt, trouble)) => true,
            () = self.to.closed() => false,
        }
    }

    fn pause(&self, attempt: u32, trouble: Trouble) -> Duration {
        let nodes = self.following.nodes.load(Ordering::Relaxed);
        retry::reconnect(
            attempt,
            nodes,
            trouble == Trouble::Overloaded,
            retry::roll(),
        )
    }

    async fn synced(&mut self) -> bool {
        self.attempt = 0;
        if self.link == Link::Synced {
            return true;
        }
        if let Link::Lost { .. } = self.link {
            tracing::info!(
                kind = self.kind.watched.as_str(),
                "Objects are followed again"
            );
        }
        self.link = Link::Synced;
        self.say(Told::Link(Link::Synced)).await
    }

    async fn say(&self, told: Told<T>) -> bool {
        self.to.send((self.tell)(told)).await.is_ok()
    }

    fn malformed(&self, invalid: &kube::core::error_boundary::InvalidObject) {
        self.following.metrics.malformed(self.kind.watched);
        tracing::warn!(
            kind = self.kind.watched.as_str(),
            namespace = invalid.metadata.namespace.as_deref().unwrap_or_default(),
            name = invalid.metadata.name.as_deref().unwrap_or_default(),
            err = invalid.error.chars().take(256).collect::<String>(),
            "Object was skipped: it cannot be read"
        );
    }
}

/// Without what a proxy may have put there.
fn describe(error: &kube::Error) -> String {
    use std::error::Error;
    match error {
        kube::Error::Api(status) => status.message.chars().take(256).collect(),
        other => {
            let mut text = other.to_string();
            let mut source = other.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text.push_str(": ");
                    text.push_str(&cause_text);
                }
                source = cause.source();
            }
            text.chars().take(256).collect()
        }
    }
}

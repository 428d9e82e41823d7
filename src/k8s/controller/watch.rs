//! The five watches, as one stream of changes. Malformed objects are told apart and never end a watch.

use std::pin::Pin;

use futures_util::stream::{Stream, StreamExt, select_all};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};

use super::declared::{Declared, Key, Kind};
use super::nodes::NodeView;
use super::prune;
use crate::k8s::api::{ClusterImagePrepull, ImagePrepull, ImagePrunePolicy, NodeImageCache};

/// What a watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    ClusterPrepulls,
    Prepulls,
    Policies,
    Nodes,
    Reports,
}

impl Source {
    pub(super) const ALL: [Source; 5] = [
        Source::ClusterPrepulls,
        Source::Prepulls,
        Source::Policies,
        Source::Nodes,
        Source::Reports,
    ];

    /// As metrics and logs name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Source::ClusterPrepulls => "clusterimageprepulls",
            Source::Prepulls => "imageprepulls",
            Source::Policies => "imageprunepolicies",
            Source::Nodes => "nodes",
            Source::Reports => "nodeimagecaches",
        }
    }
}

/// An object as it is now.
#[derive(Debug)]
pub(super) enum Object {
    Prepull(Box<Declared>),
    Policy(Box<prune::Declared>),
    Node(Box<NodeView>),
    Report(Box<NodeImageCache>),
}

/// Names an object of any source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Name {
    Prepull(Key),
    Policy(String),
    Node(String),
    Report(String),
}

/// A change.
#[derive(Debug)]
pub(super) enum Seen {
    /// It is there, and looks like this.
    Applied(Name, Object),
    /// It is gone.
    Deleted(Name),
    /// A complete list begins.
    Begin,
    /// The list is complete: what was not in it is gone.
    Complete,
    /// It is there and cannot be read; what was known of it stays.
    Malformed(Name, Box<Meta>, String),
    /// The watch broke and goes on after a pause.
    Broken(watcher::Error),
}

/// Changes of all five kinds, for ever.
pub(super) fn watches(client: &Client) -> impl Stream<Item = (Source, Seen)> + Send + use<> {
    let prepull = |kind| {
        move |meta: &Meta| {
            Name::Prepull(Key {
                kind,
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            })
        }
    };
    let plain = |meta: &Meta| meta.name.clone().unwrap_or_default();
    select_all([
        one::<ClusterImagePrepull>(
            client,
            Source::ClusterPrepulls,
            prepull(Kind::Cluster),
            |object| Object::Prepull(Box::new(object.into())),
        ),
        one::<ImagePrepull>(
            client,
            Source::Prepulls,
            prepull(Kind::Namespaced),
            |object| Object::Prepull(Box::new(object.into())),
        ),
        one::<ImagePrunePolicy>(
            client,
            Source::Policies,
            move |meta| Name::Policy(plain(meta)),
            |object| Object::Policy(Box::new(object.into())),
        ),
        one::<NodeView>(
            client,
            Source::Nodes,
            move |meta| Name::Node(plain(meta)),
            |node| Object::Node(Box::new(node)),
        ),
        one::<NodeImageCache>(
            client,
            Source::Reports,
            move |meta| Name::Report(plain(meta)),
            |report| Object::Report(Box::new(report)),
        ),
    ])
}

type Meta = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
type Changes = Pin<Box<dyn Stream<Item = (Source, Seen)> + Send>>;

fn one<K>(
    client: &Client,
    source: Source,
    name: impl Fn(&Meta) -> Name + Send + 'static,
    object: impl Fn(K) -> Object + Send + 'static,
) -> Changes
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    // Pages of 500 from etcd's own order; the backoff is jittered and starts over after two quiet minutes.
    let events = watch(api, watcher::Config::default()).default_backoff();
    let seen = events.map(move |event| {
        let seen = match event {
            Ok(Event::Init) => Seen::Begin,
            Ok(Event::InitDone) => Seen::Complete,
            Ok(Event::Apply(guard) | Event::InitApply(guard)) => match guard.0 {
                Ok(value) => Seen::Applied(name(value.meta()), object(value)),
                Err(invalid) => Seen::Malformed(
                    name(&invalid.metadata),
                    Box::new(invalid.metadata),
                    invalid.error,
                ),
            },
            Ok(Event::Delete(guard)) => Seen::Deleted(match &guard.0 {
                Ok(value) => name(value.meta()),
                Err(invalid) => name(&invalid.metadata),
            }),
            Err(error) => Seen::Broken(error),
        };
        (source, seen)
    });
    Box::pin(seen)
}

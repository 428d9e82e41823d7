//! Sends what the board decided: statuses, openings of nodes, events.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::time::timeout;

use super::board::Write;
use super::declared::{Declared, Kind};
use super::gate::Opening;
use super::malformed::Fault;
use super::nodes::id;
use super::notes::Note;
use super::pace::Bucket;
use super::prune::{self, PolicyWrite};
use super::status_writes::Written;
use crate::k8s::api::{
    CONTROLLER_MANAGER, CONTROLLER_NAME, ClusterImagePrepull, GROUP, ImagePrepull,
    ImagePrunePolicy, VERSION,
};

/// Of one request; an API server answers within a minute or not at all.
const REQUEST: Duration = Duration::from_secs(30);
/// The same note about the same object is told again after this.
const SAME_NOTE: Duration = Duration::from_secs(600);
/// Notes that are remembered.
const MOST_NOTES: usize = 1024;
/// Events in a second, and at once.
const NOTES_PER_SECOND: f64 = 1.0;
const NOTES_AT_ONCE: f64 = 50.0;

/// Applies a status to the very version that it was made from: a leader that is none any more is refused.
pub(super) async fn write(client: &Client, write: &Write) -> Written<Declared> {
    match write.key.kind {
        Kind::Cluster => {
            let api: Api<ClusterImagePrepull> = Api::all(client.clone());
            apply(&api, write).await
        }
        Kind::Namespaced => {
            let api: Api<ImagePrepull> = Api::namespaced(client.clone(), &write.key.namespace);
            apply(&api, write).await
        }
    }
}

/// Applies a status of a prune policy, in the same way.
pub(super) async fn write_policy(client: &Client, write: &PolicyWrite) -> Written<prune::Declared> {
    let api: Api<ImagePrunePolicy> = Api::all(client.clone());
    let object = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "ImagePrunePolicy",
        "metadata": {
            "name": write.name,
            "uid": write.uid,
            "resourceVersion": write.version,
        },
        "status": write.status,
    });
    let what = format!("ImagePrunePolicy {}", write.name);
    patch(&api, &write.name, &what, &object).await.of()
}

async fn apply<K>(api: &Api<K>, write: &Write) -> Written<Declared>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    Declared: From<K>,
{
    let mut metadata = json!({
        "name": write.key.name,
        "uid": write.uid,
        "resourceVersion": write.version,
    });
    if write.key.kind == Kind::Namespaced
        && let Some(metadata) = metadata.as_object_mut()
    {
        metadata.insert("namespace".to_owned(), json!(write.key.namespace));
    }
    let object = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": write.key.kind.name(),
        "metadata": metadata,
        "status": write.status,
    });
    let what = write.key.to_string();
    patch(api, &write.key.name, &what, &object).await.of()
}

async fn patch<K>(api: &Api<K>, name: &str, what: &str, object: &serde_json::Value) -> Written<K>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let parameters = PatchParams::apply(CONTROLLER_MANAGER).force();
    let patch = Patch::Apply(object);
    let request = api.patch_status(name, &parameters, &patch);
    match timeout(REQUEST, request).await {
        Ok(Ok(object)) => Written::Done(Box::new(object)),
        Ok(Err(kube::Error::Api(status))) if status.is_conflict() => {
            let fresh = timeout(REQUEST, api.get_opt(name)).await;
            match fresh {
                Ok(Ok(Some(object))) => Written::Conflict(Some(Box::new(object))),
                Ok(Ok(None)) => Written::Gone,
                _ => Written::Conflict(None),
            }
        }
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Written::Gone,
        Ok(Err(error)) => {
            tracing::warn!(object = what, err = %error, "Status was not written");
            Written::Failed
        }
        Err(_) => {
            tracing::warn!(
                object = what,
                err = "the API server did not answer in time",
                "Status was not written"
            );
            Written::Failed
        }
    }
}

/// Says in an object's status that it cannot be read; the rest of the status stays. Whether it says so now.
pub(super) async fn condemn(client: &Client, fault: &Fault) -> bool {
    let result = match fault.key.kind {
        Kind::Cluster => {
            let kind = ApiResource::erase::<ClusterImagePrepull>(&());
            condemn_in(&Api::all_with(client.clone(), &kind), fault).await
        }
        Kind::Namespaced => {
            let kind = ApiResource::erase::<ImagePrepull>(&());
            let namespace = &fault.key.namespace;
            condemn_in(
                &Api::namespaced_with(client.clone(), namespace, &kind),
                fault,
            )
            .await
        }
    };
    if let Err(error) = &result {
        tracing::warn!(prepull = %fault.key, err = error, "Status was not written");
    }
    result.is_ok()
}

async fn condemn_in(api: &Api<DynamicObject>, fault: &Fault) -> Result<(), String> {
    let late = |_| "the API server did not answer in time".to_owned();
    let object = timeout(REQUEST, api.get_opt(&fault.key.name))
        .await
        .map_err(late)?
        .map_err(|error| error.to_string())?;
    let Some(object) = object else { return Ok(()) };
    let before = object.data.pointer("/status/conditions").cloned();
    let before = before.and_then(|value| serde_json::from_value::<Vec<Condition>>(value).ok());
    let Some(conditions) = fault.conditions(&before.unwrap_or_default(), Timestamp::now()) else {
        return Ok(());
    };
    // Not applied: that would take away what an applied status said before.
    let patch = json!({
        "metadata": {"uid": fault.uid},
        "status": {"observedGeneration": fault.generation, "conditions": conditions},
    });
    let parameters = PatchParams {
        field_manager: Some(CONTROLLER_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(&patch);
    let request = api.patch_status(&fault.key.name, &parameters, &patch);
    match timeout(REQUEST, request).await.map_err(late)? {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Sets the label, removes the taint. The node as it is now decides: what is read here is written back whole.
pub(super) async fn open(client: &Client, opening: &Opening) -> Result<(), String> {
    let api: Api<Node> = Api::all(client.clone());
    let late = || "the API server did not answer in time".to_owned();
    let node = timeout(REQUEST, api.get(&opening.node))
        .await
        .map_err(|_| late())?
        .map_err(|error| error.to_string())?;
    if node.metadata.uid.as_deref() != Some(&opening.node_uid) {
        return Err("it is another node of that name by now".to_owned());
    }
    let mut patch = json!({"metadata": {
        "uid": opening.node_uid,
        // Taints are one list, so nobody else's change may be lost.
        "resourceVersion": node.metadata.resource_version,
    }});
    if let (Some(label), Some(metadata)) = (
        &opening.label,
        patch
            .pointer_mut("/metadata")
            .and_then(|m| m.as_object_mut()),
    ) {
        metadata.insert("labels".to_owned(), json!({ label.as_str(): "true" }));
    }
    if let (Some(key), Some(patch)) = (&opening.taint, patch.as_object_mut()) {
        let mut taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        taints.retain(|taint| taint.key != *key);
        patch.insert("spec".to_owned(), json!({ "taints": taints }));
    }
    let parameters = PatchParams {
        field_manager: Some(CONTROLLER_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(&patch);
    timeout(REQUEST, api.patch(&opening.node, &parameters, &patch))
        .await
        .map_err(|_| late())?
        .map_err(|error| error.to_string())?;
    Ok(())
}

/// Tells people, seldom and each thing once.
pub(super) struct Herald {
    client: Client,
    instance: String,
    bucket: Bucket,
    told: HashMap<(String, &'static str, String), Instant>,
    number: u64,
}

impl Herald {
    pub(super) fn new(client: Client, instance: String) -> Self {
        Herald {
            client,
            instance,
            bucket: Bucket::new(NOTES_PER_SECOND, NOTES_AT_ONCE, Instant::now()),
            told: HashMap::new(),
            number: 0,
        }
    }

    /// `Ok(false)`: it was told a moment ago, or too much is told already.
    pub(super) async fn tell(&mut self, note: Note) -> Result<bool, String> {
        let now = Instant::now();
        let key = (note.uid.clone(), note.reason, note.text.clone());
        let recent = |at: &Instant| now.saturating_duration_since(*at) < SAME_NOTE;
        if self.told.get(&key).is_some_and(recent) || self.bucket.take(1.0, now).is_err() {
            return Ok(false);
        }
        if self.told.len() >= MOST_NOTES {
            self.told.retain(|_, at| recent(at));
        }
        if self.told.len() < MOST_NOTES {
            self.told.insert(key, now);
        }
        self.number = self.number.wrapping_add(1);
        let event = self.event(note);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match timeout(REQUEST, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => Ok(true),
            // Another replica told it.
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(false),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    fn event(&self, note: Note) -> Event {
        // Events about objects without a namespace live in this one.
        let namespace = match note.namespace.as_str() {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        let now = Timestamp::now();
        // As other writers name them: the object, and a number that no other event of it has.
        let name: String = note.name.chars().take(200).collect();
        let unique = match note.at {
            None => now.as_nanosecond().unsigned_abs() ^ u128::from(self.number),
            // The same for every replica.
            Some(at) => u128::from(id(&format!("{} {} {at}", note.uid, note.reason))),
        };
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{unique:x}", name.trim_end_matches(['.', '-']))),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            action: Some(note.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note.text),
            reason: Some(note.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(match note.kind {
                    Note::NODE => "v1".to_owned(),
                    _ => format!("{GROUP}/{VERSION}"),
                }),
                kind: Some(note.kind.to_owned()),
                name: Some(note.name),
                namespace: Some(note.namespace).filter(|namespace| !namespace.is_empty()),
                uid: Some(note.uid),
                resource_version: Some(note.version).filter(|version| !version.is_empty()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(format!("{GROUP}/{CONTROLLER_NAME}")),
            reporting_instance: Some(self.instance.chars().take(128).collect()),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

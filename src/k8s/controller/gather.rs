//! Reads workloads and secrets that a prepull names, one by one and by name. Nothing is kept.

use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::PodSpec;
use kube::{Api, Client, Resource};
use tokio::time::timeout;

use super::board::{Gather, Gathered};
use super::lookups::ImageFault;
use crate::k8s::agent::WantCredentials;
use crate::k8s::api::{ClusterWorkload, reason};
use crate::k8s::pull_secret::{self, Cause, KEY};

/// Of one request.
const REQUEST: Duration = Duration::from_secs(10);
/// Workloads and secrets that are read for one prepull; their schema has lower limits.
const MOST: usize = 64;

/// How a reading ended.
enum Read<T> {
    Found(T),
    Absent,
    Forbidden,
    /// Something that may pass.
    Lost(String),
}

/// Reads everything that is asked for.
pub(super) async fn gather(client: &Client, gather: &Gather) -> Gathered {
    let mut gathered = Gathered::default();
    for workload in gather.workloads.iter().take(MOST) {
        let subject = format!("{} {}/{}", workload.kind, workload.namespace, workload.name);
        let fault = |message: String| ImageFault {
            image: String::new(),
            reason: reason::WORKLOAD_NOT_FOUND,
            message,
        };
        match images_of(client, workload).await {
            Read::Found(images) => gathered.images.extend(images),
            Read::Absent => gathered
                .faults
                .push(fault(format!("{subject} does not exist"))),
            Read::Forbidden => gathered.faults.push(fault(format!(
                "{subject} may not be read: let the controller's service account get it"
            ))),
            Read::Lost(error) => {
                gathered.again = true;
                gathered.faults.push(fault(format!("{subject}: {error}")));
            }
        }
    }
    for secret in gather.secrets.iter().take(MOST) {
        let subject = format!("secret {}/{}", secret.namespace, secret.name);
        match pull_secret::read(client, secret, REQUEST).await {
            Ok(docker_config) => gathered.credentials.push(WantCredentials {
                source: format!("{}/{}", secret.namespace, secret.name),
                docker_config,
            }),
            Err(cause) => gathered.missing.push(match cause {
                Cause::Type => format!(
                    "{subject} has no {KEY}: its type has to be kubernetes.io/dockerconfigjson"
                ),
                Cause::Absent => format!("{subject} does not exist"),
                Cause::Forbidden => format!(
                    "{subject} may not be read: a RoleBinding has to let the controller's service account get it"
                ),
                Cause::Name | Cause::TooLarge => format!("{subject}: {cause}"),
                Cause::Unauthorized | Cause::Refused | Cause::Unreachable | Cause::Unreadable => {
                    format!("{subject} could not be read just now")
                }
            }),
        }
    }
    gathered
}

async fn images_of(client: &Client, workload: &ClusterWorkload) -> Read<Vec<String>> {
    match workload.kind.as_str() {
        "Deployment" => {
            template(client, workload, |object: Deployment| {
                object.spec.template.spec
            })
            .await
        }
        "StatefulSet" => {
            template(client, workload, |object: StatefulSet| {
                object.spec.template.spec
            })
            .await
        }
        "DaemonSet" => {
            template(client, workload, |object: DaemonSet| {
                object.spec.template.spec
            })
            .await
        }
        "Job" => template(client, workload, |object: Job| object.spec?.template.spec).await,
        "CronJob" => {
            template(client, workload, |object: CronJob| {
                object.spec.job_template.spec?.template.spec
            })
            .await
        }
        _ => Read::Absent,
    }
}

async fn template<K>(
    client: &Client,
    workload: &ClusterWorkload,
    pod: impl Fn(K) -> Option<PodSpec>,
) -> Read<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match get::<K>(client, &workload.namespace, &workload.name).await {
        Read::Found(object) => Read::Found(pod(object).map(images).unwrap_or_default()),
        Read::Absent => Read::Absent,
        Read::Forbidden => Read::Forbidden,
        Read::Lost(error) => Read::Lost(error),
    }
}

fn images(pod: PodSpec) -> Vec<String> {
    let init = pod.init_containers.unwrap_or_default();
    init.into_iter()
        .chain(pod.containers)
        .filter_map(|container| container.image)
        .filter(|image| !image.is_empty())
        .collect()
}

async fn get<K>(client: &Client, namespace: &str, name: &str) -> Read<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match timeout(REQUEST, api.get_opt(name)).await {
        Ok(Ok(Some(object))) => Read::Found(object),
        Ok(Ok(None)) => Read::Absent,
        Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Read::Forbidden,
        // The text of a parser may quote what it read.
        Ok(Err(kube::Error::SerdeError(_))) => {
            Read::Lost("the answer was not understood".to_owned())
        }
        Ok(Err(error)) => Read::Lost(error.to_string()),
        Err(_) => Read::Lost("the API server did not answer in time".to_owned()),
    }
}

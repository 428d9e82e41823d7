//! Calls about containers and pod sandboxes: who uses which image.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::Channel;

use super::Metrics;
use super::connection::{Connection, MAX_ANSWER};
use super::containers_proto::runtime_service_client::RuntimeServiceClient;
use super::containers_proto::{
    Container, ContainerStatusRequest, ImageSpec, ListContainersRequest, ListPodSandboxRequest,
    PodSandbox, PodSandboxStatusRequest, StatusRequest,
};
use super::error::{Error, ErrorClass};

/// A runtime that takes longer than this for a list is not to be trusted with one.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Digits of an id that people see.
const SHORT: usize = 13;

/// A container or a pod sandbox, in whatever state, with the images it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// For people: `container 0123456789abc (web of team/shop-0)`.
    pub by: String,
    /// Names, digests and ids, as the runtime has them: of its own image and of image volumes.
    pub images: Vec<String>,
    /// The image is one that the runtime itself starts pods with.
    pub sandbox: bool,
}

/// The containers and pods of a runtime. Cheap to clone. Connects when it is first asked, and again after a break.
#[derive(Clone, Debug)]
pub struct RuntimeContainers {
    connection: Connection,
    /// What is known of containers and sandboxes that lists do not tell, and that does not change: by id.
    known: Arc<Mutex<HashMap<String, Vec<String>>>>,
}

impl RuntimeContainers {
    /// Of the runtime at a unix socket; `unix://` may stand before its path. Nothing is connected yet. Needs a tokio
    /// runtime.
    pub fn new(socket: &Path, metrics: Metrics) -> Self {
        RuntimeContainers {
            connection: Connection::new(socket, metrics),
            known: Arc::default(),
        }
    }

    /// Where the runtime is.
    pub fn socket(&self) -> &Path {
        self.connection.socket()
    }

    /// Everybody who uses an image now.
    ///
    /// # Errors
    /// The runtime did not tell all. An answer that lacks somebody is never given.
    pub async fn users(&self) -> Result<Vec<ImageUser>, Error> {
        // Pods first: a container that comes with a pod between the calls is then in the second.
        let sandboxes = self.sandboxes().await?;
        let containers = self.containers().await?;
        let pods: HashMap<&str, String> = sandboxes
            .iter()
            .map(|sandbox| (sandbox.id.as_str(), pod(sandbox)))
            .collect();
        let mut users = Vec::with_capacity(sandboxes.len() + containers.len());
        for container in &containers {
            let mut images = names(container.image.as_ref());
            images.extend([container.image_ref.clone(), container.image_id.clone()]);
            images.extend(self.volumes(&container.id).await?);
            images.retain(|name| !name.is_empty());
            users.push(ImageUser {
                by: describe(container, &pods),
                images,
                sandbox: false,
            });
        }
        for sandbox in &sandboxes {
            let images = self.sandbox_image(&sandbox.id).await?;
            if !images.is_empty() {
                users.push(ImageUser {
                    by: format!("pod sandbox {} ({})", short(&sandbox.id), pod(sandbox)),
                    images,
                    sandbox: true,
                });
            }
        }
        let listed = |id: &String| {
            containers.iter().any(|container| container.id == *id)
                || sandboxes.iter().any(|sandbox| sandbox.id == *id)
        };
        self.known().retain(|id, _| listed(id));
        Ok(users)
    }

    /// The image that pods' sandboxes are made of, where the runtime tells it of itself: containerd 1 and CRI-O do.
    pub async fn sandbox_image_of_all(&self) -> Result<Option<String>, Error> {
        let mut client = self.client();
        let call = async move { client.status(StatusRequest { verbose: true }).await };
        let answer = self.call("Status", call).await?;
        let mut told = answer.info.values().map(|json| configured_in(json));
        Ok(told.find_map(|image| image))
    }

    async fn containers(&self) -> Result<Vec<Container>, Error> {
        let mut client = self.client();
        let call = async move { client.list_containers(ListContainersRequest {}).await };
        let answer = self.call("ListContainers", call).await?;
        Ok(answer.containers)
    }

    async fn sandboxes(&self) -> Result<Vec<PodSandbox>, Error> {
        let mut client = self.client();
        let call = async move { client.list_pod_sandbox(ListPodSandboxRequest {}).await };
        Ok(self.call("ListPodSandbox", call).await?.items)
    }

    /// Images that a container has as volumes.
    async fn volumes(&self, id: &str) -> Result<Vec<String>, Error> {
        if let Some(known) = self.known().get(id) {
            return Ok(known.clone());
        }
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
        };
        let mut client = self.client();
        let call = async move { client.container_status(request).await };
        let status = match self.call("ContainerStatus", call).await {
            Ok(answer) => answer.status.unwrap_or_default(),
            // It ended between the calls.
            Err(error) if error.class() == ErrorClass::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mounts = status.mounts.iter();
        let images: Vec<String> = mounts
            .flat_map(|mount| names(mount.image.as_ref()))
            .collect();
        self.known().insert(id.to_owned(), images.clone());
        Ok(images)
    }

    /// The image of a sandbox: containerd and CRI-O tell it only to those who ask for everything.
    async fn sandbox_image(&self, id: &str) -> Result<Vec<String>, Error> {
        if let Some(known) = self.known().get(id) {
            return Ok(known.clone());
        }
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let mut client = self.client();
        let call = async move { client.pod_sandbox_status(request).await };
        let images: Vec<String> = match self.call("PodSandboxStatus", call).await {
            Ok(answer) => answer
                .info
                .values()
                .filter_map(|json| image_in(json))
                .collect(),
            Err(error) if error.class() == ErrorClass::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        self.known().insert(id.to_owned(), images.clone());
        Ok(images)
    }

    async fn call<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        let subject = self.socket().display().to_string();
        let connection = &self.connection;
        connection.call(method, &subject, CALL_TIMEOUT, call).await
    }

    fn client(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.connection.channel()).max_decoding_message_size(MAX_ANSWER)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<String>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn names(spec: Option<&ImageSpec>) -> Vec<String> {
    let Some(spec) = spec else { return Vec::new() };
    let mut names = vec![
        spec.image.clone(),
        spec.user_specified_image.clone(),
        spec.image_ref.clone(),
    ];
    names.retain(|name| !name.is_empty());
    names
}

/// The image that a runtime's own words about a sandbox name.
fn image_in(json: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let image = value.get("image")?.as_str()?;
    (!image.is_empty()).then(|| image.to_owned())
}

/// The image for sandboxes in a runtime's own configuration.
fn configured_in(json: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let image = value.get("sandboxImage")?.as_str()?;
    (!image.is_empty()).then(|| image.to_owned())
}

fn describe(container: &Container, pods: &HashMap<&str, String>) -> String {
    let name = container.metadata.as_ref().map(|data| data.name.as_str());
    let pod = pods.get(container.pod_sandbox_id.as_str());
    let whose = match (name, pod) {
        (Some(name), Some(pod)) => format!(" ({name} of {pod})"),
        (Some(name), None) => format!(" ({name})"),
        (None, Some(pod)) => format!(" (of {pod})"),
        (None, None) => String::new(),
    };
    format!("container {}{whose}", short(&container.id))
}

fn pod(sandbox: &PodSandbox) -> String {
    let Some(data) = &sandbox.metadata else {
        return "a pod without a name".to_owned();
    };
    format!("{}/{}", data.namespace, data.name)
}

fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::containers_proto::{ContainerMetadata, PodSandboxMetadata};

    #[test]
    fn users_are_named_as_people_know_them() {
        let sandbox = PodSandbox {
            id: "s".to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: "shop-0".to_owned(),
                namespace: "team".to_owned(),
            }),
        };
        let pods = HashMap::from([("s", pod(&sandbox))]);
        let container = |id: &str, sandbox: &str| Container {
            id: id.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            metadata: Some(ContainerMetadata {
                name: "web".to_owned(),
            }),
            ..Container::default()
        };
        assert_eq!(
            describe(&container("0123456789abcdef", "s"), &pods),
            "container 0123456789abc (web of team/shop-0)"
        );
        assert_eq!(describe(&container("é", "t"), &pods), "container é (web)");
    }

    #[test]
    fn a_sandbox_image_is_read_from_what_runtimes_tell() {
        let told = r#"{"pid":1,"image":"registry.k8s.io/pause:3.10","config":{"image":5}}"#;
        assert_eq!(image_in(told).unwrap(), "registry.k8s.io/pause:3.10");
        for nothing in ["", "{", "[]", "{}", r#"{"image":7}"#, r#"{"image":""}"#] {
            assert_eq!(image_in(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn the_configured_image_is_read_where_it_is_told() {
        let told = r#"{"containerd":{},"sandboxImage":"registry.k8s.io/pause:3.8"}"#;
        assert_eq!(configured_in(told).unwrap(), "registry.k8s.io/pause:3.8");
        for nothing in [
            "",
            "OK",
            "[]",
            r#"{"sandboxImage":1}"#,
            r#"{"sandboxImage":""}"#,
        ] {
            assert_eq!(configured_in(nothing), None, "{nothing}");
        }
    }

    #[tokio::test]
    async fn who_is_not_told_all_is_told_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = RuntimeContainers::new(&dir.path().join("none.sock"), Metrics::default());
        let error = runtime.users().await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::RuntimeUnavailable);
    }
}

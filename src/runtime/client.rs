//! Calls to the image service.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Channel;

use super::Metrics;
use super::connection::{Connection, MAX_ANSWER};
use super::error::Error;
use super::proto::image_service_client::ImageServiceClient;
use super::proto::{
    AuthConfig, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest,
    PullImageRequest, RemoveImageRequest,
};

/// What a list, a look at one image or at the disk may take; the kubelet waits two minutes.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A pull tells nothing of its progress, so this is for the largest image over the slowest line.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// An image as the runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeImage {
    /// In the runtime's form: `sha256:` and hex, or hex alone.
    pub id: String,
    /// `docker.io/library/busybox:latest`.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// As the runtime counts it: containerd compressed, CRI-O not.
    pub size: u64,
    /// By the runtime's configuration.
    pub pinned: bool,
}

/// What the runtime's images occupy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    /// Of their file system.
    pub mountpoint: PathBuf,
    /// On disk.
    pub used_bytes: u64,
}

/// What the runtime shows to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// User and password.
    Basic {
        /// Account name.
        username: String,
        /// Password or access key.
        password: String,
    },
    /// A refresh token.
    Identity(String),
    /// A bearer token for the registry itself.
    Bearer(String),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[auth]")
    }
}

/// The image service of a runtime. Cheap to clone. Connects when it is first asked, and again after a break.
#[derive(Clone, Debug)]
pub struct RuntimeImages {
    connection: Connection,
}

impl RuntimeImages {
    /// The service at a unix socket; `unix://` may stand before its path. Nothing is connected yet. Needs a tokio
    /// runtime.
    pub fn new(socket: &Path, metrics: Metrics) -> Self {
        RuntimeImages {
            connection: Connection::new(socket, metrics),
        }
    }

    /// Where the runtime is.
    pub fn socket(&self) -> &Path {
        self.connection.socket()
    }

    /// All images.
    pub async fn list(&self) -> Result<Vec<RuntimeImage>, Error> {
        let subject = self.socket().display().to_string();
        let mut client = self.client();
        let call = async move { client.list_images(ListImagesRequest::default()).await };
        let answer = self
            .connection
            .call("ListImages", &subject, CALL_TIMEOUT, call)
            .await?;
        Ok(answer.images.into_iter().map(image).collect())
    }

    /// One image by a name or id; an absent one is `None`.
    pub async fn status(&self, name: &str) -> Result<Option<RuntimeImage>, Error> {
        let request = ImageStatusRequest {
            image: Some(spec(name)),
            verbose: false,
        };
        let mut client = self.client();
        let call = async move { client.image_status(request).await };
        let answer = self
            .connection
            .call("ImageStatus", name, CALL_TIMEOUT, call)
            .await?;
        Ok(answer.image.map(image))
    }

    /// Pulls an image, and returns its id. Without `auth` the runtime uses what it is configured with. Dropping the
    /// future ends the call; containerd then gives the pull up.
    pub async fn pull(&self, name: &str, auth: Option<Auth>) -> Result<String, Error> {
        let request = PullImageRequest {
            image: Some(spec(name)),
            auth: auth.map(wire),
            sandbox_config: None,
        };
        let mut client = self.client();
        let call = async move { client.pull_image(request).await };
        let answer = self
            .connection
            .call("PullImage", name, PULL_TIMEOUT, call)
            .await?;
        Ok(answer.image_ref)
    }

    /// Removes an image with all its names; an absent one is as good. What a container uses is the caller's to know.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let request = RemoveImageRequest {
            image: Some(spec(name)),
        };
        let mut client = self.client();
        let call = async move { client.remove_image(request).await };
        let answer = self
            .connection
            .call("RemoveImage", name, CALL_TIMEOUT, call);
        answer.await.map(drop)
    }

    /// What images occupy; `None` where the runtime does not say.
    pub async fn fs_info(&self) -> Result<Option<FsUsage>, Error> {
        let subject = self.socket().display().to_string();
        let mut client = self.client();
        let call = async move { client.image_fs_info(ImageFsInfoRequest::default()).await };
        let answer = self
            .connection
            .call("ImageFsInfo", &subject, CALL_TIMEOUT, call)
            .await?;
        // The kubelet reads the first one only.
        let usage = answer.image_filesystems.into_iter().next();
        Ok(usage.map(|usage| FsUsage {
            mountpoint: usage.fs_id.unwrap_or_default().mountpoint.into(),
            used_bytes: usage.used_bytes.unwrap_or_default().value,
        }))
    }

    fn client(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.connection.channel()).max_decoding_message_size(MAX_ANSWER)
    }
}

fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    }
}

fn wire(auth: Auth) -> AuthConfig {
    let mut out = AuthConfig::default();
    match auth {
        Auth::Basic { username, password } => {
            out.username = username;
            out.password = password;
        }
        Auth::Identity(token) => out.identity_token = token,
        Auth::Bearer(token) => out.registry_token = token,
    }
    out
}

fn image(image: Image) -> RuntimeImage {
    RuntimeImage {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        pinned: image.pinned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ErrorClass;

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("runtime.sock");
        let runtime = RuntimeImages::new(
            Path::new(&format!("unix://{}", socket.display())),
            Metrics::default(),
        );
        assert_eq!(runtime.socket(), socket);
        let error = runtime.list().await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::RuntimeUnavailable);
        assert!(error.to_string().contains("runtime.sock"), "{error}");
        assert_eq!(error.retry_after(), None);
        let error = runtime.fs_info().await.unwrap_err();
        assert!(error.retry_after().is_some(), "{error}");
    }
}

//! The connection, and the calls on names of images.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::NAMESPACE;
use super::error::ContainerdError as Error;
use super::plan::Registered;
use super::proto::images::v1::images_client::ImagesClient;
use super::proto::images::v1::{DeleteImageRequest, ListImagesRequest};
use crate::runtime::Metrics;
use crate::runtime::connect;

/// Of one call; containerd waits for its disk in some.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A list of 100,000 names is smaller.
const MAX_ANSWER: usize = 64 << 20;

/// A call as metrics name it, and what it does, in words.
pub(super) type Step = (&'static str, &'static str);

/// containerd's own services at a unix socket. Cheap to clone. Connects when it is first asked, and again after a break.
#[derive(Clone, Debug)]
pub struct Containerd {
    pub(super) channel: Channel,
    socket: PathBuf,
    metrics: Metrics,
}

impl Containerd {
    /// At a socket; `unix://` may stand before its path. Nothing is connected yet. Needs a tokio runtime.
    pub fn new(socket: &Path, metrics: Metrics) -> Self {
        let socket = connect::path(socket);
        Containerd {
            channel: connect::channel(&socket),
            socket,
            metrics,
        }
    }

    /// Where containerd is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All names, larder's and others.
    pub async fn names(&self) -> Result<Vec<Registered>, Error> {
        let mut client = self.images();
        let request = self.request(ListImagesRequest::default());
        let call = async move { client.list(request).await };
        let answer = self.call(("images.List", "list its images"), call).await?;
        let images = answer.images.into_iter();
        Ok(images
            .map(|image| Registered {
                name: image.name,
                target: image.target.unwrap_or_default().digest,
                labels: image.labels.into_iter().collect(),
                updated_at: image.updated_at.map_or(0, |time| {
                    let nanos = i64::from(time.nanos);
                    time.seconds
                        .saturating_mul(1000)
                        .saturating_add(nanos / 1_000_000)
                }),
            })
            .collect())
    }

    /// Takes a name away; with `collect` what nothing else leads to goes before the answer. One that is absent is as good.
    pub async fn forget(&self, name: &str, collect: bool) -> Result<(), Error> {
        let mut client = self.images();
        let request = self.request(DeleteImageRequest {
            name: name.to_owned(),
            sync: collect,
        });
        let call = async move {
            match client.delete(request).await {
                Err(status) if status.code() == Code::NotFound => Ok(Response::new(())),
                other => other,
            }
        };
        self.call(("images.Delete", "remove an image"), call).await
    }

    pub(super) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// A request in CRI's namespace.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = MetadataValue::from_static(NAMESPACE);
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request
    }

    /// One call within its limit.
    pub(super) async fn call<T>(
        &self,
        step: Step,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        let answer = self.try_call(step, call).await?;
        answer.map_err(|status| Error::of(&self.socket, step.1, &status))
    }

    /// As [`Self::call`], where some answers that are errors are expected.
    pub(super) async fn try_call<T>(
        &self,
        step: Step,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Result<T, Status>, Error> {
        let began = Instant::now();
        let answer = timeout(CALL_TIMEOUT, call).await;
        let result = match &answer {
            Ok(Ok(_)) => "success",
            Ok(Err(_)) => "error",
            Err(_) => "timeout",
        };
        self.metrics.call(step.0, result, began.elapsed());
        match answer {
            Ok(answer) => Ok(answer.map(Response::into_inner)),
            Err(_) => Err(Error::Timeout {
                socket: self.socket.clone(),
            }),
        }
    }
}

/// Labels as the wire has them.
pub(super) fn wire(labels: impl IntoIterator<Item = (String, String)>) -> HashMap<String, String> {
    labels.into_iter().collect()
}

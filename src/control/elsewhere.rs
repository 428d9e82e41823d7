//! `larder.v1.Images` of an agent beside a container runtime, which holds the images: what it has, and what prune policies
//! would remove, are told; everything else is the runtime's. The answers are made by whoever asks the runtime.

use std::pin::Pin;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::proto::images_server::{self, ImagesServer};
use super::proto::*;
use super::service::{bounded, version};
use super::{fsck, pattern, prune, pull};
use crate::cache::Pruned;
use crate::prune::{Plan, Policy};

/// An answer that takes its time; the error is for people.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

/// Who asks the runtime.
#[derive(Clone)]
pub struct Elsewhere {
    /// Every image.
    pub list: Arc<dyn Fn() -> Answer<Vec<Image>> + Send + Sync>,
    /// What policies would remove.
    pub plan: Arc<dyn Fn(Vec<Policy>) -> Answer<Plan> + Send + Sync>,
}

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Elsewhere").finish_non_exhaustive()
    }
}

/// The gRPC service over whoever asks the runtime.
pub fn elsewhere(source: Elsewhere) -> ImagesServer<Elsewhere> {
    ImagesServer::new(source)
}

fn runtimes() -> Status {
    Status::failed_precondition(
        "this agent's images are the container runtime's (--images runtime): ask it with crictl on the node",
    )
}

#[tonic::async_trait]
impl images_server::Images for Elsewhere {
    type PullStream = pull::Events;
    type FsckStream = fsck::Events;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let wanted = bounded(request.into_inner().pattern)?;
        let mut images = (self.list)().await.map_err(Status::unavailable)?;
        images.retain(|image| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            pattern::matches(names.map(String::as_str), &wanted)
        });
        images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
        Ok(Response::new(ListResponse { images }))
    }

    async fn prune(
        &self,
        request: Request<PruneRequest>,
    ) -> Result<Response<PruneResponse>, Status> {
        let request = request.into_inner();
        if !request.dry_run {
            return Err(Status::failed_precondition(
                "the container runtime's images go by policies (ImagePrunePolicy) and by its own tools; here is only rehearsed: give --dry-run",
            ));
        }
        let policies = prune::policies(request.policies)?;
        let plan = (self.plan)(policies).await.map_err(Status::unavailable)?;
        Ok(Response::new(prune::response(Pruned {
            plan,
            ..Pruned::default()
        })))
    }

    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(version()))
    }

    async fn pull(&self, _: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        Err(runtimes())
    }

    async fn inspect(
        &self,
        _: Request<InspectRequest>,
    ) -> Result<Response<InspectResponse>, Status> {
        Err(runtimes())
    }

    async fn remove(&self, _: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        Err(runtimes())
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        Err(runtimes())
    }

    async fn fsck(&self, _: Request<FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        Err(runtimes())
    }

    async fn unpack(&self, _: Request<UnpackRequest>) -> Result<Response<UnpackResponse>, Status> {
        Err(runtimes())
    }

    async fn mount(&self, _: Request<MountRequest>) -> Result<Response<MountResponse>, Status> {
        Err(runtimes())
    }

    async fn umount(&self, _: Request<UmountRequest>) -> Result<Response<UmountResponse>, Status> {
        Err(runtimes())
    }
}

#[cfg(test)]
mod tests {
    use super::images_server::Images;
    use super::*;

    fn image(id: &str, tag: &str) -> Image {
        Image {
            id: id.to_owned(),
            repo_tags: vec![tag.to_owned()],
            ..Image::default()
        }
    }

    #[tokio::test]
    async fn what_the_runtime_has_is_told_and_the_rest_is_its_own() {
        let source = Elsewhere {
            list: Arc::new(|| {
                let images = vec![image("b", "r.io/b:1"), image("a", "docker.io/library/a:1")];
                Box::pin(std::future::ready(Ok(images)))
            }),
            plan: Arc::new(|_| Box::pin(std::future::ready(Err("no runtime".to_owned())))),
        };
        for (pattern, expected) in [
            ("", vec!["a", "b"]),
            ("a", vec!["a"]),
            ("r.io/*", vec!["b"]),
        ] {
            let request = ListRequest {
                pattern: pattern.to_owned(),
            };
            let answer = source.list(Request::new(request)).await.unwrap();
            let ids: Vec<String> = answer
                .into_inner()
                .images
                .into_iter()
                .map(|i| i.id)
                .collect();
            assert_eq!(ids, expected, "{pattern}");
        }
        let prune = |dry_run| PruneRequest {
            policies: vec![PrunePolicy::default()],
            dry_run,
        };
        let refused = source.prune(Request::new(prune(false))).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        let fault = source.prune(Request::new(prune(true))).await.unwrap_err();
        assert_eq!(fault.message(), "no runtime");
        let refused = source
            .usage(Request::new(UsageRequest {}))
            .await
            .unwrap_err();
        assert!(refused.message().contains("crictl"));
    }
}

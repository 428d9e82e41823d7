//! The service: single answers here, streams in their files.

use std::path::{Path, PathBuf};

use tonic::{Request, Response, Status};

use super::proto::images_server::{self, ImagesServer};
use super::proto::*;
use super::{convert, fsck, pattern, prune, pull, status};
use crate::cache::{Cache, Cause, Error};
use crate::telemetry::TraceContext;

/// Longest name or pattern that is looked at.
const MAX_NAME: usize = 1024;

/// `larder.v1.Images` over a cache.
#[derive(Clone, Debug)]
pub struct Images {
    cache: Cache,
    answers_only: bool,
}

/// The gRPC service over a cache.
pub fn server(cache: Cache) -> ImagesServer<Images> {
    ImagesServer::new(Images {
        cache,
        answers_only: false,
    })
}

/// The same for whoever may look and not touch: calls that read, write or wait for more than a list are refused with
/// `PERMISSION_DENIED`.
pub fn answers(cache: Cache) -> ImagesServer<Images> {
    ImagesServer::new(Images {
        cache,
        answers_only: true,
    })
}

impl Images {
    fn acts(&self) -> Result<(), Status> {
        match self.answers_only {
            false => Ok(()),
            true => Err(Status::permission_denied(
                "this address answers questions only: use the agent's socket on the node",
            )),
        }
    }
}

fn named(name: String) -> Result<String, Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument("the request names no image"));
    }
    bounded(name)
}

pub(super) fn bounded(name: String) -> Result<String, Status> {
    if name.len() > MAX_NAME {
        let length = name.len();
        return Err(Status::invalid_argument(format!(
            "the name is {length} bytes long, at most {MAX_NAME} are allowed"
        )));
    }
    Ok(name)
}

/// A directory on the agent's machine. The agent's own working directory means nothing to a caller.
fn directory(directory: &str) -> Result<PathBuf, Status> {
    let path = Path::new(directory);
    if !path.is_absolute() || directory.contains('\0') {
        return Err(Status::invalid_argument(format!(
            "directory {directory:?} is not absolute: give its full path on the agent's machine"
        )));
    }
    Ok(path.to_owned())
}

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// `NOT_FOUND` with the text the cache has for it.
fn absent(name: String) -> Status {
    status::of(&Error::NotFound { name })
}

#[tonic::async_trait]
impl images_server::Images for Images {
    type PullStream = pull::Events;
    type FsckStream = fsck::Events;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        self.acts()?;
        let trace = request.extensions().get::<TraceContext>().copied();
        let mut request = convert::pull_request(request.into_inner())?;
        request.traceparent = trace.map(|context| context.to_string());
        Ok(Response::new(pull::events(self.cache.pull(request))))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let pattern = bounded(request.into_inner().pattern)?;
        let images = self.cache.list();
        let images = images
            .iter()
            .filter(|image| {
                let names = image.repo_tags.iter().chain(&image.repo_digests);
                pattern::matches(names.map(String::as_str), &pattern)
            })
            .map(convert::image)
            .collect();
        Ok(Response::new(ListResponse { images }))
    }

    async fn inspect(
        &self,
        request: Request<InspectRequest>,
    ) -> Result<Response<InspectResponse>, Status> {
        let name = named(request.into_inner().name)?;
        match self
            .cache
            .inspect(&name)
            .await
            .map_err(|error| status::of(&error))?
        {
            Some(details) => Ok(Response::new(convert::details(&details))),
            None => Err(absent(name)),
        }
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        self.acts()?;
        let request = request.into_inner();
        let name = named(request.name)?;
        let image = self
            .cache
            .status(&name)
            .map_err(|error| status::of(&error))?;
        if request.unless_used {
            self.cache
                .check_unused(&name)
                .await
                .map_err(|error| status::of(&error))?;
        }
        let removed = self
            .cache
            .remove(&name)
            .await
            .map_err(|error| status::of(&error))?;
        match (image, removed) {
            (Some(image), Some(removed)) => Ok(Response::new(convert::removed(&image, removed))),
            _ => Err(absent(name)),
        }
    }

    async fn prune(
        &self,
        request: Request<PruneRequest>,
    ) -> Result<Response<PruneResponse>, Status> {
        let request = request.into_inner();
        if !request.dry_run {
            self.acts()?;
        }
        let policies = prune::policies(request.policies)?;
        let pruned = self
            .cache
            .prune(&policies, request.dry_run, Cause::Command)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(prune::response(pruned)))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        Ok(Response::new(convert::usage(
            &self.cache.usage(),
            self.cache.root(),
        )))
    }

    async fn fsck(
        &self,
        request: Request<FsckRequest>,
    ) -> Result<Response<Self::FsckStream>, Status> {
        self.acts()?;
        Ok(Response::new(fsck::events(
            self.cache.clone(),
            request.into_inner().repair,
        )))
    }

    async fn unpack(
        &self,
        request: Request<UnpackRequest>,
    ) -> Result<Response<UnpackResponse>, Status> {
        self.acts()?;
        let request = request.into_inner();
        let (name, directory) = (named(request.name)?, directory(&request.directory)?);
        let image = self
            .cache
            .unpack(&name, &directory)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(UnpackResponse {
            image: Some(convert::image(&image)),
        }))
    }

    async fn mount(
        &self,
        request: Request<MountRequest>,
    ) -> Result<Response<MountResponse>, Status> {
        self.acts()?;
        let request = request.into_inner();
        let (name, directory) = (named(request.name)?, directory(&request.directory)?);
        let image = self
            .cache
            .mount(&name, &directory)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(MountResponse {
            image: Some(convert::image(&image)),
        }))
    }

    async fn umount(
        &self,
        request: Request<UmountRequest>,
    ) -> Result<Response<UmountResponse>, Status> {
        self.acts()?;
        let directory = directory(&request.into_inner().directory)?;
        self.cache
            .umount(&directory)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(UmountResponse {}))
    }

    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(version()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_absolute() {
        assert_eq!(directory("/mnt/x").unwrap(), Path::new("/mnt/x"));
        for bad in ["", "x", "./x", "../x", "/a\0b"] {
            assert_eq!(
                directory(bad).unwrap_err().code(),
                tonic::Code::InvalidArgument,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn names_are_bounded() {
        assert_eq!(
            named(String::new()).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        assert_eq!(
            named("a".repeat(MAX_NAME + 1)).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        assert_eq!(bounded(String::new()).unwrap(), "");
    }
}

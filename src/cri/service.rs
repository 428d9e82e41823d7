//! The services: each call is one line to its file.

use std::path::PathBuf;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::proto::image_service_server::{self, ImageServiceServer};
use super::proto::runtime_service_server::{self, RuntimeServiceServer};
use super::proto::*;
use super::{
    image_fs_info, image_status, list_images, mount_point, pull_image, remove_image, stream_images,
    version,
};
use crate::cache::Cache;
use crate::telemetry::TraceContext;

/// `runtime.v1.ImageService` over a cache.
#[derive(Clone, Debug)]
pub struct ImageService {
    pub(super) cache: Cache,
    /// Where the store's file system is mounted; looked up once, since the calls must not touch the disk.
    pub(super) mount_point: Arc<PathBuf>,
}

impl ImageService {
    /// Looks up where the store is mounted.
    pub fn new(cache: Cache) -> Self {
        let mount_point = Arc::new(mount_point(cache.root()));
        ImageService { cache, mount_point }
    }
    /// As a gRPC service.
    pub fn server(self) -> ImageServiceServer<Self> {
        ImageServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl image_service_server::ImageService for ImageService {
    type StreamImagesStream = stream_images::Batches;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        list_images::handle(self, request.into_inner()).map(Response::new)
    }
    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        stream_images::handle(self, request.into_inner()).map(Response::new)
    }
    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        image_status::handle(self, request.into_inner())
            .await
            .map(Response::new)
    }
    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let trace = request.extensions().get::<TraceContext>().copied();
        pull_image::handle(self, request.into_inner(), trace)
            .await
            .map(Response::new)
    }
    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        remove_image::handle(self, request.into_inner())
            .await
            .map(Response::new)
    }
    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        image_fs_info::handle(self).map(Response::new)
    }
}

/// `runtime.v1.RuntimeService`, of which there is `Version` only.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuntimeService;

impl RuntimeService {
    /// As a gRPC service.
    pub fn server(self) -> RuntimeServiceServer<Self> {
        RuntimeServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl runtime_service_server::RuntimeService for RuntimeService {
    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(version::answer()))
    }
}

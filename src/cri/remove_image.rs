//! RemoveImage: the whole image by any of its names. What is not here is removed already.

use tonic::Status;

use super::proto::{RemoveImageRequest, RemoveImageResponse};
use super::service::ImageService;
use super::{convert, status};
use crate::cache::ErrorKind;

pub(super) async fn handle(
    service: &ImageService,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, Status> {
    let name = convert::name(request.image)?;
    match service.cache.remove(&name).await {
        Ok(_) => Ok(RemoveImageResponse {}),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(RemoveImageResponse {}),
        Err(error) => Err(status::of(&error)),
    }
}

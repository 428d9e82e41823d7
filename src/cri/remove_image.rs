//! RemoveImage: the whole image by any of its names. What is not here is removed already.
//!
//! A staged image counts as not here, as in every other call: the answer is the one for an absent image, and it stays.
//! The kubelet's collection works through ListImages, which is without it, so it never asks; ImageFsInfo counts its
//! bytes, and what gives them back is `larder rmi`, or the end of the declaration that brought it.

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
    match service.cache.shown().remove(&name).await {
        Ok(_) => Ok(RemoveImageResponse {}),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(RemoveImageResponse {}),
        Err(error) => Err(status::of(&error)),
    }
}

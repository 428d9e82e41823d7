//! ListImages: all images, or those a filter names, without what is staged. From memory.

use tonic::Status;

use super::proto::{Image, ImageFilter, ListImagesRequest, ListImagesResponse};
use super::service::ImageService;
use super::{convert, filter};

pub(super) fn handle(
    service: &ImageService,
    request: ListImagesRequest,
) -> Result<ListImagesResponse, Status> {
    Ok(ListImagesResponse {
        images: images(service, request.filter),
    })
}

/// The images a filter names, in the cache's order.
pub(super) fn images(service: &ImageService, by: Option<ImageFilter>) -> Vec<Image> {
    let wanted = by
        .and_then(|filter| filter.image)
        .map(|image| image.image)
        .unwrap_or_default();
    filter::apply(service.cache.shown().list(), &wanted)
        .iter()
        .map(convert::image)
        .collect()
}

//! StreamImages: ListImages in batches, for lists over a client's message limit.

use std::iter;

use futures_util::stream::{self, Iter};
use tonic::Status;

use super::list_images;
use super::proto::{Image, StreamImagesRequest, StreamImagesResponse};
use super::service::ImageService;

/// Images a message. An image with many names is some kilobytes, so a batch is far below the 4 MiB that gRPC clients
/// accept by default.
const BATCH: usize = 100;

/// The answers, all built when the call came: each image appears exactly once.
pub(super) type Batches =
    Iter<Box<dyn Iterator<Item = Result<StreamImagesResponse, Status>> + Send>>;

pub(super) fn handle(
    service: &ImageService,
    request: StreamImagesRequest,
) -> Result<Batches, Status> {
    Ok(stream::iter(batches(list_images::images(
        service,
        request.filter,
    ))))
}

fn batches(
    images: Vec<Image>,
) -> Box<dyn Iterator<Item = Result<StreamImagesResponse, Status>> + Send> {
    let mut images = images.into_iter();
    Box::new(iter::from_fn(move || {
        let images: Vec<Image> = images.by_ref().take(BATCH).collect();
        (!images.is_empty()).then_some(Ok(StreamImagesResponse { images }))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_once_and_no_empty_batch() {
        for count in [0, 1, BATCH, BATCH + 1, 3 * BATCH] {
            let images = (0..count)
                .map(|n| Image {
                    id: n.to_string(),
                    ..Image::default()
                })
                .collect();
            let batches: Vec<_> = batches(images).map(|batch| batch.unwrap().images).collect();
            assert!(
                batches
                    .iter()
                    .all(|batch| (1..=BATCH).contains(&batch.len()))
            );
            let ids: Vec<_> = batches.concat().into_iter().map(|image| image.id).collect();
            assert_eq!(ids, (0..count).map(|n| n.to_string()).collect::<Vec<_>>());
        }
    }
}

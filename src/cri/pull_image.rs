//! PullImage: an image into the cache, its id back.

use tonic::Status;

use super::proto::{PullImageRequest, PullImageResponse};
use super::service::ImageService;
use super::{auth, convert, status};
use crate::cache::{Credentials, PullRequest};
use crate::image::Reference;
use crate::telemetry::TraceContext;

pub(super) async fn handle(
    service: &ImageService,
    request: PullImageRequest,
    trace: Option<TraceContext>,
) -> Result<PullImageResponse, Status> {
    let name = convert::name(request.image)?;
    let reference: Reference = name
        .parse()
        .map_err(|error| Status::invalid_argument(format!("{error}")))?;
    // Without any, the cache asks the node's own config.json.
    let credentials = match request.auth {
        Some(config) => auth::credentials(config, reference.domain())
            .map_err(|error| Status::invalid_argument(error.to_string()))?,
        None => Credentials::Anonymous,
    };
    // The runtime handler selects nothing here: one platform, one store. kubelet sends it behind an alpha gate only.
    let pull = service.cache.pull(PullRequest {
        credentials,
        traceparent: trace.map(|context| context.to_string()),
        ..PullRequest::new(reference)
    });
    // A caller that goes away drops this future; the cache lets the work go on for a while, so a retry joins it.
    let pulled = pull.wait().await.map_err(|error| status::of(&error))?;
    // The kubelet makes a container of it at once.
    let settled = service.cache.settle(&pulled.image.id).await;
    settled.map_err(|error| status::of(&error))?;
    Ok(PullImageResponse {
        image_ref: pulled.image.id.to_string(),
    })
}

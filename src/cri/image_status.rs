//! ImageStatus: one image by any of its names, or an answer without one. From memory unless it is verbose.
//!
//! A staged image is answered as an absent one: then the kubelet calls PullImage with the pod's credentials, which the
//! registry judges, and which fetches no layer.

use std::collections::HashMap;

use serde_json::{Value, json};
use tonic::Status;

use super::proto::{ImageStatusRequest, ImageStatusResponse};
use super::service::ImageService;
use super::{convert, status};
use crate::cache::{ErrorKind, ImageDetails};

pub(super) async fn handle(
    service: &ImageService,
    request: ImageStatusRequest,
) -> Result<ImageStatusResponse, Status> {
    let name = convert::name(request.image)?;
    let answer = if request.verbose {
        match service.cache.shown().inspect(&name).await {
            Ok(Some(details)) => answer(&details),
            Ok(None) => ImageStatusResponse::default(),
            Err(error) if error.kind() == ErrorKind::NotFound => ImageStatusResponse::default(),
            Err(error) => return Err(status::of(&error)),
        }
    } else {
        let image = service
            .cache
            .shown()
            .status(&name)
            .map_err(|error| status::of(&error))?;
        ImageStatusResponse {
            image: image.as_ref().map(convert::image),
            info: HashMap::new(),
        }
    };
    Ok(answer)
}

fn answer(details: &ImageDetails) -> ImageStatusResponse {
    let info = HashMap::from([("info".to_owned(), info(details).to_string())]);
    ImageStatusResponse {
        image: Some(convert::image(&details.image)),
        info,
    }
}

/// What crictl prints: `chainID` and `imageSpec` are what containerd has, the rest is larder's.
fn info(details: &ImageDetails) -> Value {
    let layers: Vec<Value> = details
        .layers
        .iter()
        .map(|layer| {
            json!({
                "diffID": layer.diff_id.to_string(),
                "digest": layer.blob.to_string(),
                "size": layer.size,
                "tarBytes": layer.tar_bytes,
                "users": layer.users,
            })
        })
        .collect();
    json!({
        "chainID": details.chain_id.to_string(),
        "imageSpec": serde_json::from_slice::<Value>(&details.config_json).unwrap_or(Value::Null),
        "labels": details.config.labels,
        "manifest": details.image.manifest.to_string(),
        "platform": details.image.platform.to_string(),
        "layers": layers,
    })
}

//! What an agent tells of images that the container runtime holds, for `larder.v1`.

use std::sync::Arc;

use jiff::Timestamp;

use super::{NodeImages, NodePruning};
use crate::control::{Elsewhere, proto};
use crate::k8s::agent::{Images, Pruning};
use crate::prune::plan;

/// Answers from the runtime's list, and plans over the same facts as policies.
pub(in crate::app) fn elsewhere(images: NodeImages, pruning: Arc<NodePruning>) -> Elsewhere {
    Elsewhere {
        list: Arc::new(move || {
            let images = images.clone();
            Box::pin(async move {
                let held = images.list().await.map_err(|error| error.to_string())?;
                let told = held.into_iter().map(|image| {
                    let declared = images.declared(&image).into_iter();
                    proto::Image {
                        declared_by: declared.map(|declared| declared.by).collect(),
                        id: image.id,
                        repo_tags: image.tags,
                        repo_digests: image.digests,
                        size: image.size,
                        pinned: image.pinned,
                        ..proto::Image::default()
                    }
                });
                Ok(told.collect())
            })
        }),
        plan: Arc::new(move |policies| {
            let pruning = pruning.clone();
            Box::pin(async move {
                let (images, disk) = pruning.candidates().await.map_err(|fault| fault.message)?;
                // Thousands of images and patterns take their time.
                let planning = move || plan(&images, &policies, &disk, Timestamp::now());
                let planned = tokio::task::spawn_blocking(planning).await;
                planned.map_err(|error| error.to_string())
            })
        }),
    }
}

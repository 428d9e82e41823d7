//! Declared images in larder's own cache, pulled as any other.

use std::sync::Arc;

use crate::cache::{Cache, Error, ErrorKind, ImageView, PullRequest};
use crate::image::Reference;
use crate::k8s::agent::{BoxFuture, Declared, Figures, HeldImage, Images, PullFailure, Want};
use crate::k8s::api::reason;
use crate::registry::Credentials;

/// The cache as the agent of declared images sees it.
pub(super) fn images(cache: Cache) -> Arc<dyn Images> {
    Arc::new(CacheImages { cache })
}

struct CacheImages {
    cache: Cache,
}

fn held(image: &ImageView) -> HeldImage {
    HeldImage {
        id: image.id.to_string(),
        tags: image.repo_tags.clone(),
        digests: image.repo_digests.clone(),
        pinned: image.pinned,
        size: image.size,
    }
}

fn failure(error: &Error) -> PullFailure {
    let reason = match error.kind() {
        ErrorKind::InvalidReference => reason::INVALID_REFERENCE,
        ErrorKind::NotFound => reason::NOT_FOUND,
        ErrorKind::Unauthenticated | ErrorKind::Denied => reason::UNAUTHORIZED,
        ErrorKind::RateLimited => reason::RATE_LIMITED,
        ErrorKind::RegistryUnavailable | ErrorKind::Protocol => reason::REGISTRY_UNAVAILABLE,
        ErrorKind::BadImage | ErrorKind::LimitExceeded => reason::INVALID_IMAGE,
        ErrorKind::NoSpace => reason::INSUFFICIENT_SPACE,
        ErrorKind::Platform => reason::PLATFORM_MISSING,
        ErrorKind::Damaged | ErrorKind::Busy => reason::STORE_ERROR,
        ErrorKind::Unsupported | ErrorKind::Cancelled | ErrorKind::Internal => reason::UNKNOWN,
    };
    PullFailure {
        reason,
        message: error.to_string(),
        retry_after: None,
    }
}

impl Images for CacheImages {
    fn list(&self) -> BoxFuture<'_, Result<Vec<HeldImage>, PullFailure>> {
        Box::pin(async { Ok(self.cache.list().iter().map(held).collect()) })
    }

    fn pull(&self, want: Want) -> BoxFuture<'_, Result<HeldImage, PullFailure>> {
        Box::pin(async move {
            let name = match (&want.digest, want.reference.digest()) {
                (Some(digest), None) => format!("{}@{digest}", want.reference),
                _ => want.reference.to_string(),
            };
            let reference: Reference = name.parse().map_err(|error| PullFailure {
                reason: reason::INVALID_REFERENCE,
                message: format!("{name}: {error}"),
                retry_after: None,
            })?;
            let request = PullRequest {
                reference,
                platform: want.platform,
                credentials: Credentials::Anonymous,
                plain_http: false,
            };
            match self.cache.pull(request).wait().await {
                Ok(pulled) => Ok(held(&pulled.image)),
                Err(error) => Err(failure(&error)),
            }
        })
    }

    fn declare(&self, _: Vec<Declared>) -> BoxFuture<'_, Result<(), PullFailure>> {
        Box::pin(async { Ok(()) })
    }

    fn figures(&self) -> BoxFuture<'_, Result<Figures, PullFailure>> {
        Box::pin(async {
            let usage = self.cache.usage();
            Ok(Figures {
                stored_bytes: usage.stored_bytes,
                logical_bytes: usage.logical_bytes,
                images: usage.images,
                layers: usage.layers,
                healthy: true,
                ..Figures::default()
            })
        })
    }
}

//! larder's own cache as the holder of declared images.

use crate::cache::{
    Cache, Credentials, Declaration, Error, ErrorKind, ImageView, Priority, PullRequest, Visibility,
};
use crate::image::Reference;
use crate::k8s::agent::{
    BoxFuture, Declared, Emergency, Figures, HeldImage, Images, PullFailure, Want,
};
use crate::k8s::api::reason;

use super::{failure, offered, space};

/// Declared images in larder's cache: pulled in the background, staged where only somebody's secret opens them.
#[derive(Clone, Debug)]
pub struct LarderImages {
    cache: Cache,
    plain_http: bool,
}

impl LarderImages {
    /// Over a cache.
    pub fn new(cache: Cache) -> Self {
        LarderImages {
            cache,
            plain_http: false,
        }
    }

    /// Speaks plain HTTP to each image's own registry: for tests and demos.
    pub fn with_plain_http(mut self) -> Self {
        self.plain_http = true;
        self
    }

    async fn hold(&self, want: Want) -> Result<HeldImage, PullFailure> {
        let mut offered = offered(&want);
        let request = PullRequest {
            platform: want.platform.clone(),
            credentials: Credentials::Anonymous,
            plain_http: self.plain_http,
            priority: Priority::Background {
                order: want.priority,
            },
            secrets: std::mem::take(&mut offered.credentials),
            visibility: if want.node_wide {
                Visibility::NodeWide
            } else {
                Visibility::Authorized
            },
            ..PullRequest::new(meant(&want)?)
        };
        match self.cache.pull(request).wait().await {
            Ok(pulled) => Ok(held(&pulled.image)),
            Err(error) => Err(offered.explain(told(&want.reference, &error))),
        }
    }
}

/// The namespace of one who declares, by what he is called: `ImagePrepull team/base`.
fn namespace(by: &str) -> Option<&str> {
    let (namespace, _) = by.strip_prefix("ImagePrepull ")?.split_once('/')?;
    Some(namespace)
}

/// The name with the digest that is meant: the tag is given to the revision's image even where it has moved on at the
/// registry, since it is the name under which pods ask for it.
fn meant(want: &Want) -> Result<Reference, PullFailure> {
    let (Some(digest), None) = (&want.digest, want.reference.digest()) else {
        return Ok(want.reference.clone());
    };
    let name = format!("{}@{digest}", want.reference);
    name.parse()
        .map_err(|error| failure(reason::INVALID_REFERENCE, format!("{name}: {error}")))
}

fn held(image: &ImageView) -> HeldImage {
    HeldImage {
        id: image.id.to_string(),
        tags: image.repo_tags.clone(),
        digests: image.repo_digests.clone(),
        pinned: image.pinned,
        staged: image.staged,
        size: image.size,
    }
}

/// An error as everybody may read it: what a registry sent stays in the log.
fn told(reference: &Reference, error: &Error) -> PullFailure {
    let (reason, words) = match error.kind() {
        ErrorKind::InvalidReference => (reason::INVALID_REFERENCE, "it is no image reference"),
        ErrorKind::NotFound => (reason::NOT_FOUND, "the registry has no such image"),
        ErrorKind::Unauthenticated => (
            reason::UNAUTHORIZED,
            "the registry wants credentials, or other ones: name a pull secret, or mend it",
        ),
        ErrorKind::Denied => (
            reason::UNAUTHORIZED,
            "the registry does not let these credentials read it",
        ),
        ErrorKind::RateLimited => (
            reason::RATE_LIMITED,
            "the registry asked to be left alone for a while",
        ),
        ErrorKind::RegistryUnavailable => (
            reason::REGISTRY_UNAVAILABLE,
            "the registry is not reached, answers with errors, or broke the transfer off",
        ),
        ErrorKind::Protocol => (
            reason::REGISTRY_UNAVAILABLE,
            "the registry's answer is not that of a registry",
        ),
        ErrorKind::BadImage => (
            reason::INVALID_IMAGE,
            "its manifest, config or layers are broken, or it is no container image: push it again",
        ),
        ErrorKind::LimitExceeded => (
            reason::INVALID_IMAGE,
            "it exceeds a limit of this node; [limits] of the agent's configuration sets them",
        ),
        ErrorKind::Platform => (
            reason::PLATFORM_MISSING,
            "it is not built for this node's platform",
        ),
        ErrorKind::NoSpace => (reason::INSUFFICIENT_SPACE, "the store's disk is full"),
        ErrorKind::Damaged => (
            reason::STORE_ERROR,
            "the store found damage; larder fsck tells more",
        ),
        ErrorKind::Busy => (reason::STORE_ERROR, "the store is in use elsewhere"),
        ErrorKind::Unsupported => (reason::STORE_ERROR, "the store cannot do this here"),
        ErrorKind::Cancelled => (reason::UNKNOWN, "the pull was given up"),
        ErrorKind::Internal => match error {
            Error::Store { .. } => (
                reason::STORE_ERROR,
                "the store could not write or read; the agent's log tells more",
            ),
            _ => (
                reason::UNKNOWN,
                "the agent could not do its part; its log tells more",
            ),
        },
    };
    failure(reason, format!("{reference}: {words}"))
}

impl Images for LarderImages {
    fn list(&self) -> BoxFuture<'_, Result<Vec<HeldImage>, PullFailure>> {
        Box::pin(async { Ok(self.cache.list().iter().map(held).collect()) })
    }

    fn pull(&self, want: Want) -> BoxFuture<'_, Result<HeldImage, PullFailure>> {
        Box::pin(self.hold(want))
    }

    fn declare(&self, declared: Vec<Declared>) -> BoxFuture<'_, Result<(), PullFailure>> {
        let set = declared.into_iter().map(|declared| Declaration {
            reference: declared.reference,
            digest: declared.digest,
            pinned: declared.pinned,
            namespace: namespace(&declared.by).map(str::to_owned),
            by: declared.by,
        });
        self.cache.declare(set.collect());
        Box::pin(std::future::ready(Ok(())))
    }

    fn figures(&self) -> BoxFuture<'_, Result<Figures, PullFailure>> {
        Box::pin(async {
            let usage = self.cache.usage();
            let (capacity_bytes, available_bytes) = space(self.cache.root()).await;
            let images = self.cache.list();
            let pinned = images.iter().filter(|image| image.pinned);
            Ok(Figures {
                capacity_bytes,
                available_bytes,
                stored_bytes: usage.stored_bytes,
                logical_bytes: usage.logical_bytes,
                pinned_bytes: pinned.fold(0, |sum: u64, image| sum.saturating_add(image.size)),
                images: usage.images,
                layers: usage.layers,
                healthy: self.cache.is_healthy(),
                emergency: self.cache.last_emergency().map(|last| Emergency {
                    began: last.began,
                    at: last.at,
                    images: last.images,
                    freed_bytes: last.freed_bytes,
                    short_bytes: last.short_bytes,
                }),
            })
        })
    }
}

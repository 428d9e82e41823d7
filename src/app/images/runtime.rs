//! The image service of the node's container runtime as the holder of declared images (`--images runtime`).
//!
//! # Under which name an image is pulled
//! The kubelet looks for an image by the name in the pod, so the runtime has to know the tag; a revision means one
//! digest. So where both are known:
//! 1. The runtime has the tag with that digest: nothing is pulled.
//! 2. The registry still says that the tag is that digest: `repository:tag` is pulled. Whether it does is asked by this
//!    agent, with the hosts configuration it has; if the tag moves between the question and the pull, the runtime then
//!    shows another digest, and rule 3 follows.
//! 3. Else, and where the registry is reached by the runtime alone: `repository@digest` is pulled. The layers are here
//!    then, and a pod that names the tag still has the kubelet pull it, which moves at most what the tag has come to
//!    mean since.
//!
//! An image that came by rule 3 is listed to the agent under the tag all the same, so that it is not wanted without end.
//!
//! A tag without a digest (`--manifests`) is pulled as it is, each time; a digest alone, too.
//!
//! # What this cannot do
//! CRI has no staging, no priorities and no pins:
//! - An image pulled with a prepull's secret is at once visible to every pod of the node. Whether a pod may run it without
//!   credentials of its own is for the kubelet's credential verification (`imagePullCredentialsVerificationPolicy:
//!   AlwaysVerify`) to decide; its default takes such an image for a preloaded one and asks nothing. Who cannot accept
//!   that lets larder hold the images.
//! - Pulls run beside those of pods, with the runtime's own limits; only their number is this agent's.
//! - What is declared as pinned is not pinned: the kubelet may collect it, and it is pulled again.
//! - The runtime pulls for its own platform only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::{Digest, Platform, Reference};
use crate::k8s::agent::{BoxFuture, Declared, Figures, HeldImage, Images, PullFailure, Want};
use crate::k8s::api::reason;
use crate::registry::{Access, Client, Credentials};
use crate::runtime::{Auth, Error, ErrorClass, RuntimeImage, RuntimeImages};

use super::{failure, offered, space};

/// Declared images in the container runtime.
#[derive(Clone, Debug)]
pub struct NodeImages {
    runtime: RuntimeImages,
    /// Asked what a tag is, never for content.
    registry: Client,
    plain_http: bool,
    untagged: Arc<Mutex<Untagged>>,
    /// What prepulls declare; the runtime is not told.
    declared: Arc<Mutex<Vec<Declared>>>,
}

/// Tags that images were wanted under and did not get, since the tag has moved on at the registry (rule 3), by the name
/// with the digest. In memory: after a restart they are wanted, and found moved, again.
type Untagged = BTreeMap<String, BTreeSet<String>>;

impl NodeImages {
    /// Over a runtime's image service.
    pub fn new(runtime: RuntimeImages, registry: Client) -> Self {
        NodeImages {
            runtime,
            registry,
            plain_http: false,
            untagged: Arc::default(),
            declared: Arc::default(),
        }
    }

    /// Asks each image's own registry over plain HTTP: for tests.
    pub fn with_plain_http(mut self) -> Self {
        self.plain_http = true;
        self
    }

    pub(super) fn runtime(&self) -> &RuntimeImages {
        &self.runtime
    }

    /// The declarations of an image, by the digest meant or, to be safe, by the tag alone.
    pub(super) fn declared(&self, image: &HeldImage) -> Vec<Declared> {
        let all = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |declared: &&Declared| {
            let names = Names::of(&declared.reference, declared.digest.as_ref());
            let tagged = names.tagged.is_some_and(|name| image.tags.contains(&name));
            let digested = names
                .digested
                .is_some_and(|name| image.digests.contains(&name));
            tagged || digested
        };
        all.iter().filter(is).cloned().collect()
    }

    async fn hold(&self, want: Want) -> Result<HeldImage, PullFailure> {
        if let Some(platform) = &want.platform
            && !is_own(platform, &Platform::host())
        {
            let why = "the container runtime pulls for its own platform only";
            return Err(failure(
                reason::PLATFORM_MISSING,
                format!("{} for {platform}: {why}", want.reference),
            ));
        }
        let names = Names::of(&want.reference, want.digest.as_ref());
        if let (Some(tagged), Some(digested)) = (&names.tagged, &names.digested)
            && let Some(image) = self.status(tagged).await?
            && image.repo_digests.contains(digested)
        {
            return Ok(held(image));
        }
        let mut offered = offered(&want);
        let secrets = std::mem::take(&mut offered.credentials);
        // The runtime's own configuration first: it may have credentials of the node.
        let attempts = std::iter::once(Credentials::Anonymous).chain(secrets);
        let mut telling = None;
        for credentials in attempts {
            match self.pull_as(&want.reference, &names, &credentials).await {
                Ok(image) => return Ok(held(image)),
                Err(error) if is_refusal(error.class()) => telling = Some(error),
                Err(error) => return Err(told(&error)),
            }
        }
        let error = telling.as_ref().map_or_else(
            || failure(reason::UNKNOWN, format!("{}: not pulled", want.reference)),
            told,
        );
        Err(offered.explain(error))
    }

    /// One attempt, by the rules above.
    async fn pull_as(
        &self,
        reference: &Reference,
        names: &Names,
        credentials: &Credentials,
    ) -> Result<RuntimeImage, Error> {
        let (tagged, digested) = match (&names.tagged, &names.digested) {
            (Some(tagged), Some(digested)) => (tagged, digested),
            (Some(one), None) | (None, Some(one)) => return self.fetch(one, credentials).await,
            (None, None) => return self.fetch(&reference.to_string(), credentials).await,
        };
        if self.tag_is(reference, &names.digest, credentials).await {
            let image = self.fetch(tagged, credentials).await?;
            if image.repo_digests.contains(digested) {
                return Ok(image);
            }
        }
        let image = self.fetch(digested, credentials).await?;
        if !image.repo_tags.contains(tagged) {
            let mut untagged = self.untagged();
            let tags = untagged.entry(digested.clone()).or_default();
            tags.insert(tagged.clone());
        }
        Ok(image)
    }

    fn untagged(&self) -> MutexGuard<'_, Untagged> {
        self.untagged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self, name: &str, credentials: &Credentials) -> Result<RuntimeImage, Error> {
        let id = self.runtime.pull(name, auth(credentials)).await?;
        match self.runtime.status(name).await? {
            Some(image) => Ok(image),
            // Collected at once, or a runtime that forgets names; its id is what it answered with.
            None => Ok(RuntimeImage {
                id,
                repo_tags: Vec::new(),
                repo_digests: Vec::new(),
                size: 0,
                pinned: false,
            }),
        }
    }

    /// Whether the registry says so. Not being told is no.
    async fn tag_is(
        &self,
        reference: &Reference,
        digest: &Option<Digest>,
        credentials: &Credentials,
    ) -> bool {
        let Some(Ok(tag)) = reference.tagged().map(|tagged| tagged.parse::<Reference>()) else {
            return false;
        };
        let access = Access {
            credentials: credentials.clone(),
            plain_http: self.plain_http,
            ..Access::default()
        };
        let (client, of) = (self.registry.clone(), tag.clone());
        let repository = tokio::task::spawn_blocking(move || client.repository(&of, access)).await;
        let Ok(Ok(repository)) = repository else {
            return false;
        };
        match repository.resolve(&tag).await {
            Ok(resolved) => Some(&resolved.digest) == digest.as_ref(),
            Err(_) => false,
        }
    }

    async fn status(&self, name: &str) -> Result<Option<RuntimeImage>, PullFailure> {
        self.runtime
            .status(name)
            .await
            .map_err(|error| told(&error))
    }
}

/// What an image may be called.
struct Names {
    tagged: Option<String>,
    digested: Option<String>,
    digest: Option<Digest>,
}

impl Names {
    fn of(reference: &Reference, digest: Option<&Digest>) -> Self {
        let digest = digest.or_else(|| reference.digest());
        Names {
            tagged: reference.tagged(),
            digested: digest.map(|digest| reference.digested(digest)),
            digest: digest.cloned(),
        }
    }
}

fn is_own(wanted: &Platform, own: &Platform) -> bool {
    wanted.os == own.os && wanted.architecture == own.architecture
}

/// Other credentials may do.
fn is_refusal(class: ErrorClass) -> bool {
    matches!(class, ErrorClass::Unauthorized | ErrorClass::NotFound)
}

fn auth(credentials: &Credentials) -> Option<Auth> {
    match credentials {
        Credentials::Anonymous => None,
        Credentials::Basic { username, password } => Some(Auth::Basic {
            username: username.clone(),
            password: password.expose().to_owned(),
        }),
        Credentials::Identity(token) => Some(Auth::Identity(token.expose().to_owned())),
        Credentials::Bearer(token) => Some(Auth::Bearer(token.expose().to_owned())),
    }
}

pub(super) fn told(error: &Error) -> PullFailure {
    let reason = match error.class() {
        // The node's holder of images refused, whichever it is.
        ErrorClass::RuntimeUnavailable => reason::STORE_ERROR,
        ErrorClass::InvalidReference => reason::INVALID_REFERENCE,
        ErrorClass::NotFound => reason::NOT_FOUND,
        ErrorClass::Unauthorized => reason::UNAUTHORIZED,
        ErrorClass::RateLimited => reason::RATE_LIMITED,
        ErrorClass::RegistryUnavailable => reason::REGISTRY_UNAVAILABLE,
        ErrorClass::Timeout => reason::TIMEOUT,
        ErrorClass::InsufficientSpace => reason::INSUFFICIENT_SPACE,
        ErrorClass::PlatformMissing => reason::PLATFORM_MISSING,
        ErrorClass::InvalidImage => reason::INVALID_IMAGE,
        ErrorClass::Unknown => reason::UNKNOWN,
    };
    PullFailure {
        reason,
        message: error.to_string(),
        retry_after: error.retry_after(),
    }
}

fn held(image: RuntimeImage) -> HeldImage {
    // CRI-O's ids have no algorithm.
    let id = if image.id.contains(':') {
        image.id
    } else {
        format!("sha256:{}", image.id)
    };
    HeldImage {
        id,
        tags: image.repo_tags,
        digests: image.repo_digests,
        pinned: image.pinned,
        // CRI has no such thing: what is held is shown.
        staged: false,
        size: image.size,
    }
}

/// Shows an image under the tag it was wanted under, unless the runtime has the tag by now, for this image or another: to
/// the one who wants it, it is held as well as it can be. What is not here any more is forgotten.
fn complete(images: &mut [HeldImage], untagged: &mut Untagged) {
    let known: BTreeSet<String> = images.iter().flat_map(|image| image.tags.clone()).collect();
    untagged.retain(|digested, tags| {
        tags.retain(|tag| !known.contains(tag));
        let image = images
            .iter_mut()
            .find(|image| image.digests.contains(digested));
        if let Some(image) = image {
            image.tags.extend(tags.iter().cloned());
            return !tags.is_empty();
        }
        false
    });
}

impl Images for NodeImages {
    fn list(&self) -> BoxFuture<'_, Result<Vec<HeldImage>, PullFailure>> {
        Box::pin(async {
            let images = self.runtime.list().await.map_err(|error| told(&error))?;
            let mut images: Vec<HeldImage> = images.into_iter().map(held).collect();
            complete(&mut images, &mut self.untagged());
            Ok(images)
        })
    }

    fn pull(&self, want: Want) -> BoxFuture<'_, Result<HeldImage, PullFailure>> {
        Box::pin(self.hold(want))
    }

    /// Kept for the sake of prune policies: a runtime pins by its own configuration only.
    fn declare(&self, declared: Vec<Declared>) -> BoxFuture<'_, Result<(), PullFailure>> {
        *self.declared.lock().unwrap_or_else(PoisonError::into_inner) = declared;
        Box::pin(std::future::ready(Ok(())))
    }

    fn figures(&self) -> BoxFuture<'_, Result<Figures, PullFailure>> {
        Box::pin(async {
            let usage = self.runtime.fs_info().await.map_err(|error| told(&error))?;
            let usage = usage.unwrap_or_default();
            let (capacity_bytes, available_bytes) = space(&usage.mountpoint).await;
            let images = self.runtime.list().await.map_err(|error| told(&error))?;
            let sum = |pinned_only: bool| {
                images
                    .iter()
                    .filter(|image| image.pinned || !pinned_only)
                    .fold(0u64, |sum, image| sum.saturating_add(image.size))
            };
            Ok(Figures {
                capacity_bytes,
                available_bytes,
                stored_bytes: usage.used_bytes,
                logical_bytes: sum(false),
                pinned_bytes: sum(true),
                images: images.len() as u64,
                // CRI does not tell.
                layers: 0,
                healthy: true,
                emergency: None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> HeldImage {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        HeldImage {
            id: id.to_owned(),
            tags: owned(tags),
            digests: owned(digests),
            pinned: false,
            staged: false,
            size: 1,
        }
    }

    #[test]
    fn an_image_wanted_under_a_tag_that_moved_on_is_shown_under_it() {
        let wanted =
            |digested: &str, tag: &str| (digested.to_owned(), BTreeSet::from([tag.to_owned()]));
        let mut untagged = Untagged::from([
            wanted("r/a@1", "r/a:x"),
            wanted("r/b@1", "r/b:x"),
            wanted("r/c@1", "r/c:x"),
        ]);
        let mut images = vec![
            image("1", &[], &["r/a@1"]),
            image("2", &[], &["r/b@1"]),
            image("3", &["r/b:x"], &["r/b@2"]),
        ];
        complete(&mut images, &mut untagged);
        assert_eq!(images[0].tags, ["r/a:x"]);
        assert!(images[1].tags.is_empty());
        assert_eq!(untagged, Untagged::from([wanted("r/a@1", "r/a:x")]));
    }

    #[test]
    fn ids_of_runtimes_take_one_form() {
        for id in ["sha256:ab", "ab"] {
            let image = RuntimeImage {
                id: id.to_owned(),
                repo_tags: Vec::new(),
                repo_digests: Vec::new(),
                size: 1,
                pinned: false,
            };
            assert_eq!(held(image).id, "sha256:ab");
        }
    }
}

//! That the container runtime knows the images that are here, where somebody sees to that: whoever pulls or removes an
//! image can wait until it does.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, PoisonError};

use bytes::Bytes;

use crate::image::{Digest, ImageId};

use super::pull::stored;
use super::{Cache, Error};

/// What comes of it: why it did not happen, in words.
pub type Settled = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
/// Makes the runtime agree with the cache on one image, there or gone.
pub type Settle = Box<dyn Fn(ImageId) -> Settled + Send + Sync>;

/// Set once, where images are made known to a runtime.
#[derive(Clone, Default)]
pub(super) struct Hook(Arc<OnceLock<Settle>>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hook")
            .field(&self.0.get().is_some())
            .finish()
    }
}

impl Cache {
    /// Says who makes images known to the runtime. The first one stays.
    pub fn settle_by(&self, settle: Settle) {
        let _ = self.inner.settle.0.set(settle);
    }

    /// Waits until the runtime agrees with the cache on an image. At once where nobody makes images known to one.
    ///
    /// # Errors
    /// [`Error::Runtime`]; the image is here, or gone, all the same.
    pub async fn settle(&self, image: &ImageId) -> Result<(), Error> {
        let Some(settle) = self.inner.settle.0.get() else {
            return Ok(());
        };
        settle(image.clone()).await.map_err(|cause| Error::Runtime {
            image: image.to_string(),
            cause,
        })
    }

    /// From now on these names and ids are what the runtime itself wants to keep, its sandbox image above all: they are
    /// shown as pinned.
    pub fn pin_for_runtime(&self, names: BTreeSet<String>) {
        let pins = self.inner.runtime_pins.read();
        let known = pins.unwrap_or_else(PoisonError::into_inner).clone();
        if *known == names {
            return;
        }
        tracing::info!(?names, "Images that the runtime pins");
        let pins = self.inner.runtime_pins.write();
        *pins.unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
    }

    /// Wakes when images, their names or what is known of them may have changed.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.store.changes()
    }

    /// A manifest, index or config of an image, as it was received; `None` where it is not kept.
    pub async fn document(&self, image: &ImageId, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let inner = &self.inner;
        stored(&inner.store, &inner.threads, &image.to_string(), digest).await
    }

    /// An image by its id; absent, or staged, is `None`. From memory.
    pub fn shown_image(&self, id: &ImageId) -> Option<super::ImageView> {
        let image = self.inner.store.image(id)?;
        let view = super::view::view(&image, &self.inner.marks());
        Some(view).filter(|view| !view.staged)
    }

    /// The names of an image, each with the digest of the document that it was pulled as. From memory.
    pub fn names(&self, id: &ImageId) -> Vec<(String, Digest)> {
        let image = self.inner.store.image(id);
        let names = image.iter().flat_map(|image| &image.names);
        names
            .map(|name| (name.name.clone(), name.target.clone()))
            .collect()
    }
}

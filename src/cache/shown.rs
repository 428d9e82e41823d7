//! The images as somebody sees them who may see only what was proven to be open to him: all but the staged ones.

use super::names::Scope;
use super::{Cache, Error, ImageDetails, ImageView, Removed};

/// A view of a cache without its staged images: to look for one is to find nothing, even where its name, its id or the
/// beginning of its id is known, and it makes no other name ambiguous.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    pub(super) cache: &'a Cache,
}

impl Shown<'_> {
    /// As [`Cache::list`].
    pub fn list(&self) -> Vec<ImageView> {
        let mut images = self.cache.list();
        images.retain(|image| !image.staged);
        images
    }

    /// As [`Cache::status`].
    pub fn status(&self, name: &str) -> Result<Option<ImageView>, Error> {
        self.cache.status_in(name, Scope::Shown)
    }

    /// As [`Cache::inspect`].
    pub async fn inspect(&self, name: &str) -> Result<Option<ImageDetails>, Error> {
        self.cache.inspect_in(name, Scope::Shown).await
    }

    /// As [`Cache::remove`].
    pub async fn remove(&self, name: &str) -> Result<Option<Removed>, Error> {
        self.cache.remove_in(name, Scope::Shown).await
    }
}

//! Who uses images besides this cache: the containers and pods of the node's runtime, told by whoever knows that runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;

use crate::image::ImageId;

use super::names::Scope;
use super::{Cache, Error, now_ms};

/// A container or a pod, with the images it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// For people.
    pub by: String,
    /// Names, digests or ids.
    pub images: Vec<String>,
    /// The runtime itself starts pods with them.
    pub sandbox: bool,
}

/// Tells everybody who uses an image now, or why that is not known. An answer that lacks somebody is none.
pub type ImageUsers =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Vec<ImageUser>, String>> + Send + Sync>;

/// What is asked, where somebody knows.
#[derive(Default)]
pub(super) struct Source(std::sync::OnceLock<ImageUsers>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = self.0.get().map(|_| "known");
        f.debug_tuple("Source").field(&known).finish()
    }
}

/// One use of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) by: String,
    pub(super) sandbox: bool,
}

impl Cache {
    /// From now on this is asked who uses images. Once, before anybody may remove one.
    pub fn watch_users(&self, users: ImageUsers) {
        // A second one would be a mistake of the wiring: the first stays.
        let _ = self.inner.users.0.set(users);
    }

    /// An error where a container uses the image, or where that cannot be told. An absent image is used by nobody.
    pub async fn check_unused(&self, name: &str) -> Result<(), Error> {
        let Some(image) = self.find(name, Scope::All)? else {
            return Ok(());
        };
        let mut uses = self.uses().await?;
        match uses.remove(&image.record.id) {
            None => Ok(()),
            Some(uses) => {
                let by: Vec<String> = uses.into_iter().map(|used| used.by).take(3).collect();
                Err(Error::InUse {
                    name: name.to_owned(),
                    by: by.join(", "),
                })
            }
        }
    }

    pub(super) fn has_users(&self) -> bool {
        self.inner.users.0.get().is_some()
    }

    /// The images in use and by whom; each of them counts as used now.
    pub(super) async fn uses(&self) -> Result<BTreeMap<ImageId, Vec<Use>>, Error> {
        let Some(source) = self.inner.users.0.get() else {
            return Ok(BTreeMap::new());
        };
        let told = source().await;
        let known = told.is_ok();
        self.inner.metrics.users_known(known);
        if self.inner.users_known.swap(known, Ordering::Relaxed) != known {
            match &told {
                Ok(_) => tracing::info!("Users of images are known again"),
                Err(cause) => tracing::warn!(
                    err = cause,
                    "Nobody tells which images are in use: none is pruned until somebody does"
                ),
            }
        }
        let users = told.map_err(|cause| Error::UsersUnknown { cause })?;
        let mut uses: BTreeMap<ImageId, Vec<Use>> = BTreeMap::new();
        for user in users {
            for name in &user.images {
                // A name that can name nothing here is none of ours.
                let Ok(Some(image)) = self.find(name, Scope::All) else {
                    continue;
                };
                let used = Use {
                    by: user.by.clone(),
                    sandbox: user.sandbox,
                };
                let of_image = uses.entry(image.record.id.clone()).or_default();
                if !of_image.contains(&used) {
                    of_image.push(used);
                }
            }
        }
        let now = now_ms();
        for id in uses.keys() {
            self.inner.store.saw_image(id, now);
        }
        Ok(uses)
    }
}

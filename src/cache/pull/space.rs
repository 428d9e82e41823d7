//! Whether a pull fits on the disk beside what is reserved and what other pulls still write; and what is done where it
//! does not.

use std::time::Duration;

use crate::cache::room::Claim;
use crate::cache::{Cache, Error, Priority};

use super::plan::Plan;
use super::run::Run;

/// Between two looks of a pull at how far the room reaches.
pub(super) const LOOK: Duration = Duration::from_millis(500);

impl Run<'_> {
    /// Room for all that a plan has to fetch. Where there is none, images go for it that may.
    pub(super) async fn claim(&self, plan: &Plan) -> Result<Claim, Error> {
        let room = &self.inner.room;
        let layers = || {
            let fetches = plan.queued().into_iter();
            fetches.map(|fetch| (fetch.descriptor.digest, fetch.descriptor.size))
        };
        let Some((_, free)) = self.free().await? else {
            let claim = room.claim(layers(), u64::MAX);
            return claim.map_err(|short| self.short(short.needed, u64::MAX));
        };
        match room.claim(layers(), free) {
            Ok(claim) => return Ok(claim),
            Err(short) => self.free_for(short.needed).await?,
        };
        let (available, free) = self.free().await?.unwrap_or((u64::MAX, u64::MAX));
        room.claim(layers(), free)
            .map_err(|short| self.short(short.needed, available))
    }

    /// Gives up if there is not room for all pulls to their end, and this is the one to yield.
    pub(super) async fn check_room(&self, claim: &Claim) -> Result<(), Error> {
        let Some((_, free)) = self.free().await? else {
            return Ok(());
        };
        if !claim.must_yield(free) {
            return Ok(());
        }
        self.free_for(self.inner.room.expected()).await?;
        match self.free().await? {
            Some((available, free)) if claim.must_yield(free) => {
                Err(self.short(self.inner.room.expected(), available))
            }
            _ => Ok(()),
        }
    }

    /// Makes room for so many bytes more than pulls under way take; false where nothing went.
    pub(super) async fn make_room(&self, bytes: u64) -> Result<bool, Error> {
        if self.inner.store.reserve() == 0 {
            return Ok(false);
        }
        let expected = self.inner.room.expected();
        self.free_for(expected.saturating_add(bytes)).await
    }

    async fn free_for(&self, bytes: u64) -> Result<bool, Error> {
        let cache = Cache {
            inner: self.inner.clone(),
        };
        let target = self.inner.store.reserve().saturating_add(bytes);
        let pods_wait = self.request.priority == Priority::Foreground;
        match cache.make_room(target, pods_wait).await {
            Ok(done) => Ok(done.is_some_and(|done| done.freed_bytes > 0)),
            // The pull is refused for want of space; this is why nothing was done about it.
            Err(error @ Error::UsersUnknown { .. }) => {
                tracing::warn!(reference = self.reference, err = %error, "No room was made for a pull");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes that may be written to the file system, in all and beside the band; `None` without a band.
    async fn free(&self) -> Result<Option<(u64, u64)>, Error> {
        let reserve = self.inner.store.reserve();
        if reserve == 0 {
            return Ok(None);
        }
        let cache = Cache {
            inner: self.inner.clone(),
        };
        let available = cache.space().await?.available;
        Ok(Some((available, available.saturating_sub(reserve))))
    }

    fn short(&self, needed: u64, free: u64) -> Error {
        Error::InsufficientSpace {
            reference: self.reference.clone(),
            needed,
            free,
            reserve: self.inner.store.reserve(),
        }
    }
}

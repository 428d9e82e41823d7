//! A disk that is nearly full: pulls that do not fit are refused, and what may go goes at once.
//!
//! All of it only where a band is reserved: without one nobody said that images should go for the disk's sake.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::prune::{self, Amount, Disk, Protection};
use crate::store::Space;

use super::prune::Cause;
use super::{Cache, Error};

/// After a run that found nothing to remove, for the disk's sake alone.
const PAUSE: Duration = Duration::from_secs(60);

/// Runs that follow each other within this time are one emergency: a disk that others fill goes on being full.
const EPISODE: Duration = Duration::from_secs(600);

/// What an emergency did, over all of its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emergency {
    /// When its first run ended.
    pub began: Timestamp,
    /// When its last run ended.
    pub at: Timestamp,
    /// Images removed.
    pub images: u64,
    /// What that gave back.
    pub freed_bytes: u64,
    /// What was wanted besides, and nothing could give: of the run that fell shortest.
    pub short_bytes: u64,
}

impl Emergency {
    /// Another run: one more of the emergency before it, or the first of a new one.
    fn after(self, before: Option<Emergency>) -> Emergency {
        let goes_on = |before: &Emergency| {
            let since = self.at.duration_since(before.at);
            Duration::try_from(since).is_ok_and(|since| since <= EPISODE)
        };
        let Some(before) = before.filter(goes_on) else {
            return self;
        };
        Emergency {
            began: before.began,
            at: self.at,
            images: before.images.saturating_add(self.images),
            freed_bytes: before.freed_bytes.saturating_add(self.freed_bytes),
            short_bytes: before.short_bytes.max(self.short_bytes),
        }
    }
}

/// What is known of the disk.
#[derive(Debug, Default)]
pub(super) struct Watch {
    last: Option<Emergency>,
    /// No run for the disk's sake before this.
    not_before: Option<Instant>,
    below: bool,
}

impl Cache {
    /// The band of the disk that pulls never enter, in bytes; what the configuration says counts where it is more.
    pub fn reserve(&self, bytes: u64) {
        self.inner.wanted_reserve.store(bytes, Ordering::Relaxed);
        let capacity = self.inner.capacity.load(Ordering::Relaxed);
        self.apply_reserve(capacity);
    }

    /// The last emergency since the start.
    pub fn last_emergency(&self) -> Option<Emergency> {
        self.watch().last
    }

    /// Sets the band for a file system of so many bytes.
    pub(super) fn apply_reserve(&self, capacity: u64) {
        let inner = &self.inner;
        inner.capacity.store(capacity, Ordering::Relaxed);
        let own = inner
            .config
            .reserved
            .map_or(0, |band: Amount| band.of(capacity));
        let wanted = inner.wanted_reserve.load(Ordering::Relaxed);
        inner.store.set_reserve(own.max(wanted));
        inner.metrics.reserved(inner.store.reserve());
    }

    pub(super) async fn space(&self) -> Result<Space, Error> {
        let store = self.inner.store.clone();
        let subject = self.root().display().to_string();
        let space = self
            .inner
            .threads
            .block(&subject, move || store.space())
            .await?;
        space.map_err(|error| Error::store(subject, error))
    }

    /// Frees space until `target` bytes are free, or nothing more may go; `None` where no band is reserved. `pods_wait`
    /// is false where it is for an image that is merely declared: that takes the place of no other declared one.
    pub(super) async fn make_room(
        &self,
        target: u64,
        pods_wait: bool,
    ) -> Result<Option<Emergency>, Error> {
        if self.inner.store.reserve() == 0 {
            return Ok(None);
        }
        let _one = self.inner.pruning.lock().await;
        let available = self.space().await?.available;
        let kept = self.free_kept(target.saturating_sub(available)).await?;
        let (mut images, disk) = match self.candidates(Cause::Emergency).await {
            Ok(found) => found,
            Err(error) => {
                let available = self.space().await?.available;
                // Whatever may go, nobody knows it.
                self.note(0, 0, target.saturating_sub(available), pods_wait);
                return Err(error);
            }
        };
        if disk.available >= target {
            // Or somebody else made room while this waited.
            return Ok((kept > 0).then(|| self.note(0, kept, 0, pods_wait)));
        }
        if !pods_wait {
            for image in &mut images {
                image.protections.iter_mut().for_each(harden);
            }
        }
        let plan = prune::emergency(&images, &disk, target, Timestamp::now());
        let short_bytes = plan.short_bytes;
        let breaks = move |one: &Protection| {
            let weak = matches!(
                one,
                Protection::Grace { .. } | Protection::Declared { pinned: false, .. }
            );
            weak && pods_wait
        };
        let done = self.carry_out(plan, Cause::Emergency, breaks).await?;
        let images = done.plan.remove.len() as u64;
        let freed = done.plan.free_bytes.saturating_add(kept);
        let emergency = self.note(images, freed, short_bytes, pods_wait);
        if short_bytes > 0 {
            let Disk { available, .. } = disk;
            tracing::warn!(
                target_bytes = target,
                available_bytes = available,
                freed_bytes = emergency.freed_bytes,
                short_bytes,
                "The disk is nearly full, and no more images may go"
            );
        }
        Ok(Some(emergency))
    }

    /// What the mirror keeps goes before any image: a registry has it. Returns the bytes that went.
    async fn free_kept(&self, wanted: u64) -> Result<u64, Error> {
        if wanted == 0 {
            return Ok(0);
        }
        let store = self.inner.store.clone();
        let subject = self.root().display().to_string();
        let freed = self
            .inner
            .threads
            .block(&subject, move || store.free_kept(wanted));
        freed.await?.map_err(|error| Error::store(subject, error))
    }

    /// What is kept makes room for others who fill the disk.
    pub(super) async fn shrink_kept(&self) {
        let Some(keep) = self.inner.keeping.get() else {
            return;
        };
        let Ok(space) = self.space().await else {
            return;
        };
        if let Err(error) = self.free_kept(keep.missing(&space, 0)).await {
            tracing::warn!(err = %error, "What is kept was not removed from a full disk");
        }
    }

    /// Remembers a run, and tells what it did.
    fn note(&self, images: u64, freed_bytes: u64, short_bytes: u64, pods_wait: bool) -> Emergency {
        let now = Timestamp::now();
        let run = Emergency {
            began: now,
            at: now,
            images,
            freed_bytes,
            short_bytes,
        };
        // Where nobody but a prepull wants the room, its own status tells that there is none.
        let told = Emergency {
            short_bytes: if pods_wait { short_bytes } else { 0 },
            ..run
        };
        if told.images > 0 || told.short_bytes > 0 {
            let mut watch = self.watch();
            watch.last = Some(told.after(watch.last));
        }
        run
    }

    /// Looks at the disk: others fill it too.
    pub(super) async fn watch_disk(&self) {
        let Ok(space) = self.space().await else {
            return;
        };
        self.apply_reserve(space.capacity);
        self.inner.metrics.space(&space);
        let reserve = self.inner.store.reserve();
        let below = space.available < reserve;
        let due = {
            let mut watch = self.watch();
            if below && !watch.below {
                tracing::warn!(
                    available_bytes = space.available,
                    reserved_bytes = reserve,
                    "The disk is filled into its reserved band"
                );
            }
            watch.below = below;
            let now = Instant::now();
            let due = below && watch.not_before.is_none_or(|then| now >= then);
            if due {
                watch.not_before = now.checked_add(PAUSE);
            }
            due
        };
        if !due {
            return;
        }
        match self.make_room(reserve, true).await {
            // What went may not be enough yet; the next look tells.
            Ok(Some(Emergency { images: 1.., .. })) => self.watch().not_before = None,
            Ok(_) => {}
            Err(error) => tracing::warn!(err = %error, "No room was made on a full disk"),
        }
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        let watch = &self.inner.disk;
        watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is declared, or just came, stays.
fn harden(protection: &mut Protection) {
    match protection {
        Protection::Declared { pinned, .. } => *pinned = true,
        Protection::Grace { .. } => *protection = Protection::Leased,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(second: i64, images: u64, short_bytes: u64) -> Emergency {
        let at = Timestamp::from_second(second).unwrap();
        Emergency {
            began: at,
            at,
            images,
            freed_bytes: images * 10,
            short_bytes,
        }
    }

    #[test]
    fn runs_that_follow_each_other_are_one_emergency() {
        let first = run(1000, 2, 0).after(None);
        assert_eq!(first, run(1000, 2, 0));
        let second = run(1600, 1, 7).after(Some(first));
        let third = run(2200, 0, 5).after(Some(second));
        assert_eq!(
            third,
            Emergency {
                began: first.began,
                short_bytes: 7,
                ..run(2200, 3, 0)
            }
        );
        for other in [2801, 2000] {
            // Long after, or by a clock that was set back.
            assert_eq!(run(other, 1, 0).after(Some(third)), run(other, 1, 0));
        }
    }
}

//! Removal of images that nobody needs: the facts that the planner decides by, and what it decided, carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;

use crate::image::ImageId;
use crate::prune::{self, Candidate, Disk, Kept, Part, Plan, Policy, Protection};
use crate::store::{Hold, Image, Sharing};

use super::users::Use;
use super::{Cache, Error};

/// An image that was just pulled or used has a container soon: the kubelet makes it within moments.
const GRACE: Duration = Duration::from_secs(30);

/// On whose behalf images go. Also a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A person at a terminal.
    Command,
    /// A policy of the cluster, or of a folder of manifests.
    Policy,
    /// The disk is nearly full.
    Emergency,
}

impl Cause {
    pub(super) const ALL: [Cause; 3] = [Cause::Command, Cause::Policy, Cause::Emergency];

    /// As metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Command => "command",
            Cause::Policy => "policy",
            Cause::Emergency => "emergency",
        }
    }
}

/// What a run did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What went: with the bytes that it freed where it did, with those that it would free where nothing was removed.
    /// What was protected by the time it was to go is among those that stay.
    pub plan: Plan,
    /// Images that did not go though nothing protects them, and why.
    pub failures: Vec<(String, String)>,
}

impl Cache {
    /// Every image with all that decides whether it may go, and the disk. For a person's sake an image has no time of
    /// grace: he knows what he pulled a moment ago.
    ///
    /// # Errors
    /// Who uses images cannot be told: then nothing may go.
    pub async fn candidates(&self, cause: Cause) -> Result<(Vec<Candidate>, Disk), Error> {
        let uses = self.uses().await?;
        self.note_namespaces();
        let root = self.root().display().to_string();
        let store = self.inner.store.clone();
        let measure = move || Ok((store.sharing()?, store.space()?));
        let measured: Result<_, crate::store::Error> =
            self.inner.threads.block(&root, measure).await?;
        let (sharing, space) = measured.map_err(|error| Error::store(root, error))?;

        let store = &self.inner.store;
        let now = Timestamp::now();
        let ages = store.ages();
        let held = store.held();
        let images = store.images();
        let mut parts = parts(&sharing, &images);
        let graced = cause != Cause::Command && self.has_users();
        let before = |age: Duration| now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
        let candidates = images
            .iter()
            .filter_map(|image| {
                let id = &image.record.id;
                let age = ages.get(id)?;
                let (own_bytes, layers) = parts.remove(id).unwrap_or_default();
                let used = (age.used < age.pulled).then(|| before(age.used));
                Some(Candidate {
                    id: id.to_string(),
                    names: image.names.iter().map(|name| name.name.clone()).collect(),
                    size: image.record.size,
                    labels: image.record.labels.clone(),
                    labels_unknown: false,
                    layers,
                    own_bytes,
                    pulled_at: before(age.pulled),
                    last_used: used,
                    namespaces: store.namespaces(id),
                    protections: self.protections(
                        image,
                        uses.get(id).map(Vec::as_slice),
                        held.get(id),
                        graced.then_some((age.used, now)),
                    ),
                })
            })
            .collect();
        let marks = ages.iter().map(|(id, age)| (id.clone(), age.mark));
        *self.marks() = marks.collect();
        let disk = Disk {
            capacity: space.capacity,
            available: space.available,
            images: store.usage().stored_bytes,
        };
        Ok((candidates, disk))
    }

    /// Removes what policies select and nothing protects, or tells what would go. One run at a time.
    pub async fn prune(
        &self,
        policies: &[Policy],
        dry_run: bool,
        cause: Cause,
    ) -> Result<Pruned, Error> {
        let _one = self.inner.pruning.lock().await;
        let (images, disk) = self.candidates(cause).await?;
        let plan = prune::plan(&images, policies, &disk, Timestamp::now());
        if dry_run {
            return Ok(Pruned {
                plan,
                ..Pruned::default()
            });
        }
        self.carry_out(plan, cause, |_| false).await
    }

    /// Removes one image that was among the last [`Cache::candidates`], unless something protects it at this moment, or
    /// it was used since: then, and where it is gone, `None`. Else the bytes that this freed.
    pub async fn prune_image(&self, id: &str, cause: Cause) -> Result<Option<u64>, Error> {
        let _one = self.inner.pruning.lock().await;
        match self.remove_unprotected(id, cause, |_| false).await {
            Ok(freed) => Ok(freed),
            Err(error) if error.is_protection() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what a plan says, each image only if nothing protects it at that moment but what `breaks` allows.
    pub(super) async fn carry_out(
        &self,
        mut plan: Plan,
        cause: Cause,
        breaks: impl Fn(&Protection) -> bool + Copy,
    ) -> Result<Pruned, Error> {
        let mut done = Pruned::default();
        let (mut images, mut bytes) = (0, 0u64);
        for mut removal in std::mem::take(&mut plan.remove) {
            match self.remove_unprotected(&removal.id, cause, breaks).await {
                Ok(Some(freed)) => {
                    images += 1;
                    bytes = bytes.saturating_add(freed);
                    removal.bytes = freed;
                    plan.remove.push(removal);
                }
                // Somebody was quicker.
                Ok(None) => {}
                Err(error) if error.is_protection() => plan.keep.push(Kept {
                    id: removal.id,
                    names: removal.names,
                    reason: format!("it was to go: {error}"),
                }),
                Err(error @ Error::UsersUnknown { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(image = removal.id, err = %error, "Image was not pruned");
                    done.failures.push((removal.id, error.to_string()));
                }
            }
        }
        plan.free_bytes = bytes;
        self.inner.metrics.prune_run(cause);
        if images > 0 {
            let cause = cause.as_str();
            tracing::info!(cause, images, freed_bytes = bytes, "Images pruned");
        }
        done.plan = plan;
        Ok(done)
    }

    async fn remove_unprotected(
        &self,
        id: &str,
        cause: Cause,
        breaks: impl Fn(&Protection) -> bool,
    ) -> Result<Option<u64>, Error> {
        let subject = id.to_owned();
        let Ok(id) = id.parse().map(ImageId) else {
            return Ok(None);
        };
        // Whoever made a container since the plan is found here; a pull, a mount or a use below, in one step with the
        // removal.
        let uses = self.uses().await?;
        let Some(image) = self.inner.store.image(&id) else {
            return Ok(None);
        };
        let protections = self.protections(&image, uses.get(&id).map(Vec::as_slice), None, None);
        if let Some(protection) = protections.into_iter().find(|one| !breaks(one)) {
            return Err(Error::InUse {
                name: subject,
                by: told(&protection),
            });
        }
        let mark = self.marks().get(&id).copied();
        let inner = self.inner.clone();
        let done = self.inner.threads.block(&subject, move || {
            // Layers that failed pulls left for a retry must not hold it up.
            drop(inner.parked.take_all());
            let mark = mark.unwrap_or(u64::MAX);
            inner.store.remove_unused(&id, mark)
        });
        let removed = done
            .await?
            .map_err(|error| Error::store(subject.clone(), error))?;
        let Some(removed) = removed else {
            return Ok(None);
        };
        // Where a runtime was told of it: what it holds of the image goes with its word.
        if let Err(error) = self.settle(&image.record.id).await {
            tracing::warn!(image = subject, err = %error, "The runtime still knows an image that is gone");
        }
        self.inner.metrics.image_removed();
        self.inner.metrics.pruned(cause, removed.freed_bytes);
        tracing::info!(
            image = subject,
            names = removed.names.join(" "),
            cause = cause.as_str(),
            freed_bytes = removed.freed_bytes,
            "Image pruned"
        );
        Ok(Some(removed.freed_bytes))
    }

    /// What protects an image; `grace` is how long ago it was used, and when that was measured.
    fn protections(
        &self,
        image: &Image,
        uses: Option<&[Use]>,
        held: Option<&Hold>,
        grace: Option<(Duration, Timestamp)>,
    ) -> Vec<Protection> {
        let mut found = Vec::new();
        for used in uses.unwrap_or_default() {
            found.push(if used.sandbox {
                Protection::Sandbox
            } else {
                Protection::InUse {
                    by: used.by.clone(),
                }
            });
        }
        let marks = self.inner.marks();
        let names = || image.names.iter().map(|name| name.name.as_str());
        let here = image.record.pinned || names().any(|name| marks.pinned.matches(name));
        if here || marks.pinned_by_runtime(image) {
            found.push(Protection::Pinned);
        }
        for declaration in marks.declared.of(names()) {
            found.push(Protection::Declared {
                by: declaration.by.clone(),
                pinned: declaration.pinned,
            });
        }
        if names().any(starts_pods) {
            found.push(Protection::Sandbox);
        }
        match held {
            Some(Hold::Mounted(_) | Hold::LivedIn) => found.push(Protection::Mounted),
            Some(Hold::Leased) => found.push(Protection::Leased),
            None => {}
        }
        if let Some((used, now)) = grace
            && let Some(left) = GRACE.checked_sub(used)
            && !left.is_zero()
        {
            let until = now.checked_add(left).unwrap_or(now);
            found.push(Protection::Grace { until });
        }
        found.dedup();
        found
    }

    /// Keeps with each image the namespaces that declare it now: rules may name them when they declare it no more.
    pub(super) fn note_namespaces(&self) {
        let marks = self.inner.marks();
        for image in self.inner.store.images() {
            let names = image.names.iter().map(|name| name.name.as_str());
            let declarations = marks.declared.of(names);
            let namespaces: BTreeSet<String> = declarations
                .filter_map(|declaration| declaration.namespace.clone())
                .collect();
            if !namespaces.is_empty() {
                self.inner
                    .store
                    .note_namespaces(&image.record.id, &namespaces);
            }
        }
    }

    fn marks(&self) -> std::sync::MutexGuard<'_, BTreeMap<ImageId, u64>> {
        let marks = &self.inner.use_marks;
        marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `pause` is what runtimes start every pod with; without it a node starts none, and few tell which one they use.
pub fn starts_pods(name: &str) -> bool {
    let name = name.split('@').next().unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    last == "pause" || last.starts_with("pause:")
}

fn told(protection: &Protection) -> String {
    match protection {
        Protection::InUse { by } => by.clone(),
        Protection::Pinned => "a pin".to_owned(),
        Protection::Declared { by, .. } => by.clone(),
        Protection::Sandbox => "the runtime, which starts pods with it".to_owned(),
        Protection::Mounted => "a mount".to_owned(),
        Protection::Leased => "a pull or other work on it".to_owned(),
        Protection::Grace { .. } => "whoever pulled it a moment ago".to_owned(),
    }
}

/// What goes with each image alone, and what it shares. What an image shares with one that is not visible stays.
fn parts(
    sharing: &Sharing,
    images: &[std::sync::Arc<Image>],
) -> BTreeMap<ImageId, (u64, Vec<Part>)> {
    let visible: BTreeSet<&ImageId> = images.iter().map(|image| &image.record.id).collect();
    let mut out: BTreeMap<ImageId, (u64, Vec<Part>)> = BTreeMap::new();
    for (number, part) in sharing.parts.iter().enumerate() {
        let users: Option<Vec<&ImageId>> = part
            .users
            .iter()
            .map(|at| {
                let id = sharing.images.get(*at as usize)?;
                visible.contains(id).then_some(id)
            })
            .collect();
        match users.as_deref() {
            Some([only]) => {
                let own = &mut out.entry((*only).clone()).or_default().0;
                *own = own.saturating_add(part.bytes);
            }
            Some(users) => {
                for user in users {
                    out.entry((*user).clone()).or_default().1.push(Part {
                        id: number.to_string(),
                        bytes: part.bytes,
                    });
                }
            }
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_is_known_wherever_it_is_from() {
        for name in [
            "registry.k8s.io/pause:3.10",
            "127.0.0.1:5000/mirror/pause@sha256:ab",
            "registry.k8s.io/pause",
        ] {
            assert!(starts_pods(name), "{name}");
        }
        for name in ["r/pauses:1", "r/app:pause", "pause/app:1", "r/pause-arm:1"] {
            assert!(!starts_pods(name), "{name}");
        }
    }
}

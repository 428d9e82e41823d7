//! The image service of the node's container runtime as what prune policies remove images from (`--images runtime`).
//!
//! # What this cannot do
//! CRI tells neither when an image was pulled nor when it was used, nor what images share, nor their labels:
//! - An image counts as pulled when it was first seen here, and as used whenever a container or pod that has it is.
//! - What a removal frees is the image's size as the runtime counts it, shared layers included.
//! - A rule with `labels` matches no image.
//! - The runtime's own pulls enter the reserved band: nobody asks this agent.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::runtime::{NodeImages, told};
use crate::cache::starts_pods;
use crate::image::Reference;
use crate::k8s::agent::{BoxFuture, HeldImage, Images, PruneFault, Pruning, PullFailure};
use crate::k8s::api::reason;
use crate::prune::{Candidate, Disk, Protection};
use crate::runtime::{ImageUser, RuntimeContainers};
use crate::store::{Clock, ClockRow};

/// The container of an image that was just pulled is made within moments.
const GRACE: Duration = Duration::from_secs(30);
/// Uses that are not on disk yet.
const STEP: Duration = Duration::from_secs(3600);
/// A larger file is none of ours.
const MAX_BYTES: u64 = 64 << 20;

/// Removal of the runtime's images.
#[derive(Debug)]
pub struct NodePruning {
    images: NodeImages,
    containers: RuntimeContainers,
    file: PathBuf,
    memory: Arc<tokio::sync::Mutex<Option<Memory>>>,
}

/// What was seen of images, by the time that the machine was up.
#[derive(Debug)]
struct Memory {
    clock: Clock,
    seen: BTreeMap<String, Seen>,
    written: u64,
}

/// In milliseconds of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    first: u64,
    used: Option<u64>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    clock: ClockRow,
    images: BTreeMap<String, Seen>,
}

impl Memory {
    /// One that cannot be read begins anew: every image is then as old as this start.
    fn read(file: &Path) -> Self {
        let known: Option<Written> = std::fs::metadata(file)
            .ok()
            .filter(|meta| meta.len() <= MAX_BYTES)
            .and_then(|_| std::fs::read(file).ok())
            .and_then(|text| serde_json::from_slice(&text).ok());
        let clock = Clock::open(known.as_ref().map(|known| known.clock));
        Memory {
            written: clock.now(),
            clock,
            seen: known.unwrap_or_default().images,
        }
    }

    /// Takes note of the images that are here, and of those in use. Whether it is worth a write.
    fn note<'a>(
        &mut self,
        here: impl Iterator<Item = &'a str>,
        used: impl Fn(&str) -> bool,
    ) -> bool {
        let now = self.clock.now();
        let mut seen = BTreeMap::new();
        let mut news = false;
        for id in here {
            let known = self.seen.remove(id);
            news |= known.is_none();
            let mut of_image = known.unwrap_or(Seen {
                first: now,
                used: None,
            });
            if used(id) {
                of_image.used = Some(now);
            }
            seen.insert(id.to_owned(), of_image);
        }
        news |= !self.seen.is_empty();
        self.seen = seen;
        let step = u64::try_from(STEP.as_millis()).unwrap_or(u64::MAX);
        news |= now.saturating_sub(self.written) >= step;
        if news {
            self.written = now;
        }
        news
    }

    fn write(&self, file: &Path) -> std::io::Result<()> {
        let written = Written {
            clock: self.clock.row(),
            images: self.seen.clone(),
        };
        let text = serde_json::to_vec(&written)?;
        let fresh = file.with_extension("new");
        let mut to = std::fs::File::create(&fresh)?;
        std::io::Write::write_all(&mut to, &text)?;
        // Guards the rename: an empty file would make every image young.
        to.sync_all()?;
        std::fs::rename(&fresh, file)
    }
}

/// The runtime's answers of one moment.
struct Now {
    images: Vec<HeldImage>,
    users: Vec<ImageUser>,
}

impl Now {
    /// Who uses which image, by id.
    fn uses(&self) -> HashMap<&str, Vec<&ImageUser>> {
        let mut by_name: HashMap<&str, &str> = HashMap::new();
        for image in &self.images {
            let hex = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
            let names = image.tags.iter().chain(&image.digests).map(String::as_str);
            for name in names.chain([image.id.as_str(), hex]) {
                by_name.insert(name, &image.id);
            }
        }
        let mut uses: HashMap<&str, Vec<&ImageUser>> = HashMap::new();
        for user in &self.users {
            for name in &user.images {
                let whole = name.parse::<Reference>().ok();
                let digested = whole
                    .as_ref()
                    .and_then(|name| Some(name.digested(name.digest()?)));
                let tagged = whole.as_ref().and_then(Reference::tagged);
                let forms = [Some(name.clone()), digested, tagged];
                let found = forms.iter().flatten();
                for id in found.filter_map(|form| by_name.get(form.as_str())) {
                    let users = uses.entry(id).or_default();
                    if !users.contains(&user) {
                        users.push(user);
                    }
                }
            }
        }
        uses
    }
}

impl NodePruning {
    /// Over a runtime's image service and its containers. `file` keeps what was seen of images over a restart.
    pub fn new(images: NodeImages, containers: RuntimeContainers, file: PathBuf) -> Self {
        NodePruning {
            images,
            containers,
            file,
            memory: Arc::default(),
        }
    }

    async fn look(&self) -> Result<Now, PruneFault> {
        // Containers first: an image that comes with one between the calls is in neither or in both.
        let users = self.containers.users().await.map_err(|error| PruneFault {
            reason: reason::RUNTIME_UNAVAILABLE,
            message: format!("who uses images is not known, so none is removed: {error}"),
        })?;
        let images = self.images.list().await.map_err(|error| fault(&error))?;
        Ok(Now { images, users })
    }

    fn protections(&self, image: &HeldImage, users: Option<&Vec<&ImageUser>>) -> Vec<Protection> {
        let mut found = Vec::new();
        for user in users.into_iter().flatten() {
            found.push(if user.sandbox {
                Protection::Sandbox
            } else {
                Protection::InUse {
                    by: user.by.clone(),
                }
            });
        }
        if image.pinned {
            found.push(Protection::Pinned);
        }
        for declared in self.images.declared(image) {
            found.push(Protection::Declared {
                by: declared.by,
                pinned: declared.pinned,
            });
        }
        if image
            .tags
            .iter()
            .chain(&image.digests)
            .any(|name| starts_pods(name))
        {
            found.push(Protection::Sandbox);
        }
        found
    }

    /// When each image was first seen and last used, brought up to date.
    async fn remember(&self, now: &Now) -> (u64, BTreeMap<String, Seen>) {
        let uses = now.uses();
        let mut memory = self.memory.lock().await;
        let file = self.file.clone();
        let taken = match memory.take() {
            Some(known) => known,
            None => tokio::task::spawn_blocking(move || Memory::read(&file))
                .await
                .unwrap_or_else(|_| Memory::read(Path::new(""))),
        };
        let mut known = taken;
        let ids = now.images.iter().map(|image| image.id.as_str());
        let news = known.note(ids, |id| uses.contains_key(id));
        let answer = (known.clock.now(), known.seen.clone());
        if news {
            let file = self.file.clone();
            let writing = tokio::task::spawn_blocking(move || {
                let written = known.write(&file);
                (known, written)
            });
            if let Ok((known, written)) = writing.await {
                if let Err(error) = written {
                    tracing::warn!(file = %self.file.display(), err = %error, "What was seen of images is not on disk");
                }
                *memory = Some(known);
            }
        } else {
            *memory = Some(known);
        }
        answer
    }

    async fn facts(&self) -> Result<(Vec<Candidate>, Disk), PruneFault> {
        let now = self.look().await?;
        let figures = self.images.figures().await;
        let figures = figures.map_err(|error| fault(&error))?;
        let (tick, seen) = self.remember(&now).await;
        let at = Timestamp::now();
        let ago = |then: u64| Duration::from_millis(tick.saturating_sub(then));
        let before = |ago: Duration| at.checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH);
        let uses = now.uses();
        let candidates = now.images.iter().map(|image| {
            let known = seen.get(&image.id).copied();
            let known = known.unwrap_or(Seen {
                first: tick,
                used: None,
            });
            let mut protections = self.protections(image, uses.get(image.id.as_str()));
            if let Some(left) = GRACE.checked_sub(ago(known.used.unwrap_or(known.first))) {
                let until = at.checked_add(left).unwrap_or(at);
                protections.push(Protection::Grace { until });
            }
            Candidate {
                id: image.id.clone(),
                names: image.tags.iter().chain(&image.digests).cloned().collect(),
                size: image.size,
                own_bytes: image.size,
                labels_unknown: true,
                pulled_at: before(ago(known.first)),
                last_used: known.used.map(|used| before(ago(used))),
                protections,
                ..Candidate::default()
            }
        });
        let disk = Disk {
            capacity: figures.capacity_bytes,
            available: figures.available_bytes,
            images: figures.stored_bytes,
        };
        Ok((candidates.collect(), disk))
    }

    async fn remove_one(&self, id: &str) -> Result<Option<u64>, PruneFault> {
        let now = self.look().await?;
        let Some(image) = now.images.iter().find(|image| image.id == id) else {
            return Ok(None);
        };
        let uses = now.uses();
        if !self.protections(image, uses.get(id)).is_empty() {
            return Ok(None);
        }
        let removed = self.images.runtime().remove(id).await;
        removed.map_err(|error| fault(&told(&error)))?;
        tracing::info!(
            image = id,
            names = image.tags.join(" "),
            cause = "policy",
            "Image pruned"
        );
        Ok(Some(image.size))
    }
}

fn fault(failure: &PullFailure) -> PruneFault {
    PruneFault {
        // The node's holder of images is the runtime here.
        reason: match failure.reason {
            reason::STORE_ERROR => reason::RUNTIME_UNAVAILABLE,
            reason::TIMEOUT => reason::TIMEOUT,
            _ => reason::UNKNOWN,
        },
        message: failure.message.clone(),
    }
}

impl Pruning for NodePruning {
    fn candidates(&self) -> BoxFuture<'_, Result<(Vec<Candidate>, Disk), PruneFault>> {
        Box::pin(self.facts())
    }

    fn remove(&self, id: String) -> BoxFuture<'_, Result<Option<u64>, PruneFault>> {
        Box::pin(async move { self.remove_one(&id).await })
    }

    fn reserve(&self, _: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_survives_a_restart_and_what_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("images.json");
        let mut memory = Memory::read(&file);
        assert!(memory.note(["a", "b"].into_iter(), |id| id == "a"));
        assert!(!memory.note(["a", "b"].into_iter(), |id| id == "a"));
        memory.write(&file).unwrap();
        let seen = memory.seen.clone();
        assert!(seen["a"].used.is_some() && seen["b"].used.is_none());
        let mut memory = Memory::read(&file);
        assert_eq!(memory.seen, seen);
        assert!(memory.clock.now() >= seen["a"].first);
        assert!(memory.note(["b"].into_iter(), |_| false));
        assert_eq!(memory.seen.keys().collect::<Vec<_>>(), ["b"]);
        std::fs::write(&file, "{").unwrap();
        assert!(Memory::read(&file).seen.is_empty());
    }

    #[test]
    fn users_are_found_by_every_form_of_a_name() {
        let image = |id: &str, tag: &str, digest: &str| HeldImage {
            id: id.to_owned(),
            tags: vec![tag.to_owned()],
            digests: vec![digest.to_owned()],
            pinned: false,
            staged: false,
            size: 1,
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        let digested = format!("docker.io/library/busybox@{digest}");
        let now = |name: &str| Now {
            images: vec![
                image("sha256:01", "docker.io/library/busybox:1", &digested),
                image("sha256:02", "docker.io/library/other:1", "x"),
            ],
            users: vec![ImageUser {
                images: vec![name.to_owned()],
                ..ImageUser::default()
            }],
        };
        for name in [
            "sha256:01",
            "01",
            "busybox:1",
            "docker.io/library/busybox:1",
            &digested,
        ] {
            let now = now(name);
            let uses: Vec<&str> = now.uses().into_keys().collect();
            assert_eq!(uses, ["sha256:01"], "{name}");
        }
        assert!(now("busybox:2").uses().is_empty());
    }
}

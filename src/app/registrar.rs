//! Makes the node's containerd know the images of the cache as its own, and notices what is removed there.
//!
//! What larder holds and shows, containerd has under the same names; what goes here, goes there. What somebody removes
//! there goes here too, unless it is pinned or declared: then it is made known again. Only the event of a removal counts,
//! never that something is not there: a containerd with an empty data directory gets its images back. What containerd
//! itself pins, as it does the image of its sandboxes, is pinned here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::cache::{Cache, ImageView};
use crate::image::{Digest, ImageId, Reference};
use crate::lifecycle::Shutdown;
use crate::runtime::{
    self, Containerd, ContainerdError, ContainerdImage, Document, NameEvent, Names, Registered,
    RuntimeContainers,
};

/// How long a pull waits for containerd to know its image.
const SETTLE: Duration = Duration::from_secs(60);
/// Pulls and removals that wait at once.
const MAX_ASKS: usize = 256;
/// Between two looks at all names, whatever happens: what went wrong is tried again.
const SURVEY: Duration = Duration::from_secs(60);
/// After a change, for those that come along with it.
const CALM: Duration = Duration::from_millis(100);
/// After a removal there, for the other names of the same image.
const REMOVALS: Duration = Duration::from_millis(500);
/// For how long a removal that was ours is not taken for somebody else's.
const OURS: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Somebody waits until containerd agrees on an image.
struct Ask {
    image: ImageId,
    answer: oneshot::Sender<Result<(), String>>,
}

/// Keeps a containerd in agreement with a cache.
pub(super) struct Registrar {
    cache: Cache,
    containerd: Containerd,
    metrics: runtime::Metrics,
    asks: mpsc::Receiver<Ask>,
    /// Came while containerd was away.
    waiting: Option<Ask>,
    todo: VecDeque<ImageId>,
    /// Names that larder took away there, and when.
    forgotten: BTreeMap<String, Instant>,
    /// Names that somebody took away there from an image that has others, with the time of its pull.
    refused: BTreeMap<String, i64>,
    /// The same containerd as a container runtime.
    containers: RuntimeContainers,
    /// Names that containerd itself wants to keep.
    pins: BTreeSet<String>,
    /// The image of its sandboxes, where it tells that by itself.
    sandbox: Option<String>,
    /// Of this connection.
    sandbox_asked: bool,
    /// Images of which somebody took away names there, and when to look.
    dropped: BTreeSet<ImageId>,
    look_at: Option<Instant>,
    /// Removals here that follow removals there.
    followed: JoinSet<()>,
    /// What was complained about last.
    complaint: String,
}

impl Registrar {
    /// For a cache; pulls and removals of it wait for containerd from now on.
    pub(super) fn new(cache: Cache, socket: &Path, metrics: runtime::Metrics) -> Self {
        let (ask, asks) = mpsc::channel(MAX_ASKS);
        let subject = socket.display().to_string();
        cache.settle_by(Box::new(move |image| {
            let (ask, subject) = (ask.clone(), subject.clone());
            Box::pin(async move {
                let (answer, outcome) = oneshot::channel();
                let settled = async {
                    ask.send(Ask { image, answer }).await.ok()?;
                    outcome.await.ok()
                };
                match timeout(SETTLE, settled).await {
                    Ok(Some(outcome)) => outcome,
                    Ok(None) => Err("the agent is stopping".to_owned()),
                    Err(_) => Err(format!("{subject}: containerd took too long")),
                }
            })
        }));
        Registrar {
            containerd: Containerd::new(socket, metrics.clone()),
            containers: RuntimeContainers::new(socket, metrics.clone()),
            cache,
            metrics,
            asks,
            waiting: None,
            todo: VecDeque::new(),
            forgotten: BTreeMap::new(),
            refused: BTreeMap::new(),
            pins: BTreeSet::new(),
            sandbox: None,
            sandbox_asked: false,
            dropped: BTreeSet::new(),
            look_at: None,
            followed: JoinSet::new(),
            complaint: String::new(),
        }
    }

    /// Works until shutdown, whatever containerd does.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let error = tokio::select! {
                () = shutdown.wait() => return,
                error = self.follow() => error,
            };
            self.complain(&error);
            if let Some(ask) = self.waiting.take() {
                let _ = ask.answer.send(Err(error.to_string()));
            }
            if began.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = shutdown.wait() => return,
                () = sleep(pause) => {}
                // Whoever waits is worth a try at once.
                ask = self.asks.recv() => self.waiting = ask,
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    /// While there is a connection.
    async fn follow(&mut self) -> ContainerdError {
        let mut events = pin!(self.containerd.events());
        let mut changes = self.cache.changes();
        // It has another image for sandboxes only after a start, and that ends the connection.
        self.sandbox_asked = false;
        if let Some(ask) = self.waiting.take()
            && let Err(error) = self.answer(ask).await
        {
            return error;
        }
        if let Err(error) = self.survey().await {
            return error;
        }
        let mut next = Instant::now() + SURVEY;
        loop {
            let look_at = self.look_at;
            let looking = async {
                match look_at {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let step = tokio::select! {
                biased;
                Some(ask) = self.asks.recv() => self.answer(ask).await,
                event = events.next() => match event {
                    Some(NameEvent::Removed(name)) => {
                        self.removed(&name);
                        Ok(())
                    }
                    // containerd's own pins come so.
                    Some(NameEvent::Updated) => {
                        next = next.min(Instant::now() + CALM);
                        Ok(())
                    }
                    None => Err(ContainerdError::Unavailable { socket: self.containerd.socket().to_owned() }),
                },
                () = looking => self.look().await,
                Some(_) = self.followed.join_next() => Ok(()),
                Ok(()) = changes.changed() => {
                    next = next.min(Instant::now() + CALM);
                    Ok(())
                }
                () = sleep_until(next.into()) => {
                    next = Instant::now() + SURVEY;
                    self.survey().await
                }
                () = std::future::ready(()), if !self.todo.is_empty() => self.work().await,
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    async fn answer(&mut self, ask: Ask) -> Result<(), ContainerdError> {
        let outcome = self.settle(&ask.image).await;
        let told = outcome.as_ref().map(|_| ()).map_err(ToString::to_string);
        // Whoever asked may have gone.
        let _ = ask.answer.send(told);
        match outcome {
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                self.complain(&error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// All names there. Those that containerd itself wants to keep are pinned here too.
    async fn known(&mut self) -> Result<Vec<Registered>, ContainerdError> {
        let known = self.containerd.names().await?;
        // What somebody took away there, is not let go by that.
        let held = self.held_names();
        self.pins
            .retain(|name| held.contains(name) && !known.iter().any(|known| known.name == *name));
        let pinned = known.iter().filter(|known| known.is_pinned_there());
        self.pins.extend(pinned.map(|known| known.name.clone()));
        // containerd 2 does not tell it so, but labels the name.
        if !self.sandbox_asked
            && let Ok(image) = self.containers.sandbox_image_of_all().await
        {
            self.sandbox = image.and_then(|image| name_of(&image));
            self.sandbox_asked = true;
        }
        let pins = self.pins.iter().chain(&self.sandbox);
        self.cache.pin_for_runtime(pins.cloned().collect());
        Ok(known)
    }

    /// Makes containerd agree on one image.
    async fn settle(&mut self, id: &ImageId) -> Result<(), ContainerdError> {
        let known = self.known().await?;
        match self.cache.shown_image(id) {
            Some(image) => {
                let names = self.names(&image);
                // It was pulled a moment ago: whatever was removed there is wanted again.
                self.refused
                    .retain(|name, _| !names.all().any(|own| own == *name));
                let missing = names.missing(&known);
                self.register(&image, names, &missing).await
            }
            None => {
                let id = id.to_string();
                let gone = self.gone(&known, |known| known.image() == Some(&id));
                self.forget(gone).await
            }
        }
    }

    /// Compares all names here and there.
    async fn survey(&mut self) -> Result<(), ContainerdError> {
        let known = self.known().await?;
        let gone = self.gone(&known, |known| known.image().is_some());
        self.forget(gone).await?;
        let now = Instant::now();
        self.forgotten
            .retain(|_, at| now.saturating_duration_since(*at) < OURS);
        let images = self.cache.shown().list();
        let held = self.held_names();
        self.refused.retain(|name, _| held.contains(name));
        let lacking = images.iter().filter(|image| {
            let names = self.names(image);
            let missing = names.missing(&known);
            missing.iter().any(|name| !self.is_refused(name, image))
        });
        self.todo = lacking.map(|image| image.id.clone()).collect();
        let missing = self.todo.len();
        self.metrics
            .registered(images.len().saturating_sub(missing), missing);
        Ok(())
    }

    /// Registers one of the images that wait.
    async fn work(&mut self) -> Result<(), ContainerdError> {
        let Some(id) = self.todo.pop_front() else {
            return Ok(());
        };
        let Some(image) = self.cache.shown_image(&id) else {
            return Ok(());
        };
        let known = self.containerd.names().await?;
        let names = self.names(&image);
        let mut missing = names.missing(&known);
        missing.retain(|name| !self.is_refused(name, &image));
        let outcome = self.register(&image, names, &missing).await;
        let all = self.cache.shown().list().len();
        let left = self.todo.len() + usize::from(outcome.is_err());
        self.metrics.registered(all.saturating_sub(left), left);
        match outcome {
            Err(error) if error.is_transient() => Err(error),
            // The next survey tries again.
            Err(error) => {
                self.complain(&error);
                Ok(())
            }
            Ok(()) => {
                self.complaint.clear();
                Ok(())
            }
        }
    }

    async fn register(
        &mut self,
        image: &ImageView,
        names: Names,
        missing: &[String],
    ) -> Result<(), ContainerdError> {
        if missing.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let refused = |text: String| ContainerdError::Refused {
            socket: self.containerd.socket().to_owned(),
            action: "take an image",
            text,
        };
        let id = image.id.clone();
        let described = described(&self.cache, image, names).await;
        let described = described.map_err(|error| refused(error.to_string()))?;
        let Some(described) = described else {
            let text = format!("a document of {id} is missing here: pull the image again");
            return Err(refused(text));
        };
        self.containerd.register(&described, missing).await?;
        for name in missing {
            self.forgotten.remove(name);
        }
        tracing::info!(
            image = %id,
            names = ?missing,
            duration_seconds = began.elapsed().as_secs_f64(),
            "Image made known to containerd"
        );
        Ok(())
    }

    async fn forget(&mut self, names: Vec<String>) -> Result<(), ContainerdError> {
        let last = names.len().saturating_sub(1);
        for (at, name) in names.into_iter().enumerate() {
            self.forgotten.insert(name.clone(), Instant::now());
            // With the last name goes what they led to.
            self.containerd.forget(&name, at == last).await?;
            tracing::info!(name, "Image taken away from containerd");
        }
        Ok(())
    }

    /// Somebody removed a name there.
    fn removed(&mut self, name: &str) {
        if self.forgotten.remove(name).is_some() {
            return;
        }
        // One that is not here any more is no news.
        if let Ok(Some(image)) = self.cache.shown().status(name) {
            self.dropped.insert(image.id);
            self.look_at = Some(Instant::now() + REMOVALS);
        }
    }

    /// What is left there of images of which names were removed.
    async fn look(&mut self) -> Result<(), ContainerdError> {
        self.look_at = None;
        let known = self.containerd.names().await?;
        for id in std::mem::take(&mut self.dropped) {
            let Some(image) = self.cache.shown_image(&id) else {
                continue;
            };
            let names = self.names(&image);
            let has = |name: &String| known.iter().any(|known| known.name == *name);
            if names.all().any(|name| has(&name)) {
                let lost = names.all().filter(|name| !has(name));
                self.refused
                    .extend(lost.map(|name| (name, image.pulled_at)));
            } else if image.pinned || !image.declared_by.is_empty() {
                tracing::info!(image = %id, "A pinned or declared image was removed in containerd, it is made known again");
                self.todo.push_back(id);
            } else {
                tracing::info!(image = %id, "Image was removed in containerd, it is removed here too");
                // Not awaited: a removal asks this task to settle it.
                let cache = self.cache.clone();
                self.followed.spawn(async move {
                    if let Err(error) = cache.remove(&id.to_string()).await {
                        tracing::warn!(image = %id, err = %error, "Image is kept, although containerd removed it");
                    }
                });
            }
        }
        Ok(())
    }

    fn names(&self, image: &ImageView) -> Names {
        Names {
            id: image.id.clone(),
            manifest: image.manifest.clone(),
            names: self.cache.names(&image.id),
            // Not what containerd pins by itself: it would be taken for a pin of larder's.
            pinned: image.pinned_here,
            pulled_at: image.pulled_at,
        }
    }

    /// Names there that are not shown here.
    fn gone(&self, known: &[Registered], which: impl Fn(&Registered) -> bool) -> Vec<String> {
        let held = self.held_names();
        let known = known.iter().filter(|known| which(known));
        let gone = known.filter(|known| !held.contains(&known.name));
        gone.map(|known| known.name.clone()).collect()
    }

    /// All names that are shown here.
    fn held_names(&self) -> BTreeSet<String> {
        let images = self.cache.shown().list();
        images
            .iter()
            .flat_map(|image| self.names(image).all().collect::<Vec<_>>())
            .collect()
    }

    fn is_refused(&self, name: &str, image: &ImageView) -> bool {
        self.refused.get(name) == Some(&image.pulled_at)
    }

    /// Once for each thing that is wrong.
    fn complain(&mut self, error: &ContainerdError) {
        let text = error.to_string();
        if text != self.complaint {
            tracing::warn!(err = text, "containerd does not know all images");
            self.complaint = text;
        }
    }
}

/// An image's name as it is known here.
fn name_of(image: &str) -> Option<String> {
    let reference: Reference = image.parse().ok()?;
    match reference.digest() {
        Some(digest) => Some(reference.digested(digest)),
        None => reference.tagged(),
    }
}

/// An image with its documents; `None` where one is not kept.
async fn described(
    cache: &Cache,
    image: &ImageView,
    names: Names,
) -> Result<Option<ContainerdImage>, crate::cache::Error> {
    let document = async |digest: &Digest, default: &str| {
        let bytes = cache.document(&image.id, digest).await?;
        Ok::<_, crate::cache::Error>(bytes.map(|bytes| Document {
            digest: digest.clone(),
            media_type: media_type(&bytes).unwrap_or_else(|| default.to_owned()),
            bytes,
        }))
    };
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let (Some(config), Some(manifest)) = (
        document(&image.id.0, CONFIG).await?,
        document(&image.manifest, MANIFEST).await?,
    ) else {
        return Ok(None);
    };
    let targets: BTreeSet<&Digest> = names.names.iter().map(|(_, target)| target).collect();
    let mut indexes = Vec::new();
    for target in targets {
        if *target != image.manifest {
            indexes.extend(document(target, INDEX).await?);
        }
    }
    let mut chains: Vec<Digest> = Vec::new();
    for layer in &image.layers {
        chains.push(match chains.last() {
            None => layer.diff_id.0.clone(),
            Some(below) => Digest::sha256(format!("{below} {}", layer.diff_id).as_bytes()),
        });
    }
    let layers = image.layers.iter();
    Ok(Some(ContainerdImage {
        names,
        config,
        manifest,
        indexes,
        chains,
        layers: layers.map(|layer| layer.diff_id.0.clone()).collect(),
    }))
}

/// As a document says it of itself. A config does not.
fn media_type(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        media_type: Option<String>,
    }
    let own: Own = serde_json::from_slice(bytes).ok()?;
    own.media_type.filter(|own| !own.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_may_say_what_they_are() {
        for (text, wanted) in [
            (r#"{"mediaType":"a/b"}"#, Some("a/b")),
            (r#"{"mediaType":""}"#, None),
            (r#"{"mediaType":3}"#, None),
            ("{}", None),
            ("[", None),
        ] {
            assert_eq!(media_type(text.as_bytes()).as_deref(), wanted, "{text}");
        }
    }
}

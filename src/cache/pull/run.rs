//! One pull from the first request to the visible image.
//!
//! The registry is always asked what the reference names, with the caller's credentials: that request is the proof of
//! access. Everything after it comes from the store where the store has it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;

use crate::cache::names::names_of;
use crate::cache::view::{user_text, view};
use crate::cache::{
    Error, ErrorKind, Inner, LayerSource, Phase, PullRequest, Pulled, Visibility, now_ms,
};
use crate::image::{Config as ImageConfig, DiffId, Digest, ImageId, Platform};
use crate::registry::{self, Access, Credentials, Repository, Resolved};
use crate::store::{Image, ImageCommit, ImageRecord, LayerRef, Lease, Name};

use super::documents::{self, Documents, Selected};
use super::download::Begun;
use super::plan::{Fault, Plan};
use super::progress::{Board, INTERVAL};
use super::space::LOOK;
use crate::cache::room::Claim;

/// Labels kept in an image record, and bytes of all of them.
const MAX_LABELS: usize = 256;
const MAX_LABEL_BYTES: usize = 64 << 10;

/// What one pull needs of its surroundings.
pub(super) struct Run<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) request: &'a PullRequest,
    pub(super) platform: &'a Platform,
    pub(super) reference: String,
    pub(super) lease: Arc<Lease>,
    /// The pull's number at the gate.
    pub(super) pass: u64,
}

/// All layers are in the store under the pull's lease.
struct Gathered {
    config: ImageConfig,
    config_json: Bytes,
    diff_ids: Vec<DiffId>,
    fetched_bytes: u64,
}

impl Run<'_> {
    pub(super) async fn pull(&self, board: &mut Board) -> Result<Pulled, Error> {
        let inner = self.inner;
        let (repository, resolved, staged) = self.resolve().await?;
        if let Some(wanted) = self.request.reference.digest()
            && *wanted != resolved.digest
        {
            return Err(self.image(format!(
                "the registry answered with {} instead; check the registry or mirror",
                resolved.digest
            )));
        }
        board.resolved(&resolved.digest, &resolved.host);

        let documents = Documents {
            reference: &self.reference,
            store: &inner.store,
            threads: &inner.threads,
            repository: &repository,
        };
        let selected = documents.select(&resolved, self.platform).await?;
        if let Some(image) = self.known(&selected, &resolved, staged, board).await? {
            return Ok(Pulled {
                image: view(&image, &inner.marks()),
                digest: resolved.digest,
                fetched_bytes: 0,
                up_to_date: true,
            });
        }

        let mut claim = None;
        let gathered = match self.gather(&documents, &selected, board, &mut claim).await {
            Err(error) if error.kind() == ErrorKind::NoSpace && inner.store.reserve() > 0 => {
                // What it takes is known better now than before it began; with that much room it tries once more.
                let whole = claim.take().map(|claim| claim.whole());
                inner.metrics.refused(whole.is_some());
                match whole {
                    Some(bytes) if self.make_room(bytes).await? => {}
                    _ => return Err(error),
                }
                self.gather(&documents, &selected, board, &mut claim)
                    .await?
            }
            gathered => gathered?,
        };
        drop(claim);
        board.phase(Phase::Committing);
        let fetched_bytes = gathered.fetched_bytes;
        let image = self
            .commit_new(selected, gathered, &resolved, staged)
            .await?;
        Ok(Pulled {
            image: view(&image, &inner.marks()),
            digest: resolved.digest,
            fetched_bytes,
            up_to_date: false,
        })
    }

    /// What the reference names, with the access that the registry granted, and whether that is somebody's whose image
    /// must be staged. On behalf of somebody it is asked for as little as will do; the errors of his own credentials
    /// tell most.
    async fn resolve(&self) -> Result<(Repository, Resolved, bool), Error> {
        let request = self.request;
        if request.secrets.is_empty() {
            let own = self.own_credentials().await?;
            let (repository, resolved) = self.resolve_with(own).await?;
            return Ok((repository, resolved, false));
        }
        let refused = |error: &Error| {
            matches!(
                error.kind(),
                ErrorKind::Unauthenticated | ErrorKind::Denied | ErrorKind::NotFound
            )
        };
        match self.resolve_with(Credentials::Anonymous).await {
            Ok((repository, resolved)) => return Ok((repository, resolved, false)),
            Err(error) if refused(&error) => {}
            Err(error) => return Err(error),
        }
        let mut telling = None;
        for secret in &request.secrets {
            match self.resolve_with(secret.clone()).await {
                Ok((repository, resolved)) => {
                    let staged = request.visibility == Visibility::Authorized;
                    return Ok((repository, resolved, staged));
                }
                Err(error) if refused(&error) => telling = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (self.own_credentials().await?, telling) {
            (Credentials::Anonymous, Some(error)) => Err(error),
            (own, telling) => match self.resolve_with(own).await {
                Ok((repository, resolved)) => Ok((repository, resolved, false)),
                Err(error) => Err(telling.unwrap_or(error)),
            },
        }
    }

    async fn resolve_with(
        &self,
        credentials: Credentials,
    ) -> Result<(Repository, Resolved), Error> {
        let repository = self.repository(credentials).await?;
        let resolved = repository
            .resolve(&self.request.reference)
            .await
            .map_err(|source| self.registry(source))?;
        Ok((repository, resolved))
    }

    /// What the request brings, else the node's own.
    async fn own_credentials(&self) -> Result<Credentials, Error> {
        match (&self.request.credentials, &self.inner.config.authfile) {
            (Credentials::Anonymous, Some(file)) => {
                let repository = self.request.reference.repository();
                let found = registry::docker_credentials(file, &repository).await;
                Ok(found
                    .map_err(|source| self.registry(source))?
                    .unwrap_or_default())
            }
            (credentials, _) => Ok(credentials.clone()),
        }
    }

    /// Hosts as they are configured now; read once for the whole pull.
    async fn repository(&self, credentials: Credentials) -> Result<Repository, Error> {
        let inner = self.inner;
        let access = Access {
            credentials,
            plain_http: self.request.plain_http,
            traceparent: self.request.traceparent.clone(),
        };
        let (client, reference) = (inner.registry.clone(), self.request.reference.clone());
        let repository = inner
            .threads
            .block(&self.reference, move || {
                client.repository(&reference, access)
            })
            .await?;
        repository.map_err(|source| self.registry(source))
    }

    /// The image, if it is complete already: then only its names may have to move.
    async fn known(
        &self,
        selected: &Selected,
        resolved: &Resolved,
        staged: bool,
        board: &mut Board,
    ) -> Result<Option<Arc<Image>>, Error> {
        let inner = self.inner;
        let id = ImageId(selected.manifest.config.digest.clone());
        // Before the store's word counts: what turns out to be damaged is fetched again.
        let blobs: Vec<Digest> = selected
            .manifest
            .layers
            .iter()
            .map(|layer| layer.digest.clone())
            .collect();
        let (store, image) = (inner.store.clone(), id.clone());
        inner
            .threads
            .block(&self.reference, move || store.verify_layers(&image, &blobs))
            .await?
            .map_err(|error| Error::store(self.reference.clone(), error))?;
        let Some(image) = inner.store.image(&id) else {
            return Ok(None);
        };
        if image.record.layers.len() != selected.manifest.layers.len()
            || !self.fits(selected, &image.record.platform)
        {
            return Ok(None);
        }
        let Some(config_json) =
            documents::stored(&inner.store, &inner.threads, &self.reference, &id.0).await?
        else {
            return Ok(None);
        };
        // A removal may be under way, or somebody took a file away: what the lease cannot protect is fetched.
        let mut layers = image.record.layers.iter();
        if layers.any(|layer| inner.store.layer(&layer.diff_id, &self.lease).is_none()) {
            return Ok(None);
        }
        board.present(
            selected
                .manifest
                .layers
                .iter()
                .map(|layer| (layer.digest.clone(), layer.size)),
        );
        let names = names_of(&self.request.reference, &resolved.digest);
        let now = now_ms();
        let settled = selected.stored
            && (staged || !image.record.staged)
            && image.record.manifest == selected.digest
            && names.iter().all(|name| self.has_name(&id, name));
        if settled {
            inner.store.touch_image(&id, now);
            self.count_present(selected);
            return Ok(Some(image));
        }
        board.phase(Phase::Committing);
        let mut record = image.record.clone();
        record.last_used_at = now;
        record.manifest = selected.digest.clone();
        record.staged &= staged;
        let diff_ids: Vec<DiffId> = record
            .layers
            .iter()
            .map(|layer| layer.diff_id.clone())
            .collect();
        record.layers = layer_refs(selected, &diff_ids);
        let mut blobs = selected.blobs.clone();
        blobs.push((id.0.clone(), config_json));
        let image = self
            .commit(ImageCommit {
                record,
                names,
                blobs,
            })
            .await?;
        self.count_present(selected);
        Ok(Some(image))
    }

    fn has_name(&self, id: &ImageId, name: &Name) -> bool {
        self.inner
            .store
            .image_named(&name.name)
            .is_some_and(|image| image.record.id == *id && image.names.contains(name))
    }

    fn count_present(&self, selected: &Selected) {
        for layer in &selected.manifest.layers {
            self.inner.metrics.layer(LayerSource::Present, layer.size);
        }
    }

    /// Whether the platform of the config is acceptable, where no index vouched for it.
    fn fits(&self, selected: &Selected, offered: &Platform) -> bool {
        selected.platform_known || documents::fits(self.platform, offered)
    }

    /// Brings config and layers into the store, all at once.
    async fn gather(
        &self,
        documents: &Documents<'_>,
        selected: &Selected,
        board: &mut Board,
        claim: &mut Option<Claim>,
    ) -> Result<Gathered, Error> {
        let inner = self.inner;
        let store = &inner.store;
        let fresh = store.usage().layers == 0;
        let known = |blob: &Digest| {
            store
                .layer_of_blob(blob, &self.lease)
                .map(|layer| layer.diff_id)
        };
        let have = |diff_id: &DiffId| store.layer(diff_id, &self.lease).is_some();
        let mut plan = Plan::new(&selected.manifest, &known, fresh)
            .map_err(|error| self.image(error.to_string()))?;
        board.plan(&plan);
        board.phase(Phase::Fetching);

        let mut config_json = pin!(documents::config(documents, &selected.manifest.config));
        let mut config: Option<(ImageConfig, Bytes)> = None;
        let mut running = FuturesUnordered::new();
        let mut joined: BTreeSet<Digest> = BTreeSet::new();
        let mut landed_here: BTreeSet<Digest> = BTreeSet::new();
        let mut waiting_for_slot: Option<Pin<Box<_>>> = None;
        let mut fetched_bytes = 0u64;
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);

        loop {
            // All that is to be fetched is known here, and nothing of it has begun.
            if claim.is_none() && plan.has_queued() {
                *claim = Some(self.claim(&plan).await?);
            }
            for fetch in plan.queued() {
                let blob = fetch.descriptor.digest;
                if let Some(ticket) = inner.downloads.join(&blob, &self.lease, self.pass) {
                    plan.started(&blob);
                    board.started(&blob, LayerSource::Shared, &ticket.download);
                    if let Some(claim) = claim {
                        claim.started(&blob, &ticket.download.counters);
                    }
                    joined.insert(blob);
                    running.push(ticket.wait());
                }
            }
            if let (Some(diff_ids), Some((config, config_json))) = (plan.complete(), &config) {
                for (layer, _) in plan
                    .layers()
                    .filter(|(layer, _)| !landed_here.contains(&layer.digest))
                {
                    inner.metrics.layer(LayerSource::Present, layer.size);
                }
                return Ok(Gathered {
                    config: config.clone(),
                    config_json: config_json.clone(),
                    diff_ids: diff_ids.to_vec(),
                    fetched_bytes,
                });
            }
            if !plan.has_queued() {
                waiting_for_slot = None;
            } else if waiting_for_slot.is_none() {
                // One place in the queue per pull, whatever its number of layers: pulls take turns.
                let registry: Arc<str> = self.request.reference.domain().into();
                waiting_for_slot = Some(Box::pin(inner.gate.clone().layer(self.pass, registry)));
            }
            tokio::select! {
                bytes = &mut config_json, if config.is_none() => {
                    let bytes = bytes?;
                    let parsed = self.read_config(selected, &bytes)?;
                    plan.config(&parsed.diff_ids, &have).map_err(|fault| self.fault(fault))?;
                    config = Some((parsed, bytes));
                    board.plan(&plan);
                    board.sample();
                }
                slot = next(&mut waiting_for_slot) => {
                    waiting_for_slot = None;
                    let Some(slot) = slot else { return Err(self.cancelled()) };
                    let Some(fetch) = plan.queued().into_iter().next() else { continue };
                    let blob = fetch.descriptor.digest.clone();
                    let expected = plan.expected(&blob).cloned();
                    let here = || known(&blob).or_else(|| expected.filter(|diff_id| have(diff_id)));
                    let (ticket, source) = match inner.downloads.start(documents.repository, fetch, slot, (&self.lease, self.pass), here) {
                        Begun::Started(ticket) => (ticket, LayerSource::Registry),
                        Begun::Joined(ticket) => (ticket, LayerSource::Shared),
                        Begun::Present(diff_id) => {
                            if let Some(claim) = claim {
                                claim.landed(&blob);
                            }
                            plan.landed(&blob, &diff_id).map_err(|fault| self.fault(fault))?;
                            board.plan(&plan);
                            continue;
                        }
                    };
                    if source == LayerSource::Shared {
                        joined.insert(blob.clone());
                    }
                    plan.started(&blob);
                    board.started(&blob, source, &ticket.download);
                    if let Some(claim) = claim {
                        claim.started(&blob, &ticket.download.counters);
                    }
                    board.sample();
                    running.push(ticket.wait());
                }
                Some((blob, download, outcome)) = running.next(), if !running.is_empty() => {
                    let shared = joined.remove(&blob);
                    match outcome {
                        Ok(layer) => {
                            let diff_id = &layer.diff_id;
                            let size = download.received.load(Ordering::Relaxed);
                            if !shared {
                                fetched_bytes = fetched_bytes.saturating_add(size);
                            }
                            if store.layer(diff_id, &self.lease).is_none() {
                                return Err(self.internal(format!("layer {blob} vanished right after it was stored")));
                            }
                            board.stopped(&blob, true);
                            if let Some(claim) = claim {
                                claim.landed(&blob);
                            }
                            plan.landed(&blob, diff_id).map_err(|fault| self.fault(fault))?;
                            inner.metrics.layer(if shared { LayerSource::Shared } else { LayerSource::Registry }, size);
                            landed_here.insert(blob);
                        }
                        Err(failure) if shared && failure.is_of_the_source() && !inner.shutdown.is_cancelled() => {
                            board.stopped(&blob, false);
                            plan.requeue(&blob);
                        }
                        Err(failure) => return Err(failure.error(&self.reference)),
                    }
                    board.plan(&plan);
                    board.sample();
                }
                _ = tick.tick() => board.sample(),
                _ = look.tick() => if let Some(claim) = claim {
                    self.check_room(claim).await?;
                },
            }
        }
    }

    fn read_config(&self, selected: &Selected, bytes: &Bytes) -> Result<ImageConfig, Error> {
        let media_type = &selected.manifest.config.media_type;
        let config = ImageConfig::parse(bytes)
            .map_err(|error| self.image(format!("{error} (its media type is {media_type:?})")))?;
        if !self.fits(selected, &config.platform) {
            return Err(Error::Platform {
                reference: self.reference.clone(),
                cause: documents::refusal(self.platform, &config.platform),
            });
        }
        Ok(config)
    }

    async fn commit_new(
        &self,
        selected: Selected,
        gathered: Gathered,
        resolved: &Resolved,
        staged: bool,
    ) -> Result<Arc<Image>, Error> {
        let Gathered {
            config,
            config_json,
            diff_ids,
            ..
        } = gathered;
        let store = &self.inner.store;
        let id = ImageId(selected.manifest.config.digest.clone());
        let mut size = config_json.len() as u64;
        for diff_id in &diff_ids {
            size = size.saturating_add(
                store
                    .layer_info(diff_id)
                    .map_or(0, |layer| layer.content_bytes),
            );
        }
        let now = now_ms();
        let record = ImageRecord {
            id: id.clone(),
            platform: config.platform,
            manifest: selected.digest.clone(),
            layers: layer_refs(&selected, &diff_ids),
            created: config.created,
            size: size.max(1),
            user: user_text(config.user.as_ref()),
            labels: bounded_labels(config.labels),
            pulled_at: now,
            last_used_at: now,
            pinned: store.image(&id).is_some_and(|image| image.record.pinned),
            staged,
        };
        let names = names_of(&self.request.reference, &resolved.digest);
        let mut blobs = selected.blobs;
        blobs.push((id.0, config_json));
        self.commit(ImageCommit {
            record,
            names,
            blobs,
        })
        .await
    }

    async fn commit(&self, commit: ImageCommit) -> Result<Arc<Image>, Error> {
        let (store, lease) = (self.inner.store.clone(), self.lease.clone());
        let done = self
            .inner
            .threads
            .block(&self.reference, move || store.commit_image(&commit, &lease))
            .await?;
        done.map_err(|error| Error::store(self.reference.clone(), error))
    }

    fn registry(&self, source: registry::Error) -> Error {
        Error::Registry {
            reference: self.reference.clone(),
            source,
        }
    }

    fn image(&self, cause: String) -> Error {
        Error::Image {
            reference: self.reference.clone(),
            cause,
        }
    }

    fn internal(&self, cause: String) -> Error {
        Error::Internal {
            subject: self.reference.clone(),
            cause,
        }
    }

    fn cancelled(&self) -> Error {
        Error::Cancelled {
            reference: self.reference.clone(),
        }
    }

    fn fault(&self, fault: Fault) -> Error {
        match fault {
            Fault::Count { manifest, config } => self.image(format!(
                "the manifest has {manifest} layers, the config {config} diff_ids; it is no container image, or a broken one: push it again"
            )),
            Fault::Mismatch { blob, expected, found } => {
                Error::DiffIdMismatch { reference: self.reference.clone(), blob, expected, found }
            }
        }
    }
}

/// The slot that is waited for, or never.
async fn next<F: Future>(waiting: &mut Option<Pin<Box<F>>>) -> F::Output {
    match waiting {
        Some(future) => future.as_mut().await,
        None => std::future::pending().await,
    }
}

fn layer_refs(selected: &Selected, diff_ids: &[DiffId]) -> Vec<LayerRef> {
    selected
        .manifest
        .layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| LayerRef {
            diff_id: diff_id.clone(),
            blob: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
        })
        .collect()
}

/// The first labels that fit: a config may hold megabytes of them, and records live in memory.
fn bounded_labels(labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut bytes = 0usize;
    labels
        .into_iter()
        .take(MAX_LABELS)
        .take_while(|(key, value)| {
            bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
            bytes <= MAX_LABEL_BYTES
        })
        .collect()
}

//! What registries have, given on to somebody who asks with credentials of his own: from this node where it is here, else
//! from the registry, keeping it on the way.
//!
//! The registry decides who may have what: it is asked with the credentials that were shown, and nothing that is here is
//! given to who could not fetch it there, by the same name, from the same registry. The node's own credentials are never
//! used for anybody.

mod body;
mod fill;
mod ledger;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;

use crate::image::{Digest, MAX_MANIFEST_BYTES, Reference};
use crate::registry::{self, Access, Credentials, ErrorClass, Repository};

use crate::store::{self, KeptName};

use super::{Cache, Error, Keep};

use body::Source;
use fill::{Fill, Fills, State};
use ledger::{Key, Ledger, Standing, Tagged};

pub use body::{Origin, Relayed};

/// Blobs up to this size are kept whatever the policy says: the configs of images.
const DOCUMENT: u64 = 1 << 20;
/// A reader joins a download that is at most so far behind what it wants.
const NEAR: u64 = 32 << 20;
/// A registry that did not answer is not asked again for so long where there is another way.
const AWAY: Duration = Duration::from_secs(30);
/// Descriptors of one document that count.
const MAX_CHILDREN: usize = 4096;

/// Somebody's question about a repository.
#[derive(Clone, Debug)]
pub struct Asked {
    /// With the tag or digest of a manifest, or the digest of a blob.
    pub reference: Reference,
    /// What he showed.
    pub credentials: Credentials,
    /// W3C trace context, passed on.
    pub traceparent: Option<String>,
}

/// A manifest or index.
#[derive(Clone, Debug)]
pub struct RelayedManifest {
    /// Of its bytes.
    pub digest: Digest,
    /// As the registry says.
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    /// Where it was asked for.
    pub body: Option<Bytes>,
}

/// A blob that somebody may have, or whose registry decides when it is read.
#[derive(Clone, Debug)]
pub struct Grant {
    name: KeptName,
    size: u64,
    proven: bool,
}

impl Grant {
    /// Of the whole blob, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Gives on what registries have. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Relay {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cache: Cache,
    keep: Keep,
    ledger: Mutex<Ledger>,
    fills: Fills,
    /// Registries that did not answer, and when.
    away: Mutex<Vec<(String, Instant)>>,
}

/// Errors are shared: several readers can wait for one download.
type Answer<T> = Result<T, Arc<Error>>;

impl Relay {
    /// Over a cache, whose shutdown ends its downloads, and whose pulls keep blobs by the same policy from now on. The
    /// first policy of a cache counts.
    pub fn new(cache: &Cache, keep: Keep) -> Self {
        let inner = &cache.inner;
        let keep = inner.keeping.get_or_init(|| keep).clone();
        let fills = Fills::new(
            inner.store.clone(),
            inner.threads.clone(),
            inner.tracker.clone(),
            inner.shutdown.clone(),
            keep.clone(),
        );
        Relay {
            inner: Arc::new(Inner {
                cache: cache.clone(),
                keep,
                ledger: Mutex::default(),
                fills,
                away: Mutex::default(),
            }),
        }
    }

    /// A manifest by tag or digest. The registry is asked what a tag names; where it does not answer, what it named last
    /// counts for those who could have it then.
    pub async fn manifest(&self, asked: &Asked, with_body: bool) -> Answer<RelayedManifest> {
        let key = key(asked);
        let repository = self.repository(asked).await?;
        let resolved = self.resolve(asked, &key, &repository).await?;
        let mut manifest = RelayedManifest {
            digest: resolved.digest,
            media_type: resolved.media_type,
            size: resolved.size,
            body: None,
        };
        if !with_body && !manifest.media_type.is_empty() {
            return Ok(manifest);
        }
        let name = kept_name(asked, &manifest.digest);
        let (bytes, media_type, is_new) = match resolved.body {
            Some(bytes) => (bytes, None, !self.is_stored(asked, &name)),
            None => match self.document(asked, &name).await? {
                Some(bytes) => (bytes, None, false),
                None => {
                    let fetched = repository.manifest(&manifest.digest).await;
                    let fetched = fetched.map_err(|error| failed(asked, error))?;
                    (fetched.bytes, Some(fetched.media_type), true)
                }
            },
        };
        let outline = Outline::of(&bytes);
        if manifest.media_type.is_empty() {
            manifest.media_type = media_type.unwrap_or_else(|| outline.media_type());
        }
        manifest.size = bytes.len() as u64;
        self.ledger().name(&key, outline.children(), Instant::now());
        if is_new {
            self.keep_document(asked, name, &bytes).await;
        }
        manifest.body = with_body.then_some(bytes);
        Ok(manifest)
    }

    /// A blob that somebody wants: its size, and whether he has proven already that he may have it. Where it is read next
    /// and not here, the registry is asked by reading it.
    pub async fn blob(&self, asked: &Asked, is_read: bool) -> Answer<Grant> {
        let digest = wanted(asked)?;
        let (key, name) = (key(asked), kept_name(asked, &digest));
        let standing = self.ledger().standing(&key, &digest, Instant::now());
        let granted = |size, proven| Grant {
            name: name.clone(),
            size,
            proven,
        };
        match standing {
            Standing::Proven(size) => return Ok(granted(size, true)),
            Standing::InOutage(size) if self.is_away(asked) => return Ok(granted(size, true)),
            // What is not here is fetched with his own credentials, which is proof enough.
            Standing::Named(size) if is_read && !self.is_here(asked, &name) => {
                return Ok(granted(size, false));
            }
            _ => {}
        }
        let repository = self.repository(asked).await?;
        match repository.blob_size(&digest).await {
            Ok(size) => {
                self.ledger().prove(&key, &digest, size, Instant::now());
                Ok(granted(size, true))
            }
            Err(error) => match (self.judge(asked, &key, &error), standing) {
                (Judgement::Away, Standing::InOutage(size)) => Ok(granted(size, true)),
                (judgement, _) => Err(self.refused(asked, judgement, error)),
            },
        }
    }

    /// Bytes `first..end` of a blob. `end` is at most its size.
    pub async fn read(&self, asked: &Asked, grant: Grant, first: u64, end: u64) -> Answer<Relayed> {
        let Grant { name, size, proven } = grant;
        let (key, subject) = (key(asked), asked.reference.to_string());
        let relayed = |origin, source| {
            let threads = self.inner.cache.inner.threads.clone();
            let range = (first, end.min(size));
            Relayed::new((subject.clone(), size), origin, range, source, threads)
        };
        if first >= end.min(size) && proven {
            return Ok(relayed(Origin::Local, Source::Bytes(Bytes::new())));
        }
        if proven {
            if let Some(source) = self.local(asked, &name).await? {
                return Ok(relayed(Origin::Local, source));
            }
            if let Some(fill) = self.inner.fills.under_way(&name)
                && let Ok(source) = opened(&fill, first).await
            {
                return Ok(relayed(Origin::Shared, source));
            }
        }
        let repository = self.repository(asked).await?;
        if first == 0 && size > 0 && self.keeps(asked, size) {
            let begun = self.inner.fills.begin(fill::Source {
                subject: subject.clone(),
                repository: repository.clone(),
                name: name.clone(),
                size,
                may_join: proven,
            });
            if let Some(fill) = begun.await? {
                let source = opened(&fill, first).await?;
                self.ledger()
                    .prove(&key, name.digest(), size, Instant::now());
                return Ok(relayed(Origin::Registry, source));
            }
        }
        match repository.blob_from(name.digest(), size, first).await {
            Ok(stream) => {
                self.ledger()
                    .prove(&key, name.digest(), size, Instant::now());
                Ok(relayed(Origin::Registry, Source::Stream(Box::new(stream))))
            }
            Err(error) => {
                self.judge(asked, &key, &error);
                Err(failed(asked, error))
            }
        }
    }

    /// Whether a blob is kept on its way through.
    fn keeps(&self, asked: &Asked, size: u64) -> bool {
        size <= DOCUMENT || self.inner.keep.wants(&asked.reference.repository())
    }

    /// What is on this node of it.
    async fn local(&self, asked: &Asked, name: &KeptName) -> Answer<Option<Source>> {
        let (store, name) = (self.inner.cache.inner.store.clone(), name.clone());
        let domain = asked.reference.domain().to_owned();
        let found = self.block(asked, move || {
            if let Some(blob) = store.kept(&name)? {
                return Ok(Some(Source::Kept(Arc::new(blob))));
            }
            Ok(store.blob_of(name.digest(), &domain)?.map(Source::Bytes))
        });
        match found.await? {
            // The registry has it whole.
            Err(store::Error::Damaged { .. }) => Ok(None),
            found => Ok(found.map_err(|error| store_failed(asked, error))?),
        }
    }

    /// Whether it is on this node, or on its way. From memory: what turns out to be damaged is not here after all.
    fn is_here(&self, asked: &Asked, name: &KeptName) -> bool {
        self.inner.fills.under_way(name).is_some() || self.is_stored(asked, name)
    }

    fn is_stored(&self, asked: &Asked, name: &KeptName) -> bool {
        let store = &self.inner.cache.inner.store;
        store.kept_size(name).is_some()
            || store.has_blob_of(name.digest(), asked.reference.domain())
    }

    /// A document that is on this node.
    async fn document(&self, asked: &Asked, name: &KeptName) -> Answer<Option<Bytes>> {
        match self.local(asked, name).await? {
            Some(Source::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Source::Kept(blob)) if blob.size() <= MAX_MANIFEST_BYTES => {
                let read = self.block(asked, move || {
                    let length = usize::try_from(blob.size()).unwrap_or(0);
                    let mut bytes = vec![0; length];
                    let count = blob.read_at(&mut bytes, 0)?;
                    Ok::<_, std::io::Error>((bytes, count == length))
                });
                match read.await? {
                    Ok((bytes, true)) => Ok(Some(bytes.into())),
                    _ => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    /// That it could not be kept costs the next one who asks a request.
    async fn keep_document(&self, asked: &Asked, name: KeptName, bytes: &Bytes) {
        let store = self.inner.cache.inner.store.clone();
        let (bytes, keep) = (bytes.clone(), self.inner.keep.clone());
        let kept = self.block(asked, move || {
            let mut writer = keep.begin(&store, &name, bytes.len() as u64)?;
            writer.write(&bytes)?;
            keep.finish(writer, &store)
        });
        let error = match kept.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(document = %asked.reference, err = error, "A document was not kept");
    }

    async fn resolve(
        &self,
        asked: &Asked,
        key: &Key,
        repository: &Repository,
    ) -> Answer<registry::Resolved> {
        let (now, name) = (Instant::now(), asked.reference.to_string());
        let standing = match asked.reference.digest() {
            Some(digest) => self.ledger().standing(key, digest, now),
            None => Standing::Unknown,
        };
        let known = |digest: &Digest, media_type: &str, size| registry::Resolved {
            digest: digest.clone(),
            media_type: media_type.to_owned(),
            size,
            host: String::new(),
            body: None,
        };
        // Where the registry is away, and for a digest, what was proven counts.
        let before = match (asked.reference.digest(), standing) {
            (Some(digest), Standing::Proven(size)) => return Ok(known(digest, "", size)),
            (Some(digest), Standing::InOutage(size)) => Some(known(digest, "", size)),
            (Some(_), _) => None,
            (None, _) => self
                .ledger()
                .tagged(key, &name, now)
                .map(|tagged| known(&tagged.digest, &tagged.media_type, tagged.size)),
        };
        if self.is_away(asked)
            && let Some(before) = before
        {
            return Ok(before);
        }
        match repository.resolve(&asked.reference).await {
            Ok(resolved) => {
                let mut ledger = self.ledger();
                ledger.prove(key, &resolved.digest, resolved.size, now);
                if asked.reference.digest().is_none() {
                    let tagged = Tagged {
                        digest: resolved.digest.clone(),
                        media_type: resolved.media_type.clone(),
                        size: resolved.size,
                    };
                    ledger.tag(name, tagged, now);
                }
                Ok(resolved)
            }
            Err(error) => match (self.judge(asked, key, &error), before) {
                (Judgement::Away, Some(before)) => Ok(before),
                (judgement, _) => Err(self.refused(asked, judgement, error)),
            },
        }
    }

    /// While the registry is away nobody else asks a runtime for the credentials that would open what is here. Where nobody
    /// has opened anything, the registry's silence is the whole story.
    fn refused(&self, asked: &Asked, judgement: Judgement, error: registry::Error) -> Arc<Error> {
        let anonymous = asked.credentials == Credentials::Anonymous;
        let repository = asked.reference.repository();
        if judgement == Judgement::Away
            && anonymous
            && self.ledger().knows(&repository, Instant::now())
        {
            let reference = asked.reference.to_string();
            return Arc::new(Error::Unproven { reference });
        }
        failed(asked, error)
    }

    /// What an error of the registry means for what was proven.
    fn judge(&self, asked: &Asked, key: &Key, error: &registry::Error) -> Judgement {
        if error.is_transient() {
            let (domain, now) = (asked.reference.domain().to_owned(), Instant::now());
            let mut away = self.away();
            away.retain(|(other, at)| *other != domain && now.duration_since(*at) < AWAY);
            away.push((domain, now));
            return Judgement::Away;
        }
        if let ErrorClass::Unauthenticated | ErrorClass::Denied = error.class() {
            self.ledger().revoke(key);
        }
        Judgement::Refused
    }

    fn is_away(&self, asked: &Asked) -> bool {
        let now = Instant::now();
        let away = self.away();
        let mut away = away.iter();
        away.any(|(domain, at)| {
            domain == asked.reference.domain() && now.duration_since(*at) < AWAY
        })
    }

    async fn repository(&self, asked: &Asked) -> Answer<Repository> {
        let access = Access {
            credentials: asked.credentials.clone(),
            plain_http: false,
            traceparent: asked.traceparent.clone(),
        };
        let (client, reference) = (
            self.inner.cache.inner.registry.clone(),
            asked.reference.clone(),
        );
        let built = self.block(asked, move || client.repository(&reference, access));
        built.await?.map_err(|error| failed(asked, error))
    }

    async fn block<T: Send + 'static>(
        &self,
        asked: &Asked,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Answer<T> {
        let subject = asked.reference.to_string();
        let threads = &self.inner.cache.inner.threads;
        threads.block(&subject, work).await.map_err(Arc::new)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        let ledger = &self.inner.ledger;
        ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self) -> MutexGuard<'_, Vec<(String, Instant)>> {
        let away = &self.inner.away;
        away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// The registry said nothing: what was proven before counts.
    Away,
    /// It said no.
    Refused,
}

fn key(asked: &Asked) -> Key {
    Key {
        repository: asked.reference.repository(),
        who: asked.credentials.fingerprint(),
    }
}

fn kept_name(asked: &Asked, digest: &Digest) -> KeptName {
    KeptName::new(digest, asked.reference.domain())
}

fn wanted(asked: &Asked) -> Answer<Digest> {
    let digest = asked.reference.digest().cloned();
    digest.ok_or_else(|| {
        Arc::new(Error::Invalid(format!(
            "{}: blobs are named by digests",
            asked.reference
        )))
    })
}

fn failed(asked: &Asked, source: registry::Error) -> Arc<Error> {
    Arc::new(Error::Registry {
        reference: asked.reference.to_string(),
        source,
    })
}

fn store_failed(asked: &Asked, source: store::Error) -> Arc<Error> {
    Arc::new(Error::store(asked.reference.to_string(), source))
}

/// A download to read from, once the registry has answered; not one that is far behind.
async fn opened(fill: &Arc<Fill>, first: u64) -> Answer<Source> {
    let mut state = fill.state.clone();
    let begun = state.wait_for(|state| !matches!(state, State::Opening));
    let outcome = match begun.await.as_deref() {
        Ok(State::Failed(error)) => Err(error.clone()),
        Ok(State::Moving(bytes)) if first > bytes.saturating_add(NEAR) => Err(Arc::new(
            Error::Invalid("this download is far behind".to_owned()),
        )),
        Ok(_) => Ok(()),
        Err(_) => Err(Arc::new(Error::Internal {
            subject: "a download".to_owned(),
            cause: "it ended early".to_owned(),
        })),
    };
    outcome.map(|()| Source::Fill(fill.clone(), state))
}

/// What any document of a registry may say; of images and of other artifacts.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Outline {
    media_type: Option<String>,
    config: Option<Child>,
    layers: Vec<Child>,
    manifests: Option<Vec<Child>>,
}

#[derive(Debug, Deserialize)]
struct Child {
    digest: String,
    size: u64,
}

impl Outline {
    /// Of a document that is none, an empty one.
    fn of(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// OCI's documents need not say what they are.
    fn media_type(&self) -> String {
        let guess = match &self.manifests {
            Some(_) => "application/vnd.oci.image.index.v1+json",
            None => "application/vnd.oci.image.manifest.v1+json",
        };
        self.media_type.clone().unwrap_or_else(|| guess.to_owned())
    }

    fn children(&self) -> impl Iterator<Item = (Digest, u64)> + '_ {
        let parts = self.config.iter().chain(&self.layers);
        let parts = parts.chain(self.manifests.iter().flatten());
        let parts = parts.take(MAX_CHILDREN);
        parts.filter_map(|child| Some((child.digest.parse().ok()?, child.size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_tell_what_they_name() {
        let hex = "a".repeat(64);
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{hex}","size":3,"mediaType":"x"}},
                "layers":[{{"digest":"sha256:{}","size":4}},{{"digest":"md5:1","size":5}}]}}"#,
            "b".repeat(64)
        );
        let outline = Outline::of(manifest.as_bytes());
        assert_eq!(
            outline.media_type(),
            "application/vnd.oci.image.manifest.v1+json"
        );
        let sizes: Vec<u64> = outline.children().map(|(_, size)| size).collect();
        assert_eq!(sizes, [3, 4]);
        let index = format!(r#"{{"manifests":[{{"digest":"sha256:{hex}","size":7}}]}}"#);
        let outline = Outline::of(index.as_bytes());
        assert_eq!(
            outline.media_type(),
            "application/vnd.oci.image.index.v1+json"
        );
        assert_eq!(outline.children().count(), 1);
        let docker = br#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#;
        assert!(Outline::of(docker).media_type().contains("docker"));
        assert_eq!(Outline::of(b"<html>").children().count(), 0);
    }
}

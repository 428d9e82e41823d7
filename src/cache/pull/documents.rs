//! From a top-level digest to one platform's manifest, through indexes; from the store where it has them.

use bytes::Bytes;

use crate::cache::Error;
use crate::cache::threads::Threads;
use crate::image::{Config, Descriptor, Digest, Document, Manifest, ManifestError, Platform};
use crate::registry::{Repository, Resolved};
use crate::store::{self, Store};

/// Indexes above a manifest at most.
const MAX_DEPTH: usize = 4;
/// Documents read in one walk at most.
const MAX_DOCUMENTS: usize = 32;
/// A larger image config is refused.
const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// The manifest chosen.
pub(super) struct Selected {
    pub(super) manifest: Manifest,
    pub(super) digest: Digest,
    /// True where an index vouches for the platform; else only the config can tell.
    pub(super) platform_known: bool,
    /// True where all documents were in the store, whole.
    pub(super) stored: bool,
    /// The manifest and the indexes above it, as received.
    pub(super) blobs: Vec<(Digest, Bytes)>,
}

struct Item {
    digest: Digest,
    media_type: String,
    platform_known: bool,
    above: Vec<(Digest, Bytes)>,
}

/// Where documents come from.
pub(super) struct Documents<'a> {
    pub(super) reference: &'a str,
    pub(super) store: &'a Store,
    pub(super) threads: &'a Threads,
    pub(super) repository: &'a Repository,
}

impl Documents<'_> {
    /// Walks from what was resolved to the best manifest for `platform`.
    pub(super) async fn select(
        &self,
        resolved: &Resolved,
        platform: &Platform,
    ) -> Result<Selected, Error> {
        let mut stack = vec![Item {
            digest: resolved.digest.clone(),
            media_type: resolved.media_type.clone(),
            platform_known: false,
            above: Vec::new(),
        }];
        let mut refused = None;
        let mut all_stored = true;
        for _ in 0..MAX_DOCUMENTS {
            let Some(item) = stack.pop() else { break };
            let (bytes, media_type, stored) = self.document(&item, resolved).await?;
            all_stored &= stored;
            let mut blobs = item.above;
            let document = Document::parse(&bytes, media_type.as_deref())
                .map_err(|error| self.refused(&error))?;
            blobs.push((item.digest.clone(), bytes));
            let index = match document {
                Document::Manifest(manifest) => {
                    if !item.platform_known
                        && !stack.is_empty()
                        && let Some(cause) = self.misfit(&manifest, platform).await?
                    {
                        refused = Some(cause);
                        continue;
                    }
                    return Ok(Selected {
                        manifest,
                        digest: item.digest,
                        platform_known: item.platform_known,
                        stored: all_stored,
                        blobs,
                    });
                }
                Document::Index(index) => index,
            };
            if blobs.len() > MAX_DEPTH {
                return Err(self.image(format!(
                    "indexes are nested deeper than {MAX_DEPTH}; push the image with a flat index"
                )));
            }
            match index.candidates(platform) {
                Ok(mut candidates) => {
                    candidates.truncate(MAX_DOCUMENTS);
                    // The best one on top of the stack.
                    let items = candidates.into_iter().rev().map(|descriptor| Item {
                        digest: descriptor.digest.clone(),
                        media_type: descriptor.media_type.clone(),
                        platform_known: descriptor.platform.is_some(),
                        above: blobs.clone(),
                    });
                    stack.extend(items);
                }
                Err(error @ ManifestError::NoPlatform { .. }) => refused = Some(error.to_string()),
                Err(error) => return Err(self.refused(&error)),
            }
        }
        Err(Error::Platform {
            reference: self.reference.to_owned(),
            cause: refused
                .unwrap_or_else(|| format!("no image for platform {platform} in its indexes")),
        })
    }

    /// Why a manifest that an index lists without a platform does not serve: its config tells.
    async fn misfit(
        &self,
        manifest: &Manifest,
        platform: &Platform,
    ) -> Result<Option<String>, Error> {
        let bytes = config(self, &manifest.config).await?;
        let parsed = Config::parse(&bytes).map_err(|error| self.image(error.to_string()))?;
        Ok((!fits(platform, &parsed.platform)).then(|| refusal(platform, &parsed.platform)))
    }

    async fn document(
        &self,
        item: &Item,
        resolved: &Resolved,
    ) -> Result<(Bytes, Option<String>, bool), Error> {
        let media_type = Some(item.media_type.clone()).filter(|media_type| !media_type.is_empty());
        if let Some(bytes) = stored(self.store, self.threads, self.reference, &item.digest).await? {
            return Ok((bytes, media_type, true));
        }
        if let Some(body) = resolved
            .body
            .as_ref()
            .filter(|_| item.digest == resolved.digest)
            && Digest::of(item.digest.algorithm(), body) == item.digest
        {
            return Ok((body.clone(), media_type, false));
        }
        let fetched = self
            .repository
            .manifest(&item.digest)
            .await
            .map_err(|source| Error::Registry {
                reference: self.reference.to_owned(),
                source,
            })?;
        let said = Some(fetched.media_type).filter(|media_type| !media_type.is_empty());
        Ok((fetched.bytes, said.or(media_type), false))
    }

    fn refused(&self, error: &ManifestError) -> Error {
        match error {
            ManifestError::NoPlatform { .. } => Error::Platform {
                reference: self.reference.to_owned(),
                cause: error.to_string(),
            },
            _ => self.image(error.to_string()),
        }
    }

    fn image(&self, cause: String) -> Error {
        Error::Image {
            reference: self.reference.to_owned(),
            cause,
        }
    }
}

/// Whether an image for `offered` serves `wanted`. One that names no platform does.
pub(super) fn fits(wanted: &Platform, offered: &Platform) -> bool {
    offered.os.is_empty() || offered.architecture.is_empty() || wanted.rank(offered).is_some()
}

pub(super) fn refusal(wanted: &Platform, offered: &Platform) -> String {
    format!("no image for platform {wanted}; it offers {offered} only")
}

/// A manifest, index or config from the store. A damaged one counts as absent: fetching it again heals it.
pub(in crate::cache) async fn stored(
    store: &Store,
    threads: &Threads,
    subject: &str,
    digest: &Digest,
) -> Result<Option<Bytes>, Error> {
    let (reader, wanted) = (store.clone(), digest.clone());
    match threads.block(subject, move || reader.blob(&wanted)).await? {
        Ok(found) => Ok(found),
        Err(store::Error::Damaged { subject, cause }) => {
            tracing::warn!(
                subject,
                err = cause,
                "A stored document is damaged, it is fetched again"
            );
            Ok(None)
        }
        Err(error) => Err(Error::store(subject, error)),
    }
}

/// The config of an image: from the store, else from the registry.
pub(super) async fn config(
    documents: &Documents<'_>,
    descriptor: &Descriptor,
) -> Result<Bytes, Error> {
    if let Some(bytes) = stored(
        documents.store,
        documents.threads,
        documents.reference,
        &descriptor.digest,
    )
    .await?
    {
        return Ok(bytes);
    }
    documents
        .repository
        .blob_bytes(descriptor, MAX_CONFIG_BYTES)
        .await
        .map_err(|source| Error::Registry {
            reference: documents.reference.to_owned(),
            source,
        })
}

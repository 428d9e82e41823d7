//! What `inspect` shows: config and manifest as received, layers and who else uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::image::{Config as ImageConfig, DiffId, Digest, ImageId};
use crate::store::{self, Image};

use super::pull::stored;
use super::view::view;
use super::{Error, ImageView, Inner};

/// Everything `inspect` shows.
#[derive(Clone, Debug)]
pub struct ImageDetails {
    /// The image.
    pub image: ImageView,
    /// Parsed config.
    pub config: ImageConfig,
    /// The config blob as received.
    pub config_json: Bytes,
    /// The manifest as received.
    pub manifest_json: Bytes,
    /// Per layer: facts and how many images use it.
    pub layers: Vec<LayerView>,
    /// Of all layers (OCI image specification, "Layer ChainID").
    pub chain_id: Digest,
}

/// A layer as `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerView {
    /// Of the uncompressed tar.
    pub diff_id: DiffId,
    /// Of the compressed blob.
    pub blob: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Uncompressed tar bytes.
    pub tar_bytes: u64,
    /// Images that use it, this one included.
    pub users: u64,
}

pub(super) async fn details(inner: &Inner, image: &Image) -> Result<ImageDetails, Error> {
    let record = &image.record;
    let config_json = needed(inner, &record.id.0, &record.id).await?;
    let manifest_json = needed(inner, &record.manifest, &record.id).await?;
    let config = ImageConfig::parse(&config_json).map_err(|error| Error::Image {
        reference: record.id.to_string(),
        cause: error.to_string(),
    })?;
    let users = users(&inner.store.images());
    let layers = record
        .layers
        .iter()
        .map(|layer| LayerView {
            diff_id: layer.diff_id.clone(),
            blob: layer.blob.clone(),
            size: layer.size,
            tar_bytes: inner
                .store
                .layer_info(&layer.diff_id)
                .map_or(0, |layer| layer.tar_bytes),
            users: users.get(&layer.diff_id).copied().unwrap_or(1),
        })
        .collect();
    Ok(ImageDetails {
        image: view(image, &inner.marks()),
        chain_id: chain_id(record.layers.iter().map(|layer| &layer.diff_id)),
        config,
        config_json,
        manifest_json,
        layers,
    })
}

async fn needed(inner: &Inner, digest: &Digest, image: &ImageId) -> Result<Bytes, Error> {
    let subject = image.to_string();
    stored(&inner.store, &inner.threads, &subject, digest)
        .await?
        .ok_or_else(|| {
            let cause = "missing, or not what was written".to_owned();
            Error::store(
                subject.clone(),
                store::Error::Damaged {
                    subject: digest.to_string(),
                    cause,
                },
            )
        })
}

/// How many images use each layer. An image that has a layer twice counts once.
fn users(images: &[Arc<Image>]) -> BTreeMap<DiffId, u64> {
    let mut users = BTreeMap::new();
    for image in images {
        let distinct: BTreeSet<&DiffId> = image
            .record
            .layers
            .iter()
            .map(|layer| &layer.diff_id)
            .collect();
        for diff_id in distinct {
            *users.entry(diff_id.clone()).or_insert(0) += 1;
        }
    }
    users
}

/// ChainID of a stack of layers, base first. The specification has none for no layers: here it is the digest of nothing.
pub(super) fn chain_id<'a>(mut layers: impl Iterator<Item = &'a DiffId>) -> Digest {
    let Some(base) = layers.next() else {
        return Digest::sha256(b"");
    };
    layers.fold(base.0.clone(), |chain, layer| {
        Digest::sha256(format!("{chain} {layer}").as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let a = DiffId(Digest::sha256(b"a"));
        let b = DiffId(Digest::sha256(b"b"));
        let c = DiffId(Digest::sha256(b"c"));
        assert_eq!(chain_id([&a].into_iter()), a.0);
        let ab = Digest::sha256(format!("{a} {b}").as_bytes());
        assert_eq!(chain_id([&a, &b].into_iter()), ab);
        assert_eq!(
            chain_id([&a, &b, &c].into_iter()),
            Digest::sha256(format!("{ab} {c}").as_bytes())
        );
        assert_eq!(chain_id([].into_iter()), Digest::sha256(b""));
    }
}

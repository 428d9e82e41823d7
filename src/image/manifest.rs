//! Views of manifests and indexes. The raw bytes stay with the caller: digests are of what was received.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::raw::{self, RawPlatform};
use super::{Compression, Digest, MediaType, Platform, excerpt};

/// A larger manifest or index is refused.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// An image with more layers is refused: overlayfs takes 500 lower directories.
pub const MAX_LAYERS: usize = 500;
/// An index with more entries is refused.
pub const MAX_INDEX_ENTRIES: usize = 1000;

/// Config types that mean an image: the two proper ones, and what old registries and tools wrote in their place.
/// An empty type is one of them. Any other type belongs to an artifact.
const LENIENT_CONFIG_TYPES: [&str; 4] = [
    "",
    "application/octet-stream",
    "application/json",
    "text/html",
];

/// Points at a blob or manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// As written in the document.
    pub media_type: String,
    /// Of the bytes pointed at.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Only in an index.
    pub platform: Option<Platform>,
    /// Annotations of the descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// One platform's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The config blob.
    pub config: Descriptor,
    /// Base layer first, at most [`MAX_LAYERS`].
    pub layers: Vec<Descriptor>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// Several platforms' images; entries may be indexes themselves. Entries that say they are another kind of
/// artifact (`artifactType`) are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// In the document's order.
    pub manifests: Vec<Descriptor>,
}

/// What a manifest request can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An image manifest.
    Manifest(Manifest),
    /// An index or manifest list.
    Index(Index),
}

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the shape.
    #[error("the manifest is malformed: {0}; push the image again, with a current tool")]
    Malformed(String),
    /// Docker schema 1.
    #[error(
        "the image has a Docker schema 1 manifest, which is obsolete; push it again with a current docker, or convert it with skopeo copy --format oci"
    )]
    Schema1,
    /// A document type that is not an image.
    #[error("media type {0:?} is not an image manifest or index; name an image")]
    Unsupported(String),
    /// A manifest of something that is no image, such as a chart or a signature.
    #[error(
        "the manifest describes an artifact of type {0:?}, not an image; name an image, or fetch it with a tool for that type"
    )]
    NotAnImage(String),
    /// A layer type that cannot be unpacked.
    #[error(
        "layer {digest} has media type {media_type:?}, which is not a tar, gzip or zstd layer; push the image with such layers"
    )]
    UnsupportedLayer {
        /// Of the layer.
        digest: Digest,
        /// As written in the manifest.
        media_type: String,
    },
    /// Over a limit.
    #[error("the manifest has {found} {what}, the limit is {limit}; build the image with fewer")]
    TooMany {
        /// `layers`, `bytes` or `manifests`.
        what: &'static str,
        /// In the document.
        found: u64,
        /// Allowed.
        limit: u64,
    },
    /// No entry for the platform asked for.
    #[error("no image for platform {wanted}; the index offers {offered}")]
    NoPlatform {
        /// Asked for.
        wanted: String,
        /// Comma-separated, for people; bounded.
        offered: String,
    },
}

/// The fields of both kinds of document, as written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "raw::strings")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default, deserialize_with = "raw::strings")]
    annotations: BTreeMap<String, String>,
}

impl From<RawDescriptor> for Descriptor {
    fn from(raw: RawDescriptor) -> Self {
        Descriptor {
            media_type: raw.media_type.unwrap_or_default(),
            digest: raw.digest,
            size: raw.size,
            platform: raw.platform.map(Platform::from),
            annotations: raw.annotations,
        }
    }
}

impl Document {
    /// Parses a manifest or index. `content_type` is the registry's word, used when the document names no type.
    ///
    /// A document that could be read as either kind is refused, as is one whose own type is another kind of
    /// manifest than the registry says: two readers would see two images under one digest.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        limit("bytes", length, MAX_MANIFEST_BYTES)?;
        if content_type.map(MediaType::parse) == Some(MediaType::Schema1) {
            return Err(ManifestError::Schema1);
        }
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| {
            let sent = content_type.map_or_else(String::new, |sent| {
                format!("; the registry calls it {:?}", excerpt(sent))
            });
            ManifestError::Malformed(format!("{}{sent}", excerpt(&error.to_string())))
        })?;
        match kind(&raw, content_type)? {
            Kind::Manifest => manifest(raw).map(Document::Manifest),
            Kind::Index => index(raw).map(Document::Index),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

/// The document's own type, else the registry's, else the shape; all that are known must agree.
fn kind(raw: &RawDocument, content_type: Option<&str>) -> Result<Kind, ManifestError> {
    let malformed = |reason: &str| Err(ManifestError::Malformed(reason.to_owned()));
    let own = raw.media_type.as_deref().filter(|own| !own.is_empty());
    let own_kind = match own.map(MediaType::parse) {
        None => None,
        Some(MediaType::Manifest) => Some(Kind::Manifest),
        Some(MediaType::Index) => Some(Kind::Index),
        Some(MediaType::Schema1) => return Err(ManifestError::Schema1),
        Some(_) => {
            return Err(ManifestError::Unsupported(excerpt(own.unwrap_or_default())));
        }
    };
    let image = raw.layers.is_some() || raw.config.is_some();
    if raw.schema_version == Some(1) || (raw.fs_layers.is_some() && !image) {
        return Err(ManifestError::Schema1);
    }
    if let Some(version) = raw.schema_version.filter(|version| *version != 2) {
        return Err(ManifestError::Malformed(format!(
            "schemaVersion is {version}, only 2 is known"
        )));
    }
    let sent_kind = match content_type.map(MediaType::parse) {
        Some(MediaType::Manifest) => Some(Kind::Manifest),
        Some(MediaType::Index) => Some(Kind::Index),
        _ => None,
    };
    let shape = match (image, raw.manifests.is_some(), raw.fs_layers.is_some()) {
        (true, false, false) => Kind::Manifest,
        (false, true, false) => Kind::Index,
        (false, false, _) => return malformed("it has neither layers nor manifests"),
        _ => {
            return malformed(
                "it could be read as more than one kind of manifest, which is not safe",
            );
        }
    };
    if own_kind.is_some_and(|own| own != shape) {
        return malformed("its fields are not those of its mediaType");
    }
    if sent_kind.is_some_and(|sent| sent != shape) {
        return Err(ManifestError::Malformed(format!(
            "the registry calls it {:?}, but it is {}",
            excerpt(content_type.unwrap_or_default()),
            match shape {
                Kind::Manifest => "an image manifest",
                Kind::Index => "an index",
            }
        )));
    }
    Ok(shape)
}

fn manifest(raw: RawDocument) -> Result<Manifest, ManifestError> {
    let Some(config) = raw.config else {
        return Err(ManifestError::Malformed("it names no config".to_owned()));
    };
    let config = Descriptor::from(config);
    if MediaType::parse(&config.media_type) != MediaType::Config
        && !LENIENT_CONFIG_TYPES.contains(&config.media_type.as_str())
    {
        let named = raw.artifact_type.filter(|named| !named.is_empty());
        return Err(ManifestError::NotAnImage(excerpt(
            &named.unwrap_or(config.media_type),
        )));
    }
    let layers = raw.layers.unwrap_or_default();
    limit("layers", count(&layers), MAX_LAYERS as u64)?;
    let layers: Vec<Descriptor> = layers.into_iter().map(Descriptor::from).collect();
    for layer in &layers {
        layer.compression()?;
    }
    Ok(Manifest {
        config,
        layers,
        annotations: raw.annotations,
    })
}

fn index(raw: RawDocument) -> Result<Index, ManifestError> {
    let manifests = raw.manifests.unwrap_or_default();
    limit("manifests", count(&manifests), MAX_INDEX_ENTRIES as u64)?;
    let is_image = |entry: &RawDescriptor| {
        entry
            .artifact_type
            .as_deref()
            .is_none_or(|named| named.is_empty() || MediaType::parse(named) == MediaType::Config)
    };
    Ok(Index {
        manifests: manifests
            .into_iter()
            .filter(is_image)
            .map(Descriptor::from)
            .collect(),
    })
}

fn count<T>(list: &[T]) -> u64 {
    u64::try_from(list.len()).unwrap_or(u64::MAX)
}

fn limit(what: &'static str, found: u64, limit: u64) -> Result<(), ManifestError> {
    if found > limit {
        return Err(ManifestError::TooMany { what, found, limit });
    }
    Ok(())
}

impl Index {
    /// Entries that can serve `platform`, best first, document order among equals. Entries that name no platform
    /// come last in document order, nested indexes among them, since only fetching tells: the caller checks the
    /// platform of the config it then reads. Attestations (`unknown/unknown`) are left out.
    ///
    /// Never answers an empty list: that is [`ManifestError::NoPlatform`].
    pub fn candidates(&self, platform: &Platform) -> Result<Vec<&Descriptor>, ManifestError> {
        let mut found: Vec<(u32, &Descriptor)> = self
            .manifests
            .iter()
            .filter(|entry| entry.may_be_image())
            .filter_map(|entry| match &entry.platform {
                Some(offered) => Some((platform.rank(offered)?, entry)),
                None => Some((u32::MAX, entry)),
            })
            .collect();
        if found.is_empty() {
            return Err(ManifestError::NoPlatform {
                wanted: platform.to_string(),
                offered: self.offered(),
            });
        }
        // A stable sort: equals stay in document order.
        found.sort_by_key(|(rank, _)| *rank);
        Ok(found.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Each platform once, in document order, at most 20.
    pub fn offered(&self) -> String {
        const MOST: usize = 20;
        let mut names: Vec<String> = Vec::new();
        let mut more = false;
        for entry in self.manifests.iter().filter(|entry| entry.may_be_image()) {
            let Some(platform) = &entry.platform else {
                continue;
            };
            let name = excerpt(&platform.to_string());
            if names.contains(&name) {
                continue;
            }
            if names.len() == MOST {
                more = true;
                break;
            }
            names.push(name);
        }
        if names.is_empty() {
            return "none".to_owned();
        }
        if more {
            names.push("...".to_owned());
        }
        names.join(", ")
    }
}

impl Descriptor {
    /// How this layer is compressed.
    pub fn compression(&self) -> Result<Compression, ManifestError> {
        match MediaType::parse(&self.media_type) {
            MediaType::Layer(compression) => Ok(compression),
            _ => Err(ManifestError::UnsupportedLayer {
                digest: self.digest.clone(),
                media_type: excerpt(&self.media_type),
            }),
        }
    }

    /// Whether an entry of an index can lead to an image.
    fn may_be_image(&self) -> bool {
        let attestation = self
            .platform
            .as_ref()
            .is_some_and(|p| p.os == "unknown" || p.architecture == "unknown")
            || self.annotations.contains_key("vnd.docker.reference.type");
        let kind = MediaType::parse(&self.media_type);
        !attestation
            && (self.media_type.is_empty()
                || matches!(kind, MediaType::Manifest | MediaType::Index))
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;

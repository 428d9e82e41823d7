//! Views of manifests and indexes. The raw bytes stay with the caller: digests are of what was received.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::shorten;
use super::{Compression, Digest, MediaType, Platform};

/// A larger manifest or index is refused.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// An image with more layers is refused: overlayfs takes 500 lower directories.
pub const MAX_LAYERS: usize = 500;
/// An index with more entries is refused.
const MAX_INDEX_ENTRIES: usize = 1000;
/// Platforms named in an error.
const MAX_OFFERED: usize = 16;

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

/// Several platforms' images; entries may be indexes themselves.
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
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// Docker schema 1.
    #[error(
        "the image has a Docker schema 1 manifest, which is obsolete; push it again with a current docker, or convert it with skopeo copy --format oci"
    )]
    Schema1,
    /// A document type that is not an image.
    #[error("media type {0:?} is not an image manifest or index")]
    Unsupported(String),
    /// A manifest whose config says that it is not a container image.
    #[error(
        "config media type {0:?} is not an image config: this is an artifact, not a container image"
    )]
    NotAnImage(String),
    /// A layer type that cannot be unpacked.
    #[error("layer {digest} has media type {media_type:?}, which is not a tar, gzip or zstd layer")]
    UnsupportedLayer {
        /// Of the layer.
        digest: Digest,
        /// As written in the manifest.
        media_type: String,
    },
    /// Over a limit.
    #[error("the manifest has {found} {what}, the limit is {limit}")]
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: i64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default, rename = "os.version")]
    os_version: String,
}

impl RawDescriptor {
    fn read(self) -> Result<Descriptor, ManifestError> {
        let size = u64::try_from(self.size).map_err(|_| {
            ManifestError::Malformed(format!("{} has negative size {}", self.digest, self.size))
        })?;
        Ok(Descriptor {
            media_type: self.media_type,
            digest: self.digest,
            size,
            platform: self.platform.map(|raw| {
                let mut platform = Platform::new(&raw.os, &raw.architecture, &raw.variant);
                platform.os_version = raw.os_version;
                platform
            }),
            annotations: self.annotations.unwrap_or_default(),
        })
    }
}

impl Document {
    /// Parses a manifest or index. The document's own `mediaType` counts; `content_type` is the registry's word, used
    /// where the document names no type. A document that could be read both ways is refused, as the OCI
    /// specification advises.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooMany {
                what: "bytes",
                found: bytes.len() as u64,
                limit: MAX_MANIFEST_BYTES,
            });
        }
        let said = content_type.map(MediaType::parse);
        if said == Some(MediaType::Schema1) {
            return Err(ManifestError::Schema1);
        }
        let raw: RawDocument = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let own = raw
            .media_type
            .as_deref()
            .filter(|text| !text.is_empty())
            .map(|text| (text, MediaType::parse(text)));
        let kind = match (own, said) {
            (Some((_, MediaType::Schema1)), _) => return Err(ManifestError::Schema1),
            (Some((_, own @ (MediaType::Manifest | MediaType::Index))), Some(said))
                if matches!(said, MediaType::Manifest | MediaType::Index) && own != said =>
            {
                return Err(ManifestError::Malformed(
                    "the content type says one of manifest and index, the document the other"
                        .into(),
                ));
            }
            (Some((_, own @ (MediaType::Manifest | MediaType::Index))), _) => own,
            (Some((text, _)), _) => return Err(ManifestError::Unsupported(shorten(text))),
            (None, Some(said @ (MediaType::Manifest | MediaType::Index))) => said,
            (None, _) if raw.manifests.is_some() => MediaType::Index,
            (None, _) if raw.config.is_some() => MediaType::Manifest,
            (None, _) => {
                return Err(ManifestError::Malformed(
                    "it has neither a config nor manifests".into(),
                ));
            }
        };
        if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
            return Err(ManifestError::Malformed(
                "it has both manifests and a config or layers".into(),
            ));
        }
        if kind == MediaType::Index {
            let manifests = raw
                .manifests
                .ok_or_else(|| ManifestError::Malformed("the index has no manifests".into()))?;
            return Ok(Document::Index(Index {
                manifests: read_all(manifests, "manifests", MAX_INDEX_ENTRIES)?,
            }));
        }
        let config = raw
            .config
            .ok_or_else(|| ManifestError::Malformed("the manifest has no config".into()))?
            .read()?;
        if !config.media_type.is_empty()
            && MediaType::parse(&config.media_type) != MediaType::Config
        {
            return Err(ManifestError::NotAnImage(shorten(&config.media_type)));
        }
        let layers = raw
            .layers
            .ok_or_else(|| ManifestError::Malformed("the manifest has no layers".into()))?;
        let layers = read_all(layers, "layers", MAX_LAYERS)?;
        for layer in &layers {
            layer.compression()?;
        }
        Ok(Document::Manifest(Manifest {
            config,
            layers,
            annotations: raw.annotations.unwrap_or_default(),
        }))
    }
}

fn read_all(
    raw: Vec<RawDescriptor>,
    what: &'static str,
    limit: usize,
) -> Result<Vec<Descriptor>, ManifestError> {
    if raw.len() > limit {
        return Err(ManifestError::TooMany {
            what,
            found: raw.len() as u64,
            limit: limit as u64,
        });
    }
    raw.into_iter().map(RawDescriptor::read).collect()
}

impl Index {
    /// Entries that can serve `platform`, best first, document order among equals. Nested indexes that name no
    /// platform come after them, since only fetching tells what they hold.
    pub fn candidates(&self, platform: &Platform) -> Result<Vec<&Descriptor>, ManifestError> {
        let mut ranked: Vec<(u32, &Descriptor)> = Vec::new();
        for entry in &self.manifests {
            let kind = MediaType::parse(&entry.media_type);
            match (&entry.platform, kind) {
                (Some(offered), MediaType::Manifest | MediaType::Index) => {
                    if let Some(rank) = platform.rank(offered) {
                        ranked.push((rank, entry));
                    }
                }
                // Without a platform only the config, or the nested index, can tell.
                (None, MediaType::Manifest) => ranked.push((u32::MAX - 1, entry)),
                (None, MediaType::Index) => ranked.push((u32::MAX, entry)),
                _ => {}
            }
        }
        if ranked.is_empty() {
            return Err(ManifestError::NoPlatform {
                wanted: platform.to_string(),
                offered: self.offered(),
            });
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        Ok(ranked.into_iter().map(|(_, entry)| entry).collect())
    }

    /// The platforms of the entries, for people: sorted, each once, at most 16. Attestations are left out.
    pub fn offered(&self) -> String {
        let mut platforms: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(|platform| shorten(&platform.to_string()))
            .collect();
        platforms.sort();
        platforms.dedup();
        let more = platforms.len().saturating_sub(MAX_OFFERED);
        platforms.truncate(MAX_OFFERED);
        match (platforms.is_empty(), more) {
            (true, _) => "none".to_owned(),
            (false, 0) => platforms.join(", "),
            (false, more) => format!("{} and {more} more", platforms.join(", ")),
        }
    }
}

impl Descriptor {
    /// How this layer is compressed.
    pub fn compression(&self) -> Result<Compression, ManifestError> {
        match MediaType::parse(&self.media_type) {
            MediaType::Layer(compression) => Ok(compression),
            _ => Err(ManifestError::UnsupportedLayer {
                digest: self.digest.clone(),
                media_type: shorten(&self.media_type),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn descriptor(media_type: &str, n: u32) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{n:064x}","size":{n}}}"#)
    }

    fn manifest(layers: usize) -> String {
        let layers: Vec<_> = (0..layers).map(|n| descriptor(GZIP, n as u32)).collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(OCI_CONFIG, 7),
            layers.join(",")
        )
    }

    fn index(entries: &[(&str, &str)]) -> Index {
        let entries: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(n, (media_type, platform))| {
                let platform = match platform.split('/').collect::<Vec<_>>()[..] {
                    [os, arch] => format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#),
                    [os, arch, variant] => format!(
                        r#","platform":{{"os":"{os}","architecture":"{arch}","variant":"{variant}"}}"#
                    ),
                    _ => String::new(),
                };
                format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{n:064x}","size":1{platform}}}"#)
            })
            .collect();
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        match Document::parse(text.as_bytes(), Some(OCI_INDEX)).unwrap() {
            Document::Index(index) => index,
            other => panic!("{other:?}"),
        }
    }

    fn error(text: &str, content_type: Option<&str>) -> String {
        Document::parse(text.as_bytes(), content_type)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn reads_manifests() {
        for content_type in [None, Some(OCI_MANIFEST), Some("application/json")] {
            match Document::parse(manifest(3).as_bytes(), content_type).unwrap() {
                Document::Manifest(m) => {
                    assert_eq!(m.layers.len(), 3);
                    assert_eq!(m.layers[0].compression(), Ok(Compression::Gzip));
                    assert_eq!(m.config.size, 7);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        let two = format!(
            r#"{{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}}"#,
            descriptor(OCI_CONFIG, 1)
        );
        let helm = manifest(1).replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        for (text, content_type, reason) in [
            ("<html>".to_owned(), None, "malformed"),
            ("{}".to_owned(), None, "neither"),
            ("[]".to_owned(), None, "malformed"),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
                None,
                "schema 1",
            ),
            (
                manifest(1),
                Some("application/vnd.docker.distribution.manifest.v1+json"),
                "schema 1",
            ),
            (manifest(1), Some(OCI_INDEX), "the other"),
            (manifest(501), None, "501 layers"),
            (
                manifest(1).replace(GZIP, "application/x-brotli"),
                None,
                "not a tar",
            ),
            (
                manifest(1).replace(OCI_MANIFEST, "application/x-thing"),
                None,
                "not an image manifest",
            ),
            (
                manifest(1).replace("\"size\":7", "\"size\":-7"),
                None,
                "negative",
            ),
            (manifest(1).replace("sha256:", "md5:"), None, "sha256"),
            (two, Some(OCI_INDEX), "both"),
            (helm, None, "artifact"),
            (" ".repeat((4 << 20) + 1), None, "limit"),
        ] {
            let error = error(&text, content_type);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn picks_the_best_platform() {
        let index = index(&[
            (OCI_MANIFEST, "linux/arm64"),
            (OCI_MANIFEST, "linux/386"),
            (OCI_MANIFEST, "linux/amd64"),
            (OCI_MANIFEST, "linux/amd64/v2"),
            (OCI_MANIFEST, "unknown/unknown"),
            (OCI_INDEX, ""),
        ]);
        let order = |platform: &str| -> Vec<String> {
            index
                .candidates(&platform.parse().unwrap())
                .unwrap()
                .iter()
                .map(|d| d.digest.hex().trim_start_matches('0').to_owned())
                .collect()
        };
        assert_eq!(order("linux/amd64"), ["2", "1", "5"]);
        assert_eq!(order("linux/amd64/v3"), ["3", "2", "1", "5"]);
        assert_eq!(order("linux/arm64/v8"), ["", "5"]);
    }

    #[test]
    fn tells_what_is_offered() {
        let index = index(&[
            (OCI_MANIFEST, "linux/arm64"),
            (OCI_MANIFEST, "unknown/unknown"),
            (OCI_MANIFEST, "linux/amd64"),
        ]);
        let error = index
            .candidates(&"windows/amd64".parse().unwrap())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no image for platform windows/amd64; the index offers linux/amd64, linux/arm64"
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,300}") {
            let _ = Document::parse(text.as_bytes(), None);
        }
    }
}

//! Media types of manifests, indexes, configs and layers.

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain tar.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

/// What a media type says a document or blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// OCI image manifest or Docker schema 2 manifest.
    Manifest,
    /// OCI index or Docker manifest list.
    Index,
    /// OCI or Docker image config.
    Config,
    /// A layer tar with its compression (non-distributable and foreign layers included).
    Layer(Compression),
    /// Docker schema 1, which is refused.
    Schema1,
    /// Anything else.
    Unknown,
}

/// Value of the `Accept` header when a manifest is asked for.
///
/// Indexes come first, so that a registry that can answer either sends the index. The wildcard at the end
/// makes a registry send what it has instead of a bare 404, so that the error can name the type.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

/// Layer types without their compression suffix.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

impl MediaType {
    /// Classifies a media type as a document or an HTTP header writes it. Parameters such as `; charset=utf-8`
    /// do not matter, nor does case (RFC 9110 §8.3.1).
    pub fn parse(text: &str) -> Self {
        let essence = text.split(';').next().unwrap_or_default();
        let essence = essence.trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => MediaType::Manifest,
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => MediaType::Index,
            "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json" => MediaType::Config,
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => MediaType::Schema1,
            other => layer(other).map_or(MediaType::Unknown, MediaType::Layer),
        }
    }
}

/// OCI joins the compression with `+`, Docker with `.`; both are taken for both, as tools mix them up.
fn layer(essence: &str) -> Option<Compression> {
    let suffix = LAYER_TYPES
        .iter()
        .find_map(|kind| essence.strip_prefix(kind))?;
    match suffix {
        "" => Some(Compression::None),
        "+gzip" | ".gzip" => Some(Compression::Gzip),
        "+zstd" | ".zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies() {
        use Compression::{Gzip, None, Zstd};
        use MediaType::{Config, Index, Layer, Manifest, Schema1, Unknown};
        for (text, want) in [
            ("application/vnd.oci.image.manifest.v1+json", Manifest),
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                Manifest,
            ),
            (
                "Application/VND.oci.image.manifest.v1+json; charset=utf-8",
                Manifest,
            ),
            ("application/vnd.oci.image.index.v1+json", Index),
            (
                "application/vnd.docker.distribution.manifest.list.v2+json",
                Index,
            ),
            ("application/vnd.oci.image.config.v1+json", Config),
            ("application/vnd.docker.container.image.v1+json", Config),
            (
                "application/vnd.docker.distribution.manifest.v1+json",
                Schema1,
            ),
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                Schema1,
            ),
            ("application/vnd.oci.image.layer.v1.tar", Layer(None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Layer(Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Layer(Zstd)),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar",
                Layer(None),
            ),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                Layer(Gzip),
            ),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
                Layer(Zstd),
            ),
            ("application/vnd.docker.image.rootfs.diff.tar", Layer(None)),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Layer(Gzip),
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.zstd",
                Layer(Zstd),
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                Layer(Gzip),
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar",
                Layer(None),
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                Unknown,
            ),
            ("application/vnd.oci.image.layer.v1.tarball", Unknown),
            ("application/vnd.oci.empty.v1+json", Unknown),
            ("application/json", Unknown),
            ("", Unknown),
            (";", Unknown),
        ] {
            assert_eq!(MediaType::parse(text), want, "{text}");
        }
    }

    #[test]
    fn accepts_every_type_it_can_read() {
        let kinds: Vec<_> = MANIFEST_ACCEPT
            .split(',')
            .map(|one| MediaType::parse(one.trim()))
            .collect();
        use MediaType::{Index, Manifest, Unknown};
        assert_eq!(kinds, [Index, Index, Manifest, Manifest, Unknown]);
        assert!(!MANIFEST_ACCEPT.contains("  "));
    }
}

//! Media types of manifests, indexes, configs and layers, in their OCI and Docker spellings.

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
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

impl MediaType {
    /// Reads a media type; parameters such as `; charset=utf-8` do not matter.
    pub fn parse(text: &str) -> Self {
        let essence = text.split(';').next().unwrap_or_default().trim();
        match essence.to_ascii_lowercase().as_str() {
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => MediaType::Manifest,
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => MediaType::Index,
            "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json" => MediaType::Config,
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => MediaType::Schema1,
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => {
                MediaType::Layer(Compression::None)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
                MediaType::Layer(Compression::Gzip)
            }
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd" => {
                MediaType::Layer(Compression::Zstd)
            }
            _ => MediaType::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_both_spellings() {
        for (text, kind) in [
            (
                "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
                MediaType::Manifest,
            ),
            (
                "application/vnd.docker.distribution.manifest.list.v2+json",
                MediaType::Index,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                MediaType::Layer(Compression::Gzip),
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                MediaType::Layer(Compression::Zstd),
            ),
            (
                "application/vnd.oci.image.layer.v1.tar",
                MediaType::Layer(Compression::None),
            ),
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                MediaType::Schema1,
            ),
            ("text/html", MediaType::Unknown),
            ("", MediaType::Unknown),
        ] {
            assert_eq!(MediaType::parse(text), kind, "{text}");
        }
    }
}

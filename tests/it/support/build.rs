//! Builds small images as bytes: layers, configs, manifests and indexes.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use larder::image::Digest;
use serde_json::{Value, json};

/// OCI media types the builder writes.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A layer: its tar and the blob that carries it.
#[derive(Clone)]
pub(crate) struct BuiltLayer {
    pub(crate) diff_id: String,
    pub(crate) blob: Vec<u8>,
    pub(crate) digest: String,
    pub(crate) media_type: &'static str,
}

/// A tar of regular files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

pub(crate) fn gzip(tar: &[u8]) -> BuiltLayer {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    layer(tar, encoder.finish().unwrap(), GZIP)
}

pub(crate) fn zstd(tar: &[u8]) -> BuiltLayer {
    layer(tar, zstd::encode_all(tar, 3).unwrap(), ZSTD)
}

pub(crate) fn layer(tar: &[u8], blob: Vec<u8>, media_type: &'static str) -> BuiltLayer {
    BuiltLayer {
        diff_id: digest(tar),
        digest: digest(&blob),
        blob,
        media_type,
    }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// One platform's image.
#[derive(Clone)]
pub(crate) struct BuiltImage {
    pub(crate) layers: Vec<BuiltLayer>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl BuiltImage {
    pub(crate) fn new(layers: &[BuiltLayer]) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        Self::with_config(layers, &config("amd64", &diff_ids))
    }

    pub(crate) fn with_config(layers: &[BuiltLayer], config: &Value) -> Self {
        let config = serde_json::to_vec(config).unwrap();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() },
            "layers": layers.iter().map(|layer| json!({
                "mediaType": layer.media_type, "digest": layer.digest, "size": layer.blob.len()
            })).collect::<Vec<_>>(),
        });
        BuiltImage {
            layers: layers.to_vec(),
            config,
            manifest: serde_json::to_vec(&manifest).unwrap(),
        }
    }

    pub(crate) fn id(&self) -> String {
        digest(&self.config)
    }

    pub(crate) fn digest(&self) -> String {
        digest(&self.manifest)
    }
}

/// A config for linux and an architecture.
pub(crate) fn config(architecture: &str, diff_ids: &[&str]) -> Value {
    json!({
        "os": "linux",
        "architecture": architecture,
        "created": "2024-01-02T03:04:05Z",
        "config": { "User": "1002:users", "Labels": { "maker": "test" } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [],
    })
}

/// An index over manifests with their platforms (`os/architecture`, or empty for none).
pub(crate) fn index(entries: &[(&str, &[u8], &str)]) -> Vec<u8> {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|(platform, bytes, media_type)| {
            let mut entry =
                json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() });
            if let Some((os, architecture)) = platform.split_once('/') {
                entry["platform"] = json!({ "os": os, "architecture": architecture });
            }
            entry
        })
        .collect();
    serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
        .unwrap()
}

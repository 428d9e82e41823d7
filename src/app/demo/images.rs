//! The demo's images: made in memory, always the same, related as images of one team are.

use std::collections::HashMap;
use std::io::Write;

use bytes::Bytes;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::image::{Digest, Platform};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// One image, as it was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// `shop/web:1`, without a host.
    pub name: &'static str,
    /// In a few words.
    pub about: &'static str,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Bytes of its uncompressed layers.
    pub tar_bytes: u64,
    /// Bytes of its compressed layers.
    pub blob_bytes: u64,
    /// Bytes of those of its layers, compressed and uncompressed, that no image before it has: what it would add to
    /// a store that keeps both.
    pub own_bytes: u64,
}

/// All images with their blobs and manifests.
#[derive(Debug)]
pub struct Images {
    /// In the order in which they are shown.
    pub built: Vec<Built>,
    pub(super) blobs: HashMap<Digest, Bytes>,
    pub(super) manifests: HashMap<Digest, Bytes>,
}

/// A layer's files and the time they were built at.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Recipe {
    part: Part,
    mtime: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Base,
    Libraries,
    /// The same libraries, a few of them one release newer, in another team's layer.
    NewerLibraries,
    Web,
    Worker,
}

struct Layer {
    diff_id: Digest,
    tar_bytes: u64,
    gzip: (Digest, Bytes),
    zstd: Option<(Digest, Bytes)>,
}

impl Images {
    /// Builds everything: about 300 MB of tar, on all cores. Blocking.
    pub fn build() -> Self {
        let at = |part, mtime| Recipe { part, mtime };
        let (monday, friday) = (1_700_000_000, 1_700_345_600);
        let web = [
            at(Part::Base, monday),
            at(Part::Libraries, monday),
            at(Part::Web, monday),
        ];
        let worker = [
            at(Part::Base, monday),
            at(Part::NewerLibraries, friday),
            at(Part::Worker, friday),
        ];
        let again = web.map(|recipe| at(recipe.part, friday));
        let mut recipes: Vec<Recipe> = web.iter().chain(&worker).chain(&again).copied().collect();
        recipes.dedup();
        let mut made: HashMap<Recipe, Layer> = HashMap::new();
        std::thread::scope(|scope| {
            let mut under_way = Vec::new();
            for recipe in recipes {
                if under_way.iter().any(|(known, _)| *known == recipe) {
                    continue;
                }
                let twin = web.contains(&recipe);
                under_way.push((recipe, scope.spawn(move || layer(recipe, twin))));
            }
            for (recipe, thread) in under_way {
                let layer = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                made.insert(recipe, layer);
            }
        });
        let mut images = Images {
            built: Vec::new(),
            blobs: HashMap::new(),
            manifests: HashMap::new(),
        };
        images.add("shop/web:1", "a web shop", &web, &made, false);
        images.add(
            "shop/worker:1",
            "its worker, with newer libraries",
            &worker,
            &made,
            false,
        );
        images.add(
            "shop/web:2",
            "the shop built again, nothing changed",
            &again,
            &made,
            false,
        );
        images.add(
            "shop/web:1-zstd",
            "the shop compressed otherwise",
            &web,
            &made,
            true,
        );
        images
    }

    fn add(
        &mut self,
        name: &'static str,
        about: &'static str,
        recipes: &[Recipe],
        made: &HashMap<Recipe, Layer>,
        zstd: bool,
    ) {
        let layers: Vec<&Layer> = recipes
            .iter()
            .filter_map(|recipe| made.get(recipe))
            .collect();
        let platform = Platform::host();
        let config = Bytes::from(
            json!({
                "architecture": platform.architecture, "os": platform.os,
                "created": "2026-01-01T00:00:00Z",
                "config": { "Cmd": ["/usr/bin/tool-0"], "Labels": { "demo": name } },
                "rootfs": {
                    "type": "layers",
                    "diff_ids": layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>(),
                },
            })
            .to_string(),
        );
        let config_digest = Digest::sha256(&config);
        let (mut blob_bytes, mut own_bytes) = (0, 0);
        let mut descriptors = Vec::new();
        for layer in &layers {
            let (media_type, (digest, bytes)) = match &layer.zstd {
                Some(blob) if zstd => (OCI_ZSTD, blob),
                _ => (OCI_GZIP, &layer.gzip),
            };
            blob_bytes += bytes.len() as u64;
            if !self.blobs.contains_key(digest) {
                own_bytes += layer.tar_bytes + bytes.len() as u64;
            }
            descriptors.push(json!({
                "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len(),
            }));
            self.blobs.insert(digest.clone(), bytes.clone());
        }
        let manifest = Bytes::from(
            json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST,
                "config": {
                    "mediaType": OCI_CONFIG, "digest": config_digest.to_string(), "size": config.len(),
                },
                "layers": descriptors,
            })
            .to_string(),
        );
        let digest = Digest::sha256(&manifest);
        self.blobs.insert(config_digest, config);
        self.manifests.insert(digest.clone(), manifest);
        self.built.push(Built {
            name,
            about,
            manifest: digest,
            tar_bytes: layers.iter().map(|layer| layer.tar_bytes).sum(),
            blob_bytes,
            own_bytes,
        });
    }
}

fn layer(recipe: Recipe, twin: bool) -> Layer {
    let tar = tar(recipe);
    let mut gzip = GzEncoder::new(Vec::new(), Level::fast());
    // Writing to memory cannot fail.
    let _ = gzip.write_all(&tar);
    let gzip = gzip.finish().unwrap_or_default();
    let zstd = twin.then(|| {
        let bytes = zstd::bulk::compress(&tar, 1).unwrap_or_default();
        (Digest::sha256(&bytes), Bytes::from(bytes))
    });
    Layer {
        diff_id: Digest::sha256(&tar),
        tar_bytes: tar.len() as u64,
        gzip: (Digest::sha256(&gzip), gzip.into()),
        zstd,
    }
}

fn tar(recipe: Recipe) -> Vec<u8> {
    let mut tar = Tar {
        bytes: Vec::new(),
        mtime: recipe.mtime,
    };
    match recipe.part {
        Part::Base => {
            tar.folder("etc/");
            tar.file("etc/demo-release", b"larder demo 1\n");
            for n in 0..60 {
                tar.file(&format!("usr/bin/tool-{n}"), &binary(n, 700_000));
            }
            for n in 0..2500 {
                let name = format!("usr/share/doc/package-{}/file-{n}.txt", n % 97);
                tar.file(&name, &prose(n, 200 + (n * 37) % 6000));
            }
        }
        Part::Libraries | Part::NewerLibraries => {
            let newer = recipe.part == Part::NewerLibraries;
            for n in 0..60 {
                let seed = if newer && n % 20 == 0 { 9000 } else { 1000 };
                let name = format!("opt/lib/native-{n}.so");
                tar.file(&name, &binary(seed + n, 600_000));
            }
            for n in 0..3000 {
                let seed = if newer && n % 50 == 0 { 90_000 } else { 10_000 };
                let name = format!("opt/lib/module-{}/part-{n}.py", n % 61);
                tar.file(&name, &prose(seed + n, 300 + (n * 53) % 9000));
            }
        }
        Part::Web | Part::Worker => {
            let seed = if recipe.part == Part::Web {
                50_000
            } else {
                60_000
            };
            for n in 0..300 {
                tar.file(
                    &format!("srv/app/view-{n}.py"),
                    &prose(seed + n, 500 + n * 11),
                );
            }
        }
    }
    tar.finish()
}

/// Words in an order that `seed` decides.
fn prose(seed: u64, len: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "shelf ",
        "flour ",
        "jar ",
        "salt ",
        "keep ",
        "cool ",
        "and ",
        "dry ",
        "the ",
        "larder ",
        "holds ",
        "what ",
        "you ",
        "need ",
        "tomorrow ",
        "apple\n",
    ];
    let mut random = vec![0; (len / 4) as usize + 2];
    fill(seed, &mut random);
    let mut text = Vec::with_capacity(len as usize + 16);
    let mut picks = random.iter().cycle();
    while (text.len() as u64) < len {
        let pick = picks.next().copied().unwrap_or(0) as usize % WORDS.len();
        text.extend(WORDS.get(pick).copied().unwrap_or_default().as_bytes());
    }
    text
}

/// Half noise, half pattern: about as compressible as a program.
fn binary(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(seed, &mut bytes);
    for (at, chunk) in bytes.chunks_mut(64).enumerate() {
        if at % 2 == 0 {
            chunk.fill((at / 512) as u8);
        }
    }
    bytes
}

fn fill(seed: u64, bytes: &mut [u8]) {
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(bytes);
}

/// A tar in the ustar format, as far as the demo needs it.
struct Tar {
    bytes: Vec<u8>,
    mtime: u64,
}

impl Tar {
    fn folder(&mut self, name: &str) {
        self.header(name, 0, b'5', 0o755);
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        self.header(name, content.len(), b'0', 0o644);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// Fields at their places (POSIX.1-1988); the checksum is summed with its own field as spaces.
    fn header(&mut self, name: &str, size: usize, kind: u8, mode: u32) {
        let mut header = Vec::with_capacity(512);
        let mut field = |text: String, len: usize| {
            let mut bytes = text.into_bytes();
            bytes.resize(len, 0);
            header.extend(bytes);
        };
        field(name.to_owned(), 100);
        field(format!("{mode:07o}"), 8);
        field(format!("{:07o}", 0), 8);
        field(format!("{:07o}", 0), 8);
        field(format!("{size:011o}"), 12);
        field(format!("{:011o}", self.mtime), 12);
        field(" ".repeat(8), 8);
        field(char::from(kind).to_string(), 1);
        field(String::new(), 100);
        field("ustar\u{0}00".to_owned(), 8);
        field(String::new(), 247);
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        let checksum = format!("{sum:06o}\u{0} ");
        if let Some(place) = header.get_mut(148..156) {
            place.copy_from_slice(checksum.as_bytes());
        }
        self.bytes.extend(header);
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}

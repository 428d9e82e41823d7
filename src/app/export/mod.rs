//! An *additional image store* of containers/storage: a folder that podman, buildah and CRI-O read images from, besides
//! their own. Its layers are no copies but symbolic links to where larder has its layers mounted.
//!
//! Pure: [`plan`] makes the whole folder from what is known of its images. [`write`] carries it out, so that whoever reads
//! at that moment finds the former images or the new ones, and all layers of either.
//!
//! ```text
//! <store>/
//!   overlay/<layer>/{diff,link,lower}       diff is a link to the mounted layer
//!   overlay/l/<LINK>                        a short name of a layer's diff
//!   overlay-layers/layers.json, layers.lock
//!   overlay-images/images.json, images.lock
//!   overlay-images/<image>/                 manifest and config
//!   larder/<image>/                         the image, mounted: as long as it is, its layers are
//! ```

mod write;

pub use write::{MOUNTS, claim, images, lowers, write};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::image::Digest;

/// An image as it is exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Hex of its config's digest.
    pub id: String,
    /// Tags.
    pub names: Vec<String>,
    /// RFC 3339; empty if the image does not say.
    pub created: String,
    /// As received.
    pub config: Vec<u8>,
    /// As received.
    pub manifest: Vec<u8>,
    /// Base first.
    pub layers: Vec<ExportedLayer>,
    /// What an overlay of it is made of, the topmost first.
    pub lowers: Vec<PathBuf>,
}

/// A layer as its image names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportedLayer {
    /// Of its tar.
    pub diff_id: String,
    /// Of its blob.
    pub digest: String,
    /// Of the blob.
    pub size: u64,
    /// Of the tar.
    pub tar_bytes: u64,
}

/// Everything below the folder of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// Texts by their path; folders above them are implied.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// What links point at, by their path.
    pub links: BTreeMap<PathBuf, PathBuf>,
}

/// When larder's layers were made is nobody's business: the same store is always the same bytes.
const NO_TIME: &str = "1970-01-01T00:00:00Z";
/// Names of layers that overlay mounts by; longer ones would not leave room for many in one mount.
const LINK: usize = 26;
/// Tops of stacks that have no tar of their own; see [`crate::store`].
const ATTRIBUTES: &str = "attributes-";
const EMPTY: &str = "empty";

/// What has to be below the folder.
pub fn plan(images: &[Exported]) -> Store {
    let mut store = Store::default();
    let mut layers: BTreeMap<String, Value> = BTreeMap::new();
    let mut records = Vec::new();
    for image in images {
        let top = chain(&mut store, &mut layers, image);
        records.push(record(&mut store, image, &top));
    }
    // A layer comes after its parent, as readers take it.
    let mut ordered: Vec<(usize, Value)> = layers
        .into_values()
        .map(|mut layer| {
            let depth = layer
                .as_object_mut()
                .and_then(|layer| layer.remove("depth"));
            let depth = depth.and_then(|depth| depth.as_u64()).unwrap_or(0);
            (usize::try_from(depth).unwrap_or(0), layer)
        })
        .collect();
    ordered.sort_by_key(|(depth, _)| *depth);
    let ordered: Vec<Value> = ordered.into_iter().map(|(_, layer)| layer).collect();
    store.text("overlay-layers/layers.json", &json!(ordered));
    store.text("overlay-images/images.json", &json!(records));
    store
}

impl Store {
    fn text(&mut self, path: impl Into<PathBuf>, value: &Value) {
        self.files
            .insert(path.into(), value.to_string().into_bytes());
    }
}

/// Adds the layers of an image; the id of the topmost.
fn chain(store: &mut Store, layers: &mut BTreeMap<String, Value>, image: &Exported) -> String {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    // Of those that occur twice the upper one counts, and what is hidden by all above is not mounted: the rest are the
    // topmost ones, in their order.
    let mut known: Vec<&ExportedLayer> = Vec::new();
    for layer in image.layers.iter().rev() {
        if !known.iter().any(|known| known.diff_id == layer.diff_id) {
            known.push(layer);
        }
    }
    let mut known = known.into_iter();
    let mut parts: Vec<(&PathBuf, Option<&ExportedLayer>)> = Vec::new();
    for lower in &image.lowers {
        let name = name(lower);
        if name == EMPTY {
            continue;
        }
        let layer = match name.starts_with(ATTRIBUTES) {
            true => None,
            false => known.next(),
        };
        parts.push((lower, layer));
    }
    let mut parent = String::new();
    let mut below: Vec<String> = Vec::new();
    for (depth, (path, layer)) in parts.into_iter().rev().enumerate() {
        let id = hex(&format!("{parent}\n{}", path.display()));
        let link: String = id
            .chars()
            .take(LINK)
            .collect::<String>()
            .to_ascii_uppercase();
        let folder = Path::new("overlay").join(&id);
        store.links.insert(folder.join("diff"), path.clone());
        store.links.insert(
            Path::new("overlay/l").join(&link),
            Path::new("..").join(&id).join("diff"),
        );
        store
            .files
            .insert(folder.join("link"), link.clone().into_bytes());
        if !below.is_empty() {
            store
                .files
                .insert(folder.join("lower"), below.join(":").into_bytes());
        }
        let mut record = json!({
            "id": id,
            "created": NO_TIME,
            "depth": depth,
            "diff-digest": layer.map_or_else(|| format!("sha256:{id}"), |layer| layer.diff_id.clone()),
            "diff-size": layer.map_or(0, |layer| layer.tar_bytes),
        });
        if !parent.is_empty() {
            set(&mut record, "parent", json!(parent));
        }
        if let Some(layer) = layer {
            set(&mut record, "compressed-diff-digest", json!(layer.digest));
            set(&mut record, "compressed-size", json!(layer.size));
        }
        layers.insert(id.clone(), record);
        below.insert(0, format!("l/{link}"));
        parent = id;
    }
    parent
}

fn set(record: &mut Value, key: &str, value: Value) {
    if let Some(record) = record.as_object_mut() {
        record.insert(key.to_owned(), value);
    }
}

/// Adds the documents of an image; its record.
fn record(store: &mut Store, image: &Exported, top: &str) -> Value {
    let digest = format!("sha256:{}", hex_of(&image.manifest));
    let config = format!("sha256:{}", image.id);
    let folder = Path::new("overlay-images").join(&image.id);
    let documents = [
        (config, &image.config),
        ("manifest".to_owned(), &image.manifest),
        (format!("manifest-{digest}"), &image.manifest),
    ];
    let mut sizes = serde_json::Map::new();
    let mut digests = serde_json::Map::new();
    let mut names = Vec::new();
    for (key, bytes) in documents {
        store
            .files
            .insert(folder.join(file_name(&key)), bytes.clone());
        sizes.insert(key.clone(), json!(bytes.len()));
        digests.insert(key.clone(), json!(format!("sha256:{}", hex_of(bytes))));
        names.push(key);
    }
    let created = match image.created.is_empty() {
        true => NO_TIME,
        false => &image.created,
    };
    json!({
        "id": image.id,
        "digest": digest,
        "names": image.names,
        "layer": top,
        "metadata": "{}",
        "big-data-names": names,
        "big-data-sizes": sizes,
        "big-data-digests": digests,
        "created": created,
    })
}

/// As containers/storage names the file of a document: plain words as they are, anything else in base64.
fn file_name(key: &str) -> String {
    let plain = |c: char| c == '.' || c.is_ascii_digit() || c.is_ascii_lowercase();
    match key.chars().all(plain) {
        true => key.to_owned(),
        false => format!("={}", STANDARD.encode(key)),
    }
}

fn hex(text: &str) -> String {
    hex_of(text.as_bytes())
}

fn hex_of(bytes: &[u8]) -> String {
    Digest::sha256(bytes).hex().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> ExportedLayer {
        ExportedLayer {
            diff_id: format!("sha256:{name}"),
            digest: format!("sha256:{name}gz"),
            size: 1,
            tar_bytes: 2,
        }
    }

    fn image(id: &str, layers: &[&str], lowers: &[&str]) -> Exported {
        Exported {
            id: id.to_owned(),
            names: vec![format!("r.io/{id}:1")],
            config: b"{}".to_vec(),
            manifest: b"[]".to_vec(),
            layers: layers.iter().map(|name| layer(name)).collect(),
            lowers: lowers
                .iter()
                .map(|name| Path::new("/m").join(name))
                .collect(),
            ..Exported::default()
        }
    }

    fn json_of(store: &Store, path: &str) -> Vec<Value> {
        serde_json::from_slice(&store.files[Path::new(path)]).unwrap()
    }

    #[test]
    fn layers_are_shared_and_stand_on_each_other() {
        let one = image("one", &["a", "b"], &["B", "A"]);
        let two = image("two", &["a", "b", "c"], &["attributes-x", "C", "B", "A"]);
        let store = plan(&[one, two]);
        let layers = json_of(&store, "overlay-layers/layers.json");
        let digests: Vec<&str> = layers
            .iter()
            .map(|layer| layer["diff-digest"].as_str().unwrap())
            .collect();
        assert_eq!(digests[..3], ["sha256:a", "sha256:b", "sha256:c"]);
        assert_eq!(layers.len(), 4);
        assert_eq!(layers[3]["diff-size"], 0);
        for pair in layers.windows(2) {
            assert_eq!(pair[1]["parent"], pair[0]["id"]);
            assert!(pair[0].get("depth").is_none());
        }
        let images = json_of(&store, "overlay-images/images.json");
        assert_eq!(images[0]["layer"], layers[1]["id"]);
        assert_eq!(images[1]["layer"], layers[3]["id"]);
        // The lower file names what is below, the nearest first, by links that lead to the mounts.
        let top = Path::new("overlay").join(layers[3]["id"].as_str().unwrap());
        let lower = String::from_utf8(store.files[&top.join("lower")].clone()).unwrap();
        let ends: Vec<&PathBuf> = lower
            .split(':')
            .map(|short| {
                let link = &store.links[&Path::new("overlay").join(short)];
                let id = link.components().nth(1).unwrap();
                &store.links[&Path::new("overlay").join(id).join("diff")]
            })
            .collect();
        assert_eq!(
            ends,
            [Path::new("/m/C"), Path::new("/m/B"), Path::new("/m/A")]
        );
        assert!(
            !store.files.contains_key(
                &Path::new("overlay")
                    .join(layers[0]["id"].as_str().unwrap())
                    .join("lower")
            )
        );
    }

    #[test]
    fn what_occurs_twice_or_is_hidden_counts_once() {
        // `a` lies on top again, and the lowest is hidden by an opaque root.
        let store = plan(&[image("one", &["z", "a", "b", "a"], &["A", "B"])]);
        let layers = json_of(&store, "overlay-layers/layers.json");
        let digests: Vec<&str> = layers
            .iter()
            .map(|layer| layer["diff-digest"].as_str().unwrap())
            .collect();
        assert_eq!(digests, ["sha256:b", "sha256:a"]);
        let single = plan(&[image("one", &["a"], &["A", "empty"])]);
        assert_eq!(json_of(&single, "overlay-layers/layers.json").len(), 1);
    }

    #[test]
    fn documents_are_named_as_readers_look_for_them() {
        assert_eq!(file_name("manifest"), "manifest");
        assert_eq!(file_name("sha256:ab"), "=c2hhMjU2OmFi");
        let store = plan(&[image("one", &[], &[])]);
        let names: Vec<_> = store
            .files
            .keys()
            .filter(|path| path.starts_with("overlay-images/one"))
            .collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

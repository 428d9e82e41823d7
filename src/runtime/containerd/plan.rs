//! What containerd is to know of an image, and what of it it knows already. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{REGISTERED, SNAPSHOTTER};
use crate::image::{Digest, ImageId};

/// Marks a name as CRI's, so that the kubelet sees the image.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// Keeps the kubelet's collection away. containerd itself gives it to what its configuration pins: the sandbox image.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Tells the pins of larder from those of containerd.
const OURS: (&str, &str) = ("larder.dev/pinned", "pinned");

/// A manifest, index or config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Of the bytes.
    pub digest: Digest,
    /// As in the manifest, or of the document itself.
    pub media_type: String,
    /// As they were received.
    pub bytes: Bytes,
}

/// The names that containerd is to have of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Of its config.
    pub id: ImageId,
    /// Of this platform's manifest.
    pub manifest: Digest,
    /// Names, each with the digest of the document that it points at.
    pub names: Vec<(String, Digest)>,
    /// To be kept from the kubelet's collection, as larder has it.
    pub pinned: bool,
    /// Milliseconds since the epoch.
    pub pulled_at: i64,
}

/// An image as containerd is to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerdImage {
    /// Its names.
    pub names: Names,
    /// The config.
    pub config: Document,
    /// The manifest of this platform.
    pub manifest: Document,
    /// Indexes that names point at.
    pub indexes: Vec<Document>,
    /// ChainIDs of its layers, base first.
    pub chains: Vec<Digest>,
    /// DiffIDs of its layers, base first.
    pub layers: Vec<Digest>,
}

/// A name that containerd has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Of the image.
    pub name: String,
    /// What it points at.
    pub target: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// When it was changed last, in milliseconds since the epoch.
    pub updated_at: i64,
}

impl Registered {
    /// The image whose name larder made it.
    pub fn image(&self) -> Option<&str> {
        self.labels.get(REGISTERED).map(String::as_str)
    }

    /// True where containerd itself wants the image to be kept.
    pub fn is_pinned_there(&self) -> bool {
        let has = |(key, value): (&str, &str)| self.labels.get(key).is_some_and(|own| own == value);
        has(PINNED) && !has(OURS)
    }
}

impl Names {
    /// All names with what they point at, the image's id among them, as CRI itself adds it.
    fn targets(&self) -> Vec<(String, &Digest)> {
        let names = self.names.iter();
        let mut targets: Vec<_> = names.map(|(name, target)| (name.clone(), target)).collect();
        targets.push((self.id.to_string(), &self.manifest));
        targets
    }

    /// All names, the image's id among them.
    pub fn all(&self) -> impl Iterator<Item = String> {
        let targets = self.targets().into_iter();
        targets
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
            .into_iter()
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let mut add = |(key, value): (&str, &str)| labels.insert(key.to_owned(), value.to_owned());
        add(MANAGED);
        if self.pinned {
            add(PINNED);
            add(OURS);
        }
        labels.insert(REGISTERED.to_owned(), self.id.to_string());
        labels
    }

    /// Names that containerd lacks, or has in another way. One that somebody moved after this image was pulled is his.
    pub fn missing(&self, known: &[Registered]) -> Vec<String> {
        let labels = self.labels();
        let mut missing = Vec::new();
        for (name, target) in self.targets() {
            let found = known.iter().find(|known| known.name == name);
            let settled = found.is_some_and(|known| {
                if known.target != target.to_string() {
                    return known.updated_at > self.pulled_at;
                }
                let labelled = labels
                    .iter()
                    .all(|(key, value)| known.labels.get(key) == Some(value));
                let pin = known.labels.get(OURS.0);
                labelled && (self.pinned || pin.is_none_or(String::is_empty))
            });
            if !settled {
                missing.push(name);
            }
        }
        missing
    }

    /// Labels that must not be on its names. Where containerd wants one, it gives it again by itself.
    pub(super) fn surplus_labels(&self) -> &'static [&'static str] {
        const PINS: &[&str] = &[PINNED.0, OURS.0];
        if self.pinned { &[] } else { PINS }
    }
}

impl ContainerdImage {
    /// Each name with its document. An index that is lost leaves the manifest.
    pub(super) fn records(&self) -> Vec<(String, &Document)> {
        let document = |target: &Digest| {
            let index = self.indexes.iter().find(|index| index.digest == *target);
            index.unwrap_or(&self.manifest)
        };
        let targets = self.names.targets().into_iter();
        targets
            .map(|(name, target)| (name, document(target)))
            .collect()
    }

    /// Documents in the order in which they are written, each with the labels that say what it leads to.
    pub(super) fn contents(&self) -> Vec<(&Document, BTreeMap<String, String>)> {
        let mut contents = Vec::new();
        let mut config = BTreeMap::new();
        if let Some(top) = self.chains.last() {
            let key = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
            config.insert(key, top.to_string());
        }
        contents.push((&self.config, config));
        let key = "containerd.io/gc.ref.content.config".to_owned();
        let manifest = [(key, self.config.digest.to_string())].into();
        contents.push((&self.manifest, manifest));
        for index in &self.indexes {
            if index.digest != self.manifest.digest {
                let key = "containerd.io/gc.ref.content.m.0".to_owned();
                let labels = [(key, self.manifest.digest.to_string())].into();
                contents.push((index, labels));
            }
        }
        contents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document {
            digest: Digest::sha256(text.as_bytes()),
            media_type: "application/json".to_owned(),
            bytes: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    fn image() -> ContainerdImage {
        let (config, manifest, index) = (document("c"), document("m"), document("i"));
        ContainerdImage {
            names: Names {
                id: ImageId(config.digest.clone()),
                manifest: manifest.digest.clone(),
                names: vec![
                    ("r.io/a:1".to_owned(), index.digest.clone()),
                    ("r.io/a:old".to_owned(), manifest.digest.clone()),
                ],
                pinned: false,
                pulled_at: 10,
            },
            chains: vec![Digest::sha256(b"1"), Digest::sha256(b"2")],
            layers: vec![Digest::sha256(b"1"), Digest::sha256(b"3")],
            indexes: vec![index],
            config,
            manifest,
        }
    }

    fn registered(image: &ContainerdImage) -> Vec<Registered> {
        let records = image.records().into_iter();
        records
            .map(|(name, document)| Registered {
                name,
                target: document.digest.to_string(),
                labels: image.names.labels(),
                updated_at: 20,
            })
            .collect()
    }

    #[test]
    fn each_document_leads_to_the_next() {
        let image = image();
        let contents = image.contents();
        let leads = |at: usize, key: &str| contents[at].1.get(key).cloned();
        let top = image.chains[1].to_string();
        assert_eq!(leads(0, "containerd.io/gc.ref.snapshot.larder"), Some(top));
        let config = Some(image.config.digest.to_string());
        assert_eq!(leads(1, "containerd.io/gc.ref.content.config"), config);
        let manifest = Some(image.manifest.digest.to_string());
        assert_eq!(leads(2, "containerd.io/gc.ref.content.m.0"), manifest);
        assert_eq!(contents.len(), 3);
    }

    #[test]
    fn names_point_at_what_was_pulled_and_the_id_at_the_manifest() {
        let image = image();
        let records = image.records();
        let targets: Vec<_> = records
            .iter()
            .map(|(name, document)| (name.as_str(), &document.digest))
            .collect();
        let id = image.names.id.to_string();
        assert_eq!(
            targets,
            [
                ("r.io/a:1", &image.indexes[0].digest),
                ("r.io/a:old", &image.manifest.digest),
                (id.as_str(), &image.manifest.digest),
            ]
        );
    }

    #[test]
    fn what_is_missing_or_different_is_named() {
        let mut image = image();
        let id = image.names.id.to_string();
        let known = registered(&image);
        assert!(image.names.missing(&known).is_empty());
        assert_eq!(image.names.missing(&known[..2]), [id.as_str()]);
        let mut moved = known.clone();
        moved[0].target = "sha256:x".to_owned();
        assert!(image.names.missing(&moved).is_empty(), "it was moved since");
        moved[0].updated_at = 5;
        assert_eq!(image.names.missing(&moved), ["r.io/a:1"]);
        image.names.pinned = true;
        assert_eq!(image.names.missing(&known).len(), 3);
        let mut pinned = registered(&image);
        assert!(image.names.missing(&pinned).is_empty());
        assert!(!pinned.iter().any(Registered::is_pinned_there));
        image.names.pinned = false;
        assert_eq!(image.names.missing(&pinned).len(), 3);
        // So containerd takes a label away.
        for name in &mut pinned {
            name.labels.insert(OURS.0.to_owned(), String::new());
        }
        assert!(image.names.missing(&pinned).is_empty());
        // What is left is containerd's own pin.
        assert!(pinned.iter().all(Registered::is_pinned_there));
    }
}

//! How a stack of layers is mounted, and what of that is known. Layers do not change, so it stays true for as long as the
//! store is open, and a container whose image another one had before is started without a look into any tree.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

use super::fixup::{self, Lower};
use crate::erofs::{self, Reader};
use crate::image::DiffId;
use crate::store::records::LayerRow;
use crate::store::{Error, Inner};

/// Overlayfs takes 500 lower directories; a fixup and an empty one may be among them.
const MAX_LAYERS: usize = 498;
/// More than the images of any node.
const MAX_STACKS: usize = 4096;
/// Of all fixups, in bytes. One has a block for some 50 directories.
const MAX_FIXUP_BYTES: usize = 8 << 20;

/// How a stack is mounted.
#[derive(Debug)]
pub(in crate::store) struct Planned {
    /// The layers that are mounted, topmost first: each once, and none below one that hides all of them.
    pub(super) ids: Vec<DiffId>,
    /// An image of attributes for on top, where the layers alone would not show the truth.
    pub(super) fixup: Option<Fixup>,
}

/// An EROFS image with the attributes of some directories.
#[derive(Debug)]
pub(super) struct Fixup {
    /// Below `mounts/`: of the layers, so that images with the same stack share one.
    pub(super) name: String,
    pub(super) image: Vec<u8>,
}

/// Stacks by their layers, base first.
#[derive(Debug, Default)]
pub(in crate::store) struct Stacks {
    known: HashMap<Vec<DiffId>, Arc<Planned>>,
    fixup_bytes: usize,
}

impl Stacks {
    pub(super) fn get(&self, layers: &[DiffId]) -> Option<Arc<Planned>> {
        self.known.get(layers).cloned()
    }

    /// Where there is no room, all others are forgotten.
    pub(super) fn insert(&mut self, layers: Vec<DiffId>, planned: Arc<Planned>) {
        let bytes = planned.fixup.as_ref().map_or(0, |fixup| fixup.image.len());
        if bytes > MAX_FIXUP_BYTES {
            return;
        }
        if self.known.len() >= MAX_STACKS || self.fixup_bytes + bytes > MAX_FIXUP_BYTES {
            *self = Stacks::default();
        }
        if self.known.insert(layers, planned).is_none() {
            self.fixup_bytes += bytes;
        }
    }

    /// Fixups of stacks all of whose layers are among these.
    pub(super) fn fixups(&self, among: impl Fn(&DiffId) -> bool) -> impl Iterator<Item = &str> {
        let stacks = self.known.values();
        stacks.filter_map(move |planned| {
            let fixup = planned.fixup.as_ref()?;
            planned
                .ids
                .iter()
                .all(&among)
                .then_some(fixup.name.as_str())
        })
    }
}

impl Inner {
    /// Looks into the trees of layers, base first, for how they are mounted.
    pub(super) fn plan_stack(&self, layers: &[DiffId]) -> Result<Planned, Error> {
        let mut stack = Vec::new();
        let mut ids: Vec<DiffId> = Vec::new();
        let mut seen = BTreeSet::new();
        // A layer that occurs twice counts where it is on top.
        for layer in layers.iter().rev() {
            if !seen.insert(layer) {
                continue;
            }
            let lower = self.open_lower(layer)?;
            let last = fixup::hides_all_below(&lower.reader)
                .map_err(|error| self.unreadable(layer, &error))?;
            ids.push(layer.clone());
            stack.push(lower);
            if last {
                break;
            }
        }
        if ids.len() > MAX_LAYERS {
            return Err(Error::MountUnsupported {
                cause: format!(
                    "{} layers are on top of each other, at most {MAX_LAYERS} can be",
                    ids.len()
                ),
            });
        }
        let fixup = self.plan_fixup(&ids, &stack)?;
        Ok(Planned { ids, fixup })
    }

    /// Verifies a layer's files, so that the kernel reads nothing but what was written.
    pub(super) fn verify_lower(&self, layer: &DiffId) -> Result<LayerRow, Error> {
        let row = self.state().records.layers.get(layer).cloned();
        let Some(row) = row else {
            return Err(Error::Invalid(format!("no layer {layer}")));
        };
        if let Err(error) = self.verify_once(&row) {
            if let Error::Damaged { subject, cause } = &error {
                self.quarantine(layer, &format!("{subject}: {cause}"))?;
            }
            return Err(error);
        }
        Ok(row)
    }

    fn open_lower(&self, layer: &DiffId) -> Result<Lower<File>, Error> {
        let implied = self.verify_lower(layer)?.implied;
        let path = self.layout.erofs(layer);
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        let reader = Reader::open(file).map_err(|error| self.unreadable(layer, &error))?;
        Ok(Lower { reader, implied })
    }

    /// The fixup of a stack, topmost layer first, where it needs one.
    fn plan_fixup(&self, ids: &[DiffId], stack: &[Lower<File>]) -> Result<Option<Fixup>, Error> {
        let below = || ids.first().map(ToString::to_string).unwrap_or_default();
        let planned = fixup::plan(stack).map_err(|error| Error::Damaged {
            subject: format!("one of the layers below {}", below()),
            cause: error.to_string(),
        })?;
        let Some(tree) = planned else {
            return Ok(None);
        };
        let mut hasher = blake3::Hasher::new();
        for id in ids {
            hasher.update(id.to_string().as_bytes()).update(b"\n");
        }
        let hash = hasher.finalize();
        let mut uuid = [0; 16];
        uuid.iter_mut()
            .zip(hash.as_bytes())
            .for_each(|(to, from)| *to = *from);
        let mut image = Vec::new();
        erofs::write(&tree, &[], uuid, &mut image).map_err(|error| {
            Error::Invalid(format!(
                "directories of the layers below {}: {error}",
                below()
            ))
        })?;
        let name = format!("attributes-{}", hash.to_hex());
        Ok(Some(Fixup { name, image }))
    }

    fn unreadable(&self, layer: &DiffId, error: &erofs::ReadError) -> Error {
        Error::Damaged {
            subject: self.layout.relative(&self.layout.erofs(layer)),
            cause: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    fn layer(of: &[u8]) -> DiffId {
        DiffId(Digest::sha256(of))
    }

    fn layers(of: &str) -> Vec<DiffId> {
        of.bytes().map(|byte| layer(&[byte])).collect()
    }

    fn planned(of: &str, bytes: usize) -> Arc<Planned> {
        let name = of.to_owned();
        let fixup = (bytes > 0).then(|| Fixup {
            name,
            image: vec![0; bytes],
        });
        Arc::new(Planned {
            ids: layers(of),
            fixup,
        })
    }

    #[test]
    fn a_stack_is_known_by_all_of_its_layers_in_their_order() {
        let mut stacks = Stacks::default();
        stacks.insert(layers("ab"), planned("ba", 9));
        assert!(stacks.get(&layers("ab")).is_some());
        for other in ["ba", "a", "abc", ""] {
            assert!(stacks.get(&layers(other)).is_none(), "{other}");
        }
    }

    #[test]
    fn a_fixup_stays_with_all_of_its_layers() {
        let mut stacks = Stacks::default();
        stacks.insert(layers("ab"), planned("ba", 9));
        stacks.insert(layers("ac"), planned("ca", 9));
        stacks.insert(layers("a"), planned("a", 0));
        let (a, b) = (layers("a").remove(0), layers("b").remove(0));
        let kept: Vec<&str> = stacks.fixups(|id| *id == a || *id == b).collect();
        assert_eq!(kept, ["ba"]);
    }

    #[test]
    fn neither_stacks_nor_their_bytes_grow_without_end() {
        let mut stacks = Stacks::default();
        stacks.insert(layers("z"), planned("z", MAX_FIXUP_BYTES + 1));
        assert!(stacks.get(&layers("z")).is_none());
        stacks.insert(layers("a"), planned("a", MAX_FIXUP_BYTES));
        // The same again is no more than before.
        stacks.insert(layers("b"), planned("b", 0));
        stacks.insert(layers("b"), planned("b", 0));
        assert!(stacks.get(&layers("a")).is_some());
        stacks.insert(layers("c"), planned("c", 1));
        assert!(stacks.get(&layers("a")).is_none());
        assert!(stacks.get(&layers("c")).is_some());
        for at in 0..=MAX_STACKS {
            stacks.insert(vec![layer(&at.to_le_bytes())], planned("", 0));
        }
        assert!(stacks.known.len() <= MAX_STACKS);
        assert!(stacks.get(&layers("c")).is_none());
    }
}

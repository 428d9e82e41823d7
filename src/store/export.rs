//! Puts the exact tar of a layer together again, and reads kept contents.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::idx::{Inline, OpenLayer};
use super::ingest::INLINE_MAX;
use super::ingest::recipe::{Op, RecipeReader, lost_contents};
use super::{Error, Store};
use crate::image::{DiffId, Hasher};

/// Bytes copied at once.
const PART: usize = 256 << 10;
/// Size of a block of a segment.
const BLOCK: u64 = 4096;

impl Store {
    /// Writes the exact uncompressed tar of a layer. Blocking.
    ///
    /// The bytes are hashed on their way: where they are not the layer's, the answer is [`Error::Damaged`], and what
    /// was written must not be used.
    pub fn export_tar(&self, diff_id: &DiffId, to: &mut dyn Write) -> Result<(), Error> {
        let lease = self.lease();
        if self.layer(diff_id, &lease).is_none() {
            return Err(Error::Invalid(format!(
                "layer {diff_id} is not in the store, or damaged; pull an image that has it"
            )));
        }
        let layer = self.open_layer(diff_id)?;
        let mut hasher = Hasher::new(diff_id.0.algorithm());
        let assembled = assemble(
            &layer,
            &mut Segments::new(self, &layer.segments),
            &mut |bytes| {
                hasher.update(bytes);
                to.write_all(bytes).map_err(|cause| Error::Io {
                    action: "write the tar of a layer of",
                    path: self.root().to_path_buf(),
                    cause,
                })
            },
        );
        assembled.map_err(|failure| {
            let error = match failure {
                Failure::Store(error) => error,
                Failure::Damaged(cause) => damaged(diff_id, cause),
            };
            self.look_into(error, std::slice::from_ref(diff_id))
        })?;
        let found = hasher.finish();
        if found != diff_id.0 {
            let error = damaged(diff_id, format!("its tar has digest {found}"));
            return Err(self.look_into(error, std::slice::from_ref(diff_id)));
        }
        Ok(())
    }
}

fn damaged(diff_id: &DiffId, cause: String) -> Error {
    Error::Damaged {
        subject: format!("layer {diff_id}"),
        cause,
    }
}

enum Failure {
    Store(Error),
    Damaged(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

impl From<super::ingest::recipe::BadRecipe> for Failure {
    fn from(error: super::ingest::recipe::BadRecipe) -> Self {
        Failure::Damaged(error.to_string())
    }
}

fn assemble(
    layer: &OpenLayer,
    segments: &mut Segments<'_>,
    emit: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Failure> {
    let lost = lost_contents(&layer.recipe, INLINE_MAX as usize)?;
    let mut recipe = RecipeReader::new(&layer.recipe)?;
    let mut buffer = vec![0; PART];
    while let Some(op) = recipe.next()? {
        match op {
            Op::Literal(bytes) => emit(bytes)?,
            Op::Small {
                number,
                offset,
                len,
            } => {
                let content = small(&layer.erofs, &layer.inlines, &lost, number)
                    .and_then(|content| {
                        let start = usize::try_from(offset).ok()?;
                        content.get(start..start.checked_add(usize::try_from(len).ok()?)?)
                    })
                    .ok_or_else(|| Failure::Damaged(format!("small content {number} is absent")))?;
                emit(content)?;
            }
            Op::Extent {
                device,
                block,
                offset,
                len,
            } => {
                let from = u64::from(block) * BLOCK;
                let mut done = 0;
                while done < len {
                    let most = usize::try_from(len - done).unwrap_or(usize::MAX).min(PART);
                    let part = buffer.get_mut(..most).unwrap_or_default();
                    let at = from.checked_add(offset).and_then(|at| at.checked_add(done));
                    segments.read(device, at.unwrap_or(u64::MAX), part)?;
                    emit(part)?;
                    done += part.len() as u64;
                }
            }
        }
    }
    Ok(())
}

/// A small content: in the image, or in the recipe where a later entry replaced its file.
fn small<'a>(
    erofs: &'a [u8],
    inlines: &[Inline],
    lost: &'a BTreeMap<u32, Vec<u8>>,
    number: u32,
) -> Option<&'a [u8]> {
    if let Some(content) = lost.get(&number) {
        return Some(content);
    }
    let inline = inlines.get(usize::try_from(number).ok()?)?;
    let start = usize::try_from(inline.offset).ok()?;
    erofs.get(start..start.checked_add(usize::try_from(inline.len).ok()?)?)
}

/// The segments that one layer uses, opened as they are needed.
pub(super) struct Segments<'a> {
    store: &'a Store,
    ids: &'a [u32],
    files: BTreeMap<u32, File>,
}

impl<'a> Segments<'a> {
    /// `ids` in the order of the layer's devices.
    pub(super) fn new(store: &'a Store, ids: &'a [u32]) -> Self {
        Segments {
            store,
            ids,
            files: BTreeMap::new(),
        }
    }

    /// The segment of a device.
    pub(super) fn id(&self, device: u32) -> Option<u32> {
        self.ids.get(usize::try_from(device).ok()?).copied()
    }

    /// Fills `part` from byte `at` of a device.
    pub(super) fn read(&mut self, device: u32, at: u64, part: &mut [u8]) -> Result<(), Error> {
        let id = self.id(device).ok_or_else(|| Error::Damaged {
            subject: "a layer's tree or recipe".to_owned(),
            cause: format!("it names device {device}, which the layer does not have"),
        })?;
        let file = match self.files.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match self.store.segment_file(id) {
                Ok(file) => entry.insert(file),
                Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                    return Err(self.damaged(id, "it is absent".to_owned()));
                }
                Err(error) => return Err(error),
            },
        };
        match file.read_exact_at(part, at) {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
                ) =>
            {
                let end = at.saturating_add(part.len() as u64);
                Err(self.damaged(id, format!("it ends before byte {end}")))
            }
            Err(error) => Err(Error::io("read", &self.store.inner.layout.pack(id), error)),
        }
    }

    /// The error of a segment that is not as it was written.
    pub(super) fn damaged(&self, segment: u32, cause: String) -> Error {
        let layout = &self.store.inner.layout;
        Error::Damaged {
            subject: layout.relative(&layout.pack(segment)),
            cause,
        }
    }
}

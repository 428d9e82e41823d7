//! Takes a compressed layer in one streaming pass: verify, inflate, parse the tar, pack contents, build the tree.
//!
//! Two stages run side by side: `codec` on a thread of its own, `layer` on the caller's. Neither keeps a whole
//! layer; nothing but a commit makes anything visible. Host paths are never derived from what a layer says.

mod codec;
mod fault;
mod granules;
mod layer;
mod path;
pub(super) mod recipe;
mod tar;
mod tree;

use std::collections::BTreeMap;
use std::io::{BufWriter, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use codec::Exchange;
use fault::Fault;
use layer::{Finished, LayerSink};
use tar::{Bounds, Parser};

pub(super) use layer::INLINE_MAX;
pub(super) use tree::{IMPLIED, OPAQUE};

use super::idx::{IdxParts, Inline, LayerParts};
use super::{Error, Layer, LayerCounters, LayerSource, Lease, Store};
use crate::erofs::{self, Kind, Tree};
use crate::image::{Algorithm, Compression, DiffId, Hasher};

impl Store {
    /// Ingests a layer: reads the compressed blob to its end, verifies digest and size, and makes the layer durable
    /// under the diffID found. Blocking: call it on a thread of its own. On error nothing of it remains.
    ///
    /// The compression is what the blob's first bytes say; `source.compression` only serves error messages. Wrong
    /// bytes are reported as [`Error::SizeMismatch`] or [`Error::DigestMismatch`], whatever they break on the way.
    pub fn ingest(
        &self,
        source: &LayerSource,
        from: &mut (dyn Read + Send),
        counters: &LayerCounters,
        lease: &Lease,
    ) -> Result<Layer, Error> {
        let limits = self.limits();
        let mut sink = LayerSink::new(limits, counters, source.size, self.pack_writer()?)
            .map_err(|fault| fault.of(&source.blob))?;
        let bounds = Bounds {
            max_path: limits.max_path,
            max_body: limits.max_layer_bytes,
        };
        let mut consumer = Consumer {
            hasher: Hasher::new(Algorithm::Sha256),
            parser: Parser::new(bounds),
            sink: &mut sink,
        };

        let suspicious = AtomicBool::new(false);
        let (full, filled) = sync_channel(codec::BUFFERS);
        let (back, used) = channel();
        let (decoded, consumed) = std::thread::scope(|scope| {
            let exchange = Exchange {
                full,
                used,
                suspicious: &suspicious,
            };
            let decoder = std::thread::Builder::new()
                .name("larder-inflate".to_owned())
                .spawn_scoped(scope, move || {
                    codec::decode(source, from, limits, counters, &exchange)
                })
                .map_err(|source| Error::io("start a thread for", self.root(), source))?;
            let consumed = consumer.run(&filled, &back, &suspicious);
            // What the decode stage notices where it goes on.
            drop((filled, back));
            let decoded = decoder
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((decoded, consumed))
        })?;
        let codec::Decoded { whole, actual } = decoded?;
        if consumed.is_ok() && !whole {
            return Err(Error::Invalid("the ingest stopped by itself".to_owned()));
        }
        let diff_id = consumed
            .and_then(|()| consumer.finish())
            .map_err(|fault| explain(source, actual, fault))?;
        let finished = sink.finish().map_err(|fault| fault.of(&source.blob))?;
        self.keep(source, diff_id, finished, lease)
    }

    /// Writes the EROFS image of a layer and commits it.
    fn keep(
        &self,
        source: &LayerSource,
        diff_id: DiffId,
        finished: Finished,
        lease: &Lease,
    ) -> Result<Layer, Error> {
        let Finished {
            tree,
            devices,
            segments,
            smalls,
            recipe,
            pack,
        } = finished;
        let staging = self.staging()?;
        let mut out = BufWriter::with_capacity(1 << 20, staging.create_erofs()?);
        let written = erofs::write(&tree, &devices, uuid(&diff_id), &mut out)
            .map_err(|error| self.refused(source, error))?;
        out.into_inner()
            .map_err(|error| self.broken(error.into_error()))?;

        let (mut inlines, mut lost) = (Vec::with_capacity(smalls.len()), BTreeMap::new());
        for (number, inode) in (0_u32..).zip(&smalls) {
            let at = *inode as usize;
            let content = match tree.inodes.get(at).map(|inode| &inode.kind) {
                Some(Kind::Inline(content)) => &**content,
                _ => &[],
            };
            let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
            match written.inline_offsets.get(at).copied().flatten() {
                Some(offset) => inlines.push(Inline { offset, len }),
                None => {
                    inlines.push(Inline { offset: 0, len: 0 });
                    lost.insert(number, content);
                }
            }
        }
        let (tar_bytes, entries) = (recipe.tar_bytes(), written.inodes);
        let Sums {
            content_bytes,
            implied,
        } = sums(&tree);
        let recipe = recipe
            .finish(&lost)
            .map_err(|fault| fault.of(&source.blob))?;
        // The largest part of what a layer takes in memory; the commit needs none of it.
        drop(lost);
        drop((tree, written));
        let parts = LayerParts {
            source: source.clone(),
            tar_bytes,
            content_bytes,
            entries,
            implied,
            pack,
            staging,
            idx: IdxParts {
                segments,
                inlines,
                recipe,
            },
            diff_id,
        };
        self.commit_layer(parts, lease)
    }

    fn refused(&self, source: &LayerSource, error: erofs::WriteError) -> Error {
        match error {
            erofs::WriteError::Io(error) => self.broken(error),
            error => Fault::Bad(error.to_string()).of(&source.blob),
        }
    }

    fn broken(&self, source: std::io::Error) -> Error {
        Error::io("write a layer's tree below", self.root(), source)
    }
}

/// The error of a tar that was refused. Where the blob is not what it was declared as, that is likely why.
fn explain(source: &LayerSource, actual: Compression, fault: Fault) -> Error {
    let fault = match fault {
        Fault::Bad(cause) if actual != source.compression => {
            let (actual, declared) = (codec::word(actual), codec::word(source.compression));
            Fault::Bad(format!(
                "{cause} (declared as {declared}, read as {actual})"
            ))
        }
        fault => fault,
    };
    fault.of(&source.blob)
}

/// The consume stage.
struct Consumer<'a, 'b> {
    hasher: Hasher,
    parser: Parser,
    sink: &'a mut LayerSink<'b>,
}

impl Consumer<'_, '_> {
    /// Takes buffers until the decode stage ends or something is wrong with the tar.
    fn run(
        &mut self,
        filled: &Receiver<Vec<u8>>,
        back: &Sender<Vec<u8>>,
        suspicious: &AtomicBool,
    ) -> Result<(), Fault> {
        for _ in 0..codec::BUFFERS {
            // Cannot fail before the decode stage ends; then the loop below ends too.
            let _ = back.send(Vec::new());
        }
        for buffer in filled {
            self.hasher.update(&buffer);
            if let Err(fault) = self.parser.push(&buffer, self.sink) {
                // Set before the channels close, which is what the decode stage waits for.
                suspicious.store(matches!(fault, Fault::Bad(_)), Ordering::Release);
                return Err(fault);
            }
            let _ = back.send(buffer);
        }
        Ok(())
    }

    /// The diffID; the blob was whole.
    fn finish(self) -> Result<DiffId, Fault> {
        self.parser.finish()?;
        Ok(DiffId(self.hasher.finish()))
    }
}

/// Tied to the content, so that the same layer has the same image everywhere.
fn uuid(diff_id: &DiffId) -> [u8; 16] {
    let mut uuid = [0; 16];
    if let Ok(bytes) = hex::decode(diff_id.0.hex())
        && let Some((head, _)) = bytes.split_first_chunk()
    {
        uuid = *head;
    }
    uuid
}

/// What is counted of a tree.
#[derive(Default)]
struct Sums {
    /// Lengths of the regular files that have a name, holes left out.
    content_bytes: u64,
    /// Directories that no entry names.
    implied: u64,
}

fn sums(tree: &Tree) -> Sums {
    let mut seen = vec![false; tree.inodes.len()];
    let mut todo = vec![0];
    let mut sums = Sums::default();
    let mut add = |len: u64| sums.content_bytes = sums.content_bytes.saturating_add(len);
    while let Some(id) = todo.pop() {
        let at = id as usize;
        match seen.get_mut(at) {
            Some(seen) if !*seen => *seen = true,
            _ => continue,
        }
        let Some(inode) = tree.inodes.get(at) else {
            continue;
        };
        match &inode.kind {
            Kind::Directory(children) => {
                todo.extend(children.values());
                sums.implied += u64::from(inode.xattrs.contains_key(tree::IMPLIED));
            }
            Kind::Inline(content) => add(content.len() as u64),
            Kind::Chunked {
                size,
                chunk_bits,
                chunks,
            } => {
                let held = chunks.iter().flatten().count() as u64;
                let most = held.saturating_mul(4096 << chunk_bits);
                add(most.min(*size));
            }
            _ => {}
        }
    }
    sums
}

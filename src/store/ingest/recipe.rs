//! The recipe of a layer: how its exact tar is put together from literal bytes and kept contents.
//!
//! On disk: version byte, length of the first stream (u64, little endian), then two zstd streams. The first is a list
//! of operations; numbers are LEB128, signed ones zigzag:
//! - 0: length, bytes: literal bytes of the tar (headers, padding, what no file keeps)
//! - 1: device, block less the block expected next, offset, length: a range of an extent in a pack; devices are
//!   positions in the layer's list of segments, as in its EROFS image
//! - 2: number less the number expected next, offset, length: a range of a small content
//! - 3: length of the whole tar: the end
//!
//! The second holds small contents that the tree lost because a later entry replaced their file: number, length, bytes,
//! in ascending order. Where the others are in the `.erofs` is known to the caller.
//!
//! The bytes parsed here may be damaged: nothing is trusted. What a recipe yields must be checked against the diffID.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};

use super::fault::Fault;

const VERSION: u8 = 1;
const HEADER: usize = 9;
const LITERAL: u8 = 0;
const EXTENT: u8 = 1;
const SMALL: u8 = 2;
const END: u8 = 3;
/// Literal bytes of one operation.
const MAX_LITERAL: usize = 32 << 10;
/// A layer whose recipe grows larger carries data that is no file's.
const MAX_RECIPE: usize = 256 << 20;
/// Fast, and headers compress well with it.
const LEVEL: i32 = 1;
/// Window of the streams, as a power of two.
const WINDOW_LOG: u32 = 23;
/// Size of a block of a device.
const BLOCK: u64 = 4096;

/// One step of putting a tar together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op<'a> {
    /// These bytes.
    Literal(&'a [u8]),
    /// A range of an extent.
    Extent {
        /// Position in the layer's list of segments.
        device: u32,
        /// Where the extent begins.
        block: u32,
        /// In the extent, in bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// A range of a small content.
    Small {
        /// Counted from 0 in the order of the tar.
        number: u32,
        /// In the content.
        offset: u32,
        /// In bytes.
        len: u32,
    },
}

/// Writes a recipe as a stream, so that it is never held uncompressed.
pub(crate) struct RecipeWriter {
    ops: zstd::stream::write::Encoder<'static, Vec<u8>>,
    literal: Vec<u8>,
    tar_bytes: u64,
    expected: Expected,
}

#[derive(Debug, Default)]
struct Expected {
    block: u64,
    small: u64,
}

impl RecipeWriter {
    /// An empty recipe.
    pub(crate) fn new() -> Result<Self, Fault> {
        let ops = zstd::stream::write::Encoder::new(vec![0; HEADER], LEVEL)
            .map_err(|error| compressor(&error))?;
        Ok(RecipeWriter {
            ops,
            literal: Vec::with_capacity(MAX_LITERAL),
            tar_bytes: 0,
            expected: Expected::default(),
        })
    }

    /// Bytes of the tar so far.
    pub(crate) fn tar_bytes(&self) -> u64 {
        self.tar_bytes
    }

    /// Adds an operation.
    pub(crate) fn push(&mut self, op: Op<'_>) -> Result<(), Fault> {
        match op {
            Op::Literal(mut bytes) => {
                self.tar_bytes += bytes.len() as u64;
                while !bytes.is_empty() {
                    let room = MAX_LITERAL - self.literal.len();
                    let (part, rest) = bytes.split_at(room.min(bytes.len()));
                    self.literal.extend_from_slice(part);
                    bytes = rest;
                    if self.literal.len() == MAX_LITERAL {
                        self.flush_literal()?;
                    }
                }
                Ok(())
            }
            Op::Extent {
                device,
                block,
                offset,
                len,
            } => {
                self.flush_literal()?;
                self.tar_bytes += len;
                let jump = i64::from(block) - self.expected.block.cast_signed();
                // A sparse file takes several ranges of one extent: each counts from its beginning.
                self.expected.block = u64::from(block) + (offset + len).div_ceil(BLOCK);
                self.write(EXTENT, &[u64::from(device), zigzag(jump), offset, len])
            }
            Op::Small {
                number,
                offset,
                len,
            } => {
                self.flush_literal()?;
                self.tar_bytes += u64::from(len);
                let jump = i64::from(number) - self.expected.small.cast_signed();
                self.expected.small = u64::from(number) + 1;
                self.write(SMALL, &[zigzag(jump), u64::from(offset), u64::from(len)])
            }
        }
    }

    /// The recipe, with the small contents that are nowhere else.
    pub(crate) fn finish(mut self, lost: &BTreeMap<u32, &[u8]>) -> Result<Vec<u8>, Fault> {
        self.flush_literal()?;
        self.write(END, &[self.tar_bytes])?;
        let mut recipe = self.ops.finish().map_err(|error| compressor(&error))?;
        let len = (recipe.len() - HEADER) as u64;
        if let Some(header) = recipe.get_mut(..HEADER) {
            header.copy_from_slice(&[&[VERSION][..], &len.to_le_bytes()].concat());
        }
        let mut tail =
            zstd::stream::write::Encoder::new(recipe, LEVEL).map_err(|error| compressor(&error))?;
        for (&number, bytes) in lost {
            let mut head = Vec::new();
            put(&mut head, u64::from(number));
            put(&mut head, bytes.len() as u64);
            tail.write_all(&head).map_err(|error| compressor(&error))?;
            tail.write_all(bytes).map_err(|error| compressor(&error))?;
        }
        tail.finish().map_err(|error| compressor(&error))
    }

    fn flush_literal(&mut self) -> Result<(), Fault> {
        if self.literal.is_empty() {
            return Ok(());
        }
        self.write(LITERAL, &[self.literal.len() as u64])?;
        self.ops
            .write_all(&self.literal)
            .map_err(|error| compressor(&error))?;
        self.literal.clear();
        if self.ops.get_ref().len() > MAX_RECIPE {
            return Err(Fault::Bad(format!(
                "headers and data that belong to no file take more than {MAX_RECIPE} bytes compressed"
            )));
        }
        Ok(())
    }

    fn write(&mut self, op: u8, numbers: &[u64]) -> Result<(), Fault> {
        let mut bytes = Vec::with_capacity(16);
        bytes.push(op);
        for &number in numbers {
            put(&mut bytes, number);
        }
        self.ops
            .write_all(&bytes)
            .map_err(|error| compressor(&error))
    }
}

/// Reads a recipe.
pub(crate) struct RecipeReader<'a> {
    ops: Stream<'a>,
    literal: Vec<u8>,
    tar_bytes: u64,
    expected: Expected,
}

type Stream<'a> = io::BufReader<zstd::stream::read::Decoder<'static, &'a [u8]>>;

/// What is wrong with a recipe.
#[derive(Debug, thiserror::Error)]
#[error("its recipe: {0}")]
pub(crate) struct BadRecipe(String);

impl From<&str> for BadRecipe {
    fn from(cause: &str) -> Self {
        BadRecipe(cause.to_owned())
    }
}

impl From<io::Error> for BadRecipe {
    fn from(error: io::Error) -> Self {
        BadRecipe(error.to_string())
    }
}

impl<'a> RecipeReader<'a> {
    /// At the first operation.
    pub(crate) fn new(recipe: &'a [u8]) -> Result<Self, BadRecipe> {
        let (ops, _) = split(recipe)?;
        Ok(RecipeReader {
            ops: stream(ops)?,
            literal: Vec::new(),
            tar_bytes: 0,
            expected: Expected::default(),
        })
    }

    /// The next operation; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Op<'_>>, BadRecipe> {
        let mut op = [0];
        self.ops.read_exact(&mut op)?;
        let mut number = || take(&mut self.ops);
        let (op, len) = match op {
            [LITERAL] => {
                let len = number()?;
                if len > MAX_LITERAL as u64 {
                    return Err("a literal that is too long".into());
                }
                self.literal.clear();
                (&mut self.ops).take(len).read_to_end(&mut self.literal)?;
                if self.literal.len() as u64 != len {
                    return Err("it ends in a literal".into());
                }
                (Op::Literal(&self.literal), len)
            }
            [EXTENT] => {
                let (device, jump, offset, len) = (number()?, number()?, number()?, number()?);
                let block = self
                    .expected
                    .block
                    .checked_add_signed(unzigzag(jump))
                    .ok_or("a block that cannot be")?;
                let end = offset.checked_add(len).ok_or("a range that cannot be")?;
                self.expected.block = block
                    .checked_add(end.div_ceil(BLOCK))
                    .ok_or("a block that cannot be")?;
                let op = Op::Extent {
                    device: narrow(device)?,
                    block: narrow(block)?,
                    offset,
                    len,
                };
                (op, len)
            }
            [SMALL] => {
                let (jump, offset, len) = (number()?, number()?, number()?);
                let number = self
                    .expected
                    .small
                    .checked_add_signed(unzigzag(jump))
                    .ok_or("a number that cannot be")?;
                let op = Op::Small {
                    number: narrow(number)?,
                    offset: narrow(offset)?,
                    len: narrow(len)?,
                };
                self.expected.small = number + 1;
                (op, len)
            }
            [END] => {
                if number()? != self.tar_bytes {
                    return Err("its length is not what it says".into());
                }
                return Ok(None);
            }
            [_] => return Err("an operation that is not known".into()),
        };
        self.tar_bytes = self
            .tar_bytes
            .checked_add(len)
            .ok_or("a length that cannot be")?;
        Ok(Some(op))
    }
}

/// The small contents that a recipe holds itself. `max` is the most bytes one may have.
pub(crate) fn lost_contents(
    recipe: &[u8],
    max: usize,
) -> Result<BTreeMap<u32, Vec<u8>>, BadRecipe> {
    let (_, tail) = split(recipe)?;
    let mut tail = stream(tail)?;
    let mut lost = BTreeMap::new();
    while !tail.fill_buf()?.is_empty() {
        let number = narrow(take(&mut tail)?)?;
        let len = take(&mut tail)?;
        if len > max as u64
            || lost
                .last_key_value()
                .is_some_and(|(&last, _)| last >= number)
        {
            return Err("small contents out of order or too long".into());
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        tail.read_exact(&mut bytes)?;
        lost.insert(number, bytes);
    }
    Ok(lost)
}

/// Both streams.
fn split(recipe: &[u8]) -> Result<(&[u8], &[u8]), BadRecipe> {
    let (&version, rest) = recipe.split_first().ok_or("it is empty")?;
    if version != VERSION {
        return Err(BadRecipe(format!("version {version} is not known")));
    }
    let (len, streams) = rest.split_first_chunk::<8>().ok_or("it is cut short")?;
    usize::try_from(u64::from_le_bytes(*len))
        .ok()
        .and_then(|len| streams.split_at_checked(len))
        .ok_or_else(|| "it is cut short".into())
}

fn stream(bytes: &[u8]) -> Result<Stream<'_>, BadRecipe> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?;
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(io::BufReader::with_capacity(64 << 10, decoder))
}

fn compressor(error: &io::Error) -> Fault {
    Fault::Bad(format!("compressing its recipe: {error}"))
}

fn narrow(number: u64) -> Result<u32, BadRecipe> {
    u32::try_from(number).map_err(|_| "a number that is too large".into())
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn take(from: &mut impl Read) -> Result<u64, BadRecipe> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        let [byte] = byte;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number that is too large".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Owned {
        Literal(Vec<u8>),
        Extent(u32, u32, u64, u64),
        Small(u32, u32, u32),
    }

    fn ops() -> impl Strategy<Value = Vec<Owned>> {
        let literal = proptest::collection::vec(any::<u8>(), 1..600).prop_map(Owned::Literal);
        let extent = (any::<u32>(), any::<u32>(), 0..1_u64 << 50, 0..1_u64 << 50)
            .prop_map(|(device, block, offset, len)| Owned::Extent(device, block, offset, len));
        let small =
            (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(n, o, l)| Owned::Small(n, o, l));
        proptest::collection::vec(prop_oneof![literal, extent, small], 0..40)
    }

    fn write(ops: &[Owned], lost: &BTreeMap<u32, &[u8]>) -> Vec<u8> {
        let mut writer = RecipeWriter::new().unwrap();
        for op in ops {
            writer
                .push(match op {
                    Owned::Literal(bytes) => Op::Literal(bytes),
                    &Owned::Extent(device, block, offset, len) => Op::Extent {
                        device,
                        block,
                        offset,
                        len,
                    },
                    &Owned::Small(number, offset, len) => Op::Small {
                        number,
                        offset,
                        len,
                    },
                })
                .unwrap();
        }
        writer.finish(lost).unwrap()
    }

    fn read(recipe: &[u8]) -> Result<Vec<Owned>, BadRecipe> {
        let mut reader = RecipeReader::new(recipe)?;
        let mut ops = Vec::new();
        while let Some(op) = reader.next()? {
            ops.push(match op {
                Op::Literal(bytes) => Owned::Literal(bytes.to_vec()),
                Op::Extent {
                    device,
                    block,
                    offset,
                    len,
                } => Owned::Extent(device, block, offset, len),
                Op::Small {
                    number,
                    offset,
                    len,
                } => Owned::Small(number, offset, len),
            });
        }
        Ok(ops)
    }

    /// Literals that touch are one.
    fn joined(ops: &[Owned]) -> Vec<Owned> {
        let mut joined: Vec<Owned> = Vec::new();
        for op in ops {
            match (joined.last_mut(), op) {
                (Some(Owned::Literal(last)), Owned::Literal(more)) => last.extend(more),
                _ => joined.push(op.clone()),
            }
        }
        joined
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ops in ops()) {
            let lost: [(u32, &[u8]); 3] = [(3, b"three"), (70_000, b"x"), (70_001, &[7; 1024])];
            let lost = BTreeMap::from(lost);
            let recipe = write(&ops, &lost);
            prop_assert_eq!(read(&recipe).unwrap(), joined(&ops));
            let found = lost_contents(&recipe, 1024).unwrap();
            prop_assert!(found.iter().map(|(&n, b)| (n, b.as_slice())).eq(lost));
        }

        #[test]
        fn damage_never_panics(ops in ops(), at in any::<prop::sample::Index>(), bit in 0..8, cut in any::<prop::sample::Index>()) {
            let mut recipe = write(&ops, &BTreeMap::from([(1, &b"one"[..])]));
            let at = at.index(recipe.len());
            recipe[at] ^= 1_u8 << bit;
            let _ = (read(&recipe), lost_contents(&recipe, 1024));
            recipe.truncate(cut.index(recipe.len()));
            let _ = (read(&recipe), lost_contents(&recipe, 1024));
        }
    }

    #[test]
    fn numbers_keep_their_value() {
        for number in [0, 1, 127, 128, 300, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            assert_eq!(take(&mut bytes.as_slice()).unwrap(), number);
        }
        assert!(take(&mut &[0xff; 11][..]).is_err());
        assert!(
            take(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..]).is_err()
        );
        for number in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(number)), number);
        }
    }

    #[test]
    fn a_cut_recipe_is_refused() {
        let ops = [Owned::Literal(vec![1; 5000]), Owned::Small(0, 0, 9)];
        let recipe = write(&ops, &BTreeMap::new());
        for len in 0..recipe.len() - 13 {
            assert!(read(&recipe[..len]).is_err(), "{len}");
        }
    }
}

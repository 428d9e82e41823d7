//! Directory blocks: entries sorted by name bytes, within a block and from block to block, as the kernel's binary search
//! needs them.

use std::collections::BTreeMap;

use super::ondisk::{BLOCK, DIRENT_SIZE};
use super::tree::InodeId;

/// One entry with `.` and `..` named as such.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Itself,
    Parent,
    Child(InodeId),
}

/// All entries of a directory in their order on disk, `.` and `..` in their sorted places.
pub(super) fn sorted(
    entries: &BTreeMap<Box<[u8]>, InodeId>,
) -> impl Iterator<Item = (&[u8], Target)> {
    let dots: [(&[u8], Target); 2] = [(b".", Target::Itself), (b"..", Target::Parent)];
    let mut dots = dots.into_iter().peekable();
    let mut children = entries
        .iter()
        .map(|(name, id)| (name.as_ref(), Target::Child(*id)))
        .peekable();
    std::iter::from_fn(move || match (dots.peek(), children.peek()) {
        (Some(dot), Some(child)) if child.0 < dot.0 => children.next(),
        (Some(_), _) => dots.next(),
        (None, _) => children.next(),
    })
}

/// The bytes a directory's data takes.
pub(super) fn data_size(entries: &BTreeMap<Box<[u8]>, InodeId>) -> u64 {
    let mut full = 0;
    let mut used = 0;
    for (name, _) in sorted(entries) {
        let need = DIRENT_SIZE + name.len();
        if used + need > BLOCK {
            full += BLOCK as u64;
            used = 0;
        }
        used += need;
    }
    full + used as u64
}

/// Appends a directory's data to `out`: full blocks, each padded with zeros, and a last one that ends with its last name.
/// `resolve` gives the node id and the file type byte of a target.
pub(super) fn encode(
    entries: &BTreeMap<Box<[u8]>, InodeId>,
    mut resolve: impl FnMut(Target) -> (u64, u8),
    out: &mut Vec<u8>,
) {
    let mut block: Vec<(&[u8], Target)> = Vec::new();
    let mut used = 0;
    for (name, target) in sorted(entries) {
        let need = DIRENT_SIZE + name.len();
        if used + need > BLOCK {
            encode_block(&block, &mut resolve, out);
            out.resize(out.len() + BLOCK - used, 0);
            block.clear();
            used = 0;
        }
        used += need;
        block.push((name, target));
    }
    encode_block(&block, &mut resolve, out);
}

fn encode_block(
    block: &[(&[u8], Target)],
    resolve: &mut impl FnMut(Target) -> (u64, u8),
    out: &mut Vec<u8>,
) {
    let mut name_at = block.len() * DIRENT_SIZE;
    for (name, target) in block {
        let (nid, file_type) = resolve(*target);
        out.extend_from_slice(&nid.to_le_bytes());
        // At most 4096 minus a name of at least one byte.
        out.extend_from_slice(&(name_at as u16).to_le_bytes());
        out.extend_from_slice(&[file_type, 0]);
        name_at += name.len();
    }
    for (name, _) in block {
        out.extend_from_slice(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&[u8]]) -> BTreeMap<Box<[u8]>, InodeId> {
        list.iter()
            .zip(1..)
            .map(|(name, id)| (Box::from(*name), id))
            .collect()
    }

    #[test]
    fn dots_take_their_sorted_places() {
        let entries = names(&[b"!", b"...", b".-", b".a", b"a", b"\xff"]);
        let order: Vec<&[u8]> = sorted(&entries).map(|(name, _)| name).collect();
        let expected: [&[u8]; 8] = [b"!", b".", b".-", b"..", b"...", b".a", b"a", b"\xff"];
        assert_eq!(order, expected);
    }

    #[test]
    fn size_and_bytes_agree() {
        for count in [0_usize, 1, 15, 16, 300, 5000] {
            for length in [3_usize, 17, 255] {
                let list: Vec<Vec<u8>> = (0..count)
                    .map(|n| format!("{n:0length$}").into_bytes())
                    .collect();
                let list: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
                let entries = names(&list);
                if entries.len() < count {
                    continue;
                }
                let mut out = Vec::new();
                encode(&entries, |_| (1, 1), &mut out);
                assert_eq!(
                    out.len() as u64,
                    data_size(&entries),
                    "{count} names of {length}"
                );
            }
        }
    }
}

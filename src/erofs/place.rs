//! Gives out places for inodes.

use super::ondisk::{BLOCK_SIZE, INODE_EXTENDED_SIZE, SLOT};

/// Gives out places for inodes, 32-byte slot by slot.
pub(super) struct Placer {
    /// Behind the last place.
    pub(super) next: u64,
    /// Free ranges within passed blocks, by their length in slots.
    gaps: [Vec<u64>; 128],
    /// Bit n: `gaps[n]` has something.
    lengths: u128,
}

impl Placer {
    pub(super) fn new(start: u64) -> Self {
        Placer {
            next: start,
            gaps: std::array::from_fn(|_| Vec::new()),
            lengths: 0,
        }
    }

    /// An offset with this many bytes from it on, within one block if they fit in one.
    pub(super) fn place(&mut self, size: u64) -> u64 {
        let size = size.next_multiple_of(SLOT);
        let room = BLOCK_SIZE - self.next % BLOCK_SIZE;
        if size > BLOCK_SIZE {
            // Only xattrs and chunk indexes may run over blocks; the inode itself should not, which spares a copy.
            if room < INODE_EXTENDED_SIZE {
                self.next += room;
            }
        } else if let Some(offset) = self.take_gap(size) {
            return offset;
        } else if size > room {
            self.add_gap(self.next, room);
            self.next += room;
        }
        let offset = self.next;
        self.next += size;
        offset
    }

    /// The shortest gap that fits, the latest of them.
    fn take_gap(&mut self, size: u64) -> Option<u64> {
        let slots = (size / SLOT) as u32;
        let fitting = self.lengths & u128::MAX.checked_shl(slots)?;
        if fitting == 0 {
            return None;
        }
        let length = fitting.trailing_zeros();
        let gaps = self.gaps.get_mut(length as usize)?;
        let offset = gaps.pop()?;
        if gaps.is_empty() {
            self.lengths &= !(1 << length);
        }
        self.add_gap(offset + size, u64::from(length) * SLOT - size);
        Some(offset)
    }

    fn add_gap(&mut self, offset: u64, size: u64) {
        let length = size / SLOT;
        if size < INODE_EXTENDED_SIZE {
            return;
        }
        if let Some(gaps) = self.gaps.get_mut(length as usize) {
            gaps.push(offset);
            self.lengths |= 1 << length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_within_blocks_and_fill_gaps() {
        let mut placer = Placer::new(1152);
        assert_eq!(placer.place(64), 1152);
        assert_eq!(placer.place(4096), 4096);
        // 2880 bytes are left of block 0.
        assert_eq!(placer.place(2000), 1216);
        assert_eq!(placer.place(96), 3232);
        assert_eq!(placer.place(900), 8192);
        assert_eq!(placer.place(768), 3328);
        assert_eq!(placer.place(64), 9120);
    }

    #[test]
    fn a_large_place_may_cross_blocks_but_not_its_inode() {
        let mut placer = Placer::new(4096 + 4064);
        assert_eq!(placer.place(10_000), 8192);
        assert_eq!(placer.place(5000), 18_208);
    }
}

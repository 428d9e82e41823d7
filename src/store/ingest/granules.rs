//! How a sparse file is cut into equal pieces, so that holes cost nothing and the chunk index stays small.

use super::layer::BLOCK;
use super::tar::SparseMap;
use crate::erofs::Chunk;

/// Pieces of one file at most, give or take one.
const MAX_GRANULES: u64 = 65536;

/// The pieces of a sparse file: those with any data are kept, one after the other, as one content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Granules {
    /// Of the file.
    size: u64,
    /// A piece has `4096 << bits` bytes.
    bits: u8,
    /// Numbers of the pieces that hold data, ascending.
    live: Vec<u64>,
}

impl Granules {
    /// Cuts a file into pieces of the smallest size that keeps their number bounded.
    pub(crate) fn new(map: &SparseMap) -> Self {
        let mut bits = 0;
        while map.size.div_ceil(BLOCK << bits) > MAX_GRANULES && bits < 31 {
            bits += 1;
        }
        let granule = BLOCK << bits;
        let mut live = Vec::new();
        for &(offset, len) in map.regions.iter().filter(|&&(_, len)| len > 0) {
            let last = (offset + (len - 1)) / granule;
            let mut next = offset / granule;
            if live.last() == Some(&next) {
                next += 1;
            }
            live.extend(next..=last);
        }
        Granules {
            size: map.size,
            bits,
            live,
        }
    }

    /// For EROFS.
    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    /// Bytes of the content: all pieces are whole but the file's last.
    pub(crate) fn content_len(&self) -> u64 {
        let granule = BLOCK << self.bits;
        let cut = match self.live.last() {
            Some(&last) => ((last + 1) * granule).saturating_sub(self.size),
            None => 0,
        };
        self.live.len() as u64 * granule - cut
    }

    /// Where the byte at `offset` of the file, which is data, is in the content.
    pub(crate) fn position(&self, offset: u64) -> u64 {
        let granule = BLOCK << self.bits;
        let rank = self.live.partition_point(|&live| live < offset / granule);
        rank as u64 * granule + offset % granule
    }

    /// The chunk index, given the device and first block of the content.
    pub(crate) fn chunks(&self, place: Option<(u16, u32)>) -> Vec<Option<Chunk>> {
        let count = self.size.div_ceil(BLOCK << self.bits);
        let mut chunks = vec![None; usize::try_from(count).unwrap_or_default()];
        let Some((device, first)) = place else {
            return chunks;
        };
        for (rank, &live) in (0_u32..).zip(&self.live) {
            if let Some(chunk) = usize::try_from(live).ok().and_then(|at| chunks.get_mut(at)) {
                let block = first.saturating_add(rank << self.bits);
                *chunk = Some(Chunk { device, block });
            }
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granules(size: u64, regions: &[(u64, u64)]) -> Granules {
        Granules::new(&SparseMap {
            size,
            regions: regions.to_vec(),
        })
    }

    #[test]
    fn only_pieces_with_data_are_kept() {
        let g = granules(
            1 << 20,
            &[(0, 1), (4095, 2), (100_000, 10_000), ((1 << 20) - 1, 1)],
        );
        assert_eq!((g.bits, g.live.clone()), (0, vec![0, 1, 24, 25, 26, 255]));
        assert_eq!(g.content_len(), 6 * 4096);
        assert_eq!(g.position(0), 0);
        assert_eq!(g.position(4095), 4095);
        assert_eq!(g.position(100_000), 2 * 4096 + 100_000 % 4096);
        assert_eq!(g.position((1 << 20) - 1), 6 * 4096 - 1);
        let chunks = g.chunks(Some((3, 10)));
        assert_eq!(chunks.len(), 256);
        assert_eq!(
            chunks[0],
            Some(Chunk {
                device: 3,
                block: 10
            })
        );
        assert_eq!(chunks[2], None);
        assert_eq!(
            chunks[26],
            Some(Chunk {
                device: 3,
                block: 14
            })
        );
        assert_eq!(
            chunks[255],
            Some(Chunk {
                device: 3,
                block: 15
            })
        );
    }

    #[test]
    fn the_last_piece_ends_with_the_file() {
        let g = granules(10_000, &[(9_000, 1_000)]);
        assert_eq!(
            (g.content_len(), g.position(9_999)),
            (10_000 - 8192, 10_000 - 8192 - 1)
        );
        let g = granules(10_000, &[(0, 1)]);
        assert_eq!(g.content_len(), 4096);
        let g = granules(10_000, &[]);
        assert_eq!((g.content_len(), g.chunks(None)), (0, vec![None; 3]));
    }

    #[test]
    fn large_files_have_large_pieces() {
        let g = granules(16 << 40, &[((16 << 40) - 1, 1)]);
        assert_eq!(g.bits, 16);
        assert_eq!(g.content_len(), 256 << 20);
        assert_eq!(g.chunks(None).len(), 65536);
    }
}

//! Maps of sparse files: where they are written, and whether they make sense.

use super::entry::SparseMap;
use super::header::BLOCK;
use super::pax::{Sparse, decimal};

/// Regions of one file.
const MAX_REGIONS: usize = 1 << 20;
/// Of a sparse file with its holes: what one EROFS device can address.
const MAX_SIZE: u64 = 16 << 40;

/// Where the map of a sparse file is.
pub(super) enum Form {
    /// In PAX records (0.0 and 0.1).
    Known(SparseMap),
    /// At the start of the data (1.0).
    InData { size: u64 },
    /// In the header and blocks after it (old GNU).
    Blocks,
}

/// The form that PAX records name, if any.
pub(super) fn of_pax(sparse: &Sparse) -> Result<Option<Form>, String> {
    let version = match sparse.version {
        (Some(1), Some(0)) => {
            let size = sparse.size.ok_or("a sparse file without its size")?;
            return Ok(Some(Form::InData { size }));
        }
        (None, None) if sparse.map.is_none() => return Ok(None),
        version => version,
    };
    if !matches!(version, (None, None) | (Some(0), Some(0 | 1))) {
        return Err("a sparse file in a version that is not known".to_owned());
    }
    let map = sparse.map.as_deref().unwrap_or_default();
    if !map.len().is_multiple_of(2) {
        return Err("a sparse map with an offset but no length".to_owned());
    }
    let regions = map
        .chunks_exact(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)))
        .collect();
    let size = sparse.size.ok_or("a sparse file without its size")?;
    Ok(Some(Form::Known(SparseMap { size, regions })))
}

/// Refuses a map with too many regions.
pub(super) fn check_count(map: &SparseMap) -> Result<(), String> {
    if map.regions.len() > MAX_REGIONS {
        return Err(format!("a sparse map of more than {MAX_REGIONS} regions"));
    }
    Ok(())
}

/// The map without empty regions, if it is sorted, free of overlaps, inside the file and covers `body` bytes.
pub(super) fn checked(mut map: SparseMap, body: u64) -> Result<SparseMap, String> {
    check_count(&map)?;
    if map.size > MAX_SIZE {
        return Err(format!(
            "a sparse file of {} bytes; at most {MAX_SIZE} are possible",
            map.size
        ));
    }
    let (mut end, mut sum) = (0_u64, 0_u64);
    for &(offset, len) in &map.regions {
        let next = offset
            .checked_add(len)
            .filter(|&next| offset >= end && next <= map.size)
            .ok_or("a sparse map with regions out of order or beyond the end")?;
        end = next;
        sum += len;
    }
    if sum != body {
        return Err(format!(
            "a sparse map of {sum} bytes over {body} bytes of data"
        ));
    }
    map.regions.retain(|&(_, len)| len > 0);
    Ok(map)
}

/// Reads a PAX 1.0 map: decimal numbers, one a line, the first their count in pairs, padded to a block.
#[derive(Debug)]
pub(super) struct MapReader {
    size: u64,
    /// Pairs still to come; not known before the first line.
    pairs: Option<u64>,
    line: Vec<u8>,
    offset: Option<u64>,
    regions: Vec<(u64, u64)>,
    read: u64,
}

impl MapReader {
    /// For a file of `size` bytes with its holes.
    pub(super) fn new(size: u64) -> Self {
        MapReader {
            size,
            pairs: None,
            line: Vec::new(),
            offset: None,
            regions: Vec::new(),
            read: 0,
        }
    }

    /// Bytes up to the next block, which is where a map may end.
    pub(super) fn wants(&self) -> u64 {
        BLOCK as u64 - self.read % BLOCK as u64
    }

    /// True once the map and its padding are read.
    pub(super) fn is_done(&self) -> bool {
        self.pairs == Some(0) && self.read.is_multiple_of(BLOCK as u64)
    }

    /// Reads some more, at most [`MapReader::wants`].
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.read += bytes.len() as u64;
        for &byte in bytes {
            if self.pairs == Some(0) {
                // Padding.
                break;
            }
            match byte {
                b'\n' => self.number()?,
                _ if self.line.len() < 20 => self.line.push(byte),
                _ => return Err("a sparse map with a number that is too long".to_owned()),
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let number = decimal(&self.line).map_err(|cause| format!("in the sparse map: {cause}"))?;
        self.line.clear();
        let Some(pairs) = &mut self.pairs else {
            if number > MAX_REGIONS as u64 {
                return Err(format!("a sparse map of more than {MAX_REGIONS} regions"));
            }
            self.pairs = Some(number);
            return Ok(());
        };
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => {
                self.regions.push((offset, number));
                *pairs -= 1;
            }
        }
        Ok(())
    }

    /// The map, if it is whole.
    pub(super) fn finish(self) -> Result<SparseMap, String> {
        if !self.is_done() {
            return Err("a sparse map that does not end".to_owned());
        }
        Ok(SparseMap {
            size: self.size,
            regions: self.regions,
        })
    }
}

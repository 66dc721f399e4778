//! Files with holes in tar archives: which parts of a file the data of its entry is.

use std::io::Read;

use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader};

use super::{Damage, pax};
use crate::tree::{Piece, show};

/// The unit of an archive. Each piece of data begins in one of its own.
pub const BLOCK: u64 = 512;
/// Longest file, holes included: the largest part of an image. An archive of a few bytes can name one of
/// 2^64.
pub const MAX_FILE: u64 = ami::MAX_PART;
/// Most pieces of one file, 16 MB of them: a file whose every other block is a hole has as many with 8 GB.
const MAX_PIECES: usize = 1 << 20;
/// Longest number in a map, with its line's end: 2^64 has 20 digits.
const MAX_DIGITS: usize = 20;

/// The map of an entry of GNU tar's own kind: in its header, and in blocks that follow it.
pub fn of_header(header: &GnuHeader, stream: &mut impl Read) -> Result<Vec<(u64, u64)>, Damage> {
    let mut map = Vec::new();
    let mut add = |entries: &[GnuSparseHeader]| {
        for entry in entries.iter().filter(|entry| !entry.is_empty()) {
            if map.len() >= MAX_PIECES {
                return Err(Damage::TooMany(MAX_PIECES));
            }
            let (offset, length) = (entry.offset(), entry.length());
            map.push((offset.map_err(Damage::Read)?, length.map_err(Damage::Read)?));
        }
        Ok(())
    };
    add(&header.sparse)?;
    let mut more = header.is_extended();
    while more {
        let mut block = GnuExtSparseHeader::new();
        stream.read_exact(block.as_mut_bytes()).map_err(Damage::Read)?;
        add(block.sparse())?;
        more = block.is_extended();
    }
    Ok(map)
}

/// The map at the beginning of an entry's data, in lines: how many, then offset and length of each. It fills
/// whole blocks.
pub fn of_data(stream: &mut impl Read) -> Result<Vec<(u64, u64)>, Damage> {
    let mut lines = Lines {
        stream,
        block: [0; BLOCK as usize],
        at: BLOCK as usize,
    };
    let count = lines.number()?;
    if count > MAX_PIECES as u64 {
        return Err(Damage::TooMany(MAX_PIECES));
    }
    (0..count)
        .map(|_| Ok((lines.number()?, lines.number()?)))
        .collect()
}

struct Lines<'a, R> {
    stream: &'a mut R,
    block: [u8; BLOCK as usize],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, Damage> {
        let mut digits = Vec::new();
        loop {
            if self.at == self.block.len() {
                self.stream.read_exact(&mut self.block).map_err(Damage::Read)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return pax::number(&digits),
                _ if digits.len() == MAX_DIGITS => return Err(Damage::MalformedPax),
                _ => digits.push(byte),
            }
        }
    }
}

/// The pieces of a file of `length` bytes by its map, of which the archive holds `stored` bytes.
pub fn pieces(path: &[u8], map: &[(u64, u64)], length: u64, stored: u64) -> Result<Vec<Piece>, Damage> {
    let wrong = || Damage::Sparse(show(path));
    let mut pieces = Vec::new();
    let (mut at, mut used) = (0, 0);
    // GNU tar ends a map with a piece of no bytes where a hole ends the file.
    for (offset, count) in map.iter().filter(|(_, count)| *count > 0) {
        let end = offset.checked_add(*count).filter(|end| *end <= length);
        if *offset < at || used % BLOCK != 0 {
            return Err(wrong());
        }
        if *offset > at {
            pieces.push(Piece::Hole(offset - at));
        }
        pieces.push(Piece::Data {
            offset: used,
            length: *count,
        });
        at = end.ok_or_else(wrong)?;
        used += count;
    }
    if used != stored {
        return Err(wrong());
    }
    if length > at {
        pieces.push(Piece::Hole(length - at));
    }
    Ok(pieces)
}

//! Sparse files in a tar, of which only the pieces with data are stored: GNU tar's old type `S`, and its pax records in the
//! formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").
//!
//! A map is believed only when its pieces stand in order, end within the file, and have as many bytes as are stored. What it
//! takes in memory is bounded by its own bytes in the archive, never by a number in it.

use std::io::{self, Read};
use std::sync::Arc;

use super::{BLOCK, Kind, Tar, decimal, field, number, padding, unsupported};

/// Most pieces of one file.
const PIECES_MAX: usize = 1 << 18;

/// A range of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the file.
    pub at: u64,
    /// Its bytes.
    pub size: u64,
}

/// The pieces of a sparse file by growing place. Their data stands in the archive one behind the other, and what is
/// between them is zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map(Vec<Piece>);

impl Map {
    /// The pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Checks a map against the size of the file and the bytes that are stored of it.
    pub(super) fn new(mut pieces: Vec<Piece>, size: u64, stored: u64) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0_u64, 0_u64);
        for piece in &pieces {
            if piece.at < end {
                return Err("its pieces overlap or are not in order");
            }
            end = piece
                .at
                .checked_add(piece.size)
                .filter(|end| *end <= size)
                .ok_or("a piece ends behind the file")?;
            sum = sum.saturating_add(piece.size);
        }
        if sum != stored {
            return Err("its pieces have another number of bytes than the archive");
        }
        // GNU tar marks the end of a file that ends in a hole by an empty piece.
        pieces.retain(|piece| piece.size > 0);
        Ok(Map(pieces))
    }
}

/// A map as it was written, and the size of the whole file.
struct Raw {
    pieces: Vec<Piece>,
    size: u64,
}

/// The records `GNU.sparse.*` that wait for their entry.
#[derive(Default)]
pub(super) struct Records {
    version: (Option<u64>, Option<u64>),
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    count: Option<u64>,
    /// The place of a piece whose size is still to come.
    place: Option<u64>,
    pieces: Option<Vec<Piece>>,
}

impl Records {
    /// Takes a record; `key` is what stands behind `GNU.sparse.`. `None` if it is malformed.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.version.0 = Some(decimal(value)?),
            b"minor" => self.version.1 = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"numblocks" => self.count = Some(decimal(value)?),
            b"offset" => {
                if self.place.replace(decimal(value)?).is_some() {
                    return None;
                }
            }
            b"numbytes" => {
                let piece = Piece { at: self.place.take()?, size: decimal(value)? };
                self.pieces.get_or_insert_default().push(piece);
            }
            b"map" => {
                let pieces = self.pieces.get_or_insert_default();
                pieces.clear();
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(at) = numbers.next() {
                    pieces.push(Piece { at: decimal(at)?, size: decimal(numbers.next()?)? });
                }
            }
            // What nobody knows may be a part of the meaning.
            _ => return None,
        }
        Some(())
    }

    /// Whether the entry is sparse by these records.
    fn any(&self) -> bool {
        self.version != (None, None) || self.size.is_some() || self.pieces.is_some() || self.place.is_some()
    }
}

impl<R: Read> Tar<R> {
    /// Begins the data of an entry, of which `stored` bytes are in the archive. Gives the whole size and the map of a file that
    /// is sparse.
    pub(super) fn begin(
        &mut self,
        header: &[u8; BLOCK],
        kind: Kind,
        stored: u64,
        records: Records,
    ) -> io::Result<Option<(u64, Arc<Map>)>> {
        let old = if header.get(156) == Some(&b'S') { Some(self.map_of_headers(header)?) } else { None };
        (self.data, self.padding) = (stored, padding(stored));
        if kind != Kind::File && records.any() {
            return Err(self.bad_map("only a file has one"));
        }
        let raw = match (old, self.map_of_records(records)?) {
            (Some(_), Some(_)) => return Err(self.bad_map("there are two")),
            (None, None) => return Ok(None),
            (Some(raw), None) | (None, Some(raw)) => raw,
        };
        let map = Map::new(raw.pieces, raw.size, self.data).map_err(|why| self.bad_map(why))?;
        Ok(Some((raw.size, Arc::new(map))))
    }

    /// The map that the records of an entry tell, whose data begins here; `None` for an entry that is not sparse.
    fn map_of_records(&mut self, records: Records) -> io::Result<Option<Raw>> {
        if !records.any() {
            return Ok(None);
        }
        let size = records.size.ok_or_else(|| self.bad_map("the size of the file is missing"))?;
        match (records.version, records.pieces) {
            ((None | Some(0), None | Some(0 | 1)), Some(pieces)) => {
                let whole = records.count.is_none_or(|count| count == pieces.len() as u64);
                if records.place.is_some() || !whole || pieces.len() > PIECES_MAX {
                    return Err(self.bad_map("it has too few or too many pieces"));
                }
                Ok(Some(Raw { pieces, size }))
            }
            ((Some(1), None | Some(0)), None) => Ok(Some(Raw { pieces: self.map_before_data()?, size })),
            ((Some(major), minor), _) if major > 1 || minor.unwrap_or(0) > 1 - major => {
                let what = format!("a sparse file of the format {major}.{}", minor.unwrap_or(0));
                Err(unsupported(&format!("{what} is not supported")))
            }
            _ => Err(self.bad_map("it is missing, or there are two")),
        }
    }

    /// The map of format 1.0: decimal numbers, each on a line, before the data and filled up to a block.
    fn map_before_data(&mut self) -> io::Result<Vec<Piece>> {
        let (mut block, mut at) = ([0; BLOCK], BLOCK);
        let mut line = |tar: &mut Self| {
            let mut value = None;
            loop {
                if at == BLOCK {
                    if tar.data < BLOCK as u64 {
                        return Err(tar.bad_map("it is longer than the data"));
                    }
                    tar.read_exact(&mut block)?;
                    at = 0;
                }
                let byte = block.get(at).copied().unwrap_or(0);
                at += 1;
                value = match (byte, value) {
                    (b'0'..=b'9', _) => {
                        let value: Option<u64> = value.unwrap_or(0_u64).checked_mul(10);
                        let value = value.and_then(|value| value.checked_add(u64::from(byte - b'0')));
                        Some(value.ok_or_else(|| tar.bad_map("a number is too large"))?)
                    }
                    (b'\n', Some(value)) => return Ok(value),
                    _ => return Err(tar.bad_map("it is not decimal numbers, each on a line")),
                };
            }
        };
        let count = line(self)?;
        if count > PIECES_MAX as u64 {
            return Err(self.bad_map("it has too few or too many pieces"));
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push(Piece { at: line(self)?, size: line(self)? });
        }
        Ok(pieces)
    }

    /// The map of the old type `S`: four pieces in the header, and 21 in each block that follows while the last says so.
    fn map_of_headers(&mut self, header: &[u8; BLOCK]) -> io::Result<Raw> {
        if field(header, 257, 8) != b"ustar  \0" {
            return Err(unsupported("a sparse file (type S) that is not GNU tar's is not supported"));
        }
        let size = unsigned(field(header, 483, 12))
            .ok_or_else(|| self.bad_map("the size of the file is malformed"))?;
        let mut pieces = Vec::new();
        let (mut block, mut table, mut more) = (*header, 386..386 + 4 * 24, 482);
        loop {
            for at in table.step_by(24) {
                let (place, bytes) = (field(&block, at, 12), field(&block, at + 12, 12));
                // As in GNU tar, one without a size ends the table.
                if bytes.first() == Some(&0) {
                    break;
                }
                match (unsigned(place), unsigned(bytes)) {
                    (Some(at), Some(size)) if pieces.len() < PIECES_MAX => pieces.push(Piece { at, size }),
                    (Some(_), Some(_)) => return Err(self.bad_map("it has too few or too many pieces")),
                    _ => return Err(self.bad_map("a number is malformed")),
                }
            }
            if block.get(more) == Some(&0) {
                return Ok(Raw { pieces, size });
            }
            // A chain of empty blocks is no map either; it ends where the stream does.
            if !self.block(&mut block)? {
                return Err(self.cut());
            }
            (table, more) = (0..21 * 24, 504);
        }
    }

    pub(super) fn bad_map(&self, why: &str) -> io::Error {
        self.bad(&format!("the map of a sparse file is wrong: {why}"))
    }
}

fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|value| u64::try_from(value).ok())
}

/// Where in a sparse file reading stands.
pub(super) struct Cursor {
    map: Arc<Map>,
    /// The piece that is read or comes next.
    piece: usize,
    at: u64,
    size: u64,
}

/// What comes next in a file, and how many bytes of it.
pub(super) enum Next {
    Zeros(u64),
    Data(u64),
}

impl Cursor {
    pub(super) fn new(map: Arc<Map>, size: u64) -> Self {
        Cursor { map, piece: 0, at: 0, size }
    }

    pub(super) fn next(&mut self) -> Next {
        while let Some(piece) = self.map.0.get(self.piece) {
            if self.at < piece.at {
                return Next::Zeros(piece.at - self.at);
            }
            match piece.at + piece.size - self.at {
                0 => self.piece += 1,
                left => return Next::Data(left),
            }
        }
        Next::Zeros(self.size - self.at)
    }

    pub(super) fn advance(&mut self, bytes: usize) {
        self.at += bytes as u64;
    }
}

#[cfg(test)]
#[path = "sparse_tests.rs"]
mod tests;

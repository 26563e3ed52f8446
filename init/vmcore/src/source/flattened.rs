//! A flattened dump in the order that it has after unpacking, without unpacking it: an index of its
//! pieces.
//!
//! The index takes 24 bytes per piece. makedumpfile makes a piece of some 36 KiB, so that is 70 MB
//! for a dump of 100 GB; a file of tiny pieces ends at [`MAX_PIECES`].

use std::collections::BinaryHeap;
use std::fs::File;
use std::io;

use crate::format::flattened::{self, FlattenedError, Record};
use base::addr::{to_u64, to_usize};
use base::read_at::{ReadAt, read_up_to};

/// Most pieces of one file.
const MAX_PIECES: usize = 1 << 24;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FlattenedOpenError {
    /// It cannot be read.
    #[error("reading the file")]
    Read(#[from] io::Error),
    /// Its header is another one.
    #[error("the flattened dump is not usable")]
    Format(#[from] FlattenedError),
    /// Too many pieces.
    #[error("the flattened dump has more than {MAX_PIECES} pieces")]
    Pieces,
}

/// Bytes `start..end` of the dump, which lie at `at` in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    at: u64,
}

/// An open flattened file.
#[derive(Debug)]
pub(super) struct Flattened {
    file: File,
    /// Sorted and disjoint.
    pieces: Vec<Piece>,
    /// Whether the end record was there, behind pieces that all are whole.
    complete: bool,
}

impl Flattened {
    /// Opens a flattened file and lists its pieces. One that breaks off, or has a record that
    /// cannot be, counts as far as it goes.
    pub(super) fn open(file: File) -> Result<Self, FlattenedOpenError> {
        flattened::parse_header(&read_up_to(&file, 0, flattened::HEADER_LEN)?)?;
        let file_len = file.metadata()?.len();
        let mut pieces = Vec::new();
        let mut at = to_u64(flattened::HEADER_LEN);
        let complete = loop {
            let record = Record::parse(&read_up_to(&file, at, flattened::RECORD_LEN)?);
            let (start, len) = match record {
                Some(Record::Piece { offset, len }) => (offset, len),
                Some(Record::End) => break true,
                None => break false,
            };
            at = at.saturating_add(to_u64(flattened::RECORD_LEN));
            let have = len.min(file_len.saturating_sub(at));
            if have > 0 {
                pieces.push(Piece { start, end: start.saturating_add(have), at });
            }
            if pieces.len() > MAX_PIECES {
                return Err(FlattenedOpenError::Pieces);
            }
            if have < len {
                break false;
            }
            at = at.saturating_add(len);
        };
        Ok(Self { file, pieces: last_wins(&pieces), complete })
    }

    /// Length of the dump.
    pub(super) fn len(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.end)
    }

    /// Bytes of the dump that are in the file.
    pub(super) fn stored(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.end.saturating_sub(piece.start)))
    }

    /// Whether the stream came to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }
}

impl ReadAt for Flattened {
    /// Between pieces there are zeros, as in the holes of an unpacked file. What an unfinished
    /// stream does not have may have been cut off, so there is nothing.
    fn read_some(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let next = self.pieces.partition_point(|piece| piece.end <= offset);
        let Some(piece) = self.pieces.get(next) else { return Ok(0) };
        let room = |bytes: u64| to_usize(bytes).min(out.len());
        if let Some(hole @ 1..) = piece.start.checked_sub(offset) {
            if !self.complete {
                return Ok(0);
            }
            let len = room(hole);
            out.get_mut(..len).unwrap_or_default().fill(0);
            return Ok(len);
        }
        let len = room(piece.end.saturating_sub(offset));
        let at = piece.at.saturating_add(offset.saturating_sub(piece.start));
        self.file.read_some(out.get_mut(..len).unwrap_or_default(), at)
    }
}

/// Makes pieces in the order of the file sorted and disjoint: where several have a byte, the last
/// one has it.
fn last_wins(pieces: &[Piece]) -> Vec<Piece> {
    let mut edges: Vec<u64> = pieces.iter().flat_map(|piece| [piece.start, piece.end]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut by_start: Vec<usize> = (0..pieces.len()).collect();
    by_start.sort_by_key(|&index| pieces.get(index).map(|piece| piece.start));
    let mut coming = by_start.into_iter().filter_map(|index| Some((index, pieces.get(index)?))).peekable();

    // Between two edges nothing begins or ends: the one with the highest index of those that are
    // open has it.
    let mut open: BinaryHeap<(usize, u64)> = BinaryHeap::new();
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len());
    for (&start, &end) in edges.iter().zip(edges.iter().skip(1)) {
        while let Some((index, piece)) = coming.next_if(|(_, piece)| piece.start <= start) {
            open.push((index, piece.end));
        }
        while open.peek().is_some_and(|&(_, end)| end <= start) {
            open.pop();
        }
        let Some(piece) = open.peek().and_then(|&(index, _)| pieces.get(index)) else { continue };
        let at = piece.at.saturating_add(start.saturating_sub(piece.start));
        match out.last_mut() {
            Some(last) if last.end == start && at.checked_sub(last.at) == start.checked_sub(last.start) => {
                last.end = end;
            }
            _ => out.push(Piece { start, end, at }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(pieces: &[(u64, &[u8])], end: bool) -> Vec<u8> {
        let mut out = flattened::emit_header().to_vec();
        for &(offset, data) in pieces {
            out.extend(Record::Piece { offset, len: to_u64(data.len()) }.emit());
            out.extend(data);
        }
        if end {
            out.extend(Record::End.emit());
        }
        out
    }

    fn open(bytes: &[u8]) -> Flattened {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Flattened::open(file).unwrap()
    }

    use std::os::unix::fs::FileExt;

    fn read(flattened: &Flattened, offset: u64, len: usize) -> Vec<u8> {
        read_up_to(flattened, offset, len).unwrap()
    }

    #[test]
    fn pieces_in_any_order_read_as_one_file() {
        let whole = open(&file(&[(6, b"ghi"), (0, b"abc"), (9, b""), (3, b"def")], true));
        assert!(whole.is_complete());
        assert_eq!((whole.len(), whole.stored()), (9, 9));
        assert_eq!(read(&whole, 0, 100), b"abcdefghi");
        assert_eq!(read(&whole, 2, 2), b"cd");
    }

    #[test]
    fn what_comes_last_counts_and_holes_are_zeros() {
        let whole = open(&file(&[(0, b"aaaaaa"), (2, b"bb"), (10, b"c")], true));
        assert_eq!(read(&whole, 0, 100), b"aabbaa\0\0\0\0c");
        assert_eq!((whole.len(), whole.stored()), (11, 7));
    }

    #[test]
    fn a_stream_that_breaks_off_counts_as_far_as_it_goes() {
        let bytes = file(&[(0, b"aaaa"), (8, b"bbbb")], false);
        let cut = open(&bytes);
        assert!(!cut.is_complete());
        assert_eq!((read(&cut, 0, 100), read(&cut, 8, 100)), (b"aaaa".to_vec(), b"bbbb".to_vec()));
        assert_eq!(read(&cut, 5, 1), b"");
        let shorter = open(&bytes[..bytes.len() - 3]);
        assert_eq!(read(&shorter, 8, 100), b"b");
        assert!(!shorter.is_complete());
        let none = open(&bytes[..4096 + 15]);
        assert_eq!((none.len(), read(&none, 0, 1)), (0, Vec::new()));
    }

    #[test]
    fn a_record_that_cannot_be_ends_the_stream() {
        let mut bytes = file(&[(0, b"aaaa"), (8, b"bbbb")], true);
        bytes[4096 + 20] = 0x80; // the second offset
        let cut = open(&bytes);
        assert_eq!((cut.is_complete(), read(&cut, 0, 100)), (false, b"aaaa".to_vec()));
    }

    proptest! {
        #[test]
        fn reads_as_if_it_had_been_unpacked(
            raw in prop::collection::vec((0_u64..40, prop::collection::vec(1_u8.., 0..12)), 0..12),
            offset in 0_u64..50,
            len in 0_usize..60,
        ) {
            let pieces: Vec<(u64, &[u8])> = raw.iter().map(|(offset, data)| (*offset, &data[..])).collect();
            let mut unpacked = Vec::new();
            for &(offset, data) in pieces.iter().filter(|(_, data)| !data.is_empty()) {
                let offset = to_usize(offset);
                unpacked.resize(unpacked.len().max(offset + data.len()), 0);
                unpacked[offset..offset + data.len()].copy_from_slice(data);
            }
            let whole = open(&file(&pieces, true));
            prop_assert!(whole.pieces.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert_eq!(whole.len(), to_u64(unpacked.len()));
            let from = to_usize(offset).min(unpacked.len());
            let to = (from + len).min(unpacked.len());
            prop_assert_eq!(read(&whole, offset, len), &unpacked[from..to]);
        }
    }
}

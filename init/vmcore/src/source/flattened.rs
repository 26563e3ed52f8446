//! A flattened dump in the order that it has after unpacking, without unpacking it: an index of its
//! pieces.
//!
//! The index takes 24 bytes per piece. makedumpfile makes a piece of some 36 KiB, so that is 70 MB
//! for a dump of 100 GB; a file of tiny pieces ends at [`MAX_PIECES`].

use core::ops::Range;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;

use crate::format::flattened::{self, FlattenedError, Record};
use base::addr::{to_u64, to_usize};
use base::read_at::{ReadAt, read_up_to};

/// Most pieces of one file.
const MAX_PIECES: usize = 1 << 24;
/// Records in a row that must make sense for damage, or a part that is missing, to be over. Random
/// bytes look like one of them in one of 2^49 places.
const CHAIN: usize = 3;
/// Largest offset and bytes of a record that are believed behind damage: writers make pieces of
/// MiBs.
const MAX_OFFSET: u64 = 1 << 48;
const MAX_RECORD: u64 = 1 << 30;
/// Bytes that are searched for a record at a time.
const SEARCH: usize = 1 << 20;

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

/// The files of a stream, one behind the other.
#[derive(Debug)]
struct Joined {
    /// Each with its first byte in the stream; in order.
    files: Vec<(u64, File)>,
    len: u64,
}

impl Joined {
    fn new(files: Vec<File>) -> io::Result<Self> {
        let mut joined = Self { files: Vec::new(), len: 0 };
        for file in files {
            let len = file.metadata()?.len();
            joined.files.push((joined.len, file));
            joined.len = joined.len.saturating_add(len);
        }
        Ok(joined)
    }
}

impl ReadAt for Joined {
    fn read_some(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let next = self.files.partition_point(|(start, _)| *start <= offset);
        // Of several that begin here, all but the last one are empty.
        let Some((start, file)) = next.checked_sub(1).and_then(|index| self.files.get(index)) else {
            return Ok(0);
        };
        let end = self.files.get(next).map_or(self.len, |(start, _)| *start);
        let room = to_usize(end.saturating_sub(offset)).min(out.len());
        file.read_some(out.get_mut(..room).unwrap_or_default(), offset.saturating_sub(*start))
    }
}

/// Bytes `start..end` of the dump, which lie at `at` in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    at: u64,
}

/// An open flattened file, or the parts of one.
#[derive(Debug)]
pub(super) struct Flattened {
    file: Joined,
    /// Sorted and disjoint.
    pieces: Vec<Piece>,
    /// Whether the end record was there, behind pieces that all are whole.
    complete: bool,
    /// The dump's headers as they were when the stream began, for one that ends before they come:
    /// the block with the header, and the sub header that follows it.
    early: Option<(Vec<u8>, Vec<u8>)>,
    /// The last byte of the dump, plus one, that a piece in front of the first damage has.
    unbroken: u64,
    /// Whether our writer made it.
    is_ours: bool,
    /// Where what is not there is zero.
    zeros: Range<u64>,
}

/// The records of a stream, read from its start.
struct Records<'a> {
    file: &'a Joined,
    pieces: Vec<Piece>,
    /// Pieces in front of the first damage.
    whole: Option<usize>,
}

impl Records<'_> {
    /// Reads records from `at` to the end, and says whether the end record was there.
    fn read(&mut self, mut at: u64) -> Result<bool, FlattenedOpenError> {
        loop {
            let record = Record::parse(&read_up_to(self.file, at, flattened::RECORD_LEN)?);
            let here = at.saturating_add(to_u64(flattened::RECORD_LEN));
            let known = match record {
                Some(Record::End) => return Ok(true),
                Some(Record::Piece { offset, len }) => {
                    self.piece(offset, len, here)?.map(|have| (here.saturating_add(have), have == len))
                }
                None => None,
            };
            let (next, is_whole) = known.unwrap_or((at.saturating_add(1), false));
            at = next;
            if !is_whole {
                self.whole.get_or_insert(self.pieces.len());
                match self.search(at)? {
                    Some(next) => at = next,
                    None => return Ok(false),
                }
            }
        }
    }

    /// Takes the piece of `len` bytes at `here`, as far as it is there, and gives how far that is.
    /// `None` for one that no writer makes.
    fn piece(&mut self, start: u64, len: u64, here: u64) -> Result<Option<u64>, FlattenedOpenError> {
        if self.pieces.len() >= MAX_PIECES {
            return Err(FlattenedOpenError::Pieces);
        }
        let left = self.file.len.saturating_sub(here);
        let have = if left < len { left } else { self.known(here, len)? };
        if have < len && len > MAX_RECORD {
            return Ok(None);
        }
        if have > 0 {
            self.pieces.push(Piece { start, end: start.saturating_add(have), at: here });
        }
        Ok(Some(have))
    }

    /// Of the `len` bytes of a piece at `here`, those that surely belong to it. Where the file ends
    /// within them and no record follows them, the next file is not the next part.
    fn known(&self, here: u64, len: u64) -> Result<u64, FlattenedOpenError> {
        let end = here.saturating_add(len);
        let next = self.file.files.partition_point(|(start, _)| *start <= here);
        match self.file.files.get(next) {
            Some((boundary, _)) if *boundary < end && !self.is_record(end)? => {
                Ok(boundary.saturating_sub(here))
            }
            _ => Ok(len),
        }
    }

    /// Whether a record, or the end of the stream, is at `at`.
    fn is_record(&self, at: u64) -> Result<bool, FlattenedOpenError> {
        let record = Record::parse(&read_up_to(self.file, at, flattened::RECORD_LEN)?);
        Ok(at == self.file.len || record.is_some_and(is_likely))
    }

    /// The next place at or behind `from` where records follow each other.
    fn search(&self, from: u64) -> Result<Option<u64>, FlattenedOpenError> {
        let mut at = from;
        loop {
            let bytes = read_up_to(self.file, at, SEARCH)?;
            let places = bytes.windows(flattened::RECORD_LEN);
            for (index, place) in places.enumerate() {
                let here = at.saturating_add(to_u64(index));
                if Record::parse(place).is_some_and(is_likely) && self.is_chain(here)? {
                    return Ok(Some(here));
                }
            }
            if bytes.len() < SEARCH {
                return Ok(None);
            }
            at = at.saturating_add(to_u64(bytes.len().saturating_sub(flattened::RECORD_LEN - 1)));
        }
    }

    /// Whether [`CHAIN`] records follow each other from `at` on, or fewer up to the end of the
    /// stream.
    fn is_chain(&self, mut at: u64) -> Result<bool, FlattenedOpenError> {
        for step in 0..CHAIN {
            match Record::parse(&read_up_to(self.file, at, flattened::RECORD_LEN)?) {
                Some(Record::End) => return Ok(true),
                Some(record @ Record::Piece { len, .. }) if is_likely(record) => {
                    at = at.saturating_add(to_u64(flattened::RECORD_LEN)).saturating_add(len);
                }
                _ => return Ok(at == self.file.len && step > 0 || at > self.file.len && step > 1),
            }
        }
        Ok(true)
    }
}

/// Whether a record is one that a writer makes.
fn is_likely(record: Record) -> bool {
    match record {
        Record::Piece { offset, len } => offset <= MAX_OFFSET && (1..=MAX_RECORD).contains(&len),
        Record::End => true,
    }
}

impl Flattened {
    /// Opens a flattened file, or the parts of one in their order, and lists its pieces. One that
    /// breaks off counts as far as it goes. Behind damage, and behind a part that is missing, it
    /// counts again from the next place on where records follow each other.
    pub(super) fn open(files: Vec<File>) -> Result<Self, FlattenedOpenError> {
        let file = Joined::new(files)?;
        let head = read_up_to(&file, 0, flattened::HEADER_LEN)?;
        flattened::parse_header(&head)?;
        let mut records = Records { file: &file, pieces: Vec::new(), whole: None };
        let ended = records.read(to_u64(flattened::HEADER_LEN))?;
        let Records { pieces, whole, .. } = records;
        let complete = ended && whole.is_none();
        let in_order = pieces.get(..whole.unwrap_or(pieces.len())).unwrap_or_default();
        let unbroken = in_order.iter().map(|piece| piece.end).max().unwrap_or(0);
        let pieces = last_wins(&pieces);
        let has_header = pieces.first().is_some_and(|piece| piece.start == 0);
        let early = flattened::early_headers(&head);
        let is_ours = early.is_some();
        let early = early.filter(|_| !has_header);
        Ok(Self { file, pieces, complete, early, unbroken, is_ours, zeros: 0..0 })
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

    /// Takes what is not there from `start` to `end` for zeros, if the stream in front of its first
    /// damage came so far that the writer has passed it over. Our writer goes from front to back
    /// and leaves out zeros; of another one's bitmaps nobody knows that, so only descriptors are
    /// trusted: zeros there mean a lost page.
    pub(super) fn trust_holes(&mut self, start: u64, end: u64) {
        if self.unbroken > end && (self.is_ours || start > 0) {
            self.zeros = if self.is_ours { 0 } else { start }..end;
        }
    }

    /// The pieces, in the order of the dump: first byte and bytes of each.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces.iter().map(|piece| (piece.start, piece.end.saturating_sub(piece.start)))
    }

    /// Whether all `len` bytes at `offset` are there.
    pub(super) fn has(&self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else { return false };
        if self.complete {
            return end <= self.len();
        }
        let mut at = offset;
        for piece in self.pieces.iter().skip(self.pieces.partition_point(|piece| piece.end <= offset)) {
            if at >= end || piece.start > at {
                break;
            }
            at = piece.end;
        }
        at >= end
    }
}

/// Copies what `bytes`, which lie at `start`, have from `offset` on.
fn copy_from(bytes: &[u8], start: u64, out: &mut [u8], offset: u64) -> usize {
    let from = offset.checked_sub(start).and_then(|skip| bytes.get(to_usize(skip)..)).unwrap_or_default();
    let len = from.len().min(out.len());
    out.get_mut(..len).unwrap_or_default().copy_from_slice(from.get(..len).unwrap_or_default());
    len
}

impl ReadAt for Flattened {
    /// Between pieces there are zeros, as in the holes of an unpacked file. What an unfinished
    /// stream does not have may have been cut off, so there is nothing.
    fn read_some(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some((block, sub)) = &self.early {
            let got = copy_from(block, 0, out, offset).max(copy_from(sub, to_u64(block.len()), out, offset));
            if got > 0 {
                return Ok(got);
            }
        }
        let next = self.pieces.partition_point(|piece| piece.end <= offset);
        let room = |bytes: u64| to_usize(bytes).min(out.len());
        let piece = self.pieces.get(next);
        if let Some(piece) = piece.filter(|piece| piece.start <= offset) {
            let len = room(piece.end.saturating_sub(offset));
            let at = piece.at.saturating_add(offset.saturating_sub(piece.start));
            return self.file.read_some(out.get_mut(..len).unwrap_or_default(), at);
        }
        let is_zero = self.zeros.contains(&offset);
        let end = match piece {
            Some(piece) if self.complete => piece.start,
            Some(piece) if is_zero => piece.start.min(self.zeros.end),
            None if is_zero && !self.complete => self.zeros.end,
            _ => offset,
        };
        let len = room(end.saturating_sub(offset));
        out.get_mut(..len).unwrap_or_default().fill(0);
        Ok(len)
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
        Flattened::open(vec![file]).unwrap()
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
    fn behind_damage_the_stream_goes_on_where_records_follow_each_other() {
        let pieces: [(u64, &[u8]); 6] =
            [(0, b"aaaa"), (8, b"bbbb"), (16, b"cccc"), (24, b"dddd"), (32, b"eeee"), (40, b"ffff")];
        let bytes = file(&pieces, true);
        let record = |index: usize| 4096 + index * 20;
        // An offset, and a length, that cannot be.
        for (at, value) in [(record(1), 0x80), (record(1) + 8, 0x70)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let cut = open(&bytes);
            assert!(!cut.is_complete());
            assert_eq!((read(&cut, 0, 100), read(&cut, 16, 4)), (b"aaaa".to_vec(), b"cccc".to_vec()));
            assert!(cut.has(0, 4) && !cut.has(0, 5) && !cut.has(8, 1) && cut.has(41, 3));
        }
        // Too few records are left to be sure.
        let mut bytes = file(&pieces[..3], false);
        bytes[record(1)] = 0x80;
        bytes.pop();
        assert_eq!(read(&open(&bytes), 16, 4), b"");
    }

    #[test]
    fn parts_are_one_stream_and_a_missing_one_costs_its_own_bytes() {
        let data: Vec<Vec<u8>> = (1..=60_u8).map(|byte| vec![byte; 50]).collect();
        let pieces: Vec<(u64, &[u8])> =
            (0..).zip(&data).map(|(index, data)| (index * 50, data.as_slice())).collect();
        let bytes = file(&pieces, true);
        let join = |parts: &[&[u8]]| {
            let file = |bytes: &&[u8]| {
                let file = tempfile::tempfile().unwrap();
                file.write_all_at(bytes, 0).unwrap();
                file
            };
            Flattened::open(parts.iter().map(file).collect()).unwrap()
        };
        let (head, rest) = bytes.split_at(4096 + 66 * 10 + 30); // in the middle of a piece
        let (middle, tail) = rest.split_at(66 * 20 + 7);
        let whole = join(&[head, middle, b"", tail]);
        assert!(whole.is_complete());
        assert_eq!(read(&whole, 0, 9000), data.concat());
        let gap = join(&[head, tail]);
        assert!(!gap.is_complete());
        let there: usize = (0..3000).filter(|&at| gap.has(at, 1)).count();
        assert!((1900..=2000).contains(&there), "{there}: 20 pieces are gone, and parts of two");
        for at in (0..3000).filter(|&at| gap.has(at, 1)) {
            assert_eq!(read(&gap, at, 1), data.concat()[to_usize(at)..][..1]);
        }
    }

    #[test]
    fn holes_are_zeros_only_where_the_writer_has_passed() {
        let bytes = file(&[(0, b"aaaa"), (8, b"bbbb"), (20, b"cccc")], false);
        let mut cut = open(&bytes);
        cut.is_ours = true;
        cut.trust_holes(0, 30);
        assert_eq!(read(&cut, 5, 1), b"", "it has not come so far");
        cut.trust_holes(0, 18);
        assert_eq!(
            (read(&cut, 0, 100), read(&cut, 19, 1)),
            (b"aaaa\0\0\0\0bbbb\0\0\0\0\0\0".to_vec(), vec![])
        );
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

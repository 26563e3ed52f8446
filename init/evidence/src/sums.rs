//! SHA-256 of files while they are written.
//!
//! What comes from front to back has the sum of the whole. A dump in the kdump format does not: its pages
//! come in order, but the header, bitmaps and descriptors that stand before them come in many places, and
//! last. So a dump is cut into pieces, each with a sum of its own: at the end of that front, and every
//! [`PIECE`] bytes. Pages are hashed on their way; the front, a few hundredths of the file, is read back when
//! it is durable, and so is a piece that a failed write has made doubtful.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use base::addr::{to_u64, to_usize};
use base::beat;
use base::lock::lock;
use vmcore::sink::{Sink, SinkError};
use vmcore::target::Artifact;

/// Bytes of a piece: a reader who has lost one block loses no more than this much proof.
pub const PIECE: u64 = 64 << 20;
/// Reading back may take a tenth of the time that the file took, or this time if that is longer: the
/// machine cannot restart before it has ended.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are read at a time.
const READ: u64 = 128 << 10;
/// Bytes that were never written and read as zeros: so many are hashed as part of the whole.
const MOST_ZEROS: u64 = 1 << 30;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A SHA-256.
pub type Sum = [u8; 32];

/// What is known of the bytes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSums {
    /// Its length.
    pub bytes: u64,
    /// The sum of the whole, where it was written from front to back.
    pub whole: Option<Sum>,
    /// Of a dump: all of it in pieces, from its beginning to its end.
    pub pieces: Vec<Piece>,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub offset: u64,
    /// Its length, bytes.
    pub bytes: u64,
    /// Its sum; `None` if what lies there is not known.
    pub sum: Option<Sum>,
}

/// The files of a target.
#[derive(Debug, Default)]
pub(crate) struct Sums(Vec<Followed>);

#[derive(Debug)]
struct Followed {
    artifact: Artifact,
    running: Arc<Mutex<Running>>,
    since: Instant,
}

impl Sums {
    /// Hashes what is written to a new file.
    pub(crate) fn follow(&mut self, artifact: Artifact, sink: Box<dyn Sink>) -> Box<dyn Sink> {
        let piece = if artifact == Artifact::Vmcore { PIECE } else { u64::MAX };
        self.begin(artifact, sink, Running::new(piece, true))
    }

    /// Hashes the pieces of a dump to a target that hashes the whole itself: twice costs twice.
    pub(crate) fn follow_pieces(&mut self, artifact: Artifact, sink: Box<dyn Sink>) -> Box<dyn Sink> {
        self.begin(artifact, sink, Running::new(PIECE, false))
    }

    fn begin(&mut self, artifact: Artifact, sink: Box<dyn Sink>, running: Running) -> Box<dyn Sink> {
        self.0.retain(|followed| followed.artifact != artifact); // one that was begun again
        let running = Arc::new(Mutex::new(running));
        self.0.push(Followed { artifact, running: Arc::clone(&running), since: Instant::now() });
        Box::new(Hashed { sink, running })
    }

    /// Reads back the pieces of a durable file that were not hashed on their way. `read` fills a buffer from
    /// an offset.
    pub(crate) fn complete(
        &mut self,
        artifact: Artifact,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) {
        let Some(followed) = self.0.iter().find(|followed| followed.artifact == artifact) else { return };
        let mut running = lock(&followed.running);
        running.end_piece();
        if running.is_lost {
            log::warn!("{} has no SHA-256 of what was written last: the target lost it", artifact.name());
            return;
        }
        let patience = followed.since.elapsed().div_f64(10.0).max(LEAST_PATIENCE);
        let limit = Instant::now().checked_add(patience);
        for piece in &mut running.pieces {
            if piece.sum.is_some() {
                continue;
            }
            match sum_of(piece, limit, &mut read) {
                Ok(sum) => piece.sum = Some(sum),
                Err(error) => {
                    let (name, from) = (artifact.name(), piece.offset);
                    log::warn!("{name} has no SHA-256 from byte {from} on: reading it back: {error}");
                    break;
                }
            }
        }
    }

    /// What is known of a file by now.
    pub(crate) fn of(&self, artifact: Artifact) -> Option<FileSums> {
        let followed = self.0.iter().find(|followed| followed.artifact == artifact)?;
        Some(lock(&followed.running).sums())
    }
}

fn sum_of(
    piece: &Piece,
    limit: Option<Instant>,
    read: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<Sum> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; to_usize(piece.bytes.min(READ))];
    let mut at = 0;
    while at < piece.bytes {
        beat::alive(); // bounded by patience
        if limit.is_some_and(|limit| Instant::now() > limit) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long"));
        }
        let some = buffer.get_mut(..to_usize(piece.bytes.saturating_sub(at).min(READ))).unwrap_or_default();
        read(piece.offset.saturating_add(at), some)?;
        hash.update(&*some);
        at = at.saturating_add(to_u64(some.len()));
    }
    Ok(hash.finalize().into())
}

/// A file that is being written.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Running {
    /// Length of a piece.
    size: u64,
    /// Whether the whole is hashed.
    with_whole: bool,
    /// Bytes at its beginning that come in any order, and are read back.
    front: u64,
    /// The furthest byte.
    end: u64,
    /// How far what comes in order is.
    at: u64,
    /// Of all bytes, as long as they come in order.
    whole: Option<Sha256>,
    /// Of the piece that `at` is in; `None` while that is the first and `whole` has it.
    hash: Option<Sha256>,
    /// Whether that piece can no longer be told without reading it.
    is_doubtful: bool,
    /// Those that have ended. The front is put before them in the end.
    pieces: Vec<Piece>,
    /// Of those, so many were durable at the last sync.
    durable: usize,
    /// Making bytes durable has failed. What is read then comes out of the page cache, which has them, and
    /// not from the disk, which has not.
    is_lost: bool,
    /// Bytes that were never written.
    zeros: u64,
    is_ended: bool,
}

impl Running {
    fn new(size: u64, with_whole: bool) -> Self {
        Self {
            size,
            with_whole,
            front: 0,
            end: 0,
            at: 0,
            whole: with_whole.then(Sha256::new),
            hash: (!with_whole).then(Sha256::new),
            is_doubtful: false,
            pieces: Vec::new(),
            durable: 0,
            is_lost: false,
            zeros: 0,
            is_ended: false,
        }
    }

    /// The first `len` bytes come in any order. Only a dump has such a front: other files keep room by the
    /// same promise.
    fn promise(&mut self, len: u64) {
        if self.end == 0 && self.size != u64::MAX {
            (self.front, self.at, self.whole, self.hash) = (len, len, None, Some(Sha256::new()));
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return; // it makes a file no longer
        }
        let end = offset.saturating_add(to_u64(bytes.len()));
        if offset == 0 && end >= self.end && self.front == 0 {
            *self = Self::new(self.size, self.with_whole); // all of it anew
        }
        let before = self.end;
        self.end = before.max(end);
        // The front has no place here; data that begins within it does not come.
        let bytes = bytes.get(to_usize(self.front.saturating_sub(offset))..).unwrap_or_default();
        let offset = offset.max(self.front);
        if bytes.is_empty() {
            return;
        }
        let again = to_usize(self.at.saturating_sub(offset)).min(bytes.len());
        if again > 0 {
            self.doubt(offset, end.min(self.at));
        }
        self.skip(offset);
        self.take(bytes.get(again..).unwrap_or_default());
    }

    /// Bytes up to `offset` were not written: they read as zeros.
    fn skip(&mut self, offset: u64) {
        let mut gap = offset.saturating_sub(self.at);
        self.zeros = self.zeros.saturating_add(gap);
        if self.zeros > MOST_ZEROS {
            self.whole = None;
            self.hash.get_or_insert_with(Sha256::new);
            // Hashing terabytes of nothing takes hours; whole pieces of it are read back, or not known.
            while gap > MOST_ZEROS {
                let rest = self.rest_of_piece();
                self.is_doubtful = true;
                self.advance(rest);
                gap = gap.saturating_sub(rest);
            }
        }
        while gap > 0 {
            let len = gap.min(to_u64(ZEROS.len()));
            self.take(ZEROS.get(..to_usize(len)).unwrap_or_default());
            gap = gap.saturating_sub(len);
        }
    }

    fn rest_of_piece(&self) -> u64 {
        let start = self.pieces.last().map_or(self.front, Piece::end);
        start.saturating_add(self.size).saturating_sub(self.at).max(1)
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let len = to_usize(self.rest_of_piece()).min(bytes.len());
            let (some, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            self.whole.iter_mut().for_each(|hash| hash.update(some));
            if !self.is_doubtful {
                self.hash.iter_mut().for_each(|hash| hash.update(some));
            }
            self.advance(to_u64(some.len()));
            bytes = rest;
        }
    }

    fn advance(&mut self, bytes: u64) {
        let rest = self.rest_of_piece();
        self.at = self.at.saturating_add(bytes);
        if bytes >= rest {
            self.end_piece_at(self.at);
        }
    }

    /// Ends the piece that is being filled, and begins the next one.
    fn end_piece_at(&mut self, end: u64) {
        let offset = self.pieces.last().map_or(self.front, Piece::end);
        let hash = self.hash.replace(Sha256::new()).or_else(|| self.whole.clone());
        let sum = hash.filter(|_| !self.is_doubtful).map(|hash| hash.finalize().into());
        self.pieces.push(Piece { offset, bytes: end.saturating_sub(offset), sum });
        self.is_doubtful = false;
    }

    /// What was hashed of the pieces from `start` to `end` is not what lies there.
    fn doubt(&mut self, start: u64, end: u64) {
        self.whole = None;
        let open = self.pieces.last().map_or(self.front, Piece::end);
        if end > open {
            self.is_doubtful = true;
            self.hash.get_or_insert_with(Sha256::new);
        }
        let within = |piece: &&mut Piece| piece.offset < end && piece.end() > start;
        self.pieces.iter_mut().filter(within).for_each(|piece| piece.sum = None);
    }

    /// A write, or making writes durable, has failed: any byte since the last sync may be missing.
    fn fail(&mut self) {
        let start = self.pieces.get(..self.durable).and_then(<[Piece]>::last).map_or(0, Piece::end);
        self.doubt(start, u64::MAX);
    }

    fn cut(&mut self, len: u64) {
        self.end = self.end.min(len);
        if self.at > len {
            self.doubt(len, u64::MAX);
            self.pieces.retain(|piece| piece.end() <= len);
            self.durable = self.durable.min(self.pieces.len());
            self.at = len.max(self.front);
            self.is_doubtful = true; // the rest of the piece that it ends in
        }
    }

    /// No more is written: the last piece ends, and the front becomes pieces.
    fn end_piece(&mut self) {
        if self.is_ended || self.end == 0 {
            return;
        }
        self.is_ended = true;
        let start = self.pieces.last().map_or(self.front, Piece::end);
        if self.end > start {
            let is_all_hashed = self.at == self.end;
            self.is_doubtful |= !is_all_hashed;
            self.end_piece_at(self.end);
        }
        let mut front = Vec::new();
        let (mut offset, front_end) = (0, self.front.min(self.end));
        while offset < front_end {
            let bytes = self.size.min(front_end.saturating_sub(offset));
            front.push(Piece { offset, bytes, sum: None });
            offset = offset.saturating_add(bytes);
        }
        self.pieces.splice(0..0, front);
    }

    fn sums(&self) -> FileSums {
        let whole = self.whole.clone().filter(|_| self.at == self.end).map(|hash| hash.finalize().into());
        let only = match self.pieces.as_slice() {
            [Piece { offset: 0, bytes, sum }] if *bytes == self.end => *sum,
            _ => None,
        };
        FileSums { bytes: self.end, whole: whole.or(only), pieces: self.pieces.clone() }
    }
}

impl Piece {
    /// Offset of the byte after it.
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
}

/// A sink that hashes what it hands on.
struct Hashed {
    sink: Box<dyn Sink>,
    running: Arc<Mutex<Running>>,
}

impl Sink for Hashed {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let written = self.sink.write_at(offset, bytes);
        let mut running = lock(&self.running);
        match &written {
            Ok(()) => running.write(offset, bytes),
            Err(_) => running.fail(),
        }
        written
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        let synced = self.sink.sync();
        let mut running = lock(&self.running);
        if synced.is_ok() {
            running.durable = running.pieces.len();
        } else {
            running.fail();
            running.is_lost = true;
        }
        synced
    }

    fn is_rewritable(&self) -> bool {
        self.sink.is_rewritable()
    }

    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        if self.sink.is_rewritable() {
            lock(&self.running).promise(len);
        }
        self.sink.reserve(len)
    }

    fn announce(&mut self, block0: &[u8], sub_header: &[u8]) -> Result<(), SinkError> {
        self.sink.announce(block0, sub_header)
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        lock(&self.running).cut(len);
        self.sink.truncate(len)
    }
}

/// The root of a Merkle tree over the pieces: it binds their places, their lengths and their number, and a
/// piece can be proved to belong to it by as many sums as the tree is high. A leaf is the SHA-256 of a byte
/// 0, offset and length (u64, little endian) and the piece's sum; a node that of a byte 1 and its two
/// children; the last of an odd row goes up as it is. `None` where a piece has no sum.
#[must_use]
pub fn merkle_root(pieces: &[Piece]) -> Option<Sum> {
    let leaf = |piece: &Piece| {
        let hash = Sha256::new_with_prefix([0]).chain_update(piece.offset.to_le_bytes());
        Some(hash.chain_update(piece.bytes.to_le_bytes()).chain_update(piece.sum?).finalize().into())
    };
    let mut row: Vec<Sum> = pieces.iter().map(leaf).collect::<Option<_>>()?;
    while row.len() > 1 {
        let node = |pair: &[Sum]| match pair {
            [left, right] => {
                Sha256::new_with_prefix([1]).chain_update(left).chain_update(right).finalize().into()
            }
            alone => alone.first().copied().unwrap_or_default(),
        };
        row = row.chunks(2).map(node).collect();
    }
    row.pop()
}

#[cfg(test)]
mod tests;

//! Reading a log back: the records that can be read, in their order, past whatever is damaged.

use core::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::format::rawdump::{
    HEADER_LEN, LOG_START, LogId, RECORD_ALIGN, RecordHeader, Superblock, record_len,
};
use base::addr::{to_u64, to_usize};

/// Bytes that are read at a time.
const WINDOW: u64 = 1 << 20;
/// Bytes that are read at a time where a larger read fails: a bad sector costs no more.
const BLOCK: usize = 4096;
/// Bytes without a record after which the log of a capture that was never sealed has ended. What a
/// power cut loses in the middle of it is what was on its way to the disk, far less.
const QUIET: u64 = 256 << 20;

/// A record whose header is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Device offset.
    pub at: u64,
    /// The header.
    pub header: RecordHeader,
    /// The payload; `None` if it is damaged.
    pub payload: Option<Vec<u8>>,
}

impl Found {
    /// Device offset after the record.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at.saturating_add(record_len(to_usize(u64::from(self.header.len))))
    }
}

/// The records of a log.
pub struct Scan<'a> {
    file: &'a File,
    id: LogId,
    at: u64,
    /// Where the log ends at the latest.
    limit: u64,
    /// Whether it ends there for sure.
    sealed: bool,
    /// Where the last record ended.
    last: u64,
    next_sequence: u64,
    read_errors: u64,
    /// Where the last block ends that could not be read: windows overlap, and it counts once.
    unreadable_to: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("at", &self.at).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<'a> Scan<'a> {
    /// Reads the log that `superblock` describes on a device of `len` bytes.
    #[must_use]
    pub fn new(file: &'a File, len: u64, superblock: &Superblock) -> Self {
        let sealed = superblock.is_sealed();
        Self {
            file,
            id: LogId { log: superblock.log, nonce: superblock.nonce },
            at: LOG_START,
            limit: if sealed { len.min(superblock.end) } else { len },
            sealed,
            last: LOG_START,
            next_sequence: 0,
            read_errors: 0,
            unreadable_to: 0,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Blocks so far that could not be read. Records may stand in them.
    #[must_use]
    pub fn read_errors(&self) -> u64 {
        self.read_errors
    }

    /// `len` bytes at `at`, fewer at the end of the log.
    fn view(&mut self, at: u64, len: u64) -> &[u8] {
        let end = at.saturating_add(len).min(self.limit);
        let held = self.window_at..=self.window_at.saturating_add(to_u64(self.window.len()));
        if !held.contains(&at) || !held.contains(&end) {
            self.fill(at);
        }
        let start = to_usize(at.saturating_sub(self.window_at));
        let end = to_usize(end.saturating_sub(self.window_at)).max(start);
        self.window.get(start..end).unwrap_or_default()
    }

    /// Loads the window at `at`. What cannot be read is zero, which is no record and has no
    /// checksum.
    fn fill(&mut self, at: u64) {
        let len = to_usize(self.limit.saturating_sub(at).min(WINDOW));
        self.window.clear();
        self.window.resize(len, 0);
        self.window_at = at;
        if self.file.read_exact_at(&mut self.window, at).is_ok() {
            return;
        }
        let mut place = at;
        for block in self.window.chunks_mut(BLOCK) {
            if self.file.read_exact_at(block, place).is_err() {
                block.fill(0);
                if place >= self.unreadable_to {
                    self.read_errors = self.read_errors.saturating_add(1);
                    self.unreadable_to = place.saturating_add(to_u64(block.len()));
                }
            }
            place = place.saturating_add(to_u64(BLOCK));
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        while self.at < self.limit && (self.sealed || self.at.saturating_sub(self.last) < QUIET) {
            let (at, id) = (self.at, self.id);
            let header = RecordHeader::parse(self.view(at, to_u64(HEADER_LEN)), &id);
            // No more records than fit can stand before one: a number beyond them is damage, and
            // believed it would hide all that come behind.
            let most = at.checked_div(RECORD_ALIGN).unwrap_or(0);
            let numbers = self.next_sequence..=most;
            let Some(header) = header.filter(|header| numbers.contains(&header.sequence)) else {
                self.at = at.saturating_add(RECORD_ALIGN);
                continue;
            };
            let payload_at = at.saturating_add(to_u64(HEADER_LEN));
            let payload = self.view(payload_at, u64::from(header.len));
            let payload = header.is_payload(payload).then(|| payload.to_vec());
            let found = Found { at, header, payload };
            self.next_sequence = header.sequence.saturating_add(1);
            self.at = found.end();
            self.last = self.at;
            return Some(found);
        }
        None
    }
}

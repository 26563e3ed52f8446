//! The log of a raw target: records from all sinks, gathered into large aligned writes.
//!
//! A block of the device is written once. A record that is durable is never in the way of a later,
//! torn write.

use core::fmt;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use crate::format::rawdump::{
    HEADER_LEN, Kind, LOG_START, LogId, MAX_PAYLOAD, Name, RecordHeader, record_len,
};
use base::addr::{to_u64, to_usize};
use vmcore::sink::{Sink, SinkError};

/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;
/// Writes begin and end here: a part of a block in the page cache would be read before it is
/// written.
const BLOCK: u64 = 4096;
/// Most room that no dump takes: what is written when it is over, the manifest among it.
const SPARE: u64 = 1 << 20;
/// Kept for the records that end files and for the padding before them, when data has taken all
/// there is.
const SLACK: u64 = 64 << 10;

/// The end of the log.
pub(super) struct Log {
    device: Box<dyn Sink>,
    /// Bytes of the device.
    len: u64,
    id: LogId,
    attempt: u32,
    sequence: u64,
    /// Device offset of the first byte of `buffer`; a multiple of a block.
    base: u64,
    buffer: Vec<u8>,
    /// Bytes of the log that were promised to sinks.
    reserved: u64,
    /// The next index of each file of this attempt.
    files: BTreeMap<Name, u64>,
    /// Where the front of the dump lies.
    front: Front,
    /// Why records are not on the device whose writing was called a success. The next sync tells,
    /// whosever it is.
    lost: Option<io::Error>,
}

/// Where what was written below the promised bytes of a file lies on the device: headers, bitmaps and
/// descriptors of a dump, which are written in many places and have no sum until they are read once more.
#[derive(Debug, Default)]
pub(super) struct Front {
    /// Length and device offset of each payload, by its offset in the file.
    parts: BTreeMap<u64, (u64, u64)>,
    /// There were too many, or two that overlap without being the same: it is not known what stands there.
    is_unknown: bool,
}

impl Front {
    /// About 1.5 MiB.
    const MOST: usize = 32 << 10;

    fn add(&mut self, at: u64, len: usize, device: u64) {
        let len = to_u64(len);
        let end = at.saturating_add(len);
        let before = self.parts.range(..end).next_back();
        let overlaps = before.is_some_and(|(&start, &(other, _))| {
            start.saturating_add(other) > at && (start, other) != (at, len)
        });
        self.is_unknown |= overlaps || self.parts.len() >= Self::MOST;
        if !self.is_unknown {
            self.parts.insert(at, (len, device));
        }
    }

    /// The payloads that have bytes from `at` to `end`: offset in the file, length, device offset.
    pub(super) fn parts(&self, at: u64, end: u64) -> Option<impl Iterator<Item = (u64, u64, u64)> + '_> {
        let first = self.parts.range(..at).next_back().map_or(at, |(&start, _)| start);
        let parts = self.parts.range(first..end).map(|(&start, &(len, device))| (start, len, device));
        (!self.is_unknown).then(|| parts.filter(move |(start, len, _)| start.saturating_add(*len) > at))
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("base", &self.base)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// A log that goes on at the device offset `at` with the record `sequence`.
    pub(super) fn new(
        device: Box<dyn Sink>,
        len: u64,
        id: LogId,
        attempt: u32,
        at: u64,
        sequence: u64,
    ) -> Self {
        Self {
            device,
            len,
            id,
            attempt,
            sequence,
            base: at.max(LOG_START).next_multiple_of(BLOCK),
            buffer: Vec::with_capacity(BUFFER.saturating_mul(2)),
            reserved: 0,
            files: BTreeMap::new(),
            front: Front::default(),
            lost: None,
        }
    }

    /// Device offset after the last record.
    pub(super) fn end(&self) -> u64 {
        self.base.saturating_add(to_u64(self.buffer.len()))
    }

    /// Records so far, those of earlier attempts included.
    pub(super) fn records(&self) -> u64 {
        self.sequence
    }

    /// Bytes of files that there is room for.
    pub(super) fn room(&self) -> u64 {
        let whole = record_len(MAX_PAYLOAD);
        let left = self.free(self.spare());
        left.checked_div(whole).unwrap_or(0).saturating_mul(to_u64(MAX_PAYLOAD))
    }

    /// The device, for the superblock.
    pub(super) fn device(&mut self) -> &mut dyn Sink {
        self.device.as_mut()
    }

    /// Where the front of the dump lies.
    pub(super) fn front(&self) -> &Front {
        &self.front
    }

    /// Appends a record without a payload.
    pub(super) fn control(&mut self, name: Name, kind: Kind, offset: u64) -> Result<(), SinkError> {
        let failed = |source| SinkError::Write { offset, len: 0, source };
        if self.free(0) < record_len(0).saturating_add(BLOCK) {
            return Err(failed(io::ErrorKind::StorageFull.into()));
        }
        self.append(name, kind, offset, &[]).map_err(failed)
    }

    /// Makes all records durable. An error is told even if the records are another sink's: each
    /// file shows by its indices whether it has lost one.
    pub(super) fn sync(&mut self) -> Result<(), SinkError> {
        let padded = to_u64(self.buffer.len()).next_multiple_of(BLOCK);
        self.buffer.resize(to_usize(padded), 0);
        let written = self.write_out();
        let synced = self.device.sync();
        match self.lost.take() {
            Some(lost) => Err(SinkError::Sync(lost)),
            None => written.map_err(SinkError::Sync).and(synced),
        }
    }

    /// Room that the dump leaves: less on a device that has little.
    fn spare(&self) -> u64 {
        (self.len / 16).clamp(SLACK, SPARE)
    }

    /// Bytes of the log that are neither written nor promised, without the last `slack` ones.
    fn free(&self, slack: u64) -> u64 {
        let end = self.end().next_multiple_of(BLOCK);
        self.len.saturating_sub(end).saturating_sub(self.reserved).saturating_sub(slack)
    }

    fn append(&mut self, name: Name, kind: Kind, offset: u64, payload: &[u8]) -> io::Result<()> {
        let index = self.files.entry(name).or_insert(0);
        let header = RecordHeader {
            sequence: self.sequence,
            attempt: self.attempt,
            name,
            index: *index,
            kind,
            offset,
            len: 0, // of the payload, as the checksum: emit puts them in
            crc: 0,
        };
        *index = index.saturating_add(1);
        self.sequence = self.sequence.saturating_add(1);
        header.emit(&self.id, payload, &mut self.buffer);
        if self.buffer.len() >= BUFFER { self.write_out() } else { Ok(()) }
    }

    /// Writes the whole blocks that are in the buffer. What fails is gone, and its place on the
    /// device is left alone: the records of other files still have a chance behind it.
    fn write_out(&mut self) -> io::Result<()> {
        let whole = self.buffer.len() & !to_usize(BLOCK.saturating_sub(1));
        let written = self.device.write_at(self.base, self.buffer.get(..whole).unwrap_or_default());
        self.buffer.drain(..whole);
        self.base = self.base.saturating_add(to_u64(whole));
        written.map_err(|error| {
            let source = cause(error);
            self.lost = Some(copy(&source));
            source
        })
    }
}

/// One file of the capture.
#[derive(Debug)]
pub(super) struct RawSink {
    log: Rc<RefCell<Log>>,
    name: Name,
    /// Bytes of the log that are this sink's, for writes below `promised`.
    reserved: u64,
    promised: u64,
    /// Whether it is the dump: its front is read once more, and it leaves room for what follows.
    is_dump: bool,
}

impl RawSink {
    pub(super) fn new(log: Rc<RefCell<Log>>, name: Name, is_dump: bool) -> Self {
        Self { log, name, reserved: 0, promised: 0, is_dump }
    }
}

impl Sink for RawSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let mut log = self.log.borrow_mut();
        let mut at = offset;
        for payload in bytes.chunks(MAX_PAYLOAD) {
            let failed = |source| SinkError::Write { offset: at, len: payload.len(), source };
            let len = record_len(payload.len());
            let own = if at < self.promised { self.reserved.min(len) } else { 0 };
            let slack = if self.is_dump { log.spare() } else { SLACK };
            if log.free(slack) < len.saturating_sub(own) {
                return Err(failed(io::ErrorKind::StorageFull.into()));
            }
            log.reserved = log.reserved.saturating_sub(own);
            self.reserved = self.reserved.saturating_sub(own);
            if at < self.promised && self.is_dump {
                let payload_at = log.end().saturating_add(to_u64(HEADER_LEN));
                log.front.add(at, payload.len(), payload_at);
            }
            log.append(self.name, Kind::Data, at, payload).map_err(failed)?;
            at = at.saturating_add(to_u64(payload.len()));
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.log.borrow_mut().sync()
    }

    /// Promises room for the first `len` bytes, each written once in whole records. Many small
    /// writes take more, and may still fail.
    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        let records = len.div_ceil(to_u64(MAX_PAYLOAD));
        let wanted = records.saturating_mul(record_len(MAX_PAYLOAD));
        let mut log = self.log.borrow_mut();
        if log.free(SLACK) < wanted {
            let source = io::ErrorKind::StorageFull.into();
            return Err(SinkError::Write { offset: 0, len: to_usize(len), source });
        }
        log.reserved = log.reserved.saturating_add(wanted);
        self.reserved = self.reserved.saturating_add(wanted);
        self.promised = self.promised.max(len);
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        let cut = self.log.borrow_mut().control(self.name, Kind::Truncate, len);
        cut.map_err(|error| SinkError::Truncate { len, source: cause(error) })
    }
}

impl Drop for RawSink {
    fn drop(&mut self) {
        if let Ok(mut log) = self.log.try_borrow_mut() {
            log.reserved = log.reserved.saturating_sub(self.reserved);
        }
    }
}

fn cause(error: SinkError) -> io::Error {
    match error {
        SinkError::Write { source, .. } | SinkError::Sync(source) | SinkError::Truncate { source, .. } => {
            source
        }
    }
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

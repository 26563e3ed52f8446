//! What was written and is not durable on the server yet: kept, so that a new connection can send
//! it again.
//!
//! 8 MiB in all, or 4 where memory is short, for all files together: with 2 MiB under way at most
//! (the window that OpenSSH grants a channel: 80 Mbit/s at 200 ms), the rest covers what waits for
//! an fsync, which is asked for when half of the pool was sent. Beside the pool, russh holds some
//! hundred KiB. Bytes that follow each other are put together into chunks of one write request.
//!
//! This file keeps the books; `exchange` says what is sent next, and what an answer means.

mod exchange;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::error::SshError;
use super::session::Offers;
use base::addr::to_u64;
use vmcore::target::{Artifact, Sent};

use exchange::Asked;
pub(super) use exchange::{Call, Out};

/// Bytes of all chunks, with what is counted for the books: by the memory there is.
pub(super) const BYTES: core::ops::RangeInclusive<u64> = 4 << 20..=8 << 20;
/// Bytes that a chunk costs beside its data.
const OVERHEAD: usize = 128;

/// Index of a file.
pub(super) type FileId = usize;

/// The books.
#[derive(Debug)]
pub(super) struct Pool {
    limit: usize,
    used: usize,
    peak: usize,
    offers: Offers,
    pub(super) files: Vec<Entry>,
    /// By number, in the order in which they were written; that is the order in which they are
    /// sent, always.
    chunks: BTreeMap<u64, Chunk>,
    next_chunk: u64,
    /// Chunks from this number on were not sent on this connection.
    first_unsent: u64,
    /// What was sent and is not answered.
    asked: HashMap<u32, Asked>,
    next_id: u32,
    /// Questions that wait to be sent.
    pub(super) calls: VecDeque<Call>,
    /// Files at whose failed writes is to be looked: whether the disk is full.
    probes: VecDeque<FileId>,
    /// Counts connections: a handle is good on its own only.
    generation: u64,
    /// Writers that wait for room.
    pub(super) waiting: usize,
    /// When the server answered last, or was asked something after it had answered all.
    answered: Instant,
    /// Counts what came to its end: bytes that need not be kept any longer, questions with an
    /// answer. Other answers are no progress: what was acknowledged and is not durable is sent
    /// again.
    pub(super) progress: u64,
    /// Bytes that need not be kept any longer.
    pub(super) settled: u64,
    /// Nothing more will be written.
    pub(super) closing: bool,
    /// Why nothing goes any more.
    pub(super) over: Option<Arc<SshError>>,
}

/// A file on the server.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says what one kind of request waits for")]
pub(super) struct Entry {
    pub(super) artifact: Artifact,
    pub(super) path: String,
    /// The name that it may have by now: a rename was asked for.
    pub(super) next_path: Option<String>,
    pub(super) handle: String,
    /// Chunks in the pool, how many of them were not sent, how many were acknowledged.
    pub(super) chunks: usize,
    unsent: usize,
    acked: usize,
    /// Bytes sent since an fsync was asked for.
    unsynced: usize,
    /// An fsync is under way.
    syncing: bool,
    /// Somebody waits for all of it to be durable.
    pub(super) wanted: bool,
    /// Its sink is gone.
    pub(super) dropped: bool,
    /// Its handle is closed, or was not given.
    pub(super) closed: bool,
    /// The chunk that may grow.
    tail: Option<u64>,
    /// What the server did not take. Told by the next write, and by the next sync, which ends it.
    lost: Option<Lost>,
    /// End of what was acknowledged.
    len: u64,
    retries: u64,
}

/// Bytes that the server did not take.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    kind: io::ErrorKind,
    message: String,
    /// It is not known yet whether the disk is full.
    probing: bool,
    /// A write has told it.
    reported: bool,
}

/// Bytes that follow each other.
#[derive(Debug)]
pub(super) struct Chunk {
    file: FileId,
    offset: u64,
    data: Arc<Vec<u8>>,
    acked: bool,
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(to_u64(self.data.len()))
    }

    pub(super) fn cost(&self) -> usize {
        self.data.capacity().saturating_add(OVERHEAD)
    }
}

impl Pool {
    pub(super) fn new(limit: usize, offers: Offers) -> Self {
        Self {
            limit,
            used: 0,
            peak: 0,
            offers,
            files: Vec::new(),
            chunks: BTreeMap::new(),
            next_chunk: 0,
            first_unsent: 0,
            asked: HashMap::new(),
            progress: 0,
            settled: 0,
            next_id: 0,
            calls: VecDeque::new(),
            probes: VecDeque::new(),
            generation: 0,
            waiting: 0,
            answered: Instant::now(),
            closing: false,
            over: None,
        }
    }

    /// Most bytes that it may hold.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Most bytes that it has held.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }

    /// Whether half of it is `bytes`.
    pub(super) fn is_half(&self, bytes: usize) -> bool {
        bytes >= self.limit / 2
    }

    /// A file that was opened by the connection of this `generation`; `None` if that is gone.
    pub(super) fn add(
        &mut self,
        artifact: Artifact,
        path: &str,
        handle: String,
        generation: u64,
    ) -> Option<FileId> {
        if generation != self.generation {
            return None;
        }
        self.files.push(Entry::new(artifact, path, handle));
        self.files.len().checked_sub(1)
    }

    /// Takes some of the bytes, as far as there is room: none if there is none.
    pub(super) fn push(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> usize {
        let grown = self.grow(file, offset, bytes).unwrap_or(0);
        if grown > 0 {
            return grown;
        }
        let len = bytes.len().min(self.offers.write_len);
        let (Some(entry), true) =
            (self.files.get_mut(file), self.used.saturating_add(len).saturating_add(OVERHEAD) <= self.limit)
        else {
            return 0;
        };
        let data = Arc::new(bytes.get(..len).unwrap_or_default().to_vec());
        let chunk = Chunk { file, offset, data, acked: false };
        let number = self.next_chunk;
        self.next_chunk = number.saturating_add(1);
        entry.tail = Some(number);
        entry.chunks = entry.chunks.saturating_add(1);
        entry.unsent = entry.unsent.saturating_add(1);
        self.charge(chunk.cost());
        self.chunks.insert(number, chunk);
        len
    }

    /// Puts bytes behind those that wait already.
    fn grow(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Option<usize> {
        let tail = self.files.get(file)?.tail.filter(|&tail| tail >= self.first_unsent)?;
        let chunk = self.chunks.get_mut(&tail).filter(|chunk| chunk.end() == offset)?;
        let before = chunk.cost();
        let data = Arc::get_mut(&mut chunk.data)?;
        let (max, len, capacity) = (self.offers.write_len, data.len(), data.capacity());
        let mut some = bytes.len().min(max.saturating_sub(len));
        let needed = len.saturating_add(some);
        if needed > capacity {
            let larger = capacity.saturating_mul(2).clamp(needed, max.max(needed));
            let more = larger.saturating_sub(capacity);
            if self.used.saturating_add(more) <= self.limit {
                data.reserve_exact(larger.saturating_sub(len));
            } else {
                some = capacity.saturating_sub(len);
            }
        }
        data.extend_from_slice(bytes.get(..some)?);
        let more = chunk.cost().saturating_sub(before);
        self.charge(more);
        Some(some)
    }

    fn charge(&mut self, cost: usize) {
        self.used = self.used.saturating_add(cost);
        self.peak = self.peak.max(self.used);
    }

    /// The server has these bytes.
    pub(super) fn acknowledged(&mut self, number: u64) {
        let fsync = self.offers.fsync;
        let Some(chunk) = self.chunks.get_mut(&number).filter(|chunk| !chunk.acked) else { return };
        let Some(entry) = self.files.get_mut(chunk.file) else { return };
        entry.len = entry.len.max(chunk.end());
        if fsync {
            chunk.acked = true;
            entry.acked = entry.acked.saturating_add(1);
        } else {
            self.remove(number);
        }
    }

    /// What was acknowledged of a file and has a number below `below` needs not be kept any longer.
    pub(super) fn settle(&mut self, file: FileId, below: u64) {
        let settled = |(_, chunk): &(&u64, &Chunk)| chunk.file == file && chunk.acked;
        let numbers: Vec<u64> =
            self.chunks.range(..below).filter(settled).map(|(number, _)| *number).collect();
        for number in numbers {
            self.remove(number);
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(chunk) = self.chunks.remove(&number) else { return };
        self.progress = self.progress.saturating_add(1);
        self.settled = self.settled.saturating_add(to_u64(chunk.data.len()));
        self.used = self.used.saturating_sub(chunk.cost());
        let Some(entry) = self.files.get_mut(chunk.file) else { return };
        entry.chunks = entry.chunks.saturating_sub(1);
        entry.acked = entry.acked.saturating_sub(usize::from(chunk.acked));
        entry.unsent = entry.unsent.saturating_sub(usize::from(number >= self.first_unsent));
    }

    /// The server did not take bytes of a file.
    pub(super) fn lose(&mut self, file: FileId, kind: io::ErrorKind, message: String) {
        let probing = kind == io::ErrorKind::Other && self.offers.statvfs;
        let Some(entry) = self.files.get_mut(file) else { return };
        if entry.lost.is_none() {
            entry.lost = Some(Lost { kind, message, probing, reported: false });
            if probing {
                self.probes.push_back(file);
            }
        }
    }

    /// The connection is gone: all that is here has to be sent again, in the old order.
    pub(super) fn disconnected(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.asked.clear(); // who waits for an answer hears that
        self.probes.clear();
        let mut again = vec![false; self.files.len()];
        for (number, chunk) in &mut self.chunks {
            chunk.acked = false;
            if let Some(again) = again.get_mut(chunk.file)
                && *number < self.first_unsent
            {
                *again = true;
            }
        }
        self.first_unsent = self.chunks.first_key_value().map_or(self.next_chunk, |(number, _)| *number);
        for (entry, again) in self.files.iter_mut().zip(again) {
            (entry.unsent, entry.acked, entry.unsynced, entry.syncing) = (entry.chunks, 0, 0, false);
            entry.retries = entry.retries.saturating_add(u64::from(again));
            entry.closed |= entry.dropped && entry.chunks == 0;
            entry.lost.iter_mut().for_each(|lost| lost.probing = false);
        }
    }

    /// A file is not there any more.
    pub(super) fn gone(&mut self, file: FileId) {
        self.lose(file, io::ErrorKind::NotFound, "it is gone from the server".to_owned());
        let its: Vec<u64> =
            self.chunks.iter().filter(|(_, chunk)| chunk.file == file).map(|(number, _)| *number).collect();
        for number in its {
            self.remove(number);
        }
        self.files.iter_mut().skip(file).take(1).for_each(|entry| entry.closed = true);
    }

    /// Nothing goes any more, for this reason.
    pub(super) fn give_up(&mut self, why: SshError) {
        self.over.get_or_insert(Arc::new(why));
        self.chunks.clear();
        self.asked.clear();
        self.calls.clear();
        self.used = 0;
    }

    /// Bytes of each artifact that the server has, and how often some had to be sent again. Of an artifact
    /// that was begun twice the last file counts.
    pub(super) fn sent(&self) -> Vec<Sent> {
        let mut sent: Vec<Sent> = Vec::new();
        for Entry { artifact, len, retries, .. } in &self.files {
            let artifact = artifact.name();
            sent.retain(|other| other.artifact != artifact);
            if *len > 0 {
                sent.push(Sent { artifact, bytes: *len, retries: *retries, ..Sent::default() });
            }
        }
        sent
    }

    /// Where the file of an artifact is now.
    pub(super) fn path_of(&self, artifact: Artifact) -> Option<String> {
        self.files.iter().rfind(|entry| entry.artifact == artifact).map(|entry| entry.path.clone())
    }
}

impl Entry {
    fn new(artifact: Artifact, path: &str, handle: String) -> Self {
        Self {
            artifact,
            path: path.to_owned(),
            next_path: None,
            handle,
            chunks: 0,
            unsent: 0,
            acked: 0,
            unsynced: 0,
            syncing: false,
            wanted: false,
            dropped: false,
            closed: false,
            tail: None,
            lost: None,
            len: 0,
            retries: 0,
        }
    }

    /// Whether it is still to be seen what was lost.
    pub(super) fn is_probing(&self) -> bool {
        self.lost.as_ref().is_some_and(|lost| lost.probing)
    }

    /// Returns what was lost, unless an earlier call has returned it.
    pub(super) fn tell(&mut self) -> Option<io::Error> {
        let lost = self.lost.as_mut().filter(|lost| !lost.reported)?;
        lost.reported = true;
        Some(io::Error::new(lost.kind, lost.message.clone()))
    }

    /// Returns what was lost and forgets it, whether or not a write has returned it before.
    pub(super) fn end_loss(&mut self) -> Option<io::Error> {
        self.lost.take().map(|lost| io::Error::new(lost.kind, lost.message))
    }
}

#[cfg(test)]
mod tests;

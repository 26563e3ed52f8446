//! What is sent to the server next, and what its answers mean. Decides only; `driver` talks.
//!
//! Requests on a file are answered in the order in which they are sent (OpenSSH's server does one
//! after the other). So an fsync is sent right behind the writes that it is to cover, and the pipe
//! never runs dry for it; what is not acknowledged when it is answered stays and waits for the next
//! one.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use russh_sftp::protocol::{Packet, StatusCode};

use super::super::error::{self, SshError};
use super::super::session::{
    close, encode, free_bytes, fsync, is_ok, reply_id, status_of, statvfs, write_header,
};
use super::{Entry, FileId, Pool};

/// Free bytes of a disk that is full: what is left is too little for another request, or kept for
/// others.
const FULL: u64 = 1 << 20;

/// A question of somebody who waits for the answer.
pub(in crate::ssh) struct Call {
    pub(in crate::ssh) make: Box<dyn FnOnce(u32) -> Packet + Send>,
    /// Dropped, it says that the connection was lost meanwhile.
    pub(in crate::ssh) answer: SyncSender<(Packet, u64)>,
}

/// What an answer will be about.
#[derive(Debug)]
pub(in crate::ssh) enum Asked {
    Write(u64),
    /// An fsync of what has a number below.
    Sync(FileId, u64),
    Room(FileId),
    Call(SyncSender<(Packet, u64)>),
    Close,
}

/// Something to be sent.
#[derive(Debug)]
pub(in crate::ssh) enum Out {
    Packet(Bytes),
    Write(Vec<u8>, Arc<Vec<u8>>),
}

impl Pool {
    /// What is to be sent now, if anything.
    pub(in crate::ssh) fn take(&mut self) -> Result<Option<Out>, SshError> {
        if let Some(call) = self.calls.pop_front() {
            let id = self.ask(Asked::Call(call.answer));
            return encode((call.make)(id)).map(|bytes| Some(Out::Packet(bytes)));
        }
        if let Some(file) = self.probes.pop_front()
            && let Some(entry) = self.files.get(file)
        {
            let path = entry.path.clone();
            let id = self.ask(Asked::Room(file));
            return encode(statvfs(id, &path)).map(|bytes| Some(Out::Packet(bytes)));
        }
        if let Some(file) = self.to_sync() {
            let below = self.first_unsent;
            let id = self.ask(Asked::Sync(file, below));
            let Some(entry) = self.files.get_mut(file) else { return Ok(None) };
            (entry.syncing, entry.unsynced) = (true, 0);
            return encode(fsync(id, &entry.handle)).map(|bytes| Some(Out::Packet(bytes)));
        }
        if let Some(write) = self.next_write() {
            return Ok(Some(write));
        }
        let done = |entry: &&mut Entry| entry.dropped && !entry.closed && entry.chunks == 0 && !entry.syncing;
        let Some(entry) = self.files.iter_mut().find(done) else { return Ok(None) };
        entry.closed = true;
        let handle = entry.handle.clone();
        let id = self.ask(Asked::Close);
        encode(close(id, handle)).map(|bytes| Some(Out::Packet(bytes)))
    }

    /// Whether all is said and answered.
    pub(in crate::ssh) fn is_done(&self) -> bool {
        self.closing && self.asked.is_empty()
    }

    /// How long the server has been silent, if it has something to answer.
    pub(in crate::ssh) fn silent_for(&self) -> Option<Duration> {
        (!self.asked.is_empty()).then(|| self.answered.elapsed())
    }

    /// Whether the server may be busy with an fsync: all that was asked for after it waits as well.
    pub(in crate::ssh) fn is_syncing(&self) -> bool {
        self.asked.values().any(|asked| matches!(asked, Asked::Sync(..)))
    }

    /// Whether there is nothing that could make progress.
    pub(in crate::ssh) fn is_idle(&self) -> bool {
        self.chunks.is_empty() && self.calls.is_empty() && self.asked.is_empty()
    }

    /// Whether somebody waits for the server: not for who makes the dump.
    pub(in crate::ssh) fn is_waited_for(&self) -> bool {
        self.waiting > 0 || !self.calls.is_empty() || self.files.iter().any(|entry| entry.wanted)
    }

    fn ask(&mut self, what: Asked) -> u32 {
        if self.asked.is_empty() {
            self.answered = Instant::now();
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.asked.insert(id, what);
        id
    }

    /// A file that needs an fsync now: half of the pool waits for one, somebody waits for the file,
    /// or for room that only this gives.
    fn to_sync(&self) -> Option<FileId> {
        let stuck = self.waiting > 0 && self.first_unsent_is_none() && self.asked.is_empty();
        let needs = |entry: &Entry| {
            let sent = entry.chunks > 0 && entry.unsent == 0;
            // All that was sent is covered by an earlier one, but for what came too late for it.
            let uncovered = entry.unsynced > 0 || entry.acked == entry.chunks;
            let asked_for = (entry.wanted || entry.dropped || stuck) && sent && uncovered;
            !entry.syncing && !entry.closed && (asked_for || self.is_half(entry.unsynced))
        };
        self.offers.fsync.then(|| self.files.iter().position(needs)).flatten()
    }

    fn first_unsent_is_none(&self) -> bool {
        self.chunks.range(self.first_unsent..).next().is_none()
    }

    fn next_write(&mut self) -> Option<Out> {
        let full = self.offers.write_len;
        let mut unsent = self.chunks.range(self.first_unsent..);
        let (&number, chunk) = unsent.next()?;
        let is_last = unsent.next().is_none();
        let entry = self.files.get(chunk.file)?;
        // What is not full may grow while there is something else to wait for.
        let hold = is_last
            && chunk.data.len() < full
            && !(entry.wanted || entry.dropped || self.waiting > 0 || self.asked.is_empty());
        if hold {
            return None;
        }
        let (file, offset, data, cost) = (chunk.file, chunk.offset, chunk.data.clone(), chunk.cost());
        let id = self.ask(Asked::Write(number));
        self.first_unsent = number.saturating_add(1);
        let entry = self.files.get_mut(file)?;
        entry.unsent = entry.unsent.saturating_sub(1);
        entry.unsynced = entry.unsynced.saturating_add(cost);
        Some(Out::Write(write_header(id, &entry.handle, offset, data.len()), data))
    }

    /// Takes an answer.
    pub(in crate::ssh) fn answer(&mut self, packet: Packet) -> Result<(), SshError> {
        let asked = reply_id(&packet).and_then(|id| self.asked.remove(&id));
        let asked = asked.ok_or_else(|| SshError::Protocol("an answer to nothing".to_owned()))?;
        self.answered = Instant::now();
        match asked {
            Asked::Write(number) if is_ok(&packet) => self.acknowledged(number),
            Asked::Write(number) => {
                let status = status_of(packet);
                if let Some(file) = self.chunks.get(&number).map(|chunk| chunk.file) {
                    self.lose(file, error::kind(&status), error::text(&status));
                }
                self.remove(number);
            }
            Asked::Sync(file, below) => self.synced(file, below, packet),
            Asked::Room(file) => {
                let free = match &packet {
                    Packet::ExtendedReply(reply) => free_bytes(&reply.data),
                    _ => None,
                };
                if let Some(lost) = self.files.get_mut(file).and_then(|entry| entry.lost.as_mut()) {
                    lost.probing = false;
                    if let Some(free) = free.filter(|&free| free < FULL) {
                        lost.kind = io::ErrorKind::StorageFull;
                        lost.message = format!("{}, and has {free} bytes left", lost.message);
                    }
                }
            }
            Asked::Call(answer) => {
                self.progress = self.progress.saturating_add(1);
                drop(answer.try_send((packet, self.generation))); // nobody may wait any more
            }
            Asked::Close => (),
        }
        Ok(())
    }

    fn synced(&mut self, file: FileId, below: u64, packet: Packet) {
        if let Some(entry) = self.files.get_mut(file) {
            entry.syncing = false;
        }
        if !is_ok(&packet) {
            let status = status_of(packet);
            if status.status_code == StatusCode::OpUnsupported {
                log::warn!("the server does not make files durable after all");
                self.offers.fsync = false;
            } else {
                self.lose(file, error::kind(&status), format!("fsync: {}", error::text(&status)));
            }
        }
        let files = if self.offers.fsync { file..file.saturating_add(1) } else { 0..self.files.len() };
        let below = if self.offers.fsync { below } else { u64::MAX };
        files.for_each(|file| self.settle(file, below));
    }
}

impl core::fmt::Debug for Call {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Call")
    }
}

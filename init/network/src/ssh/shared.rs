//! Where the capture's threads and the one that talks to the server meet.

use base::lock::lock;
use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use russh_sftp::protocol::Packet;
use tokio::sync::Notify;

use super::error::SshError;
use super::pool::{Call, FileId, Pool};

/// How long is waited before it is looked again. The driver ends all waits: it has deadlines.
const LOOK: Duration = Duration::from_secs(1);

/// The pool, and who waits for a change of it.
#[derive(Debug)]
pub(super) struct Shared {
    pool: Mutex<Pool>,
    room: Condvar,
    pub(super) work: Notify,
}

impl Shared {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool: Mutex::new(pool), room: Condvar::new(), work: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Pool> {
        lock(&self.pool)
    }

    /// Something has changed: whoever waits looks again.
    pub(super) fn changed(&self) {
        self.room.notify_all();
        self.work.notify_one();
    }

    pub(super) fn give_up(&self, why: SshError) {
        self.lock().give_up(why);
        self.changed();
    }

    /// Hands bytes over, waiting for room.
    pub(super) fn write(&self, file: FileId, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let mut pool = self.lock();
        loop {
            is_over(&pool)?;
            let entry = pool.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
            if entry.is_probing() {
                pool = self.wait(pool);
                continue;
            }
            if let Some(error) = entry.tell() {
                return Err(error);
            }
            if entry.closed {
                // Its old handle may be another file's on a new connection.
                return Err(io::Error::new(io::ErrorKind::NotFound, "the file is not open any more"));
            }
            if bytes.is_empty() {
                break;
            }
            let taken = pool.push(file, offset, bytes);
            if taken == 0 {
                pool.waiting = pool.waiting.saturating_add(1);
                pool = self.wait(pool);
                pool.waiting = pool.waiting.saturating_sub(1);
            }
            offset = offset.saturating_add(base::addr::to_u64(taken));
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        drop(pool);
        self.work.notify_one();
        Ok(())
    }

    /// Waits until all of a file is durable.
    pub(super) fn sync(&self, file: FileId) -> io::Result<()> {
        let mut pool = self.lock();
        loop {
            is_over(&pool)?;
            let entry = pool.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
            if entry.chunks == 0 && !entry.is_probing() {
                entry.wanted = false;
                return entry.end_loss().map_or(Ok(()), Err);
            }
            entry.wanted = true;
            pool = self.wait(pool);
        }
    }

    fn wait<'a>(&self, pool: MutexGuard<'a, Pool>) -> MutexGuard<'a, Pool> {
        self.work.notify_one();
        self.room.wait_timeout(pool, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Asks the server something. Lost answers are asked for again: `make` gets the number of the
    /// attempt, from 0. The answer comes with the number of the connection.
    pub(super) fn ask(
        &self,
        make: impl Fn(u32, u32) -> Packet + Clone + Send + 'static,
    ) -> io::Result<(Packet, u64)> {
        for attempt in 0..=u32::MAX {
            let (answer, answered) = sync_channel(1);
            let make = make.clone();
            let call = Call { make: Box::new(move |id| make(attempt, id)), answer };
            {
                let mut pool = self.lock();
                is_over(&pool)?;
                pool.calls.push_back(call);
            }
            self.work.notify_one();
            // Ends with the connection at the latest.
            if let Ok(answer) = answered.recv() {
                return Ok(answer);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Sends what is left and says good-bye, within `patience`.
    pub(super) fn close(&self, patience: Duration) -> io::Result<()> {
        let end = Instant::now().checked_add(patience);
        let mut pool = self.lock();
        pool.closing = true;
        pool.files.iter_mut().for_each(|entry| entry.dropped = true);
        while pool.over.is_none() {
            if end.is_none_or(|end| Instant::now() >= end) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.work.notify_one();
            let some = Duration::from_millis(100);
            pool = self.room.wait_timeout(pool, some).unwrap_or_else(PoisonError::into_inner).0;
        }
        match pool.over.as_deref() {
            Some(SshError::Closed) | None => Ok(()),
            Some(_) => is_over(&pool),
        }
    }
}

fn is_over(pool: &Pool) -> io::Result<()> {
    pool.over.as_ref().map_or(Ok(()), |why| Err(io::Error::new(why.kind(), Arc::clone(why))))
}

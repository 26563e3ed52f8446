//! A dump in one request of unknown length (`upload = "stream"`): it needs no index and no putting together, and cannot be resumed. A
//! server that keeps what a broken request had sent would break the promise of the name; nginx and mod_dav do not.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;

use crate::addr::{to_u64, to_usize};
use crate::beat::{self, Beat};
use crate::setup::net::runtime::Runtime;

use super::body::Body;
use super::index::hex;
use super::insist::UploadError;
use super::pool::{Plan, Pool};
use super::store::Store;
use super::{SinkProblem, wait};

/// Bytes that are handed on at a time, and how many such: as much as a fast network takes while the next ones are compressed.
const PLAN: Plan = Plan { part: 512 << 10, buffers: 8 };
/// How often it is looked for failures while no buffer is free.
const LOOK: Duration = Duration::from_secs(1);

/// An artifact that is sent while it is made.
pub(super) struct Stream {
    runtime: Arc<Runtime>,
    name: String,
    pool: Pool,
    filling: Option<Vec<u8>>,
    pieces: Option<Sender<Bytes>>,
    sending: Option<JoinHandle<Result<(), UploadError>>>,
    /// Until the first piece: a server does not wait long for a body, and memory is scanned first.
    waiting: Option<(Arc<Store>, Receiver<Bytes>)>,
    at: u64,
    whole: Sha256,
    failed: Option<Arc<UploadError>>,
}

impl Stream {
    /// Nothing is sent yet.
    pub(super) fn start(runtime: Arc<Runtime>, store: Arc<Store>, name: &str) -> Self {
        let (pieces, body) = mpsc::channel(to_usize(PLAN.buffers).saturating_add(1)); // and its end
        let pool = Pool::new(PLAN);
        let (pieces, whole) = (Some(pieces), Sha256::new());
        Self {
            runtime,
            name: name.to_owned(),
            pool,
            filling: None,
            pieces,
            sending: None,
            waiting: Some((store, body)),
            at: 0,
            whole,
            failed: None,
        }
    }

    /// Begins the request, if that is not done.
    fn begin(&mut self) {
        let Some((store, body)) = self.waiting.take() else { return };
        let file = self.name.clone();
        let sending = async move {
            match store.as_ref() {
                Store::Web(web) => web.stream(&file, Body::stream(body)).await,
                #[cfg(feature = "s3")]
                Store::S3(_) => Err(UploadError::Nonsense { what: file, problem: "S3 takes no streams" }),
            }
        };
        self.sending = Some(self.runtime.handle().spawn(sending));
    }

    /// Takes the next bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), SinkProblem> {
        self.check()?;
        while !bytes.is_empty() {
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => self.free_buffer()?,
            };
            let room = self.pool.part().saturating_sub(buffer.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            buffer.extend_from_slice(now);
            self.at = self.at.saturating_add(to_u64(now.len()));
            bytes = later;
            if buffer.len() >= self.pool.part() {
                self.hand_on(buffer)?;
            } else {
                self.filling = Some(buffer);
            }
        }
        Ok(())
    }

    /// Whether all is well so far.
    pub(super) fn check(&mut self) -> Result<(), SinkProblem> {
        if self.failed.is_none() && self.sending.as_ref().is_some_and(JoinHandle::is_finished) {
            let problem = "the host says that it is whole before it is";
            let error = match self.answer() {
                Ok(()) => UploadError::Nonsense { what: self.name.clone(), problem },
                Err(error) => error,
            };
            self.failed = Some(Arc::new(error));
        }
        self.failed.as_ref().map_or(Ok(()), |error| Err(SinkProblem::Upload(Arc::clone(error))))
    }

    /// Ends the request and waits for the answer. Length and SHA-256 of what was sent.
    pub(super) fn finish(&mut self) -> Result<(u64, String), SinkProblem> {
        self.check()?;
        let last = self.filling.take().unwrap_or_default();
        if !last.is_empty() {
            self.hand_on(last)?;
        }
        self.push(Bytes::new())?;
        self.pieces = None;
        self.answer().map_err(|error| SinkProblem::Upload(Arc::new(error)))?;
        Ok((self.at, hex(&self.whole.clone().finalize().into())))
    }

    fn answer(&mut self) -> Result<(), UploadError> {
        let gone = || UploadError::Gone { what: self.name.clone() };
        let sending = self.sending.take().ok_or_else(gone)?;
        wait(&self.runtime, sending).map_err(|_| gone())?
    }

    fn free_buffer(&mut self) -> Result<Vec<u8>, SinkProblem> {
        loop {
            self.check()?;
            if let Some(buffer) = self.pool.take(LOOK).map_err(SinkProblem::Memory)? {
                return Ok(buffer);
            }
            beat::tell(&Beat::Alive); // the request has its limits of time
        }
    }

    fn hand_on(&mut self, buffer: Vec<u8>) -> Result<(), SinkProblem> {
        self.whole.update(&buffer);
        let bytes = self.pool.lend(buffer);
        self.push(bytes)
    }

    fn push(&mut self, bytes: Bytes) -> Result<(), SinkProblem> {
        self.begin();
        // There is room for all buffers, so an error is the end of the request.
        let pushed = self.pieces.as_ref().map(|pieces| pieces.try_send(bytes));
        if matches!(pushed, Some(Ok(()))) {
            return Ok(());
        }
        let error = self.answer().err().unwrap_or(UploadError::Gone { what: self.name.clone() });
        let error = Arc::clone(self.failed.get_or_insert_with(|| Arc::new(error)));
        Err(SinkProblem::Upload(error))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(sending) = &self.sending {
            sending.abort(); // the connection breaks before the end: the server knows that it is not whole
        }
    }
}

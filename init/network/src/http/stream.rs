//! A dump in one request of unknown length (`upload = "stream"`): it needs no index and no putting
//! together, and cannot be resumed. A server that keeps what a broken request had sent would break
//! the promise of the name; nginx and mod_dav do not.

use std::sync::Arc;

use hyper::body::Bytes;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;

use crate::runtime::Runtime;
use base::addr::to_usize;

use super::body::Body;
use super::filling::{Filled, Filling};
use super::insist::UploadError;
use super::pool::{Plan, Pool};
use super::store::Store;
use super::{SinkProblem, wait};

/// Bytes that are handed on at a time, and how many such: as much as a fast network takes while the
/// next ones are compressed.
const PLAN: Plan = Plan { part: 512 << 10, buffers: 8 };

/// An artifact that is sent while it is made.
pub(super) struct Stream {
    runtime: Arc<Runtime>,
    name: String,
    filling: Filling,
    pieces: Option<Sender<Bytes>>,
    sending: Option<JoinHandle<Result<(), UploadError>>>,
    /// Until the first piece: a server does not wait long for a body, and memory is scanned first.
    waiting: Option<(Arc<Store>, Receiver<Bytes>)>,
    failed: Option<Arc<UploadError>>,
}

impl Stream {
    /// Nothing is sent yet.
    pub(super) fn start(runtime: Arc<Runtime>, store: Arc<Store>, name: &str) -> Self {
        let (pieces, body) = mpsc::channel(to_usize(PLAN.buffers).saturating_add(1)); // and its end
        Self {
            runtime,
            name: name.to_owned(),
            filling: Filling::new(Pool::new(PLAN)),
            pieces: Some(pieces),
            sending: None,
            waiting: Some((store, body)),
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
                Store::S3(_) => Err(UploadError::Nonsense { what: file, problem: "S3 takes no streams" }),
            }
        };
        self.sending = Some(self.runtime.handle().spawn(sending));
    }

    /// Ends the request and waits for the answer. Length and SHA-256 of what was sent.
    pub(super) fn finish(&mut self) -> Result<(u64, String), SinkProblem> {
        self.check()?;
        let last = self.filling.rest();
        if !last.is_empty() {
            self.hand_on(last)?;
        }
        self.push(Bytes::new())?;
        self.pieces = None;
        self.answer().map_err(|error| SinkProblem::Upload(Arc::new(error)))?;
        Ok((self.filling.at, self.filling.sum()))
    }

    fn answer(&mut self) -> Result<(), UploadError> {
        let gone = || UploadError::Gone { what: self.name.clone() };
        let sending = self.sending.take().ok_or_else(gone)?;
        wait(&self.runtime, sending).map_err(|_| gone())?
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

impl Filled for Stream {
    fn filling(&mut self) -> &mut Filling {
        &mut self.filling
    }

    fn check(&mut self) -> Result<(), SinkProblem> {
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

    fn hand_on(&mut self, buffer: Vec<u8>) -> Result<(), SinkProblem> {
        let bytes = self.filling.lend(buffer);
        self.push(bytes)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(sending) = &self.sending {
            sending.abort(); // the connection breaks before the end: the server knows that it is not whole
        }
    }
}

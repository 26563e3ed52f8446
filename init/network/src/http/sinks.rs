//! Sinks of a target on the web: what is written in order, and the small one that is written again.

use core::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;
use sha2::{Digest, Sha256};

use crate::runtime::Runtime;
use base::addr::to_u64;
use base::lock::lock;
use vmcore::sink::{Sink, SinkError};
use vmcore::target::{Artifact, Sent};

use super::filling::Filled;
use super::index::hex;
use super::parts::Upload;
use super::store::Store;
use super::stream::Stream;
use super::{SinkProblem, wait};

/// Most bytes of `result.json`, which is held in memory.
const SMALL: usize = 1 << 20;

/// An artifact on its way.
pub(super) enum Flow {
    Parts(Box<Upload>),
    Stream(Box<Stream>),
}

impl Flow {
    fn filled(&mut self) -> &mut dyn Filled {
        match self {
            Self::Parts(upload) => upload.as_mut(),
            Self::Stream(stream) => stream.as_mut(),
        }
    }

    pub(super) fn finish(&mut self) -> Result<(u64, String), SinkProblem> {
        match self {
            Self::Parts(upload) => upload.finish(),
            Self::Stream(stream) => stream.finish(),
        }
    }

    /// Leaves what has arrived, with an index beside it that says that it is not whole. Returns its name, if
    /// there is anything.
    pub(super) fn leave(&mut self) -> Option<String> {
        match self {
            Self::Parts(upload) => upload.leave().then(|| upload.name().to_owned()),
            Self::Stream(_) => None, // the server has taken it for nothing
        }
    }

    pub(super) fn retries(&self) -> u64 {
        match self {
            Self::Parts(upload) => upload.retries(),
            Self::Stream(_) => 0,
        }
    }
}

/// The latest of an artifact counts.
pub(super) fn record(all: &Mutex<Vec<Sent>>, sent: Sent) {
    let mut all = lock(all);
    all.retain(|other| other.artifact != sent.artifact);
    all.push(sent);
}

/// Takes bytes from the first to the last, each once.
pub(super) struct InOrder {
    /// None once it is published.
    flow: Arc<Mutex<Option<Flow>>>,
    at: u64,
    /// Some bytes may have been taken of a write that failed: what could follow would not be the artifact.
    is_broken: bool,
}

impl InOrder {
    pub(super) fn new(flow: Arc<Mutex<Option<Flow>>>) -> Self {
        Self { flow, at: 0, is_broken: false }
    }

    fn with(&self, act: impl FnOnce(&mut Flow) -> Result<(), SinkProblem>) -> io::Result<()> {
        let mut flow = lock(&self.flow);
        Ok(act(flow.as_mut().ok_or(SinkProblem::Closed)?)?)
    }
}

impl Sink for InOrder {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let (at, is_broken) = (self.at, self.is_broken);
        let written = self.with(|flow| match offset == at {
            _ if is_broken => Err(SinkProblem::Closed),
            true => flow.filled().write(bytes),
            false => Err(SinkProblem::Order { at, offset }),
        });
        if let Err(source) = written {
            self.is_broken = true;
            return Err(SinkError::Write { offset, len: bytes.len(), source });
        }
        self.at = at.saturating_add(to_u64(bytes.len()));
        Ok(())
    }

    /// Tells of failures so far. What is on its way is waited for when it is published.
    fn sync(&mut self) -> Result<(), SinkError> {
        self.with(|flow| flow.filled().check()).map_err(SinkError::Sync)
    }

    fn is_rewritable(&self) -> bool {
        false
    }
}

/// Takes a few bytes, and sends all of them whenever it is synced.
pub(super) struct Small {
    runtime: Arc<Runtime>,
    store: Arc<Store>,
    artifact: Artifact,
    bytes: Vec<u8>,
    retries: AtomicU64,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Small {
    pub(super) fn new(
        runtime: Arc<Runtime>,
        store: Arc<Store>,
        artifact: Artifact,
        sent: Arc<Mutex<Vec<Sent>>>,
    ) -> Self {
        Self { runtime, store, artifact, bytes: Vec::new(), retries: AtomicU64::new(0), sent }
    }
}

impl Sink for Small {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(bytes.len())).filter(|&end| end <= SMALL);
        let (Some(start), Some(end)) = (start, end) else {
            let source = io::ErrorKind::FileTooLarge.into();
            return Err(SinkError::Write { offset, len: bytes.len(), source });
        };
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(start..end) {
            place.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        let name = self.artifact.name();
        let bytes = Bytes::copy_from_slice(&self.bytes);
        let put = wait(&self.runtime, self.store.put(name, bytes, &self.retries));
        put.map_err(|error| SinkError::Sync(SinkProblem::Upload(Arc::new(error)).into()))?;
        let sum = hex(&Sha256::digest(&self.bytes).into());
        let (bytes, retries) = (to_u64(self.bytes.len()), self.retries.load(Ordering::Relaxed));
        record(&self.sent, Sent { artifact: name, bytes, sha256: Some(sum), retries, ..Sent::default() });
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        self.bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(())
    }
}

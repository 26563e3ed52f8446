//! A file on the server as a sink.

use std::io;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::pool::FileId;
use super::shared::Shared;
use crate::addr::to_u64;
use crate::sink::{Sink, SinkError};

/// Positioned bytes of a file. What a write has taken may fail later: then the next write says so, and the next sync.
#[derive(Debug)]
pub(super) struct SftpSink {
    shared: Arc<Shared>,
    file: FileId,
    /// What would lie behind this byte does not fit.
    limit: u64,
    /// End of what was written.
    len: u64,
    /// Of what was written, and how much that is; `None` if it was not written in order.
    sha256: Sha256,
    hashed: Option<u64>,
}

impl SftpSink {
    pub(super) fn new(shared: Arc<Shared>, file: FileId, limit: u64) -> Self {
        Self { shared, file, limit, len: 0, sha256: Sha256::new(), hashed: Some(0) }
    }

    /// Follows the bytes as long as each comes once and in order; what begins anew and leaves nothing of the old is as good.
    fn hash(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset.saturating_add(to_u64(bytes.len()));
        if offset == 0 && end >= self.len {
            self.sha256.reset();
            (self.hashed, self.len) = (Some(0), 0);
        }
        self.hashed = self.hashed.filter(|&hashed| hashed == offset && offset == self.len).map(|_| {
            self.sha256.update(bytes);
            end
        });
        self.len = self.len.max(end);
    }

    fn no_room(&self, offset: u64, len: usize) -> SinkError {
        let source =
            io::Error::new(io::ErrorKind::StorageFull, format!("the target has {} bytes for it", self.limit));
        SinkError::Write { offset, len, source }
    }
}

impl Sink for SftpSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if offset.saturating_add(to_u64(bytes.len())) > self.limit {
            return Err(self.no_room(offset, bytes.len()));
        }
        self.hash(offset, bytes);
        let written = self.shared.write(self.file, offset, bytes);
        written.map_err(|source| SinkError::Write { offset, len: bytes.len(), source })
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        let synced = self.shared.sync(self.file).map_err(SinkError::Sync);
        let whole = synced.is_ok() && self.hashed.is_some();
        let digest = || hex(&self.sha256.clone().finalize());
        if let Some(entry) = self.shared.lock().files.get_mut(self.file) {
            entry.sha256 = whole.then(digest);
        }
        synced
    }

    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        if len > self.limit { Err(self.no_room(0, crate::addr::to_usize(len))) } else { Ok(()) }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digits =
        |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'));
    bytes.iter().flat_map(digits).collect()
}

impl Drop for SftpSink {
    fn drop(&mut self) {
        if let Some(entry) = self.shared.lock().files.get_mut(self.file) {
            entry.dropped = true;
        }
        self.shared.changed();
    }
}

//! A file on the server as a sink.

use std::io;
use std::sync::Arc;

use super::pool::FileId;
use super::shared::Shared;
use base::addr::to_u64;
use vmcore::sink::{Sink, SinkError};

/// Positioned bytes of a file. What a write has taken may fail later: then the next write says so,
/// and the next sync.
#[derive(Debug)]
pub(super) struct SftpSink {
    shared: Arc<Shared>,
    file: FileId,
    /// What would lie behind this byte does not fit.
    limit: u64,
}

impl SftpSink {
    pub(super) fn new(shared: Arc<Shared>, file: FileId, limit: u64) -> Self {
        Self { shared, file, limit }
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
        let written = self.shared.write(self.file, offset, bytes);
        written.map_err(|source| SinkError::Write { offset, len: bytes.len(), source })
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.shared.sync(self.file).map_err(SinkError::Sync)
    }

    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        if len > self.limit { Err(self.no_room(0, base::addr::to_usize(len))) } else { Ok(()) }
    }
}

impl Drop for SftpSink {
    fn drop(&mut self) {
        if let Some(entry) = self.shared.lock().files.get_mut(self.file) {
            entry.dropped = true;
        }
        self.shared.changed();
    }
}

//! Positioned bytes: all that a dump format knows of where it goes.

use std::io;

use base::addr::to_u64;

/// Why a sink did not take bytes. Names the place, so that "disk full" and "bad sector" can be told
/// apart.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A write failed.
    #[error("writing {len} bytes at offset {offset}")]
    Write {
        /// Offset in the artifact.
        offset: u64,
        /// Bytes that were to be written.
        len: usize,
        /// Cause.
        source: io::Error,
    },
    /// Making the bytes durable failed.
    #[error("syncing")]
    Sync(#[source] io::Error),
    /// Cutting the artifact failed.
    #[error("cutting it to {len} bytes")]
    Truncate {
        /// Bytes that are to stay.
        len: u64,
        /// Cause.
        source: io::Error,
    },
}

impl SinkError {
    /// Whether the target has no room left, so that another page would fail as well.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let (Self::Write { source, .. } | Self::Sync(source) | Self::Truncate { source, .. }) = self;
        is_full(source.kind())
    }
}

/// Whether an error of this kind means that there is no room left.
#[must_use]
pub fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// A place for positioned bytes. What was never written reads as zero, as in a new file.
/// Every method may block for as long as the device does.
pub trait Sink {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// Makes everything written so far durable.
    fn sync(&mut self) -> Result<(), SinkError>;

    /// Whether an offset may be written more than once. A stream takes each once.
    fn is_rewritable(&self) -> bool {
        true
    }

    /// Makes sure that the first `len` bytes can be written later, where the target can promise
    /// that. A target that cannot returns `Ok`; only a lack of room is an error.
    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        let _ = len;
        Ok(())
    }

    /// Tells the headers of a dump, as they are while it is not whole, before anything is written: a stream
    /// takes headers last, and has use for them if it is cut.
    fn announce(&mut self, block0: &[u8], sub_header: &[u8]) -> Result<(), SinkError> {
        let _ = (block0, sub_header);
        Ok(())
    }

    /// Drops what lies behind the first `len` bytes, where the target can: what a write left there
    /// that failed.
    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        let _ = len;
        Ok(())
    }
}

/// A sink as a stream of text, for the kernel log.
#[derive(Debug)]
pub struct Append<'a, S: Sink + ?Sized> {
    sink: &'a mut S,
    offset: u64,
}

impl<'a, S: Sink + ?Sized> Append<'a, S> {
    /// Writes from the start of `sink` on.
    pub fn new(sink: &'a mut S) -> Self {
        Self { sink, offset: 0 }
    }
}

impl<S: Sink + ?Sized> io::Write for Append<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write_at(self.offset, bytes).map_err(|error| match error {
            SinkError::Write { source, .. }
            | SinkError::Sync(source)
            | SinkError::Truncate { source, .. } => source,
        })?;
        self.offset = self.offset.saturating_add(to_u64(bytes.len()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

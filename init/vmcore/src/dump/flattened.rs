//! A stream as a sink: each write becomes a record of the flattened format, which `makedumpfile
//! -R`, crash and libkdumpfile take apart again.

use std::io;

use crate::format::flattened::{self, Record};
use crate::sink::{Sink, SinkError};
use base::addr::to_u64;

/// Makes a stream of a sink that takes bytes one after the other.
pub(super) struct Flattened<'a> {
    sink: &'a mut dyn Sink,
    at: u64,
    /// Part of a record may have gone out, and nothing that follows would be understood.
    broken: bool,
}

impl<'a> Flattened<'a> {
    /// Makes the stream, which begins with [`Sink::announce`] or with the first write.
    pub(super) fn new(sink: &'a mut dyn Sink) -> Self {
        Self { sink, at: 0, broken: false }
    }

    /// Ends the stream: without the end record readers refuse all of it.
    pub(super) fn finish(&mut self) -> Result<(), SinkError> {
        let ended = self.record(&Record::End.emit(), &[]);
        let cut = self.sink.truncate(self.at);
        ended.and(cut)?;
        self.sink.sync()
    }

    /// Bytes of the stream so far.
    pub(super) fn len(&self) -> u64 {
        self.at
    }

    /// Appends a record. One that failed is taken back where the sink can be rewritten: what
    /// follows may be shorter.
    fn record(&mut self, head: &[u8], bytes: &[u8]) -> Result<(), SinkError> {
        if self.at == 0 {
            self.append(&flattened::emit_header())?;
        }
        if self.broken {
            let source = io::Error::from(io::ErrorKind::BrokenPipe);
            return Err(SinkError::Write { offset: self.at, len: bytes.len(), source });
        }
        let start = self.at;
        let result = self.append(head).and_then(|()| self.append(bytes));
        if result.is_err() {
            self.at = start;
            self.broken = !self.sink.is_rewritable();
        }
        result
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sink.write_at(self.at, bytes)?;
        self.at = self.at.saturating_add(to_u64(bytes.len()));
        Ok(())
    }
}

impl Sink for Flattened<'_> {
    fn announce(&mut self, block0: &[u8], sub_header: &[u8]) -> Result<(), SinkError> {
        self.append(&flattened::emit_header_with(block0, sub_header))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if bytes.is_empty() {
            return Ok(()); // readers take a record without bytes for damage
        }
        self.record(&Record::Piece { offset, len: to_u64(bytes.len()) }.emit(), bytes)
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.sink.sync()
    }

    fn is_rewritable(&self) -> bool {
        false
    }
}

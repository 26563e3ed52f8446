//! A stream as a sink: each write becomes a record of the flattened format, which `makedumpfile -R`, crash and
//! libkdumpfile take apart again.

use crate::addr::to_u64;
use crate::format::flattened::{self, Record};
use crate::sink::{Sink, SinkError};

/// Makes a stream of a sink that takes bytes one after the other.
pub(super) struct Flattened<'a> {
    sink: &'a mut dyn Sink,
    at: u64,
}

impl<'a> Flattened<'a> {
    /// Begins the stream.
    pub(super) fn start(sink: &'a mut dyn Sink) -> Result<Self, SinkError> {
        let mut stream = Self { sink, at: 0 };
        stream.append(&flattened::emit_header())?;
        Ok(stream)
    }

    /// Ends the stream: without the end record readers refuse all of it.
    pub(super) fn finish(&mut self) -> Result<(), SinkError> {
        self.append(&Record::End.emit())?;
        self.sink.sync()
    }

    /// Bytes of the stream so far.
    pub(super) fn len(&self) -> u64 {
        self.at
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.sink.write_at(self.at, bytes)?;
        self.at = self.at.saturating_add(to_u64(bytes.len()));
        Ok(())
    }
}

impl Sink for Flattened<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if bytes.is_empty() {
            return Ok(()); // readers take a record without bytes for damage
        }
        self.append(&Record::Piece { offset, len: to_u64(bytes.len()) }.emit())?;
        self.append(bytes)
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.sink.sync()
    }

    fn is_rewritable(&self) -> bool {
        false
    }
}

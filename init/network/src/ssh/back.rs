//! Reads what lies on the server: a file of ours, for its digest.

use core::fmt;
use std::io;
use std::sync::Arc;

use russh_sftp::protocol::{OpenFlags, Packet, Read};

use super::error::io_error;
use super::session::{open, status_of};
use super::shared::Shared;
use base::addr::to_u64;

/// Bytes that are asked for at a time. A server that has no room for so many gives fewer (OpenSSH
/// before 8.5: 64 KiB).
const READ: usize = 128 << 10;

/// A file that is read from its beginning on. Its handle goes with the session: a connection that
/// is new may have given its number to another file.
pub(super) struct ReadBack {
    shared: Arc<Shared>,
    path: String,
    /// With the number of the connection on which it is good.
    handle: Option<(String, u64)>,
}

impl fmt::Debug for ReadBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadBack").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ReadBack {
    pub(super) fn new(shared: Arc<Shared>, path: String) -> Self {
        Self { shared, path, handle: None }
    }

    /// Whether it is of the file at `path`.
    pub(super) fn is_of(&self, path: &str) -> bool {
        self.path == path
    }

    /// Fills a buffer from an offset.
    pub(super) fn read(&mut self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let len = buffer.len().min(READ);
            let data = self.read_some(offset, u32::try_from(len).unwrap_or(0))?;
            let (some, rest) = buffer.split_at_mut(data.len().min(len));
            some.copy_from_slice(data.get(..some.len()).unwrap_or_default());
            if some.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset = offset.saturating_add(to_u64(some.len()));
            buffer = rest;
        }
        Ok(())
    }

    fn read_some(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        loop {
            let (handle, opened) = match self.handle.take() {
                Some(handle) => handle,
                None => self.open()?,
            };
            let of = handle.clone();
            let read = move |_, id| Packet::Read(Read { id, handle: of.clone(), offset, len });
            let (answer, generation) = self.shared.ask(read)?;
            // On another connection the handle is nobody's, or another file's.
            if generation == opened {
                self.handle = Some((handle, opened));
                let Packet::Data(data) = answer else { return Err(io_error(&status_of(answer))) };
                return Ok(data.data);
            }
        }
    }

    fn open(&self) -> io::Result<(String, u64)> {
        let path = self.path.clone();
        let (answer, generation) = self.shared.ask(move |_, id| open(id, &path, OpenFlags::READ))?;
        let Packet::Handle(handle) = answer else { return Err(io_error(&status_of(answer))) };
        Ok((handle.handle, generation))
    }
}

//! A regular file as a sink.

use core::ops::Range;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use nix::libc;

use crate::sys::writeback;
use base::addr::to_u64;
use vmcore::sink::{Sink, SinkError};

/// Bytes that are written to the disk at a time, while the next ones are made. The first pieces are
/// smaller: how fast the disk is shows sooner.
const PIECES_OF: core::ops::RangeInclusive<u64> = 1 << 19..=4 << 20;
/// Pieces on their way to the disk. With the one that is being filled, this bounds the dirty pages
/// of the capture kernel.
const PIECES: usize = 2;

/// A file that is written at positions.
///
/// A capture kernel has no memory to keep what was written: a dump of a few GiB that piles up in
/// the page cache brings down a kernel of 256 MiB. So a piece goes to the disk as soon as it is
/// full, the pieces before it are waited for, and their pages leave the cache. Direct I/O would
/// bound memory, too, but then the one CPU of a capture kernel waits for each write.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    /// What would lie behind this byte does not fit.
    limit: u64,
    /// Where the piece begins that is being filled, and how far it is.
    piece: Range<u64>,
    /// Length of a full piece.
    size: u64,
    /// Pieces on their way to the disk, oldest first.
    under_way: VecDeque<Range<u64>>,
    /// What went wrong with a piece on its way. The kernel tells that once; the next sync must tell
    /// it, too, or somebody would take for durable what is not.
    lost: Option<Errno>,
}

impl FileSink {
    /// A sink over an open file.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            file,
            limit: u64::MAX,
            piece: 0..0,
            size: *PIECES_OF.start(),
            under_way: VecDeque::with_capacity(PIECES),
            lost: None,
        }
    }

    /// Keeps the file from growing beyond `limit` bytes: what is left of the target belongs to
    /// others, or the file system holds no longer file.
    #[must_use]
    pub fn limited(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// Sends off what lies between full pieces. Only what follows on what was written before
    /// counts: single bytes elsewhere are few, and wait for the next sync.
    fn send_off(&mut self, start: u64, end: u64) -> io::Result<()> {
        if start != self.piece.end {
            if start < self.piece.end {
                return Ok(());
            }
            self.piece = start..start;
        }
        self.piece.end = end;
        let full = end.saturating_sub(end.checked_rem(self.size).unwrap_or(0));
        if full <= self.piece.start {
            return Ok(());
        }
        let piece = self.piece.start..full;
        self.piece.start = full;
        writeback::start(&self.file, piece.start, piece.end.saturating_sub(piece.start))?;
        self.under_way.push_back(piece);
        self.size = self.size.saturating_mul(2).min(*PIECES_OF.end());
        while self.under_way.len() > PIECES {
            let Some(oldest) = self.under_way.pop_front() else { break };
            writeback::finish(&self.file, oldest.start, oldest.end.saturating_sub(oldest.start))?;
            self.forget(oldest);
        }
        Ok(())
    }

    fn beyond_limit(&self) -> io::Error {
        io::Error::new(io::ErrorKind::StorageFull, format!("the target has {} bytes for it", self.limit))
    }

    /// Lets go of pages in the cache. Only advice: where it is not taken, they are clean and can be
    /// reclaimed anyway.
    fn forget(&self, part: Range<u64>) {
        let signed = |value: u64| i64::try_from(value).unwrap_or(0);
        let len = signed(part.end.saturating_sub(part.start));
        let _ = posix_fadvise(&self.file, signed(part.start), len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

impl Sink for FileSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let failed = |source| SinkError::Write { offset, len: bytes.len(), source };
        if offset.saturating_add(to_u64(bytes.len())) > self.limit {
            return Err(failed(self.beyond_limit()));
        }
        self.file.write_all_at(bytes, offset).map_err(failed)?;
        match self.send_off(offset, offset.saturating_add(to_u64(bytes.len()))) {
            // Not a file of a disk: a pipe, a terminal, /dev/null.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESPIPE | libc::EINVAL)) => Ok(()),
            Err(error) => {
                self.lost = Some(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
                Err(failed(error))
            }
            Ok(()) => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.under_way.clear();
        let synced = self.file.sync_data();
        if let Some(lost) = self.lost.take() {
            return Err(SinkError::Sync(lost.into()));
        }
        match synced {
            // Nothing that lasts: /dev/null.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            result => result.map_err(SinkError::Sync)?,
        }
        self.forget(0..0); // all of it
        Ok(())
    }

    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        if len > self.limit {
            let len = base::addr::to_usize(len);
            return Err(SinkError::Write { offset: 0, len, source: self.beyond_limit() });
        }
        let Ok(bytes) = i64::try_from(len) else { return Ok(()) };
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes) {
            Err(errno @ (Errno::ENOSPC | Errno::EFBIG | Errno::EDQUOT)) => {
                let source = io::Error::from(errno);
                Err(SinkError::Write { offset: 0, len: base::addr::to_usize(len), source })
            }
            // vfat and others cannot promise room; then it shows when it is needed.
            _ => Ok(()),
        }
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        self.file.set_len(len).map_err(|source| SinkError::Truncate { len, source })
    }
}

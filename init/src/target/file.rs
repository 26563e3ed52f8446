//! A regular file as a sink.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use crate::sink::{Sink, SinkError};

/// A file that is written at positions. Each sync also drops the written pages from the page cache: a capture
/// kernel has no memory to keep them in.
#[derive(Debug)]
pub struct FileSink {
    file: File,
}

impl FileSink {
    /// A sink over an open file.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file }
    }
}

impl Sink for FileSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.file.write_all_at(bytes, offset).map_err(|source| SinkError::Write {
            offset,
            len: bytes.len(),
            source,
        })
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.file.sync_data().map_err(SinkError::Sync)?;
        // Only advice: where it is not taken, the pages are clean and can be reclaimed anyway.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        true // a target makes its files anew
    }

    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        let Ok(bytes) = i64::try_from(len) else { return Ok(()) };
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes) {
            Err(errno @ (Errno::ENOSPC | Errno::EFBIG | Errno::EDQUOT)) => {
                let source = io::Error::from(errno);
                Err(SinkError::Write { offset: 0, len: crate::addr::to_usize(len), source })
            }
            // vfat and others cannot promise room; then it shows when it is needed.
            _ => Ok(()),
        }
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        self.file.set_len(len).map_err(|source| SinkError::Truncate { len, source })
    }
}

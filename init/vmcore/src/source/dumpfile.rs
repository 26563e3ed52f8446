//! The bytes of a dump, whether its file holds them in order or flattened.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::format::flattened;
use crate::source::flattened::{Flattened, FlattenedOpenError};
use base::addr::to_usize;
use base::read_at::{ReadAt, read_up_to};

/// A file that holds a dump.
#[derive(Debug)]
pub(super) enum DumpFile {
    /// As it is.
    Plain {
        /// The file.
        file: File,
        /// Its length.
        len: u64,
    },
    /// In pieces.
    Flattened(Flattened),
}

impl DumpFile {
    /// Opens a file as what its first bytes say.
    pub(super) fn open(path: &Path) -> Result<Self, FlattenedOpenError> {
        let file = File::open(path)?;
        if flattened::has_signature(&read_up_to(&file, 0, flattened::RECORD_LEN)?) {
            return Flattened::open(vec![file]).map(Self::Flattened);
        }
        let len = file.metadata()?.len();
        Ok(Self::Plain { file, len })
    }

    /// Opens the parts of a flattened file, in their order.
    pub(super) fn open_parts(paths: &[&Path]) -> Result<Self, FlattenedOpenError> {
        let files: Result<Vec<File>, io::Error> = paths.iter().map(File::open).collect();
        Flattened::open(files?).map(Self::Flattened)
    }

    /// Whether the file has all `len` bytes at `offset`.
    pub(super) fn has(&self, offset: u64, len: u64) -> bool {
        match self {
            Self::Plain { len: all, .. } => offset.checked_add(len).is_some_and(|end| end <= *all),
            Self::Flattened(pieces) => pieces.has(offset, len),
        }
    }

    /// Takes what a stream that was cut does not have from `start` to `end` for zeros; see
    /// [`Flattened::trust_holes`].
    pub(super) fn trust_holes(&mut self, start: u64, end: u64) {
        if let Self::Flattened(pieces) = self {
            pieces.trust_holes(start, end);
        }
    }

    /// The pieces of the dump that are in the file, in order: first byte and bytes of each.
    pub(super) fn pieces(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Plain { len, .. } => vec![(0, *len)],
            Self::Flattened(pieces) => pieces.pieces().collect(),
        }
    }

    /// Length of the dump.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Plain { len, .. } => *len,
            Self::Flattened(pieces) => pieces.len(),
        }
    }

    /// Bytes of the dump that the file has: less than its length if it is flattened with holes.
    /// Bounds what one can afford to do for each byte that a header promises.
    pub(super) fn stored(&self) -> u64 {
        match self {
            Self::Plain { len, .. } => *len,
            Self::Flattened(pieces) => pieces.stored(),
        }
    }

    /// The flattened file, if it is one.
    pub(super) fn flattened(&self) -> Option<&Flattened> {
        match self {
            Self::Plain { .. } => None,
            Self::Flattened(pieces) => Some(pieces),
        }
    }

    /// Up to `most` of the bytes that a header promises at `offset`.
    pub(super) fn promised(&self, (offset, len): (u64, u64), limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(len).min(limit)];
        self.read_whole(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl ReadAt for DumpFile {
    fn read_some(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Plain { file, .. } => file.read_some(out, offset),
            Self::Flattened(pieces) => pieces.read_some(out, offset),
        }
    }
}

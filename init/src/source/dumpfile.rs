//! The bytes of a dump, whether its file holds them in order or flattened.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::addr::{to_u64, to_usize};
use crate::format::flattened;
use crate::source::flattened::{Flattened, FlattenedOpenError};

/// Bytes at offsets.
pub(crate) trait ReadAt {
    /// Reads some bytes at `offset`; none only at the end, or where the file does not have them.
    fn read_some(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills the front of `out` and gives how much of it: less only at the end, or where bytes are not there.
    fn read_front(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut have = 0;
        while let Some(rest) = out.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match self.read_some(rest, offset.saturating_add(to_u64(have))) {
                Ok(0) => break,
                Ok(got) => have = have.saturating_add(got),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(have)
    }

    /// Fills `out`.
    fn read_whole(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let len = out.len();
        if self.read_front(out, offset)? == len {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends, or was cut, before these bytes"))
    }
}

impl ReadAt for File {
    fn read_some(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(out, offset)
    }
}

/// Reads up to `len` bytes; fewer only at the end of the file.
pub(crate) fn read_up_to<R: ReadAt + ?Sized>(file: &R, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let have = file.read_front(&mut bytes, offset)?;
    bytes.truncate(have);
    Ok(bytes)
}

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
            return Flattened::open(file).map(Self::Flattened);
        }
        let len = file.metadata()?.len();
        Ok(Self::Plain { file, len })
    }

    /// Length of the dump.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Plain { len, .. } => *len,
            Self::Flattened(pieces) => pieces.len(),
        }
    }

    /// Bytes of the dump that the file has: less than its length if it is flattened with holes. Bounds what one can
    /// afford to do for each byte that a header promises.
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
    pub(super) fn promised(&self, (offset, len): (u64, u64), most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(len).min(most)];
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

//! Reading bytes at offsets, whatever holds them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::addr::to_u64;

/// Bytes at offsets.
pub trait ReadAt {
    /// Reads some bytes at `offset`; none only at the end, or where the file does not have them.
    fn read_some(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills the front of `out` and gives how much of it: less only at the end, or where bytes are
    /// not there.
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

    /// Fills `out`. Fails with `UnexpectedEof` if the source has fewer bytes there.
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
pub fn read_up_to<R: ReadAt + ?Sized>(file: &R, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let have = file.read_front(&mut bytes, offset)?;
    bytes.truncate(have);
    Ok(bytes)
}

//! Reading fixed fields out of a byte slice, totally: a field past the end is `None`, never a
//! panic.

use core::fmt;

use byteorder::{BE, ByteOrder, LE};

/// A structure's bytes. Offsets are those of the C header that the caller cites.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// `len` bytes at `offset`.
    #[must_use]
    #[inline]
    pub fn bytes(self, offset: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(offset..offset.checked_add(len)?)
    }

    /// One byte at `offset`.
    #[must_use]
    #[inline]
    pub fn u8(self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    /// Little-endian `u16` at `offset`.
    #[must_use]
    #[inline]
    pub fn u16(self, offset: usize) -> Option<u16> {
        self.bytes(offset, 2).map(LE::read_u16)
    }

    /// Little-endian `u32` at `offset`.
    #[must_use]
    #[inline]
    pub fn u32(self, offset: usize) -> Option<u32> {
        self.bytes(offset, 4).map(LE::read_u32)
    }

    /// Little-endian `i32` at `offset`.
    #[must_use]
    #[inline]
    pub fn i32(self, offset: usize) -> Option<i32> {
        self.bytes(offset, 4).map(LE::read_i32)
    }

    /// Little-endian `u64` at `offset`.
    #[must_use]
    #[inline]
    pub fn u64(self, offset: usize) -> Option<u64> {
        self.bytes(offset, 8).map(LE::read_u64)
    }

    /// Big-endian `u32` at `offset` (XFS).
    #[must_use]
    pub fn u32_be(self, offset: usize) -> Option<u32> {
        self.bytes(offset, 4).map(BE::read_u32)
    }

    /// Big-endian `u64` at `offset` (flattened dumps).
    #[must_use]
    pub fn u64_be(self, offset: usize) -> Option<u64> {
        self.bytes(offset, 8).map(BE::read_u64)
    }

    /// The text in `len` bytes at `offset`, up to the first NUL; bytes that are not UTF-8 are
    /// replaced.
    #[must_use]
    pub fn text(self, offset: usize, len: usize) -> Option<String> {
        let bytes = self.bytes(offset, len)?;
        let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// A 16-byte UUID in its text form.
#[derive(Clone, Copy, Debug)]
pub struct Uuid<'a>(pub &'a [u8]);

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Copies `value` into `out` at `offset`; does nothing if it does not fit, which a size assertion
/// beside each structure rules out.
pub fn put(out: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(place) = offset.checked_add(value.len()).and_then(|end| out.get_mut(offset..end)) {
        place.copy_from_slice(value);
    }
}

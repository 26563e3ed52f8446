//! LiME: memory as ranges, each behind a header (github.com/504ensicsLabs/LiME, doc/README.md;
//! bytes only, no I/O).

use base::fields::{Fields, put};

/// Bytes of `lime_mem_range_header`.
pub const HEADER_LEN: usize = 32;

const MAGIC: u32 = 0x4c69_4d45;
const VERSION: u32 = 1;

/// The header of the memory from `first` to `last`, both inclusive.
#[must_use]
pub fn emit(first: u64, last: u64) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    put(&mut out, 0, &MAGIC.to_le_bytes());
    put(&mut out, 4, &VERSION.to_le_bytes());
    put(&mut out, 8, &first.to_le_bytes());
    put(&mut out, 16, &last.to_le_bytes());
    out
}

/// Whether a file starts like a LiME one.
#[must_use]
pub fn has_signature(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC.to_le_bytes())
}

/// The first and the last address of the memory behind a header; `None` for bytes that are none, or
/// of another version.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<(u64, u64)> {
    let fields = Fields(bytes.get(..HEADER_LEN)?);
    let is_ours = has_signature(bytes) && fields.u32(4)? == VERSION;
    let (first, last) = (fields.u64(8)?, fields.u64(16)?);
    (is_ours && first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_lime() {
        let bytes = emit(0x1000, 0x9fbff);
        assert_eq!(bytes[..8], *b"EMiL\x01\0\0\0");
        assert_eq!(bytes[8..24], *b"\0\x10\0\0\0\0\0\0\xff\xfb\x09\0\0\0\0\0");
        assert_eq!(bytes[24..], [0; 8]);
        assert_eq!(parse(&bytes), Some((0x1000, 0x9fbff)));
    }

    #[test]
    fn other_bytes_are_no_header() {
        let bytes = emit(0x1000, 0x1fff);
        for (at, value) in [(0, 0), (4, 2), (9, 0x20)] {
            let mut bytes = bytes;
            bytes[at] = value;
            assert_eq!(parse(&bytes), None, "{at}");
        }
        assert_eq!(parse(&bytes[..31]), None);
    }
}

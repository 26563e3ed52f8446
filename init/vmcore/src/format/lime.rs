//! LiME: memory as ranges, each behind a header (github.com/504ensicsLabs/LiME, doc/README.md;
//! bytes only, no I/O).

use base::fields::put;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_lime() {
        let bytes = emit(0x1000, 0x9fbff);
        assert_eq!(bytes[..8], *b"EMiL\x01\0\0\0");
        assert_eq!(bytes[8..24], *b"\0\x10\0\0\0\0\0\0\xff\xfb\x09\0\0\0\0\0");
        assert_eq!(bytes[24..], [0; 8]);
    }
}

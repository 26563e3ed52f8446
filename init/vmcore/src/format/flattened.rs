//! The flattened form of a dump, for pipes that cannot seek: pieces of a file, each with the offset
//! where it belongs (bytes only, no I/O).
//!
//! ```text
//! 4096 bytes     "makedumpfile", type 1, version 1, zeros
//! 16 bytes       offset, size      ┐ as often as needed; a later piece replaces what an earlier one put there
//! size bytes     data              ┘
//! 16 bytes       -1, -1
//! ```
//! All numbers are big-endian `int64_t`; makedumpfile's IMPLEMENTATION file describes them.
//!
//! The headers of a dump are written last, and without them the rest of a stream that was cut is of
//! no use. So ours has a copy of them in the zeros of its first 4096 bytes, where other readers do
//! not look:
//!
//! ```text
//! at 1024        "afterimage-head1"
//! at 1040        disk_dump_header, kdump_sub_header, as at the beginning of the dump; it says INCOMPLETE
//! at 1608        CRC-32 of them, little-endian
//! ```

use crate::format::kdump;
use base::fields::{Fields, put};

/// Bytes of the header.
pub const HEADER_LEN: usize = 4096;
/// Bytes in front of each piece, and of the end record.
pub const RECORD_LEN: usize = 16;

const SIGNATURE: &[u8; 16] = b"makedumpfile\0\0\0\0";
const TYPE: u64 = 1;
const VERSION: u64 = 1;
/// Both numbers of the end record: -1.
const END: u64 = u64::MAX;

/// Why a file is not a flattened dump that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlattenedError {
    /// The file ends inside the header.
    #[error("the file ends inside the header of the flattened dump")]
    Truncated,
    /// The signature is another one.
    #[error("no signature of a flattened dump")]
    Signature,
    /// Another type or version of the format.
    #[error("flattened dump of type {kind} and version {version}, only type 1 and version 1 are supported")]
    Version {
        /// Type.
        kind: u64,
        /// Version.
        version: u64,
    },
}

/// Whether a file starts like a flattened dump.
#[must_use]
pub fn has_signature(bytes: &[u8]) -> bool {
    bytes.starts_with(SIGNATURE)
}

const EARLY_TAG: &[u8; 16] = b"afterimage-head1";
const EARLY_AT: usize = 1024;
const EARLY_BLOCK: usize = EARLY_AT + EARLY_TAG.len();
const EARLY_SUB: usize = EARLY_BLOCK + kdump::HEADER_LEN;
const EARLY_CRC: usize = EARLY_SUB + kdump::SUB_HEADER_LEN;

/// The header with a copy of a dump's own headers: its first block and its sub header.
#[must_use]
pub fn emit_header_with(block0: &[u8], sub_header: &[u8]) -> [u8; HEADER_LEN] {
    let mut out = emit_header();
    put(&mut out, EARLY_AT, EARLY_TAG);
    put(&mut out, EARLY_BLOCK, block0.get(..kdump::HEADER_LEN).unwrap_or(block0));
    put(&mut out, EARLY_SUB, sub_header.get(..kdump::SUB_HEADER_LEN).unwrap_or(sub_header));
    let crc = crc32fast::hash(out.get(EARLY_BLOCK..EARLY_CRC).unwrap_or_default());
    put(&mut out, EARLY_CRC, &crc.to_le_bytes());
    out
}

/// The copy of a dump's headers in the header of a stream: the dump's first block, and its sub
/// header. `None` where there is none, or a damaged one.
#[must_use]
pub fn early_headers(header: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let copy = header.get(EARLY_BLOCK..EARLY_CRC)?;
    let has_tag = header.get(EARLY_AT..EARLY_BLOCK)? == EARLY_TAG;
    if !has_tag || Fields(header).u32(EARLY_CRC)? != crc32fast::hash(copy) {
        return None;
    }
    let (block, sub) = copy.split_at_checked(kdump::HEADER_LEN)?;
    let mut block = block.to_vec();
    block.resize(kdump::block_size(&block).ok()?.in_memory(), 0);
    Some((block, sub.to_vec()))
}

/// Checks the first [`HEADER_LEN`] bytes of a file.
pub fn parse_header(bytes: &[u8]) -> Result<(), FlattenedError> {
    if !has_signature(bytes) {
        return Err(FlattenedError::Signature);
    }
    let numbers = || {
        let f = Fields(bytes.get(..HEADER_LEN)?);
        Some((f.u64_be(16)?, f.u64_be(24)?))
    };
    match numbers().ok_or(FlattenedError::Truncated)? {
        (TYPE, VERSION) => Ok(()),
        (kind, version) => Err(FlattenedError::Version { kind, version }),
    }
}

/// The header.
#[must_use]
pub fn emit_header() -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    put(&mut out, 0, SIGNATURE);
    put(&mut out, 16, &TYPE.to_be_bytes());
    put(&mut out, 24, &VERSION.to_be_bytes());
    out
}

/// What stands in front of a piece, or at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The next `len` bytes belong at `offset`; their end is below 2^63.
    Piece {
        /// Offset in the dump.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The stream is complete.
    End,
}

impl Record {
    /// Decodes [`RECORD_LEN`] bytes; `None` for fewer, and for numbers that no file has.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let f = Fields(bytes);
        match (f.u64_be(0)?, f.u64_be(8)?) {
            (END, END) => Some(Self::End),
            (offset, len) => {
                let end = offset.checked_add(len).filter(|&end| i64::try_from(end).is_ok());
                end.map(|_| Self::Piece { offset, len })
            }
        }
    }

    /// The record's bytes.
    #[must_use]
    pub fn emit(self) -> [u8; RECORD_LEN] {
        let (offset, len) = match self {
            Self::Piece { offset, len } => (offset, len),
            Self::End => (END, END),
        };
        let mut out = [0; RECORD_LEN];
        put(&mut out, 0, &offset.to_be_bytes());
        put(&mut out, 8, &len.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_one_of_makedumpfile() {
        let header = emit_header();
        assert_eq!(&header[..32], b"makedumpfile\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01");
        assert!(header[32..].iter().all(|&byte| byte == 0));
        assert_eq!(parse_header(&header), Ok(()));
    }

    #[test]
    fn other_headers_are_named() {
        let mut header = emit_header();
        assert_eq!(parse_header(&header[..4095]), Err(FlattenedError::Truncated));
        header[31] = 2;
        assert_eq!(parse_header(&header), Err(FlattenedError::Version { kind: 1, version: 2 }));
        header[0] = 0;
        assert_eq!(parse_header(&header), Err(FlattenedError::Signature));
    }

    #[test]
    fn the_dump_s_headers_are_found_in_the_stream_s() {
        let mut block = vec![0; 4096];
        put(&mut block, 0, b"KDUMP   ");
        put(&mut block, 428, &4096_u32.to_le_bytes());
        put(&mut block, 460, &7_u32.to_le_bytes());
        let sub: Vec<u8> = (0..104).collect();
        let mut header = emit_header_with(&block, &sub);
        assert_eq!(header[..EARLY_AT], emit_header()[..EARLY_AT]);
        assert_eq!(early_headers(&header), Some((block, sub)));
        header[EARLY_SUB] ^= 1;
        assert_eq!(early_headers(&header), None);
        assert_eq!(early_headers(&emit_header()), None);
        assert_eq!(early_headers(b"short"), None);
    }

    #[test]
    fn records_round_trip() {
        let piece = Record::Piece { offset: 0x1_0000_0002, len: 0x300 };
        assert_eq!(piece.emit(), *b"\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\x03\0");
        assert_eq!(Record::parse(&piece.emit()), Some(piece));
        assert_eq!(Record::End.emit(), [0xff; 16]);
        assert_eq!(Record::parse(&[0xff; 16]), Some(Record::End));
    }

    #[test]
    fn numbers_of_no_file_are_no_record() {
        let with = |offset: u64, len: u64| [offset.to_be_bytes(), len.to_be_bytes()].concat();
        let limit = u64::MAX >> 1; // the largest off_t
        for (offset, len) in [(END, 1), (1, END), (1 << 63, 0), (limit, 1), (1, limit)] {
            assert_eq!(Record::parse(&with(offset, len)), None, "{offset:#x} {len:#x}");
        }
        assert!(Record::parse(&with(limit, 0)).is_some());
        assert_eq!(Record::parse(&[0; 15]), None);
    }
}

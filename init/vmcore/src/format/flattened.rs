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

//! A record of the log: one write to one file, with checksums of its own.

use core::fmt;

use crate::format::rawdump::superblock::is_safe_name;
use crate::format::rawdump::{Nonce, RECORD_ALIGN};
use base::addr::to_u64;
use base::fields::{Fields, put};

/// Bytes of a record's header.
pub const HEADER_LEN: usize = 96;
/// Most bytes of a file in one record: with the header 64 KiB, the most that one wrong bit can
/// cost.
pub const MAX_PAYLOAD: usize = (64 << 10) - HEADER_LEN;

const MAGIC: &[u8; 8] = b"aftimrec";
const NAME_LEN: usize = 20;
const CRC_AT: usize = HEADER_LEN - 4;

/// Which log a record belongs to: its generation and nonce. Bytes that look like a record and have
/// another are data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId {
    /// [`super::Superblock::log`].
    pub log: u64,
    /// [`super::Superblock::nonce`].
    pub nonce: Nonce,
}

/// What a record does to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Writes the payload at the offset.
    Data,
    /// Cuts the file at the offset. The first record of each file cuts it at 0.
    Truncate,
    /// The file is whole. The last record of a file that is.
    Publish,
}

/// Name of a file: short, and safe in a directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name([u8; NAME_LEN]);

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Counts the records of the log, from 0.
    pub sequence: u64,
    /// Attempt at the capture, from 1.
    pub attempt: u32,
    /// The file.
    pub name: Name,
    /// Counts the records of this file in this attempt, from 0: a gap is a loss.
    pub index: u64,
    /// What it does.
    pub kind: Kind,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes of the payload.
    pub len: u32,
    /// CRC32 of the payload.
    pub crc: u32,
}

/// Bytes that a record with this much payload takes on the device.
#[must_use]
pub fn record_len(payload: usize) -> u64 {
    to_u64(HEADER_LEN).saturating_add(to_u64(payload)).next_multiple_of(RECORD_ALIGN)
}

impl RecordHeader {
    /// Appends the record with `payload`, whose length and checksum go into the header, padded to
    /// [`record_len`].
    pub fn emit(&self, id: &LogId, payload: &[u8], out: &mut Vec<u8>) {
        let mut header = [0; HEADER_LEN];
        put(&mut header, 0, MAGIC);
        put(&mut header, 8, &id.log.to_le_bytes());
        put(&mut header, 16, &id.nonce.0);
        put(&mut header, 32, &self.sequence.to_le_bytes());
        put(&mut header, 40, &self.index.to_le_bytes());
        put(&mut header, 48, &self.offset.to_le_bytes());
        put(&mut header, 56, &u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut header, 60, &crc32fast::hash(payload).to_le_bytes());
        put(&mut header, 64, &self.attempt.to_le_bytes());
        put(&mut header, 68, &self.kind.number().to_le_bytes());
        put(&mut header, 72, &self.name.0);
        let crc = crc32fast::hash(header.get(..CRC_AT).unwrap_or_default());
        put(&mut header, CRC_AT, &crc.to_le_bytes());
        let end = to_u64(out.len()).saturating_add(record_len(payload.len()));
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        out.resize(base::addr::to_usize(end), 0);
    }

    /// Decodes a header of this log; `None` for anything else.
    #[must_use]
    pub fn parse(bytes: &[u8], id: &LogId) -> Option<Self> {
        let header = Fields(bytes);
        let ours = header.bytes(0, 8)? == MAGIC
            && header.u64(8)? == id.log
            && header.bytes(16, 16)? == id.nonce.0
            && crc32fast::hash(header.bytes(0, CRC_AT)?) == header.u32(CRC_AT)?;
        ours.then_some(())?;
        let len = header.u32(56)?;
        (base::addr::to_usize(u64::from(len)) <= MAX_PAYLOAD).then_some(())?;
        Some(Self {
            sequence: header.u64(32)?,
            index: header.u64(40)?,
            offset: header.u64(48)?,
            len,
            crc: header.u32(60)?,
            attempt: header.u32(64)?,
            kind: Kind::from_number(header.u32(68)?)?,
            name: Name::new(&header.text(72, NAME_LEN)?)?,
        })
    }

    /// Whether `payload` is this record's.
    #[must_use]
    pub fn is_payload(&self, payload: &[u8]) -> bool {
        to_u64(payload.len()) == u64::from(self.len) && crc32fast::hash(payload) == self.crc
    }
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Data => 1,
            Self::Truncate => 2,
            Self::Publish => 3,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::Data, Self::Truncate, Self::Publish].into_iter().find(|kind| kind.number() == number)
    }
}

impl Name {
    /// A name of up to 20 bytes that is safe in a directory.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; NAME_LEN];
        (is_safe_name(name) && name.len() <= NAME_LEN).then_some(())?;
        put(&mut bytes, 0, name.as_bytes());
        Some(Self(bytes))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let text = self.0.split(|&byte| byte == 0).next().unwrap_or_default();
        core::str::from_utf8(text).unwrap_or_default()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: LogId = LogId { log: 7, nonce: Nonce([0xa5; 16]) };

    fn sample(payload: &[u8]) -> (RecordHeader, Vec<u8>) {
        let header = RecordHeader {
            sequence: 5,
            attempt: 1,
            name: Name::new("vmcore").unwrap(),
            index: 3,
            kind: Kind::Data,
            offset: 0x1_0000_0001,
            len: u32::try_from(payload.len()).unwrap(),
            crc: crc32fast::hash(payload),
        };
        let mut bytes = Vec::new();
        header.emit(&ID, payload, &mut bytes);
        (header, bytes)
    }

    #[test]
    fn bytes_are_the_documented_ones() {
        let (_, bytes) = sample(b"hello");
        assert_eq!(bytes.len(), 512);
        assert_eq!(&bytes[..40], b"aftimrec\x07\0\0\0\0\0\0\0\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\x05\0\0\0\0\0\0\0");
        assert_eq!(&bytes[40..60], b"\x03\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\x05\0\0\0");
        assert_eq!(&bytes[64..79], b"\x01\0\0\0\x01\0\0\0vmcore\0");
        assert_eq!(&bytes[96..102], b"hello\0");
        assert_eq!(record_len(MAX_PAYLOAD), 64 << 10);
    }

    #[test]
    fn records_of_another_log_are_data() {
        let (header, bytes) = sample(b"x");
        assert_eq!(RecordHeader::parse(&bytes, &ID), Some(header));
        assert_eq!(RecordHeader::parse(&bytes, &LogId { log: 8, ..ID }), None);
        assert_eq!(RecordHeader::parse(&bytes, &LogId { nonce: Nonce([0xa4; 16]), ..ID }), None);
        for bad in ["", "..", "a/b", "123456789012345678901"] {
            assert_eq!(Name::new(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_bit_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..2000), at: usize, bit in 0..8_u32
        ) {
            let (header, mut bytes) = sample(&payload);
            let used = HEADER_LEN + payload.len();
            bytes[at % used] ^= 1 << bit;
            let parsed = RecordHeader::parse(&bytes, &ID);
            let same = parsed == Some(header) && header.is_payload(&bytes[HEADER_LEN..used]);
            prop_assert!(!same);
            prop_assert_eq!(parsed.is_none(), at % used < HEADER_LEN);
        }

        #[test]
        fn any_bytes_parse(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(RecordHeader::parse(&bytes, &ID), None);
        }
    }
}

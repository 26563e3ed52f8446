//! Raw targets: superblocks and records come out of a device's bytes only if their checksums are
//! right.
//!
//! Input: a byte that says what the rest is, and whether its checksum is made right.

use crate::build::put;
use crate::take;
use storage::format::rawdump::{
    Contents, HEADER_LEN, Kind, LogId, MAX_PAYLOAD, Name, Nonce, RecordHeader, SLOT_LEN, Superblock,
    contents, is_safe_name, latest,
};

const ID: LogId = LogId { log: 1, nonce: Nonce([0x5a; 16]) };

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut bytes = data;
    let kind = take(&mut bytes, 1).first().copied().unwrap_or(0);
    match kind % 3 {
        0 => check_superblock(bytes),
        1 => check_record(bytes),
        _ => check_contents(bytes),
    }
}

/// A slot with `payload` and a right checksum.
fn check_superblock(payload: &[u8]) {
    let mut slot = vec![0; SLOT_LEN];
    put(&mut slot, 0, b"afterimg\x01\0\0\0");
    put(&mut slot, 12, &u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    put(&mut slot, 32, &payload[..payload.len().min(SLOT_LEN - 32)]);
    let crc = crc32fast::hash(&slot);
    put(&mut slot, 16, &crc.to_le_bytes());
    let Some(found) = latest(&slot) else { return };
    assert!(found.capture.is_empty() || is_safe_name(&found.capture));
    if let Ok(emitted) = found.emit() {
        assert_eq!(Superblock::parse(&emitted), Some(found));
    }
}

/// A header with `fields` behind the nonce and a right checksum.
fn check_record(fields: &[u8]) {
    let mut header = vec![0; HEADER_LEN];
    put(&mut header, 0, b"aftimrec");
    put(&mut header, 8, &ID.log.to_le_bytes());
    put(&mut header, 16, &ID.nonce.0);
    put(&mut header, 32, &fields[..fields.len().min(HEADER_LEN - 36)]);
    let crc = crc32fast::hash(&header[..HEADER_LEN - 4]);
    put(&mut header, HEADER_LEN - 4, &crc.to_le_bytes());
    let Some(found) = RecordHeader::parse(&header, &ID) else { return };
    assert!(usize::try_from(found.len).is_ok_and(|len| len <= MAX_PAYLOAD));
    assert!(is_safe_name(found.name.as_str()));
    let other = LogId { log: 2, ..ID };
    assert_eq!(RecordHeader::parse(&header, &other), None);
}

fn check_contents(bytes: &[u8]) {
    let mut head = vec![0; 1 << 20];
    put(&mut head, 0, &bytes[..bytes.len().min(1 << 20)]);
    let blank = bytes.iter().all(|&byte| byte == 0);
    assert_eq!(contents(&head) == Contents::Blank, blank);
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let superblock = br#"{"generation":2,"state":"SEALED","uuid":"01234567-89ab-cdef-0123-456789abcdef","log":1,"nonce":"00000000000000000000000000000000","attempt":1,"ledger":{},"capture":"x","end":0,"records":0}"#;
    let header = RecordHeader {
        sequence: 0,
        attempt: 1,
        name: Name::new("vmcore").expect("a name"),
        index: 0,
        kind: Kind::Data,
        offset: 0,
        len: 0,
        crc: 0,
    };
    let mut record = Vec::new();
    header.emit(&ID, b"x", &mut record);
    vec![
        [&[0], &superblock[..]].concat(),
        [&[1], &record[32..HEADER_LEN - 4]].concat(),
        [&[2], &b"afterimg"[..]].concat(),
    ]
}

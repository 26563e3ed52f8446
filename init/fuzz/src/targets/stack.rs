//! LVM and LUKS metadata: what a parser lets through fits together.
//!
//! Input: a byte that says which structure it is and whether checksums are made right, then its
//! bytes.

use crate::build::put;
use crate::take;
use base::facts::stack::LuksHeader;
use storage::format::{luks, lvm};

const AREA: u64 = 4096;

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut bytes = data;
    let kind = take(&mut bytes, 1).first().copied().unwrap_or(0);
    match kind % 6 {
        0 => check_metadata(&String::from_utf8_lossy(bytes)),
        1 => check_label(&lvm_sealed(bytes, 16, 20)),
        2 => check_area(&lvm_sealed(bytes, 0, 4)),
        3 => luks::parse_luks1(bytes).iter().for_each(check_header),
        4 => check_copy(bytes),
        _ => check_copy(&luks2_of(bytes)),
    }
}

fn check_metadata(text: &str) {
    let Ok(group) = lvm::parse_metadata(text) else { return };
    for volume in &group.logical {
        let Ok(volume) = group.volume(&volume.id) else { continue };
        let mut next = 0;
        for segment in &volume.segments {
            assert!(segment.start == next && segment.count > 0 && !segment.stripes.is_empty());
            next += segment.count;
            let on = |id: &str| volume.physical.iter().any(|physical| physical.id == id);
            assert!(segment.stripes.iter().all(|stripe| on(&stripe.physical)));
        }
    }
}

fn check_label(sector: &[u8]) {
    let mut head = vec![0; 512];
    head.extend(sector);
    head.resize(lvm::LABEL_LEN, 0);
    let Some(label) = lvm::parse_label(&head) else { return };
    assert!(label.id.len() == 32 && label.areas.len() < 8);
}

fn check_area(header: &[u8]) {
    let Ok(Some(place)) = lvm::parse_area(header, AREA) else { return };
    assert!(place.len + place.rest_len <= lvm::MAX_TEXT_LEN);
    assert!(place.start >= AREA + 512);
    assert!(place.rest_len == 0 || place.rest_start + place.rest_len <= place.start);
}

fn check_copy(copy: &[u8]) {
    let Ok(copy) = luks::parse_luks2(copy, 0) else { return };
    copy.header.iter().for_each(check_header);
}

fn check_header(header: &LuksHeader) {
    assert!(header.offset > 0 && header.key_len > 0 && header.sector_size.is_power_of_two());
    assert!(!header.cipher.contains(char::is_whitespace), "{:?}", header.cipher);
}

/// A structure of 512 bytes with LVM's checksum made right.
fn lvm_sealed(bytes: &[u8], sum_at: usize, from: usize) -> Vec<u8> {
    let mut sector = bytes[..bytes.len().min(512)].to_vec();
    sector.resize(512, 0);
    let mut sum = 0xf597_a6cf_u32;
    for &byte in &sector[from..] {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    put(&mut sector, sum_at, &sum.to_le_bytes());
    sector
}

/// A LUKS2 header with this JSON and a right checksum.
fn luks2_of(json: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut bytes = vec![0; 0x4000];
    put(&mut bytes, 0, b"LUKS\xba\xbe\0\x02");
    put(&mut bytes, 8, &0x4000_u64.to_be_bytes());
    put(&mut bytes, 72, b"sha256");
    put(&mut bytes, 168, b"5a17c0de-0000-4000-8000-0000000000a2");
    put(&mut bytes, 4096, &json[..json.len().min(0x3000)]);
    let sum = Sha256::digest(&bytes);
    put(&mut bytes, 448, &sum);
    bytes
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let json = include_bytes!("../../../storage/src/format/testdata/luks2.json");
    let mut label = vec![0; 150];
    put(&mut label, 0, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001");
    put(&mut label, 32, &[b'a'; 32]);
    put(&mut label, 74, &[0x10]);
    put(&mut label, 105, &[0x10, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x0f]);
    let mut area = vec![0; 64];
    put(&mut area, 4, b" LVM2 x[5A%r0N*>\x01");
    put(&mut area, 24, &AREA.to_le_bytes());
    put(&mut area, 32, &(1_u64 << 20).to_le_bytes());
    put(&mut area, 40, &((1_u64 << 20) - 1000).to_le_bytes());
    put(&mut area, 48, &1715_u64.to_le_bytes());
    let mut luks1 = vec![0; 208];
    put(&mut luks1, 0, b"LUKS\xba\xbe\0\x01aes");
    put(&mut luks1, 40, b"xts-plain64");
    put(&mut luks1, 104, &[0, 0, 0x10, 0, 0, 0, 0, 0x40]);
    put(&mut luks1, 168, b"5a17c0de-0000-4000-8000-0000000000a1");
    vec![
        seed(0, include_bytes!("../../../storage/src/format/testdata/volume_group.txt")),
        seed(1, &label),
        seed(2, &area),
        seed(3, &luks1),
        seed(4, &luks2_of(json)[..4096]),
        seed(5, json),
    ]
}

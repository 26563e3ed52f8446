//! Superblocks and partition tables: names come out in the form that the rest compares.
//!
//! Input: a byte that says where on the device the rest lies, and whether checksums are made right.

use crate::build::put;
use crate::take;
use base::config::FsType;
use storage::format::features;
use storage::format::gpt::{self, MAX_ENTRIES_LEN, Partition};
use storage::format::superblock::{self, PROBE_LEN};

const SECTOR: usize = 512;

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut bytes = data;
    let kind = take(&mut bytes, 1).first().copied().unwrap_or(0);
    match kind % 6 {
        0 => check_probe(bytes),
        1 => check_probe(&at(1024, bytes)),
        2 => check_probe(&at(64 * 1024, bytes)),
        3 => check_mbr(bytes),
        fixed => check_gpt(bytes, fixed == 4),
    }
}

/// A device that has `bytes` at `offset`.
fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut head = vec![0; offset];
    head.extend(&bytes[..bytes.len().min(PROBE_LEN - offset)]);
    head
}

fn check_probe(head: &[u8]) {
    let Some(found) = superblock::probe(head) else { return };
    let parts: Vec<usize> = found.uuid.split('-').map(str::len).collect();
    let form: &[usize] = if found.kind == FsType::Vfat { &[4, 4] } else { &[8, 4, 4, 4, 12] };
    assert_eq!(parts, form, "{}", found.uuid);
    assert!(found.uuid.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f' | '-')), "{}", found.uuid);
    assert!(!found.label.contains('\0') && found.label.chars().count() <= 256, "{:?}", found.label);
    let needs = features::needs(found.kind, head);
    assert!(features::journal(head).is_none() || found.kind != FsType::Ext4, "a journal is no file system");
    assert!(needs.journal.is_none_or(|uuid| uuid.len() == 36) && needs.modules.len() <= 5);
}

fn check_partitions(found: &[Partition]) {
    assert!(found.windows(2).all(|pair| pair[0].number < pair[1].number));
    for partition in found {
        assert!(partition.number >= 1);
        assert!(!partition.label.contains('\0') && partition.label.chars().count() <= 36);
        assert_eq!(partition.uuid, partition.uuid.to_ascii_lowercase());
    }
}

fn check_mbr(sector: &[u8]) {
    // Each further table is the same one: the longest chain that there can be.
    let found = gpt::parse_mbr(sector, &mut |_| Some(sector.to_vec()));
    assert!(found.len() <= 4 + 4 * 4 * 256, "{}", found.len());
    assert!(found.iter().all(|partition| (11..=12).contains(&partition.uuid.len())));
    check_partitions(&found);
}

fn check_gpt(bytes: &[u8], fix_checksums: bool) {
    let (header, entries) = bytes.split_at(bytes.len().min(SECTOR));
    let mut header = header.to_vec();
    if fix_checksums {
        fix(&mut header, entries);
    }
    let Some(parsed) = gpt::parse_header(&header) else { return };
    assert!(parsed.entries_len <= MAX_ENTRIES_LEN && parsed.entry_len >= 128);
    let Some(found) = parsed.parse_entries(entries) else { return };
    assert!(found.iter().all(|partition| partition.uuid.len() == 36));
    assert!(found.len() * parsed.entry_len <= entries.len());
    check_partitions(&found);
}

/// Makes the checksums of a GPT header right, as far as it has the fields.
fn fix(header: &mut [u8], entries: &[u8]) {
    let word = |header: &[u8], at: usize| {
        let bytes = header.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let (Some(count), Some(len)) = (word(header, 80), word(header, 84)) else { return };
    if header.len() < 92 {
        return;
    }
    let covered = entries.get(..count.saturating_mul(len)).unwrap_or(entries);
    put(header, 88, &crc32fast::hash(covered).to_le_bytes());
    put(header, 16, &[0; 4]);
    let header_len = word(header, 12).unwrap_or(0).min(header.len());
    let crc = crc32fast::hash(&header[..header_len]);
    put(header, 16, &crc.to_le_bytes());
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, len: usize, fields: &[(usize, &[u8])]| {
        let mut out = vec![0; 1 + len];
        out[0] = kind;
        for (offset, value) in fields {
            put(&mut out, 1 + offset, value);
        }
        out
    };
    let entry = 512 + 128;
    let gpt: &[(usize, &[u8])] = &[
        (0, b"EFI PART"),
        (12, &[92]),
        (72, &[2]),
        (80, &[4]),
        (84, &[128]),
        (entry, &[7; 16]),
        (entry + 16, &[9; 16]),
        (entry + 56, b"d\0u\0m\0p\0"),
    ];
    let vfat: &[(usize, &[u8])] = &[
        (11, &[0, 2, 1]),
        (16, &[2]),
        (67, &[1, 2, 3, 4]),
        (71, b"LABEL      FAT32   "),
        (510, &[0x55, 0xaa]),
    ];
    vec![
        seed(0, 128, &[(0, b"XFSB"), (32, &[0xab; 16]), (108, b"label")]),
        seed(0, 512, vfat),
        seed(1, 256, &[(0x38, &[0x53, 0xef]), (0x68, &[0xcd; 16]), (0x78, b"label")]),
        seed(2, 600, &[(64, b"_BHRfS_M"), (32, &[0xef; 16]), (299, b"label")]),
        seed(3, 512, &[(440, &[1, 2, 3, 4]), (466, &[0x83]), (510, &[0x55, 0xaa])]),
        seed(4, 512 + 4 * 128, gpt),
        seed(5, 512 + 4 * 128, gpt),
    ]
}

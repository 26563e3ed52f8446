//! GPT and MBR partition tables: the PARTUUID and PARTLABEL of each partition.
//!
//! The kernel makes the partition devices; it tells their labels (`PARTNAME` in uevent) but, before
//! 6.11, not their UUIDs, so the table is read here. CRCs are checked: a stale table must not name
//! a wrong device.

use base::addr::to_usize;
use base::fields::{Fields, Uuid};

/// Largest entry array that is read; the specification's minimum is 16 KiB.
pub const MAX_ENTRIES_LEN: usize = 1 << 20;
/// Bytes of the header that are covered by its checksum in every known version.
const HEADER_LEN: usize = 92;
const HEADER_CRC: usize = 16;

/// A partition's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Partition number as in the device name, from 1.
    pub number: u32,
    /// `PARTUUID`: lower case; `<disk id>-<number>` on an MBR disk, as the kernel writes it.
    pub uuid: String,
    /// `PARTLABEL`; empty on an MBR disk.
    pub label: String,
}

/// Where a GPT's entries lie and what their checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GptHeader {
    /// First sector of the entry array.
    pub entries_lba: u64,
    /// Bytes of one entry.
    pub entry_len: usize,
    /// Bytes of the entry array.
    pub entries_len: usize,
    entries_crc: u32,
}

/// Decodes the sector that holds a GPT header (LBA 1), if it is one and its checksum holds.
#[must_use]
pub fn parse_header(sector: &[u8]) -> Option<GptHeader> {
    let f = Fields(sector); // UEFI 2.10, table 5.5
    f.bytes(0, 8).filter(|signature| signature == b"EFI PART")?;
    let header_len = to_usize(u64::from(f.u32(12)?));
    (header_len >= HEADER_LEN).then_some(())?;
    let mut copy = f.bytes(0, header_len)?.to_vec();
    copy.get_mut(HEADER_CRC..HEADER_CRC + 4)?.fill(0);
    (crc32fast::hash(&copy) == f.u32(HEADER_CRC)?).then_some(())?;
    let entry_len = to_usize(u64::from(f.u32(84)?));
    let entries_len = entry_len.checked_mul(to_usize(u64::from(f.u32(80)?)))?;
    let sane = entry_len >= 128 && entries_len <= MAX_ENTRIES_LEN;
    sane.then_some(GptHeader { entries_lba: f.u64(72)?, entry_len, entries_len, entries_crc: f.u32(88)? })
}

impl GptHeader {
    /// The partitions in the entry array, if its checksum holds.
    #[must_use]
    pub fn parse_entries(&self, entries: &[u8]) -> Option<Vec<Partition>> {
        let entries = entries.get(..self.entries_len)?;
        (crc32fast::hash(entries) == self.entries_crc).then_some(())?;
        let partitions = entries.chunks_exact(self.entry_len).zip(1_u32..);
        Some(partitions.filter_map(|(entry, number)| parse_entry(entry, number)).collect())
    }
}

fn parse_entry(entry: &[u8], number: u32) -> Option<Partition> {
    let f = Fields(entry); // UEFI 2.10, table 5.6
    let used = f.bytes(0, 16)?.iter().any(|&b| b != 0);
    used.then_some(())?;
    let units = f.bytes(56, 72)?.chunks_exact(2).filter_map(|pair| Fields(pair).u16(0));
    let name: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
    Some(Partition { number, uuid: guid(f.bytes(16, 16)?)?, label: String::from_utf16_lossy(&name) })
}

/// A GUID's text: a UUID whose first three fields are little-endian.
fn guid(bytes: &[u8]) -> Option<String> {
    let mut bytes = *bytes.first_chunk::<16>()?;
    let (fields, _) = bytes.split_at_mut(8);
    let (first, rest) = fields.split_at_mut(4);
    let (second, third) = rest.split_at_mut(2);
    [first, second, third].into_iter().for_each(<[u8]>::reverse);
    Some(Uuid(&bytes).to_string())
}

/// Entries of a table in a boot record.
const ENTRIES: usize = 4;
/// Logical partitions are numbered from here on, whatever primary ones there are.
const FIRST_LOGICAL: u32 = 5;
/// Records in a row without a partition, after which the kernel gives up (`parse_extended()`,
/// block/partitions/msdos.c). Here it bounds all of them: a chain may be a ring.
const MAX_RECORDS: usize = 256;

/// An entry of a table in a boot record (struct msdos_partition), sectors of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    kind: u8,
    start: u64,
    len: u64,
}

impl Record {
    /// Whether a chain of further tables begins there: DOS, Windows, Linux (`is_extended_partition()`).
    fn is_extended(self) -> bool {
        self.len > 0 && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The table in sector 0 or in that of an extended partition.
fn records(sector: &[u8]) -> Option<[Record; ENTRIES]> {
    let f = Fields(sector);
    (f.u16(510)? == 0xaa55).then_some(())?;
    let mut records = [Record { kind: 0, start: 0, len: 0 }; ENTRIES];
    for (index, record) in records.iter_mut().enumerate() {
        let at = index.checked_mul(16)?.checked_add(446)?;
        let number = |offset: usize| f.u32(at.checked_add(offset)?).map(u64::from);
        *record = Record { kind: f.u8(at.checked_add(4)?)?, start: number(8)?, len: number(12)? };
    }
    Some(records)
}

/// Whether sector 0 is the MBR that keeps a GPT from those who do not know it.
#[must_use]
pub fn is_protective(sector: &[u8]) -> bool {
    records(sector).is_some_and(|table| table.iter().any(|record| record.kind == 0xee))
}

/// The partitions of an MBR (sector 0): the primary ones, and the logical ones in the chain of tables
/// whose sectors `read` gives. Empty for a protective MBR or none.
pub fn parse_mbr(sector: &[u8], read: &mut dyn FnMut(u64) -> Option<Vec<u8>>) -> Vec<Partition> {
    let (Some(table), Some(disk)) = (records(sector), Fields(sector).u32(440)) else { return Vec::new() };
    if disk == 0 || table.iter().any(|record| record.kind == 0xee) {
        return Vec::new();
    }
    let named =
        |number: u32| Partition { number, uuid: format!("{disk:08x}-{number:02x}"), label: String::new() };
    let primary = table.iter().zip(1_u32..).filter(|(record, _)| record.kind != 0);
    let mut partitions: Vec<Partition> = primary.map(|(_, number)| named(number)).collect();
    let mut next = FIRST_LOGICAL;
    for extended in table.iter().filter(|record| record.is_extended()) {
        for _ in 0..logical(*extended, read) {
            partitions.push(named(next));
            next = next.saturating_add(1);
        }
    }
    partitions
}

/// How many partitions are in an extended one. They are counted as the kernel counts them, for it
/// gives them their numbers.
fn logical(extended: Record, read: &mut dyn FnMut(u64) -> Option<Vec<u8>>) -> u32 {
    let end = extended.start.saturating_add(extended.len);
    let (mut at, mut len, mut count) = (extended.start, extended.len, 0_u32);
    for _ in 0..MAX_RECORDS {
        let Some(table) = read(at).and_then(|sector| records(&sector)) else { return count };
        for (index, record) in table.iter().enumerate() {
            // The last two entries are none, but some tools put something there.
            let start = at.saturating_add(record.start);
            let fits = record.start.saturating_add(record.len) <= len
                && start >= extended.start
                && start.saturating_add(record.len) <= end;
            if record.len > 0 && !record.is_extended() && (index < 2 || fits) {
                count = count.saturating_add(1);
            }
        }
        let Some(further) = table.iter().find(|record| record.is_extended()) else { return count };
        at = extended.start.saturating_add(further.start);
        len = further.len;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> (Vec<u8>, Vec<u8>) {
        let mut entries = vec![0_u8; 128 * 4];
        let second = &mut entries[128..256];
        second[..16].fill(7);
        second[16..32].copy_from_slice(&[
            0xa1, 0xa2, 0xa3, 0xa4, 0xb1, 0xb2, 0xc1, 0xc2, 0xd1, 0xd2, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6,
        ]);
        for (index, unit) in "dump-ä".encode_utf16().enumerate() {
            second[56 + 2 * index..58 + 2 * index].copy_from_slice(&unit.to_le_bytes());
        }
        let mut header = vec![0_u8; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = 92;
        header[72] = 2;
        header[80] = 4;
        header[84] = 128;
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let crc = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        (header, entries)
    }

    #[test]
    fn reads_a_gpt() {
        let (header, entries) = table();
        let parsed = parse_header(&header).unwrap();
        assert_eq!((parsed.entries_lba, parsed.entries_len), (2, 512));
        let expected = Partition {
            number: 2,
            uuid: "a4a3a2a1-b2b1-c2c1-d1d2-e1e2e3e4e5e6".into(),
            label: "dump-ä".into(),
        };
        assert_eq!(parsed.parse_entries(&entries), Some(vec![expected]));
    }

    #[test]
    fn refuses_what_its_checksum_does_not_cover() {
        let (mut header, mut entries) = table();
        let parsed = parse_header(&header).unwrap();
        entries[200] ^= 1;
        assert_eq!(parsed.parse_entries(&entries), None);
        header[80] ^= 1;
        assert_eq!(parse_header(&header), None);
    }

    fn sector(entries: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut sector = vec![0_u8; 512];
        sector[440..444].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        for (index, (kind, start, len)) in entries.iter().enumerate() {
            let at = 446 + 16 * index;
            sector[at + 4] = *kind;
            sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        }
        sector
    }

    fn uuids(first: &[u8], others: &[(u64, Vec<u8>)]) -> Vec<String> {
        let mut read = |at| others.iter().find(|(other, _)| *other == at).map(|(_, sector)| sector.clone());
        parse_mbr(first, &mut read).into_iter().map(|partition| partition.uuid).collect()
    }

    #[test]
    fn reads_an_mbr_but_not_a_protective_one() {
        assert_eq!(uuids(&sector(&[(0, 0, 0), (0x83, 2048, 9)]), &[]), ["1234abcd-02"]);
        assert_eq!(uuids(&sector(&[(0xee, 1, 9), (0x83, 2048, 9)]), &[]), Vec::<String>::new());
        assert_eq!(uuids(&[0; 511], &[]), Vec::<String>::new());
    }

    #[test]
    fn logical_partitions_are_numbered_as_the_kernel_does() {
        for kind in [0x05, 0x0f, 0x85] {
            let first = sector(&[(0x83, 2048, 100), (kind, 4000, 1000)]);
            let chain = [
                (4000, sector(&[(0x83, 10, 90), (kind, 200, 100)])),
                (4200, sector(&[(0x83, 10, 90), (kind, 400, 100)])),
                (4400, sector(&[(0x83, 10, 90)])),
            ];
            let expected = ["1234abcd-01", "1234abcd-02", "1234abcd-05", "1234abcd-06", "1234abcd-07"];
            assert_eq!(uuids(&first, &chain), expected, "{kind:#x}");
            assert_eq!(uuids(&first, &chain[..1]), expected[..3], "the rest cannot be read");
        }
    }

    #[test]
    fn a_chain_that_is_a_ring_or_lies_ends() {
        let first = sector(&[(0x05, 4000, 1000)]);
        let ring = [(4000, sector(&[(0x83, 10, 90), (0x05, 0, 1000)]))];
        assert_eq!(uuids(&first, &ring).len(), 1 + MAX_RECORDS);
        let rubbish = [(4000, sector(&[(0x83, 10, 90), (0, 0, 0), (0x83, 900, 900), (0x83, 500, 100)]))];
        assert_eq!(uuids(&first, &rubbish), ["1234abcd-01", "1234abcd-05", "1234abcd-06"]);
    }
}

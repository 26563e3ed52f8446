//! The ELF core header in which the capture kernel finds the production kernel's memory:
//! `elfcorehdr=` on its command line, `/proc/vmcore` there
//! (Documentation/admin-guide/kdump/kdump.rst). As the kernel's own `crash_prepare_elf64_headers`
//! makes it: a note per CPU, VMCOREINFO, the kernel's text mapping, and a PT_LOAD per range of
//! memory.

use std::ops::Range;

use byteorder::{ByteOrder, LE};

const EHDR: usize = 64;
const PHDR: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_RWX: u32 = 7;
const PF_R: u32 = 4;
/// `e_phnum` has 16 bits; 0xffff says that the number is elsewhere, where the kernel does not look.
const MOST_SEGMENTS: usize = 0xfffe;

/// Where the production kernel keeps what a core must tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// `crash_notes` of each possible CPU: physical address and length.
    pub cpu_notes: Vec<Range<u64>>,
    /// The VMCOREINFO note.
    pub vmcoreinfo: Range<u64>,
    /// Virtual address of the kernel's text mapping, and the physical addresses it maps.
    pub text: Option<Text>,
    /// Virtual address of physical address 0 in the direct map.
    pub page_offset: u64,
    /// Memory to be saved.
    pub memory: Vec<Range<u64>>,
}

/// A mapping: virtual address, and the physical addresses that are mapped there.
pub type Text = (u64, Range<u64>);

/// Too many ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a core header with {0} segments: ELF has room for {MOST_SEGMENTS}")]
pub struct TooMany(usize);

/// The header's bytes.
pub fn build(layout: &Layout) -> Result<Vec<u8>, TooMany> {
    let notes = layout.cpu_notes.iter().chain([&layout.vmcoreinfo]).filter(|note| !note.is_empty());
    let text = layout.text.iter().map(|(at, range)| (*at, range));
    let memory = layout.memory.iter().map(|range| (layout.page_offset.wrapping_add(range.start), range));
    let loads: Vec<_> = text.chain(memory).filter(|(_, range)| !range.is_empty()).collect();
    let notes: Vec<_> = notes.collect();
    let count = notes.len().saturating_add(loads.len());
    let number = u16::try_from(count).ok().filter(|_| count <= MOST_SEGMENTS).ok_or(TooMany(count))?;
    let mut out = ehdr(number);
    // The kernel takes offset as the physical address of what it maps into /proc/vmcore
    // (fs/proc/vmcore.c).
    out.extend(notes.into_iter().flat_map(|range| phdr(PT_NOTE, PF_R, 0, range)));
    out.extend(loads.into_iter().flat_map(|(at, range)| phdr(PT_LOAD, PF_RWX, at, range)));
    Ok(out)
}

/// Bytes of a header for so many CPUs and ranges of memory.
#[must_use]
pub fn len(cpus: usize, ranges: usize) -> usize {
    cpus.saturating_add(ranges).saturating_add(2).saturating_mul(PHDR).saturating_add(EHDR)
}

fn ehdr(segments: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(len(0, segments.into()));
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bit, little endian, version 1
    let mut fields = [0; EHDR - 16];
    let put16 = |fields: &mut [u8], at: usize, value| {
        fields.get_mut(at..).into_iter().for_each(|field| LE::write_u16(field, value));
    };
    put16(&mut fields, 0, 4); // ET_CORE
    put16(&mut fields, 2, 62); // EM_X86_64
    put16(&mut fields, 4, 1); // EV_CURRENT
    put16(&mut fields, 16, 64); // e_phoff
    put16(&mut fields, 36, 64); // e_ehsize
    put16(&mut fields, 38, 56); // e_phentsize
    put16(&mut fields, 40, segments);
    out.extend(fields);
    out
}

fn phdr(kind: u32, flags: u32, virtual_address: u64, physical: &Range<u64>) -> Vec<u8> {
    let size = physical.end.saturating_sub(physical.start);
    let mut out = Vec::with_capacity(PHDR);
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    for field in [physical.start, virtual_address, physical.start, size, size, 0] {
        out.extend(field.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use goblin::elf::Elf;

    fn layout() -> Layout {
        Layout {
            cpu_notes: vec![0x3fe0_0000..0x3fe0_0160, 0x3fe4_0000..0x3fe4_0160],
            vmcoreinfo: 0x10_1000..0x10_2024,
            text: Some((0xffff_ffff_8100_0000, 0x100_0000..0x300_0000)),
            page_offset: 0xff11_0000_0000_0000,
            memory: vec![0x10_0000..0x3400_0000, 0x1_0000_0000..0x1_4000_0000],
        }
    }

    #[test]
    fn a_core_header_is_what_elf_readers_take() {
        let bytes = build(&layout()).unwrap();
        assert_eq!(bytes.len(), len(2, 2));
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!((elf.header.e_type, elf.header.e_machine, elf.header.e_phnum), (4, 62, 6));
        let seen: Vec<_> = elf
            .program_headers
            .iter()
            .map(|p| (p.p_type, p.p_offset, p.p_vaddr, p.p_paddr, p.p_filesz))
            .collect();
        assert_eq!(seen[0], (PT_NOTE, 0x3fe0_0000, 0, 0x3fe0_0000, 0x160));
        assert_eq!(seen[2], (PT_NOTE, 0x10_1000, 0, 0x10_1000, 0x1024));
        assert_eq!(seen[3], (PT_LOAD, 0x100_0000, 0xffff_ffff_8100_0000, 0x100_0000, 0x200_0000));
        assert_eq!(seen[5], (PT_LOAD, 1 << 32, 0xff11_0001_0000_0000, 1 << 32, 0x4000_0000));
    }

    #[test]
    fn the_bytes_are_these() {
        let layout = Layout { vmcoreinfo: 0x1000..0x1010, ..Layout::default() };
        let bytes = build(&layout).unwrap();
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = concat!(
            "7f454c46020101000000000000000000",
            "04003e00010000000000000000000000",
            "40000000000000000000000000000000",
            "00000000400038000100000000000000",
            "04000000040000000010000000000000",
            "00000000000000000010000000000000",
            "10000000000000001000000000000000",
            "0000000000000000"
        );
        assert_eq!(hex.concat(), expected);
    }

    #[test]
    fn more_than_elf_can_count_is_refused() {
        let layout = Layout { cpu_notes: vec![1..2; 0xffff], ..layout() };
        assert_eq!(
            build(&layout).unwrap_err().to_string(),
            "a core header with 65539 segments: ELF has room for 65534"
        );
    }
}

//! The ELF64 file header and program headers of a vmcore, through goblin.
//!
//! A vmcore's program headers can lie (a damaged core, a hostile producer): this module only
//! decodes them; [`crate::source::Vmcore`] decides what to believe.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Elf;
use goblin::elf::header as eh;
use goblin::elf::program_header::{PT_LOAD, PT_NOTE, ProgramHeader};

use base::addr::{PhysAddr, VirtAddr, to_u64, to_usize};
use base::fields::{Fields, put};

/// Bytes of the ELF64 file header.
pub const HEADER_LEN: usize = 64;
/// Bytes of one ELF64 program header.
pub const PROGRAM_HEADER_LEN: usize = 56;
/// Bytes of one ELF64 section header.
pub const SECTION_HEADER_LEN: usize = 64;
/// `e_phnum` when the real count does not fit in 16 bits and stands in section header 0 (gABI, "ELF
/// Header").
const PN_XNUM: usize = 0xffff;

/// Why a file is not a vmcore that we can read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// Fewer bytes than an ELF header has.
    #[error("an ELF header ends after {0} bytes")]
    TooShort(usize),
    /// The magic number is another one.
    #[error("no ELF magic number: the file starts with {0:02x?}")]
    Magic([u8; 4]),
    /// 32-bit or an unknown class.
    #[error("ELF class {0} is not supported, only 2 (64-bit)")]
    Class(u8),
    /// Big-endian or an unknown byte order.
    #[error("ELF byte order {0} is not supported, only 1 (little-endian)")]
    ByteOrder(u8),
    /// Not `ET_CORE`.
    #[error("ELF type {0} is not ET_CORE (4)")]
    Type(u16),
    /// Program headers of a size that the ABI does not have.
    #[error("e_phentsize is {0}, expected {PROGRAM_HEADER_LEN}")]
    EntrySize(u16),
    /// goblin could not decode the bytes.
    #[error("ELF {what} cannot be decoded: {cause}")]
    Malformed {
        /// Which structure.
        what: &'static str,
        /// goblin's words.
        cause: String,
    },
}

/// What the ELF file header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `e_machine`; 62 is x86_64, 183 is aarch64.
    pub machine: u16,
    /// File offset of the program headers.
    pub phoff: u64,
    /// How many program headers there are.
    pub phnum: PhNum,
}

/// The number of program headers, or where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhNum {
    /// `e_phnum` itself.
    Direct(u64),
    /// `sh_info` of the section header at this file offset.
    InSectionHeader(u64),
}

/// What a program header describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// `PT_LOAD`: memory.
    Load,
    /// `PT_NOTE`: ELF notes.
    Note,
    /// Anything else, by its `p_type`.
    Other(u32),
}

/// A decoded program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it describes.
    pub kind: SegmentKind,
    /// File offset of its bytes.
    pub offset: u64,
    /// Physical address.
    pub paddr: PhysAddr,
    /// Virtual address.
    pub vaddr: VirtAddr,
    /// Bytes in the file.
    pub filesz: u64,
    /// Bytes in memory.
    pub memsz: u64,
}

const CTX: Ctx = Ctx { container: Container::Big, le: Endian::Little };

impl Header {
    /// Decodes the first [`HEADER_LEN`] bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ElfError> {
        let (Some(ident), Some(magic)) =
            (bytes.first_chunk::<HEADER_LEN>().and(bytes.first_chunk::<6>()), bytes.first_chunk::<4>())
        else {
            return Err(ElfError::TooShort(bytes.len()));
        };
        if magic != eh::ELFMAG {
            return Err(ElfError::Magic(*magic));
        }
        let [.., class, order] = *ident;
        if class != eh::ELFCLASS64 {
            return Err(ElfError::Class(class));
        }
        if order != eh::ELFDATA2LSB {
            return Err(ElfError::ByteOrder(order));
        }
        let raw = Elf::parse_header(bytes).map_err(malformed("file header"))?;
        if raw.e_type != eh::ET_CORE {
            return Err(ElfError::Type(raw.e_type));
        }
        if raw.e_phnum != 0 && usize::from(raw.e_phentsize) != PROGRAM_HEADER_LEN {
            return Err(ElfError::EntrySize(raw.e_phentsize));
        }
        let phnum = if usize::from(raw.e_phnum) == PN_XNUM && raw.e_shoff != 0 {
            PhNum::InSectionHeader(raw.e_shoff)
        } else {
            PhNum::Direct(u64::from(raw.e_phnum))
        };
        Ok(Self { machine: raw.e_machine, phoff: raw.e_phoff, phnum })
    }
}

/// The program header count in the bytes of section header 0 (`sh_info`).
pub fn phnum_of_section_header(bytes: &[u8]) -> Result<u64, ElfError> {
    // goblin takes section header 0 for a table's terminator and drops it, so its one field is read
    // here.
    Fields(bytes).u32(44).map(u64::from).ok_or(ElfError::TooShort(bytes.len()))
}

/// Decodes as many whole program headers as `bytes` holds.
pub fn parse_segments(bytes: &[u8]) -> Result<Vec<Segment>, ElfError> {
    let count = bytes.len().checked_div(PROGRAM_HEADER_LEN).unwrap_or(0);
    let raw = ProgramHeader::parse(bytes, 0, count, CTX).map_err(malformed("program headers"))?;
    Ok(raw.iter().map(Segment::from).collect())
}

impl From<&ProgramHeader> for Segment {
    fn from(raw: &ProgramHeader) -> Self {
        Self {
            kind: match raw.p_type {
                PT_LOAD => SegmentKind::Load,
                PT_NOTE => SegmentKind::Note,
                other => SegmentKind::Other(other),
            },
            offset: raw.p_offset,
            paddr: PhysAddr(raw.p_paddr),
            vaddr: VirtAddr(raw.p_vaddr),
            filesz: raw.p_filesz,
            memsz: raw.p_memsz,
        }
    }
}

/// The machine name that readers compare with `utsname.machine`, for an `e_machine`.
#[must_use]
pub fn machine_name(e_machine: u16) -> Option<&'static str> {
    match e_machine {
        eh::EM_X86_64 => Some("x86_64"),
        eh::EM_AARCH64 => Some("aarch64"),
        _ => None,
    }
}

/// `e_machine` of the machine that uname calls `name`; 0 (none) for one that is not known.
#[must_use]
pub fn machine_number(name: Option<&str>) -> u16 {
    [eh::EM_X86_64, eh::EM_AARCH64].into_iter().find(|&number| machine_name(number) == name).unwrap_or(0)
}

/// Offset in a table of program headers, in bytes; `None` past 2^64.
#[must_use]
pub fn table_offset(phoff: u64, index: u64) -> Option<u64> {
    phoff.checked_add(index.checked_mul(to_u64(PROGRAM_HEADER_LEN))?)
}

/// Bytes that `count` program headers take, saturating.
#[must_use]
pub fn table_len(count: u64) -> usize {
    to_usize(count).saturating_mul(PROGRAM_HEADER_LEN)
}

fn malformed(what: &'static str) -> impl Fn(goblin::error::Error) -> ElfError {
    move |error| ElfError::Malformed { what, cause: error.to_string() }
}

/// Where the program headers of a core with room for `segments` of them begin.
#[must_use]
pub fn table_at(segments: usize) -> usize {
    let section = if segments < PN_XNUM { 0 } else { SECTION_HEADER_LEN };
    HEADER_LEN.saturating_add(section)
}

/// Bytes of all headers of a core with room for `segments` program headers.
#[must_use]
pub fn head_len(segments: usize) -> usize {
    table_at(segments).saturating_add(table_len(to_u64(segments)))
}

/// The header of a core file that has `segments` program headers and room for `capacity`. If these
/// may be many, section header 0 is part of it, whose `sh_info` is the number of program headers.
#[must_use]
pub fn emit_header(machine: u16, segments: usize, capacity: usize) -> Vec<u8> {
    let mut out = vec![0; table_at(capacity)];
    put(&mut out, 0, b"\x7fELF\x02\x01\x01"); // ELFCLASS64, ELFDATA2LSB, EV_CURRENT
    put(&mut out, 16, &eh::ET_CORE.to_le_bytes());
    put(&mut out, 18, &machine.to_le_bytes());
    put(&mut out, 20, &1_u32.to_le_bytes()); // e_version
    put(&mut out, 32, &to_u64(table_at(capacity)).to_le_bytes()); // e_phoff
    put(&mut out, 52, &low16(HEADER_LEN).to_le_bytes()); // e_ehsize
    put(&mut out, 54, &low16(PROGRAM_HEADER_LEN).to_le_bytes()); // e_phentsize
    put(&mut out, 56, &low16(segments.min(PN_XNUM)).to_le_bytes()); // e_phnum
    if segments >= PN_XNUM {
        put(&mut out, 40, &to_u64(HEADER_LEN).to_le_bytes()); // e_shoff
        put(&mut out, 58, &low16(SECTION_HEADER_LEN).to_le_bytes()); // e_shentsize
        put(&mut out, 60, &1_u16.to_le_bytes()); // e_shnum
        let count = u32::try_from(segments).unwrap_or(u32::MAX);
        put(&mut out, HEADER_LEN.saturating_add(44), &count.to_le_bytes()); // sh_info
    }
    out
}

/// The program header of the notes.
#[must_use]
pub fn emit_note_segment(offset: u64, len: u64) -> [u8; PROGRAM_HEADER_LEN] {
    program_header(PT_NOTE, 0, [offset, 0, 0, len, len])
}

/// The program header of `len` bytes of memory.
#[must_use]
pub fn emit_load_segment(
    offset: u64,
    vaddr: VirtAddr,
    paddr: PhysAddr,
    len: u64,
) -> [u8; PROGRAM_HEADER_LEN] {
    const READ_WRITE_EXECUTE: u32 = 7; // as /proc/vmcore has it
    program_header(PT_LOAD, READ_WRITE_EXECUTE, [offset, vaddr.0, paddr.0, len, len])
}

/// `Elf64_Phdr`: p_type, p_flags, then p_offset, p_vaddr, p_paddr, p_filesz, p_memsz; p_align is 0.
fn program_header(kind: u32, flags: u32, words: [u64; 5]) -> [u8; PROGRAM_HEADER_LEN] {
    let mut out = [0; PROGRAM_HEADER_LEN];
    put(&mut out, 0, &kind.to_le_bytes());
    put(&mut out, 4, &flags.to_le_bytes());
    for (place, word) in out.get_mut(8..).unwrap_or_default().chunks_exact_mut(8).zip(words) {
        put(place, 0, &word.to_le_bytes());
    }
    out
}

fn low16(small: usize) -> u16 {
    u16::try_from(small).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut bytes = vec![0_u8; HEADER_LEN];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        bytes[6] = 1;
        bytes[16] = 4;
        bytes[18] = 62;
        bytes[20] = 1;
        bytes[32] = 64;
        bytes[52] = 64;
        bytes[54] = 56;
        bytes[56] = 3;
        change(&mut bytes);
        bytes
    }

    #[test]
    fn reads_a_core_header() {
        let got = Header::parse(&header(|_| ())).unwrap();
        assert_eq!(got, Header { machine: 62, phoff: 64, phnum: PhNum::Direct(3) });
    }

    #[test]
    fn finds_the_count_beyond_16_bits() {
        let got = Header::parse(&header(|b| {
            b[56] = 0xff;
            b[57] = 0xff;
            b[40] = 0x80;
        }));
        assert_eq!(got.unwrap().phnum, PhNum::InSectionHeader(0x80));
        let mut section = vec![0; SECTION_HEADER_LEN];
        section[44..48].copy_from_slice(&70_000_u32.to_le_bytes());
        assert_eq!(phnum_of_section_header(&section), Ok(70_000));
    }

    #[test]
    fn names_what_is_wrong() {
        assert_eq!(Header::parse(b"\x7fELF"), Err(ElfError::TooShort(4)));
        assert_eq!(Header::parse(&[]), Err(ElfError::TooShort(0)));
        assert_eq!(Header::parse(&header(|b| b[0] = 0)), Err(ElfError::Magic([0, b'E', b'L', b'F'])));
        assert_eq!(Header::parse(&header(|b| b[4] = 1)), Err(ElfError::Class(1)));
        assert_eq!(Header::parse(&header(|b| b[5] = 2)), Err(ElfError::ByteOrder(2)));
        assert_eq!(Header::parse(&header(|b| b[16] = 2)), Err(ElfError::Type(2)));
        assert_eq!(Header::parse(&header(|b| b[54] = 32)), Err(ElfError::EntrySize(32)));
    }
}

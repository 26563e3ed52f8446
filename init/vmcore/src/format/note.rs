//! ELF notes as a vmcore carries them: CPU registers, VMCOREINFO, device dumps.
//!
//! Only headers are decoded here; descriptors can be many MiB (NT_VMCOREDD) and stay in the file.

use base::addr::{to_u64, to_usize};
use base::fields::Fields;

/// `Elf64_Nhdr`: n_namesz, n_descsz, n_type (include/uapi/linux/elf.h).
pub const HEADER_LEN: usize = 12;
/// Longest note name that is looked at; longer ones are of no kernel.
pub const MAX_NAME: usize = 64;

/// `NT_PRSTATUS` of owner "CORE": the registers of one CPU.
const NT_PRSTATUS: u32 = 1;
/// `NT_VMCOREDD`: a device's dump, owner "LINUX" (include/uapi/linux/vmcore.h).
const NT_VMCOREDD: u32 = 0x700;

/// Owner of the VMCOREINFO note, with its NUL (VMCOREINFO_NOTE_NAME, include/linux/vmcore_info.h).
const VMCOREINFO_NAME: &[u8] = b"VMCOREINFO\0";
/// Bytes in front of the text in a note with VMCOREINFO.
pub const VMCOREINFO_HEAD: usize = HEADER_LEN + VMCOREINFO_NAME.len().next_multiple_of(4);

/// A note with VMCOREINFO. The text is padded with line breaks, so that its length is exact.
#[must_use]
pub fn emit_vmcoreinfo(text: &str) -> Vec<u8> {
    let desc_len = text.len().next_multiple_of(4);
    let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = [number(VMCOREINFO_NAME.len()), number(desc_len), number(0)].concat();
    out.extend(VMCOREINFO_NAME);
    out.resize(VMCOREINFO_HEAD, 0);
    out.extend(text.bytes());
    out.resize(VMCOREINFO_HEAD.saturating_add(desc_len), b'\n');
    out
}

/// What a note holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// Registers of one CPU.
    CpuRegisters,
    /// The VMCOREINFO text.
    VmcoreInfo,
    /// A device dump collected by the capture kernel's driver.
    DeviceDump,
    /// Anything else; copied, not understood.
    Other,
}

/// Where a note lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it holds.
    pub kind: NoteKind,
    /// Offset of the note's header, in the space the caller counts in.
    pub offset: u64,
    /// Bytes of the whole note: header, name and descriptor with their padding.
    pub len: u64,
    /// Offset of the descriptor.
    pub desc_offset: u64,
    /// Bytes of the descriptor, without padding.
    pub desc_len: u64,
}

/// Sizes in a note header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoteHeader {
    /// Bytes of the name, with its NUL.
    pub name_len: u32,
    /// Bytes of the descriptor.
    pub desc_len: u32,
    /// `n_type`.
    pub kind: u32,
}

impl NoteHeader {
    /// Decodes [`HEADER_LEN`] bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let f = Fields(bytes);
        Some(Self { name_len: f.u32(0)?, desc_len: f.u32(4)?, kind: f.u32(8)? })
    }

    /// Whether the header is all zero: the padding at the end of a per-CPU note buffer that no CPU
    /// filled.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.name_len == 0 && self.desc_len == 0 && self.kind == 0
    }

    /// The note that starts at `offset` with this header and the name in `name`.
    #[must_use]
    pub fn locate(self, offset: u64, name: &[u8]) -> Option<Note> {
        let padded = |len: u32| u64::from(len).checked_next_multiple_of(4);
        let desc_offset = offset.checked_add(to_u64(HEADER_LEN))?.checked_add(padded(self.name_len)?)?;
        let end = desc_offset.checked_add(padded(self.desc_len)?)?;
        let name = name.split(|&b| b == 0).next().unwrap_or_default();
        let kind = match (name, self.kind) {
            (b"CORE", NT_PRSTATUS) => NoteKind::CpuRegisters,
            (b"VMCOREINFO", 0) => NoteKind::VmcoreInfo,
            (_, NT_VMCOREDD) => NoteKind::DeviceDump,
            _ => NoteKind::Other,
        };
        let len = end.checked_sub(offset)?;
        Some(Note { kind, offset, len, desc_offset, desc_len: u64::from(self.desc_len) })
    }

    /// How many bytes of the name need to be read to know its owner.
    #[must_use]
    pub fn name_to_read(self) -> usize {
        to_usize(u64::from(self.name_len)).min(MAX_NAME)
    }
}

/// The notes in a slice that holds a whole note segment; stops at the first that does not fit.
#[must_use]
pub fn parse_all(bytes: &[u8]) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut at = 0_usize;
    while let Some(header) = bytes.get(at..).and_then(NoteHeader::parse) {
        if header.is_empty() {
            break;
        }
        let name = bytes.get(at.saturating_add(HEADER_LEN)..).unwrap_or_default();
        let name = name.get(..header.name_to_read()).unwrap_or_default();
        let Some(note) = header.locate(to_u64(at), name) else { break };
        at = at.saturating_add(to_usize(note.len));
        if note.desc_offset.saturating_add(note.desc_len) > to_u64(bytes.len()) {
            break;
        }
        notes.push(note);
    }
    notes
}

/// The bytes of a note.
#[cfg(any(test, feature = "testing"))]
#[expect(clippy::unwrap_used, reason = "for tests, which may panic")]
#[cfg_attr(not(test), expect(clippy::arithmetic_side_effects, reason = "likewise"))]
pub(crate) fn build(name: &str, kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let name_len = u32::try_from(name.len() + 1).unwrap();
    for word in [name_len, u32::try_from(desc.len()).unwrap(), kind] {
        out.extend(word.to_le_bytes());
    }
    out.extend(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(desc);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_notes_and_stops_at_padding() {
        let mut bytes = build("CORE", 1, &[7; 336]);
        let second = bytes.len();
        bytes.extend(build("VMCOREINFO", 0, b"OSRELEASE=6.1\n"));
        bytes.extend([0; 100]);
        let notes = parse_all(&bytes);
        assert_eq!(notes.len(), 2);
        assert_eq!(notes[0].kind, NoteKind::CpuRegisters);
        assert_eq!((notes[0].desc_len, notes[0].len), (336, 12 + 8 + 336));
        assert_eq!(notes[1].kind, NoteKind::VmcoreInfo);
        assert_eq!(notes[1].offset, u64::try_from(second).unwrap());
    }

    #[test]
    fn a_note_that_reaches_past_the_end_is_not_listed() {
        let mut bytes = build("CORE", 1, &[7; 336]);
        bytes.extend(build("LINUX", 0x700, &[1; 64]));
        bytes.truncate(bytes.len() - 1);
        assert_eq!(parse_all(&bytes).len(), 1);
    }
}

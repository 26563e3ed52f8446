//! Where the notes of a vmcore lie, and how much of them is worth copying.

use crate::format::elf::{Segment, SegmentKind};
use crate::format::note::{self, Note, NoteHeader, NoteKind};
use crate::format::vmcoreinfo::{self, VmcoreInfo};
use crate::source::extents::Anomaly;
use base::addr::{to_u64, to_usize};
use base::read_at::{ReadAt, read_up_to};

/// Most notes that are looked at: four per possible CPU of the largest kernel configuration
/// (8,192).
const MAX_NOTES: usize = 32 * 1024;
/// Bytes of notes that are copied: the registers of 8,192 CPUs take 4 MiB. A hostile core names the
/// same bytes in any number of segments.
const MAX_BYTES: u64 = 16 << 20;
/// Bytes of device dumps (NT_VMCOREDD) that are copied besides.
const MAX_DEVICE_DUMP_BYTES: u64 = 64 << 20;

/// The notes of a vmcore, by where they lie in the file.
#[derive(Clone, Debug, Default)]
pub struct NoteIndex {
    /// The notes in their order.
    pub notes: Vec<Note>,
}

impl NoteIndex {
    /// Lists the notes of all PT_NOTE segments. A note that cannot be read ends its segment, no
    /// more; notes beyond the bounds are left out and told.
    pub(super) fn read(
        file: &impl ReadAt,
        file_len: u64,
        segments: &[Segment],
        anomalies: &mut Vec<Anomaly>,
    ) -> Self {
        let mut index = Self::default();
        let mut seen = 0_usize; // with those that are left out, which a hostile core has without end
        let (mut room, mut device_room, mut left_out) = (MAX_BYTES, MAX_DEVICE_DUMP_BYTES, 0_u64);
        for segment in segments.iter().filter(|segment| segment.kind == SegmentKind::Note) {
            let mut at = segment.offset;
            let end = segment.offset.saturating_add(segment.filesz);
            while at < end && seen < MAX_NOTES {
                seen = seen.saturating_add(1);
                match read_note(file, at) {
                    Some(note) if at.saturating_add(note.len) <= end.min(file_len) => {
                        at = at.saturating_add(note.len);
                        let room =
                            if note.kind == NoteKind::DeviceDump { &mut device_room } else { &mut room };
                        if let Some(rest) = room.checked_sub(note.len) {
                            *room = rest;
                            index.notes.push(note);
                        } else {
                            left_out = left_out.saturating_add(note.len);
                        }
                    }
                    None if read_up_to(file, at, 1).is_ok_and(|bytes| !bytes.is_empty()) => break,
                    _ => {
                        let bytes = end.saturating_sub(at);
                        anomalies.push(Anomaly::NotesPastEnd { offset: at, bytes });
                        break;
                    }
                }
            }
        }
        if left_out > 0 {
            anomalies.push(Anomaly::NotesLeftOut { bytes: left_out });
        }
        index
    }

    /// VMCOREINFO; empty if there is none.
    pub(super) fn vmcoreinfo(&self, file: &impl ReadAt) -> VmcoreInfo {
        let found = self.notes.iter().find(|note| note.kind == NoteKind::VmcoreInfo);
        let text = found.and_then(|note| {
            let len = to_usize(note.desc_len).min(vmcoreinfo::MAX_LEN);
            read_up_to(file, note.desc_offset, len).ok()
        });
        VmcoreInfo::parse(&text.unwrap_or_default())
    }

    /// Bytes of all notes together.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.notes.iter().fold(0, |sum, note| sum.saturating_add(note.len))
    }

    /// Whether there is no note.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Number of CPUs whose registers are there.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        let count = self.notes.iter().filter(|note| note.kind == NoteKind::CpuRegisters).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// The note at `offset`, or `None` for padding (zeros) and for bytes that cannot be read.
fn read_note(file: &impl ReadAt, offset: u64) -> Option<Note> {
    let bytes = read_up_to(file, offset, note::HEADER_LEN).ok()?;
    let header = NoteHeader::parse(&bytes).filter(|header| !header.is_empty())?;
    let name_at = offset.checked_add(to_u64(note::HEADER_LEN))?;
    let name = read_up_to(file, name_at, header.name_to_read()).ok()?;
    header.locate(offset, &name)
}

//! The ELF notes of a dump: those of the core (registers of each CPU, device dumps), copied piece
//! by piece, since device dumps make them tens of MiB long, and VMCOREINFO. Where the core's
//! VMCOREINFO is missing or is not the one that was believed, the one that was believed is written
//! instead: without it no reader opens the dump.

use crate::dump::DumpError;
use crate::format::elf;
use crate::format::note::{self, Note, NoteKind};
use crate::format::vmcoreinfo::{self, VmcoreInfo};
use crate::sink::Sink;
use crate::source::Core;
use base::addr::{to_u64, to_usize};

/// Bytes that are copied at a time.
const PIECE: u64 = 64 << 10;

/// The notes of a dump.
pub(super) struct Notes<'a> {
    core: &'a dyn Core,
    /// VMCOREINFO, where the core does not have it as it is to be.
    own: Option<Vec<u8>>,
}

impl<'a> Notes<'a> {
    /// The notes of a dump of `core`, which `info` describes.
    pub(super) fn new(core: &'a dyn Core, info: &VmcoreInfo) -> Self {
        let differs = !info.is_empty() && in_note(core) != *info;
        Self { core, own: differs.then(|| note::emit_vmcoreinfo(&info.to_text())) }
    }

    /// Bytes of all notes together.
    pub(super) fn len(&self) -> u64 {
        let copied = self.copied().fold(0_u64, |sum, note| sum.saturating_add(note.len));
        copied.saturating_add(self.own.as_ref().map_or(0, |own| to_u64(own.len())))
    }

    /// Where the text of VMCOREINFO lies and how long it is, if the notes begin at `start`; zeros
    /// if there is none.
    pub(super) fn vmcoreinfo(&self, start: u64) -> (u64, u64) {
        if let Some(own) = &self.own {
            let ahead = to_u64(note::VMCOREINFO_HEAD);
            return (start.saturating_add(ahead), to_u64(own.len()).saturating_sub(ahead));
        }
        let (mut at, mut place) = (start, (0, 0));
        for note in self.copied() {
            if note.kind == NoteKind::VmcoreInfo {
                let ahead = note.desc_offset.saturating_sub(note.offset);
                place = (at.saturating_add(ahead), note.desc_len);
            }
            at = at.saturating_add(note.len);
        }
        place
    }

    /// Hands the notes to `write`, one after the other from offset `to` on. A piece that cannot be
    /// read becomes zeros, which readers take as the end of the notes; so VMCOREINFO of our own
    /// comes first.
    pub(super) fn copy(
        &self,
        to: u64,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        let mut to = to;
        if let Some(own) = &self.own {
            write(to, own)?;
            to = to.saturating_add(to_u64(own.len()));
        }
        for note in self.copied() {
            let (mut from, end) = (note.offset, note.offset.saturating_add(note.len));
            while from < end {
                let len = end.saturating_sub(from).min(PIECE);
                let mut bytes = vec![0; to_usize(len)];
                if let Err(error) = self.core.read_note_bytes(from, &mut bytes) {
                    log::warn!("note at {from:#x} of the vmcore: {error}");
                    bytes.fill(0);
                }
                write(to, &bytes)?;
                from = from.saturating_add(len);
                to = to.saturating_add(len);
            }
        }
        Ok(())
    }

    /// The notes of the core that are kept.
    fn copied(&self) -> impl Iterator<Item = &Note> {
        let replaces = self.own.is_some();
        self.core.notes().notes.iter().filter(move |note| !(replaces && note.kind == NoteKind::VmcoreInfo))
    }
}

/// VMCOREINFO as readers of the core's notes find it.
fn in_note(core: &dyn Core) -> VmcoreInfo {
    let note = core.notes().notes.iter().find(|note| note.kind == NoteKind::VmcoreInfo);
    let text = note.and_then(|note| {
        let mut text = vec![0; to_usize(note.desc_len).min(vmcoreinfo::MAX_LEN)];
        core.read_note_bytes(note.desc_offset, &mut text).ok().map(|()| text)
    });
    VmcoreInfo::parse(&text.unwrap_or_default())
}

/// Writes an ELF core file that has the notes and no memory.
pub fn write(core: &dyn Core, info: &VmcoreInfo, sink: &mut dyn Sink) -> Result<(), DumpError> {
    let failed = |source| DumpError::Sink { what: "the notes", source };
    let notes = Notes::new(core, info);
    let mut head = elf::emit_header(elf::machine_number(core.machine()), 1, 1);
    let at = to_u64(elf::head_len(1));
    head.extend(elf::emit_note_segment(at, notes.len()));
    head.resize(elf::head_len(1), 0);
    sink.write_at(0, &head).map_err(failed)?;
    notes.copy(at, |to, bytes| sink.write_at(to, bytes).map_err(failed))?;
    sink.sync().map_err(failed)
}

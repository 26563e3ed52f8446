//! The ELF notes of a core (registers of each CPU, VMCOREINFO), copied into a dump piece by piece:
//! device dumps make them tens of MiB long.

use crate::dump::DumpError;
use crate::format::elf;
use crate::sink::Sink;
use crate::source::Core;
use base::addr::{to_u64, to_usize};

/// Bytes that are copied at a time.
const PIECE: u64 = 64 << 10;

/// Writes an ELF core file that has the notes and no memory.
pub fn write(core: &dyn Core, sink: &mut dyn Sink) -> Result<(), DumpError> {
    let failed = |source| DumpError::Sink { what: "the notes", source };
    let mut head = elf::emit_header(elf::machine_number(core.machine()), 1, 1);
    let at = to_u64(elf::head_len(1));
    head.extend(elf::emit_note_segment(at, core.notes().len()));
    head.resize(elf::head_len(1), 0);
    sink.write_at(0, &head).map_err(failed)?;
    copy(core, at, |to, bytes| sink.write_at(to, bytes).map_err(failed))?;
    sink.sync().map_err(failed)
}

/// Hands the notes to `write`, one after the other from offset `to` on. A piece that cannot be read
/// becomes zeros, which readers take as the end of the notes.
pub(super) fn copy(
    core: &dyn Core,
    to: u64,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), DumpError>,
) -> Result<(), DumpError> {
    let mut to = to;
    for note in &core.notes().notes {
        let (mut from, end) = (note.offset, note.offset.saturating_add(note.len));
        while from < end {
            let len = end.saturating_sub(from).min(PIECE);
            let mut bytes = vec![0; to_usize(len)];
            if let Err(error) = core.read_note_bytes(from, &mut bytes) {
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

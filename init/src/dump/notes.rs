//! The ELF notes of a core, copied into a dump piece by piece: device dumps make them tens of MiB long.

use crate::addr::to_usize;
use crate::dump::DumpError;
use crate::source::Core;

/// Bytes that are copied at a time.
const PIECE: u64 = 64 << 10;

/// Hands the notes to `write`, one after the other from offset `to` on. A piece that cannot be read becomes zeros, which
/// readers take as the end of the notes.
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

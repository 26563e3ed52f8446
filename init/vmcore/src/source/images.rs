//! Memory in files that have nothing but memory: LiME, and raw, where the offset is the address. As
//! segments, like those of an ELF core.

use std::fs::File;
use std::io;

use nix::unistd::{Whence, lseek};

use crate::format::elf::{Segment, SegmentKind};
use crate::format::lime;
use crate::source::extents::Anomaly;
use base::addr::{PhysAddr, VirtAddr, to_u64};
use base::read_at::read_up_to;

/// Most ranges that are read; a machine with a million memory ranges does not exist.
const MAX_RANGES: usize = 1 << 20;
/// Holes of a raw file that are looked for: a file of tiny pieces is taken as it is from there on.
const MAX_HOLES: usize = 1 << 20;

fn load(paddr: u64, offset: u64, len: u64) -> Segment {
    let (paddr, vaddr) = (PhysAddr(paddr), VirtAddr(0));
    Segment { kind: SegmentKind::Load, offset, paddr, vaddr, filesz: len, memsz: len }
}

/// The ranges of a LiME file. One whose header makes no sense ends the list, as nothing says where
/// the next one is.
pub(super) fn lime(file: &File, len: u64, anomalies: &mut Vec<Anomaly>) -> io::Result<Vec<Segment>> {
    let (mut segments, mut at) = (Vec::new(), 0_u64);
    while at < len && segments.len() < MAX_RANGES {
        let head = read_up_to(file, at, lime::HEADER_LEN)?;
        let Some((first, last)) = lime::parse(&head) else {
            anomalies.push(Anomaly::DamagedRange { offset: at });
            break;
        };
        let bytes = last.saturating_sub(first).saturating_add(1);
        let data = at.saturating_add(to_u64(lime::HEADER_LEN));
        segments.push(load(first, data, bytes));
        at = data.saturating_add(bytes);
    }
    Ok(segments)
}

/// The parts of a raw file that are no holes, widened to pages. A file that was copied has no
/// holes, and is all memory.
pub(super) fn raw(file: &File, len: u64) -> Vec<Segment> {
    const PAGE: u64 = 4096;
    let find = |from: u64, whence| {
        let from = i64::try_from(from).ok()?;
        lseek(file, from, whence).ok().and_then(|at| u64::try_from(at).ok())
    };
    let (mut segments, mut at) = (Vec::new(), 0_u64);
    while at < len {
        let start = if segments.len() < MAX_HOLES { find(at, Whence::SeekData) } else { Some(at) };
        let Some(start) = start.map(|start| start & !PAGE.saturating_sub(1)) else { break };
        let end = if segments.len() < MAX_HOLES { find(start.max(at), Whence::SeekHole) } else { Some(len) };
        let end = end.unwrap_or(len).next_multiple_of(PAGE).min(len);
        if end <= start {
            break;
        }
        segments.push(load(start, start, end.saturating_sub(start)));
        at = end;
    }
    segments
}

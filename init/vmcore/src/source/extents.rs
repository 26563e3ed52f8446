//! PT_LOAD segments, which may overlap or lie, as sorted disjoint extents of memory that the file
//! really has.

use core::cmp::Reverse;

use serde::Serialize;

use crate::format::elf::{Segment, SegmentKind};
use base::addr::{PageSize, PfnRange, PhysAddr};

/// First address after all memory: 52 bits is the architectural limit of x86_64 and of aarch64 with
/// LPA. A bitmap over more than that is a lie that would fill the target.
const MAX_PHYSICAL: u64 = 1 << 52;

/// Lies that are listed one by one; a hostile core has a million.
pub(super) const MAX_ANOMALIES: usize = 64;

/// Segments in a row that the kernel text may lie in: memory blocks that touch, of up to 2 GiB
/// each.
const MAX_RUN: usize = 256;

/// Bytes of memory at a place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First address.
    pub(super) start: PhysAddr,
    /// First address after the extent.
    pub(super) end: PhysAddr,
    /// File offset of the first byte.
    pub(super) offset: u64,
}

/// Something that the headers of a vmcore or dump claim and the file does not bear out. The rest of
/// it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Anomaly {
    /// Fewer program headers than the ELF header says.
    MissingProgramHeaders {
        /// Count in the ELF header.
        claimed: u64,
        /// Count in the file.
        found: u64,
    },
    /// A segment ends after the end of the file.
    SegmentPastEnd {
        /// Index among the PT_LOAD segments.
        segment: usize,
        /// Physical address.
        paddr: u64,
        /// Bytes that are missing.
        missing: u64,
    },
    /// A segment lies, or ends, beyond what any machine addresses; that part is left out.
    BeyondPhysicalMemory {
        /// Physical address.
        paddr: u64,
    },
    /// A segment begins inside another one and ends outside it; the first one counts where both
    /// claim.
    Overlap {
        /// First physical address that both claim.
        paddr: u64,
        /// Bytes that both claim.
        bytes: u64,
    },
    /// More of the like, which are not listed.
    More {
        /// How many.
        anomalies: usize,
    },
    /// A note segment that is cut short.
    NotesPastEnd {
        /// File offset.
        offset: u64,
        /// Bytes that it should have.
        bytes: u64,
    },
    /// Notes that were left out because they are too large together: device dumps, or the same
    /// bytes many times.
    NotesLeftOut {
        /// Bytes left out.
        bytes: u64,
    },
    /// A flattened dump without its end record, or with a damaged record: it was cut short.
    UnfinishedStream {
        /// Bytes of the dump that are there.
        bytes: u64,
    },
    /// A segment lies where the machine has no memory: its address is damaged, and it is left out.
    Outlier {
        /// Physical address.
        paddr: u64,
        /// Bytes of it in the file.
        bytes: u64,
        /// Whether the same memory is in another segment, by its virtual address: then nothing is
        /// missing.
        twice: bool,
    },
    /// The header of a range of memory is damaged or cut off, and the ranges from there on are lost.
    DamagedRange {
        /// File offset of the header.
        offset: u64,
    },
    /// A part of a split dump is missing; its pages are lost.
    MissingPart {
        /// First page of the part.
        start_pfn: u64,
        /// First page after it.
        end_pfn: u64,
    },
}

impl Anomaly {
    /// Whether memory, or notes, are missing because of it.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Overlap { .. } | Self::More { .. } | Self::NotesLeftOut { .. } => false,
            Self::Outlier { twice, .. } => !twice,
            Self::MissingProgramHeaders { .. }
            | Self::SegmentPastEnd { .. }
            | Self::BeyondPhysicalMemory { .. }
            | Self::NotesPastEnd { .. }
            | Self::UnfinishedStream { .. }
            | Self::DamagedRange { .. }
            | Self::MissingPart { .. } => true,
        }
    }
}

impl core::fmt::Display for Anomaly {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::MissingProgramHeaders { claimed, found } => {
                write!(f, "the ELF header announces {claimed} program headers, and the file has {found}")
            }
            Self::SegmentPastEnd { segment, paddr, missing } => {
                write!(f, "segment {segment} at {paddr:#x} ends {missing} bytes after the end of the file")
            }
            Self::BeyondPhysicalMemory { paddr } => {
                write!(f, "a segment at {paddr:#x} lies beyond all physical memory: that part is left out")
            }
            Self::Overlap { paddr, bytes } => {
                write!(f, "two segments claim the same {bytes} bytes at {paddr:#x}: the first one is used")
            }
            Self::More { anomalies } => write!(f, "{anomalies} more contradictions of this kind"),
            Self::NotesPastEnd { offset, bytes } => {
                write!(
                    f,
                    "the notes at file offset {offset} should have {bytes} bytes, and the file ends before"
                )
            }
            Self::NotesLeftOut { bytes } => {
                write!(f, "{bytes} bytes of notes are left out: there are too many")
            }
            Self::UnfinishedStream { bytes } => {
                write!(f, "the flattened dump was cut short: {bytes} bytes of it are there")
            }
            Self::Outlier { paddr, bytes, .. } => write!(
                f,
                "a segment of {bytes} bytes claims to lie at {paddr:#x}, where this machine has no memory: its \
                 address is damaged, and it is left out"
            ),
            Self::DamagedRange { offset } => {
                write!(f, "the header of a range at file offset {offset} is damaged or cut: the rest is lost")
            }
            Self::MissingPart { start_pfn, end_pfn } => {
                write!(f, "the part with the pages {start_pfn:#x} to {end_pfn:#x} is missing: they are lost")
            }
        }
    }
}

/// Builds the extents of the PT_LOAD `segments` of a file of `file_len` bytes.
///
/// The kernel-text segment of a vmcore describes pages that a RAM segment describes too, and
/// /proc/vmcore has them twice (fs/proc/vmcore.c gives each segment its own file range); the first
/// to claim a byte keeps it. So a segment inside another one, or inside several that touch, is
/// normal; one that is half inside is told.
pub(super) fn from_segments(segments: &[Segment], file_len: u64) -> (Vec<Extent>, Vec<Anomaly>) {
    let mut anomalies = Vec::new();
    let loads = segments.iter().filter(|segment| segment.kind == SegmentKind::Load && segment.filesz > 0);
    let mut claimed: Vec<Extent> = Vec::new();
    for (index, segment) in loads.enumerate() {
        let in_file = file_len.saturating_sub(segment.offset);
        let in_space = MAX_PHYSICAL.saturating_sub(segment.paddr.0);
        let len = segment.filesz.min(in_file).min(in_space);
        if in_space < segment.filesz {
            anomalies.push(Anomaly::BeyondPhysicalMemory { paddr: segment.paddr.0 });
        }
        if in_file < segment.filesz {
            let missing = segment.filesz.saturating_sub(in_file);
            anomalies.push(Anomaly::SegmentPastEnd { segment: index, paddr: segment.paddr.0, missing });
        }
        if let Some(end) = segment.paddr.checked_add(len).filter(|_| len > 0) {
            claimed.push(Extent { start: segment.paddr, end, offset: segment.offset });
        }
    }
    // Of two with the same start the longer one first: memory behind the crash kernel's may begin
    // with the kernel text. A later extent gives way to an earlier one, but what sticks out behind
    // it is kept.
    claimed.sort_by_key(|extent| (extent.start, Reverse(extent.end)));
    let mut out: Vec<Extent> = Vec::with_capacity(claimed.len());
    for (index, &extent) in claimed.iter().enumerate() {
        let taken = out.last().map_or(PhysAddr(0), |last| last.end);
        if extent.start >= taken {
            out.push(extent);
            continue;
        }
        let later = claimed.get(index.saturating_add(1)..).unwrap_or_default();
        if extent.end > taken && !covers(later, taken, extent.end) {
            let shared = taken.0.saturating_sub(extent.start.0);
            anomalies.push(Anomaly::Overlap { paddr: extent.start.0, bytes: shared });
            out.push(Extent { start: taken, offset: extent.offset.saturating_add(shared), ..extent });
        }
    }
    if let Some(more @ 1..) = anomalies.len().checked_sub(MAX_ANOMALIES) {
        anomalies.truncate(MAX_ANOMALIES);
        anomalies.push(Anomaly::More { anomalies: more });
    }
    (out, anomalies)
}

/// Whether `extents`, sorted by their start, hold all of `start..end`. Looks at the next
/// [`MAX_RUN`] only.
fn covers(extents: &[Extent], start: PhysAddr, end: PhysAddr) -> bool {
    let mut covered = start;
    for extent in extents.iter().take(MAX_RUN).take_while(|extent| extent.start < end) {
        if covered >= end || extent.start > covered {
            break;
        }
        covered = covered.max(extent.end);
    }
    covered >= end
}

/// The pages that the extents touch; extents that share or abut a page become one range.
pub(super) fn to_ranges(extents: &[Extent], size: PageSize) -> Vec<PfnRange> {
    let mut ranges: Vec<PfnRange> = Vec::new();
    for extent in extents {
        if let Some(range) = PfnRange::new(size.pfn_of(extent.start), size.pfn_end_of(extent.end)) {
            PfnRange::append(&mut ranges, range);
        }
    }
    ranges
}

/// The extents that lie in `start..end`, in order, cut to it.
pub(super) fn overlapping(
    extents: &[Extent],
    start: PhysAddr,
    end: PhysAddr,
) -> impl Iterator<Item = Extent> + '_ {
    let first = extents.partition_point(|extent| extent.end <= start);
    extents.iter().skip(first).take_while(move |extent| extent.start < end).map(move |extent| {
        let from = extent.start.max(start);
        let ahead = from.0.saturating_sub(extent.start.0);
        Extent { start: from, end: extent.end.min(end), offset: extent.offset.saturating_add(ahead) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::addr::{Pfn, VirtAddr};
    use proptest::prelude::*;

    fn load(paddr: u64, filesz: u64, offset: u64) -> Segment {
        Segment {
            kind: SegmentKind::Load,
            offset,
            paddr: PhysAddr(paddr),
            vaddr: VirtAddr(0),
            filesz,
            memsz: filesz,
        }
    }

    fn extent(start: u64, end: u64, offset: u64) -> Extent {
        Extent { start: PhysAddr(start), end: PhysAddr(end), offset }
    }

    #[test]
    fn kernel_text_inside_ram_is_normal() {
        let (out, anomalies) =
            from_segments(&[load(0x2000, 0x1000, 0x1000), load(0x1000, 0x4000, 0x8000)], 0x10000);
        assert_eq!(out, vec![extent(0x1000, 0x5000, 0x8000)]);
        assert_eq!(anomalies, vec![]);
    }

    #[test]
    fn kernel_text_across_two_segments_is_normal() {
        let ram = [load(0x1000, 0x2000, 0x1000), load(0x3000, 0x4000, 0x4000)];
        let text = load(0x2000, 0x2000, 0x8000);
        let expected = vec![extent(0x1000, 0x3000, 0x1000), extent(0x3000, 0x7000, 0x4000)];
        for segments in [[text, ram[0], ram[1]], [ram[0], ram[1], text]] {
            assert_eq!(from_segments(&segments, 0x10000), (expected.clone(), vec![]));
        }
        let at_the_start = [load(0x1000, 0x800, 0x8000), ram[0]];
        assert_eq!(from_segments(&at_the_start, 0x10000), (vec![expected[0]], vec![]));
    }

    #[test]
    fn lies_are_cut_and_told() {
        let (out, anomalies) = from_segments(
            &[load(0x1000, 0x2000, 0x1000), load(0x2000, 0x2000, 0x7800), load(0x9000, 0x1000, u64::MAX)],
            0x9000,
        );
        assert_eq!(out, vec![extent(0x1000, 0x3000, 0x1000), extent(0x3000, 0x3800, 0x8800)]);
        assert_eq!(
            anomalies,
            vec![
                Anomaly::SegmentPastEnd { segment: 1, paddr: 0x2000, missing: 0x800 },
                Anomaly::SegmentPastEnd { segment: 2, paddr: 0x9000, missing: 0x1000 },
                Anomaly::Overlap { paddr: 0x2000, bytes: 0x1000 },
            ]
        );
    }

    #[test]
    fn memory_that_cannot_be_is_left_out() {
        let (out, anomalies) =
            from_segments(&[load(0x1000, 0x1000, 0), load(1 << 60, 0x1000, 0x1000)], 0x2000);
        assert_eq!(out, vec![extent(0x1000, 0x2000, 0)]);
        assert_eq!(anomalies, vec![Anomaly::BeyondPhysicalMemory { paddr: 1 << 60 }]);
    }

    #[test]
    fn a_shared_page_is_listed_once() {
        let ranges = to_ranges(
            &[extent(0x1000, 0x1800, 0), extent(0x1c00, 0x3000, 0x5000), extent(0x5000, 0x5001, 0)],
            PageSize::FOUR_KIB,
        );
        let expected: Vec<_> =
            [(1, 3), (5, 6)].into_iter().filter_map(|(a, b)| PfnRange::new(Pfn(a), Pfn(b))).collect();
        assert_eq!(ranges, expected);
    }

    proptest! {
        #[test]
        fn extents_are_sorted_disjoint_and_in_the_file(
            raw in prop::collection::vec((0_u64..64, 0_u64..64, 0_u64..256), 0..12),
            file_len in 0_u64..256,
        ) {
            let segments: Vec<_> = raw.iter().map(|&(a, len, off)| load(a, len, off)).collect();
            let (out, _) = from_segments(&segments, file_len);
            prop_assert!(out.windows(2).all(|w| w[0].end <= w[1].start));
            for e in &out {
                prop_assert!(e.start < e.end && e.offset + (e.end.0 - e.start.0) <= file_len);
            }
            // Every byte of the file that a segment claims is found, at a place that some segment
            // names.
            for byte in 0..128_u64 {
                let claims: Vec<u64> = segments
                    .iter()
                    .filter(|s| s.paddr.0 <= byte && byte < s.paddr.0 + s.filesz)
                    .map(|s| s.offset + byte - s.paddr.0)
                    .filter(|&offset| offset < file_len)
                    .collect();
                let found = overlapping(&out, PhysAddr(byte), PhysAddr(byte + 1)).next().map(|e| e.offset);
                match found {
                    Some(offset) => prop_assert!(claims.contains(&offset)),
                    None => prop_assert!(claims.is_empty()),
                }
            }
        }
    }
}

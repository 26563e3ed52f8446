//! Segments of a core whose physical address is damaged. One flipped bit makes 4 MiB of memory need
//! bitmaps of 16 GiB, and no target has room for the dump; without that segment all the rest is
//! saved.

use std::collections::BTreeMap;

use crate::format::elf::{Segment, SegmentKind};
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::source::extents::{Anomaly, MAX_ANOMALIES};
use base::addr::PhysAddr;

/// First virtual address of the kernel's half, where its direct map of all memory lies.
const KERNEL_HALF: u64 = 1 << 63;
/// `__START_KERNEL_map`, where the kernel's image is mapped (arch/x86/include/asm/page_64_types.h).
const KERNEL_IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Bytes of memory for a byte of the two bitmaps of a dump, with pages of 4 KiB.
const BITMAP_SHARE: u64 = 4 * 4096;
/// Bytes of bitmaps that matter to nobody.
const SMALL: u64 = 64 << 20;
/// Memory below this address costs little, whatever is claimed about it.
const NEAR: u64 = 4 << 30;
/// How many times as far away as all other memory an address is that nothing but itself speaks for.
const FAR: u64 = 4;

/// What is known of where memory can lie.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// First address after all that the CPU of this kernel can address.
    end: Option<u64>,
    /// Physical address of the kernel's image less its virtual one.
    phys_base: Option<u64>,
    /// First address after the memory map that the loader recorded.
    map_end: Option<PhysAddr>,
    /// Bytes of the file.
    file_len: u64,
}

impl Limits {
    /// The limits of the kernel that `info` describes, on a machine with memory below `map_end`, in
    /// a file of `file_len` bytes.
    pub(super) fn new(info: &VmcoreInfo, map_end: Option<PhysAddr>, file_len: u64) -> Self {
        // 46 bits with four levels of page tables, 52 with five (MAX_PHYSMEM_BITS,
        // arch/x86/include/asm/sparsemem.h).
        let bits = info.number("MAX_PHYSMEM_BITS").and_then(|bits| u32::try_from(bits).ok());
        let end = bits.filter(|bits| (36..=52).contains(bits)).and_then(|bits| 1_u64.checked_shl(bits));
        Self { end, phys_base: info.number("phys_base").map(i64::cast_unsigned), map_end, file_len }
    }

    /// Whether an address that nothing speaks for or against may be right: the bitmaps that it
    /// takes are no larger than the file, or small.
    fn is_worth(&self, end: u64) -> bool {
        end / BITMAP_SHARE <= self.file_len.max(SMALL)
    }
}

/// Takes segments out of `segments` that cannot be where they claim to be, and tells them. One goes
/// if it lies beyond what the CPU addresses, or if nothing speaks for its address and it is far
/// from all others: neither the kernel's mapping of its image, nor the distance between virtual and
/// physical address that the other segments have, nor the recorded memory map.
pub(super) fn remove(segments: &mut Vec<Segment>, limits: Limits, anomalies: &mut Vec<Anomaly>) {
    let is_load = |segment: &Segment| segment.kind == SegmentKind::Load && segment.filesz > 0;
    let distance = commonest_distance(segments);
    let is_backed = |segment: &Segment| {
        let (paddr, vaddr) = (segment.paddr.0, segment.vaddr.0);
        match vaddr {
            KERNEL_IMAGE.. => limits
                .phys_base
                .is_none_or(|base| vaddr.wrapping_sub(KERNEL_IMAGE).wrapping_add(base) == paddr),
            KERNEL_HALF.. => distance.is_none_or(|distance| vaddr.wrapping_sub(paddr) == distance),
            _ => match limits.map_end {
                Some(end) => segment.paddr < end,
                None => limits.is_worth(segment.paddr.0.saturating_add(segment.filesz)),
            },
        }
    };
    let end_of = |segment: &Segment| segment.paddr.0.saturating_add(segment.filesz);
    let backed = segments.iter().filter(|segment| is_load(segment) && is_backed(segment));
    let near = backed.map(end_of).filter(|&end| limits.end.is_none_or(|limit| end <= limit));
    let near = near.max().unwrap_or(0).max(NEAR).saturating_mul(FAR);
    let by_address = |segment: &Segment| match segment.vaddr.0 {
        KERNEL_IMAGE.. => Some(segment.vaddr.0.wrapping_sub(KERNEL_IMAGE).wrapping_add(limits.phys_base?)),
        KERNEL_HALF.. => Some(segment.vaddr.0.wrapping_sub(distance?)),
        _ => None,
    };
    let all: Vec<(u64, u64)> =
        segments.iter().filter(|s| is_load(s) && is_backed(s)).map(|s| (s.paddr.0, end_of(s))).collect();
    let is_twice = |segment: &Segment| {
        let place = by_address(segment).and_then(|start| Some((start, start.checked_add(segment.filesz)?)));
        place.is_some_and(|(start, end)| all.iter().any(|&(from, to)| from <= start && end <= to))
    };
    let mut removed = 0_usize;
    segments.retain(|segment| {
        let beyond = limits.end.is_some_and(|limit| end_of(segment) > limit);
        let stray = segment.paddr.0 >= near && !is_backed(segment);
        let keep = !is_load(segment) || !(beyond || stray);
        removed = removed.saturating_add(usize::from(!keep));
        if !keep && removed <= MAX_ANOMALIES {
            let (paddr, bytes, twice) = (segment.paddr.0, segment.filesz, is_twice(segment));
            anomalies.push(Anomaly::Outlier { paddr, bytes, twice });
        }
        keep
    });
    if let Some(more @ 1..) = removed.checked_sub(MAX_ANOMALIES) {
        anomalies.push(Anomaly::More { anomalies: more });
    }
}

/// The distance between virtual and physical address that most segments of the direct map have; of
/// two, the larger.
fn commonest_distance(segments: &[Segment]) -> Option<u64> {
    let mut votes: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    let direct = |segment: &&Segment| (KERNEL_HALF..KERNEL_IMAGE).contains(&segment.vaddr.0);
    for segment in segments.iter().filter(|segment| segment.kind == SegmentKind::Load).filter(direct) {
        let (number, bytes) = votes.entry(segment.vaddr.0.wrapping_sub(segment.paddr.0)).or_default();
        (*number, *bytes) = (number.saturating_add(1), bytes.saturating_add(segment.filesz));
    }
    votes.into_iter().max_by_key(|&(_, vote)| vote).map(|(distance, _)| distance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::addr::VirtAddr;

    const DIRECT: u64 = 0xffff_8880_0000_0000;

    fn load(paddr: u64, vaddr: u64, filesz: u64) -> Segment {
        let (paddr, vaddr) = (PhysAddr(paddr), VirtAddr(vaddr));
        Segment { kind: SegmentKind::Load, offset: 0x1000, paddr, vaddr, filesz, memsz: filesz }
    }

    fn machine() -> Vec<Segment> {
        vec![
            load(0x100_0000, KERNEL_IMAGE + 0x100_0000, 0x4_0000),
            load(0, DIRECT, 0x10_0000),
            load(0x10_0000, DIRECT + 0x10_0000, 3 << 30),
            load(1 << 40, DIRECT + (1 << 40), 1 << 30), // far away, and where it says
        ]
    }

    fn limits(text: &str, map_end: Option<u64>) -> Limits {
        Limits::new(&VmcoreInfo::parse(text.as_bytes()), map_end.map(PhysAddr), 8 << 30)
    }

    /// The addresses that are taken out.
    fn removed(mut segments: Vec<Segment>, limits: Limits) -> Vec<u64> {
        let (before, mut anomalies) = (segments.len(), Vec::new());
        remove(&mut segments, limits, &mut anomalies);
        assert_eq!(segments.len() + anomalies.len(), before);
        let addresses = anomalies.iter().map(|anomaly| match anomaly {
            Anomaly::Outlier { paddr, .. } => *paddr,
            other => panic!("{other}"),
        });
        addresses.collect()
    }

    #[test]
    fn a_healthy_machine_keeps_its_memory() {
        let info = "NUMBER(phys_base)=0\nNUMBER(MAX_PHYSMEM_BITS)=46\n";
        assert_eq!(removed(machine(), limits(info, Some(5 << 30))), [0; 0]);
        assert_eq!(removed(machine(), limits("", None)), [0; 0]);
        let moved = vec![load(0x3500_0000, KERNEL_IMAGE + 0x100_0000, 0x4_0000)];
        assert_eq!(removed(moved, limits("NUMBER(phys_base)=872415232\n", None)), [0; 0]);
    }

    #[test]
    fn each_flipped_high_bit_of_an_address_is_found_and_costs_that_segment_only() {
        for bit in 43..64 {
            for index in 0..4 {
                let mut segments = machine();
                let flipped = segments[index].paddr.0 ^ 1 << bit;
                segments[index].paddr = PhysAddr(flipped);
                assert_eq!(
                    removed(segments, limits("NUMBER(phys_base)=0\n", None)),
                    [flipped],
                    "{index} {bit}"
                );
            }
        }
    }

    #[test]
    fn the_kernel_s_image_is_in_other_memory_too() {
        for (index, twice) in [(0, true), (2, false)] {
            let (mut segments, mut anomalies) = (machine(), Vec::new());
            segments[index].paddr.0 ^= 1 << 48;
            let paddr = segments[index].paddr.0;
            let bytes = segments[index].filesz;
            remove(&mut segments, limits("NUMBER(phys_base)=0\n", None), &mut anomalies);
            assert_eq!(anomalies, [Anomaly::Outlier { paddr, bytes, twice }]);
            assert_eq!(anomalies[0].is_loss(), !twice);
        }
    }

    #[test]
    fn the_cpu_and_the_memory_map_bound_what_has_no_virtual_address() {
        let segments =
            || vec![load(0x10_0000, 0, 1 << 30), load(1 << 45, 0, 0x1000), load(1 << 47, 0, 0x1000)];
        assert_eq!(removed(segments(), limits("", None)), [0; 0]);
        let small = Limits { file_len: 4 << 20, ..Limits::default() };
        assert_eq!(removed(segments(), small), [1 << 45, 1 << 47], "bitmaps of 2 GiB for a file of 4 MiB");
        assert_eq!(removed(segments(), limits("NUMBER(MAX_PHYSMEM_BITS)=46\n", None)), [1 << 47]);
        assert_eq!(removed(segments(), limits("", Some(2 << 30))), [1 << 45, 1 << 47]);
        // Memory that was added after the map was recorded.
        let added = vec![load(0x10_0000, 0, 1 << 30), load(8 << 30, 0, 1 << 30)];
        assert_eq!(removed(added, limits("", Some(2 << 30))), [0; 0]);
    }

    #[test]
    fn a_million_lies_take_little_time_and_few_lines() {
        let lies = (0..1_u64 << 20).map(|index| load((1 << 50) + index * 0x1000, 0, 0x1000));
        let mut segments: Vec<Segment> = machine().into_iter().chain(lies).collect();
        let (start, mut anomalies) = (std::time::Instant::now(), Vec::new());
        remove(&mut segments, limits("NUMBER(MAX_PHYSMEM_BITS)=46\n", None), &mut anomalies);
        assert_eq!((segments.len(), anomalies.len()), (4, MAX_ANOMALIES + 1));
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn a_flipped_virtual_address_costs_nothing() {
        for bit in 12..47 {
            let mut segments = machine();
            segments[2].vaddr.0 ^= 1 << bit;
            assert_eq!(removed(segments, limits("", None)).len(), 0, "{bit}");
        }
    }
}

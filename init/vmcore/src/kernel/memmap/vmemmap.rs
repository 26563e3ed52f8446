//! A second way to the struct pages, for a damaged table of memory sections: the kernel's page
//! tables still map them (CONFIG_SPARSEMEM_VMEMMAP), and the free lists of each zone lead to struct
//! pages of free blocks, wherever the kernel has put them.

use crate::kernel::{Kernel, KernelError};
use base::addr::{Pfn, PfnRange, VirtAddr};

/// The kernel puts the array of struct pages at a multiple of this (`PUD_SIZE`,
/// arch/x86/mm/kaslr.c).
const ALIGN: u64 = 1 << 30;
/// Places that are tried: as many as the struct pages of 256 TiB take.
const MAX_PLACES: u64 = 4096;
/// Nodes and lists that are looked at, and blocks that are enough.
const MAX_NODES: u64 = 64;
const MAX_ZONES: u64 = 16;
const MAX_LISTS: u64 = 64;
const MAX_BLOCKS: usize = 1024;
/// Blocks that must agree, and how many times as many as those that do not.
const MIN_BLOCKS: usize = 4;
const AGREE: usize = 8;

/// A free block that a list names.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Its struct page.
    page: u64,
    /// It has 2^order pages and begins at a multiple of them.
    order: u64,
}

/// The address that the struct page of page 0 has, or would have; `None` if it is not certain.
/// `touched` are first pages of memory in each section.
pub(super) fn find(
    kernel: &Kernel<'_>,
    memory: &[PfnRange],
    touched: &[Pfn],
    page_struct: u64,
) -> Option<VirtAddr> {
    let mut blocks = Vec::new();
    if let Err(error) = collect(kernel, &mut blocks) {
        log::debug!("free lists: {}", base::log::chain(&error));
    }
    blocks.sort_unstable_by_key(|block| block.page);
    let middle = blocks.get(blocks.len() / 2)?.page & !ALIGN.saturating_sub(1);
    let last = memory.last()?.end().0;
    let places = last.saturating_mul(page_struct) / ALIGN;
    let is_memory = |pfn: u64| {
        let next = memory.partition_point(|range| range.end().0 <= pfn);
        memory.get(next).is_some_and(|range| range.contains(Pfn(pfn)))
    };
    let fits = |base: u64, block: &&Block| {
        let ahead = block.page.checked_sub(base).filter(|ahead| ahead.checked_rem(page_struct) == Some(0));
        let pfn = ahead.and_then(|ahead| ahead.checked_div(page_struct));
        pfn.is_some_and(|pfn| {
            is_memory(pfn) && pfn.trailing_zeros() >= u32::try_from(block.order).unwrap_or(64)
        })
    };
    let is_mapped = |base: u64| {
        touched.iter().all(|pfn| {
            let page = pfn.0.checked_mul(page_struct).and_then(|ahead| base.checked_add(ahead));
            page.is_some_and(|page| kernel.map(VirtAddr(page)).is_ok())
        })
    };
    let mut found = (0..=places.min(MAX_PLACES))
        .filter_map(|below| middle.checked_sub(below.checked_mul(ALIGN)?))
        .filter(|&base| {
            let good = blocks.iter().filter(|block| fits(base, block)).count();
            let bad = blocks.len().saturating_sub(good);
            good >= MIN_BLOCKS.max(bad.saturating_mul(AGREE)) && is_mapped(base)
        });
    match (found.next(), found.next()) {
        (Some(base), None) => Some(VirtAddr(base)),
        _ => None, // none, or several: nothing says which
    }
}

/// Lists the first and the last block of each free list (`struct zone`, include/linux/mmzone.h).
fn collect(kernel: &Kernel<'_>, blocks: &mut Vec<Block>) -> Result<(), KernelError> {
    const WHAT: &str = "the free lists";
    let length = |name: &str| {
        let key = || KernelError::MissingKey(format!("LENGTH({name})"));
        kernel.info().length(name).ok_or_else(key)
    };
    let table = kernel.symbol("node_data")?;
    let nodes = kernel.info().length("node_data").unwrap_or(1).min(MAX_NODES);
    let (zones, zone_size) = (kernel.offset("pglist_data.node_zones")?, kernel.size("zone")?);
    let number_at = kernel.offset("pglist_data.nr_zones")?;
    let (orders, kinds) = (length("zone.free_area")?, length("free_area.free_list")?);
    let (areas, area_size) = (kernel.offset("zone.free_area")?, kernel.size("free_area")?);
    let (lists, list_size) = (kernel.offset("free_area.free_list")?, kernel.size("list_head")?);
    let links = [kernel.offset("list_head.next")?, kernel.offset("list_head.prev")?];
    let lru = kernel.offset("page.lru")?;
    let at = |base: u64, offset: u64, index: u64, size: u64| {
        let absurd = KernelError::Absurd { what: WHAT, value: base };
        let ahead = index.checked_mul(size).and_then(|ahead| ahead.checked_add(offset));
        ahead.and_then(|ahead| base.checked_add(ahead)).ok_or(absurd)
    };
    for node in 0..nodes {
        let Ok(node @ 1..) = kernel.read_u64(VirtAddr(at(table.0, 0, node, 8)?), WHAT) else { continue };
        let number = kernel.read_u32(VirtAddr(at(node, number_at, 0, 0)?), WHAT).unwrap_or(0);
        for zone in 0..u64::from(number).min(MAX_ZONES) {
            let zone = at(node, zones, zone, zone_size)?;
            for order in 0..orders.min(MAX_LISTS) {
                let area = at(zone, areas, order, area_size)?;
                for kind in 0..kinds.min(MAX_LISTS) {
                    let head = at(area, lists, kind, list_size)?;
                    for link in links {
                        let entry = kernel.read_u64(VirtAddr(at(head, link, 0, 0)?), WHAT).unwrap_or(head);
                        if entry != head && blocks.len() < MAX_BLOCKS {
                            blocks.extend(entry.checked_sub(lru).map(|page| Block { page, order }));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Bytes of a section's struct pages, for those that look whether they are mapped.
pub(super) fn is_mapped(kernel: &Kernel<'_>, base: VirtAddr, bytes: u64) -> bool {
    let last = bytes.checked_sub(1).and_then(|bytes| base.checked_add(bytes));
    kernel.map(base).is_ok() && last.is_some_and(|last| kernel.map(last).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::memmap::{Memmap, Section};
    use crate::kernel::testing::{Generation, PAGES, TestKernel};
    use crate::source::{Core, PhysicalMemory};
    use base::addr::{PageSize, to_usize};

    const IMAGE: u64 = 0xffff_ffff_8000_0000;
    const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
    const NODES: usize = 0x9000;
    const NODE: usize = 0xa000;
    const LINES: [(&str, &str); 11] = [
        ("LENGTH(node_data)", "4"),
        ("OFFSET(pglist_data.node_zones)", "0"),
        ("OFFSET(pglist_data.nr_zones)", "2048"),
        ("SIZE(zone)", "1024"),
        ("OFFSET(zone.free_area)", "64"),
        ("SIZE(free_area)", "40"),
        ("OFFSET(free_area.free_list)", "0"),
        ("LENGTH(free_area.free_list)", "2"),
        ("SIZE(list_head)", "16"),
        ("OFFSET(list_head.next)", "0"),
        ("OFFSET(list_head.prev)", "8"),
    ];

    /// A kernel with a node of one zone, whose free lists name blocks of each order at these pages.
    fn kernel(blocks: &[(u64, u64)]) -> TestKernel {
        let mut kernel = TestKernel::new(Generation::V6_3, 4);
        for (key, value) in LINES {
            kernel.tell(key, Some(value));
        }
        kernel.tell("OFFSET(page.lru)", Some("8"));
        kernel.tell("SYMBOL(node_data)", Some(&format!("{:x}", IMAGE + NODES as u64)));
        kernel.u64(NODES, IMAGE + NODE as u64);
        kernel.u64(NODE + 2048, 1);
        for list in 0..22 {
            let head = NODE + 64 + list / 2 * 40 + list % 2 * 16;
            kernel.u64(head, IMAGE + head as u64);
            kernel.u64(head + 8, IMAGE + head as u64);
        }
        for &(pfn, order) in blocks {
            let head = NODE + 64 + to_usize(order) * 40;
            kernel.u64(head, VMEMMAP + pfn * 64 + 8);
            kernel.u64(head + 8, VMEMMAP + pfn * 64 + 8);
        }
        kernel
    }

    const BLOCKS: [(u64, u64); 4] = [(3, 0), (66, 1), (1024, 3), (2048, 10)];

    fn sections(kernel: &TestKernel) -> Result<Vec<Section>, KernelError> {
        let (_file, core, info) = kernel.core();
        let kernel = Kernel::new(&core, &info, core.mappings());
        let memmap = Memmap::discover(&kernel, core.ranges(), PageSize::FOUR_KIB, 64)?;
        Ok(memmap.sections().map(|(_, section)| section).collect())
    }

    #[test]
    fn struct_pages_are_found_without_the_root_of_the_section_table() {
        let whole = sections(&kernel(&BLOCKS)).unwrap();
        assert_eq!(whole, [Section::Online(VirtAddr(VMEMMAP))]);
        // The root, the section's word, and a root that leads nowhere.
        // (A page of nothing but zeros would get a content of its own.)
        let damages: [fn(&mut TestKernel); 3] = [
            |kernel| [(0x6000, 0), (0x6ff8, 1)].iter().for_each(|&(at, word)| kernel.u64(at, word)),
            |kernel| [(0x7000, 0), (0x7ff8, 1)].iter().for_each(|&(at, word)| kernel.u64(at, word)),
            |kernel| kernel.u64(0x6000, 0xdead),
        ];
        for damage in damages {
            let mut by_lists = kernel(&BLOCKS);
            damage(&mut by_lists);
            assert_eq!(sections(&by_lists).unwrap(), whole);
            // The kernel's own word (6.10) does as well.
            let mut told = TestKernel::new(Generation::V6_12, 4);
            told.tell("SYMBOL(vmemmap)", Some(&format!("{VMEMMAP:x}")));
            damage(&mut told);
            assert_eq!(sections(&told).unwrap(), whole);
        }
    }

    #[test]
    fn what_is_not_certain_is_not_used() {
        // Too few blocks; blocks outside of memory; blocks that are not where their order puts
        // them.
        for blocks in [
            &BLOCKS[..1],
            &[(PAGES, 0), (PAGES + 2, 1), (PAGES + 4, 2), (PAGES + 8, 3)],
            &[(1, 1), (3, 2), (5, 3), (7, 4)],
        ] {
            let mut damaged = kernel(blocks);
            damaged.u64(0x6000, 0);
            assert!(sections(&damaged).is_err(), "{blocks:?}");
        }
        // An offline section stays offline.
        let mut offline = kernel(&BLOCKS);
        offline.section(VMEMMAP | 0x3);
        assert!(sections(&offline).is_err());
    }
}

//! Class by class, over a made-up kernel of every generation.

use super::*;
use crate::kernel::memmap::Section;
use crate::kernel::testing::{Generation, HWPOISON, LRU, PAGES, PRIVATE, SWAPBACKED, SWAPCACHE, TestKernel};
use crate::source::Core as _;
use base::addr::Pfn;

/// The classes of all pages, and what was wrong.
fn classes(kernel: &TestKernel) -> (Vec<PageClass>, ScanStats) {
    let (_file, core, info) = kernel.core();
    let mut contradictions = Vec::new();
    let filter =
        PageFilter::discover(&core, &info, core.mappings(), &mut |what| contradictions.push(what)).unwrap();
    assert_eq!(contradictions, []);
    let (mut scanner, mut out) = (filter.scanner(), Vec::new());
    scanner.classify(PfnRange::new(Pfn(0), Pfn(PAGES)).unwrap(), &mut out);
    (out, scanner.stats)
}

/// Every generation with four and five levels; the last one with both kinds of links.
fn kernels() -> impl Iterator<Item = TestKernel> {
    let plain = Generation::ALL
        .into_iter()
        .flat_map(|generation| [4, 5].map(|levels| TestKernel::new(generation, levels)));
    let mut masks = TestKernel::new(Generation::V7_1, 4);
    masks.masks = true;
    plain.chain([masks])
}

/// Changes a kernel of each generation and checks the classes of ranges of pages; all others are
/// the kernel's.
fn check(change: impl Fn(&mut TestKernel), expected: &[(u64, u64, PageClass)]) -> ScanStats {
    let mut all = ScanStats::default();
    for mut kernel in kernels() {
        change(&mut kernel);
        let (found, stats) = classes(&kernel);
        for (pfn, found) in (0..PAGES).zip(found) {
            let range = expected.iter().find(|&&(from, to, _)| (from..to).contains(&pfn));
            let class = range.map_or(PageClass::Kernel, |&(.., class)| class);
            assert_eq!(found, class, "page {pfn:#x} of {:?}, masks {}", kernel.generation, kernel.masks);
        }
        all.merge(&stats);
    }
    all
}

#[test]
fn untouched_pages_are_the_kernels() {
    assert_eq!(check(|_| (), &[]), ScanStats::default());
}

#[test]
fn free_blocks_of_every_order_are_free_as_a_whole() {
    let stats = check(
        |kernel| {
            kernel.free(0x401, 0);
            kernel.free(0x404, 2);
            kernel.free(0x800, 10);
        },
        &[(0x401, 0x402, PageClass::Free), (0x404, 0x408, PageClass::Free), (0x800, 0xc00, PageClass::Free)],
    );
    assert_eq!(stats, ScanStats::default());
}

#[test]
fn a_free_block_ends_where_its_pages_are_in_use() {
    let stats = check(
        |kernel| {
            kernel.free(0x800, 4);
            kernel.page(0x805).count(1);
        },
        &[(0x800, 0x805, PageClass::Free)],
    );
    assert!(stats.bad_heads > 0);
}

#[test]
fn a_free_block_of_a_wrong_order_or_place_is_not_believed() {
    let stats = check(
        |kernel| {
            kernel.free(0x800, 4);
            kernel.again(0x800).private(11);
            kernel.free(0x902, 1);
            kernel.again(0x902).private(2);
        },
        &[(0x902, 0x903, PageClass::Free)],
    );
    assert!(stats.bad_heads > 0);
}

#[test]
fn pages_of_files_and_processes() {
    check(
        |kernel| {
            let file = 0xffff_8880_1234_5678;
            kernel.page(0x401).flags(LRU).mapping(file).count(1);
            kernel.page(0x402).flags(LRU | PRIVATE).mapping(file).count(1);
            kernel.page(0x403).flags(SWAPCACHE | SWAPBACKED).count(1);
            kernel.page(0x404).flags(SWAPCACHE).count(1); // a file system's flag
            kernel.page(0x405).flags(LRU | SWAPBACKED).mapping(file | 1).mapcount(0).count(1);
            kernel.page(0x406).flags(LRU).mapping(file | 3).mapcount(7).count(8);
            kernel.page(0x407).flags(LRU | SWAPCACHE | SWAPBACKED).mapping(file | 1).count(1);
        },
        &[
            (0x401, 0x402, PageClass::Cache),
            (0x402, 0x403, PageClass::PrivateCache),
            (0x403, 0x404, PageClass::Cache),
            (0x405, 0x408, PageClass::User),
        ],
    );
}

#[test]
fn huge_pages_go_with_their_heads() {
    let stats = check(
        |kernel| {
            kernel.hugetlb(0x600, 9);
            kernel.compound(0x800, 9).flags(LRU | SWAPBACKED).mapping(0xffff_8880_0000_0001);
            kernel.compound(0xa00, 3).flags(LRU).mapping(0xffff_8880_0000_0000);
            kernel.compound(0xa10, 2); // of the kernel
        },
        &[
            (0x600, 0x800, PageClass::Hugetlb),
            (0x800, 0xa00, PageClass::User),
            (0xa00, 0xa08, PageClass::Cache),
        ],
    );
    assert_eq!(stats, ScanStats::default());
}

#[test]
fn heads_that_hvo_makes_appear_are_tails() {
    let stats = check(
        |kernel| {
            kernel.hugetlb(0x600, 9);
            for copy in 1..8 {
                kernel.copy_structs(0x600, 0x600 + copy * 64, 64);
            }
            if kernel.masks {
                kernel.hugetlb(0x600, 9); // no fake heads since 7.1
            }
        },
        &[(0x600, 0x800, PageClass::Hugetlb)],
    );
    assert_eq!(stats, ScanStats::default());
}

#[test]
fn slabs_are_contradictions_from_what_their_fields_look_like() {
    check(
        |kernel| {
            kernel.slab(0x401, 0);
            kernel.slab(0x408, 3);
        },
        &[(0x401, 0x402, PageClass::Slab), (0x408, 0x410, PageClass::Slab)],
    );
}

#[test]
fn pages_with_a_type_are_of_no_process() {
    check(
        |kernel| {
            let (table, offline) = (kernel.generation.table(), kernel.generation.offline());
            kernel.page(0x401).mapcount(table).flags(LRU).mapping(0xffff_8880_0000_0001);
            kernel.page(0x402).mapcount(offline).count(1);
        },
        &[(0x402, 0x403, PageClass::Offline)],
    );
}

#[test]
fn broken_pages_are_contradictions_wherever_they_are() {
    check(
        |kernel| {
            kernel.page(0x401).flags(HWPOISON).count(1);
            kernel.compound(0x600, 9).flags(LRU).mapping(0xffff_8880_0000_0001);
            kernel.again(0x703).flags(HWPOISON);
            kernel.compound(0x800, 2);
            kernel.again(0x801).flags(HWPOISON);
            kernel.free(0x900, 3);
            kernel.again(0x902).flags(HWPOISON);
        },
        &[
            (0x401, 0x402, PageClass::Poisoned),
            (0x703, 0x704, PageClass::Poisoned),
            (0x600, 0x800, PageClass::User),
            (0x801, 0x802, PageClass::Poisoned),
            (0x902, 0x903, PageClass::Poisoned),
            (0x900, 0x908, PageClass::Free),
        ],
    );
}

#[test]
fn unaccepted_memory_is_free() {
    let mut kernel = TestKernel::new(Generation::V7_1, 4);
    kernel.free(0x800, 10);
    kernel.again(0x800).mapcount(0xf700_0000).private(0);
    let (found, _) = classes(&kernel);
    assert!(found[0x800..0xc00].iter().all(|&class| class == PageClass::Free));
}

#[test]
fn vital_pages_are_the_kernels_whatever_their_struct_pages_say() {
    let stats = check(|kernel| kernel.free(0x208, 3), &[]); // of the struct pages
    assert!(stats.vital >= 8);
}

#[test]
fn tails_that_lead_nowhere_are_kept() {
    let stats = check(
        |kernel| {
            kernel.compound(0x600, 3).flags(LRU);
            kernel.copy_structs(0x601, 0x700, 1); // of a head that is too far away, or, with masks, of none
        },
        &[(0x600, 0x608, PageClass::Cache)],
    );
    assert!(stats.stray_tails > 0);
}

#[test]
fn sections_without_struct_pages_are_kept() {
    for map in [0, 0xffff_ea00_0000_0000 | 0x1d, 0xffff_ea00_0000_0000 | 0x1b] {
        let mut kernel = TestKernel::new(Generation::V6_12, 4);
        kernel.section(map);
        let (_file, core, info) = kernel.core();
        let error = PageFilter::discover(&core, &info, core.mappings(), &mut |_| ()).unwrap_err();
        assert!(matches!(error, KernelError::Absurd { value: 0, .. }), "{error}");
    }
}

/// makedumpfile up to 1.7.9 takes bit 5 for a part of the address, and so looks for all struct pages of the
/// section in the wrong place.
#[test]
fn struct_pages_that_the_boot_made_for_huge_pages_are_found() {
    for levels in [4, 5] {
        let mut kernel = TestKernel::new(Generation::V7_1, levels);
        kernel.masks = true;
        kernel.early_hugetlb(0x800, 10);
        kernel.free(0x404, 2);
        let (found, stats) = classes(&kernel);
        assert_eq!(stats, ScanStats { vital: stats.vital, ..ScanStats::default() });
        for (pfn, class) in (0..PAGES).zip(found) {
            let expected = match pfn {
                0x404..0x408 => PageClass::Free,
                0x800..0xc00 => PageClass::Hugetlb,
                _ => PageClass::Kernel,
            };
            assert_eq!(class, expected, "page {pfn:#x}, {levels} levels");
        }
    }
}

/// Flags that a section may have beside those that are asked for: of one kernel (without ZONE_DEVICE bit 4 is
/// SECTION_IS_VMEMMAP_PREINIT), and those that may come.
#[test]
fn no_flag_of_a_section_is_a_part_of_its_address() {
    for flag in 0..12 {
        let mut kernel = TestKernel::new(Generation::V7_1, 4);
        kernel.section(0xffff_ea00_0000_0000 | 0x6 | 1 << flag);
        kernel.free(0x404, 2);
        let (found, _) = classes(&kernel);
        let free = found.iter().filter(|&&class| class == PageClass::Free).count();
        assert_eq!((free, found[0x404]), (4, PageClass::Free), "flag {flag}");
    }
}

#[test]
fn a_flag_that_many_kernel_pages_have_is_not_that_of_broken_memory() {
    for mut kernel in kernels() {
        for pfn in 0..PAGES {
            kernel.again(pfn).flags(1 << 22);
        }
        kernel.tell("NUMBER(PG_hwpoison)", Some("22"));
        let (_file, core, info) = kernel.core();
        let mut contradictions = Vec::new();
        let filter =
            PageFilter::discover(&core, &info, core.mappings(), &mut |what| contradictions.push(what))
                .unwrap();
        assert_eq!(contradictions.iter().map(|what| what.class).collect::<Vec<_>>(), [PageClass::Poisoned]);
        let mut out = Vec::new();
        filter.scanner().classify(PfnRange::new(Pfn(0), Pfn(PAGES)).unwrap(), &mut out);
        assert!(out.iter().all(|class| class.is_kept()));
    }
}

#[test]
fn struct_pages_in_a_page_that_the_kernel_would_not_map_them_with_are_none() {
    let mut kernel = TestKernel::new(Generation::V6_12, 4);
    kernel.map_struct_pages_with_a_giant_page();
    let (_file, core, info) = kernel.core();
    let filter = PageFilter::discover(&core, &info, core.mappings(), &mut |_| ()).unwrap();
    assert!(filter.memmap().sections().all(|(_, section)| matches!(section, Section::Bad(_))));
}

#[test]
fn struct_pages_in_memory_of_processes_are_none() {
    let mut kernel = TestKernel::new(Generation::V6_12, 4);
    for pfn in 0x200..0x400 {
        kernel.page(pfn).flags(LRU).mapping(0xffff_8880_0000_0001).count(1);
    }
    let (_file, core, info) = kernel.core();
    let filter = PageFilter::discover(&core, &info, core.mappings(), &mut |_| ()).unwrap();
    assert!(filter.memmap().sections().all(|(_, section)| matches!(section, Section::Bad(_))));
}

#[test]
fn an_order_in_the_place_of_the_destructor_is_damage() {
    let mut kernel = TestKernel::new(Generation::V5_10, 4);
    for (dtor, order) in [("17", "17"), ("16", "16"), ("9", "17"), ("16", "1")] {
        kernel.tell("OFFSET(page.compound_dtor)", Some(dtor));
        kernel.tell("OFFSET(page.compound_order)", Some(order));
        let (_file, core, info) = kernel.core();
        assert!(PageFilter::discover(&core, &info, core.mappings(), &mut |_| ()).is_err(), "{dtor} {order}");
    }
}

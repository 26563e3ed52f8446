//! Page classes out of hostile struct pages and a hostile VMCOREINFO: the scan ends, says the same
//! twice, and never drops what is the kernel's.
//!
//! Input: a length, that many bytes of VMCOREINFO after a usable one, a memory image at physical
//! 0x1000, virtual `BASE`: the section roots, a section, from the second page on struct pages. The
//! memory that they are asked about lies apart.

use crate::build::{Load, elf_core, note, put};
use crate::{Scratch, take, take_u16};
use vmcore::filter::{PageClass, PageFilter, units};
use vmcore::source::{Access, Core, PhysicalMemory, Vmcore};

const BASE: u64 = 0xffff_8880_0000_1000;
const PADDR: u64 = 0x1000;
/// The first of the 64 pages that the struct pages are asked about.
const FIRST: usize = 256;

const INFO: &str = "PAGESIZE=4096\nSYMBOL(mem_section)=ffff888000001000\nLENGTH(mem_section)=2048\n\
    SIZE(mem_section)=16\nOFFSET(mem_section.section_mem_map)=0\nNUMBER(SECTION_SIZE_BITS)=27\n\
    NUMBER(MAX_PHYSMEM_BITS)=46\nSIZE(page)=64\nOFFSET(page.flags)=0\nOFFSET(page._refcount)=52\n\
    OFFSET(page.mapping)=24\nOFFSET(page._mapcount)=48\nOFFSET(page.private)=40\n\
    OFFSET(page.compound_head)=8\nLENGTH(zone.free_area)=11\nNUMBER(PG_lru)=5\nNUMBER(PG_private)=14\n\
    NUMBER(PG_swapcache)=10\nNUMBER(PG_swapbacked)=17\nNUMBER(PG_hwpoison)=21\nNUMBER(PG_head_mask)=64\n\
    NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376\nNUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456\n\
    NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592\nNUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240\n";

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    classes(data);
}

/// The classes of the pages that `data` describes, if it has struct pages at all.
fn classes(data: &[u8]) -> Option<Vec<PageClass>> {
    let mut input = data;
    let text_len = usize::from(take_u16(&mut input));
    let text = take(&mut input, text_len);
    let notes = note("VMCOREINFO", 0, &[INFO.as_bytes(), text].concat());
    let asked = vec![0; 64 << 12];
    let loads = [
        Load { vaddr: BASE, paddr: PADDR, bytes: input },
        Load { vaddr: 0, paddr: u64::try_from(FIRST << 12).unwrap(), bytes: &asked },
    ];
    let file = Scratch::new(&elf_core(&notes, &loads));
    let core = Vmcore::open(&file.path(), Access::Pread).ok()?;
    let filter = PageFilter::discover(&core, core.info(), core.mappings(), &mut |_| ()).ok()?;
    let mut all = Vec::new();
    for unit in units::of(core.ranges()) {
        let (mut scanner, mut found, mut again) = (filter.scanner(), Vec::new(), Vec::new());
        scanner.classify(unit, &mut found);
        filter.scanner().classify(unit, &mut again);
        assert_eq!(found, again);
        assert_eq!(u64::try_from(found.len()).unwrap(), unit.pages());
        let stats = &scanner.stats;
        assert!(
            [stats.unreadable, stats.bad_heads, stats.stray_tails, stats.vital]
                .iter()
                .all(|n| *n <= unit.pages())
        );
        for range in filter.vital() {
            for pfn in range.start().0..range.end().0 {
                let index = pfn.checked_sub(unit.start().0).and_then(|index| usize::try_from(index).ok());
                let class = index.and_then(|index| found.get(index));
                assert!(class.is_none_or(|class| class.is_kernel()), "{pfn:#x} is {class:?}");
            }
        }
        all.extend(found);
    }
    Some(all)
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |text: &str, image: &[u8]| {
        let len = u16::try_from(text.len()).unwrap().to_le_bytes();
        [&len[..], text.as_bytes(), image].concat()
    };
    let image = image();
    let mut seeds = vec![
        seed("", &image),
        seed("OFFSET(page.compound_info)=8\n", &image),
        seed("NUMBER(PG_slab)=9\nOFFSET(page.compound_order)=17\nOFFSET(page.compound_dtor)=16\n", &image),
    ];
    let found = classes(&seeds[0]).expect("struct pages");
    let expected = [PageClass::Free, PageClass::Free, PageClass::Cache, PageClass::Cache, PageClass::User];
    assert_eq!(
        found[FIRST + 8..FIRST + 13],
        expected,
        "the fuzzer starts from struct pages that can be read"
    );
    seeds.extend(MENDED.iter().map(|text| seed(text, &image)));
    seeds
}

/// What drgn mended in July and August 2026, as far as the section table and struct pages are concerned; the
/// commits are its.
const MENDED: &[&str] = &[
    // a499fdd5: no section in a page, a size that is no power of two.
    "SIZE(mem_section)=0\n",
    "SIZE(mem_section)=24\n",
    "SIZE(mem_section)=8192\n",
    "SIZE(mem_section)=18446744073709551615\n",
    "LENGTH(mem_section)=0\n",
    "LENGTH(mem_section)=18446744073709551615\n",
    // The logarithms that are made of it: a shift by all bits or more.
    "NUMBER(SECTION_SIZE_BITS)=0\n",
    "NUMBER(SECTION_SIZE_BITS)=64\nNUMBER(MAX_PHYSMEM_BITS)=64\n",
    "NUMBER(SECTION_SIZE_BITS)=-1\nNUMBER(MAX_PHYSMEM_BITS)=-9223372036854775808\n",
    // e1e00068, d796eead: a number without an opposite.
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-9223372036854775808\nNUMBER(PG_head_mask)=-9223372036854775808\n",
    "NUMBER(PG_lru)=64\nNUMBER(PG_hwpoison)=-1\n",
    // 7ea4199b: sizes and places that overflow when they are added.
    "SIZE(page)=0\n",
    "SIZE(page)=18446744073709551615\nOFFSET(page.flags)=18446744073709551615\n",
    "OFFSET(page._mapcount)=18446744073709551612\nOFFSET(page.private)=4096\n",
    // 494911c3: an absurd number of things in an array.
    "LENGTH(zone.free_area)=18446744073709551615\n",
];

/// Roots, a section, and struct pages up to those that are asked about.
fn image() -> Vec<u8> {
    let page_structs = BASE + 0x1000;
    let at = |page: usize| 0x1000 + (FIRST + page) * 64;
    let mut image = vec![0; at(64)];
    let mut word = |at: usize, value: u64| put(&mut image, at, &value.to_le_bytes());
    word(0, BASE + 0x100);
    word(0x100, page_structs | 7);
    for page in 0..64 {
        word(at(page) + 48, 0xffff_ffff); // no mapping, no reference
    }
    word(at(8) + 48, 0xf000_0000); // a free block of two pages
    word(at(8) + 40, 1);
    word(at(10), 1 << 5 | 1 << 6); // a file's page, and its tail
    word(at(11), 1); // order
    word(at(11) + 8, page_structs + u64::try_from(FIRST + 10).unwrap() * 64 + 1);
    word(at(12) + 24, 0xffff_8880_0000_0001); // an anonymous page
    image
}

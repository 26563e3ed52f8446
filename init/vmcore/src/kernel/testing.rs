//! A made-up kernel for tests: memory, page tables, memory sections and struct pages of a kernel
//! generation, and the VMCOREINFO that tells where they are.
//!
//! 16 MiB of memory in one section. The image half maps physical 0 in one 1 GiB page; `vmemmap` is
//! one 2 MiB page.

#![expect(clippy::cast_possible_truncation, reason = "tests run on 64-bit machines")]

use tempfile::NamedTempFile;

use crate::format::vmcoreinfo::VmcoreInfo;
use crate::source::testing::CoreFile;
use crate::source::{Access, Vmcore};

/// `__START_KERNEL_map`
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Of four levels and, sign-extended further, of five.
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// Physical addresses.
const TOP: usize = 0x1000;
const TOP5: usize = 0x5000;
const IMAGE_PUD: usize = 0x2000;
const VMEMMAP_PUD: usize = 0x3000;
const VMEMMAP_PMD: usize = 0x4000;
const ROOTS: usize = 0x6000;
const SECTIONS: usize = 0x7000;
const LOOP: usize = 0x8000;
/// Where [`TestKernel::early_hugetlb`] maps the struct pages by small pages, one of them many times.
const STRUCTS_TABLE: usize = 0x9000;
const TAILS: usize = 0xa000;
/// Struct pages: 2 MiB.
const STRUCTS: usize = 0x20_0000;
const MEMORY: usize = 16 << 20;
/// Pages of memory.
pub(crate) const PAGES: u64 = 4096;

/// Kernels that tell the same things in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Generation {
    V5_10,
    V6_3,
    V6_6,
    V6_12,
    V7_1,
}

impl Generation {
    pub(crate) const ALL: [Self; 5] = [Self::V5_10, Self::V6_3, Self::V6_6, Self::V6_12, Self::V7_1];

    fn types(self) -> [u32; 5] {
        // buddy, offline, page table, hugetlb, slab
        if self >= Self::V6_12 {
            [0xf000_0000, 0xf100_0000, 0xf200_0000, 0xf400_0000, 0xf500_0000]
        } else {
            [!0x80, !0x100, !0x200, 0, 0]
        }
    }

    /// `page_type` of a free block's head.
    pub(crate) fn buddy(self) -> u32 {
        self.types()[0]
    }

    /// `page_type` of an offline page.
    pub(crate) fn offline(self) -> u32 {
        self.types()[1]
    }

    /// `page_type` of a page table.
    pub(crate) fn table(self) -> u32 {
        self.types()[2]
    }
}

pub(crate) const LRU: u64 = 1 << 5;
pub(crate) const PRIVATE: u64 = 1 << 14;
pub(crate) const SWAPCACHE: u64 = 1 << 10;
pub(crate) const SWAPBACKED: u64 = 1 << 17;
pub(crate) const HWPOISON: u64 = 1 << 21;
const SLAB: u64 = 1 << 9;
const HEAD: u64 = 1 << 6;

/// A kernel under construction.
#[derive(Debug)]
pub(crate) struct TestKernel {
    pub(crate) generation: Generation,
    /// Lines of VMCOREINFO.
    pub(crate) lines: Vec<String>,
    memory: Vec<u8>,
    /// Since 7.1: whether tails hold a mask.
    pub(crate) masks: bool,
}

impl TestKernel {
    /// Every page is of the kernel: held once, without flags.
    pub(crate) fn new(generation: Generation, levels: u8) -> Self {
        let mut kernel =
            Self { generation, lines: lines(generation, levels), memory: vec![0; MEMORY], masks: false };
        kernel.u64(TOP + 0x1ff * 8, 0x2000 | 3);
        kernel.u64(TOP + index(VMEMMAP, 39) * 8, 0x3000 | 3);
        kernel.u64(TOP5 + 0x1ff * 8, 0x1000 | 3);
        kernel.u64(IMAGE_PUD + 0x1fe * 8, 0x83);
        kernel.u64(VMEMMAP_PUD + index(VMEMMAP, 30) * 8, 0x4000 | 3);
        kernel.u64(VMEMMAP_PMD, STRUCTS as u64 | 0x83);
        kernel.u64(ROOTS, IMAGE + SECTIONS as u64);
        kernel.section(VMEMMAP | 0x1f);
        for pfn in 0..PAGES {
            kernel.page(pfn).count(1);
        }
        kernel
    }

    /// Sets the section's `section_mem_map`.
    pub(crate) fn section(&mut self, map: u64) {
        self.u64(SECTIONS, map);
    }

    /// A page, blank: no flags, held by nobody, `_mapcount` -1.
    pub(crate) fn page(&mut self, pfn: u64) -> TestPage<'_> {
        let at = STRUCTS + pfn as usize * 64;
        self.memory[at..at + 64].fill(0);
        TestPage { kernel: self, pfn }.mapcount(u32::MAX)
    }

    /// A page whose fields stay as they are.
    pub(crate) fn again(&mut self, pfn: u64) -> TestPage<'_> {
        TestPage { kernel: self, pfn }
    }

    /// A free block.
    pub(crate) fn free(&mut self, pfn: u64, order: u32) {
        let buddy = self.generation.buddy();
        for tail in pfn..pfn + (1 << order) {
            self.page(tail);
        }
        self.page(pfn).mapcount(buddy).private(order.into());
    }

    /// A compound page without flags of its own.
    pub(crate) fn compound(&mut self, pfn: u64, order: u32) -> TestPage<'_> {
        let link = if self.masks { (64_u64 << order).wrapping_neg() } else { VMEMMAP + pfn * 64 };
        for tail in pfn + 1..pfn + (1 << order) {
            self.page(tail).set(8, &(link | 1).to_le_bytes());
        }
        let second = STRUCTS + (pfn as usize + 1) * 64;
        let order = u8::try_from(order).unwrap();
        match self.generation {
            Generation::V5_10 => self.memory[second + 16..][..2].copy_from_slice(&[1, order]),
            Generation::V6_3 => self.memory[second + 18..][..2].copy_from_slice(&[1, order]),
            _ => self.memory[second] = order,
        }
        self.page(pfn).count(1).flags(HEAD)
    }

    /// A huge page of hugetlbfs.
    pub(crate) fn hugetlb(&mut self, pfn: u64, order: u32) {
        self.compound(pfn, order);
        let second = STRUCTS + (pfn as usize + 1) * 64;
        match self.generation {
            Generation::V5_10 => self.memory[second + 16] = 2,
            Generation::V6_3 => self.memory[second + 18] = 2,
            Generation::V6_6 => self.memory[second + 1] |= 1, // PG_hugetlb is 8
            _ => {
                self.again(pfn).mapcount(0xf400_0000);
            }
        }
    }

    /// A slab of some pages.
    pub(crate) fn slab(&mut self, pfn: u64, order: u32) {
        let typed = self.generation >= Generation::V6_12;
        let page = if order == 0 { self.page(pfn).count(1) } else { self.compound(pfn, order) };
        // Slabs use the fields of other pages for their own ends.
        let page = page.mapping(0xffff_8880_0000_0001);
        let _ = if typed { page.mapcount(0xf500_0000) } else { page.flags(SLAB) };
    }

    /// Copies struct pages, as HVO makes them appear.
    pub(crate) fn copy_structs(&mut self, from: u64, to: u64, count: usize) {
        let (from, to) = (STRUCTS + from as usize * 64, STRUCTS + to as usize * 64);
        self.memory.copy_within(from..from + count * 64, to);
    }

    /// A huge page of hugetlbfs whose struct pages the boot made without most of their memory (early HVO,
    /// 7.3): from the second page of them on, all are one page of tails, and the section says
    /// SECTION_IS_VMEMMAP_PREINIT, which is bit 5 (include/linux/mmzone.h). What its struct pages would have
    /// filled holds something else.
    pub(crate) fn early_hugetlb(&mut self, pfn: u64, order: u32) {
        self.hugetlb(pfn, order);
        let page = |pfn: u64| pfn as usize * 64 / 4096;
        let shared = page(pfn) + 1..page(pfn + (1 << order));
        self.memory.copy_within(STRUCTS + shared.start * 4096..STRUCTS + (shared.start + 1) * 4096, TAILS);
        self.memory[STRUCTS + shared.start * 4096..STRUCTS + shared.end * 4096].fill(0xa5);
        for entry in 0..512 {
            let at = if shared.contains(&entry) { TAILS } else { STRUCTS + entry * 4096 };
            self.u64(STRUCTS_TABLE + entry * 8, at as u64 | 3);
        }
        self.u64(VMEMMAP_PMD, STRUCTS_TABLE as u64 | 3);
        self.section(VMEMMAP | 0x3f);
    }

    /// Replaces the table of `vmemmap` by a page of 1 GiB.
    pub(crate) fn map_struct_pages_with_a_giant_page(&mut self) {
        self.u64(VMEMMAP_PUD + index(VMEMMAP, 30) * 8, 0x83);
    }

    /// Adds a table that leads to itself on every level, so that it maps 512 GiB to its own page.
    /// Says where these begin.
    pub(crate) fn loop_page_tables(&mut self) -> u64 {
        self.u64(TOP + 0x100 * 8, LOOP as u64 | 3);
        for entry in 0..512 {
            self.u64(LOOP + entry * 8, LOOP as u64 | 3);
        }
        0xffff_8000_0000_0000
    }

    /// Writes a word of memory.
    pub(crate) fn u64(&mut self, at: usize, value: u64) {
        self.memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Replaces the line of a key, or takes it out.
    pub(crate) fn tell(&mut self, key: &str, value: Option<&str>) {
        self.lines.retain(|line| !line.starts_with(&format!("{key}=")));
        self.lines.extend(value.map(|value| format!("{key}={value}")));
    }

    /// The core and its VMCOREINFO. Each page of memory has content of its own.
    pub(crate) fn core(&self) -> (NamedTempFile, Vmcore, VmcoreInfo) {
        let text = self.lines.join("\n");
        let mut memory = self.memory.clone();
        for (pfn, page) in (0_u64..).zip(memory.chunks_exact_mut(4096)) {
            if page == [0; 4096] {
                page[..8].copy_from_slice(&(pfn | 1 << 32).to_le_bytes());
            }
        }
        let file = CoreFile::new().segment(0, &memory).note("VMCOREINFO", 0, text.as_bytes()).write();
        let core = Vmcore::open(file.path(), Access::Pread).unwrap();
        (file, core, VmcoreInfo::parse(text.as_bytes()))
    }
}

/// A struct page under construction.
#[derive(Debug)]
pub(crate) struct TestPage<'k> {
    kernel: &'k mut TestKernel,
    pfn: u64,
}

impl TestPage<'_> {
    fn set(self, offset: usize, bytes: &[u8]) -> Self {
        let at = STRUCTS + self.pfn as usize * 64 + offset;
        self.kernel.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Adds flags.
    pub(crate) fn flags(self, flags: u64) -> Self {
        let at = STRUCTS + self.pfn as usize * 64;
        let old = u64::from_le_bytes(self.kernel.memory[at..at + 8].try_into().unwrap());
        self.set(0, &(old | flags).to_le_bytes())
    }

    pub(crate) fn mapping(self, mapping: u64) -> Self {
        self.set(24, &mapping.to_le_bytes())
    }

    pub(crate) fn private(self, private: u64) -> Self {
        self.set(40, &private.to_le_bytes())
    }

    pub(crate) fn mapcount(self, mapcount: u32) -> Self {
        self.set(48, &mapcount.to_le_bytes())
    }

    pub(crate) fn count(self, count: u32) -> Self {
        self.set(52, &count.to_le_bytes())
    }
}

fn index(addr: u64, shift: u32) -> usize {
    (addr >> shift & 0x1ff) as usize
}

fn lines(generation: Generation, levels: u8) -> Vec<String> {
    let (link, top) = match generation {
        Generation::V7_1 => ("page.compound_info", TOP),
        _ => ("page.compound_head", TOP),
    };
    let top = IMAGE + if levels == 5 { TOP5 as u64 } else { top as u64 };
    let mut text = format!(
        "OSRELEASE=test\nPAGESIZE=4096\nNUMBER(phys_base)=0\nSYMBOL(swapper_pg_dir)={top:x}\n\
         NUMBER(pgtable_l5_enabled)={}\nSYMBOL(mem_section)={:x}\nLENGTH(mem_section)=2048\nSIZE(mem_section)=16\n\
         OFFSET(mem_section.section_mem_map)=0\nNUMBER(SECTION_SIZE_BITS)=27\nNUMBER(MAX_PHYSMEM_BITS)=46\n\
         SIZE(page)=64\nOFFSET(page.flags)=0\nOFFSET({link})=8\nOFFSET(page.mapping)=24\nOFFSET(page.private)=40\n\
         OFFSET(page._mapcount)=48\nOFFSET(page._refcount)=52\nLENGTH(zone.free_area)=11\nNUMBER(PG_lru)=5\n\
         NUMBER(PG_private)=14\nNUMBER(PG_swapcache)=10\nNUMBER(PG_swapbacked)=17\nNUMBER(PG_hwpoison)=21\n\
         NUMBER(PG_head_mask)=64\n",
        u8::from(levels == 5),
        IMAGE + ROOTS as u64,
    );
    let [buddy, offline, _, hugetlb, slab] = generation.types().map(u32::cast_signed);
    let mut types = vec![("BUDDY", buddy), ("OFFLINE", offline)];
    text += match generation {
        Generation::V5_10 => {
            "OFFSET(page.compound_dtor)=16\nOFFSET(page.compound_order)=17\nNUMBER(HUGETLB_PAGE_DTOR)=2\n"
        }
        Generation::V6_3 => {
            "OFFSET(folio._folio_dtor)=82\nOFFSET(folio._folio_order)=83\nNUMBER(HUGETLB_PAGE_DTOR)=2\n"
        }
        Generation::V6_6 => "NUMBER(PG_hugetlb)=8\n",
        _ => "NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)=-150994944\n",
    };
    if generation >= Generation::V6_12 {
        types.extend([("HUGETLB", hugetlb), ("SLAB", slab)]);
    } else {
        text += "NUMBER(PG_slab)=9\n";
    }
    let types = types.into_iter().map(|(name, value)| format!("NUMBER(PAGE_{name}_MAPCOUNT_VALUE)={value}"));
    text.lines().map(str::to_owned).chain(types).collect()
}

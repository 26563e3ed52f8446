//! Where the struct pages of each memory section lie (CONFIG_SPARSEMEM, with or without VMEMMAP).
//!
//! `mem_section` is an array of roots (SPARSEMEM_EXTREME: pointers to pages of `struct
//! mem_section`, else the structs themselves); a section's `section_mem_map` is the address of its
//! first struct page less the section's first PFN, with flags in the low bits
//! (include/linux/mmzone.h). With VMEMMAP all sections therefore hold the same address, which is
//! how a damaged one is told. A section that is damaged has no struct pages here, and the others
//! have theirs. Where the table says nothing of a section that has memory, as with a root that was
//! overwritten, its struct pages are looked for where all others have them (`vmemmap`).

mod vmemmap;

use serde::Serialize;

use crate::kernel::page::HeadLink;
use crate::kernel::{Kernel, KernelError};
use base::addr::{PageSize, Pfn, PfnRange, VirtAddr, to_u64};

/// Low bits of `section_mem_map` that hold flags: 5 to 7 so far, up to SECTION_IS_VMEMMAP_PREINIT (6.15),
/// which is bit 5, or 4 without CONFIG_ZONE_DEVICE. All addresses there are multiples of a page.
const FLAGS: u64 = 0xfff;
/// `SECTION_HAS_MEM_MAP`.
const HAS_MEM_MAP: u64 = 1 << 1;
/// `SECTION_IS_ONLINE`: the struct pages of an offline section have not been initialised.
const ONLINE: u64 = 1 << 2;
/// First address of the kernel's half.
const KERNEL_HALF: u64 = 1 << 63;
/// Bytes of the largest `struct mem_section`, with CONFIG_PAGE_EXTENSION: 32.
const MAX_SECTION_SIZE: u64 = 256;
/// Bytes of the largest page that the kernel maps struct pages with
/// (`vmemmap_populate_hugepages()`, arch/x86/mm/init_64.c).
const HUGE: u64 = 2 << 20;

/// Sections whose struct pages must be mapped where `vmemmap` is thought to be.
const SAMPLES: usize = 256;

/// Why a section's struct pages cannot be used; all its pages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BadSection {
    /// Its `struct mem_section` cannot be read.
    Unreadable,
    /// It names struct pages at an address where there are none, or other ones than all the others.
    Address,
}

impl core::fmt::Display for BadSection {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "its struct mem_section cannot be read",
            Self::Address => "its struct mem_section names a wrong address",
        })
    }
}

/// The struct pages of one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Its first struct page.
    Online(VirtAddr),
    /// No memory, memory without struct pages, or offline.
    Absent,
    /// Damaged.
    Bad(BadSection),
}

/// All struct pages.
#[derive(Clone, Debug)]
pub struct Memmap {
    /// Pages of a section: a power of two.
    pages_per_section: u64,
    page_struct: u64,
    /// The sections that have memory, by number, ascending.
    sections: Vec<(u64, Section)>,
    /// The address that section 0's first struct page would have, if all sections agree on one.
    vmemmap: Option<VirtAddr>,
}

/// Where `struct mem_section`s are.
struct Table {
    address: VirtAddr,
    roots: u64,
    per_root: u64,
    struct_size: u64,
    map_at: u64,
    extreme: bool,
}

impl Memmap {
    /// Finds the struct pages, each of `page_struct` bytes, of the sections that `memory` touches.
    pub fn discover(
        kernel: &Kernel<'_>,
        memory: &[PfnRange],
        page_size: PageSize,
        page_struct: usize,
    ) -> Result<Self, KernelError> {
        let page_struct = to_u64(page_struct);
        let bits = |name: &'static str, from: u64, to: u64| {
            let key = || KernelError::MissingKey(format!("NUMBER({name})"));
            let value = kernel.info().number(name).ok_or_else(key)?.cast_unsigned();
            let sane = (from..=to).contains(&value);
            sane.then_some(value).ok_or(KernelError::Absurd { what: name, value })
        };
        let section_bits = bits("SECTION_SIZE_BITS", 24, 34)?;
        let memory_bits = bits("MAX_PHYSMEM_BITS", section_bits.saturating_add(1), 52)?;
        let shift = section_bits.saturating_sub(u64::from(page_size.bytes().trailing_zeros()));
        let pages_per_section = 1_u64.checked_shl(u32::try_from(shift).unwrap_or(0)).unwrap_or(1);
        let sections =
            1_u64.checked_shl(u32::try_from(memory_bits.saturating_sub(section_bits)).unwrap_or(0));
        let table = Table::discover(kernel, sections.unwrap_or(1), page_size)?;
        let mut map = Self { pages_per_section, page_struct, sections: Vec::new(), vmemmap: None };
        let mut unknown = Vec::new();
        for number in map.numbers(memory) {
            let (section, is_known) = map.locate(kernel, &table, number);
            if !is_known {
                unknown.push(map.sections.len());
            }
            map.sections.push((number, section));
        }
        let recorded = kernel.info().symbol("vmemmap");
        map.agree(recorded);
        map.look_for(kernel, memory, recorded, &unknown);
        if map.sections.iter().any(|(_, section)| matches!(section, Section::Online(_))) {
            Ok(map)
        } else {
            Err(KernelError::Absurd { what: "the number of usable memory sections", value: 0 })
        }
    }

    /// The sections with memory, ascending: the pages of each and where its struct pages lie.
    pub fn sections(&self) -> impl Iterator<Item = (PfnRange, Section)> + '_ {
        self.sections.iter().filter_map(|&(number, section)| Some((self.pages_of(number)?, section)))
    }

    /// The section that holds `pfn`: its pages and where its struct pages lie.
    #[must_use]
    pub fn section_of(&self, pfn: Pfn) -> Option<(PfnRange, Section)> {
        let number = pfn.0.checked_div(self.pages_per_section)?;
        let index = self.sections.binary_search_by_key(&number, |&(number, _)| number).ok()?;
        Some((self.pages_of(number)?, self.sections.get(index)?.1))
    }

    fn pages_of(&self, number: u64) -> Option<PfnRange> {
        let start = Pfn(number.checked_mul(self.pages_per_section)?);
        PfnRange::new(start, start.saturating_add(self.pages_per_section))
    }

    /// Bytes of a `struct page`.
    #[must_use]
    pub fn struct_size(&self) -> u64 {
        self.page_struct
    }

    /// Pages of a section.
    #[must_use]
    pub fn pages_per_section(&self) -> u64 {
        self.pages_per_section
    }

    /// The page whose struct page a tail at `tail` (`pfn`, in the section whose first struct page
    /// is `base`) names as its head; `None` unless it lies before the tail and is a struct page.
    #[must_use]
    pub fn head_of(&self, link: HeadLink, pfn: Pfn, section: PfnRange, base: VirtAddr) -> Option<Pfn> {
        let tail =
            base.0.checked_add(pfn.0.checked_sub(section.start().0)?.checked_mul(self.page_struct)?)?;
        let head = match link {
            HeadLink::Pointer(address) => address,
            HeadLink::Mask(mask) => tail & mask,
        };
        let behind = tail.checked_sub(head)?;
        let pages = behind.checked_div(self.page_struct)?;
        let exact = pages.checked_mul(self.page_struct) == Some(behind);
        let head = Pfn(pfn.0.checked_sub(pages)?);
        // Without VMEMMAP the struct pages of two sections are not neighbours.
        let same = section.contains(head) || self.vmemmap.is_some();
        (exact && same && head < pfn).then_some(head)
    }

    /// The address of the struct page of `pfn`.
    #[must_use]
    pub fn address_of(&self, pfn: Pfn) -> Option<VirtAddr> {
        let (pages, Section::Online(base)) = self.section_of(pfn)? else { return None };
        base.checked_add(pfn.0.checked_sub(pages.start().0)?.checked_mul(self.page_struct)?)
    }

    /// Numbers of the sections that `memory` touches.
    fn numbers(&self, memory: &[PfnRange]) -> Vec<u64> {
        let of = |pfn: u64| pfn.checked_div(self.pages_per_section).unwrap_or(0);
        let mut numbers: Vec<u64> = Vec::new();
        for range in memory {
            let first = of(range.start().0).max(numbers.last().map_or(0, |last| last.saturating_add(1)));
            numbers.extend(first..=of(range.end().0.saturating_sub(1)));
        }
        numbers
    }

    /// Where the table says that a section's struct pages lie, and whether it says anything at all.
    fn locate(&self, kernel: &Kernel<'_>, table: &Table, number: u64) -> (Section, bool) {
        let Ok(coded) = table.section_mem_map(kernel, number) else {
            return (Section::Bad(BadSection::Unreadable), false);
        };
        if coded & (HAS_MEM_MAP | ONLINE) != HAS_MEM_MAP | ONLINE {
            return (Section::Absent, coded != 0);
        }
        let ahead = number.wrapping_mul(self.pages_per_section).wrapping_mul(self.page_struct);
        let base = (coded & !FLAGS).wrapping_add(ahead);
        let bad = base < KERNEL_HALF || kernel.translate(VirtAddr(base)).is_err();
        (if bad { Section::Bad(BadSection::Address) } else { Section::Online(VirtAddr(base)) }, true)
    }

    /// Gives the sections of which the table says nothing the struct pages that are mapped for
    /// them, if they are.
    fn look_for(
        &mut self,
        kernel: &Kernel<'_>,
        memory: &[PfnRange],
        recorded: Option<VirtAddr>,
        unknown: &[usize],
    ) {
        if unknown.is_empty() {
            return;
        }
        let first_page = |&index: &usize| {
            let pages = self.pages_of(self.sections.get(index)?.0)?;
            let next = memory.partition_point(|range| range.end() <= pages.start());
            memory.get(next).and_then(|range| range.intersect(pages)).map(PfnRange::start)
        };
        // A few of them, spread over all: a hostile core has a million.
        let step = unknown.len().div_ceil(SAMPLES).max(1);
        let touched: Vec<Pfn> = unknown.iter().step_by(step).filter_map(first_page).collect();
        let page_struct = self.page_struct;
        let found = || vmemmap::find(kernel, memory, &touched, page_struct);
        let Some(origin) = self.vmemmap.or(recorded).or_else(found) else { return };
        let bytes = self.pages_per_section.saturating_mul(self.page_struct);
        let mut number = 0_usize;
        for &index in unknown {
            let Some(section) = self.sections.get_mut(index) else { continue };
            let base = section.0.checked_mul(bytes).and_then(|ahead| origin.checked_add(ahead));
            if let Some(base) = base.filter(|&base| vmemmap::is_mapped(kernel, base, bytes)) {
                section.1 = Section::Online(base);
                number = number.saturating_add(1);
            }
        }
        if number > 0 {
            self.vmemmap = Some(origin);
            log::warn!(
                "the table of memory sections is damaged: struct pages of {number} sections found without it"
            );
        }
    }

    /// Finds what the sections agree on. The kernel's own word for it counts most, where it has one
    /// (VMCOREINFO SYMBOL(vmemmap), 6.10); else the majority, if that is large: then it is VMEMMAP,
    /// and those that differ are damaged.
    fn agree(&mut self, recorded: Option<VirtAddr>) {
        let (pages, size) = (self.pages_per_section, self.page_struct);
        let origin = |&(number, section): &(u64, Section)| match section {
            Section::Online(base) => Some(base.0.wrapping_sub(number.wrapping_mul(pages).wrapping_mul(size))),
            _ => None,
        };
        let mut origins: Vec<u64> = self.sections.iter().filter_map(origin).collect();
        origins.sort_unstable();
        let commonest = origins.chunk_by(|a, b| a == b).max_by_key(|same| same.len());
        let Some((&common, count)) = commonest.and_then(|same| Some((same.first()?, same.len()))) else {
            return;
        };
        let common = match recorded {
            Some(address) if origins.contains(&address.0) => address.0,
            _ if count.saturating_mul(2) > origins.len() => common,
            _ => return,
        };
        self.vmemmap = Some(VirtAddr(common));
        for section in &mut self.sections {
            if origin(section).is_some_and(|origin| origin != common) {
                section.1 = Section::Bad(BadSection::Address);
            }
        }
    }
}

impl Memmap {
    /// Takes back sections whose struct pages are not where the kernel would have mapped them: in a
    /// page larger than it uses, or in one where another section has its own. (HVO shares small
    /// pages.) Page tables damaged in this way lead to memory, but not to these struct pages.
    pub fn distrust_mappings(&mut self, kernel: &Kernel<'_>) {
        if self.vmemmap.is_none() {
            return;
        }
        let len = self.pages_per_section.saturating_mul(self.page_struct);
        let mut pieces: Vec<(u64, usize)> = Vec::new();
        let mut bad: Vec<usize> = Vec::new();
        for (index, &(_, section)) in self.sections.iter().enumerate() {
            let Section::Online(base) = section else { continue };
            let end = base.0.saturating_add(len);
            let mut at = base.0;
            while at < end {
                let huge = at & !HUGE.saturating_sub(1);
                at = huge.saturating_add(HUGE);
                match kernel.map(VirtAddr(huge)) {
                    Ok(mapping) if mapping.left > HUGE => bad.push(index),
                    Ok(mapping) if mapping.left == HUGE => pieces.push((mapping.phys.0, index)),
                    _ => (),
                }
            }
        }
        pieces.sort_unstable();
        pieces.dedup(); // sections smaller than what a huge page describes share it in order
        for same in pieces.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
            let neighbours = same.windows(2).all(|pair| self.share_a_huge_page(pair, len));
            if !neighbours {
                bad.extend(same.iter().map(|&(_, index)| index));
            }
        }
        for index in bad {
            if let Some(section) = self.sections.get_mut(index) {
                section.1 = Section::Bad(BadSection::Address);
            }
        }
    }

    /// Whether two sections rightly have struct pages in one huge page: their struct pages are
    /// neighbours in it.
    fn share_a_huge_page(&self, pair: &[(u64, usize)], len: u64) -> bool {
        let base = |which: usize| {
            let &(_, index) = pair.get(which)?;
            match self.sections.get(index)?.1 {
                Section::Online(base) => Some(base.0),
                _ => None,
            }
        };
        let huge = |addr: u64| addr & !HUGE.saturating_sub(1);
        base(0).zip(base(1)).is_some_and(|(first, second)| {
            huge(first.saturating_add(len).saturating_sub(1)) == huge(second) || huge(first) == huge(second)
        })
    }

    /// Takes back the section that holds `pfn`.
    pub fn distrust(&mut self, pfn: Pfn) {
        let number = pfn.0.checked_div(self.pages_per_section).unwrap_or(0);
        let index = self.sections.binary_search_by_key(&number, |&(number, _)| number);
        let section = index.ok().and_then(|index| self.sections.get_mut(index));
        if let Some((_, section @ Section::Online(_))) = section {
            *section = Section::Bad(BadSection::Address);
        }
    }
}

impl Table {
    /// `sections` is the number that the address space has room for.
    fn discover(kernel: &Kernel<'_>, sections: u64, page_size: PageSize) -> Result<Self, KernelError> {
        let struct_size = kernel.size("mem_section")?;
        let map_at = kernel.offset("mem_section.section_mem_map")?;
        if struct_size > MAX_SECTION_SIZE || map_at.saturating_add(8) > struct_size {
            return Err(KernelError::Absurd { what: "SIZE(mem_section)", value: struct_size });
        }
        let in_page = page_size.bytes().checked_div(struct_size).unwrap_or(1);
        let extreme_roots = sections.div_ceil(in_page);
        let roots = kernel.info().length("mem_section").unwrap_or(extreme_roots);
        // The kernel tells the length, not the shape: an array of roots is shorter than one of
        // sections.
        let extreme = roots == extreme_roots;
        if !extreme && roots != sections {
            return Err(KernelError::Absurd { what: "LENGTH(mem_section)", value: roots });
        }
        let per_root = if extreme { in_page } else { 1 };
        Ok(Self { address: kernel.symbol("mem_section")?, roots, per_root, struct_size, map_at, extreme })
    }

    /// A section's `section_mem_map`; 0 for a section that does not exist.
    fn section_mem_map(&self, kernel: &Kernel<'_>, number: u64) -> Result<u64, KernelError> {
        const WHAT: &str = "mem_section";
        let absurd = || KernelError::Absurd { what: "the number of a memory section", value: number };
        let at = |base: VirtAddr, index: u64, size: u64| base.checked_add(index.checked_mul(size)?);
        let (root, index) =
            number.checked_div(self.per_root).zip(number.checked_rem(self.per_root)).ok_or_else(absurd)?;
        if root >= self.roots {
            return Ok(0);
        }
        let first = if self.extreme {
            let entry = at(self.address, root, 8).ok_or_else(absurd)?;
            match kernel.read_u64(entry, WHAT)? {
                0 => return Ok(0),
                page => at(VirtAddr(page), index, self.struct_size),
            }
        } else {
            at(self.address, number, self.struct_size)
        };
        let address = first.and_then(|first| first.checked_add(self.map_at)).ok_or_else(absurd)?;
        kernel.read_u64(address, WHAT)
    }
}

//! Where damage hurts: the words that lead to struct pages and the words in them, found without the
//! product's walks.

use crate::damage::Random;
use base::addr::{Pfn, PhysAddr, VirtAddr};
use vmcore::filter::{PageClass, PageFilter};
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::source::{PhysicalMemory, Vmcore};

/// `__START_KERNEL_map`
const IMAGE: u64 = 0xffff_ffff_8000_0000;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A word to damage, and the pages that it may take with it.
#[derive(Clone, Debug)]
pub struct Word {
    /// Where it lies.
    pub at: PhysAddr,
    /// Its bytes.
    pub len: usize,
    /// Pages that damage there may drop.
    pub reach: Vec<(u64, u64)>,
    /// What it is.
    pub what: String,
    /// Words that differ in this are not exchanged.
    pub sort: &'static str,
}

/// The entries that a walk to an address reads, with the level of each, and what it finds.
#[must_use]
pub fn walk(core: &Vmcore, info: &VmcoreInfo, addr: u64) -> Option<(Vec<(u32, PhysAddr)>, PhysAddr)> {
    let top = info.symbol("init_top_pgt").or_else(|| info.symbol("swapper_pg_dir"))?;
    let mut table = top.0.checked_sub(IMAGE)?.checked_add_signed(info.number("phys_base")?)?;
    let levels = if info.number("pgtable_l5_enabled") == Some(1) { 5 } else { 4 };
    let mut path = Vec::new();
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let at = PhysAddr(table + (addr >> shift & 0x1ff) * 8);
        path.push((level, at));
        let entry = u64_at(core, at)?;
        if entry & 1 == 0 {
            return None;
        }
        if level == 1 || (level < 4 && entry & 0x80 != 0) {
            let offset = addr & ((1 << shift) - 1);
            return Some((path, PhysAddr((entry & ADDRESS & !((1 << shift) - 1)) | offset)));
        }
        table = entry & ADDRESS;
    }
    None
}

/// The word at a physical address.
#[must_use]
pub fn u64_at(core: &Vmcore, at: PhysAddr) -> Option<u64> {
    let mut bytes = [0; 8];
    core.read_exact_at(at, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// What targets are chosen from.
#[derive(Debug)]
pub struct Targets<'c> {
    core: &'c Vmcore,
    info: &'c VmcoreInfo,
    filter: &'c PageFilter<'c>,
    classes: &'c [PageClass],
    by_class: Vec<Vec<u64>>,
}

impl<'c> Targets<'c> {
    /// Over a healthy core and what is known about it.
    #[must_use]
    pub fn new(
        core: &'c Vmcore,
        info: &'c VmcoreInfo,
        filter: &'c PageFilter<'c>,
        classes: &'c [PageClass],
    ) -> Self {
        let mut by_class = vec![Vec::new(); PageClass::ALL.len() + 1];
        for range in core.ranges() {
            for pfn in range.start().0..range.end().0 {
                by_class[classes[pfn as usize].index()].push(pfn);
            }
        }
        if let Some(vital) = by_class.last_mut() {
            vital.extend(filter.vital().iter().flat_map(|range| range.start().0..range.end().0));
        }
        by_class.retain(|pages| !pages.is_empty());
        Self { core, info, filter, classes, by_class }
    }

    fn page(&self, random: &mut Random) -> u64 {
        let pages = &self.by_class[random.below(self.by_class.len() as u64) as usize];
        pages[random.below(pages.len() as u64) as usize]
    }

    fn struct_page(&self, pfn: u64) -> Option<PhysAddr> {
        let address = self.filter.memmap().address_of(Pfn(pfn))?;
        Some(walk(self.core, self.info, address.0)?.1)
    }

    fn section(&self, pfn: u64) -> Option<(u64, u64)> {
        let (pages, _) = self.filter.memmap().section_of(Pfn(pfn))?;
        Some((pages.start().0, pages.end().0))
    }

    /// A root pointer of the memory sections.
    pub fn root(&self, random: &mut Random) -> Option<Word> {
        let (_, at, pages) = self.mem_section(self.page(random))?;
        Some(Word { at, len: 8, reach: vec![pages], what: "root".into(), sort: "root" })
    }

    /// A section's `section_mem_map`.
    pub fn section_word(&self, random: &mut Random) -> Option<Word> {
        let pfn = self.page(random);
        let (at, _, _) = self.mem_section(pfn)?;
        let what = format!("section of {pfn:#x}");
        Some(Word { at, len: 8, reach: vec![self.section(pfn)?], what, sort: "section" })
    }

    /// Of the section of `pfn`: its word, its root's entry, and the pages of the root.
    fn mem_section(&self, pfn: u64) -> Option<(PhysAddr, PhysAddr, (u64, u64))> {
        let per_section = self.filter.memmap().pages_per_section();
        let number = pfn / per_section;
        let size = self.info.size("mem_section")?;
        let (per_root, base) = (4096 / size, self.info.symbol("mem_section")?.0);
        let root_at = walk(self.core, self.info, base + number / per_root * 8)?.1;
        let root = u64_at(self.core, root_at)?;
        let map_at = self.info.offset("mem_section.section_mem_map")?;
        let at = walk(self.core, self.info, root + number % per_root * size + map_at)?.1;
        let first = number / per_root * per_root * per_section;
        Some((at, root_at, (first, first + per_root * per_section)))
    }

    /// An entry on the way to the struct page of some page.
    pub fn table_entry(&self, random: &mut Random) -> Option<Word> {
        let pfn = self.page(random);
        let address = self.filter.memmap().address_of(Pfn(pfn))?.0;
        let (path, _) = walk(self.core, self.info, address)?;
        let &(level, at) = path.get(random.below(path.len() as u64) as usize)?;
        let size = self.filter.memmap().struct_size();
        let (section, _) = self.section(pfn)?;
        let origin = address - (pfn - section) * size; // of the section's struct pages
        let span = 1_u64 << (12 + 9 * (level - 1));
        let first = address & !(span - 1);
        // Struct pages lie in a line: VMEMMAP.
        let page_of =
            |addr: u64| (section as i64 + (addr as i64 - origin as i64).div_euclid(size as i64)).max(0);
        let reach = if level >= 4 {
            (0, u64::MAX)
        } else {
            (page_of(first) as u64, page_of(first + span) as u64 + 1)
        };
        Some(Word {
            at,
            len: 8,
            reach: vec![reach],
            what: format!("level-{level} entry for page {pfn:#x}"),
            sort: "table",
        })
    }

    /// A field of a struct page.
    pub fn field(&self, random: &mut Random) -> Option<Word> {
        const FIELDS: [(&str, usize); 8] = [
            ("page.flags", 8),
            ("page.compound_head", 8),
            ("page.compound_info", 8),
            ("page.mapping", 8),
            ("page._mapcount", 4),
            ("page.private", 8),
            ("page._refcount", 4),
            ("page.lru", 8),
        ];
        let pfn = self.page(random);
        let (name, len) = FIELDS[random.below(FIELDS.len() as u64) as usize];
        let offset = self.info.offset(name)?;
        let at = PhysAddr(self.struct_page(pfn)?.0 + offset);
        Some(Word {
            at,
            len,
            reach: self.reach(pfn)?,
            what: format!("{name} of {:?} page {pfn:#x}", self.class(pfn)),
            sort: name,
        })
    }

    /// A word of the second struct page of a compound page.
    pub fn second(&self, random: &mut Random) -> Option<Word> {
        let head_mask = self.info.number("PG_head_mask")?.cast_unsigned();
        for _ in 0..64 {
            let pfn = self.page(random);
            let at = self.struct_page(pfn)?;
            if u64_at(self.core, at)? & head_mask == 0 {
                continue;
            }
            let second = self.struct_page(pfn + 1)?;
            let word = random.below(self.filter.memmap().struct_size() / 8);
            let what = format!("word {word} behind {:?} head {pfn:#x}", self.class(pfn));
            return Some(Word {
                at: PhysAddr(second.0 + word * 8),
                len: 8,
                reach: self.reach(pfn + 1)?,
                what,
                sort: "second",
            });
        }
        None
    }

    fn class(&self, pfn: u64) -> PageClass {
        self.classes.get(pfn as usize).copied().unwrap_or(PageClass::Unknown)
    }

    /// The page itself; what it heads, and what the page before it heads, whose second struct page
    /// it is: a free block of the largest order if it is damaged into its head; the compound page
    /// that it heads in truth; and where struct pages are shared (HVO), all of that huge page.
    fn reach(&self, pfn: u64) -> Option<Vec<(u64, u64)>> {
        let compound =
            self.info.offset("page.compound_head").or_else(|| self.info.offset("page.compound_info"))?;
        let is_tail = |pfn: u64| {
            let word = self.struct_page(pfn).and_then(|at| u64_at(self.core, PhysAddr(at.0 + compound)));
            word.is_some_and(|word| word & 1 == 1)
        };
        let mut reach = vec![(pfn, pfn + 1)];
        let order = self.info.length("zone.free_area").unwrap_or(11).saturating_sub(1);
        // Free blocks are aligned: what it can head begins with it.
        let order = u64::from(pfn.trailing_zeros()).min(order);
        reach.push((pfn, pfn + (1 << order)));
        for head in [pfn, pfn.saturating_sub(1)] {
            let mut end = head + 1;
            while is_tail(end) {
                end += 1;
            }
            if end > head + 1 {
                reach.push((head, end));
            }
        }
        if self.class(pfn) == PageClass::Hugetlb {
            let same = |pfn: u64| self.class(pfn) == PageClass::Hugetlb;
            let (mut from, mut to) = (pfn, pfn + 1);
            while from > 0 && same(from - 1) {
                from -= 1;
            }
            while same(to) {
                to += 1;
            }
            reach.push((from, to));
        }
        Some(reach)
    }
}

/// The entries that lead to an address.
#[must_use]
pub fn path_of(core: &Vmcore, info: &VmcoreInfo, addr: VirtAddr) -> Vec<u64> {
    walk(core, info, addr.0)
        .map(|(path, _)| path.into_iter().map(|(_, at)| at.0).collect())
        .unwrap_or_default()
}

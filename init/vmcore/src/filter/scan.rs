//! Scanning struct pages: the class of each page of a range, read in large pieces.
//!
//! Whatever the struct pages say, a scan ends: each page is looked at once, and following a tail to
//! its head takes at most one more read.

use core::ops::Range;

use crate::filter::{PageClass, PageFilter, class_of, free};
use crate::kernel::memmap::{BadSection, Section};
use crate::kernel::page::{Compound, PageInfo, pages_of};
use crate::kernel::{Kernel, Mapping};
use crate::source::PageReader;
use base::addr::{Pfn, PfnRange, VirtAddr, to_u64, to_usize};

/// Struct pages that are read at a time: 256 KiB of them.
const CHUNK: u64 = 4096;
/// Bytes that are read one by one when a larger piece cannot be read.
const PIECE: u64 = 4096;
/// Damaged sections that are listed; a damaged root has 256 of them.
const MAX_BAD_SECTIONS: usize = 64;

/// What was wrong with the struct pages of a scan. Each of these pages is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Damaged sections: their pages in the range that was scanned.
    pub bad_sections: Vec<(PfnRange, BadSection)>,
    /// Struct pages that could not be read.
    pub unreadable: u64,
    /// Free blocks with an order that cannot be, or that hold a page in use.
    pub bad_heads: u64,
    /// Tails that lead to no head.
    pub stray_tails: u64,
    /// Pages that are the kernel's and claimed to be something else.
    pub vital: u64,
}

impl ScanStats {
    /// Adds what another scan found.
    pub fn merge(&mut self, other: &Self) {
        let room = MAX_BAD_SECTIONS.saturating_sub(self.bad_sections.len());
        self.bad_sections.extend(other.bad_sections.iter().take(room));
        self.unreadable = self.unreadable.saturating_add(other.unreadable);
        self.bad_heads = self.bad_heads.saturating_add(other.bad_heads);
        self.stray_tails = self.stray_tails.saturating_add(other.stray_tails);
        self.vital = self.vital.saturating_add(other.vital);
    }
}

/// Tells the classes of pages.
pub struct Scanner<'f> {
    filter: &'f PageFilter<'f>,
    kernel: Kernel<'f>,
    reader: Box<dyn PageReader + 'f>,
    structs: Vec<u8>,
    /// Struct pages in `structs` that could not be read, by index.
    holes: Vec<Range<u64>>,
    head: Option<Head>,
    /// What was wrong so far.
    pub stats: ScanStats,
}

impl core::fmt::Debug for Scanner<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Scanner").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// A compound page, as its head tells.
#[derive(Clone, Copy, Debug)]
struct Head {
    pfn: Pfn,
    /// After its last page; `pfn` itself if the head cannot be believed.
    end: Pfn,
    class: PageClass,
}

/// The struct pages that have been read, and where they belong.
#[derive(Clone, Copy)]
struct Chunk {
    /// The pages that they describe.
    pages: PfnRange,
    /// The section that they lie in.
    section: PfnRange,
    base: VirtAddr,
}

impl<'f> Scanner<'f> {
    pub(super) fn new(filter: &'f PageFilter<'f>) -> Self {
        Self {
            filter,
            kernel: filter.kernel(),
            reader: filter.memory.page_reader(),
            structs: Vec::new(),
            holes: Vec::new(),
            head: None,
            stats: ScanStats::default(),
        }
    }

    /// Puts the class of each page of `pages` into `out`. A free block is known from its head on,
    /// so `pages` should begin at a multiple of the largest block.
    pub fn classify(&mut self, pages: PfnRange, out: &mut Vec<PageClass>) {
        out.clear();
        out.resize(to_usize(pages.pages()), PageClass::Unknown);
        let mut at = pages.start();
        while at < pages.end() {
            let boundary =
                at.0.saturating_add(1).checked_next_multiple_of(self.filter.memmap.pages_per_section());
            let end = Pfn(boundary.unwrap_or(u64::MAX)).min(pages.end());
            if let Some(part) = PfnRange::new(at, end) {
                self.section(part, pages.start(), out);
            }
            at = end;
        }
        self.respect_the_kernel(pages, out);
    }

    /// The part of a scan that lies in one section.
    fn section(&mut self, part: PfnRange, first: Pfn, out: &mut [PageClass]) {
        let (section, base) = match self.filter.memmap.section_of(part.start()) {
            Some((section, Section::Online(base))) => (section, base),
            Some((_, Section::Bad(why))) => {
                let one = ScanStats { bad_sections: vec![(part, why)], ..ScanStats::default() };
                return self.stats.merge(&one);
            }
            Some((_, Section::Absent)) | None => return,
        };
        let mut free_left = 0;
        let mut at = part.start();
        while let Some(pages) = PfnRange::new(at, at.saturating_add(CHUNK).min(part.end())) {
            let chunk = Chunk { pages, section, base };
            self.read(chunk);
            let from = to_usize(at.0.saturating_sub(first.0));
            let to = from.saturating_add(to_usize(pages.pages()));
            self.chunk(chunk, &mut free_left, out.get_mut(from..to).unwrap_or_default());
            at = pages.end();
        }
    }

    /// The classes of the pages whose struct pages have been read.
    fn chunk(&mut self, chunk: Chunk, free_left: &mut u64, out: &mut [PageClass]) {
        let layout = &self.filter.layout;
        for (class, index) in out.iter_mut().zip(0_u64..) {
            let pfn = chunk.pages.start().saturating_add(index);
            let Some(page) = self.info(index) else {
                self.unreadable(pfn);
                *free_left = 0;
                continue;
            };
            let poisoned = layout.is_poisoned(&page) && !layout.is_head(&page);
            if *free_left > 0 && !poisoned && !layout.looks_free(&page) {
                self.bad_head();
                *free_left = 0;
            }
            if *free_left > 0 {
                *free_left = free_left.saturating_sub(1);
                *class = if poisoned { PageClass::Poisoned } else { PageClass::Free };
                continue;
            }
            *class = if poisoned { PageClass::Poisoned } else { self.class(chunk, pfn, index, &page) };
            if *class == PageClass::Free {
                let pages = pages_of(free::order(layout, &page).unwrap_or(0));
                if pfn.0.is_multiple_of(pages) {
                    *free_left = pages.saturating_sub(1);
                } else {
                    self.bad_head();
                }
            }
        }
    }

    /// Counts a struct page that cannot be read, if there is memory that it should describe.
    fn unreadable(&mut self, pfn: Pfn) {
        let ranges = self.filter.memory.ranges();
        let next = ranges.partition_point(|range| range.end() <= pfn);
        if ranges.get(next).is_some_and(|range| range.contains(pfn)) {
            self.stats.unreadable = self.stats.unreadable.saturating_add(1);
        }
    }

    /// The class of a page that lies in no free block, or heads one.
    fn class(&mut self, chunk: Chunk, pfn: Pfn, index: u64, page: &PageInfo) -> PageClass {
        let layout = &self.filter.layout;
        if let Some(link) = layout.head_link(page) {
            let head = self.filter.memmap.head_of(link, pfn, chunk.section, chunk.base);
            return self.tail(chunk, pfn, head);
        }
        if !layout.is_head(page) {
            return class_of(layout, page, Compound { order: 0, hugetlb: false });
        }
        if let Some(head) = self.real_head(chunk, pfn, index) {
            return self.tail(chunk, pfn, Some(head));
        }
        let head = self.believe(chunk, pfn, page, self.bytes(index.saturating_add(1)));
        self.head = Some(head);
        head.class
    }

    /// With HVO ("mm/hugetlb: free some vmemmap pages") the struct pages of a hugetlb page share
    /// pages of memory, so that copies of the head stand in the middle of it. Such a copy begins a
    /// page of memory, and the struct page behind it is a tail of the real head
    /// (`page_fixed_fake_head()`, to 7.0).
    fn real_head(&self, chunk: Chunk, pfn: Pfn, index: u64) -> Option<Pfn> {
        let layout = &self.filter.layout;
        let address = self.filter.memmap.address_of(pfn)?;
        let next = index.saturating_add(1);
        let link = layout.head_link(&self.info(next)?)?;
        let head = self.filter.memmap.head_of(link, pfn.saturating_add(1), chunk.section, chunk.base)?;
        (address.0.is_multiple_of(PIECE) && head < pfn).then_some(head)
    }

    /// The class of a tail is that of its head, if the head is one and reaches that far.
    fn tail(&mut self, chunk: Chunk, pfn: Pfn, head: Option<Pfn>) -> PageClass {
        let known = self.head.filter(|known| Some(known.pfn) == head);
        let found = known.or_else(|| {
            let found = self.look_up(chunk, head?);
            self.head = found.or(self.head);
            found
        });
        match found {
            Some(head) if pfn < head.end => head.class,
            _ => {
                self.stats.stray_tails = self.stats.stray_tails.saturating_add(1);
                PageClass::Kernel
            }
        }
    }

    /// Reads a head that is not the last one: of a page that began before the chunk.
    fn look_up(&mut self, chunk: Chunk, pfn: Pfn) -> Option<Head> {
        let layout = &self.filter.layout;
        if chunk.pages.contains(pfn) {
            let index = pfn.0.saturating_sub(chunk.pages.start().0);
            let page = self.info(index)?;
            let second = self.bytes(index.saturating_add(1));
            return layout.is_head(&page).then(|| self.believe_bytes(pfn, &page, second));
        }
        let address = self.filter.memmap.address_of(pfn)?;
        let mut both = vec![0; layout.size().saturating_mul(2)];
        self.kernel.read(address, &mut both, "the head of a compound page").ok()?;
        let page = layout.decode(&both)?;
        let second = both.get(layout.size()..).unwrap_or_default();
        layout.is_head(&page).then(|| self.believe_bytes(pfn, &page, second))
    }

    /// A head as it stands in the chunk, whose second struct page must lead back to it.
    fn believe(&self, chunk: Chunk, pfn: Pfn, page: &PageInfo, second: &[u8]) -> Head {
        let layout = &self.filter.layout;
        let link = layout.decode(second).and_then(|second| layout.head_link(&second));
        let back = link.and_then(|link| {
            self.filter.memmap.head_of(link, pfn.saturating_add(1), chunk.section, chunk.base)
        });
        if back == Some(pfn) {
            self.believe_bytes(pfn, page, second)
        } else {
            Head { pfn, end: pfn, class: class_of(layout, page, Compound { order: 0, hugetlb: false }) }
        }
    }

    fn believe_bytes(&self, pfn: Pfn, page: &PageInfo, second: &[u8]) -> Head {
        let layout = &self.filter.layout;
        let compound = layout.compound(page, second);
        let aligned = pfn.0.is_multiple_of(pages_of(compound.order)) && compound.order > 0;
        let pages = if aligned { pages_of(compound.order) } else { 0 };
        Head { pfn, end: pfn.saturating_add(pages), class: class_of(layout, page, compound) }
    }

    fn bad_head(&mut self) {
        self.stats.bad_heads = self.stats.bad_heads.saturating_add(1);
    }

    /// The struct page at `index` of the chunk; `None` if it could not be read.
    fn info(&self, index: u64) -> Option<PageInfo> {
        let whole = !self.holes.iter().any(|hole| hole.contains(&index));
        whole.then(|| self.filter.layout.decode(self.bytes(index))).flatten()
    }

    fn bytes(&self, index: u64) -> &[u8] {
        let size = self.filter.layout.size();
        let from = to_usize(index).saturating_mul(size);
        self.structs.get(from..from.saturating_add(size)).unwrap_or_default()
    }

    /// Reads the struct pages of a chunk; what cannot be read becomes a hole.
    fn read(&mut self, chunk: Chunk) {
        let size = to_u64(self.filter.layout.size());
        let len = chunk.pages.pages().saturating_mul(size);
        let ahead = chunk.pages.start().0.saturating_sub(chunk.section.start().0).saturating_mul(size);
        self.structs.resize(to_usize(len), 0); // holes keep what they had, and are not looked at
        self.holes.clear();
        let Some(start) = chunk.base.checked_add(ahead) else { return self.holes.push(0..u64::MAX) };
        let mut done = 0_u64;
        while done < len {
            let address = start.checked_add(done).unwrap_or(start);
            let left = len.saturating_sub(done);
            let piece = PIECE.saturating_sub(address.0 & PIECE.saturating_sub(1)).min(left);
            let took = match self.kernel.map(address) {
                Ok(Mapping { phys, left: run, .. }) => {
                    let run = run.min(left);
                    let out = self.structs.get_mut(to_usize(done)..to_usize(done.saturating_add(run)));
                    let out = out.unwrap_or_default();
                    if self.reader.read_exact_at(phys, out).is_ok() {
                        run
                    } else {
                        let piece = piece.min(run);
                        let out = out.get_mut(..to_usize(piece)).unwrap_or_default();
                        match self.reader.read_exact_at(phys, out) {
                            Ok(()) => piece,
                            Err(_) => self.hole(done, piece),
                        }
                    }
                }
                Err(_) => self.hole(done, piece),
            };
            done = done.saturating_add(took.max(1));
        }
    }

    /// Marks the struct pages that have a byte in `len` bytes at `at`.
    fn hole(&mut self, at: u64, len: u64) -> u64 {
        let size = to_u64(self.filter.layout.size().max(1));
        let first = at.checked_div(size).unwrap_or(0);
        let end = at.saturating_add(len).div_ceil(size);
        match self.holes.last_mut() {
            Some(last) if last.end >= first => last.end = end,
            _ => self.holes.push(first..end),
        }
        len
    }

    /// Takes back what cannot be: pages that are the kernel's for sure, and classes that failed the
    /// self-check.
    fn respect_the_kernel(&mut self, pages: PfnRange, out: &mut [PageClass]) {
        if !self.filter.off.is_empty() {
            for class in out.iter_mut().filter(|class| self.filter.off.contains(class)) {
                *class = PageClass::Unknown;
            }
        }
        let vital = &self.filter.vital;
        let skip = vital.partition_point(|range| range.end() <= pages.start());
        for part in vital.iter().skip(skip).map_while(|range| range.intersect(pages)) {
            let index = |pfn: Pfn| to_usize(pfn.0.saturating_sub(pages.start().0));
            let classes = out.get_mut(index(part.start())..index(part.end())).unwrap_or_default();
            // One of them may be broken; none is a balloon's.
            let wrong = |class: &PageClass| !class.is_kernel() || *class == PageClass::Offline;
            for class in classes.iter_mut().filter(|class| wrong(class)) {
                *class = PageClass::Kernel;
                self.stats.vital = self.stats.vital.saturating_add(1);
            }
        }
    }
}

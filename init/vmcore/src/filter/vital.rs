//! Pages that are the kernel's for sure, found without a single struct page: kernel text and data,
//! page tables, the struct pages themselves, the memory sections, the log. Without one of them no
//! reader opens a dump, so no struct page is believed that calls them free or somebody's.

use core::ops::Range;

use crate::kernel::memmap::{Memmap, Section};
use crate::kernel::{Kernel, dmesg};
use crate::source::PhysicalMemory;
use base::addr::{PageSize, Pfn, PfnRange, VirtAddr, to_usize};

/// Symbols in VMCOREINFO that lie in the kernel's initialised data (arch/x86/kernel/vmlinux.lds.S).
const IN_DATA: [&str; 5] = ["init_uts_ns", "swapper_pg_dir", "init_top_pgt", "prb", "printk_rb_static"];
/// Symbols in its text, and in its read-only data (6.0).
const IN_TEXT: [&str; 4] = ["_stext", "kallsyms_names", "kallsyms_token_table", "kallsyms_offsets"];
/// Smallest step through virtual addresses.
const PAGE: u64 = 4096;
/// Pages without memory behind them that are passed over.
const MAX_MISSES: u32 = 1 << 14;
/// Pieces of one range of virtual addresses that are looked at: the largest kernel image has no
/// more pages, and the struct pages of no section have. A damaged log claims any number of bytes,
/// and damaged page tables that lead back to themselves map them all.
const MAX_PIECES: u32 = 1 << 18;
/// Largest distance from `_stext` that such a symbol is believed at: KERNEL_IMAGE_SIZE.
const MAX_IMAGE: u64 = 1 << 30;

/// The pages, as sorted ranges that do not touch.
pub(super) fn discover(kernel: &Kernel<'_>, memory: &dyn PhysicalMemory, memmap: &Memmap) -> Vec<PfnRange> {
    let size = memory.page_size();
    let mut found = Collector { kernel, size, ranges: Vec::new() };
    if let Some((text, data)) = image(kernel) {
        for part in read_only_parts(kernel, text) {
            found.add(part);
        }
        found.add(data);
    }
    found.add_memmap(memmap);
    if let Ok(ring) = dmesg::Ring::discover(kernel) {
        for (start, len) in ring.places() {
            found.add(start..VirtAddr(start.0.saturating_add(len)));
        }
    }
    for table in kernel.page_tables() {
        let pfn = size.pfn_of(table);
        found.ranges.extend(PfnRange::new(pfn, pfn.saturating_add(1)));
    }
    found.joined()
}

/// The pages that hold struct pages, as sorted ranges that do not touch.
pub(super) fn struct_pages(kernel: &Kernel<'_>, memmap: &Memmap) -> Vec<PfnRange> {
    let mut found = Collector { kernel, size: kernel.page_size(), ranges: Vec::new() };
    found.add_memmap(memmap);
    found.joined()
}

/// Where the kernel's text and read-only data begin and where they surely end, and a part of its
/// data.
///
/// Between text, read-only data and data lie gaps, behind the data lies `.init`; the kernel gives
/// all of these away at boot. So the first part is not all the kernel's ([`read_only_parts`]); the
/// second lies between symbols of one section.
pub(super) fn image(kernel: &Kernel<'_>) -> Option<(Range<VirtAddr>, Range<VirtAddr>)> {
    let start = kernel.symbol("_stext").ok()?;
    let is_data = |symbol: &VirtAddr| {
        let near = symbol.0.checked_sub(start.0).is_some_and(|ahead| ahead < MAX_IMAGE);
        near && kernel.map(*symbol).is_ok_and(|mapping| mapping.writable)
    };
    let symbols = IN_DATA.iter().filter_map(|name| kernel.symbol(name).ok()).filter(is_data);
    let data: Vec<VirtAddr> = symbols.collect();
    let (first, last) = (*data.iter().min()?, *data.iter().max()?);
    Some((start..first, first..VirtAddr(last.0.saturating_add(1))))
}

/// The read-only pieces of `image` that hold a known symbol: text and read-only data. The gaps
/// between them are made writable before they are given away, but single pages in them become
/// read-only again in their new use.
fn read_only_parts(kernel: &Kernel<'_>, image: Range<VirtAddr>) -> Vec<Range<VirtAddr>> {
    let known: Vec<_> = IN_TEXT.iter().filter_map(|name| kernel.symbol(name).ok()).collect();
    let mut parts: Vec<Range<VirtAddr>> = Vec::new();
    let mut at = image.start;
    while at < image.end {
        let mapping = kernel.map(at);
        let left = mapping.as_ref().map_or(PAGE, |mapping| mapping.left).max(1);
        let end = VirtAddr(at.0.saturating_add(left)).min(image.end);
        if mapping.is_ok_and(|mapping| !mapping.writable) {
            match parts.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => parts.push(at..end),
            }
        }
        at = end;
    }
    parts.retain(|part| known.iter().any(|symbol| part.contains(symbol)));
    parts
}

/// Collects the pages behind virtual addresses.
struct Collector<'k> {
    kernel: &'k Kernel<'k>,
    size: PageSize,
    ranges: Vec<PfnRange>,
}

impl Collector<'_> {
    fn joined(mut self) -> Vec<PfnRange> {
        PfnRange::sort_and_join(&mut self.ranges);
        self.ranges
    }

    fn add_memmap(&mut self, memmap: &Memmap) {
        for (pages, section) in memmap.sections() {
            if let Section::Online(base) = section {
                let end = base.0.saturating_add(pages.pages().saturating_mul(memmap.struct_size()));
                self.add(base..VirtAddr(end));
            }
        }
    }

    fn add(&mut self, pages: Range<VirtAddr>) {
        let mut at = pages.start;
        let (mut pieces, mut misses) = (0_u32, 0_u32); // a damaged log claims any number of pages
        while at < pages.end && misses < MAX_MISSES && pieces < MAX_PIECES {
            pieces = pieces.saturating_add(1);
            let step = if let Ok(mapping) = self.kernel.map(at) {
                let len = mapping.left.min(pages.end.0.saturating_sub(at.0)).max(1);
                let end = mapping.phys.checked_add(len).unwrap_or(mapping.phys);
                let range = PfnRange::new(self.size.pfn_of(mapping.phys), self.size.pfn_end_of(end));
                match (self.ranges.last_mut(), range) {
                    (Some(last), Some(range)) if last.end() == range.start() => {
                        *last = PfnRange::new(last.start(), range.end()).unwrap_or(*last);
                    }
                    _ => self.ranges.extend(range),
                }
                len
            } else {
                misses = misses.saturating_add(1);
                self.size.bytes()
            };
            let Some(next) = at.checked_add(step) else { return };
            at = next;
        }
    }
}

/// At most `most` of the pages in `ranges`, evenly spread.
pub(super) fn sample(ranges: &[PfnRange], limit: u64) -> impl Iterator<Item = Pfn> + '_ {
    let step = PfnRange::count(ranges).div_ceil(limit.max(1)).max(1);
    let pages = ranges.iter().flat_map(|range| (range.start().0..range.end().0).map(Pfn));
    pages.step_by(to_usize(step)).take(to_usize(limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{Generation, TestKernel};

    #[test]
    fn tables_that_lead_to_themselves_do_not_hold_up_the_capture() {
        let mut kernel = TestKernel::new(Generation::V6_12, 4);
        let start = kernel.loop_page_tables();
        let (_file, core, info) = kernel.core();
        let kernel = Kernel::new(&core, &info, &[]);
        let mut found = Collector { kernel: &kernel, size: core.page_size(), ranges: Vec::new() };
        found.add(VirtAddr(start)..VirtAddr(start + (1 << 38)));
        assert_eq!(found.ranges.len(), usize::try_from(MAX_PIECES).unwrap());
        assert_eq!(PfnRange::count(&found.joined()), 1);
    }
}

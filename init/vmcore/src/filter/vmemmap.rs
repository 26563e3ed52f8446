//! Struct pages that describe only pages which are left out anyway: of a huge machine's kernel-only
//! dump they are the most. Whoever asks crash or drgn for such a struct page gets "excluded" for an
//! answer, so this class is left out on demand only, and the dump's header says so
//! (DUMP_DH_EXCLUDED_VMEMMAP).

use crate::filter::PageFilter;
use base::addr::{Pfn, PfnRange};

impl PageFilter<'_> {
    /// The pages of memory that hold nothing but struct pages of pages in `unit` which are not
    /// kept. `is_kept` tells of a page in it. Appends to `out`.
    pub fn unused_vmemmap(&self, unit: PfnRange, is_kept: impl Fn(Pfn) -> bool, out: &mut Vec<PfnRange>) {
        let page_size = self.memory.page_size();
        let size = self.memmap.struct_size();
        // Only where struct pages do not straddle pages of memory.
        let (Some(per_page), Some(0)) =
            (page_size.bytes().checked_div(size), page_size.bytes().checked_rem(size))
        else {
            return;
        };
        let kernel = self.kernel();
        let mut at = unit.start();
        while let Some(described) = PfnRange::new(at, at.saturating_add(per_page).min(unit.end())) {
            at = described.end();
            let whole = described.pages() == per_page;
            if !whole || (described.start().0..described.end().0).any(|pfn| is_kept(Pfn(pfn))) {
                continue;
            }
            let Some(address) = self.memmap.address_of(described.start()) else { continue };
            if let Ok(phys) = kernel.translate(address) {
                let pfn = page_size.pfn_of(phys);
                if let Some(page) = PfnRange::new(pfn, pfn.saturating_add(1)) {
                    PfnRange::append(out, page);
                }
            }
        }
    }
}

//! Pages that the page allocator never had: the kernel image, per-CPU areas, struct pages, hash
//! tables of the boot. `PG_reserved` has no key in VMCOREINFO, but kernel text has no other flag
//! (`reserve_bootmem_region()`, mm/mm_init.c): the one bit that the struct pages of its first pages
//! share is it.

use crate::filter::vital;
use crate::kernel::Kernel;
use crate::kernel::memmap::Memmap;
use crate::kernel::page::PageLayout;

/// Pages of kernel text that are asked: half of a huge page, in any kernel larger than that.
const ASKED: u64 = 256;
/// They count if so many could be read: less are no proof.
const ENOUGH: u64 = 64;
/// Flags that every kernel has lie here; the last CPU, node and zone lie at the upper end
/// (include/linux/page-flags-layout.h).
const FLAGS: u64 = 0x00ff_ffff;

/// The mask of `PG_reserved`; 0 if it cannot be told.
pub(super) fn mask(kernel: &Kernel<'_>, memmap: &Memmap, layout: &PageLayout) -> u64 {
    let Some((text, _)) = vital::image(kernel) else { return 0 };
    let (mut common, mut read) = (FLAGS, 0_u64);
    let mut bytes = vec![0; layout.size()];
    for page in 0..ASKED {
        let Some(at) = text.start.checked_add(page.saturating_mul(4096)) else { break };
        let Ok(phys) = kernel.translate(at) else { continue };
        let Some(address) = memmap.address_of(kernel.page_size().pfn_of(phys)) else { continue };
        if kernel.read(address, &mut bytes, "the struct page of kernel text").is_ok()
            && let Some(page) = layout.decode(&bytes)
        {
            common &= page.flags;
            read = read.saturating_add(1);
        }
    }
    if read >= ENOUGH && common.is_power_of_two() { common } else { 0 }
}

//! Which pages a dump takes first, so that one that is cut short still opens: what a reader needs
//! before it can show anything, then what describes memory, then the rest.
//!
//! A reader starts with the kernel image, per-CPU areas, page tables, vmalloc memory (kernel
//! stacks, modules), the log and the memory sections, and goes on to tasks and modules, which are
//! slab objects. None of that is found by name here: the kernel image, the boot's memory and slab
//! pages are known by their struct pages, vmalloc memory by the kernel's page tables. Where an
//! order cannot be told, pages keep the order of their addresses.

use crate::filter::{PageClass, PageFilter, vital};
use crate::kernel::Kernel;
use base::addr::{PfnRange, PhysAddr, VirtAddr};

/// Ranges of vmalloc memory that are listed: 1 MiB of them; what does not fit comes later.
const MAX_RANGES: usize = 1 << 16;

/// When a page's turn comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Needed to open the dump and to see tasks, stacks, modules and the log.
    #[default]
    First,
    /// Struct pages: needed to see what memory was used for.
    Memmap,
    /// All others.
    Rest,
}

/// The pages whose turn does not follow from their class. Both lists are sorted and disjoint.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Come first.
    pub first: Vec<PfnRange>,
    /// Hold struct pages.
    pub memmap: Vec<PfnRange>,
    /// Whether pages of the kernel that have no class of their own come first, too: those of the
    /// boot cannot be told from others.
    all_kernel: bool,
    by_class: bool,
}

impl Order {
    /// Finds the order. Without a `filter`, only what page tables map comes first.
    #[must_use]
    pub fn discover(kernel: &Kernel<'_>, filter: Option<&PageFilter<'_>>) -> Self {
        let size = kernel.page_size();
        let page = |addr| PfnRange::block(size.pfn_of(addr), 1);
        let mut found: Vec<PfnRange> = match filter {
            Some(filter) => filter.vital().to_vec(), // with the page tables
            None => kernel.page_tables().into_iter().map(page).collect(),
        };
        let mut linear = None;
        let mut more: Vec<PfnRange> = Vec::new();
        kernel.each_small_mapping(&mut |at: VirtAddr, to: PhysAddr| {
            // The direct map of all memory has the lowest addresses
            // (Documentation/arch/x86/x86_64/mm.rst). It says nothing about what it maps.
            let distance = at.0.wrapping_sub(to.0);
            if distance != *linear.get_or_insert(distance) && more.len() < MAX_RANGES {
                PfnRange::append(&mut more, page(to));
            }
        });
        found.append(&mut more);
        PfnRange::sort_and_join(&mut found);
        let memmap = filter.map(|filter| vital::struct_pages(kernel, filter.memmap())).unwrap_or_default();
        let all_kernel = filter.is_some_and(|filter| !filter.layout.knows_reserved());
        Self { first: found, memmap, all_kernel, by_class: filter.is_some() }
    }

    /// Whether a reader has all that it needs when the first pages had their turn. Without page
    /// classes it has not.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.by_class
    }

    /// Whether pages of `class` come first.
    #[must_use]
    pub fn is_first(&self, class: PageClass) -> bool {
        matches!(class, PageClass::Slab | PageClass::Reserved)
            || (self.all_kernel && class == PageClass::Kernel)
    }
}

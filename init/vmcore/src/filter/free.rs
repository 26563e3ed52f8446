//! Free pages: blocks of the buddy allocator, and memory that a confidential guest never accepted.
//!
//! Pages on per-CPU lists are free, too, but nothing in their struct pages says so: they are kept.

use crate::filter::PageClass;
use crate::kernel::page::{PageInfo, PageLayout};

/// The head of a block. An order beyond the allocator's is damage: then the page is kept, and the
/// block with it.
pub(super) fn class(layout: &PageLayout, page: &PageInfo) -> Option<PageClass> {
    let claimed = layout.is_buddy(page).then(|| layout.free_order(page));
    match claimed {
        Some(Some(_)) => Some(PageClass::Free),
        Some(None) => Some(PageClass::Kernel),
        None => layout.unaccepted_order(page).map(|_| PageClass::Free),
    }
}

/// The order of the block that the page heads.
pub(super) fn order(layout: &PageLayout, page: &PageInfo) -> Option<u32> {
    layout.free_order(page).or_else(|| layout.unaccepted_order(page))
}

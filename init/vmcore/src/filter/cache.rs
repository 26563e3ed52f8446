//! Page cache: pages of files, of tmpfs, and swap cache that belongs to no process any more.

use crate::filter::PageClass;
use crate::kernel::page::{PageInfo, PageLayout};

/// On a reclaim list or in the swap cache, and not anonymous. Pages that are isolated or in a
/// per-CPU batch are on no list for a moment and are kept.
pub(super) fn class(layout: &PageLayout, page: &PageInfo) -> Option<PageClass> {
    let cache = layout.is_lru(page) || layout.is_swap_cache(page);
    let class = if layout.is_private(page) { PageClass::PrivateCache } else { PageClass::Cache };
    (cache && !layout.is_anon(page)).then_some(class)
}

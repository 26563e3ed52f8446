//! Pages with broken memory (PG_hwpoison). Reading one raises a machine check, which stops the
//! capture kernel: no dump at all instead of one without a page.

use crate::filter::PageClass;
use crate::kernel::page::{PageInfo, PageLayout};

/// Asked of every page first, tails too: of a large folio the kernel marks the broken page; of a
/// hugetlb page, the head. A head that is marked therefore stands for all its pages, as
/// makedumpfile has it.
pub(super) fn class(layout: &PageLayout, page: &PageInfo) -> Option<PageClass> {
    layout.is_poisoned(page).then_some(PageClass::Poisoned)
}

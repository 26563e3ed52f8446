//! Memory of processes: anonymous pages, and those of hugetlbfs, which hold little else.

use crate::filter::PageClass;
use crate::kernel::page::{Compound, PageInfo, PageLayout};

/// `mapping` says anonymous, on a list or not; KSM pages say so too.
pub(super) fn anonymous(layout: &PageLayout, page: &PageInfo) -> Option<PageClass> {
    layout.is_anon(page).then_some(PageClass::User)
}

/// Known by the first two struct pages of a compound page. The free ones of the pool count, too.
pub(super) fn hugetlb(compound: Compound) -> Option<PageClass> {
    compound.hugetlb.then_some(PageClass::Hugetlb)
}

//! Logically offline pages: in a balloon, unplugged by virtio-mem, taken by Hyper-V. The hypervisor
//! may have them back: reading one gives nothing, fails, or makes the host allocate it again.

use crate::filter::PageClass;
use crate::kernel::page::{PageInfo, PageLayout};

pub(super) fn class(layout: &PageLayout, page: &PageInfo) -> Option<PageClass> {
    layout.is_offline(page).then_some(PageClass::Offline)
}

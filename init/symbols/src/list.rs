//! The kernel's linked lists (`struct list_head`, include/linux/types.h).

use std::collections::BTreeSet;

use base::addr::VirtAddr;
use vmcore::kernel::Kernel;

/// The entries of the list whose head lies at `head`, at most `limit`: addresses of their
/// `list_head`. A list that cannot be read any further, or that leads back into itself, ends there.
#[must_use]
pub(crate) fn entries(kernel: &Kernel<'_>, head: VirtAddr, limit: usize) -> Vec<VirtAddr> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    let mut at = head;
    while all.len() < limit {
        let Ok(next) = kernel.read_u64(at, "a list") else { break };
        at = VirtAddr(next);
        if at == head || !seen.insert(at) {
            break;
        }
        all.push(at);
    }
    all
}

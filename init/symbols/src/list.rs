//! The kernel's linked lists (`struct list_head`, include/linux/types.h).

use std::collections::BTreeSet;

use base::addr::VirtAddr;
use vmcore::kernel::Kernel;

/// The entries of the list whose head lies at `head`, at most `limit`: addresses of their
/// `list_head`. A list that cannot be read any further, or that leads back into itself, ends there,
/// and is not whole.
#[must_use]
pub fn all(kernel: &Kernel<'_>, head: VirtAddr, limit: usize) -> (Vec<VirtAddr>, bool) {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    let mut at = head;
    loop {
        let Ok(next) = kernel.read_u64(at, "a list") else { return (all, false) };
        at = VirtAddr(next);
        if at == head {
            return (all, true);
        }
        if all.len() >= limit || !seen.insert(at) {
            return (all, false);
        }
        all.push(at);
    }
}

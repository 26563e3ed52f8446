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

/// The same of a list that ends with a null pointer, from the node at `first` on (`struct hlist_node`;
/// the pointer to the next one lies `next` bytes into each).
#[must_use]
pub fn chain(kernel: &Kernel<'_>, first: VirtAddr, next: u64, limit: usize) -> (Vec<VirtAddr>, bool) {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    let mut at = first;
    while at.0 != 0 {
        if all.len() >= limit || !seen.insert(at) {
            return (all, false);
        }
        all.push(at);
        let behind = at.checked_add(next).and_then(|place| kernel.read_u64(place, "a list").ok());
        let Some(behind) = behind else { return (all, false) };
        at = VirtAddr(behind);
    }
    (all, true)
}

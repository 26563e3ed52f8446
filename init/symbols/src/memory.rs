//! Memory of the kernel's image, of which a dump may lack pages.

use base::addr::{VirtAddr, to_u64, to_usize};
use vmcore::kernel::Kernel;

/// Bytes of memory that are read at a time: a page, because the page behind may not be there.
const PAGE: u64 = 4096;

/// `len` bytes from `at` on; zeros where nothing can be read.
pub(crate) fn or_zeros(kernel: &Kernel<'_>, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(len)];
    let mut from = at;
    let mut rest = bytes.as_mut_slice();
    while !rest.is_empty() {
        let take = to_usize(PAGE.saturating_sub(from % PAGE)).min(rest.len());
        let (head, tail) = rest.split_at_mut(take);
        if kernel.read(VirtAddr(from), head, "the kernel's image").is_err() {
            head.fill(0);
        }
        from = from.saturating_add(to_u64(take));
        rest = tail;
    }
    bytes
}

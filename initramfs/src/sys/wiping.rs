//! An allocator that clears memory before it gives it back, once there is a secret in the process.
//!
//! What a process frees goes back to the kernel as it is, and a dump with free pages holds it. A
//! secret is copied where nobody sees it: a `Vec` that grows, text that is put together. Wiping
//! each such place by hand misses some.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

/// The system's allocator, and zeros.
#[derive(Debug)]
pub struct Wiping;

static ON: AtomicBool = AtomicBool::new(false);

/// From now on all memory that is given back is cleared first.
pub fn begin() {
    ON.store(true, Ordering::SeqCst);
}

// SAFETY:
// - Every call goes to `System` with the same arguments, so its guarantees are ours.
// - `dealloc` writes only inside the block that the caller gives back, which nobody uses any more.
// - `realloc` is either `System`'s, or a new block, a copy of the smaller length, and `dealloc` of
//   the old block with its own layout.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if ON.load(Ordering::Relaxed) {
            // SAFETY: the block has `layout.size()` bytes, which are the caller's to give back.
            unsafe { clear(block, layout.size()) };
        }
        // SAFETY: `block` came from `System` with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !ON.load(Ordering::Relaxed) {
            // SAFETY: `block` came from `System` with this layout; the caller's promise about
            // `size` is `System`'s.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, is no more than
        // `isize::MAX`.
        let new_layout = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: `size` is not 0, by the caller's promise.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY:
            // - `block` has `layout.size()` bytes and `new` has `size` bytes: the smaller of both is copied.
            // - `new` was just allocated while `block` is still in use, so they do not overlap.
            unsafe { block.copy_to_nonoverlapping(new, layout.size().min(size)) };
            // SAFETY: `block` came from this allocator with this layout, and is not used any more.
            unsafe { self.dealloc(block, layout) };
        }
        new
    }
}

/// Writes zeros, volatile: nobody reads them again, which is why a compiler would leave plain
/// writes out.
///
/// # Safety
/// `block` must be writable for `len` bytes.
unsafe fn clear(block: *mut u8, len: usize) {
    for at in 0..len {
        // SAFETY: `at` is less than `len`.
        unsafe { block.add(at).write_volatile(0) };
    }
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_cleared_and_one_that_grows_keeps_its_content() {
        begin();
        let mut bytes = [0x5a_u8; 100];
        // SAFETY: the array has 100 bytes.
        unsafe { clear(bytes.as_mut_ptr(), 99) };
        assert!(bytes[..99].iter().all(|&byte| byte == 0) && bytes[99] == 0x5a);
        let layout = Layout::array::<u8>(100).unwrap();
        // SAFETY: a block of 100 bytes, used within them; `realloc` takes it for a larger one,
        // which is freed with its own layout.
        unsafe {
            let block = Wiping.alloc(layout);
            block.write_bytes(0x5a, 100);
            let larger = Wiping.realloc(block, layout, 5000);
            assert!((0..100).all(|at| larger.add(at).read() == 0x5a));
            Wiping.dealloc(larger, Layout::array::<u8>(5000).unwrap());
        }
        ON.store(false, Ordering::SeqCst);
    }
}

//! Memory that remembers the pages that were read last. Walks through the kernel's structures read many
//! small pieces of the same pages, and each read of /proc/vmcore is a system call that maps a page.

use std::sync::Mutex;

use base::addr::{PageSize, PfnRange, PhysAddr, to_u64, to_usize};
use base::lock::lock;

use super::{PageReader, PhysicalMemory, ReadError};

/// Pages that are remembered: 4 MiB of 4 KiB each.
const SLOTS: usize = 1024;

/// Another memory, and some of its pages.
#[expect(missing_debug_implementations, reason = "the memory may be any")]
pub struct Remembered<'a> {
    inner: &'a dyn PhysicalMemory,
    /// By the last digits of its number: which page is there, and its bytes.
    slots: Mutex<Vec<Slot>>,
}

/// A page by its number, once one was read.
type Slot = Option<(u64, Box<[u8]>)>;

impl<'a> Remembered<'a> {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(inner: &'a dyn PhysicalMemory) -> Self {
        Self { inner, slots: Mutex::new(vec![None; SLOTS]) }
    }

    /// Fills `out` from a place within one page.
    fn read(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        let size = self.page_size();
        let pfn = size.pfn_of(addr);
        let start = size.addr_of(pfn).unwrap_or(addr);
        let from = to_usize(addr.0.saturating_sub(start.0));
        let mut slots = lock(&self.slots);
        let index = to_usize(pfn.0) % SLOTS;
        let Some(slot) = slots.get_mut(index) else { return self.inner.read_exact_at(addr, out) };
        if slot.as_ref().is_none_or(|(number, _)| *number != pfn.0) {
            let mut page = vec![0; size.in_memory()].into_boxed_slice();
            if self.inner.read_exact_at(start, &mut page).is_err() {
                // The piece itself may be there, and if it is not the error names it.
                return self.inner.read_exact_at(addr, out);
            }
            *slot = Some((pfn.0, page));
        }
        let piece = slot.as_ref().and_then(|(_, page)| page.get(from..from.saturating_add(out.len())));
        let Some(piece) = piece else { return self.inner.read_exact_at(addr, out) };
        out.copy_from_slice(piece);
        Ok(())
    }
}

impl PhysicalMemory for Remembered<'_> {
    fn page_size(&self) -> PageSize {
        self.inner.page_size()
    }

    fn ranges(&self) -> &[PfnRange] {
        self.inner.ranges()
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        let size = self.page_size().bytes();
        // What is longer than a page is read once.
        if to_u64(out.len()) >= size {
            return self.inner.read_exact_at(addr, out);
        }
        let within = addr.0.checked_rem(size).unwrap_or(0);
        let left = size.saturating_sub(within);
        let (first, second) = out.split_at_mut(to_usize(left).min(out.len()));
        self.read(addr, first)?;
        if second.is_empty() {
            return Ok(());
        }
        let next = addr.checked_add(left).ok_or(ReadError::Hole(addr))?;
        self.read(next, second)
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        self.inner.page_reader()
    }

    fn absent(&self, pages: PfnRange, each: &mut dyn FnMut(PfnRange)) {
        self.inner.absent(pages, each);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::source::testing::CoreFile;
    use crate::source::{Access, Vmcore};

    /// Counts the reads.
    struct Counted<'a>(&'a Vmcore, AtomicUsize);

    impl PhysicalMemory for Counted<'_> {
        fn page_size(&self) -> PageSize {
            self.0.page_size()
        }

        fn ranges(&self) -> &[PfnRange] {
            self.0.ranges()
        }

        fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read_exact_at(addr, out)
        }

        fn page_reader(&self) -> Box<dyn PageReader + '_> {
            self.0.page_reader()
        }
    }

    #[test]
    fn what_is_remembered_is_what_was_there() {
        let bytes: Vec<u8> = (0..3 * 4096_usize).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
        // The pages of the second segment have the same places in the list as those of the first.
        let other: Vec<u8> = bytes.iter().rev().copied().collect();
        let far = 0x10_0000 + to_u64(SLOTS) * 4096;
        let file = CoreFile::new().segment(0x10_0000, &bytes).segment(far, &other).write();
        let core = Vmcore::open(file.path(), Access::Pread).unwrap();
        let counted = Counted(&core, AtomicUsize::new(0));
        let memory = Remembered::new(&counted);
        let read = |addr: u64, len: usize| {
            let (mut one, mut two) = (vec![0; len], vec![0; len]);
            let found = memory.read_exact_at(PhysAddr(addr), &mut one).map_err(|error| error.to_string());
            let expected = core.read_exact_at(PhysAddr(addr), &mut two).map_err(|error| error.to_string());
            assert_eq!(found, expected, "{len} bytes at {addr:#x}");
            assert!(found.is_err() || one == two, "{len} bytes at {addr:#x}");
        };
        for start in [0x10_0000, far] {
            for (at, len) in
                [(0, 8), (1, 4095), (4090, 12), (4096, 4096), (0, 8192), (12_280, 8), (12_281, 8)]
            {
                read(start + at, len);
                read(start + at, len);
            }
        }
        read(0x50_0000, 8);
        let before = counted.1.load(Ordering::Relaxed);
        (0..500).for_each(|at| read(0x10_0000 + at * 8, 8));
        assert_eq!(counted.1.load(Ordering::Relaxed), before + 1, "a page is read once");
    }
}

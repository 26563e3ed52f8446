//! The page tables of a process on x86_64: what each page of its address space leads to
//! (arch/x86/include/asm/pgtable.h).

use std::cell::Cell;

use base::addr::{PageSize, Pfn, PhysAddr};
use vmcore::source::ReadError;

use crate::system::System;

const PRESENT: u64 = 1;
/// `_PAGE_PSE`: a huge page.
const LARGE: u64 = 1 << 7;
/// `_PAGE_PROTNONE`, the bit of `_PAGE_GLOBAL`: there, but nobody may use it.
const PROTNONE: u64 = 1 << 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const TABLE_LEN: usize = 4096;
const PAGE_SHIFT: u32 = 12;
/// A swap entry's type is in the upper bits (`SWP_TYPE_BITS`).
const SWAP_TYPE_SHIFT: u32 = 59;

/// What pages of a process lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Memory, page by page from here on.
    Page(Pfn),
    /// Swap space.
    Swapped,
    /// A page that is being moved, is broken, lies on a device, or a mark without a page.
    Special,
    /// A table could not be read.
    Lost,
}

/// How many steps may still be taken: tables and nodes to be read, whatever leads to them.
#[derive(Debug)]
pub struct Steps(Cell<u64>);

impl Steps {
    /// As many as the largest process of this machine needs: sound tables are pages of memory, and
    /// each is read twice at most.
    #[must_use]
    pub fn new(system: &System<'_>) -> Self {
        Self(Cell::new(system.pages.saturating_mul(16).saturating_add(1 << 10)))
    }

    /// So many.
    #[must_use]
    pub fn at_most(count: u64) -> Self {
        Self(Cell::new(count))
    }

    /// Takes one.
    pub(crate) fn take(&self) -> bool {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }
}

/// Pages that lead to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// What they lead to.
    pub entry: Entry,
}

/// Calls `each` with what the tables say of the addresses from `start` to `end`, by ascending
/// address; pages that lead nowhere are left out.
pub fn walk(
    system: &System<'_>,
    top: PhysAddr,
    (start, end): (u64, u64),
    steps: &Steps,
    each: &mut dyn FnMut(Run),
) {
    let mut walk = Walk { system, start, end, steps, each, swap_files: swap_files(system) };
    walk.descend(top, system.paging.levels, 0);
}

/// `nr_swapfiles`: types of swap entries below it are swap files, those above are special.
fn swap_files(system: &System<'_>) -> u64 {
    let at = system.variables.nr_swapfiles;
    let count = at.and_then(|at| system.kernel.read_u32(at, "nr_swapfiles").ok());
    // There are 32 types, and at least three are special.
    count.map_or(29, u64::from).min(29)
}

struct Walk<'a, 'b> {
    system: &'a System<'b>,
    start: u64,
    end: u64,
    steps: &'a Steps,
    each: &'a mut dyn FnMut(Run),
    swap_files: u64,
}

impl Walk<'_, '_> {
    /// One table, whose first entry is of address `base`. The depth is that of the tables.
    fn descend(&mut self, table: PhysAddr, level: u8, base: u64) {
        let shift = PAGE_SHIFT.saturating_add(9_u32.saturating_mul(u32::from(level).saturating_sub(1)));
        let mut bytes = [0; TABLE_LEN];
        if !self.steps.take() || self.read(table, &mut bytes).is_err() {
            self.tell(base, 512_u64.checked_shl(shift).unwrap_or(u64::MAX), Entry::Lost);
            return;
        }
        let size = 1_u64.wrapping_shl(shift);
        let first = self.start.saturating_sub(base).wrapping_shr(shift).min(512);
        let behind = self.end.saturating_sub(base).div_ceil(size).min(512);
        // The upper half of the top table is the kernel's.
        let behind = if level == self.system.paging.levels { behind.min(256) } else { behind };
        let entries = bytes.chunks_exact(8).filter_map(|entry| entry.try_into().ok()).map(u64::from_le_bytes);
        let range = base::addr::to_usize(first)..base::addr::to_usize(behind);
        for (index, entry) in (0_u64..).zip(entries).take(range.end).skip(range.start) {
            let entry = entry & !self.system.paging.encryption_mask;
            let at = base | index.wrapping_shl(shift);
            if entry == 0 {
                continue;
            }
            let huge = matches!(level, 2 | 3) && entry & LARGE != 0;
            let is_leaf = level == 1 || huge || entry & PRESENT == 0;
            match level.checked_sub(1) {
                Some(below) if !is_leaf => self.descend(PhysAddr(entry & ADDRESS), below, at),
                _ => self.leaf(entry, huge, at, size),
            }
        }
    }

    fn read(&self, table: PhysAddr, bytes: &mut [u8]) -> Result<(), ReadError> {
        self.system.kernel.memory().read_exact_at(table, bytes)
    }

    /// An entry that leads to `size` bytes.
    fn leaf(&mut self, entry: u64, huge: bool, at: u64, size: u64) {
        // A huge page that is being split keeps its bit alone (pmd_present).
        let there = entry & (PRESENT | PROTNONE) != 0 || huge;
        if !there {
            let is_swap = entry.wrapping_shr(SWAP_TYPE_SHIFT) < self.swap_files;
            return self.tell(at, size, if is_swap { Entry::Swapped } else { Entry::Special });
        }
        // What is not present has its address inverted (L1TF, __pte_needs_invert).
        let address = if entry & PRESENT == 0 { !entry } else { entry } & ADDRESS & !size.wrapping_sub(1);
        self.tell(at, size, Entry::Page(PageSize::FOUR_KIB.pfn_of(PhysAddr(address))));
    }

    /// Hands out what lies in the range that was asked for.
    fn tell(&mut self, at: u64, size: u64, entry: Entry) {
        let (start, end) = (at.max(self.start), at.saturating_add(size).min(self.end));
        let pages = end.saturating_sub(start) >> PAGE_SHIFT;
        if pages == 0 {
            return;
        }
        let ahead = start.saturating_sub(at) >> PAGE_SHIFT;
        let entry = match entry {
            Entry::Page(pfn) => Entry::Page(pfn.saturating_add(ahead)),
            other => other,
        };
        (self.each)(Run { start, pages, entry });
    }
}

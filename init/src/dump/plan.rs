//! Which pages go into the dump, and the rank of each: its position among them in PFN order, which is the
//! position of its descriptor.
//!
//! Memory: a few words per memory range. A page filter will make the kept set finer than the ranges; then the
//! prefix counts become one per section, which is what bounds this at any size of RAM.

use crate::addr::{Pfn, PfnRange};
use crate::source::PhysicalMemory;

/// The kept pages of a dump; made once, then immutable.
#[derive(Debug)]
pub(super) struct Plan {
    /// Pages that the source has: bitmap 1.
    present: Vec<PfnRange>,
    max_pfn: Pfn,
    kept: u64,
}

/// Consecutive kept pages and the rank of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) pages: PfnRange,
    pub(super) rank: u64,
}

impl Plan {
    pub(super) fn new(memory: &dyn PhysicalMemory) -> Self {
        let present = memory.ranges().to_vec();
        let kept = present.iter().fold(0_u64, |sum, range| sum.saturating_add(range.pages()));
        Self { present, max_pfn: memory.max_pfn(), kept }
    }

    /// Last page plus one.
    pub(super) fn max_pfn(&self) -> Pfn {
        self.max_pfn
    }

    /// Pages that get a descriptor.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// The pages of bitmap 1 (exists) and, as levels 0 and 1 drop no page's descriptor, of bitmap 2.
    pub(super) fn present(&self) -> &[PfnRange] {
        &self.present
    }

    /// The kept pages in PFN order, at most `batch` at a time and never across a hole.
    pub(super) fn work(&self, batch: u64) -> impl Iterator<Item = Work> + '_ {
        let mut rank = 0_u64;
        self.present.iter().flat_map(move |&range| split(range, batch)).map(move |pages| {
            let work = Work { pages, rank };
            rank = rank.saturating_add(pages.pages());
            work
        })
    }
}

/// Cuts `range` at multiples of `batch`.
fn split(range: PfnRange, batch: u64) -> impl Iterator<Item = PfnRange> {
    let mut rest = Some(range);
    core::iter::from_fn(move || {
        let range = rest?;
        let cut = Pfn(range.start().0.saturating_add(1).checked_next_multiple_of(batch).unwrap_or(u64::MAX));
        let end = cut.min(range.end());
        rest = PfnRange::new(end, range.end());
        PfnRange::new(range.start(), end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::CoreFile;
    use crate::source::{Access, Vmcore};

    #[test]
    fn work_covers_every_page_once_in_rank_order() {
        let file = CoreFile::new().memory(0x3000, 600, 1).memory(0x200_0000, 1, 2).write();
        let core = Vmcore::open(file.path(), Access::Pread).unwrap();
        let plan = Plan::new(&core);
        let work: Vec<Work> = plan.work(256).collect();
        assert_eq!(plan.kept(), 601);
        assert_eq!(work[0].pages, PfnRange::new(Pfn(3), Pfn(256)).unwrap());
        assert!(work.windows(2).all(|pair| pair[1].rank == pair[0].rank + pair[0].pages.pages()));
        let pages: Vec<u64> = work.iter().flat_map(|w| w.pages.start().0..w.pages.end().0).collect();
        let expected: Vec<u64> = (3..603).chain([0x2000]).collect();
        assert_eq!(pages, expected);
    }
}

//! What every source of physical memory promises, checked.

use base::addr::{Pfn, PfnRange};
use vmcore::source::PhysicalMemory;

/// Ranges are not empty, sorted, disjoint and not adjacent, and `max_pfn` is the end of the last
/// one.
pub fn check_ranges(memory: &dyn PhysicalMemory) {
    let ranges = memory.ranges();
    assert!(ranges.iter().all(|range| range.start() < range.end()), "an empty range in {ranges:?}");
    for pair in ranges.windows(2) {
        assert!(
            pair[0].end() < pair[1].start(),
            "{} and {} in the wrong order or adjacent",
            pair[0],
            pair[1]
        );
    }
    assert_eq!(memory.max_pfn(), ranges.last().map_or(Pfn(0), |range| range.end()));
}

/// The first, the second, the middle and the last page of up to 16 ranges.
#[must_use]
pub fn chosen_pages(memory: &dyn PhysicalMemory) -> Vec<Pfn> {
    let of_range = |range: &PfnRange| {
        let (first, last) = (range.start().0, range.end().0 - 1);
        [first, (first + 1).min(last), first + (last - first) / 2, last]
    };
    let ranges = memory.ranges();
    let mut pages: Vec<u64> =
        ranges.iter().take(8).chain(ranges.iter().rev().take(8)).flat_map(of_range).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.into_iter().map(Pfn).collect()
}

/// A page full of a pattern that a reader must overwrite.
#[must_use]
pub fn page(memory: &dyn PhysicalMemory, pattern: u8) -> Vec<u8> {
    vec![pattern; memory.page_size().in_memory()]
}

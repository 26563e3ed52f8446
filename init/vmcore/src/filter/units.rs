//! Scanning all memory, unit by unit, with several threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::filter::{PageClass, PageFilter, ScanStats};
use base::addr::{Pfn, PfnRange};
use base::beat;
use base::lock::lock;

/// Pages of a unit: 128 MiB of 4 KiB pages, a memory section of x86_64. No free block is larger,
/// and its bits fill 4 KiB.
pub const UNIT_PAGES: u64 = 32768;

/// The units that `memory` touches: whole ones, ascending.
#[must_use]
pub fn of(memory: &[PfnRange]) -> Vec<PfnRange> {
    let unit = |pfn: Pfn| pfn.0 / UNIT_PAGES;
    let mut next = 0_u64;
    let mut units = Vec::new();
    for range in memory {
        let first = unit(range.start()).max(next);
        next = unit(Pfn(range.end().0.saturating_sub(1))).saturating_add(1);
        let starts = (first..next).map(|number| Pfn(number.saturating_mul(UNIT_PAGES)));
        units.extend(starts.filter_map(|start| PfnRange::new(start, start.saturating_add(UNIT_PAGES))));
    }
    units
}

/// Classifies the pages of each unit and hands them to `each`, which has a result per unit; the
/// results come in the order of the units. Without a filter all pages are [`PageClass::Unknown`].
pub fn scan<T: Send>(
    filter: Option<&PageFilter<'_>>,
    units: &[PfnRange],
    workers: usize,
    each: impl Fn(PfnRange, &[PageClass]) -> T + Sync,
) -> (Vec<T>, ScanStats) {
    let next = AtomicUsize::new(0);
    let done: Mutex<(Vec<(usize, T)>, ScanStats)> = Mutex::default();
    let work = || {
        let mut scanner = filter.map(PageFilter::scanner);
        let mut classes = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&unit) = units.get(index) else { break };
            match &mut scanner {
                Some(scanner) => scanner.classify(unit, &mut classes),
                None => classes.resize(base::addr::to_usize(unit.pages()), PageClass::Unknown),
            }
            let result = each(unit, &classes);
            beat::alive();
            lock(&done).0.push((index, result));
        }
        if let Some(scanner) = scanner {
            lock(&done).1.merge(&scanner.stats);
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers.min(units.len()) {
            // One that does not start leaves its work to the others; this thread works, too.
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, work) {
                log::warn!("scanning thread not started: {error}");
            }
        }
        work();
    });
    let (mut results, mut stats) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|&(index, _)| index);
    stats.bad_sections.sort_unstable_by_key(|(pages, _)| pages.start());
    (results.into_iter().map(|(_, result)| result).collect(), stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_the_memory_once() {
        let range = |a, b| PfnRange::new(Pfn(a), Pfn(b)).unwrap();
        let units = of(&[range(1, 40), range(50, 32769), range(32770, 32800), range(200_000, 200_001)]);
        let starts: Vec<u64> = units.iter().map(|unit| unit.start().0).collect();
        assert_eq!(starts, [0, 32768, 196_608]);
    }
}

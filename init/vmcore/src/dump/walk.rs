//! Hands out the pages of a plan in the order in which they are to be read.

use crate::dump::bitmap;
use crate::dump::plan::{Loader, Plan, UNIT_BYTES, Unit};
use crate::filter::order::Turn;
use base::addr::{PfnRange, to_u64};

/// In which order pages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sequence {
    /// What readers need most comes first: three walks over all memory, in page order each.
    Vital,
    /// Page order: for formats whose file grows with the pages.
    Address,
}

/// Kept pages that follow each other, in memory and in the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The pages.
    pub(super) pages: PfnRange,
    /// Rank of the first.
    pub(super) rank: u64,
}

/// A walk over the kept pages.
pub(super) struct Walk<'p, 'f> {
    plan: &'p Plan<'f>,
    sequence: Sequence,
    turn: Turn,
    /// The unit after the one that is walked through.
    next: usize,
    loader: Loader<'p, 'f>,
    /// Bits of the unit's pages whose turn it is.
    todo: Box<[u8; UNIT_BYTES]>,
    at: u64,
    /// Rank of the first kept page from bit `counted` of the unit on.
    rank: u64,
    counted: u64,
    pages: Vec<PfnRange>,
}

impl<'p, 'f> Walk<'p, 'f> {
    /// A walk from the start.
    pub(super) fn new(plan: &'p Plan<'f>, sequence: Sequence) -> Self {
        Self {
            plan,
            sequence,
            turn: if sequence == Sequence::Vital { Turn::First } else { Turn::Rest },
            next: 0,
            loader: Loader::new(plan),
            todo: Box::new([0; UNIT_BYTES]),
            at: 0,
            rank: 0,
            counted: 0,
            pages: Vec::new(),
        }
    }

    /// Puts up to `most` of the next pages into `runs`, all of one turn, and says which.
    pub(super) fn next(&mut self, limit: u64, runs: &mut Vec<Run>) -> Option<Turn> {
        runs.clear();
        loop {
            if let Some(unit) = self.unit() {
                self.pages.clear();
                let start = unit.pages().start();
                if bitmap::take_runs(&*self.todo, start, &mut self.at, limit, &mut self.pages).is_some() {
                    for &pages in &self.pages {
                        let bit = pages.start().0.saturating_sub(start.0);
                        let before = bitmap::count_between(&self.loader.sets.kept, self.counted, bit);
                        (self.rank, self.counted) = (self.rank.saturating_add(before), bit);
                        runs.push(Run { pages, rank: self.rank });
                    }
                    return Some(self.turn);
                }
                let bits = to_u64(UNIT_BYTES).saturating_mul(8);
                let before = bitmap::count_between(&self.loader.sets.kept, self.counted, bits);
                self.rank = self.rank.saturating_add(before);
            }
            self.turn_to_next()?;
        }
    }

    fn unit(&self) -> Option<&'p Unit> {
        self.plan.units().get(self.next.checked_sub(1)?)
    }

    /// Goes to the next unit that has pages whose turn it is, in this walk or in the next.
    fn turn_to_next(&mut self) -> Option<()> {
        loop {
            let Some(unit) = self.plan.units().get(self.next) else {
                self.turn = match self.turn {
                    Turn::First => Turn::Memmap,
                    Turn::Memmap => Turn::Rest,
                    Turn::Rest => return None,
                };
                (self.next, self.rank) = (0, 0);
                continue;
            };
            self.next = self.next.saturating_add(1);
            if self.has_none(unit) {
                self.rank = self.rank.saturating_add(unit.kept());
                continue;
            }
            (self.at, self.counted) = (0, 0);
            if !self.loader.load(unit) {
                // Lost. The ranks of its pages stay empty.
                self.rank = self.rank.saturating_add(unit.kept());
            }
            self.choose(unit);
            return Some(());
        }
    }

    fn has_none(&self, unit: &Unit) -> bool {
        unit.kept() == 0
            || match self.turn {
                Turn::First => unit.first() == 0,
                Turn::Memmap => !PfnRange::touches(&self.plan.order().memmap, unit.pages()),
                Turn::Rest => self.sequence == Sequence::Vital && unit.first() == unit.kept(),
            }
    }

    /// Chooses the pages of the unit whose turn it is.
    fn choose(&mut self, unit: &Unit) {
        let (start, sets) = (unit.pages().start(), &self.loader.sets);
        let memmap = &self.plan.order().memmap;
        match (self.turn, self.sequence) {
            (Turn::First, _) => *self.todo = sets.first,
            (Turn::Memmap, _) => {
                bitmap::fill(memmap, start, &mut *self.todo);
                bitmap::intersect(&mut *self.todo, &sets.kept);
            }
            (Turn::Rest, Sequence::Address) => *self.todo = sets.kept,
            (Turn::Rest, Sequence::Vital) => {
                *self.todo = sets.kept;
                bitmap::clear(memmap, start, &mut *self.todo);
                bitmap::subtract(&mut *self.todo, &sets.first);
            }
        }
    }
}

impl core::fmt::Debug for Walk<'_, '_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Walk").field("turn", &self.turn).field("next", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::dump::plan::Rule;
    use crate::filter::PageFilter;
    use crate::filter::order::Order;
    use crate::kernel::Kernel;
    use crate::kernel::testing::{Generation, PAGES, TestKernel};
    use crate::source::Core;
    use base::addr::Pfn;
    use base::config::DumpLevel;

    fn pages(walk: &mut Walk<'_, '_>) -> Vec<(Turn, u64, u64)> {
        let (mut runs, mut out) = (Vec::new(), Vec::new());
        while let Some(turn) = walk.next(100, &mut runs) {
            assert!(runs.iter().map(|run| run.pages.pages()).sum::<u64>() <= 100);
            for run in &runs {
                let ranks = run.rank..;
                out.extend(
                    (run.pages.start().0..run.pages.end().0).zip(ranks).map(|(pfn, rank)| (turn, pfn, rank)),
                );
            }
        }
        out
    }

    #[test]
    fn each_page_comes_once_with_its_rank_and_what_readers_need_comes_first() {
        let mut kernel = TestKernel::new(Generation::V6_12, 4);
        kernel.free(0x600, 9);
        kernel.slab(0xa00, 2);
        let (_file, core, info) = kernel.core();
        let filter = PageFilter::discover(&core, &info, core.mappings(), &mut |_| ()).unwrap();
        let order = Order::discover(&Kernel::new(&core, &info, core.mappings()), Some(&filter));
        for (level, budget) in [(0, 1 << 20), (31, 1 << 20), (31, 0)] {
            let rule =
                Rule { filter: Some(&filter), exclude: DumpLevel::new(level).unwrap().into(), order: &order };
            let plan = Plan::new(&core, rule, &Budget { workers: 1, plan: budget });
            let by_address = pages(&mut Walk::new(&plan, Sequence::Address));
            let vital = pages(&mut Walk::new(&plan, Sequence::Vital));
            assert_eq!(
                by_address.iter().map(|page| page.2).collect::<Vec<_>>(),
                (0..plan.kept()).collect::<Vec<_>>()
            );
            assert!(vital.is_sorted_by_key(|&(turn, pfn, _)| (turn, pfn)));
            let mut same: Vec<_> = vital.iter().map(|&(_, pfn, rank)| (pfn, rank)).collect();
            same.sort_unstable();
            assert_eq!(same, by_address.iter().map(|&(_, pfn, rank)| (pfn, rank)).collect::<Vec<_>>());
            let mut classes = Vec::new();
            filter.scanner().classify(PfnRange::block(Pfn(0), PAGES), &mut classes);
            for &(turn, pfn, _) in &vital {
                let page = PfnRange::block(Pfn(pfn), 1);
                let memmap = PfnRange::touches(&order.memmap, page);
                let first = PfnRange::touches(&order.first, page)
                    || order.is_first(classes[usize::try_from(pfn).unwrap()]);
                let expected = if memmap {
                    Turn::Memmap
                } else if first {
                    Turn::First
                } else {
                    Turn::Rest
                };
                assert_eq!(turn, expected, "page {pfn:#x}");
            }
            assert!(PfnRange::count(filter.vital()) > 0 && vital[0].0 == Turn::First);
        }
    }
}

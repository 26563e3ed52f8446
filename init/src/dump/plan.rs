//! Which pages go into the dump, in page order; a page's position among them is its rank, which is the place of its
//! descriptor.
//!
//! Memory: a bit per page (32 MiB for a TiB), less for units that are kept whole or dropped whole, and never more
//! than the budget allows: the bits of further units are found again by scanning their struct pages again when
//! their pages are read. The crashed kernel's memory stands still, so the second scan finds what the first did; where it
//! does not (a device still writes), the unit's pages are marked as lost rather than put in wrong places.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::addr::{Pfn, PfnRange, to_u64, to_usize};
use crate::budget::Budget;
use crate::config::Exclude;
use crate::dump::bitmap;
use crate::filter::units;
use crate::filter::{ClassCounts, PageClass, PageFilter, ScanStats};
use crate::source::PhysicalMemory;

/// Bytes of a unit's bits.
const UNIT_BYTES: usize = 4096;
/// Bytes that are always taken to list struct pages of pages that are left out.
const MIN_UNUSED: u64 = 1 << 20;
/// Poisoned and offline runs that are listed.
const MAX_WITHHELD: usize = 4096;

/// What decides about the pages of a dump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule<'f> {
    /// Tells page classes; without it no page is dropped by its class.
    pub(super) filter: Option<&'f PageFilter<'f>>,
    /// The classes to drop.
    pub(super) exclude: Exclude,
}

/// The kept pages of a dump; made once, then immutable.
#[derive(Debug)]
pub(super) struct Plan<'f> {
    rule: Rule<'f>,
    memory: Memory<'f>,
    units: Vec<Unit>,
    kept: u64,
    /// Struct pages that are dropped because all that they describe is, sorted.
    unused: Vec<PfnRange>,
    /// What the scan found.
    pub(super) found: Found,
}

/// What a scan of all memory found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Pages by class.
    pub classes: ClassCounts,
    /// Poisoned and offline pages, which are not read.
    pub withheld: Vec<PfnRange>,
    /// Damage.
    pub damage: ScanStats,
}

/// The memory that a plan is about.
#[derive(Clone, Copy)]
struct Memory<'m>(&'m dyn PhysicalMemory);

impl core::fmt::Debug for Memory<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Memory")
    }
}

/// [`units::UNIT_PAGES`] pages.
#[derive(Debug)]
struct Unit {
    pages: PfnRange,
    kept: u64,
    bits: Bits,
    /// Its struct pages have changed since they were scanned first: which pages are kept cannot be told any more.
    changed: AtomicBool,
}

/// Which pages of a unit are kept.
#[derive(Debug)]
enum Bits {
    /// All that the source has.
    Present,
    None,
    Held(Box<[u8]>),
    /// To be found again; with the check sum of the bits.
    Forgotten(u32),
}

/// Bytes that may still be taken for bits.
struct Room(u64);

impl Room {
    /// The bits themselves while there is room, their check sum from then on.
    fn hold(&mut self, bits: Vec<u8>) -> Bits {
        match self.0.checked_sub(to_u64(bits.len())) {
            Some(left) => {
                self.0 = left;
                Bits::Held(bits.into_boxed_slice())
            }
            None => Bits::Forgotten(crc32fast::hash(&bits)),
        }
    }
}

/// What the first scan learns of a unit.
struct Scanned {
    bits: Vec<u8>,
    present: u64,
    kept: u64,
    classes: ClassCounts,
    withheld: Vec<PfnRange>,
    unused: Vec<PfnRange>,
}

impl<'f> Plan<'f> {
    /// Scans all memory.
    pub(super) fn new(
        memory: &'f dyn PhysicalMemory,
        rule: Rule<'f>,
        budget: &Budget,
        heartbeat: &(dyn Fn() + Sync),
    ) -> Self {
        let units = units::of(memory.ranges());
        let room = Mutex::new(Room(budget.plan));
        let (listed, unused) = (AtomicUsize::new(0), AtomicU64::new(0));
        let each = |unit: PfnRange, classes: &[PageClass]| {
            let mut scanned = rule.decide(memory, unit, classes);
            // Lists of all units together stay within the budget, too: what does not fit is not listed, or kept.
            scanned.withheld.truncate(MAX_WITHHELD.saturating_sub(listed.load(Ordering::Relaxed)));
            listed.fetch_add(scanned.withheld.len(), Ordering::Relaxed);
            let bytes = to_u64(scanned.unused.len().saturating_mul(size_of::<PfnRange>()));
            if unused.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > budget.plan.max(MIN_UNUSED)
            {
                scanned.unused.clear();
            }
            let bits = core::mem::take(&mut scanned.bits);
            let bits = match scanned.kept {
                0 => Bits::None,
                all if all == scanned.present => Bits::Present,
                _ => room.lock().unwrap_or_else(PoisonError::into_inner).hold(bits),
            };
            (Unit { pages: unit, kept: scanned.kept, bits, changed: AtomicBool::new(false) }, scanned)
        };
        let (scanned, damage) = units::scan(rule.filter, &units, budget.workers, heartbeat, each);
        let mut plan = Self {
            rule,
            memory: Memory(memory),
            units: Vec::with_capacity(scanned.len()),
            kept: 0,
            unused: Vec::new(),
            found: Found { damage, ..Found::default() },
        };
        for (unit, scanned) in scanned {
            plan.found.classes.merge(&scanned.classes);
            for range in scanned.withheld {
                PfnRange::append(&mut plan.found.withheld, range);
            }
            plan.found.withheld.truncate(MAX_WITHHELD);
            for range in scanned.unused {
                PfnRange::append(&mut plan.unused, range);
            }
            plan.units.push(unit);
        }
        plan.drop_unused_vmemmap(room.into_inner().unwrap_or_else(PoisonError::into_inner));
        plan.kept = plan.units.iter().fold(0, |sum, unit| sum.saturating_add(unit.kept));
        plan
    }

    /// Last page plus one.
    pub(super) fn max_pfn(&self) -> Pfn {
        self.memory.0.max_pfn()
    }

    /// Pages that get a descriptor.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// Pages that the source has.
    pub(super) fn present(&self) -> u64 {
        PfnRange::count(self.memory.0.ranges())
    }

    /// The pages of a unit whose kept pages cannot be told any more: as many, to have them marked as lost.
    pub(super) fn stand_in(&self, unit: PfnRange, kept: u64) -> Vec<u8> {
        let (mut bits, mut out) = (vec![0; UNIT_BYTES], Vec::new());
        bitmap::fill(self.memory.0.ranges(), unit.start(), &mut bits);
        bitmap::take_runs(&bits, unit.start(), &mut 0, kept, &mut out);
        bitmap::fill(&out, unit.start(), &mut bits);
        bits
    }

    /// The block of bitmap 1 (exists) whose first bit is page `first`.
    pub(super) fn present_bits(&self, first: Pfn, block: &mut [u8]) {
        bitmap::fill(self.memory.0.ranges(), first, block);
    }

    /// A walk over the kept pages, in order.
    pub(super) fn walk(&self) -> Walk<'_, 'f> {
        Walk { plan: self, unit: 0, bits: Vec::new(), at: 0, rank: 0 }
    }

    /// Struct pages of pages that are not kept lie in other units than these pages: only a second pass can drop them.
    fn drop_unused_vmemmap(&mut self, mut room: Room) {
        if self.unused.is_empty() {
            return;
        }
        self.unused.sort_unstable_by_key(|range| range.start());
        let mut dropped = 0_u64;
        for index in 0..self.units.len() {
            let Some(unit) = self.units.get(index) else { break };
            let pages = unit.pages;
            if !touches(&self.unused, pages) || unit.kept == 0 {
                continue;
            }
            let Some(mut bits) = self.bits_of(unit) else { continue };
            bitmap::clear(&self.unused, pages.start(), &mut bits);
            let kept = bitmap::count(&bits);
            dropped = dropped.saturating_add(unit.kept.saturating_sub(kept));
            let bits = match unit.bits {
                Bits::Forgotten(_) => Bits::Forgotten(crc32fast::hash(&bits)),
                Bits::Held(_) => Bits::Held(bits.into_boxed_slice()),
                Bits::Present | Bits::None => room.hold(bits),
            };
            if let Some(unit) = self.units.get_mut(index) {
                *unit = Unit { pages, kept, bits, changed: AtomicBool::new(false) };
            }
        }
        // Struct pages are kernel memory by their own struct pages.
        self.found.classes.reassign(PageClass::Kernel, PageClass::UnusedVmemmap, dropped);
    }

    /// The bits of a unit; `None` if they are not what they were.
    fn bits_of(&self, unit: &Unit) -> Option<Vec<u8>> {
        let mut bits = vec![0; UNIT_BYTES];
        match &unit.bits {
            Bits::None => (),
            Bits::Present => bitmap::fill(self.memory.0.ranges(), unit.pages.start(), &mut bits),
            Bits::Held(held) => bits.clone_from_slice(held.get(..UNIT_BYTES)?),
            Bits::Forgotten(check) => {
                let mut classes = Vec::new();
                if let Some(filter) = self.rule.filter {
                    filter.scanner().classify(unit.pages, &mut classes);
                }
                bits = self.rule.decide(self.memory.0, unit.pages, &classes).bits;
                if crc32fast::hash(&bits) != *check {
                    bitmap::clear(&self.unused, unit.pages.start(), &mut bits);
                }
                if crc32fast::hash(&bits) != *check || unit.changed.load(Ordering::Relaxed) {
                    unit.changed.store(true, Ordering::Relaxed);
                    return None;
                }
            }
        }
        Some(bits)
    }
}

impl Rule<'_> {
    /// The pages of a unit that are kept, and what was found on the way.
    fn decide(&self, memory: &dyn PhysicalMemory, unit: PfnRange, classes: &[PageClass]) -> Scanned {
        let mut bits = vec![0; UNIT_BYTES];
        bitmap::fill(memory.ranges(), unit.start(), &mut bits);
        let present = bitmap::count(&bits);
        memory.absent(unit, &mut |gone| bitmap::clear(&[gone], unit.start(), &mut bits));
        let mut counts = ClassCounts::default();
        let mut withheld = Vec::new();
        for run in bitmap::runs(&bits.clone(), unit.start()) {
            let index = |pfn: Pfn| to_usize(pfn.0.saturating_sub(unit.start().0));
            let classes = classes.get(index(run.start())..index(run.end())).unwrap_or_default();
            let mut at = run.start();
            for same in classes.chunk_by(|a, b| a == b) {
                let pages = to_u64(same.len());
                let range = PfnRange::new(at, at.saturating_add(pages));
                at = at.saturating_add(pages);
                let (Some(&class), Some(range)) = (same.first(), range) else { continue };
                counts.add(class, pages);
                if class.is_dropped(self.exclude) {
                    bitmap::clear(&[range], unit.start(), &mut bits);
                    if matches!(class, PageClass::Poisoned | PageClass::Offline) {
                        withheld.push(range);
                    }
                }
            }
        }
        let mut unused = Vec::new();
        if let Some(filter) = self.filter.filter(|_| self.exclude.unused_vmemmap()) {
            filter.unused_vmemmap(unit, |pfn| bitmap::get(&bits, unit.start(), pfn), &mut unused);
        }
        let kept = bitmap::count(&bits);
        Scanned { bits, present, kept, classes: counts, withheld, unused }
    }
}

/// Hands out the kept pages.
#[derive(Debug)]
pub(super) struct Walk<'p, 'f> {
    plan: &'p Plan<'f>,
    unit: usize,
    /// Bits of the unit before `unit`.
    bits: Vec<u8>,
    at: u64,
    rank: u64,
}

impl Walk<'_, '_> {
    /// The bits of the next unit that has memory, with its pages and how many are kept; `None` for bits means that the
    /// kept pages cannot be told any more.
    pub(super) fn next_unit(&mut self) -> Option<(PfnRange, u64, Option<Vec<u8>>)> {
        let unit = self.plan.units.get(self.unit)?;
        self.unit = self.unit.saturating_add(1);
        Some((unit.pages, unit.kept, self.plan.bits_of(unit)))
    }

    /// Puts up to `most` of the next kept pages into `pages`, and says the rank of the first and how many there are.
    /// With pages that are lost, `pages` is empty.
    pub(super) fn next(&mut self, most: u64, pages: &mut Vec<PfnRange>) -> Option<Work> {
        pages.clear();
        loop {
            let unit = self.unit.checked_sub(1).and_then(|unit| self.plan.units.get(unit));
            if let Some(unit) = unit
                && let Some(count) =
                    bitmap::take_runs(&self.bits, unit.pages.start(), &mut self.at, most, pages)
            {
                let work = Work { rank: self.rank, pages: count };
                self.rank = self.rank.saturating_add(count);
                return Some(work);
            }
            let (_, kept, bits) = self.next_unit()?;
            self.at = 0;
            if let Some(bits) = bits {
                self.bits = bits;
            } else {
                self.bits.clear();
                let work = Work { rank: self.rank, pages: kept };
                self.rank = self.rank.saturating_add(kept);
                return Some(work);
            }
        }
    }
}

/// Consecutive kept pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// Rank of the first.
    pub(super) rank: u64,
    /// How many.
    pub(super) pages: u64,
}

/// Whether one of the sorted `ranges` has a page of `pages`.
fn touches(ranges: &[PfnRange], pages: PfnRange) -> bool {
    let first = ranges.partition_point(|range| range.end() <= pages.start());
    ranges.get(first).is_some_and(|range| range.intersect(pages).is_some())
}

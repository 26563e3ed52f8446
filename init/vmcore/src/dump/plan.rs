//! Which pages go into the dump. A page's position among them, in page order, is its rank: the
//! place of its descriptor. The order in which they are read is another ([`Walk`]).
//!
//! Memory: two bits per page, never more than the budget allows: the bits of further units are
//! found again by scanning their struct pages again when their pages are read. The crashed kernel's
//! memory stands still, so the second scan finds what the first did; where it does not (a device
//! still writes), the unit's pages count as lost rather than be put in wrong places.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::budget::Budget;
use crate::dump::bitmap;
use crate::filter::order::Order;
use crate::filter::units::{self, UNIT_PAGES};
use crate::filter::{ClassCounts, PageClass, PageFilter, ScanStats, Scanner};
use crate::source::PhysicalMemory;
use base::addr::{Pfn, PfnRange, to_u64, to_usize};
use base::config::Exclude;
use base::lock::lock;

pub(super) use crate::dump::walk::{Run, Sequence, Walk};

/// Bytes of a unit's bits.
pub(super) const UNIT_BYTES: usize = 4096;
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
    /// Which pages come first.
    pub(super) order: &'f Order,
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

/// [`UNIT_PAGES`] pages. There is one for each 128 MiB of memory, so it is small.
#[derive(Debug)]
pub(super) struct Unit {
    /// The first page, in units.
    number: u32,
    /// Pages that are kept.
    kept: u32,
    /// Of these, pages that come first.
    first: u32,
    bits: Bits,
    /// Its struct pages have changed since they were scanned first: which pages are kept cannot be
    /// told any more.
    changed: AtomicBool,
}

/// Which pages of a unit are kept, and which come first.
#[derive(Debug)]
enum Bits {
    None,
    Held(Box<Sets>),
    /// To be found again; with the check sum of the bits.
    Forgotten(u32),
}

/// Bits of a unit's pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sets {
    /// Pages that are kept.
    pub(super) kept: [u8; UNIT_BYTES],
    /// Of these, pages that come first by their class.
    pub(super) first: [u8; UNIT_BYTES],
}

impl Default for Sets {
    fn default() -> Self {
        Self { kept: [0; UNIT_BYTES], first: [0; UNIT_BYTES] }
    }
}

impl Sets {
    fn check(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.kept);
        hasher.update(&self.first);
        hasher.finalize()
    }

    fn clear(&mut self, ranges: &[PfnRange], unit: PfnRange) {
        bitmap::clear(ranges, unit.start(), &mut self.kept);
        bitmap::clear(ranges, unit.start(), &mut self.first);
    }
}

impl Unit {
    fn new(pages: PfnRange, sets: Box<Sets>, room: &mut Room) -> Self {
        let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let (kept, first) = (small(bitmap::count(&sets.kept)), small(bitmap::count(&sets.first)));
        let bits = if kept == 0 { Bits::None } else { room.hold(sets) };
        let number = small(pages.start().0 / UNIT_PAGES);
        Self { number, kept, first, bits, changed: AtomicBool::new(false) }
    }

    /// Its pages.
    pub(super) fn pages(&self) -> PfnRange {
        let start = Pfn(u64::from(self.number).saturating_mul(UNIT_PAGES));
        PfnRange::block(start, UNIT_PAGES)
    }

    /// Pages that are kept.
    pub(super) fn kept(&self) -> u64 {
        self.kept.into()
    }

    /// Of these, pages that come first by their class.
    pub(super) fn first(&self) -> u64 {
        self.first.into()
    }
}

/// Bytes that may still be taken for bits.
struct Room(u64);

impl Room {
    /// The bits themselves while there is room, their check sum from then on.
    fn hold(&mut self, sets: Box<Sets>) -> Bits {
        match self.0.checked_sub(to_u64(size_of::<Sets>())) {
            Some(left) => {
                self.0 = left;
                Bits::Held(sets)
            }
            None => Bits::Forgotten(sets.check()),
        }
    }
}

/// What the scans of all units bring together.
struct Gathered {
    room: Room,
    found: Found,
    unused: Vec<PfnRange>,
    /// Bytes that `unused` may take.
    unused_room: u64,
}

impl Gathered {
    /// Lists of all units together stay within the budget, too: what does not fit is not listed, or
    /// kept.
    fn add(&mut self, scanned: Scanned) -> Box<Sets> {
        self.found.classes.merge(&scanned.classes);
        let room = MAX_WITHHELD.saturating_sub(self.found.withheld.len());
        self.found.withheld.extend(scanned.withheld.into_iter().take(room));
        let bytes = to_u64(scanned.unused.len().saturating_mul(size_of::<PfnRange>()));
        if let Some(left) = self.unused_room.checked_sub(bytes) {
            self.unused_room = left;
            self.unused.extend(scanned.unused);
        }
        scanned.sets
    }
}

/// What a scan learns of a unit.
struct Scanned {
    sets: Box<Sets>,
    classes: ClassCounts,
    withheld: Vec<PfnRange>,
    unused: Vec<PfnRange>,
}

impl<'f> Plan<'f> {
    /// Scans all memory.
    pub(super) fn new(memory: &'f dyn PhysicalMemory, rule: Rule<'f>, budget: &Budget) -> Self {
        let gathered = Mutex::new(Gathered {
            room: Room(budget.plan),
            found: Found::default(),
            unused: Vec::new(),
            unused_room: budget.plan.max(MIN_UNUSED),
        });
        let each = |unit: PfnRange, classes: &[PageClass]| {
            let scanned = rule.decide(memory, unit, classes);
            let mut gathered = lock(&gathered);
            let sets = gathered.add(scanned);
            Unit::new(unit, sets, &mut gathered.room)
        };
        let (units, damage) = units::scan(rule.filter, &units::of(memory.ranges()), budget.workers, each);
        let Gathered { room, mut found, mut unused, .. } =
            gathered.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.damage = damage;
        PfnRange::sort_and_join(&mut found.withheld);
        PfnRange::sort_and_join(&mut unused);
        let mut plan = Self { rule, memory: Memory(memory), units, kept: 0, unused, found };
        plan.drop_unused_vmemmap(room);
        plan.kept = plan.units.iter().fold(0, |sum, unit| sum.saturating_add(unit.kept()));
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

    /// What decides.
    pub(super) fn order(&self) -> &'f Order {
        self.rule.order
    }

    /// The units that have memory, in order.
    pub(super) fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The block of bitmap 1 (exists) whose first bit is page `first`.
    pub(super) fn present_bits(&self, first: Pfn, block: &mut [u8]) {
        bitmap::fill(self.memory.0.ranges(), first, block);
    }

    /// Calls `each` with the units in order: the pages of each and the bits of those that have a
    /// descriptor.
    pub(super) fn each_unit<E>(
        &self,
        mut each: impl FnMut(PfnRange, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut loader = Loader::new(self);
        for unit in &self.units {
            if !loader.load(unit) {
                self.stand_in(unit, &mut loader.sets.kept);
            }
            each(unit.pages(), &loader.sets.kept)?;
        }
        Ok(())
    }

    /// Makes up the bits of a unit whose kept pages are not known any more. As many bits are set as
    /// pages were counted, so that the file stays consistent; these pages are marked as lost.
    fn stand_in(&self, unit: &Unit, bits: &mut [u8]) {
        let (start, mut out) = (unit.pages().start(), Vec::new());
        bitmap::fill(self.memory.0.ranges(), start, bits);
        bitmap::take_runs(bits, start, &mut 0, unit.kept(), &mut out);
        bitmap::fill(&out, start, bits);
    }

    /// Struct pages of pages that are not kept lie in other units than these pages: only a second
    /// pass can drop them.
    fn drop_unused_vmemmap(&mut self, mut room: Room) {
        if self.unused.is_empty() {
            return;
        }
        let mut dropped = 0_u64;
        for index in 0..self.units.len() {
            let Some(unit) = self.units.get(index) else { break };
            let pages = unit.pages();
            if !PfnRange::touches(&self.unused, pages) || unit.kept == 0 {
                continue;
            }
            let mut loader = Loader::new(self);
            if !loader.load(unit) {
                continue;
            }
            let mut sets = loader.sets;
            sets.clear(&self.unused, pages);
            let before = unit.kept();
            if matches!(unit.bits, Bits::Held(_)) {
                room.0 = room.0.saturating_add(to_u64(size_of::<Sets>()));
            }
            let changed = Unit::new(pages, sets, &mut room);
            dropped = dropped.saturating_add(before.saturating_sub(changed.kept()));
            if let Some(unit) = self.units.get_mut(index) {
                *unit = changed;
            }
        }
        // Struct pages are of the boot, or the kernel's where memory was added later.
        let classes = &mut self.found.classes;
        let reserved = dropped.min(classes.of(PageClass::Reserved));
        classes.reassign(PageClass::Reserved, PageClass::UnusedVmemmap, reserved);
        classes.reassign(PageClass::Kernel, PageClass::UnusedVmemmap, dropped.saturating_sub(reserved));
    }
}

/// Finds the bits of units.
pub(super) struct Loader<'p, 'f> {
    plan: &'p Plan<'f>,
    scanner: Option<Scanner<'f>>,
    classes: Vec<PageClass>,
    /// Those of the last unit that was loaded.
    pub(super) sets: Box<Sets>,
}

impl<'p, 'f> Loader<'p, 'f> {
    pub(super) fn new(plan: &'p Plan<'f>) -> Self {
        Self { plan, scanner: None, classes: Vec::new(), sets: Box::default() }
    }

    /// Loads the bits of a unit. `false`: they are not what they were, and there are none.
    pub(super) fn load(&mut self, unit: &Unit) -> bool {
        match &unit.bits {
            Bits::None => *self.sets = Sets::default(),
            Bits::Held(held) => self.sets.clone_from(held),
            Bits::Forgotten(check) => {
                let again = self.scan_again(unit.pages(), *check);
                if !again || unit.changed.load(Ordering::Relaxed) {
                    unit.changed.store(true, Ordering::Relaxed);
                    *self.sets = Sets::default();
                    return false;
                }
            }
        }
        true
    }

    fn scan_again(&mut self, pages: PfnRange, check: u32) -> bool {
        let Plan { rule, memory, unused, .. } = self.plan;
        self.classes.clear();
        if let Some(filter) = rule.filter {
            self.scanner.get_or_insert_with(|| filter.scanner()).classify(pages, &mut self.classes);
        }
        self.sets = rule.decide(memory.0, pages, &self.classes).sets;
        if self.sets.check() != check {
            self.sets.clear(unused, pages);
        }
        self.sets.check() == check
    }
}

impl Rule<'_> {
    /// The pages of a unit that are kept, and what was found on the way.
    fn decide(&self, memory: &dyn PhysicalMemory, unit: PfnRange, classes: &[PageClass]) -> Scanned {
        let mut sets: Box<Sets> = Box::default();
        let Sets { kept, first } = &mut *sets;
        bitmap::fill(memory.ranges(), unit.start(), kept);
        memory.absent(unit, &mut |gone| bitmap::clear(&[gone], unit.start(), kept));
        let mut counts = ClassCounts::default();
        let mut withheld = Vec::new();
        for run in bitmap::runs(&kept.clone(), unit.start()) {
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
                    bitmap::clear(&[range], unit.start(), kept);
                    if matches!(class, PageClass::Poisoned | PageClass::Offline) {
                        withheld.push(range);
                    }
                } else if self.order.is_first(class) {
                    bitmap::set(&[range], unit.start(), first);
                }
            }
        }
        bitmap::set(&self.order.first, unit.start(), first);
        bitmap::clear(&self.order.memmap, unit.start(), first);
        bitmap::intersect(first, kept);
        let mut unused = Vec::new();
        if let Some(filter) = self.filter.filter(|_| self.exclude.unused_vmemmap()) {
            filter.unused_vmemmap(unit, |pfn| bitmap::get(kept, unit.start(), pfn), &mut unused);
        }
        Scanned { sets, classes: counts, withheld, unused }
    }
}

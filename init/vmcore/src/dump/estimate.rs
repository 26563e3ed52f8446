//! How large dumps would be: pages by class from their struct pages, and how well some of each
//! class compress.

use std::collections::BTreeMap;

use crate::dump::codec::{Codec, is_zero};
use crate::dump::notes::Notes;
use crate::dump::plan::Found;
use crate::dump::{Request, bitmap};
use crate::filter::units;
use crate::filter::{ClassCounts, PageClass, PageFilter};
use crate::format::kdump::{DESC_LEN, Layout};
use crate::source::{Core, PageReader, PhysicalMemory};
use base::addr::{Pfn, PfnRange, to_u64, to_usize};
use base::beat::{self, Beat};
use base::config::{DumpLevel, Exclude};

/// Pages of each class that are remembered, of each unit of 32,768 pages and, roughly, of all: a
/// capture kernel has little memory.
const PER_UNIT: u64 = 128;
const REMEMBERED: u64 = 1 << 16;
/// Pages of each class that are compressed.
const SAMPLE: usize = 4096;
/// The levels that are estimated besides the one that was asked for.
const LEVELS: [u32; 7] = [0, 1, 2, 4, 8, 16, 31];

/// What is in memory, and the sizes that dumps of it would have.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// What the scan found.
    pub found: Found,
    /// Classes that have pages, with what was measured.
    pub classes: Vec<ClassEstimate>,
    /// Sizes by what is left out.
    pub sizes: Vec<(Exclude, DumpSize)>,
}

/// A class of pages.
#[derive(Clone, Copy, Debug)]
pub struct ClassEstimate {
    /// Which.
    pub class: PageClass,
    /// Pages of it.
    pub pages: u64,
    /// Pages that the pages which were read stand for; 0 if none was.
    pub sampled: u64,
    /// Of those, pages of zeros.
    pub zero: u64,
    /// Bytes of the others after compression.
    pub packed: u64,
}

/// The size of a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DumpSize {
    /// Pages with a descriptor.
    pub pages: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What a unit has of each class: how many pages, and some of them, each with the number of pages
/// that it stands for.
#[derive(Default)]
struct UnitSample {
    counts: ClassCounts,
    pages: BTreeMap<usize, Vec<(Pfn, u64)>>,
}

/// Scans the struct pages of all memory, reads a sample of each class and extrapolates.
#[must_use]
pub fn estimate(core: &dyn Core, filter: Option<&PageFilter<'_>>, request: &Request) -> Estimate {
    let units = units::of(core.ranges());
    let limit = REMEMBERED.checked_div(to_u64(units.len())).unwrap_or(PER_UNIT).clamp(1, PER_UNIT);
    let each = |unit: PfnRange, classes: &[PageClass]| sample_unit(core, unit, classes, limit);
    let (samples, damage) = units::scan(filter, &units, request.budget.workers, each);
    let mut all = UnitSample::default();
    for sample in samples {
        all.counts.merge(&sample.counts);
        for (class, pages) in sample.pages {
            all.pages.entry(class).or_default().extend(pages);
        }
    }
    let mut reader = core.page_reader();
    let measure = |(class, pages): (PageClass, u64)| {
        let sample = all.pages.get(&class.index()).map_or(&[][..], Vec::as_slice);
        let readable = !class.is_dropped(Exclude::from(DumpLevel::default()));
        beat::alive();
        measure(reader.as_mut(), core, request, if readable { sample } else { &[] }, class, pages)
    };
    let classes: Vec<ClassEstimate> = all.counts.iter().map(measure).collect();
    let levels = LEVELS.iter().filter_map(|&level| DumpLevel::new(level).ok()).map(Exclude::from);
    let mut wanted: Vec<Exclude> = levels.collect();
    if !wanted.contains(&request.exclude) {
        wanted.push(request.exclude);
    }
    let sizes = wanted.into_iter().map(|exclude| (exclude, size(core, &classes, exclude, request))).collect();
    let found = Found { classes: all.counts, damage, ..Found::default() };
    Estimate { found, classes, sizes }
}

/// Counts the pages of a unit that are present, and samples some pages of each class. The sampled pages
/// do not stand at equal distances, because the blocks of the page allocator do.
fn sample_unit(memory: &dyn PhysicalMemory, unit: PfnRange, classes: &[PageClass], limit: u64) -> UnitSample {
    let mut bits = vec![0; to_usize(unit.pages() / 8)];
    bitmap::fill(memory.ranges(), unit.start(), &mut bits);
    memory.absent(unit, &mut |gone| bitmap::clear(&[gone], unit.start(), &mut bits));
    let mut sample = UnitSample::default();
    let present = || bitmap::runs(&bits, unit.start()).flat_map(|run| run.start().0..run.end().0);
    let class_of = |pfn: u64| classes.get(to_usize(pfn.saturating_sub(unit.start().0))).copied();
    present().filter_map(class_of).for_each(|class| sample.counts.add(class, 1));
    let mut seen = ClassCounts::default();
    for pfn in present() {
        let Some(class) = class_of(pfn) else { continue };
        let step = sample.counts.of(class).div_ceil(limit).max(1);
        let round = seen.of(class).checked_div(step).unwrap_or(0);
        let pick = round.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_shr(32).checked_rem(step);
        if seen.of(class).checked_rem(step) == pick {
            sample.pages.entry(class.index()).or_default().push((Pfn(pfn), step));
        }
        seen.add(class, 1);
    }
    sample
}

fn measure(
    reader: &mut dyn PageReader,
    core: &dyn Core,
    request: &Request,
    sample: &[(Pfn, u64)],
    class: PageClass,
    pages: u64,
) -> ClassEstimate {
    let mut codec = Codec::new(request.compress()).unwrap_or(Codec::None);
    let page_len = core.page_size().in_memory();
    let (mut page, mut out) = (vec![0; page_len], vec![0; page_len]);
    let mut estimate = ClassEstimate { class, pages, sampled: 0, zero: 0, packed: 0 };
    let step = sample.len().div_ceil(SAMPLE).max(1);
    for &(pfn, weight) in sample.iter().step_by(step) {
        if request.is_skipped(pfn) {
            continue;
        }
        if request.careful
            && let Some(alone) = PfnRange::new(pfn, pfn.saturating_add(1))
        {
            beat::tell(&Beat::Reading(0, alone));
        }
        if reader.read_page(pfn, &mut page).is_err() {
            continue;
        }
        estimate.sampled = estimate.sampled.saturating_add(weight);
        if is_zero(&page) {
            estimate.zero = estimate.zero.saturating_add(weight);
        } else {
            let (len, _) = codec.pack_or_copy(&page, &mut out);
            estimate.packed = estimate.packed.saturating_add(to_u64(len).saturating_mul(weight));
        }
    }
    beat::tell(&Beat::Read(0));
    estimate
}

/// The file that leaves out `exclude`: headers and bitmaps, a descriptor per page, the pages.
fn size(core: &dyn Core, classes: &[ClassEstimate], exclude: Exclude, request: &Request) -> DumpSize {
    let kept = classes.iter().filter(|class| !class.class.is_dropped(exclude));
    let (mut pages, mut data) = (0_u64, 0_u64);
    for class in kept {
        let bytes = u128::from(class.packed).saturating_mul(u128::from(class.pages));
        let bytes = bytes.checked_div(u128::from(class.sampled)).unwrap_or(0);
        pages = pages.saturating_add(class.pages);
        data = data.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
    let layout = Layout::new(core.page_size(), core.max_pfn().0, Notes::new(core, &request.info).len());
    let before = layout.ok().and_then(|layout| layout.data_offset(pages));
    let before = before.unwrap_or_else(|| pages.saturating_mul(to_u64(DESC_LEN)));
    let compressed = if request.format.is_compressed() { before } else { 0 };
    DumpSize { pages, bytes: compressed.saturating_add(data) }
}

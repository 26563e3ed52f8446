//! What a dump level drops, judged three ways: by plants of every kind, by the kernel's own flags
//! of its pages, and by the reference implementation, whose dump must have the same pages. Where
//! the reference does not know the kernel, the pages in which it differs must be ours to keep by
//! the kernel's flags.
//!
//! `AFTERIMAGE_KEEP_CORES=DIR` keeps each raw core with what is known about it as `DIR/NAME.*`.

use anyhow::{Context, Result, bail, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::bitmap::Bitmap;
use qemu_tests::command::{Run, command};
use qemu_tests::kernel::Kernel;
use qemu_tests::marker;
use qemu_tests::outcome::{Outcome, Report};
use qemu_tests::page_flags::{Flag, Flags, PageFlags};
use qemu_tests::planted::{Plant, Planted, pages};
use qemu_tests::readers::{self, Bitmaps};
use qemu_tests::scenario::{COUNTERS, PAGE_FLAGS, Scenario};
use qemu_tests::vm::Shape;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Bits of a dump level.
const CACHE: u8 = 2;
const CACHE_PRIVATE: u8 = 4;
const USER: u8 = 8;
const FREE: u8 = 16;

/// Page frame from which on QEMU adds memory to a machine with less than this.
const HOT_ADDED: u64 = 1 << 20;

/// Levels at which both are asked.
const LEVELS: [u8; 7] = [0, 1, 2, 4, 8, 16, 31];

/// What a person asks crash first.
const CRASH_COMMANDS: [&str; 7] = ["bt -a", "ps", "log", "mod", "kmem -s", "files", "net"];

/// All that every kernel can plant.
const EVERYTHING: [Plant; 12] = [
    Plant::Anonymous,
    Plant::Tmpfs,
    Plant::Cache,
    Plant::CachePrivate,
    Plant::Thp,
    Plant::Hugetlb,
    Plant::Ksm,
    Plant::Swapped,
    Plant::SwapReadahead,
    Plant::Slab,
    Plant::Zram,
    Plant::Freed,
];

#[test]
#[ignore = "full: kernel 6.1"]
fn kernel_6_1_is_filtered_as_promised() -> Result<()> {
    judge(&everything("everything-6.1", "6.1", &[])?)
}

#[test]
#[ignore = "full: kernel 6.12"]
fn kernel_6_12_is_filtered_as_promised() -> Result<()> {
    judge(&everything("everything-6.12", "6.12", &[Plant::Poisoned])?)
}

#[test]
fn kernel_5_10_is_filtered_as_promised() -> Result<()> {
    let mut scenario = everything("everything-5.10", "5.10", &[])?;
    // What pushes pages out to swap on demand (memory.reclaim) is younger.
    scenario.plants.retain(|plant| !matches!(plant, Plant::Swapped | Plant::SwapReadahead));
    judge(&scenario)
}

/// The tails of this kernel's compound pages tell their heads by masks (compound_info).
#[test]
fn kernel_7_2_is_filtered_as_promised() -> Result<()> {
    judge(&everything("everything-7.2", "7.2", &[Plant::Poisoned])?)
}

#[test]
fn crash_says_the_same_of_a_dump_without_user_pages() -> Result<()> {
    crash_says_the_same("6.1")
}

#[test]
#[ignore = "full: kernel 5.10"]
fn crash_says_the_same_of_a_dump_of_5_10_without_user_pages() -> Result<()> {
    crash_says_the_same("5.10")
}

fn crash_says_the_same(series: &str) -> Result<()> {
    let kernel = Kernel::with_symbols(series)?;
    let mut scenario = Scenario::new(&format!("crash-{series}"), &kernel);
    scenario.raw_copy = true;
    scenario.config.level = 31;
    let outcome = scenario.run()?;
    let whole = outcome.scratch("level-0");
    afterimage_dump(outcome.raw()?, &whole, 0)?;
    let of = |dump: &Path| readers::crash(&kernel.vmlinux(), dump, &CRASH_COMMANDS);
    let (all, filtered) = (of(&whole)?, of(&outcome.dump()?.file("vmcore"))?);
    for ((command, all), filtered) in CRASH_COMMANDS.iter().zip(&all).zip(&filtered) {
        ensure!(all == filtered, "crash {command:?} at level 0:\n{all}\nat level 31:\n{filtered}");
    }
    outcome.discard()
}

#[test]
#[ignore = "full: kernel 6.1-generic"]
fn broken_pages_are_never_read() -> Result<()> {
    judge(&everything("everything-6.1-generic", "6.1-generic", &[Plant::Poisoned])?)
}

#[test]
#[ignore = "full: two nodes and a hole"]
fn two_nodes_and_a_hole_are_filtered_as_promised() -> Result<()> {
    let mut scenario = everything("numa-6.1", "6.1", &[Plant::Hugetlb1g])?;
    scenario.memory_mib = 5 << 10;
    scenario.cpus = 2;
    scenario.panic_cpu = 1;
    scenario.shape.nodes = vec![2304, 2816];
    scenario.append = "hugepagesz=1G hugepages=1".into();
    judge(&scenario)
}

#[test]
#[ignore = "full: hot added memory"]
fn hot_added_memory_is_filtered_as_promised() -> Result<()> {
    for series in ["6.1", "6.12"] {
        let mut scenario = everything(&format!("hot-add-{series}"), series, &[])?;
        scenario.shape.hot_add_mib = 512;
        judge(&scenario)?;
    }
    Ok(())
}

#[test]
#[ignore = "full: memory taken offline"]
fn memory_taken_offline_is_filtered_as_promised() -> Result<()> {
    for series in ["6.1", "6.12"] {
        let mut scenario = everything(&format!("offline-{series}"), series, &[Plant::Offline])?;
        scenario.shape.hot_add_mib = 512;
        judge(&scenario)?;
    }
    Ok(())
}

#[test]
#[ignore = "full: four level paging"]
fn four_level_paging_is_filtered_as_promised() -> Result<()> {
    let mut scenario = everything("four-level-6.1", "6.1", &[])?;
    scenario.shape = Shape { cpu: "la57=off".into(), ..Shape::default() };
    scenario.append = "nokaslr".into();
    judge(&scenario)
}

#[test]
#[ignore = "full: huge pages without descriptors"]
fn huge_pages_without_descriptors_are_filtered_as_promised() -> Result<()> {
    for series in ["6.1", "6.12"] {
        let mut scenario = everything(&format!("hvo-{series}"), series, &[])?;
        scenario.append = "hugetlb_free_vmemmap=on".into();
        judge(&scenario)?;
    }
    Ok(())
}

/// A guest with every plant there is and some more.
fn everything(name: &str, series: &str, more: &[Plant]) -> Result<Scenario> {
    let mut scenario = Scenario::new(name, &Kernel::of_series(series)?);
    scenario.memory_mib = 1024;
    scenario.raw_copy = true;
    scenario.config.level = 31;
    // What is taken offline goes last: until then memory may be anywhere.
    scenario.plants = EVERYTHING.iter().chain(more).copied().collect();
    Ok(scenario)
}

/// Runs the guest, and compares what is in each dump of its memory with what the level promises.
fn judge(scenario: &Scenario) -> Result<()> {
    let outcome = scenario.run()?;
    let known = Known { planted: found(&outcome)?, flags: outcome.report()?.flags.clone() };
    keep(&outcome, &scenario.name, &known.planted)?;
    for plant in &scenario.plants {
        ensure!(!known.planted.of(*plant).is_empty(), "no {plant} was planted");
    }
    if scenario.shape.hot_add_mib > 0 {
        let hot_added = known.planted.pfns(Plant::Anonymous).all(|pfn| pfn >= HOT_ADDED);
        ensure!(hot_added, "plants are not in the memory that came: {}", known.planted);
    }
    ensure_counters(outcome.report()?).context("the flags and the counters of one kernel")?;
    for level in LEVELS {
        let (reference, ours) = (outcome.scratch("reference"), outcome.scratch("ours"));
        readers::makedumpfile_dump(outcome.raw()?, &reference, level)?;
        afterimage_dump(outcome.raw()?, &ours, level)?;
        let (theirs, ours) = (readers::bitmaps(&reference)?, readers::bitmaps(&ours)?);
        let name = || format!("{} at level {level}", scenario.name);
        known.ensure_filtered(level, &ours).with_context(name)?;
        known.ensure_as_reference(level, &theirs, &ours).with_context(name)?;
        if level == scenario.config.level {
            // What the capture kernel made of /proc/vmcore is what the same engine makes of a copy.
            let captured = readers::bitmaps(&outcome.dump()?.file("vmcore"))?;
            let differ = [captured.dumped.without(&ours.dumped), ours.dumped.without(&captured.dumped)];
            ensure!(differ == [vec![], vec![]], "{}: the capture differs: {differ:?}", name());
        }
        fs::remove_file(&reference).context("removing the reference's dump")?;
        fs::remove_file(outcome.scratch("ours")).context("removing our dump")?;
    }
    ensure_not_degraded(&outcome)?;
    outcome.discard()
}

/// Dumps a raw core with the host side.
fn afterimage_dump(core: &Path, out: &Path, level: u8) -> Result<()> {
    command(&Binaries::get()?.afterimage.to_string_lossy())
        .args(["dump", "--force", "--level", &level.to_string()])
        .args([core, out])
        .run()?;
    Ok(())
}

/// A healthy kernel's struct pages contradict nothing.
fn ensure_not_degraded(outcome: &Outcome) -> Result<()> {
    let result = outcome.dump()?.result()?;
    let degradations = result.get("degradations").and_then(serde_json::Value::as_array);
    ensure!(degradations.is_some_and(Vec::is_empty), "{degradations:?}");
    let copy = result.get("vmcoreinfo_copy").and_then(serde_json::Value::as_bool);
    ensure!(copy == Some(true), "no copy of VMCOREINFO came with the image: {result:#}");
    Ok(())
}

/// What is known about the memory of a guest.
struct Known {
    planted: Planted,
    flags: PageFlags,
}

impl Known {
    /// Fails unless a dump lacks what its level drops, and only that.
    fn ensure_filtered(&self, level: u8, dump: &Bitmaps) -> Result<()> {
        let fates = fates(dump, &self.planted);
        eprintln!("level {level}, pages kept of those planted: {fates:?}");
        ensure_promised(level, &fates)?;
        ensure_flags(level, dump, &self.flags)
    }

    /// Fails unless the dumps have the same pages. Pages that only ours has are right if the level
    /// does not drop them by the kernel's flags: makedumpfile 1.7.8 does not find the heads of
    /// tails since kernel 7.1.
    fn ensure_as_reference(&self, level: u8, reference: &Bitmaps, ours: &Bitmaps) -> Result<()> {
        ensure!(reference.existing.without(&ours.existing).is_empty(), "pages exist for the reference only");
        ensure!(ours.existing.without(&reference.existing).is_empty(), "pages exist for us only");
        let lost = reference.dumped.without(&ours.dumped);
        ensure!(lost.is_empty(), "only the reference has {:?}", summary(&lost, &self.flags));
        let more = ours.dumped.without(&reference.dumped);
        eprintln!("pages that only ours has: {}", pages(&more));
        let (taken_since, wrong): (Vec<_>, Vec<_>) = more
            .iter()
            .cloned()
            .flatten()
            .filter(|pfn| dropped(level, &self.flags, *pfn))
            .partition(|pfn| self.flags.of(*pfn).has(Flag::Buddy));
        ensure!(wrong.is_empty(), "only ours has {wrong:#x?} of {:?}", summary(&more, &self.flags));
        // The report is older than the panic: what was free then may be a tail of something by now.
        ensure!(taken_since.len() <= 64, "only ours has {} pages that were free", taken_since.len());
        Ok(())
    }
}

/// Two views of one kernel on its memory.
fn ensure_counters(report: &Report) -> Result<()> {
    let flagged = |is: fn(Flags) -> bool| report.flags.pfns().filter(|pfn| is(report.flags.of(*pfn))).count();
    let kib = |name| anyhow::Ok(report.counter(name)? >> 2);
    let views = [
        ("free", flagged(|flags| flags.has(Flag::Buddy)), report.counter("nr_free_pages")?, 1024),
        ("huge", flagged(|flags| flags.has(Flag::Huge)), kib("Hugetlb:")?, 0),
        // The kernel's huge zero page is marked as one, too.
        (
            "transparently huge",
            flagged(|flags| flags.has(Flag::Thp) && flags.has(Flag::Anon)),
            kib("AnonHugePages:")?,
            // Those of which a process has mapped a part only are not counted (5.10).
            2048,
        ),
    ];
    for (what, flagged, counted, tolerated) in views {
        let difference = u64::try_from(flagged)?.abs_diff(counted);
        ensure!(difference <= tolerated, "{flagged} pages are {what} by their flags, {counted} are counted");
    }
    Ok(())
}

/// What was planted, with the places that only its content tells.
fn found(outcome: &Outcome) -> Result<Planted> {
    let report = outcome.report()?;
    let mut planted = report.planted.clone();
    let hidden = Plant::ALL.into_iter().filter(|plant| plant.found_by_content());
    let prefixes: BTreeMap<_, _> =
        hidden.map(|plant| (marker::prefix(&outcome.seed, plant), plant)).collect();
    let texts: Vec<_> = prefixes.keys().cloned().collect();
    for (prefix, mut pfns) in readers::find(outcome.raw()?, &texts)? {
        let plant = *prefixes.get(&prefix).context("a text that was not asked for")?;
        // Copies lie in other places: a name in the memory of the process that made the file, a
        // block in the page cache and in free pages.
        pfns.retain(|pfn| {
            let flags = report.flags.of_head(*pfn);
            let elsewhere = [Flag::Buddy, Flag::Lru, Flag::Anon].iter().any(|flag| flags.has(*flag));
            if plant == Plant::Slab { flags.has(Flag::Slab) } else { flags.has(Flag::Private) && !elsewhere }
        });
        if !pfns.is_empty() {
            planted.add(plant, pfns);
        }
    }
    Ok(planted)
}

/// What became of the plants of a kind: pages that are in the dump, pages there are.
type Fates = BTreeMap<Plant, (u64, u64)>;

/// What became of everything that was planted.
fn fates(bitmaps: &Bitmaps, planted: &Planted) -> Fates {
    let fate = |ranges| (bitmaps.dumped.count_in(ranges), pages(ranges));
    planted.0.iter().map(|(plant, ranges)| (*plant, fate(ranges))).collect()
}

/// Whether a level drops plants of a kind; nothing is promised of memory that is offline.
fn drops(level: u8, plant: Plant) -> Option<bool> {
    let bits = match plant {
        Plant::Anonymous | Plant::Thp | Plant::Hugetlb | Plant::Hugetlb1g | Plant::Ksm | Plant::Swapped => {
            USER
        }
        Plant::Tmpfs | Plant::Cache | Plant::SwapReadahead => CACHE | CACHE_PRIVATE,
        Plant::CachePrivate => CACHE_PRIVATE,
        Plant::Freed => FREE,
        Plant::Poisoned => return Some(true),
        Plant::Slab | Plant::Zram => 0,
        Plant::Offline => return None,
    };
    Some(level & bits != 0)
}

fn ensure_promised(level: u8, fates: &Fates) -> Result<()> {
    for (plant, (kept, planted)) in fates {
        let wrong = match drops(level, *plant) {
            Some(true) => *kept,
            Some(false) => planted.saturating_sub(*kept),
            None => continue,
        };
        // Free pages are there to be taken, and those that were freed last are taken first: by the
        // report of the guest, which has a word for each page of memory. Which pages are free at
        // the panic is judged by the reference.
        let tolerated = if *plant == Plant::Freed { planted / 2 } else { 0 };
        ensure!(wrong <= tolerated, "of {planted} pages of {plant} {kept} are in the dump");
    }
    Ok(())
}

/// Compares all pages with the kernel's flags of them. Between the report and the panic some
/// change: the report itself is written.
fn ensure_flags(level: u8, bitmaps: &Bitmaps, flags: &PageFlags) -> Result<()> {
    let expected = expected(level, &bitmaps.existing, flags);
    let (missing, extra) = (expected.without(&bitmaps.dumped), bitmaps.dumped.without(&expected));
    eprintln!(
        "level {level}: {} of {} pages kept, {} expected; {} missing, {} extra",
        bitmaps.dumped.count(),
        bitmaps.existing.count(),
        expected.count(),
        pages(&missing),
        pages(&extra)
    );
    // On per-CPU lists lie more free pages the more memory and CPUs there are.
    let tolerated = (bitmaps.existing.count() / 1000).max(512);
    if pages(&missing) > tolerated || pages(&extra) > tolerated {
        bail!("pages missing: {:?}, extra: {:?}", summary(&missing, flags), summary(&extra, flags));
    }
    Ok(())
}

/// The pages that a level keeps by the kernel's flags.
fn expected(level: u8, existing: &Bitmap, flags: &PageFlags) -> Bitmap {
    let mut bytes = Vec::new();
    for pfn in existing.pfns().filter(|pfn| !dropped(level, flags, *pfn)) {
        let index = usize::try_from(pfn >> 3).unwrap_or(usize::MAX);
        bytes.resize(bytes.len().max(index.saturating_add(1)), 0);
        if let Some(byte) = bytes.get_mut(index) {
            *byte |= 1_u8.wrapping_shl(u32::try_from(pfn & 7).unwrap_or_default());
        }
    }
    Bitmap::new(bytes)
}

fn dropped(level: u8, flags: &PageFlags, pfn: u64) -> bool {
    let (own, head) = (flags.of(pfn), flags.of_head(pfn));
    let swap_cache = head.has(Flag::SwapCache) && head.has(Flag::SwapBacked);
    // Of some slab pages Linux 6.12 says both: their descriptor has other things where others have
    // their mapping.
    let anonymous = head.has(Flag::Anon) && !head.has(Flag::Slab);
    let cache = (head.has(Flag::Lru) || swap_cache) && !anonymous;
    let bits = [
        (FREE, own.has(Flag::Buddy)),
        (CACHE, cache && !head.has(Flag::Private)),
        (CACHE_PRIVATE, cache),
        (USER, anonymous || head.has(Flag::Huge)),
    ];
    let asked = bits.iter().any(|(bit, is)| level & bit != 0 && *is);
    asked || own.has(Flag::HwPoison) || own.has(Flag::Offline)
}

/// Pages by their flags, for a person to look at.
fn summary(ranges: &[std::ops::Range<u64>], flags: &PageFlags) -> BTreeMap<String, (u64, u64)> {
    let mut summary = BTreeMap::new();
    for pfn in ranges.iter().cloned().flatten() {
        let (count, _) = summary.entry(format!("{:#x}", flags.of_head(pfn).0)).or_insert((0_u64, pfn));
        *count = count.saturating_add(1);
    }
    summary
}

/// Keeps the core where the environment says.
fn keep(outcome: &Outcome, name: &str, planted: &Planted) -> Result<()> {
    let Some(directory) = std::env::var_os("AFTERIMAGE_KEEP_CORES") else { return Ok(()) };
    let to = |suffix: &str| Path::new(&directory).join(format!("{name}.{suffix}"));
    command("cp").arg("--sparse=always").args([outcome.raw()?, &to("vmcore")]).run()?;
    let report = &outcome.report()?.path;
    fs::copy(report.join(PAGE_FLAGS), to("kpageflags")).context("keeping the flags")?;
    fs::copy(report.join(COUNTERS), to("counters.txt")).context("keeping the counters")?;
    fs::write(to("planted.txt"), planted.to_string()).context("keeping the list")?;
    fs::write(to("seed.txt"), &outcome.seed).context("keeping the seed")
}

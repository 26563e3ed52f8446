//! Damaged kernel structures over real cores: whatever a few wrong words say, the capture ends in
//! time, the log is whole, and no page is dropped that the damaged words do not describe.
//! The judge is the healthy core: its classes, its vital pages, its log. A seed makes the cases.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    reason = "a judge that overflows or panics fails the test, as it should"
)]

pub mod overlay;
mod random;
pub mod targets;

use anyhow::{Context, Result, ensure};
use base::addr::{PfnRange, VirtAddr};
use base::config::{Compress, DumpLevel, Exclude, Format};
use overlay::Overlay;
pub use random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;
use targets::{Targets, Word};
use vmcore::budget::Budget;
use vmcore::dump::{self, Request, Written};
use vmcore::filter::{PageClass, PageFilter, units};
use vmcore::format::kdump::Utsname;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::kernel::memmap::Section;
use vmcore::kernel::{Kernel, dmesg, info};
use vmcore::sink::{Sink, SinkError};
use vmcore::source::{Access, Core, PhysicalMemory, Vmcore};

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A pointer to a page of `struct mem_section`.
    Root,
    /// `mem_section.section_mem_map`
    Section,
    /// A page table entry on the way to struct pages, of any level.
    Table,
    /// A field of a struct page.
    Field,
    /// A word of a compound page's second struct page.
    Second,
    /// A line of VMCOREINFO.
    Info,
    /// Bytes of the notes, headers among them.
    Note,
}

/// Vital pages that a wrong PG_hwpoison may take without the self-check noticing
/// (filter/selfcheck.rs: 4 + 1/256 of 4,096).
const FEW_POISONED: u64 = 20;
const KINDS: [Kind; 7] =
    [Kind::Root, Kind::Section, Kind::Table, Kind::Field, Kind::Second, Kind::Info, Kind::Note];

/// What became of all cases over one core.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Cases by kind.
    pub cases: BTreeMap<Kind, u64>,
    /// What must not be.
    pub failures: Vec<String>,
    /// Most pages of kernel and slab that damage of a VMCOREINFO key drops, where the loader left
    /// no copy.
    pub wrongly_dropped: BTreeMap<String, (u64, String)>,
    /// Vital pages that their own damaged struct pages call poisoned or offline: not read, as a
    /// broken page must not be.
    pub withheld_vital: u64,
    /// Cases in which more pages were dropped than in health.
    pub with_extra_drops: u64,
    /// Cases in which no page can be told, so all are kept.
    pub without_filter: u64,
    /// The healthy time and the longest of a case.
    pub times: (Duration, Duration),
}

/// What is known from the healthy core.
struct Healthy<'c> {
    core: &'c Vmcore,
    path: &'c Path,
    info: &'c VmcoreInfo,
    classes: &'c [PageClass],
    vital: &'c [PfnRange],
    log: &'c [u8],
    /// Page table entries that lead to the log.
    log_path: &'c BTreeSet<u64>,
    time: Duration,
    level: Exclude,
}

/// What a damaged core gives.
struct Found {
    classes: Vec<PageClass>,
    has_filter: bool,
    took: Duration,
}

/// Words that were damaged.
#[derive(Default)]
struct Patched {
    /// Pages that the damage may drop.
    reach: Vec<(u64, u64)>,
    /// What was done.
    told: Vec<String>,
    /// Whether the log leads over one of them.
    in_log: bool,
}

/// Runs `cases` cases on the core at `path`.
pub fn run(path: &Path, seed: u64, cases: u64) -> Result<Verdict> {
    let core = Vmcore::open(path, Access::Mmap).with_context(|| format!("opening {}", path.display()))?;
    let info = core.info().clone();
    let mut told = Vec::new();
    let filter = PageFilter::discover(&core, &info, core.mappings(), &mut |what| told.push(what))?;
    ensure!(told.is_empty(), "the healthy core contradicts itself: {told:?}");
    let bad: Vec<_> =
        filter.memmap().sections().filter(|(_, section)| matches!(section, Section::Bad(_))).collect();
    ensure!(bad.is_empty(), "the healthy core has damaged sections: {bad:?}");
    let level = Exclude::from(DumpLevel::new(31)?);
    let first = look(&core, &info);
    let (classes, time) = (first.classes, look(&core, &info).took.max(Duration::from_millis(20)));
    let kernel = Kernel::new(&core, &info, core.mappings());
    let mut log = Vec::new();
    dmesg::write(&kernel, &mut log)?;
    let ring = dmesg::Ring::discover(&kernel)?;
    let mut log_path = BTreeSet::new();
    let start = [kernel.symbol("prb")?, kernel.symbol("printk_rb_static")?];
    for (at, len) in ring.places().into_iter().chain(start.map(|at| (at, 1))) {
        for page in (at.0 & !0xfff..at.0 + len).step_by(4096) {
            log_path.extend(targets::path_of(&core, &info, VirtAddr(page)));
        }
    }
    let healthy = Healthy {
        core: &core,
        path,
        info: &info,
        classes: &classes,
        vital: filter.vital(),
        log: &log,
        log_path: &log_path,
        time,
        level,
    };
    let targets = Targets::new(&core, &info, &filter, &classes);
    let mut verdict = Verdict { times: (time, Duration::ZERO), ..Verdict::default() };
    for case in 0..cases {
        let mut random = Random::new(seed.wrapping_add(case.wrapping_mul(0x1_0000_0001)));
        let kind = KINDS[(case % KINDS.len() as u64) as usize];
        let done = catch_unwind(AssertUnwindSafe(|| -> Result<Vec<String>> {
            match kind {
                Kind::Info => Ok(healthy.info_case(&mut random, &mut verdict)),
                Kind::Note => healthy.note_case(&mut random, &mut verdict),
                _ => Ok(healthy.word_case(kind, &targets, &mut random, &mut verdict, case)),
            }
        }));
        let wrong = match done {
            Ok(wrong) => wrong?,
            Err(_) => vec!["panicked".into()],
        };
        verdict.failures.extend(wrong.into_iter().map(|why| format!("case {case} ({kind:?}): {why}")));
    }
    Ok(verdict)
}

/// Finds the classes of all pages as a capture does; all are kept where the filter is not to be
/// had.
fn look(core: &dyn Core, info: &VmcoreInfo) -> Found {
    let start = cpu_time();
    let filter = PageFilter::discover(core, info, core.mappings(), &mut |_| ()).ok();
    let units = units::of(core.ranges());
    let each = |unit: PfnRange, classes: &[PageClass]| (unit, classes.to_vec());
    let (found, _) = units::scan(filter.as_ref(), &units, 2, each);
    let mut classes = vec![PageClass::Unknown; core.max_pfn().0 as usize];
    for (unit, of) in found {
        let start = unit.start().0 as usize;
        let len = of.len().min(classes.len() - start);
        classes[start..start + len].copy_from_slice(&of[..len]);
    }
    Found { classes, has_filter: filter.is_some(), took: cpu_time().saturating_sub(start) }
}

/// What this process has computed so far, in steps of 10 ms: the machine has other things to do.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

impl Healthy<'_> {
    /// Pages that are dropped now and were not: the page and what it is taken for.
    fn extra<'f>(&'f self, found: &'f Found) -> impl Iterator<Item = (u64, PageClass)> + 'f {
        let pages = self.core.ranges().iter().flat_map(|range| range.start().0..range.end().0);
        let dropped = |class: PageClass| class.is_dropped(self.level);
        pages.filter_map(move |pfn| {
            let now = *found.classes.get(pfn as usize)?;
            (dropped(now) && !dropped(self.classes[pfn as usize])).then_some((pfn, now))
        })
    }

    fn is_vital(&self, pfn: u64) -> bool {
        let at = self.vital.partition_point(|range| range.end().0 <= pfn);
        self.vital.get(at).is_some_and(|range| range.start().0 <= pfn)
    }

    fn in_time(&self, took: Duration, verdict: &mut Verdict) -> Option<String> {
        verdict.times.1 = verdict.times.1.max(took);
        let limit = self.time * 10 + Duration::from_secs(1);
        (took > limit).then(|| format!("took {took:?}, healthy {:?}", self.time))
    }

    /// Damages some words of a kind.
    fn patch(
        &self,
        overlay: &mut Overlay<'_>,
        kind: Kind,
        targets: &Targets<'_>,
        random: &mut Random,
        number: u64,
    ) -> Patched {
        let mut patched = Patched::default();
        let pick = |random: &mut Random| match kind {
            Kind::Root => targets.root(random),
            Kind::Section => targets.section_word(random),
            Kind::Table => targets.table_entry(random),
            Kind::Second => targets.second(random),
            _ => targets.field(random),
        };
        for _ in 0..number {
            let Some(Word { at, len, reach: more, what, sort }) = pick(random) else { continue };
            let mut old = vec![0; len];
            if self.core.read_exact_at(at, &mut old).is_err() {
                continue;
            }
            // The worst words are those that are right elsewhere.
            let other = (0..16).filter_map(|_| pick(random)).find(|other| other.sort == sort);
            let mut elsewhere = vec![0; len];
            let read = other.is_some_and(|other| self.core.read_exact_at(other.at, &mut elsewhere).is_ok());
            let (how, new) =
                if read && random.below(2) == 0 { ("another's", elsewhere) } else { damage(&old, random) };
            overlay.patch(at, &new);
            patched.in_log |= self.log_path.contains(&at.0);
            patched.told.push(format!("{what} at {at}: {how}, {old:02x?} to {new:02x?}"));
            patched.reach.extend(more);
        }
        patched
    }

    /// What was dropped beyond what the damaged words describe, and vital pages.
    fn wrongly_dropped(&self, found: &Found, reach: &[(u64, u64)], verdict: &mut Verdict) -> Vec<String> {
        let mut wrong = Vec::new();
        let (mut outside, mut vital, mut any) =
            (BTreeMap::<_, Vec<u64>>::new(), BTreeMap::<_, Vec<u64>>::new(), false);
        for (pfn, now) in self.extra(found) {
            any = true;
            let key = format!("{:?} as {now:?}", self.classes[pfn as usize]);
            if !reach.iter().any(|&(from, to)| from <= pfn && pfn < to) {
                outside.entry(key.clone()).or_default().push(pfn);
            }
            if self.is_vital(pfn) {
                if matches!(now, PageClass::Poisoned | PageClass::Offline) {
                    verdict.withheld_vital += 1;
                } else {
                    vital.entry(key).or_default().push(pfn);
                }
            }
        }
        verdict.with_extra_drops += u64::from(any);
        for (what, found) in [("outside", outside), ("vital", vital)] {
            for (key, pages) in found {
                let first: Vec<String> = pages.iter().take(4).map(|pfn| format!("{pfn:#x}")).collect();
                wrong.push(format!("{} pages dropped {what}: {key} ({})", pages.len(), first.join(" ")));
            }
        }
        wrong
    }

    /// Damages words of memory.
    fn word_case(
        &self,
        kind: Kind,
        targets: &Targets<'_>,
        random: &mut Random,
        verdict: &mut Verdict,
        case: u64,
    ) -> Vec<String> {
        let mut overlay = Overlay::new(self.core, self.info.clone());
        let number = if random.below(4) == 0 { 1 + random.below(4) } else { 1 };
        let Patched { reach, told, in_log } = self.patch(&mut overlay, kind, targets, random, number);
        if told.is_empty() {
            return Vec::new();
        }
        *verdict.cases.entry(kind).or_default() += 1;
        let found = look(&overlay, self.info);
        verdict.without_filter += u64::from(!found.has_filter);
        let mut wrong: Vec<String> = self.in_time(found.took, verdict).into_iter().collect();
        wrong.extend(self.wrongly_dropped(&found, &reach, verdict));
        if !in_log {
            wrong.extend(self.log_differs(&overlay, self.info));
        }
        if case.is_multiple_of(97) {
            wrong.extend(self.dump(&overlay));
        }
        wrong.iter().map(|why| format!("{why} by {}", told.join("; "))).collect()
    }

    fn log_differs(&self, core: &dyn Core, info: &VmcoreInfo) -> Option<String> {
        let mut log = Vec::new();
        let result = dmesg::write(&Kernel::new(core, info, core.mappings()), &mut log);
        (log != self.log)
            .then(|| format!("the log has {} bytes, not {} ({result:?})", log.len(), self.log.len()))
    }

    /// A whole dump of the damaged core.
    fn dump(&self, core: &dyn Core) -> Option<String> {
        /// Forgets everything.
        struct Nowhere;
        impl Sink for Nowhere {
            fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), SinkError> {
                Ok(())
            }
            fn sync(&mut self) -> Result<(), SinkError> {
                Ok(())
            }
        }
        let request = Request {
            skip: Vec::new(),
            careful: false,
            exclude: self.level,
            format: Format::Kdump,
            compress: Compress::None,
            utsname: Utsname { machine: "x86_64".into(), ..Utsname::default() },
            info: core.info().clone(),
            budget: Budget { workers: 2, plan: 1 << 20 },
        };
        let filter = PageFilter::discover(core, core.info(), core.mappings(), &mut |_| ()).ok();
        let mut written = Written::default();
        let result = dump::write(core, filter.as_ref(), &request, &mut Nowhere, &mut written);
        result.err().map(|error| format!("no dump: {error}"))
    }

    /// Damages a line of VMCOREINFO: without the loader's copy nothing vital is lost, with it
    /// nothing at all.
    fn info_case(&self, random: &mut Random, verdict: &mut Verdict) -> Vec<String> {
        let text = self.info.to_text();
        let mut lines: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
        let number = if random.below(4) == 0 { 2 + random.below(3) } else { 1 };
        let mut told = Vec::new();
        for _ in 0..number {
            let at = random.below(lines.len() as u64) as usize;
            let old = String::from_utf8_lossy(&lines[at]).into_owned();
            damage_line(&mut lines[at], random);
            told.push((old, String::from_utf8_lossy(&lines[at]).into_owned()));
        }
        let damaged = VmcoreInfo::parse(&lines.join(&b'\n'));
        *verdict.cases.entry(Kind::Info).or_default() += 1;
        let overlay = Overlay::new(self.core, damaged.clone());
        let what: Vec<String> = told.iter().map(|(old, new)| format!("{old} to {new:?}")).collect();
        let what = what.join("; ");
        let mut wrong = self.with_copy(&damaged, &overlay);
        let found = look(&overlay, &damaged);
        verdict.without_filter += u64::from(!found.has_filter);
        wrong.extend(self.in_time(found.took, verdict));
        let (mut vital, mut kernel, mut extra) = (BTreeMap::new(), BTreeMap::new(), 0_u64);
        for (pfn, now) in self.extra(&found) {
            extra += 1;
            *kernel.entry(format!("{:?} as {now:?}", self.classes[pfn as usize])).or_insert(0_u64) += 1;
            if self.is_vital(pfn) {
                *vital.entry(format!("{:?} as {now:?}", self.classes[pfn as usize])).or_insert(0_u64) += 1;
            }
        }
        // A wrong number for PG_hwpoison that marks a few pages cannot be told from a few broken
        // pages.
        let poisoned = vital.iter().filter(|(how, _)| how.ends_with(" as Poisoned"));
        let poisoned = poisoned.map(|(_, pages)| *pages).sum::<u64>();
        if poisoned > FEW_POISONED || vital.keys().any(|how| !how.ends_with(" as Poisoned")) {
            wrong.push(format!("vital pages dropped: {vital:?}"));
        }
        verdict.withheld_vital += poisoned;
        verdict.with_extra_drops += u64::from(extra > 0);
        if extra > 0 {
            let keys: Vec<&str> = told.iter().filter_map(|(old, _)| Some(old.split_once('=')?.0)).collect();
            let worst = verdict.wrongly_dropped.entry(keys.join("+")).or_default();
            if worst.0 < extra {
                *worst = (extra, format!("{what}: {kernel:?}"));
            }
        }
        wrong.iter().map(|why| format!("{why} by {what}")).collect()
    }

    /// What the loader's copy makes good.
    fn with_copy(&self, note: &VmcoreInfo, core: &dyn Core) -> Vec<String> {
        let without_time = |info: &VmcoreInfo| -> String {
            info.to_text()
                .lines()
                .filter(|line| !line.starts_with("CRASHTIME="))
                .flat_map(|line| [line, "\n"])
                .collect()
        };
        let copy = VmcoreInfo::parse(without_time(self.info).as_bytes());
        let (settled, origin) = info::settle(note, &copy, core);
        let mut wrong = Vec::new();
        if without_time(&settled) != without_time(self.info) {
            wrong.push(format!("the copy did not help: {origin:?}"));
        }
        wrong.extend(self.log_differs(core, &settled));
        wrong
    }

    /// Damages bytes of the notes: the file's head is copied, the memory stays where it is.
    fn note_case(&self, random: &mut Random, verdict: &mut Verdict) -> Result<Vec<String>> {
        let notes = &self.core.notes().notes;
        let start = notes.first().context("a note")?.offset;
        let end = notes.last().map_or(start, |note| note.offset + note.len);
        let mut file = File::open(self.path)?;
        let len = file.metadata()?.len();
        let mut head = vec![0; end as usize];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut head)?;
        let mut told = Vec::new();
        for _ in 0..=random.below(3) {
            let note = notes[random.below(notes.len() as u64) as usize];
            let at = note.offset
                + if random.below(4) == 0 { random.below(note.len) } else { random.below(20) / 4 * 4 };
            let at = (at as usize).min(head.len() - 4);
            let (how, new) = damage(&head[at..at + 4], random);
            told.push(format!("{:?} note + {:#x}: {how}", note.kind, at as u64 - note.offset));
            head[at..at + 4].copy_from_slice(&new);
        }
        let mut copy = tempfile::NamedTempFile::new()?;
        copy.write_all(&head)?;
        copy.as_file().set_len(len)?;
        *verdict.cases.entry(Kind::Note).or_default() += 1;
        let damaged = Vmcore::open(copy.path(), Access::Pread)?;
        ensure!(damaged.ranges() == self.core.ranges(), "other memory by {told:?}");
        let overlay = Overlay::new(self.core, damaged.info().clone());
        let mut wrong = self.with_copy(damaged.info(), &overlay);
        let found = look(&overlay, damaged.info());
        wrong.extend(self.in_time(found.took, verdict));
        let vital = self.extra(&found).filter(|&(pfn, _)| self.is_vital(pfn)).count();
        if vital > 0 {
            wrong.push(format!("{vital} vital pages dropped"));
        }
        Ok(wrong.iter().map(|why| format!("{why} by {}", told.join("; "))).collect())
    }
}

/// A word, damaged, and how.
fn damage(old: &[u8], random: &mut Random) -> (&'static str, Vec<u8>) {
    let mut new = old.to_vec();
    let how = match random.below(5) {
        0 | 1 => {
            let bit = random.below(new.len() as u64 * 8);
            new[(bit / 8) as usize] ^= 1 << (bit % 8);
            "a bit"
        }
        2 => {
            new.fill(0);
            "zeros"
        }
        3 => {
            new.fill(0xff);
            "ones"
        }
        _ => {
            for byte in &mut new {
                *byte = random.word() as u8;
            }
            "a random word"
        }
    };
    (how, new)
}

/// Drops a line, flips a bit of it or changes a digit of its value.
fn damage_line(line: &mut Vec<u8>, random: &mut Random) {
    let value = line.iter().position(|&byte| byte == b'=').unwrap_or(0);
    let digits: Vec<usize> = (value..line.len()).filter(|&at| line[at].is_ascii_hexdigit()).collect();
    match (random.below(4), digits.is_empty(), line.is_empty()) {
        (0, ..) | (_, _, true) => line.clear(),
        (1, ..) | (_, true, _) => {
            let at = random.below(line.len() as u64) as usize;
            line[at] ^= 1 << random.below(8);
        }
        _ => {
            let at = digits[random.below(digits.len() as u64) as usize];
            line[at] = b'0' + random.below(10) as u8;
        }
    }
}

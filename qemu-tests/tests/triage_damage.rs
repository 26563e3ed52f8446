//! Damage in what the walks for a summary and for triage read: whatever it is, they come to an end in
//! time, without a panic, and with no more rows than there can be. The places are those that walks of the
//! healthy core have read, so that no damage misses them.
//!
//! The same damage each time; AFTERIMAGE_SEED=N chooses other damage, AFTERIMAGE_CASES=N how much.

use anyhow::{Context, Result, ensure};
use base::addr::{PageSize, PfnRange, PhysAddr};
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};
use qemu_tests::damage::Random;
use qemu_tests::damage::overlay::Overlay;
use qemu_tests::raw_core;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use std::{env, io};
use symbols::btf;
use symbols::kallsyms::index;
use symbols::knowledge::{Answers, Read, Recorder};
use triage::artefacts::{self, Limits, Output, Recovered};
use triage::summary::{self, Subject};
use triage::wanted;
use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, PageReader, PhysicalMemory, ReadError, Vmcore};

/// The address space of the test, in bytes.
const ADDRESS_SPACE: u64 = 3 << 30;
/// Seconds of the processor that one case may take; a healthy walk takes half a second.
const MAX_TIME: Duration = Duration::from_secs(20);
/// Longer reads are of tables that have tests of their own.
const LONGEST: usize = 1024;
/// Words that are damaged at a time.
const WORDS: u64 = 24;
/// Rows of an artefact that a core of this size can have.
const ROWS: u64 = 1_000_000;

/// Notes what is read.
struct Watched<'c> {
    core: &'c Vmcore,
    words: Mutex<BTreeSet<u64>>,
}

impl PhysicalMemory for Watched<'_> {
    fn page_size(&self) -> PageSize {
        self.core.page_size()
    }

    fn ranges(&self) -> &[PfnRange] {
        self.core.ranges()
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        if out.len() <= LONGEST
            && let Ok(mut words) = self.words.lock()
        {
            let end = addr.0.saturating_add(base::addr::to_u64(out.len()));
            words.extend((addr.0 & !7..end).step_by(8));
        }
        self.core.read_exact_at(addr, out)
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        self.core.page_reader()
    }
}

/// Counts what comes.
#[derive(Default)]
struct Counter {
    rows: u64,
    lines: u64,
    bytes: u64,
    summary: usize,
}

impl Output for Counter {
    fn line(&mut self, file: &str, line: &str) -> io::Result<()> {
        let counted = if file == "body.txt" { &mut self.lines } else { &mut self.rows };
        *counted = counted.saturating_add(1);
        // It is one line, and nothing in it acts upon a terminal.
        let text = line.strip_suffix('\n').unwrap_or(line);
        if text.chars().any(base::text::is_unsafe) {
            return Err(io::Error::other(format!("a row that is none: {text:?}")));
        }
        Ok(())
    }

    fn done(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn begin(&mut self, file: &Recovered<'_>) -> io::Result<String> {
        Ok(file.path.to_owned())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(base::addr::to_u64(bytes.len()));
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Walks for both.
fn walk(core: &dyn Core, memory: &dyn PhysicalMemory, answers: &Answers) -> Result<Counter, String> {
    let kernel = Kernel::new(memory, core.info(), core.mappings());
    let mut counter = Counter::default();
    let findings = summary::of(Subject { core, kernel: &kernel, answers: Some(answers), planned: false });
    counter.summary = findings.to_json(160 << 10).len().saturating_add(findings.to_text(96 << 10).len());
    let limits = Limits { file: 4 << 20, files: 64 << 20, time: Duration::from_secs(2), ..Limits::default() };
    let Ok(all) = artefacts::walk(&kernel, Some(answers), &limits, &mut counter) else { return Ok(counter) };
    for done in all {
        if let Some(why) = done.stopped.filter(|why| why.contains("a row that is none")) {
            return Err(why);
        }
    }
    Ok(counter)
}

fn number(name: &str, usual: u64) -> Result<u64> {
    env::var(name).map_or(Ok(usual), |text| text.parse().context("a number"))
}

fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// Puts something into a word that is hard to see through: another pointer that is there, a number that
/// is nearly right, zeros, ones, anything.
fn damage(core: &Vmcore, overlay: &mut Overlay<'_>, places: &[u64], random: &mut Random) -> Result<()> {
    let place = |random: &mut Random| {
        let index = random.below(base::addr::to_u64(places.len()));
        places.get(base::addr::to_usize(index)).copied().context("a place")
    };
    let word_at = |at: u64| {
        let mut bytes = [0; 8];
        core.read_exact_at(PhysAddr(at), &mut bytes).map(|()| u64::from_le_bytes(bytes))
    };
    let at = place(random)?;
    let old = word_at(at)?;
    let new = match random.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => random.word(),
        3 => old ^ 1_u64.wrapping_shl(u32::try_from(random.below(64))?),
        // Lists that lead into each other, structures that are taken for others.
        _ => word_at(place(random)?)?,
    };
    overlay.patch(PhysAddr(at), &new.to_le_bytes());
    Ok(())
}

fn damaged(series: &str, path: &Path, seed: u64, cases: u64) -> Result<()> {
    let (seed, cases) = (number("AFTERIMAGE_SEED", seed)?, number("AFTERIMAGE_CASES", cases)?);
    let core = Vmcore::open(path, Access::Mmap)?;
    let kernel = Kernel::new(&core, core.info(), core.mappings());
    let names = index::read(&kernel)?;
    let types = btf::read(&kernel, &names)?;
    let known = Read { symbols: &names, types: &types };
    let recorder = Recorder::new(&known);
    wanted::ask_all(Some(&kernel), &recorder);
    let answers = recorder.answers();
    let watched = Watched { core: &core, words: Mutex::default() };
    let healthy = walk(&core, &watched, &answers).map_err(anyhow::Error::msg)?;
    ensure!(healthy.rows > 100 && healthy.bytes > 1 << 20, "{} rows", healthy.rows);
    ensure!(healthy.lines > 100, "{} lines", healthy.lines);
    let places: Vec<u64> = watched.words.into_inner().unwrap_or_default().into_iter().collect();
    ensure!(places.len() > 10_000, "only {} words were read", places.len());
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE)?;
    let mut random = Random::new(seed);
    let (mut slowest, mut most) = (Duration::ZERO, 0);
    for case in 0..cases {
        let mut overlay = Overlay::new(&core, core.info().clone());
        for _ in 0..=random.below(WORDS) {
            damage(&core, &mut overlay, &places, &mut random)?;
        }
        let start = processor_time()?;
        let walked = catch_unwind(AssertUnwindSafe(|| walk(&overlay, &overlay, &answers)));
        let took = processor_time()?.saturating_sub(start);
        let counter = walked
            .map_err(|_| anyhow::anyhow!("case {case} of seed {seed} panicked"))?
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("case {case} of seed {seed}"))?;
        ensure!(took <= MAX_TIME, "case {case} of seed {seed} took {took:?}");
        ensure!(counter.rows <= ROWS, "case {case} of seed {seed} has {} rows", counter.rows);
        ensure!(counter.summary <= 256 << 10, "case {case} of seed {seed}: {} bytes", counter.summary);
        (slowest, most) = (slowest.max(took), most.max(counter.rows));
        if case % 1000 == 999 {
            eprintln!("{series}: {case} cases, the slowest took {slowest:?}, the most rows were {most}");
        }
    }
    eprintln!("{series}: {} answers, {} bytes", answers.0.len(), answers.to_text().len());
    eprintln!(
        "{series}: {cases} cases at {} words; the slowest took {slowest:?}, the most rows were {most}",
        places.len()
    );
    Ok(())
}

#[test]
fn damaged_structures_end_no_walk() -> Result<()> {
    // The core that other tests use, too; one with a network takes another boot.
    damaged("6.1", &raw_core::of("6.1")?, 19, 60)
}

#[test]
#[ignore = "full: thousands of damages, two kernels"]
fn any_damaged_structures_end_no_walk() -> Result<()> {
    damaged("6.1", &raw_core::with_network("6.1")?, 191, 7000)?;
    damaged("7.2", &raw_core::with_network("7.2")?, 192, 3000)
}

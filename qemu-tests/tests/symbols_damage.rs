//! Damage in the symbol table, the types, the ORC tables and the notes of real cores: whatever it is,
//! reading ends in time and without a panic, and what comes out is an error, or right but for what the
//! damage lies in. The judge is the healthy core, and walks of its tables of this file's own.
//!
//! The same damage each time; AFTERIMAGE_SEED=N chooses other damage, AFTERIMAGE_CASES=N how much.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a judge that overflows or panics fails the test, as it should"
)]

#[path = "symbols_damage/healthy.rs"]
mod healthy;
#[path = "symbols_damage/torn.rs"]
mod torn;

use anyhow::{Context, Result, ensure};
use healthy::{Healthy, Region};
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};
use qemu_tests::damage::Random;
use qemu_tests::raw_core;
use std::collections::BTreeMap;
use std::env;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use symbols::{btf, debuginfo, kallsyms};
use torn::{Tearing, Torn};
use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, Vmcore};

/// The address space of the test, in bytes: the core is mapped in windows, and a debug file is in memory.
const ADDRESS_SPACE: u64 = 3 << 30;
/// Reading takes a tenth of a second of the processor, a whole file a second.
const MAX_TIME: Duration = Duration::from_secs(20);
/// Of so many cases one makes the whole debug file.
const WHOLE: u64 = 80;

#[test]
fn damaged_symbols_are_refused_or_right() -> Result<()> {
    damaged("6.1", 18, 150)
}

#[test]
#[ignore = "full: thousands of damages, two kernels"]
fn any_damaged_symbols_are_refused_or_right() -> Result<()> {
    damaged("6.1", 181, 4000)?;
    damaged("7.2", 182, 1500)
}

/// What became of the cases.
#[derive(Debug, Default)]
struct Verdict {
    /// Cases, and those that were refused, by kind and region.
    cases: BTreeMap<String, (u64, u64)>,
    /// Whole files that were made.
    files: u64,
    /// Values that were wrong because the damage lies in them.
    own: u64,
    longest: Duration,
    failures: Vec<String>,
}

fn damaged(series: &str, seed: u64, cases: u64) -> Result<()> {
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE).context("a limit on memory")?;
    let number = |name: &str| env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seed = number("AFTERIMAGE_SEED").unwrap_or(seed);
    let cases = number("AFTERIMAGE_CASES").unwrap_or(cases);
    let core = Vmcore::open(&raw_core::of(series)?, Access::Mmap)?;
    let healthy = Healthy::of(&core)?;
    let mut random = Random::new(seed);
    let mut verdict = Verdict::default();
    for number in 0..cases {
        let region = &healthy.regions[weighted(&mut random)];
        let mut torn = Torn::new(&core);
        let what = Tearing { torn: &mut torn, kernel: &healthy.kernel }.damage(region, &mut random)?;
        let begun = cpu_time()?;
        let judged = catch_unwind(AssertUnwindSafe(|| judge(&healthy, &core, &torn, region, number)));
        let time = cpu_time()?.saturating_sub(begun);
        verdict.longest = verdict.longest.max(time);
        let count = verdict.cases.entry(format!("{} {}", region.name, what.kind)).or_default();
        count.0 += 1;
        let mut fail = |fault: String| verdict.failures.push(format!("case {number}, {what}: {fault}"));
        match judged {
            Err(_) => fail("it panics".to_owned()),
            Ok(judged) => {
                count.1 += u64::from(judged.refused);
                verdict.own += judged.own;
                verdict.files += u64::from(judged.file);
                judged.faults.into_iter().for_each(&mut fail);
            }
        }
        if time > MAX_TIME {
            fail(format!("it takes {time:?}"));
        }
    }
    eprintln!(
        "{series}: AFTERIMAGE_SEED={seed}, {cases} cases, {} whole files, {} values wrong where the damage is, longest \
         {:?}",
        verdict.files, verdict.own, verdict.longest
    );
    for (name, (all, refused)) in &verdict.cases {
        eprintln!("  {name}: {all}, refused {refused}");
    }
    for failure in &verdict.failures {
        eprintln!("  FAILED: {failure}");
    }
    ensure!(verdict.failures.is_empty(), "{} failures with AFTERIMAGE_SEED={seed}", verdict.failures.len());
    Ok(())
}

/// Time that this process has had of the processor, whatever else the machine does.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// A region: of 40 cases 19 are in the symbol table, 19 in the types, the others in ORC and the notes.
fn weighted(random: &mut Random) -> usize {
    match random.below(40) {
        0..19 => 0,
        19..38 => 1,
        38 => 2,
        _ => 3,
    }
}

/// What became of one case.
#[derive(Default)]
struct Judged {
    refused: bool,
    file: bool,
    own: u64,
    faults: Vec<String>,
}

impl Judged {
    /// Compares a value with that of the healthy core; `own`: whether the damage lies in it.
    fn compare<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, found: &T, healthy: &T, own: bool) {
        match (found == healthy, own) {
            (true, _) => {}
            (false, true) => self.own += 1,
            (false, false) => self.faults.push(format!("{name} is {found:?}, not {healthy:?}")),
        }
    }
}

/// Reads what is damaged, and compares.
fn judge(healthy: &Healthy<'_>, core: &Vmcore, torn: &Torn<'_>, region: &Region, number: u64) -> Judged {
    let mut judged = Judged::default();
    let kernel = Kernel::new(torn, core.info(), core.mappings());
    let is_whole = number.is_multiple_of(WHOLE) || matches!(region.name, "ORC" | "notes");
    if is_whole {
        whole(healthy, &kernel, torn, &mut judged);
        return judged;
    }
    if region.name == "symbols" {
        match kallsyms::read(&kernel) {
            Err(_) => judged.refused = true,
            Ok(table) => {
                for symbol in &healthy.symbols {
                    let found = table.find(&symbol.name);
                    let own = torn.touches(&symbol.ranges);
                    judged.compare(&symbol.name, &found, &Some(symbol.address), own);
                }
            }
        }
        return judged;
    }
    let types = btf::read(&kernel, &healthy.table).and_then(|types| types.agree(core.info()).map(|()| types));
    match types {
        Err(_) => judged.refused = true,
        Ok(types) => {
            for place in &healthy.places {
                let own = torn.touches(&place.ranges);
                let found = place.find(&types);
                judged.compare(
                    &format!("{}.{}", place.structure, place.path),
                    &found,
                    &Some(place.value),
                    own,
                );
            }
        }
    }
    judged
}

/// Makes the debug file, and compares symbols in it.
fn whole(healthy: &Healthy<'_>, kernel: &Kernel<'_>, torn: &Torn<'_>, judged: &mut Judged) {
    let mut out = Cursor::new(Vec::new());
    let Ok(report) = debuginfo::write(kernel, &mut out) else {
        judged.refused = true;
        return;
    };
    judged.file = true;
    let file = out.into_inner();
    judged.compare("the length of the file", &(file.len() as u64), &report.bytes, false);
    let symbols = healthy::symbols_of_elf(&file);
    for symbol in &healthy.symbols {
        let link = healthy.link(symbol.address);
        let own = torn.touches(&symbol.ranges);
        let found = symbols.get(&symbol.name).is_some_and(|all| all.contains(&link));
        judged.compare(&symbol.name, &found, &true, own);
    }
}

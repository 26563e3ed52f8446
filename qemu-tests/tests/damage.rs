//! Wrong words in the structures of real cores, or of the cores (`*.vmcore`) in the directory
//! AFTERIMAGE_CORES.
//!
//! The same words each time; AFTERIMAGE_SEED=N chooses others, AFTERIMAGE_CASES=N how many for each
//! core.

use anyhow::{Context, Result, ensure};
use qemu_tests::{damage, raw_core};
use std::env;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

#[test]
fn damage_drops_nothing_that_it_does_not_describe() -> Result<()> {
    damaged(&["6.1", "7.2"], 3, 200)
}

#[test]
#[ignore = "full: thousands of new words, four kernels"]
fn any_damage_drops_nothing_that_it_does_not_describe() -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    damaged(&["5.10", "6.1", "6.12", "7.2"], now, 1500)
}

fn damaged(series: &[&str], seed: u64, cases: u64) -> Result<()> {
    let cores = cores(series)?;
    ensure!(!cores.is_empty(), "AFTERIMAGE_CORES has no core");
    let number = |name: &str| env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seed = number("AFTERIMAGE_SEED").unwrap_or(seed);
    let cases = number("AFTERIMAGE_CASES").unwrap_or(cases);
    let mut failures = 0_usize;
    for core in cores {
        let verdict = damage::run(&core, seed, cases)?;
        eprintln!("{}: AFTERIMAGE_SEED={seed}", core.display());
        eprintln!("  cases {:?}, healthy and longest time {:?}", verdict.cases, verdict.times);
        eprintln!(
            "  {} with more dropped than in health, {} without a filter, {} vital pages called poisoned or \
             offline",
            verdict.with_extra_drops, verdict.without_filter, verdict.withheld_vital
        );
        for (key, (pages, what)) in &verdict.wrongly_dropped {
            eprintln!("  dropped without a copy of VMCOREINFO: {pages} pages by {key}: {what}");
        }
        for failure in &verdict.failures {
            eprintln!("  FAILED: {failure}");
        }
        failures = failures.saturating_add(verdict.failures.len());
    }
    ensure!(failures == 0, "{failures} failures with AFTERIMAGE_SEED={seed}");
    Ok(())
}

fn cores(series: &[&str]) -> Result<Vec<PathBuf>> {
    let Some(directory) = env::var_os("AFTERIMAGE_CORES") else {
        return series.iter().map(|series| raw_core::of(series)).collect();
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).context("listing AFTERIMAGE_CORES")? {
        let path = entry.context("listing AFTERIMAGE_CORES")?.path();
        if path.extension().is_some_and(|extension| extension == "vmcore") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

//! Wrong words in the structures of real cores, or of the cores (`*.vmcore`) in the directory
//! AFTERIMAGE_CORES.
//!
//! The same words each time; AFTERIMAGE_SEED=N chooses others, AFTERIMAGE_FULL=1 thousands of new
//! ones for each core.

use anyhow::{Context, Result, ensure};
use qemu_tests::{damage, raw_core};
use std::env;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

#[test]
fn damage_drops_nothing_that_it_does_not_describe() -> Result<()> {
    let cores = cores()?;
    ensure!(!cores.is_empty(), "AFTERIMAGE_CORES has no core");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let full = env::var("AFTERIMAGE_FULL").is_ok_and(|full| full == "1");
    let seed = env::var("AFTERIMAGE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| if full { now() } else { 3 });
    let mut failures = 0_usize;
    for core in cores {
        let cases = env::var("AFTERIMAGE_CASES").ok().and_then(|cases| cases.parse().ok());
        let verdict = damage::run(&core, seed, cases.unwrap_or(if full { 1500 } else { 350 }))?;
        eprintln!("{}: AFTERIMAGE_SEED={seed}", core.display());
        eprintln!("  cases {:?}, healthy and longest time {:?}", verdict.cases, verdict.times);
        eprintln!(
            "  {} with more dropped than in health, {} without a filter, {} vital pages called poisoned or offline",
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

fn cores() -> Result<Vec<PathBuf>> {
    let Some(directory) = env::var_os("AFTERIMAGE_CORES") else {
        let full = env::var("AFTERIMAGE_FULL").is_ok_and(|full| full == "1");
        let series: &[&str] = if full { &["5.10", "6.1", "6.12", "7.2"] } else { &["6.1", "7.2"] };
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

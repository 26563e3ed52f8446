//! The smallest crash kernel reservation with which a capture still succeeds, in a guest of 2 GiB at level 31.
//!
//! `cargo run -p qemu-tests --bin floor [SERIES]` finds it by bisection for each compression of the image, one run per point,
//! so give or take 2 MiB; `... --bin floor SERIES MIB RUNS` tries one reservation so many times.

use anyhow::{Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::scenario::Scenario;

const RANGE: core::ops::Range<u32> = 48..96;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let series = arguments.first().map_or("6.1", String::as_str);
    let kernel = Kernel::of_series(series)?;
    if let [_, mib, runs] = arguments.as_slice() {
        return repeat(&kernel, mib.parse()?, runs.parse()?);
    }
    println!(
        "| image | kernel | smallest crashkernel= that captured | largest that did not |\n|---|---|---|---|"
    );
    for compress in ["gzip", "xz", "zstd"] {
        let (mut fails, mut works) = (RANGE.start, RANGE.end);
        ensure!(captures(&kernel, compress, works), "no capture even with {works} MiB");
        while works.saturating_sub(fails) > 1 {
            let middle = fails.midpoint(works);
            if captures(&kernel, compress, middle) { works = middle } else { fails = middle }
        }
        println!("| {compress} | {} | {works}M | {fails}M |", kernel.version());
    }
    Ok(())
}

/// Captures with one reservation, `runs` times.
fn repeat(kernel: &Kernel, mib: u32, runs: u32) -> Result<()> {
    let passed = (0..runs).filter(|_| captures(kernel, "gzip", mib)).count();
    println!("{}: {passed} of {runs} captures with crashkernel={mib}M", kernel.version());
    ensure!(u32::try_from(passed) == Ok(runs), "not all captures succeeded");
    Ok(())
}

/// Whether a capture with this reservation leaves a complete dump.
fn captures(kernel: &Kernel, compress: &str, mib: u32) -> bool {
    let mut scenario = Scenario::new(&format!("floor-{compress}-{mib}"), kernel);
    scenario.crashkernel = format!("{mib}M");
    scenario.memory_mib = 2048;
    scenario.config.level = 31;
    scenario.config.image_compress = compress.into();
    let outcome = scenario.run().and_then(|outcome| {
        let complete = outcome.dump()?.result()?.get("outcome").is_some_and(|said| said == "complete");
        outcome.discard()?;
        Ok(complete)
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("{mib} MiB: {}", error.to_string().lines().next().unwrap_or_default());
        false
    })
}

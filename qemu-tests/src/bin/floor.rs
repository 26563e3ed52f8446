//! The smallest crash kernel reservation with which a capture still succeeds, by bisection, for each compression of
//! the image: `cargo run -p qemu-tests --bin floor [SERIES]`. One run per point, so give or take 2 MiB.

use anyhow::{Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::scenario::Scenario;

const RANGE: core::ops::Range<u32> = 48..96;

fn main() -> Result<()> {
    let series = std::env::args().nth(1).unwrap_or_else(|| "6.1".into());
    let kernel = Kernel::of_series(&series)?;
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

/// Whether a capture with this reservation leaves a complete dump.
fn captures(kernel: &Kernel, compress: &str, mib: u32) -> bool {
    let mut scenario = Scenario::new(&format!("floor-{compress}-{mib}"), kernel);
    scenario.crashkernel = format!("{mib}M");
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

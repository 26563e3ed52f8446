//! A planned switch to the capture kernel, which loses nothing, and what the machine goes on to
//! after any capture.
//!
//! One case of each kind by default; scripts/test --full runs all kernels and machines.

mod handoff;
mod hotplug;
mod memory;
mod refusals;
mod root;

use anyhow::Result;
use qemu_tests::kernel::Kernel;
use qemu_tests::scenario::Scenario;
use std::time::Duration;

/// The kernel of most tests; `AFTERIMAGE_SERIES` names another.
const SERIES: &str = "6.1";
/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(6);

fn series() -> String {
    std::env::var("AFTERIMAGE_SERIES").unwrap_or_else(|_| SERIES.to_owned())
}

/// A system whose dump is small and quickly made.
fn scenario(name: &str) -> Result<Scenario> {
    let mut scenario = Scenario::new(name, &Kernel::of_series(&series())?);
    scenario.config.level = 31;
    scenario.patience = PATIENCE;
    Ok(scenario)
}

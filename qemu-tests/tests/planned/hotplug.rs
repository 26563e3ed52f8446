//! Memory that comes after the load is saved, too.

use crate::{scenario, series};
use anyhow::Result;
use qemu_tests::kernel::Kernel;
use qemu_tests::pages::Kind;
use qemu_tests::trigger::Trigger;

const LATE_MIB: u32 = 128;

fn late(name: &str, series: &str, trigger: Trigger) -> Result<()> {
    let mut scenario = scenario(name)?;
    scenario.kernel = Kernel::of_series(series)?;
    scenario.config.level = 1;
    scenario.late_mib = LATE_MIB;
    scenario.trigger = trigger;
    let outcome = scenario.run()?;
    // Half of it is filled.
    let pages = usize::try_from(LATE_MIB)?.saturating_mul(128);
    outcome.pages(&outcome.dump()?.file("vmcore"))?.ensure_whole(&[Kind::Late], pages)?;
    outcome.discard()
}

/// 6.1 does not keep the core header up to date: `afterimage load --again` does.
#[test]
#[ignore = "full: memory that is added, 6.1"]
fn memory_that_came_is_loaded_again() -> Result<()> {
    late("late-again", &series(), Trigger::Panic)
}

/// 6.12 does.
#[test]
#[ignore = "full: memory that is added, 6.12 and 7.2"]
fn memory_that_came_is_in_a_header_that_the_kernel_updates() -> Result<()> {
    late("late-by-kernel", "6.12", Trigger::Panic)?;
    late("late-by-kernel-planned", "7.2", Trigger::planned())
}

//! volatility3 with the symbols that `afterimage symbols` makes agrees with drgn.

use anyhow::Result;
use qemu_tests::raw_core;
use qemu_tests::volatility::Made;

#[test]
fn volatility3_agrees_with_drgn_on_lime() -> Result<()> {
    let core = raw_core::with_four_levels("6.1")?;
    let work = tempfile::tempdir()?;
    let made = Made::of(&core, work.path())?;
    made.ensure_agreement(&core, &made.lime(&core)?)
}

#[test]
#[ignore = "full: volatility3 on the ELF core"]
fn volatility3_agrees_with_drgn_on_elf() -> Result<()> {
    let core = raw_core::with_four_levels("6.1")?;
    let work = tempfile::tempdir()?;
    Made::of(&core, work.path())?.ensure_agreement(&core, &core)
}

#[test]
#[ignore = "full: volatility3 on 6.12"]
fn volatility3_agrees_with_drgn_on_6_12() -> Result<()> {
    let core = raw_core::with_four_levels("6.12")?;
    let work = tempfile::tempdir()?;
    let made = Made::of(&core, work.path())?;
    made.ensure_agreement(&core, &core)?;
    made.ensure_agreement(&core, &made.lime(&core)?)
}

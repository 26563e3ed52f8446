//! Storage that fails while a crash is saved: what is saved all the same, and how soon the machine
//! is back.
//!
//! One case of each kind by default; scripts/test --full runs the matrices.

mod faults;
mod hangs;
mod hooks;
mod ladder;
mod last_resort;
mod order;
mod places;
mod raw;

mod space;
mod stack;

use anyhow::{Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::qmp::Ending;
use qemu_tests::scenario::Scenario;
use std::time::Duration;

/// The kernel of most tests; `AFTERIMAGE_SERIES` names another.
const SERIES: &str = "6.1";
/// From the panic to the end of the guest when nothing has to be waited for; a loaded machine that
/// emulates takes a third of it.
const SOON: Duration = Duration::from_secs(90);
/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(4);

/// A crash whose dump is small and quickly made.
fn scenario(name: &str) -> Result<Scenario> {
    let series = std::env::var("AFTERIMAGE_SERIES").unwrap_or_else(|_| SERIES.to_owned());
    let mut scenario = Scenario::new(name, &Kernel::of_series(&series)?);
    scenario.config.level = 31;
    scenario.patience = PATIENCE;
    Ok(scenario)
}

/// The machine reboots by itself, and soon.
fn ensure_back(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.ending == Ending::Reset, "it ended by {:?}: {:?}", outcome.ending, outcome.events);
    outcome.ensure_in_time(SOON)
}

/// The only dump of a disk.
fn only(dumps: &[Dump]) -> Result<&Dump> {
    match dumps {
        [dump] => Ok(dump),
        _ => anyhow::bail!("{} dumps instead of one: {dumps:?}", dumps.len()),
    }
}

/// There is a whole dump, and nothing that looks like a part of one.
fn ensure_complete(dump: &Dump) -> Result<()> {
    let message = dump.said_outcome()?;
    ensure!(message == "complete", "{:#}", dump.result()?);
    ensure_log(dump)?;
    let whole = dump.file("vmcore").exists() && !dump.file("vmcore-incomplete").exists();
    ensure!(whole, "complete, but the files are {:?}", dump.files());
    Ok(())
}

/// The part of a dump is marked as a part.
fn ensure_part(dump: &Dump) -> Result<()> {
    let message = dump.file("vmcore-incomplete").exists() && !dump.file("vmcore").exists();
    ensure!(message, "not a part of a dump: {:?}", dump.files());
    Ok(())
}

fn ensure_log(dump: &Dump) -> Result<()> {
    let log = dump.dmesg()?;
    ensure!(log.contains("Kernel panic"), "dmesg.txt does not reach the panic:\n{log}");
    Ok(())
}

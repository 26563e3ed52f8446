//! A disk that never answers, and one that is pulled out, where there is no other: the machine
//! comes back.

use crate::{ensure_back, ensure_log, only, scenario};
use anyhow::{Result, ensure};
use qemu_tests::extra_disk::ExtraDisk;
use qemu_tests::fault::{Action, Fault};
use qemu_tests::outcome::Outcome;
use qemu_tests::scenario::Scenario;

/// What a capture says when the log of the old kernel is durable.
const LOG: &str = "kernel log saved";

/// One extra disk as the only target; dumps of level 1 take some seconds.
fn to_one_disk(name: &str) -> Result<Scenario> {
    let disk = ExtraDisk::ext4("target", 512).with([Fault::None]);
    let mut scenario = scenario(name)?;
    scenario.config.level = 1;
    scenario.config.stall_timeout = 8;
    scenario.config.targets = vec![disk.target()];
    scenario.extra = vec![disk];
    Ok(scenario)
}

/// The log was saved, and no dump looks whole that is not.
fn ensure_log_only(outcome: &Outcome) -> Result<()> {
    let dump = only(&outcome.disk("target")?.dumps)?;
    ensure_log(dump)?;
    ensure!(!dump.file("vmcore").exists(), "a whole dump: {:?}", dump.files());
    Ok(())
}

#[test]
#[ignore = "full: the next target after such a disk has a test"]
fn a_disk_that_stops_answering_does_not_keep_the_machine_down() -> Result<()> {
    let mut scenario = to_one_disk("stall")?;
    scenario.actions = vec![(LOG.into(), Action::Stall("target".into()))];
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    // The stall is real: no error came, and the capture had to be given up.
    outcome.ensure_said("made no progress")?;
    ensure!(!outcome.text().contains("I/O error"), "the disk answered:\n{}", outcome.text());
    ensure_log_only(&outcome)?;
    outcome.discard()
}

#[test]
#[ignore = "full: an only disk that is pulled out"]
fn a_disk_that_is_pulled_out_does_not_keep_the_machine_down() -> Result<()> {
    let mut scenario = to_one_disk("unplug")?;
    scenario.actions = vec![(LOG.into(), Action::Unplug("target".into()))];
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    ensure_log_only(&outcome)?;
    let gone = outcome.events.iter().any(|event| event.get("event").is_some_and(|it| it == "DEVICE_DELETED"));
    ensure!(gone, "the disk was not pulled out: {:?}", outcome.events);
    outcome.discard()
}

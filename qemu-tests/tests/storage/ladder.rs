//! The next target, the next attempt, the watchdog: what PID 1 does when a capture does not come to
//! its end.

use crate::places::ALL_FEATURES;
use crate::{PATIENCE, SOON, ensure_back, ensure_complete, ensure_log, only, scenario};
use anyhow::{Result, ensure};
use qemu_tests::extra_disk::ExtraDisk;
use qemu_tests::fault::{Action, Fault};
use qemu_tests::kernel::Kernel;
use qemu_tests::qmp::Ending;
use qemu_tests::scenario::Scenario;

const LOG: &str = "kernel log saved";
const VITAL: &str = "the vital part is saved";

/// A first disk with something wrong with it, and a second, healthy one.
fn two_disks(name: &str, faults: Vec<Fault>) -> Result<Scenario> {
    let disks = [ExtraDisk::ext4("first", 512).with(faults), ExtraDisk::ext4("second", 512)];
    let mut scenario = scenario(name)?;
    scenario.config.level = 1;
    scenario.config.stall_timeout = 8;
    scenario.config.targets = disks.iter().map(ExtraDisk::target).collect();
    scenario.extra = disks.into();
    Ok(scenario)
}

/// A killed child, a hang or a broken disk sends the capture on to the second disk.
fn second_holds(scenario: &Scenario) -> Result<()> {
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    ensure_complete(only(&outcome.disk("second")?.dumps)?)?;
    for dump in &outcome.disk("first")?.dumps {
        ensure!(!dump.file("vmcore").exists(), "two whole dumps: {:?}", dump.files());
    }
    outcome.discard()
}

#[test]
fn the_second_target_holds_the_dump_when_the_first_stalls() -> Result<()> {
    let mut scenario = two_disks("next-stall", vec![Fault::None])?;
    scenario.actions = vec![(LOG.into(), Action::Stall("first".into()))];
    second_holds(&scenario)
}

/// A superblock that says that an error is a panic, and a journal that cannot be written; and behind it a
/// file system with all that mke2fs can switch on.
#[test]
fn the_second_target_holds_the_dump_when_the_first_errs() -> Result<()> {
    let journal = Fault::writes_between(256 << 20, 288 << 20, 16 << 10);
    let mut scenario = two_disks("next-errors", journal)?;
    let [first, second] = scenario.extra.as_slice() else { anyhow::bail!("two disks") };
    let second = second.clone().made_with(&ALL_FEATURES);
    scenario.extra = vec![first.clone().tuned(&["-e", "panic"]), second];
    let outcome = scenario.run()?;
    let text = outcome.text();
    ensure!(text.contains("I/O error"), "the first disk did not err:\n{text}");
    let panics = text.matches("Kernel panic - not syncing").count();
    ensure!(panics == 1, "{panics} panics: the first target ended the capture:\n{text}");
    ensure_back(&outcome)?;
    let disk = outcome.disk("second")?;
    ensure!(disk.complaint.is_none(), "{:?}", disk.complaint);
    ensure_complete(only(&disk.dumps)?)?;
    outcome.discard()
}

#[test]
#[ignore = "full: one that stalls or errs has a test"]
fn the_second_target_holds_the_dump_when_the_first_is_pulled_out() -> Result<()> {
    let mut scenario = two_disks("next-unplug", vec![Fault::None])?;
    scenario.actions = vec![(LOG.into(), Action::Unplug("first".into()))];
    second_holds(&scenario)
}

/// One disk, and a job of the wrapper that ends the first attempt; the next one saves everything.
fn retried(name: &str, wrap: &str, message: &str) -> Result<()> {
    let disk = ExtraDisk::ext4("target", 512);
    let mut scenario = scenario(name)?;
    scenario.config.level = 1;
    scenario.config.stall_timeout = 8;
    scenario.config.targets = vec![disk.target()];
    scenario.extra = vec![disk];
    scenario.wrap = vec![wrap.replace(' ', "_")];
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    outcome.ensure_said(message)?;
    let dumps = &outcome.disk("target")?.dumps;
    let complete: Vec<_> = dumps.iter().filter(|dump| dump.file("vmcore").exists()).collect();
    ensure!(complete.len() == 1, "{dumps:?}\n{}", outcome.text());
    complete.into_iter().try_for_each(ensure_complete)?;
    outcome.discard()
}

#[test]
fn a_capture_that_is_killed_is_tried_again() -> Result<()> {
    killed_at(&[VITAL])
}

#[test]
#[ignore = "full: four more points"]
fn a_capture_that_is_killed_at_more_points_is_tried_again() -> Result<()> {
    killed_at(&["target LABEL", "saving to", LOG, "% of"])
}

fn killed_at(lines: &[&str]) -> Result<()> {
    for line in lines {
        let wrap = format!("wrap.kill=KILL@{line}");
        let name = line.replace([' ', '%'], "-");
        retried(&format!("retry-killed-{name}"), &wrap, "killed by SIGKILL")?;
    }
    Ok(())
}

#[test]
#[ignore = "full: three deaths"]
fn a_capture_that_is_killed_each_time_leaves_the_log() -> Result<()> {
    let disk = ExtraDisk::ext4("target", 512);
    let mut scenario = scenario("retry-never")?;
    scenario.config.targets = vec![disk.target()];
    scenario.extra = vec![disk];
    // Each of the attempts that make a dump says so; the last one saves the log only.
    scenario.wrap =
        vec![format!("wrap.kill=BUS@{VITAL},2").replace(' ', "_"), "wrap.kill=ABRT@dump:_,1".into()];
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    outcome.ensure_said("killed by SIGABRT")?;
    let dumps = &outcome.disk("target")?.dumps;
    ensure!(dumps.len() > 1, "{dumps:?}");
    for dump in dumps {
        ensure_log(dump)?;
    }
    outcome.discard()
}

#[test]
fn a_power_cut_in_the_middle_leaves_the_next_capture_its_place() -> Result<()> {
    let disk = ExtraDisk::ext4("target", 512);
    let mut scenario = scenario("power-cut-twice")?;
    scenario.config.targets = vec![disk.target().key("keep", 1)];
    scenario.extra = vec![disk];
    scenario.power_cut = Some(VITAL.into());
    let first = scenario.run()?;
    let cut = only(&first.disk("target")?.dumps)?.clone();
    ensure_log(&cut)?;
    ensure!(cut.file("vmcore-incomplete").exists() && !cut.file("vmcore").exists(), "{:?}", cut.files());
    scenario.power_cut = None;
    let second = scenario.run_again(first)?;
    ensure_back(&second)?;
    // The new dump is safe; keep = 1 lets go of what came before it.
    let dump = only(&second.disk("target")?.dumps)?;
    ensure_complete(dump)?;
    ensure!(dump.name() != cut.name(), "the same capture twice");
    ensure!(dump.result()?.get("sequence").is_some_and(|it| it == 2), "{:#}", dump.result()?);
    second.discard()
}

#[test]
#[ignore = "full: two aborts"]
fn a_capture_that_aborts_twice_is_tried_a_third_time() -> Result<()> {
    retried("retry-aborted", &format!("wrap.kill=ABRT@{VITAL},2"), "killed by SIGABRT")
}

#[test]
fn a_capture_that_hangs_is_tried_again() -> Result<()> {
    retried("retry-stopped", &format!("wrap.stop={VITAL}"), "made no progress")
}

#[test]
fn a_capture_that_is_out_of_memory_is_tried_again_with_less() -> Result<()> {
    retried("retry-starved", &format!("wrap.eat=1@{LOG}"), "Out of memory: Killed process")
}

#[test]
fn the_watchdog_ends_a_capture_kernel_that_hangs() -> Result<()> {
    ended_by_the_watchdog("6.12")
}

#[test]
#[ignore = "full: a second kernel"]
fn the_watchdog_ends_a_generic_capture_kernel_that_hangs() -> Result<()> {
    ended_by_the_watchdog("6.1-generic")
}

fn ended_by_the_watchdog(series: &str) -> Result<()> {
    let disk = ExtraDisk::ext4("target", 512);
    let mut scenario = Scenario::new(&format!("watchdog-{series}"), &Kernel::of_series(series)?);
    scenario.patience = PATIENCE;
    scenario.shape.watchdog = true;
    scenario.config.modules.push("i6300esb".into());
    scenario.config.append = "panic=0".into();
    scenario.config.targets = vec![disk.target()];
    scenario.extra = vec![disk];
    scenario.wrap = vec![format!("wrap.panic={}", VITAL.replace(' ', "_"))];
    let outcome = scenario.run()?;
    ensure!(outcome.ending == Ending::Watchdog, "it ended by {:?}: {:?}", outcome.ending, outcome.events);
    // The watchdog's own time comes on top.
    outcome.ensure_in_time(SOON.saturating_add(SOON))?;
    ensure_log(only(&outcome.disk("target")?.dumps)?)?;
    outcome.discard()
}

#[test]
fn an_armed_watchdog_does_not_disturb_a_capture_that_works() -> Result<()> {
    let mut scenario = Scenario::new("watchdog-quiet", &Kernel::of_series("6.12")?);
    scenario.patience = PATIENCE;
    scenario.shape.watchdog = true;
    scenario.config.modules.push("i6300esb".into());
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    ensure_complete(outcome.dump()?)?;
    outcome.discard()
}

//! Which of several targets holds the dump: the first that can be used.

use crate::{ensure_back, ensure_complete, ensure_log, only, scenario};
use anyhow::{Result, ensure};
use qemu_tests::extra_disk::{Content, ExtraDisk, hash};
use qemu_tests::scenario::Target;

/// Runs a crash with the target `first` before the healthy disk `spare`; the reason why the first
/// was passed over must be in the result, in these words.
fn second_holds(name: &str, first: Target, disk: Option<ExtraDisk>, why: &str) -> Result<()> {
    let mut scenario = scenario(name)?;
    let spare = ExtraDisk::ext4("spare", 512);
    scenario.config.targets = vec![first.key("wait", 2), spare.target()];
    scenario.extra = disk.into_iter().chain([spare]).collect();
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    let dump = only(&outcome.disk("spare")?.dumps)?;
    ensure_complete(dump)?;
    let result = dump.result()?.to_string();
    ensure!(result.contains(why), "no word of {why:?}: {result}");
    ensure!(outcome.dumps.is_empty(), "a dump on a disk that is no target: {:?}", outcome.dumps);
    for disk in &outcome.extra {
        ensure!(disk.complaint.is_none(), "{}: {:?}", disk.name, disk.complaint);
        ensure!(disk.name == "spare" || disk.dumps.is_empty(), "{}: {:?}", disk.name, disk.dumps);
    }
    outcome.discard()
}

#[test]
#[ignore = "full: a missing one alone, and one that stalls, have tests"]
fn the_second_target_holds_the_dump_when_the_first_is_missing() -> Result<()> {
    let device = "UUID=00000000-dead-4000-8000-000000000000";
    second_holds("order-missing", Target::filesystem(device).key("fstype", "ext4"), None, device)
}

#[test]
#[ignore = "full: a first target that is read-only"]
fn the_second_target_holds_the_dump_when_the_first_is_read_only() -> Result<()> {
    let mut sealed = ExtraDisk::ext4("sealed", 64);
    sealed.read_only = true;
    second_holds("order-sealed", sealed.target(), Some(sealed), "read-only")
}

#[test]
#[ignore = "full: a first target without a file system"]
fn the_second_target_holds_the_dump_when_the_first_has_no_file_system() -> Result<()> {
    // The second disk of the machine.
    let blank = ExtraDisk::of("blank", 64, Content::Empty);
    second_holds("order-blank", Target::filesystem("/dev/vdb").key("fstype", "ext4"), Some(blank), "/dev/vdb")
}

#[test]
fn targets_behind_the_one_that_holds_the_dump_are_not_touched() -> Result<()> {
    let mut scenario = scenario("order-first")?;
    let disks = [ExtraDisk::ext4("first", 512), ExtraDisk::ext4("second", 64)];
    scenario.config.targets = disks.iter().map(ExtraDisk::target).collect();
    scenario.extra = disks.into();
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    ensure_complete(only(&outcome.disk("first")?.dumps)?)?;
    let second = outcome.disk("second")?;
    ensure!(second.dumps.is_empty(), "{:?}", second.dumps);
    let size = std::fs::metadata(&second.image)?.len();
    let before = hash(&second.image, 0..size)?;

    // The same machine crashes again; the first disk has both dumps then, and the second is what it
    // was.
    let outcome = scenario.run_again(outcome)?;
    ensure_back(&outcome)?;
    let dumps = &outcome.disk("first")?.dumps;
    ensure!(dumps.len() == 2, "{dumps:?}");
    dumps.iter().try_for_each(ensure_complete)?;
    dumps.iter().try_for_each(ensure_log)?;
    ensure!(
        hash(&outcome.disk("second")?.image, 0..size)? == before,
        "a disk that is not needed was written to"
    );
    outcome.discard()
}

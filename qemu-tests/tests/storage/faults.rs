//! Disks that answer with errors, or that are full.

use crate::{ensure_back, ensure_complete, ensure_log, ensure_part, only, scenario};
use anyhow::{Context, Result, ensure};
use qemu_tests::evidence;
use qemu_tests::extra_disk::ExtraDisk;
use qemu_tests::fault::{EIO, Fault};
use qemu_tests::outcome::Dump;

/// A bad sector every 4 MiB, behind the inode tables and beside what ext4 puts at round addresses:
/// journal, directories. A dump meets one of them, a small file does not.
fn bad_data() -> Vec<Fault> {
    Fault::writes_between(15 << 20, 512 << 20, 4 << 20)
}

/// A crash that is saved to one extra disk.
fn saved_to(name: &str, disk: ExtraDisk) -> Result<qemu_tests::outcome::Outcome> {
    let mut scenario = scenario(name)?;
    scenario.config.level = 1;
    scenario.config.targets = vec![disk.target()];
    scenario.extra = vec![disk];
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    ensure!(outcome.dumps.is_empty(), "a dump on a disk that is no target: {:?}", outcome.dumps);
    Ok(outcome)
}

#[test]
fn a_disk_that_errs_in_the_middle_of_the_data_leaves_the_log_and_a_marked_part() -> Result<()> {
    let disk = ExtraDisk::ext4("target", 512).with(bad_data());
    let outcome = saved_to("errors-data", disk)?;
    let dump = only(&outcome.disk("target")?.dumps)?;
    ensure_log(dump)?;
    ensure_part(dump)?;
    evidence::ensure_honest(&dump.path)?;
    // Pages that were not durable when the disk failed are not in it: there may be none.
    let message = dump.said_outcome()?;
    ensure!(message == "incomplete" || message == "log-only", "{:#}", dump.result()?);
    outcome.ensure_said("I/O error")?;
    outcome.discard()
}

#[test]
fn a_disk_that_errs_everywhere_from_some_write_on_does_not_keep_the_machine_down() -> Result<()> {
    errs_from(&[40])
}

#[test]
#[ignore = "full: nine more points"]
fn a_disk_that_errs_everywhere_from_any_write_on_does_not_keep_the_machine_down() -> Result<()> {
    errs_from(&[0, 1, 2, 4, 8, 16, 32, 64, 128])
}

/// Counts of writes that succeed: from the first that the mount makes to the middle of the data.
fn errs_from(counts: &[u32]) -> Result<()> {
    for &after in counts {
        let disk = ExtraDisk::ext4("target", 512).with(Fault::all_writes(after, EIO));
        let outcome = saved_to(&format!("errors-from-{after}"), disk)?;
        let disk = outcome.disk("target")?;
        // Whatever is there under a final name is whole; how much that is varies with what ext4
        // writes first.
        for dump in &disk.dumps {
            ensure!(!dump.file("vmcore").exists(), "a whole dump on a broken disk: {:?}", dump.files());
            evidence::ensure_honest(&dump.path)?;
            if dump.file("dmesg.txt").exists() {
                ensure_log(dump).with_context(|| format!("after {after} writes"))?;
            }
        }
        eprintln!("after {after} writes: {:?}", disk.dumps.iter().map(Dump::files).collect::<Vec<_>>());
        outcome.discard()?;
    }
    Ok(())
}

#[test]
#[ignore = "full: the next target after such a journal has a test"]
fn a_journal_that_cannot_be_written_does_not_keep_the_machine_down() -> Result<()> {
    // mke2fs puts the journal of 16 MiB in the middle, at the start of a block group of 128 MiB.
    unwritable("errors-journal", Fault::writes_between(256 << 20, 288 << 20, 16 << 10))
}

#[test]
#[ignore = "full: the superblock"]
fn a_superblock_that_cannot_be_written_does_not_keep_the_machine_down() -> Result<()> {
    unwritable("errors-super", Fault::writes_between(1024, 4096, 512))
}

fn unwritable(name: &str, faults: Vec<Fault>) -> Result<()> {
    let outcome = saved_to(name, ExtraDisk::ext4("target", 512).with(faults))?;
    outcome.ensure_said("I/O error")?;
    for dump in &outcome.disk("target")?.dumps {
        eprintln!("{name}: {:?}", dump.files());
        if dump.file("vmcore").exists() {
            ensure_complete(dump)?;
        }
    }
    outcome.discard()
}

#[test]
#[ignore = "full: pipeline.rs fills a file system, too"]
fn a_disk_that_fills_holds_the_log_and_a_marked_part() -> Result<()> {
    fills_at(&[60])
}

#[test]
#[ignore = "full: ten more sizes"]
fn a_disk_that_fills_at_any_point_holds_the_log_and_a_marked_part() -> Result<()> {
    fills_at(&[8, 10, 20, 30, 40, 50, 70, 80, 90, 200])
}

/// Percent of the room that a whole dump needs.
fn fills_at(percents: &[u64]) -> Result<()> {
    // A dump of level 1 has 58 MiB.
    let whole: u64 = 57 << 20;
    for percent in percents {
        let mut disk = ExtraDisk::ext4("target", 256);
        disk.room = Some(whole.saturating_mul(*percent) / 100);
        let mut scenario = scenario(&format!("full-{percent}"))?;
        scenario.config.level = 1;
        scenario.config.targets = vec![disk.target().key("when_full", "part")];
        scenario.extra = vec![disk];
        let outcome = scenario.run()?;
        ensure_back(&outcome)?;
        let left = outcome.disk("target")?;
        ensure!(left.complaint.is_none(), "{:?}", left.complaint);
        let dump = only(&left.dumps)?;
        ensure_log(dump)?;
        evidence::ensure_honest(&dump.path)?;
        if *percent >= 200 {
            ensure_complete(dump)?;
        } else {
            let message = dump.said_outcome()?;
            ensure!(message == "incomplete" || message == "log-only", "{:#}", dump.result()?);
            ensure!(!dump.file("vmcore").exists(), "{:?}", dump.files());
            if *percent >= 60 {
                ensure_part(dump)?;
            }
        }
        eprintln!("{percent} % of the room: {:?}", dump.files());
        outcome.discard()?;
    }
    Ok(())
}

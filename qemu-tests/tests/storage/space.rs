//! Room on a target: what is saved where not everything fits, what is kept, what is left to others;
//! and crash loops.

use crate::{ensure_back, ensure_complete, ensure_log, only, scenario};
use anyhow::{Context, Result, ensure};
use qemu_tests::evidence;
use qemu_tests::extra_disk::ExtraDisk;
use qemu_tests::outcome::Dump;
use qemu_tests::readers;
use qemu_tests::scenario::Scenario;

/// A first disk with so much room and keys of its own, and a second one with plenty.
fn two_disks(name: &str, room: u64, key: &str, value: &str) -> Result<Scenario> {
    let mut disks = [ExtraDisk::ext4("first", 256), ExtraDisk::ext4("second", 512)];
    disks[0].room = Some(room);
    let mut scenario = scenario(name)?;
    scenario.config.level = 1;
    scenario.config.targets = vec![disks[0].target().key(key, value), disks[1].target()];
    scenario.extra = disks.into();
    Ok(scenario)
}

/// Whether `result.json` has a degradation of this step.
fn has_degradation(dump: &Dump, step: &str) -> Result<bool> {
    let result = dump.result()?;
    let all = result.get("degradations").and_then(serde_json::Value::as_array).context("no degradations")?;
    Ok(all.iter().any(|one| one.get("step").is_some_and(|it| it == step)))
}

/// The log and the notes, and nothing that looks like a dump.
fn ensure_log_and_notes(dump: &Dump) -> Result<()> {
    ensure_log(dump)?;
    ensure!(dump.said_outcome()? == "log-only", "{:#}", dump.result()?);
    ensure!(!dump.file("vmcore").exists() && !dump.file("vmcore-incomplete").exists(), "{:?}", dump.files());
    // readelf is the judge of an ELF file without memory.
    let notes = readers::elf_notes(&dump.file("notes.elf"))?;
    ensure!(notes.contains("VMCOREINFO") && notes.contains("NT_PRSTATUS"), "notes.elf:\n{notes}");
    evidence::ensure_honest(&dump.path)
}

#[test]
fn a_dump_that_does_not_fit_becomes_a_stricter_one() -> Result<()> {
    // The whole dump of level 1 has 58 MiB, one of level 31 has 16 to 45: `load` leaves zeros behind.
    let scenario = two_disks("space-stricter", 52 << 20, "when_full", "stricter")?;
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    let dump = only(&outcome.disk("first")?.dumps)?;
    ensure_complete(dump)?;
    ensure!(dump.result()?.get("level").is_some_and(|level| level == 31), "{:#}", dump.result()?);
    ensure!(has_degradation(dump, "no-room")?, "{:#}", dump.result()?);
    ensure!(outcome.disk("second")?.dumps.is_empty(), "the second target was not needed");
    outcome.discard()
}

#[test]
fn where_not_even_that_fits_the_log_is_saved_and_the_next_target_takes_the_dump() -> Result<()> {
    does_not_fit(&[("stricter", 8)])
}

#[test]
#[ignore = "full: when_full = \"log\" and \"nothing\""]
fn where_less_is_wanted_of_what_does_not_fit_the_log_is_saved() -> Result<()> {
    does_not_fit(&[("log", 40), ("nothing", 40)])
}

/// Cases of `when_full` and MiB of the first target.
fn does_not_fit(cases: &[(&str, u64)]) -> Result<()> {
    for &(when_full, mib) in cases {
        let mut scenario = two_disks(&format!("space-{when_full}"), mib << 20, "when_full", when_full)?;
        "rows".clone_into(&mut scenario.config.triage);
        let outcome = scenario.run()?;
        ensure_back(&outcome)?;
        let first = only(&outcome.disk("first")?.dumps)?;
        if when_full == "nothing" {
            ensure_log(first)?;
        } else {
            ensure_log_and_notes(first)?;
        }
        // Rows stand for the dump where there is room for them, and where it is not to be left to others.
        let has_rows =
            |dump: &Dump| dump.files().iter().any(|(name, size)| name == "triage.tar.zst" && *size > 0);
        ensure!(has_rows(first) == (when_full == "log"), "{:?}", first.files());
        let second = only(&outcome.disk("second")?.dumps)?;
        ensure_complete(second)?;
        ensure!(has_rows(second), "{:?}", second.files());
        ensure!(second.result()?.get("level").is_some_and(|level| level == 1), "{:#}", second.result()?);
        outcome.discard()?;
    }
    Ok(())
}

#[test]
fn what_is_reserved_is_left_to_others() -> Result<()> {
    let scenario = two_disks("space-reserve", 128 << 20, "reserve", "100M")?;
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    let first = outcome.disk("first")?;
    for dump in &first.dumps {
        let size: u64 = dump.files().iter().map(|(_, size)| size).sum();
        ensure!(size <= 28 << 20, "{:?} reach into the reserve", dump.files());
    }
    ensure_log(only(&first.dumps)?)?;
    outcome.discard()
}

#[test]
fn the_newest_dumps_are_kept_and_a_loop_of_crashes_ends_in_logs() -> Result<()> {
    let disk = ExtraDisk::ext4("target", 512);
    let mut scenario = scenario("space-keep")?;
    scenario.config.targets = vec![disk.target().key("keep", 2)];
    scenario.config.capture = "crash_loop = { crashes = 3, within = 3600 }".into();
    scenario.extra = vec![disk];
    let mut outcome = scenario.run()?;
    let mut seen: Vec<String> = Vec::new();
    for turn in 1..=4_u64 {
        ensure_back(&outcome)?;
        let dumps = &outcome.disk("target")?.dumps;
        let names: Vec<String> = dumps.iter().map(Dump::name).collect();
        let new: Vec<&Dump> = dumps.iter().filter(|dump| !seen.contains(&dump.name())).collect();
        let [dump] = new.as_slice() else {
            anyhow::bail!("{} new captures in turn {turn}: {names:?}", new.len())
        };
        let sequence = dump.result()?.get("sequence").and_then(serde_json::Value::as_u64);
        ensure!(sequence == Some(turn), "{sequence:?} in turn {turn}");
        if turn <= 3 {
            ensure_complete(dump)?;
            ensure!(dumps.len() <= 2, "more than two are kept: {names:?}");
        } else {
            // The fourth crash within the hour.
            ensure_log_and_notes(dump)?;
            ensure!(has_degradation(dump, "crash-loop")?, "{:#}", dump.result()?);
            outcome.ensure_said("CRASH LOOP")?;
            // Nothing is removed for a capture that is no dump.
            ensure!(dumps.len() == 3, "{names:?}");
        }
        seen.push(dump.name());
        if turn < 4 {
            outcome = scenario.run_again(outcome)?;
        }
    }
    outcome.discard()
}

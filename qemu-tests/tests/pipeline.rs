//! Dumps that are cut short: by a full disk, a killed process, a guest that loses power. Behind the
//! vital part crash opens each of them and finds tasks, stacks, modules and the log.

use anyhow::{Context, Result, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::command::{Run, command};
use qemu_tests::cut::{Cut, Dumper};
use qemu_tests::evidence;
use qemu_tests::kernel::Kernel;
use qemu_tests::scenario::{Scenario, Target};
use qemu_tests::{raw_core, readers};
use std::fs;
use std::path::Path;

/// What must work on a dump that was cut short.
const COMMANDS: [&str; 4] = ["bt", "ps", "log", "mod"];
const SERIES: &str = "6.1";
/// What a capture says when the vital part is durable.
const VITAL: &str = "the vital part is saved";

/// Tasks, stacks and log of a dump that a guest left; the crash itself is in the log.
fn ensure_opens(kernel: &Kernel, dump: &Path) -> Result<()> {
    let message = readers::crash(&kernel.vmlinux(), dump, &COMMANDS)?;
    let [bt, _, log, _] = message.as_slice() else { anyhow::bail!("crash said {} things", message.len()) };
    ensure!(bt.contains("crash_kexec"), "bt does not lead to the crash:\n{bt}");
    ensure!(log.contains("Kernel panic"), "the log does not have the panic:\n{log}");
    Ok(())
}

#[test]
fn a_dump_cut_short_by_a_full_disk_or_a_killed_process_opens_behind_its_vital_part() -> Result<()> {
    let kernel = Kernel::with_symbols(SERIES)?;
    let raw = raw_core::of(SERIES)?;
    let work = tempfile::tempdir()?;
    let dumper = Dumper::new(&raw, work.path());
    let whole = dumper.whole()?;
    let expected = readers::crash(&kernel.vmlinux(), &whole.path, &COMMANDS)?;
    let percent = |part: u64| whole.bytes.saturating_mul(part) / 100;
    eprintln!("the vital part is {} of {} bytes", whole.vital_bytes, whole.bytes);
    // The first cut behind the vital part: the data, and the descriptors of a sync.
    let first = whole.vital_bytes.saturating_add(4096);
    let mut opened = 0;
    for at in [percent(25), percent(50), first, percent(75), percent(95)] {
        for cut in [Cut::FullDisk(at), Cut::Killed(at)] {
            let dump = dumper.cut(&cut)?;
            if dump.length_at_cut < first {
                continue;
            }
            let message = readers::crash(&kernel.vmlinux(), &dump.path, &COMMANDS);
            ensure!(
                message.with_context(|| format!("{cut:?}"))? == expected,
                "{cut:?}: crash says something else"
            );
            opened += 1;
        }
    }
    ensure!(opened >= 2, "only {opened} cuts lay behind the vital part");
    Ok(())
}

#[test]
fn a_stream_that_was_cut_is_recovered_and_opens_behind_its_vital_part() -> Result<()> {
    let kernel = Kernel::with_symbols(SERIES)?;
    let raw = raw_core::of(SERIES)?;
    let work = tempfile::tempdir()?;
    let path = |name: &str| work.path().join(name);
    let afterimage = Binaries::get()?.afterimage.display().to_string();
    let dump = ["dump", "--level", "31", "--format", "flattened"];
    let result = command(&afterimage).args(dump).args([&raw, &path("whole")]).run()?.stdout;
    let result: serde_json::Value = serde_json::from_slice(&result)?;
    let stream = fs::read(path("whole"))?;
    let recover = |parts: &[&[u8]], out: &str| -> Result<Option<i32>> {
        let names: Vec<_> = (0..parts.len()).map(|part| path(&format!("{out}.part{part}"))).collect();
        for (name, bytes) in names.iter().zip(parts) {
            fs::write(name, bytes)?;
        }
        Ok(command(&afterimage).arg("recover").args(&names).arg(path(out)).output()?.status.code())
    };
    ensure!(recover(&[&stream], "all")? == Some(0), "a whole stream is not recovered whole");
    let expected = readers::crash(&kernel.vmlinux(), &path("all"), &COMMANDS)?;
    // Two parts that arrived, the second one to the middle of what is not vital; and what arrived
    // around a gap there.
    let figure = |name: &str| result.get(name).and_then(serde_json::Value::as_u64).context(name.to_owned());
    let rest = figure("dump_bytes")?.saturating_sub(figure("vital_bytes")?);
    let rest = usize::try_from(rest)?;
    ensure!(rest > 64 << 10, "there is hardly anything that is not vital: {rest} bytes");
    let (middle, late) = (stream.len() - rest / 2, stream.len() - rest / 4);
    let cuts: [(&str, Vec<&[u8]>); 2] = [
        ("cut", vec![&stream[..middle / 2], &stream[middle / 2..middle]]),
        ("gap", vec![&stream[..middle], &stream[late..]]),
    ];
    for (name, parts) in cuts {
        ensure!(recover(&parts, name)? == Some(3), "{name}: it does not say that something is missing");
        let message = readers::crash(&kernel.vmlinux(), &path(name), &COMMANDS);
        ensure!(message.context(name)? == expected, "{name}: crash says something else");
    }
    Ok(())
}

/// Without the note, VMCOREINFO is found in memory, and all readers find it in what is made of the
/// core.
#[test]
fn a_core_without_vmcoreinfo_becomes_a_dump_that_has_it() -> Result<()> {
    let raw = raw_core::of(SERIES)?;
    let work = tempfile::tempdir()?;
    let path = |name: &str| work.path().join(name);
    let expected = readers::makedumpfile_dmesg(&raw)?;
    let mut core = fs::read(&raw)?;
    let name = b"VMCOREINFO\0";
    let head = core.get(..64 << 10).unwrap_or(&core);
    let at = head.windows(name.len()).position(|window| window == name).context("no VMCOREINFO")?;
    core[at..at + 4].copy_from_slice(b"xxxx");
    fs::write(path("core"), core)?;
    let afterimage = Binaries::get()?.afterimage.display().to_string();
    for format in ["kdump", "elf"] {
        let dump = ["dump", "--level", "31", "--format", format];
        command(&afterimage).args(dump).args([path("core"), path(format)]).run()?;
        ensure!(readers::makedumpfile_dmesg(&path(format))? == expected, "{format}: another log");
    }
    let ours = command(&afterimage).arg("dmesg").arg(path("core")).run()?;
    ensure!(ours.stdout == expected, "`afterimage dmesg` does not search memory");
    Ok(())
}

#[test]
#[ignore = "full: a cut dump and a power cut have tests of their own"]
fn a_guest_that_loses_power_leaves_a_dump_that_opens() -> Result<()> {
    power_cut("early", VITAL)
}

#[test]
#[ignore = "full: the power is cut in the middle of the last writes"]
fn a_guest_that_loses_power_late_leaves_a_dump_that_opens() -> Result<()> {
    power_cut("late", "dump: 100%")
}

/// Cuts the power when the capture says this line.
fn power_cut(name: &str, line: &str) -> Result<()> {
    let kernel = Kernel::with_symbols(SERIES)?;
    let mut scenario = Scenario::new(&format!("power-cut-{name}"), &kernel);
    scenario.config.level = 31;
    scenario.power_cut = Some(line.into());
    let outcome = scenario.run()?;
    let dump = outcome.dump()?;
    ensure!(!dump.file("vmcore").exists(), "the power was cut too late");
    ensure_opens(&kernel, &dump.file("vmcore-incomplete"))?;
    ensure!(dump.dmesg()?.contains("Kernel panic"), "dmesg.txt was not saved before the dump");
    outcome.discard()
}

#[test]
fn a_full_file_system_in_the_guest_leaves_a_dump_that_opens() -> Result<()> {
    let kernel = Kernel::with_symbols(SERIES)?;
    // At level 1 the dump has 58 MiB, 15 to 25 of them vital: how many varies with what the kernel
    // was about to free.
    let mut scenario = Scenario::new("room", &kernel);
    scenario.config.level = 1;
    // By itself a capture would choose a level that fits.
    let target = Target::filesystem("LABEL=dump").key("fstype", "ext4").key("when_full", "part");
    scenario.config.targets = vec![target];
    scenario.room = Some(42 << 20);
    let outcome = scenario.run()?;
    outcome.ensure_final_action("reboot")?;
    let dump = outcome.dump()?;
    let result = dump.result()?;
    ensure!(result.get("outcome").is_some_and(|message| message == "incomplete"), "{result:#}");
    ensure!(result.get("vital_bytes").is_some_and(serde_json::Value::is_u64), "{result:#}");
    ensure!(dump.dmesg()?.contains("Kernel panic"), "dmesg.txt was not saved before the dump");
    ensure_opens(&kernel, &dump.file("vmcore-incomplete"))?;
    evidence::ensure_honest(&dump.path)?;
    outcome.discard()
}

#[test]
fn a_capture_needs_little_memory_of_its_own() -> Result<()> {
    let kernel = Kernel::of_series(SERIES)?;
    let mut scenario = Scenario::new("memory", &kernel);
    scenario.config.level = 31;
    scenario.config.compress = "auto".into();
    scenario.memory_mib = 2048;
    scenario.crashkernel = "84M".into();
    let outcome = scenario.run()?;
    let result = outcome.dump()?.result()?;
    ensure!(result.get("outcome").is_some_and(|outcome| outcome == "complete"), "{result:#}");
    let figure =
        |name: &str| result.pointer(name).and_then(serde_json::Value::as_u64).context(name.to_owned());
    let own = figure("/memory_use/peak_own_bytes")?;
    eprintln!("own {own} bytes, least available {} bytes", figure("/memory_use/least_available_bytes")?);
    ensure!(own > 0 && own <= 32 << 20, "the capture took {own} bytes");
    outcome.discard()
}

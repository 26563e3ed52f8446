//! The main job: a kernel panics, the capture saves it, independent tools read what it saved.
//!
//! One case of each kind by default; scripts/test --full runs the ignored ones, too: every
//! combination of kernel, dump level and compression.

use anyhow::{Context, Result, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::command::{Run, command};
use qemu_tests::evidence;
use qemu_tests::kernel::Kernel;
use qemu_tests::marker::{self, Kind};
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::readers;
use qemu_tests::scenario::{HOST, READ_ONLY_UUID, Scenario};
use qemu_tests::target_disk::Format;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Type of the note that holds the registers of a CPU (elf.h).
const NT_PRSTATUS: u32 = 1;

/// Seconds; a level-0 zlib dump of an emulated guest takes several times as long.
const STALL_TIMEOUT: u32 = 8;

#[test]
fn kernel_6_1_is_saved_whole() -> Result<()> {
    whole_memory("6.1", 1, "zstd:1")
}

#[test]
#[ignore = "full: kernel 6.12"]
fn kernel_6_12_is_saved_whole() -> Result<()> {
    whole_memory("6.12", 1, "zstd:1")
}

#[test]
#[ignore = "full: kernel 5.10, the oldest"]
fn kernel_5_10_is_saved_whole() -> Result<()> {
    whole_memory("5.10", 1, "zstd:1")
}

#[test]
#[ignore = "full: kernel 7.2, the newest"]
fn kernel_7_2_is_saved_whole() -> Result<()> {
    whole_memory("7.2", 1, "zstd:1")
}

#[test]
fn a_kernel_with_its_storage_stack_in_modules_is_saved_whole() -> Result<()> {
    whole_memory("6.1-generic", 1, "zstd:1")
}

/// Another compressor and no filter at all; the zstd cases have tests of their own.
#[test]
#[ignore = "full: another compressor, no filter, a slow disk"]
fn all_pages_by_zlib_are_saved_whole() -> Result<()> {
    whole_memory("6.1", 0, "zlib")
}

#[test]
#[ignore = "full: every level and compression, two kernels"]
fn every_level_and_compression_saves_all_memory() -> Result<()> {
    for series in ["6.1", "6.12"] {
        for level in [0, 1] {
            for compress in ["zstd:1", "zlib", "none"] {
                // These have tests of their own.
                if !matches!((series, level, compress), (_, 1, "zstd:1") | ("6.1", 0, "zlib")) {
                    whole_memory(series, level, compress)?;
                }
            }
        }
    }
    Ok(())
}

/// Saves a crash at a level that keeps all memory and compares every page with a raw copy of it.
fn whole_memory(series: &str, level: u8, compress: &str) -> Result<()> {
    // Slow enough that PID 1 would give it up if no beat reached it.
    let slow = (level, compress) == (0, "zlib");
    let kernel = Kernel::of_series(series)?;
    let name = format!("{series}-level{level}-{}", compress.replace(':', ""));
    let mut scenario = Scenario::new(&name, &kernel);
    scenario.raw_copy = true;
    scenario.memory_mib = if slow { 384 } else { 512 }; // all of it is copied and compared, page by page
    scenario.config.level = level;
    scenario.config.compress = compress.into();
    if slow {
        scenario.config.stall_timeout = STALL_TIMEOUT;
    }
    let outcome = scenario.run()?;
    outcome.ensure_final_action("reboot")?;

    let dump = outcome.dump()?;
    ensure_named_and_private(&outcome, dump)?;
    let result = dump.result()?;
    let message = result.get("outcome").and_then(serde_json::Value::as_str);
    ensure!(message == Some("complete"), "result.json: {result:#}");
    if slow {
        let seconds = result.pointer("/seconds/dump").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        ensure!(seconds > f64::from(STALL_TIMEOUT), "the dump took {seconds} s: beats did not matter");
    }
    ensure_log(&outcome, dump)?;

    let comparison = readers::compare(outcome.raw()?, &dump.file("vmcore"), &outcome.seed)?;
    eprintln!("{name}: {} pages compared", comparison.pages);
    comparison.ensure_equal().context("the dump made by the capture")?;
    comparison.ensure_markers(&outcome.seed)?;

    // The same pages through the host side's own road: of one kernel, since formats.rs does it, too.
    let levels: &[&str] = if (series, compress) == ("6.1", "zstd:1") { &["0", "1"] } else { &[] };
    for level in levels {
        let offline = outcome.scratch(&format!("offline-{level}"));
        command(&Binaries::get()?.afterimage.to_string_lossy())
            .args(["dump", "--level", level])
            .args([outcome.raw()?, &offline])
            .run()?;
        let comparison = readers::compare(outcome.raw()?, &offline, &outcome.seed)?;
        comparison
            .ensure_equal()
            .with_context(|| format!("the dump made by `afterimage dump --level {level}`"))?;
        comparison.ensure_markers(&outcome.seed)?;
    }
    outcome.discard()
}

#[test]
fn crash_and_drgn_read_the_dump_with_symbols() -> Result<()> {
    let kernel = Kernel::with_symbols("6.1")?;
    let outcome = Scenario::new("symbols", &kernel).run()?;
    let vmcore = outcome.dump()?.file("vmcore");

    let commands = ["sys", "bt", "log", "ps", "kmem -i"];
    let outputs = readers::crash(&kernel.vmlinux(), &vmcore, &commands)?;
    let [sys, bt, log, ps, _memory] = outputs.as_slice() else {
        anyhow::bail!("crash ran {}", outputs.len())
    };
    ensure!(sys.contains(kernel.version()) && sys.contains(HOST), "crash sys:\n{sys}");
    ensure!(bt.contains("sysrq_handle_crash"), "crash bt:\n{bt}");
    ensure!(log.contains(&marker::text(&outcome.seed, Kind::Log, 0)), "crash log:\n{log}");

    let system = readers::symbols(&kernel.vmlinux(), &vmcore)?;
    ensure!(system.release == kernel.version() && system.host == HOST, "drgn: {system:?}");
    ensure!(system.tasks.iter().any(|task| task == "witness-sleeper"), "drgn: {system:?}");
    ensure!(system.crashed.as_deref() == Some("init"), "drgn: {system:?}");
    readers::ensure_tasks(ps, &system.tasks)?;
    let crashing = system.trace.iter().flatten().any(|function| function == "sysrq_handle_crash");
    ensure!(crashing, "drgn: {system:?}");
    outcome.discard()
}

#[test]
fn registers_of_all_four_cpus_are_saved_after_a_panic_on_the_third() -> Result<()> {
    let kernel = Kernel::with_symbols("6.1")?;
    let mut scenario = Scenario::new("four-cpus", &kernel);
    scenario.cpus = 4;
    scenario.panic_cpu = 2;
    scenario.config.cpus = 2;
    let outcome = scenario.run()?;
    let vmcore = outcome.dump()?.file("vmcore");

    let notes = readers::notes(&vmcore)?;
    let registers = notes.iter().filter(|(name, kind, _)| name == "CORE" && *kind == NT_PRSTATUS).count();
    ensure!(registers == 4, "{registers} NT_PRSTATUS among {notes:?}");

    let outputs = readers::crash(&kernel.vmlinux(), &vmcore, &["bt", "bt -a"])?;
    let [panicking, all] = outputs.as_slice() else { anyhow::bail!("crash ran {}", outputs.len()) };
    ensure!(panicking.contains("CPU: 2 "), "crash bt:\n{panicking}");
    for cpu in 0..4 {
        ensure!(all.contains(&format!("CPU: {cpu} ")), "crash bt -a lacks CPU {cpu}:\n{all}");
    }
    outcome.discard()
}

#[test]
fn every_file_system_takes_a_dump() -> Result<()> {
    let kernel = Kernel::of_series("6.1")?;
    for format in [Format::Xfs, Format::Btrfs, Format::Vfat] {
        let outcome = Scenario::new(&format!("target-{}", format.fstype()), &kernel).to(format).run()?;
        outcome.ensure_final_action("reboot")?;
        outcome.ensure_said(&format!("target {} is /dev/", format.device()))?;
        outcome.ensure_said("afterimage: complete: ")?;
        // No tool reads XFS without mounting it: there the console and xfs_repair have to do.
        if format != Format::Xfs {
            ensure_log(&outcome, outcome.dump()?)?;
        }
        outcome.discard()?;
    }
    Ok(())
}

#[test]
fn a_target_that_never_appears_does_not_keep_the_machine_down() -> Result<()> {
    let device = "UUID=00000000-dead-4000-8000-000000000000";
    let mut scenario = Scenario::new("no-target", &Kernel::of_series("6.1")?);
    scenario.config.device = device.into();
    scenario.config.wait = 3;
    let outcome = scenario.run()?;
    outcome.ensure_final_action("reboot")?;
    outcome.ensure_said(device)?;
    ensure!(outcome.dumps.is_empty(), "a dump on a disk that is not the target: {:?}", outcome.dumps);
    outcome.discard()
}

#[test]
fn a_read_only_target_is_a_clear_error() -> Result<()> {
    let device = format!("UUID={READ_ONLY_UUID}");
    let mut scenario = Scenario::new("read-only", &Kernel::of_series("6.1")?);
    scenario.read_only_disk = true;
    scenario.config.device.clone_from(&device);
    let outcome = scenario.run()?;
    outcome.ensure_final_action("reboot")?;
    // The target by its name and the reason, on one line, in the words of the kernel's error or of
    // ours.
    let clear = outcome.console.iter().any(|line| {
        let text = line.text.to_lowercase();
        line.text.contains(&device)
            && ["read-only", "read only", "erofs", "write protected"].iter().any(|word| text.contains(word))
    });
    ensure!(clear, "no line names {device} and that it is read-only:\n{}", outcome.text());
    ensure!(outcome.dumps.is_empty(), "a dump on a disk that is not the target: {:?}", outcome.dumps);
    outcome.discard()
}

#[test]
fn poweroff_is_a_final_action_and_an_image_can_be_loaded_again() -> Result<()> {
    let mut scenario = Scenario::new("poweroff", &Kernel::of_series("6.1")?);
    scenario.config.action = "poweroff".into();
    scenario.run = "unload,load,status,check".into(); // each must succeed
    let outcome = scenario.run()?;
    outcome.ensure_final_action("poweroff")?;
    ensure_named_and_private(&outcome, outcome.dump()?)?;
    outcome.discard()
}

/// The directory is named after the crash, and nobody but root gets at memory content.
fn ensure_named_and_private(outcome: &Outcome, dump: &Dump) -> Result<()> {
    let name = dump.path.file_name().unwrap_or_default().to_string_lossy();
    let boot = outcome.boot_id.get(..8).context("the boot id is short")?;
    ensure!(name.ends_with(&format!("-{HOST}-{boot}")), "{name} does not name {HOST} and boot {boot}");
    ensure_mode(&dump.path, 0o700)?;
    for file in ["dmesg.txt", "vmcore", "result.json", "manifest.json"] {
        ensure_mode(&dump.file(file), 0o400)?;
    }
    let manifest = evidence::ensure_holds(&dump.path, "complete")?;
    let is = |path: &str| manifest.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_default();
    ensure!(is("/times/old_clock/estimated_error_us") == 16_000_000, "{manifest:#}");
    ensure!(is("/pages/reserved") << 12 >= 64 << 20, "{manifest:#}");
    let memory = manifest.pointer("/files").and_then(|files| files.as_array()).context("no files")?;
    let memory = memory.iter().find(|file| file["role"] == "memory").context("no memory")?;
    // Written at offsets: no page was read back for a sum of the whole.
    ensure!(memory["sha256"].is_null() && memory.pointer("/pieces/merkle_root").is_some(), "{memory:#}");
    Ok(())
}

fn ensure_mode(path: &Path, expected: u32) -> Result<()> {
    let metadata = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    let mode = metadata.permissions().mode() & 0o7777;
    ensure!(mode == expected, "{} has mode {mode:o} instead of {expected:o}", path.display());
    Ok(())
}

/// The saved log is the one of this crash, and the one that makedumpfile finds in the dump.
fn ensure_log(outcome: &Outcome, dump: &Dump) -> Result<()> {
    let dmesg = dump.dmesg()?;
    let line = marker::text(&outcome.seed, Kind::Log, 0);
    ensure!(dmesg.contains(&line), "dmesg.txt lacks {line}:\n{dmesg}");
    ensure!(dmesg.contains("Kernel panic"), "dmesg.txt does not reach the panic:\n{dmesg}");
    let theirs = String::from_utf8_lossy(&readers::makedumpfile_dmesg(&dump.file("vmcore"))?).into_owned();
    if let Some((ours, theirs)) = dmesg.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs) {
        anyhow::bail!("dmesg.txt has {ours:?} where makedumpfile has {theirs:?}");
    }
    ensure!(dmesg == theirs, "dmesg.txt has {} bytes, makedumpfile {}", dmesg.len(), theirs.len());
    Ok(())
}

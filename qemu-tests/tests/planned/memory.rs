//! A planned switch without a panic: every page of the old kernel is in the dump as it was.

use crate::{PATIENCE, SERIES, series};
use anyhow::{Result, ensure};
use qemu_tests::fault::Action;
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::page_check::elf_end;
use qemu_tests::pages::Kind;
use qemu_tests::qmp::Ending;
use qemu_tests::readers;
use qemu_tests::scenario::{HOST, Scenario};
use qemu_tests::trigger::Trigger;
use std::process::Command;

/// Self-checking pages of each kind: 200,000 together.
const PAGES: u32 = 50_000;
/// Holds them, what a kernel needs, and the capture kernel.
const MEMORY_MIB: u32 = 1536;

/// A machine that is full of pages and switches kernels. The disks lack the dirty ones.
fn crowded(name: &str, series: &str) -> Result<Scenario> {
    let mut scenario = Scenario::new(name, &Kernel::of_series(series)?);
    scenario.config.level = 1; // pages of processes, too
    scenario.memory_mib = MEMORY_MIB;
    scenario.crashkernel = "192M".into();
    scenario.pages = PAGES;
    scenario.patience = PATIENCE;
    scenario.trigger = Trigger::planned().with("--no-sync");
    Ok(scenario)
}

fn ensure_saved(outcome: &Outcome) -> Result<&Dump> {
    let dump = outcome.dump()?;
    ensure_planned(dump)?;
    let tally = outcome.pages(&dump.file("vmcore"))?;
    tally.ensure_whole(&Kind::USUAL, usize::try_from(PAGES)?)?;
    // An independent reader finds the log, up to the last thing that the kernel does.
    let log = String::from_utf8_lossy(&readers::makedumpfile_dmesg(&dump.file("vmcore"))?).into_owned();
    ensure!(log.contains("Starting new kernel") && !log.contains("Kernel panic"), "{log}");
    outcome.ensure_final_action("reboot")?;
    Ok(dump)
}

/// What result.json and live.tar say of a switch.
fn ensure_planned(dump: &Dump) -> Result<()> {
    let result = dump.result()?;
    let text = |pointer: &str| result.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default();
    ensure!(text("/outcome") == "complete" && text("/trigger") == "planned", "{result:#}");
    ensure!(text("/intent/why").contains("drill") && text("/intent/ticket") == "T-1", "{result:#}");
    ensure!(text("/registers").starts_with("none: planned switch"), "{result:#}");
    ensure!(result.pointer("/live/intact") == Some(&true.into()), "{result:#}");
    let degradations = result.pointer("/degradations").and_then(|all| all.as_array());
    ensure!(degradations.is_some_and(Vec::is_empty), "{result:#}");
    let tar = Command::new("tar").arg("-tf").arg(dump.file("live.tar")).output()?;
    let names = String::from_utf8_lossy(&tar.stdout).into_owned();
    ensure!(
        tar.status.success() && names.contains("intent.json") && names.contains("collectors.json"),
        "{names}"
    );
    ensure!(names.contains("/net/tcp"), "sockets are what is gone first: {names}");
    Ok(())
}

#[test]
fn every_page_of_the_old_kernel_is_in_the_dump() -> Result<()> {
    let mut scenario = crowded("planned", &series())?;
    scenario.raw_copy = true;
    let outcome = scenario.run()?;
    let dump = ensure_saved(&outcome)?;
    // /proc/vmcore reads to its end: a kernel that had written over old memory would stop there.
    let raw = outcome.raw()?;
    ensure!(std::fs::metadata(raw)?.len() == elf_end(raw)?, "the raw copy ends early");
    outcome.pages(raw)?.ensure_whole(&Kind::USUAL, usize::try_from(PAGES)?)?;
    if series() == SERIES {
        let kernel = Kernel::with_symbols(SERIES)?;
        let system = readers::symbols(&kernel.vmlinux(), &dump.file("vmcore"))?;
        ensure!(system.release == kernel.version() && system.host == HOST, "drgn: {system:?}");
        let asleep = system.asleep.iter().flatten().any(|function| function.contains("nanosleep"));
        ensure!(asleep && system.crashed.is_none(), "stacks are unwound from memory: {system:?}");
        let bt = readers::crash(&kernel.vmlinux(), &dump.file("vmcore"), &["sys", "bt"])?.join("\n");
        ensure!(bt.contains("kernel_kexec") && bt.contains("afterimage"), "crash: {bt}");
    }
    outcome.discard()
}

/// Runs a machine that differs from the usual one.
fn other(name: &str, series: &str, change: impl FnOnce(&mut Scenario)) -> Result<()> {
    let mut scenario = crowded(name, series)?;
    change(&mut scenario);
    let outcome = scenario.run()?;
    ensure_saved(&outcome)?;
    outcome.discard()
}

#[test]
#[ignore = "full: planned 5.10"]
fn kernel_5_10_keeps_every_page() -> Result<()> {
    other("planned-5.10", "5.10", |_| ())
}

#[test]
#[ignore = "full: planned 6.12"]
fn kernel_6_12_keeps_every_page() -> Result<()> {
    other("planned-6.12", "6.12", |_| ())
}

#[test]
#[ignore = "full: planned 7.2"]
fn kernel_7_2_keeps_every_page() -> Result<()> {
    other("planned-7.2", "7.2", |_| ())
}

#[test]
#[ignore = "full: planned la57-off"]
fn four_levels_of_page_tables_keep_every_page() -> Result<()> {
    other("planned-la57-off", &series(), |scenario| scenario.shape.cpu = "la57=off".into())
}

#[test]
#[ignore = "full: planned high"]
fn memory_above_4_gib_and_a_high_reservation_keep_every_page() -> Result<()> {
    other("planned-high", &series(), |scenario| {
        scenario.memory_mib = 5120;
        scenario.crashkernel = "256M,high".into();
    })
}

#[test]
#[ignore = "full: planned efi"]
fn efi_firmware_keeps_every_page() -> Result<()> {
    other("planned-efi", &series(), |scenario| scenario.shape.efi = true)
}

#[test]
#[ignore = "full: planned 2-cpus"]
fn two_processors_keep_every_page() -> Result<()> {
    other("planned-2-cpus", &series(), |scenario| scenario.cpus = 2)
}

#[test]
#[ignore = "full: a switch by panic"]
fn a_deliberate_panic_keeps_the_registers_and_the_intent() -> Result<()> {
    let mut scenario = crate::scenario("planned-panic")?;
    scenario.trigger = Trigger::planned().with("--via").with("panic");
    // The road under lockdown.
    scenario.config.capture = "loader = \"kexec_file_load\"".into();
    let outcome = scenario.run()?;
    let result = outcome.dump()?.result()?;
    let text = |pointer: &str| result.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default();
    ensure!(text("/trigger") == "planned" && text("/registers") == "of 1 CPU", "{result:#}");
    ensure!(result.pointer("/intent/via_panic") == Some(&true.into()), "{result:#}");
    ensure!(result.pointer("/live/intact") == Some(&true.into()), "{result:#}");
    outcome.discard()
}

#[test]
fn a_staged_switch_waits_for_any_kexec() -> Result<()> {
    let mut scenario = crate::scenario("planned-staged")?;
    scenario.trigger = Trigger::Staged;
    let outcome = scenario.run()?;
    let result = outcome.dump()?.result()?;
    let text = |pointer: &str| result.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default();
    ensure!(text("/trigger") == "planned" && text("/outcome") == "complete", "{result:#}");
    ensure!(text("/intent/who").starts_with("staged by") && text("/intent/ticket") == "T-1", "{result:#}");
    outcome.discard()
}

/// What is entered is what was loaded, or nothing is: the trampoline computes its SHA-256. (A
/// switch looks before that, and does not begin.)
#[test]
fn an_image_that_was_damaged_in_memory_is_not_started() -> Result<()> {
    let mut scenario = Scenario::new("planned-damaged", &Kernel::of_series(SERIES)?);
    // Amid the kernel, which begins with the reservation or less than 2 MiB behind that.
    scenario.trigger = Trigger::Staged;
    scenario.actions = vec![("production: kexec after".into(), Action::Damage(6 << 20))];
    let outcome = scenario.run()?;
    outcome.ensure_said("the kernel to be started is damaged in memory (SHA-256): reset")?;
    ensure!(outcome.ending == Ending::Reset, "{:?}", outcome.events);
    ensure!(outcome.dumps.is_empty(), "{:?}", outcome.dumps);
    outcome.discard()
}

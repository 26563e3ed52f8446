//! `kexec` as the final action: the third kernel has all the machine again.

use crate::{scenario, series};
use anyhow::{Context, Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::Outcome;
use qemu_tests::qmp::Ending;
use qemu_tests::scenario::Scenario;
use qemu_tests::trigger::Trigger;

/// Reserved for the capture kernel.
const RESERVED_MIB: u64 = 160;

/// A production system that the capture hands over to.
fn handing_over(name: &str) -> Result<Scenario> {
    let mut scenario = scenario(name)?;
    scenario.third = true;
    scenario.cpus = 2;
    scenario.config.finish = "panic.success = \"kexec\"\nplanned.success = \"kexec\"".into();
    scenario.config.more = format!(
        "[boot]\ndevice = \"LABEL=dump\"\nfstype = \"ext4\"\nkernel = \"/boot/vmlinuz\"\ninitrd \
         = \"/boot/initrd\"\n\
         cmdline = \"console=ttyS0 panic=10 crashkernel={RESERVED_MIB}M prod.host=third prod.third\"\n"
    );
    Ok(scenario)
}

/// The third kernel is there, and has what the first had.
fn ensure_third(outcome: &Outcome) -> Result<()> {
    let message = outcome.dump()?.said_outcome()?;
    ensure!(message == "complete", "{:#}", outcome.dump()?.result()?);
    let (third, after) = outcome.third()?;
    let first = outcome.first.as_ref().context("the first boot said nothing of itself")?;
    third.ensure_like(first, RESERVED_MIB)?;
    ensure!(outcome.ending != Ending::Reset, "nobody went through the firmware: {:?}", outcome.events);
    // A reboot through the firmware would have led from the final action to the same line as the
    // first boot did.
    let action = outcome.line("final action: kexec")?.at;
    let before = action.saturating_duration_since(outcome.panic);
    let firmware = before.saturating_add(first.at.saturating_duration_since(outcome.started));
    eprintln!(
        "from the end of the first kernel to the third's line: {:.1} s by kexec, {:.1} s through the \
         firmware",
        after.as_secs_f64(),
        firmware.as_secs_f64()
    );
    Ok(())
}

#[test]
fn after_a_planned_switch_the_third_kernel_has_all_the_machine() -> Result<()> {
    let mut scenario = handing_over("third-planned")?;
    scenario.trigger = Trigger::planned();
    let outcome = scenario.run()?;
    ensure_third(&outcome)?;
    outcome.discard()
}

#[test]
fn after_a_panic_the_third_kernel_has_all_the_machine() -> Result<()> {
    let outcome = handing_over("third-panic")?.run()?;
    ensure_third(&outcome)?;
    outcome.discard()
}

/// Runs a machine that differs from the usual one, by a switch and by a panic.
fn other(name: &str, change: impl Fn(&mut Scenario)) -> Result<()> {
    for trigger in [Trigger::planned(), Trigger::Panic] {
        let mut scenario = handing_over(name)?;
        scenario.trigger = trigger;
        change(&mut scenario);
        let outcome = scenario.run()?;
        ensure_third(&outcome)?;
        outcome.discard()?;
    }
    Ok(())
}

#[test]
#[ignore = "full: hand-off of 5.10, 6.12 and 7.2"]
fn every_kernel_hands_over() -> Result<()> {
    for series in ["5.10", "6.12", "7.2"] {
        let kernel = Kernel::of_series(series)?;
        other(&format!("third-{series}"), |scenario| scenario.kernel = kernel.clone())?;
    }
    Ok(())
}

#[test]
#[ignore = "full: hand-off efi"]
fn efi_firmware_is_handed_over() -> Result<()> {
    other("third-efi", |scenario| scenario.shape.efi = true)
}

#[test]
#[ignore = "full: hand-off high"]
fn memory_above_4_gib_is_handed_over() -> Result<()> {
    other("third-high", |scenario| {
        scenario.memory_mib = 5120;
        scenario.crashkernel = "256M,high".into();
        scenario.config.more = scenario.config.more.replace("160M", "256M,high");
    })
}

/// A kernel that would start without the boot CPU is worth less than a reboot, if the configuration
/// says so.
#[test]
#[ignore = "full: a panic on another CPU than the boot CPU"]
fn too_few_cpus_are_a_reboot() -> Result<()> {
    let mut scenario = handing_over("third-cpus")?;
    scenario.config.finish.push_str("\nmin_cpus = 2");
    scenario.panic_cpu = 1;
    let outcome = scenario.run()?;
    ensure!(outcome.ending == Ending::Reset, "{:?}\n{}", outcome.events, outcome.text());
    outcome.ensure_said("min_cpus")?;
    outcome.discard()
}

#[test]
#[ignore = "full: a next kernel that hangs"]
fn a_next_kernel_that_does_not_come_up_is_reset_by_the_watchdog_and_not_tried_again() -> Result<()> {
    let mut scenario = handing_over("third-hangs")?;
    scenario.kernel = Kernel::of_series("6.12")?; // 6.1-cloud has no driver of this watchdog
    scenario.shape.watchdog = true;
    scenario.config.modules.push("i6300esb".into());
    scenario.config.finish.push_str("\nguard = 20");
    // No init: it panics, and with panic=0 it stays so.
    scenario.config.more = scenario.config.more.replace("panic=10", "panic=0 rdinit=/nothing root=/dev/none");
    let outcome = scenario.run()?;
    ensure!(
        outcome.ending == Ending::Watchdog,
        "{:?}
{}",
        outcome.events,
        outcome.text()
    );
    // The next crash finds the mark, and goes through the firmware.
    let outcome = scenario.run_again(outcome)?;
    outcome.ensure_said("kexec-tried")?;
    outcome.ensure_final_action("reboot")?;
    outcome.discard()
}

#[test]
#[ignore = "full: a next kernel that is gone"]
fn a_missing_next_kernel_is_a_reboot() -> Result<()> {
    let mut scenario = handing_over("third-missing")?;
    scenario.config.more = scenario.config.more.replace("/boot/initrd", "/boot/gone");
    let outcome = scenario.run()?;
    outcome.ensure_said("/boot/gone")?;
    outcome.ensure_final_action("reboot")?;
    ensure!(outcome.dump()?.said_outcome()? == "complete", "kernel {}", series());
    outcome.discard()
}

//! What the production system does once it stands: use the host side, and crash.

use crate::early::DISK;
use crate::say::say;
use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::Pid;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Between the line that says so and a kexec.
const PAUSE: Duration = Duration::from_secs(2);

/// Runs a subcommand of `afterimage`, its output on the console.
pub(crate) fn afterimage(step: &str) -> Result<()> {
    let mut command = Command::new("/afterimage");
    command.arg(step.split('-').next().unwrap_or(step));
    match step {
        "load-again" => {
            command.arg("--again");
        }
        "load" => {
            command.arg("--image").arg(format!("{DISK}/boot/afterimage.img"));
            command.arg("--kernel-image").arg(format!("{DISK}/boot/vmlinuz"));
        }
        "status" | "unload" | "check" => {}
        _ => anyhow::bail!("prod.run= knows no step {step:?}"),
    }
    say(format!("production: afterimage {step}"));
    let status = command.status().with_context(|| format!("starting /afterimage {step}"))?;
    ensure!(status.success(), "afterimage {step}: {status}");
    Ok(())
}

/// Switches kernels on purpose.
pub(crate) fn switch(arguments: &[String]) -> Result<()> {
    say(format!("production: switching: afterimage switch {arguments:?}"));
    let mut command = Command::new("/afterimage");
    let status = command.arg("switch").args(arguments).status().context("starting /afterimage switch")?;
    anyhow::bail!("afterimage switch came back: {status}")
}

/// Stages a switch, arms the capture once more, which does not undo that, and leaves by a kexec
/// that knows nothing of us.
pub(crate) fn staged() -> Result<()> {
    let run = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("/afterimage").args(arguments).status().context("starting /afterimage")?;
        ensure!(status.success(), "afterimage {arguments:?}: {status}");
        Ok(())
    };
    let is_staged = |expected: &str| -> Result<()> {
        let loaded = kexec::machine::of_kexec("loaded");
        ensure!(loaded == expected, "kexec_loaded is {loaded}");
        Ok(())
    };
    run(&["switch", "--stage"])?;
    is_staged("1")?;
    run(&["switch", "--unstage"])?;
    is_staged("0")?;
    run(&["switch", "--stage", "--why", "drill of the guest tests", "--ticket", "T-1"])?;
    afterimage("load")?;
    is_staged("1")?;
    say("production: switching: by kexec");
    say("production: kexec after a pause"); // for what a test does to the machine meanwhile
    sleep(PAUSE);
    let Err(error) = reboot(RebootMode::RB_KEXEC);
    anyhow::bail!("there was no kexec: {error}")
}

/// Panics on a CPU, given as `cpuN`.
pub(crate) fn panic_on(cpu: &str) -> Result<()> {
    let number = cpu.strip_prefix("cpu").and_then(|number| number.parse().ok());
    let number = number.with_context(|| format!("prod.panic={cpu} is not of the form cpuN"))?;
    let mut set = CpuSet::new();
    set.set(number)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to {cpu}"))?;
    say(format!("production: panicking on {cpu}"));
    fs::write("/proc/sysrq-trigger", "c").context("writing to /proc/sysrq-trigger")?;
    anyhow::bail!("the kernel survived sysrq c")
}

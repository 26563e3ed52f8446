//! Brings the system to an end in one of many ways.

use crate::early;
use crate::say::say;
use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use qemu_tests::end::{MODULES, Step, TASK, Way, way_called};
use std::fs::{self, File};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::Duration;

/// How long the kernel may take to notice.
const PATIENCE: Duration = Duration::from_mins(3);
/// Taken at a time.
const CHUNK: usize = 1 << 20;

/// Ends the first process.
#[expect(clippy::exit, reason = "that is the end which is wanted")]
fn exit() -> Result<()> {
    std::process::exit(3)
}

/// Does it; a system that is still there after a while has failed.
pub(crate) fn by(name: &str) -> Result<()> {
    let way = way_called(name)?;
    early::modules(MODULES)?;
    load("breaker")?;
    for (path, value) in way.sysctls {
        let path = Path::new("/proc/sys").join(path);
        fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))?;
    }
    say(format!("production: ending by {name}"));
    if way.step == Step::Exit {
        return exit();
    }
    let last = usize::try_from(way.cpus.saturating_sub(1))?;
    let breaks = move || step(way, last);
    let task = thread::Builder::new().name(TASK.into()).spawn(breaks).context("starting a thread")?;
    for _ in 0..PATIENCE.as_secs() {
        sleep(Duration::from_secs(1));
        if task.is_finished() {
            let done = task.join().ok().context("the thread died")?;
            done?;
            bail!("the kernel survived {name}");
        }
    }
    bail!("the kernel has not noticed {name}")
}

fn step(way: &Way, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to CPU {cpu}"))?;
    match way.step {
        Step::Breaker(word) => {
            fs::write("/proc/breaker", word).with_context(|| format!("breaking by {word}"))
        }
        Step::Sysrq => fs::write("/proc/sysrq-trigger", "c").context("asking for a crash"),
        Step::Wait => {
            sleep(PATIENCE);
            Ok(())
        }
        Step::Memory => {
            let mut taken = Vec::new();
            loop {
                taken.push(vec![0x5a_u8; CHUNK]);
            }
        }
        Step::Watchdog => {
            load("breaker_dog")?;
            let governor = "/sys/class/watchdog/watchdog0/pretimeout_governor";
            fs::write(governor, "panic").context("choosing what a watchdog calls")?;
            sleep(PATIENCE);
            Ok(())
        }
        Step::Exit => Ok(()),
    }
}

fn load(name: &str) -> Result<()> {
    let path = format!("/modules/{name}.ko");
    let file = File::open(&path).with_context(|| format!("opening {path}"))?;
    finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("loading {path}"))
}

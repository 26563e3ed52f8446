//! PID 1 of the production system, and, under other names, two more programs of the same binary.
//!
//! - `init`: sets up a small system, plants markers in memory, arms the capture and panics on
//!   request.
//! - `witness-sleeper`: a process with threads for `ps` in a dump to show; with arguments one that
//!   holds memory.
//! - `wrapper`: in the capture kernel, copies `/proc/vmcore` to a disk, starts copies of itself
//!   that kill or starve the capture, and then becomes the real `/init`.
//!
//! All it does shows on the console in lines with `production:` or `wrapper:`; a failure is a line
//! with `FAILED` and ends in a power-off, so that the harness need not wait for a timeout.

mod cmdline;
mod crowd;
mod early;
mod end;
mod here;
mod hook;
mod hotplug;
mod jobs;
mod kernel_memory;
mod last_words;
mod layout;
mod network;
mod pagemap;
mod plant;
mod plants;
mod refusals;
mod report;
mod say;
mod stack;
mod steps;
mod swap;
mod user_memory;
mod witness;
mod workload;
mod wrapper;

use crate::cmdline::CommandLine;
use crate::plants::Plants;
use crate::say::say;
use anyhow::Result;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;
use qemu_tests::initramfs::SLEEPER;
use qemu_tests::trigger::out_of_a_word;
use std::thread::sleep;
use std::time::Duration;

fn main() {
    if std::env::var_os("AFTERIMAGE_WHEN").is_some() {
        if let Err(error) = hook::run() {
            println!("hook: FAILED: {error:#}");
            std::process::exit(7);
        }
        return;
    }
    let program = std::env::args().next().unwrap_or_default();
    let (who, result) = match program.rsplit('/').next() {
        Some(SLEEPER) => {
            let arguments: Vec<String> = std::env::args().skip(1).collect();
            if !arguments.is_empty() {
                // Not PID 1, and who waits for its word notices that it does not come.
                if let Err(error) = crowd::holder(&arguments) {
                    say(format!("{SLEEPER}: FAILED: {error:#}"));
                }
                return;
            }
            let _sockets = plant::sockets();
            if let Err(error) = witness::run() {
                say(format!("{SLEEPER}: FAILED: {error:#}"));
            }
            return;
        }
        Some("wrapper") => match std::env::args().nth(1) {
            // Not PID 1: its end is the end of nothing else.
            Some(word) => return jobs::run(&word),
            None => ("wrapper", wrapper::run()),
        },
        _ => ("production", production()),
    };
    // A PID 1 that returns would be a panic of its own, and that would start a capture.
    if let Err(error) = result {
        say(format!("{who}: FAILED: {error:#}"));
    }
    sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    say(format!("{who}: FAILED: power off: {error}"));
    sleep(Duration::MAX);
}

fn production() -> Result<()> {
    early::mounts()?;
    let line = CommandLine::read()?;
    early::modules("/modules/order")?;
    early::disk()?;
    if line.has("prod.third") {
        return here::tell("third");
    }
    if !layout::run()? {
        return Ok(());
    }
    early::host_name(line.get("prod.host")?)?;
    if line.has("prod.first") {
        here::tell("first")?;
    }
    network::bring_up(line.get("prod.reach").ok())?;
    if let Ok(mib) = line.get("prod.hotadd") {
        hotplug::add(mib)?;
    }
    match line.get("prod.stack").unwrap_or_default() {
        "" => {}
        "read" => return stack::read(line.get("prod.seed")?),
        _ => stack::make(line.get("prod.seed")?)?,
    }
    // Held until the panic: dropping it would give the pages back.
    let seed = line.get("prod.seed")?;
    let _memory = plant::everywhere(seed)?;
    let mut plants = Plants::plant(seed, line.list("prod.plant"))?;
    if let Ok(count) = line.get("prod.pages") {
        crowd::gather(seed, count)?;
    }
    say("production: markers planted");
    say(format!("production: boot id {}", early::boot_id()?));
    if line.get("prod.refuse").is_ok() {
        return refusals::run(line.list("prod.refuse"));
    }
    last_words::prepare(&line)?;
    for step in std::iter::once("load").chain(line.list("prod.run")) {
        steps::afterimage(step)?;
    }
    if let Ok(mib) = line.get("prod.late") {
        hotplug::late(seed, mib)?;
    }
    say("production: loaded");
    if line.get("prod.stack").is_ok_and(|stack| stack == "change") {
        stack::change()?;
    }
    if !plants.is_empty() {
        report::write(&mut plants)?;
    }
    if let Ok(device) = line.get("prod.workload") {
        workload::run(device)?;
    }
    if line.has("prod.nmi") {
        say("production: waiting for an NMI");
        sleep(Duration::MAX);
    }
    if line.has("prod.staged") {
        return steps::staged();
    }
    if let Ok(arguments) = line.get("prod.capture") {
        return steps::switch(&out_of_a_word(arguments));
    }
    last_words::say(seed, &line)?;
    match (line.get("prod.end"), line.get("prod.panic")) {
        (Ok(name), _) => end::by(name),
        (_, Ok(cpu)) => steps::panic_on(cpu),
        _ => Ok(()),
    }
}

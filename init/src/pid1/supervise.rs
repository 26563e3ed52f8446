//! Attempts at the capture: a child each, waited for under deadlines.

use std::io::Write;
use std::panic;
use std::process::{Child, ChildStdout};

use crate::pid1::child::{self, Limits};
use crate::pid1::ladder::{End, Ladder};
use crate::pid1::watchdog::Watchdog;
use crate::pid1::witness::Witness;
use crate::pid1::{entropy, finish, handoff, mounts, sysctls};
use crate::run::secrets;
use base::attempt::Attempt;
use base::config::{self, FinalAction};
use vmcore::report::Outcome;

/// PID 1's main function.
pub(crate) fn supervise() -> ! {
    // No code of PID 1 panics by design; if it does all the same, the machine must come back.
    panic::set_hook(Box::new(|info| {
        log::error!("PID 1: {info}");
        finish::finish(FinalAction::Reboot)
    }));
    let mount_errors = mounts::mount_all();
    let settings = sysctls::make();
    let (config, complaints) = config::load();
    base::log::init_kmsg(config.capture.log.into());
    log::info!("version {}, final action will be {}", env!("CARGO_PKG_VERSION"), config.finish);
    mount_errors.iter().chain(&complaints).for_each(|text| log::warn!("{text}"));
    for text in settings {
        log::info!("{text}");
    }
    let mut watchdog = Watchdog::new(config.capture.watchdog);
    entropy::prepare();
    let mut ladder = Ladder::new(config.target.len());
    // Its length is that of all memory.
    let memory = std::fs::metadata("/proc/vmcore").map_or(0, |meta| meta.len());
    let limits = Limits::new(&config, memory);
    let (complete, seen) = loop {
        let mut seen = Witness::default();
        let end = attempt(ladder.attempt(), &limits, &mut watchdog, &mut seen);
        log::info!("capture {end}");
        let complete = end == End::Done(Outcome::Complete);
        if !ladder.ended(end, &seen) {
            break (complete, seen);
        }
        log::warn!("another attempt, {}", ladder.attempt().rung);
    };
    let action = config.finish.choose(seen.trigger, complete);
    if ladder.stuck {
        // A device hangs under a child: an orderly shutdown would hang in the same place.
        if action == FinalAction::Halt {
            watchdog.release();
        } else {
            watchdog.last_ping();
        }
        let _ = secrets::wipe(); // a file in memory: nothing there can hang
        finish::forced(action)
    }
    handoff::conclude(action, seen.target, &config, watchdog)
}

/// Runs one attempt to its end.
fn attempt(attempt: &Attempt, limits: &Limits, watchdog: &mut Watchdog, seen: &mut Witness) -> End {
    match spawn(attempt) {
        Ok((child, beats)) => child::wait(&child, beats, limits, watchdog, seen),
        Err(error) => End::Died(format!("did not start: {error}")),
    }
}

fn spawn(attempt: &Attempt) -> std::io::Result<(Child, ChildStdout)> {
    let (mut child, beats) = child::start(&["capture"], true)?;
    if let Some(mut stdin) = child.stdin.take() {
        // Less than a pipe holds, so that this does not wait; a child that is dead already shows
        // below.
        let _ = stdin.write_all(attempt.to_json().as_bytes());
    }
    Ok((child, beats))
}

//! Final actions that need a hand-off: a child prepares them, since that reads facts, file systems
//! and kernels; PID 1 only waits for it, and does the last step. Whatever goes wrong on the way,
//! the machine restarts.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::pid1::child::{self, Limits};
use crate::pid1::finish;
use crate::pid1::ladder::End;
use crate::pid1::watchdog::Watchdog;
use crate::pid1::witness::Witness;
use crate::run::handoff::{ARGUMENT, NEW_ROOT};
use crate::run::secrets;
use base::config::{Config, FinalAction};
use vmcore::report::Outcome;

/// How long the preparation may take in all: waiting for the boot device, and reading a kernel and
/// its initrd from a slow one.
const DEADLINE: Duration = Duration::from_mins(5);

/// How a child ends that has prepared what it was to.
const READY: End = End::Done(Outcome::Complete);

/// Carries out the final action. `target` is the one in use at the end of the capture.
pub(super) fn conclude(
    action: FinalAction,
    target: Option<usize>,
    config: &Config,
    mut watchdog: Watchdog,
) -> ! {
    let prepared = match action {
        FinalAction::Kexec | FinalAction::SwitchRoot | FinalAction::Shell => {
            log::info!("preparing the final action {action}");
            prepare(action, target, config, &mut watchdog)
        }
        FinalAction::Reboot | FinalAction::Poweroff | FinalAction::Halt => READY,
    };
    let action = match prepared {
        READY => action,
        // Its exit code is that of the last command in it.
        _ if action == FinalAction::Shell => FinalAction::Reboot,
        end => {
            log::error!("{action}: the hand-off {end}: restarting instead");
            if matches!(end, End::Stuck(_) | End::Late { stuck: true }) {
                watchdog.last_ping();
                let _ = secrets::wipe(); // a file in memory: nothing there can hang
                finish::forced(FinalAction::Reboot)
            }
            FinalAction::Reboot
        }
    };
    // All that needs the keys has read them.
    let action = match (secrets::wipe(), action) {
        (Err(error), FinalAction::Kexec | FinalAction::SwitchRoot) => {
            log::error!("{action}: the keys in memory cannot be wiped: {error}: restarting instead");
            FinalAction::Reboot
        }
        (Err(error), _) => {
            log::warn!("the keys in memory are not wiped: {error}");
            action
        }
        (Ok(()), _) => action,
    };
    match action {
        FinalAction::Halt => watchdog.release(),
        FinalAction::Kexec => watchdog.guard(config.finish.guard),
        FinalAction::SwitchRoot => {
            // The real root has services of its own for it, or none.
            watchdog.release();
            log::info!("final action: {action}, {}", config.boot.init());
            let error = enter(config.boot.init());
            log::error!("{action}: {error}: restarting instead");
            let mut watchdog = Watchdog::new(config.capture.watchdog);
            watchdog.ping();
            watchdog.last_ping();
            finish::finish(FinalAction::Reboot)
        }
        // A shell has come to its end.
        FinalAction::Reboot | FinalAction::Poweroff | FinalAction::Shell => watchdog.last_ping(),
    }
    finish::finish(action)
}

/// Runs the child that prepares an action, or is the shell.
fn prepare(action: FinalAction, target: Option<usize>, config: &Config, watchdog: &mut Watchdog) -> End {
    let target = target.map(|index| index.to_string()).unwrap_or_default();
    let limits = if action == FinalAction::Shell {
        Limits { name: "shell", stall: Duration::MAX, end: None } // a person is as slow as a person is
    } else {
        let stall = Duration::from_secs(config.capture.step_timeout);
        Limits { name: "hand-off", stall, end: Instant::now().checked_add(DEADLINE) }
    };
    match child::start(&[ARGUMENT, &action.to_string(), &target], false) {
        Ok((child, beats)) => child::wait(&child, beats, &limits, watchdog, &mut Witness::default()),
        Err(error) => End::Died(format!("did not start: {error}")),
    }
}

/// Makes the new root, which the child has mounted and filled, the root, and becomes its init.
/// Comes back only with an error.
fn enter(init: &str) -> io::Error {
    let moved = chdir(NEW_ROOT)
        .and_then(|()| mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"));
    match moved {
        Ok(()) => Command::new(init).exec(),
        Err(errno) => errno.into(),
    }
}

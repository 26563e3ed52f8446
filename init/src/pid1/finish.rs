//! The final action. Never returns, never waits for a file system.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use base::config::FinalAction;

/// How long reboot(2) may take: it shuts devices down, and a driver may hang in that.
const PATIENCE: Duration = Duration::from_secs(30);

/// Carries out `action`; if that does not work, restarts by sysrq; if that does not work either,
/// waits for the hardware watchdog. Of actions that need a hand-off only a kexec comes here, when
/// its kernel is loaded; the others have come to their end, and what is left is a restart.
pub(super) fn finish(action: FinalAction) -> ! {
    log::info!("final action: {action}");
    if action != FinalAction::Halt {
        // Without a thread there is no second chance after a hang, but the first is still worth
        // taking.
        let _ = thread::Builder::new().spawn(|| {
            thread::sleep(PATIENCE);
            sysrq("b");
        });
    }
    let mode = match action {
        FinalAction::Reboot | FinalAction::Shell | FinalAction::SwitchRoot => RebootMode::RB_AUTOBOOT,
        FinalAction::Kexec => RebootMode::RB_KEXEC,
        FinalAction::Poweroff => RebootMode::RB_POWER_OFF,
        FinalAction::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    let Err(errno) = reboot(mode);
    log::error!("{action}: {}", errno.desc());
    match action {
        FinalAction::Kexec => finish(FinalAction::Reboot), // nothing was started: the firmware still can
        _ => forced(action),
    }
}

/// The final action without any shutdown of devices, one of which hangs: sysrq works whatever
/// `kernel.sysrq` allows.
pub(super) fn forced(action: FinalAction) -> ! {
    log::error!("final action by sysrq: {action}");
    match action {
        FinalAction::Poweroff => sysrq("o"),
        FinalAction::Halt => (),
        _ => sysrq("b"), // no hand-off where a device hangs
    }
    loop {
        thread::sleep(PATIENCE);
        if action != FinalAction::Halt {
            // Switching off shuts devices down, too, and may hang in the same place.
            sysrq("b");
            let _ = thread::Builder::new().spawn(|| reboot(RebootMode::RB_AUTOBOOT));
        }
    }
}

fn sysrq(command: &str) {
    if let Err(error) = fs::write("/proc/sysrq-trigger", command) {
        log::error!("sysrq {command}: {error}");
    }
}

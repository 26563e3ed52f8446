//! What a switch does to the machine: the few calls after which it may be another one.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::Duration;

use base::config::Via;
use base::facts::{Intent, Planned};
use nix::sys::reboot::{RebootMode, reboot};

use crate::loader::{self, LoadError, Staged};
use crate::planned::intent;

/// The machine, or a test's.
pub(super) trait Machine {
    /// Loads the handover page with this record; any kexec from now on enters the capture kernel.
    fn stage(&mut self, planned: &Planned) -> Result<Staged, LoadError>;

    /// Unloads it.
    fn unstage(&mut self) -> Result<(), LoadError>;

    /// Loads the panic kernel anew, with this record in its facts or with none.
    fn rearm(&mut self, planned: Option<&Planned>) -> Result<(), LoadError>;

    /// Writes the intent into the kernel log.
    fn log(&mut self, intent: &Intent) -> io::Result<()>;

    /// Switches; comes back only if that fails.
    fn jump(&mut self, via: Via) -> io::Error;
}

/// This machine.
#[derive(Debug)]
pub(super) struct ThisMachine;

impl Machine for ThisMachine {
    fn stage(&mut self, planned: &Planned) -> Result<Staged, LoadError> {
        loader::stage(planned)
    }

    fn unstage(&mut self) -> Result<(), LoadError> {
        loader::unstage()
    }

    fn rearm(&mut self, planned: Option<&Planned>) -> Result<(), LoadError> {
        loader::rearm(planned).map(|_| ())
    }

    fn log(&mut self, intent: &Intent) -> io::Result<()> {
        intent::tell_kernel(intent)
    }

    fn jump(&mut self, via: Via) -> io::Error {
        match via {
            Via::Kexec => match reboot(RebootMode::RB_KEXEC) {
                Err(errno) => errno.into(),
            },
            Via::Panic => fs::write("/proc/sysrq-trigger", "c").err().unwrap_or_else(|| {
                sleep(Duration::from_secs(5));
                io::Error::other("the kernel did not panic")
            }),
        }
    }
}

//! The hardware watchdog: what brings the machine back when not even PID 1 gets to run.
//!
//! It is taken over as soon as its driver is there, and pinged while the capture comes further. It is
//! never switched off on the way to a reboot: a machine that hangs in its shutdown comes back, too.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use crate::sys::watchdog;

const DEVICE: &str = "/dev/watchdog";
/// Any byte but the "V" below.
const PING: &[u8] = b"\0";
/// Pings in the time that the watchdog waits for one.
const PINGS: u32 = 4;

/// The watchdog, there or not yet there.
#[derive(Debug)]
pub(super) struct Watchdog {
    wanted: u32,
    device: Option<File>,
    every: Duration,
    pinged: Instant,
}

impl Watchdog {
    /// A watchdog that is to wait for so many seconds; 0: none is wanted.
    pub(super) fn new(seconds: u32) -> Self {
        Self { wanted: seconds, device: None, every: Duration::from_secs(1), pinged: Instant::now() }
    }

    /// Pings it when it is time. Looks for it as long as it is not there: its driver is a module
    /// that the child loads.
    pub(super) fn ping(&mut self) {
        if self.wanted == 0 {
            return;
        }
        let Some(device) = &mut self.device else { return self.take_over() };
        if self.pinged.elapsed() >= self.every {
            if let Err(error) = device.write_all(PING) {
                log::warn!("pinging the watchdog: {error}");
            }
            self.pinged = Instant::now();
        }
    }

    fn take_over(&mut self) {
        // Opening starts it, or takes over one that runs.
        let Ok(device) = OpenOptions::new().write(true).open(DEVICE) else { return };
        // Some hardware has one timeout only, and says which.
        let set = watchdog::set_timeout(&device, self.wanted).or_else(|_| watchdog::timeout(&device));
        let seconds = set.unwrap_or(self.wanted).max(1);
        log::info!("the hardware watchdog is taken over: it resets the machine after {seconds} s without us");
        let pause = Duration::from_secs(seconds.into()).checked_div(PINGS);
        self.every = pause.unwrap_or_default();
        self.pinged = Instant::now();
        self.device = Some(device);
    }

    /// Switches it off, where the hardware and its driver allow that: for a machine that is to
    /// stand still.
    pub(super) fn release(self) {
        let Some(mut device) = self.device else { return };
        // The "magic close" (Documentation/watchdog/watchdog-api.rst).
        if let Err(error) = device.write_all(b"V") {
            log::warn!("the watchdog cannot be switched off and will reset the machine: {error}");
        }
    }

    /// Sets it to reset a machine whose next kernel does not take it over within `seconds`; 0:
    /// switches it off.
    pub(super) fn guard(self, seconds: u32) {
        let Some(device) = self.device.as_ref().filter(|_| seconds > 0) else {
            log::warn!("no hardware watchdog guards the next kernel");
            return self.release();
        };
        match watchdog::set_timeout(device, seconds) {
            Ok(seconds) => log::info!("the hardware watchdog gives the next kernel {seconds} s"),
            Err(error) => {
                log::warn!("the watchdog's time is not set to {seconds} s and stays as it is: {error}");
            }
        }
        self.last_ping();
    }

    /// Pings it once more and keeps it open: from here on it is the way back.
    pub(super) fn last_ping(self) {
        if let Some(mut device) = self.device {
            let _ = device.write_all(PING);
            core::mem::forget(device); // closing without the magic would only make the driver complain
        }
    }
}

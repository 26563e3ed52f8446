//! The witness: a process that sleeps, with threads that sleep, or with `prod.spin` never do. Each has
//! its marker on its stack.

use crate::cmdline::CommandLine;
use anyhow::{Context, Result};
use qemu_tests::marker::{THREADS, on_stack};
use std::hint::black_box;
use std::thread::{Builder, sleep};
use std::time::Duration;

/// Returns only on failure.
pub(crate) fn run() -> Result<()> {
    let spins = CommandLine::read().is_ok_and(|line| line.has("prod.spin"));
    for number in 1..=THREADS {
        // The last one.
        let spins = spins && number == THREADS;
        let thread = Builder::new().name(format!("witness-{number}"));
        thread.spawn(move || hold(number, spins)).context("starting a thread")?;
    }
    loop {
        sleep(Duration::MAX);
    }
}

/// The marker is in this frame as long as the thread is.
fn hold(number: usize, spins: bool) {
    let mut here = [0; 64];
    for (place, byte) in here.iter_mut().zip(on_stack(number).bytes()) {
        *place = byte;
    }
    loop {
        black_box(&here);
        if !spins {
            sleep(Duration::MAX);
        }
    }
}

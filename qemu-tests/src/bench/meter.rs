//! Seconds, CPU seconds and memory of this process, phase by phase.
//!
//! Memory is what nobody can take back, RssAnon and RssShmem: a thread looks every 20 ms, and at
//! the end of each phase.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

const INTERVAL: Duration = Duration::from_millis(20);

/// What a phase took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Seconds of all CPUs, user and system.
    pub cpu_seconds: f64,
    /// Largest RssAnon + RssShmem, KiB.
    pub peak_kib: u64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Seconds of all CPUs, user and system.
    pub cpu_seconds: f64,
    /// Largest RssAnon + RssShmem, KiB.
    pub peak_kib: u64,
    /// The same before the first phase.
    pub before_kib: u64,
    /// In their order.
    pub phases: Vec<Phase>,
}

/// Measures from when it is made.
#[derive(Debug)]
pub struct Meter {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    before_kib: u64,
    start: (Instant, Duration),
    lap: (Instant, Duration),
    phases: Vec<Phase>,
}

impl Meter {
    /// Starts to measure.
    pub fn start() -> Result<Self> {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&peak), Arc::clone(&stop));
        let watch = move || {
            let (peak, stop) = shared;
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(resident_kib(), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        };
        thread::Builder::new().spawn(watch).context("starting the thread that watches memory")?;
        let now = (Instant::now(), cpu()?);
        Ok(Self { peak, stop, before_kib: resident_kib(), start: now, lap: now, phases: Vec::new() })
    }

    /// Ends a phase. Without a clock its CPU time is 0.
    pub fn lap(&mut self, name: &'static str) {
        self.peak.fetch_max(resident_kib(), Ordering::Relaxed);
        let now = (Instant::now(), cpu().unwrap_or_default());
        self.phases.push(Phase {
            name,
            seconds: now.0.saturating_duration_since(self.lap.0).as_secs_f64(),
            cpu_seconds: now.1.saturating_sub(self.lap.1).as_secs_f64(),
            peak_kib: self.peak.swap(0, Ordering::Relaxed),
        });
        self.lap = now;
    }

    /// What has been measured up to the end of the last phase.
    #[must_use]
    pub fn finish(self) -> Measured {
        self.stop.store(true, Ordering::Relaxed);
        Measured {
            seconds: self.lap.0.saturating_duration_since(self.start.0).as_secs_f64(),
            cpu_seconds: self.lap.1.saturating_sub(self.start.1).as_secs_f64(),
            peak_kib: self.phases.iter().map(|phase| phase.peak_kib).max().unwrap_or(0),
            before_kib: self.before_kib,
            phases: self.phases,
        }
    }
}

fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("reading the CPU clock")?.into())
}

/// RssAnon + RssShmem now; 0 if the kernel does not tell.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |line: &str| {
        let rest = line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssShmem:"))?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    status.lines().filter_map(kib).fold(0, u64::saturating_add)
}

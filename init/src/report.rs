//! What became of a capture: outcome, degradations, figures; printed and written as `result.json`.

use core::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Config;
use crate::kernel::dmesg::DmesgStats;
use crate::source::Anomaly;

/// How a capture ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every page that was to be saved is in the dump or listed as unreadable.
    Complete,
    /// The dump ends early; its header says INCOMPLETE and it is called `vmcore-incomplete`.
    Incomplete,
    /// There is no dump.
    #[default]
    Failed,
}

impl Outcome {
    /// Exit code of the capture child, by which PID 1 knows the outcome.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Incomplete => 3,
            Self::Failed => 4,
        }
    }

    /// The outcome with this exit code.
    #[must_use]
    pub fn from_exit_code(code: i32) -> Option<Self> {
        [Self::Complete, Self::Incomplete, Self::Failed]
            .into_iter()
            .find(|o| i32::from(o.exit_code()) == code)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        })
    }
}

/// Something that was made do with. The capture went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Degradation {
    /// A module could not be loaded.
    Module {
        /// Its file in the image.
        path: String,
        /// Cause.
        cause: String,
    },
    /// The core's headers lie.
    Vmcore(Anomaly),
    /// The core has no VMCOREINFO: no log, no kernel release, page size assumed.
    NoVmcoreInfo,
    /// The kernel's name could not be read.
    Utsname {
        /// Cause.
        cause: String,
    },
    /// The kernel log could not be saved.
    Dmesg {
        /// Cause.
        cause: String,
    },
    /// A target could not be used.
    Target {
        /// Which.
        target: String,
        /// Cause.
        cause: String,
    },
    /// The dump ends early.
    Dump {
        /// Cause.
        cause: String,
    },
    /// Pages that could not be read.
    UnreadablePages {
        /// How many.
        pages: u64,
    },
    /// The configuration or the facts in the image could not be used.
    Config {
        /// Cause.
        cause: String,
    },
}

/// Pages by fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PageCounts {
    /// With data in the dump.
    pub written: u64,
    /// All zero, sharing one block.
    pub zero: u64,
    /// Left out by the dump level.
    pub excluded: u64,
    /// Not readable; marked in the dump.
    pub unreadable: u64,
}

impl PageCounts {
    /// The sum of both, fate by fate.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            written: self.written.saturating_add(other.written),
            zero: self.zero.saturating_add(other.zero),
            excluded: self.excluded.saturating_add(other.excluded),
            unreadable: self.unreadable.saturating_add(other.unreadable),
        }
    }

    /// All pages that have been dealt with.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.written, self.zero, self.excluded, self.unreadable]
            .iter()
            .fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// Seconds by phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    /// Loading modules.
    pub modules: f64,
    /// Opening the core and the target.
    pub open: f64,
    /// Saving the log.
    pub dmesg: f64,
    /// Writing the dump.
    pub dump: f64,
    /// All of it.
    pub total: f64,
}

/// Everything that `result.json` holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Version of afterimage.
    pub afterimage: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// `uname -r` of the production kernel.
    pub kernel: Option<String>,
    /// Its build id.
    pub build_id: Option<String>,
    /// Host name.
    pub host: Option<String>,
    /// Boot id.
    pub boot_id: Option<String>,
    /// When it panicked, RFC 3339.
    pub crash_time: Option<String>,
    /// Where the dump lies: directory on the target.
    pub target: Option<String>,
    /// Dump level.
    pub level: u32,
    /// Compression.
    pub compress: String,
    /// CPUs whose registers are in the dump.
    pub cpus: u32,
    /// Pages by fate.
    pub pages: PageCounts,
    /// Bytes of memory in the core.
    pub memory_bytes: u64,
    /// Bytes of the dump.
    pub dump_bytes: u64,
    /// The log.
    pub dmesg: Option<DmesgStats>,
    /// Threads that read and compressed.
    pub workers: usize,
    /// Seconds by phase.
    pub seconds: Phases,
    /// Peak resident memory of the capture process, bytes.
    pub peak_memory_bytes: Option<u64>,
    /// What was made do with.
    pub degradations: Vec<Degradation>,
}

impl Summary {
    /// The summary of a capture that has not begun.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            afterimage: env!("CARGO_PKG_VERSION"),
            level: config.dump.level.into(),
            compress: config.dump.compress.to_string(),
            ..Self::default()
        }
    }

    /// Records how far the dump came.
    pub fn record(&mut self, pages: &PageCounts, bytes: u64) {
        self.pages = *pages;
        self.dump_bytes = bytes;
        if pages.unreadable > 0 {
            self.degrade(Degradation::UnreadablePages { pages: pages.unreadable });
        }
    }

    /// Records a degradation and prints it.
    pub fn degrade(&mut self, what: Degradation) {
        log::warn!("{what}");
        self.degradations.push(what);
    }

    /// The text of `result.json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

impl fmt::Display for Degradation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module { path, cause } => write!(f, "module {path} not loaded: {cause}"),
            Self::Vmcore(anomaly) => write!(f, "vmcore: {anomaly:?}"),
            Self::NoVmcoreInfo => {
                f.write_str("the vmcore has no VMCOREINFO: no kernel log, 4 KiB pages assumed")
            }
            Self::Utsname { cause } => write!(f, "kernel name not read: {cause}"),
            Self::Dmesg { cause } => write!(f, "kernel log not saved: {cause}"),
            Self::Target { target, cause } => write!(f, "target {target} not usable: {cause}"),
            Self::Dump { cause } => write!(f, "the dump ends early: {cause}"),
            Self::UnreadablePages { pages } => {
                write!(f, "{pages} pages could not be read and are marked as lost")
            }
            Self::Config { cause } => write!(f, "configuration: {cause}"),
        }
    }
}

/// A stopwatch that gives the seconds since its last reading.
#[derive(Debug)]
pub struct Lap(Instant);

impl Lap {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start or the last lap, to the millisecond.
    pub fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let seconds = seconds(now.saturating_duration_since(self.0));
        self.0 = now;
        seconds
    }
}

/// Seconds to the millisecond.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// A time as RFC 3339 in UTC, from seconds since 1970; `None` for a year past 9999 (a damaged clock).
#[must_use]
pub fn utc(seconds: u64) -> Option<String> {
    const YEAR_10000: u64 = 253_402_300_800; // humantime cannot print it
    let time = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    (seconds < YEAR_10000).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_an_exit_code() {
        for outcome in [Outcome::Complete, Outcome::Incomplete, Outcome::Failed] {
            assert_eq!(Outcome::from_exit_code(i32::from(outcome.exit_code())), Some(outcome));
        }
        assert_eq!(Outcome::from_exit_code(101), None);
    }

    #[test]
    fn hostile_text_stays_inside_its_json_string() {
        let mut summary = Summary { host: Some("a\"\n\u{1b}".into()), ..Summary::default() };
        summary.degradations.push(Degradation::NoVmcoreInfo);
        let back: serde_json::Value = serde_json::from_str(&summary.to_json()).unwrap();
        assert_eq!(back["host"], "a\"\n\u{1b}");
        assert_eq!(back["degradations"][0]["step"], "no-vmcore-info");
        assert_eq!(back["outcome"], "failed");
    }

    #[test]
    fn times() {
        assert_eq!(utc(1_763_900_000).as_deref(), Some("2025-11-23T12:13:20Z"));
        assert_eq!(utc(u64::MAX), None);
    }
}

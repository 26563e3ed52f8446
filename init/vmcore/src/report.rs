//! What became of a capture: outcome, degradations, figures; printed and written as `result.json`.

mod degradation;
mod journal;

use core::fmt;
use serde::Serialize;
use std::collections::BTreeMap;

use crate::budget::MemoryUse;
use crate::filter::{ClassCounts, PageClass, ScanStats};
use crate::kernel::dmesg::{Death, DmesgStats};
use base::addr::PfnRange;
use base::attempt::Rung;
use base::config::Config;
use base::facts::{Intent, Trigger};

pub use degradation::Degradation;
pub use journal::{Event, Journal};

/// How a capture ended, from worst to best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing is saved but what the console shows.
    #[default]
    Failed,
    /// The kernel log is saved, and there is no dump.
    LogOnly,
    /// The dump ends early; its header says INCOMPLETE and it is called `vmcore-incomplete`.
    Incomplete,
    /// Every page that was to be saved is in the dump or listed as unreadable.
    Complete,
}

impl Outcome {
    /// Exit code of the capture child, by which PID 1 knows the outcome.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Incomplete => 3,
            Self::Failed => 4,
            Self::LogOnly => 5,
        }
    }

    /// The outcome with this exit code.
    #[must_use]
    pub fn from_exit_code(code: i32) -> Option<Self> {
        [Self::Complete, Self::Incomplete, Self::LogOnly, Self::Failed]
            .into_iter()
            .find(|o| i32::from(o.exit_code()) == code)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::LogOnly => "log-only",
            Self::Failed => "failed",
        })
    }
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

    /// Pages that a reader of the dump finds something of.
    #[must_use]
    pub fn in_dump(&self) -> u64 {
        self.total().saturating_sub(self.excluded)
    }

    /// All pages that have been dealt with.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.written, self.zero, self.excluded, self.unreadable]
            .iter()
            .fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// Consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// First page frame number.
    pub pfn: u64,
    /// How many.
    pub pages: u64,
}

impl From<PfnRange> for Run {
    fn from(range: PfnRange) -> Self {
        Self { pfn: range.start().0, pages: range.pages() }
    }
}

/// What was found of the live collectors' output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LiveOutput {
    /// Bytes written.
    pub bytes: u64,
    /// Of their pages, those that could not be read and were written as zeros.
    pub missing_pages: u64,
    /// SHA-256 of the bytes written, hex.
    pub sha256: String,
    /// Whether they are what the collectors found.
    pub intact: bool,
}

/// What a host on the network has acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Name of the artifact.
    pub artifact: &'static str,
    /// Its length, bytes.
    pub bytes: u64,
    /// SHA-256 of it, hex; `None` where it was not sent from its beginning to its end.
    pub sha256: Option<String>,
    /// Then: all of it in pieces, where their sums are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
    /// How often something had to be sent again.
    pub retries: u64,
}

/// A part of an artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// Where it begins.
    pub offset: u64,
    /// Its length, bytes.
    pub bytes: u64,
    /// SHA-256 of it, hex.
    pub sha256: String,
}

/// Seconds by phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    /// Loading modules.
    pub modules: f64,
    /// Opening the vmcore, and finding out what is in it.
    pub vmcore: f64,
    /// Opening the target.
    pub open: f64,
    /// Saving the log.
    pub dmesg: f64,
    /// Making and saving the summary.
    pub summary: f64,
    /// Writing the dump.
    pub dump: f64,
    /// Making and saving triage.
    pub triage: f64,
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
    /// Why the capture kernel ran; of a dump that is made of a file only a panic is known.
    pub trigger: Option<Trigger>,
    /// Of a planned switch: who wanted it, why and when.
    pub intent: Option<Intent>,
    /// Of a planned switch: the output of the live collectors.
    pub live: Option<LiveOutput>,
    /// CPU registers in the dump, and why there are none.
    pub registers: String,
    /// What was sent over the network, artifact by artifact, this file left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sent: Vec<Sent>,
    /// What a target made do with: a clock that is wrong, a certificate that has expired.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Where the dump lies: directory on the target.
    pub target: Option<String>,
    /// Dump level.
    pub level: u32,
    /// The page classes that are left out, by name.
    pub exclude: Vec<&'static str>,
    /// Format.
    pub format: &'static str,
    /// Compression.
    pub compress: String,
    /// Whether the loader's copy of VMCOREINFO was there, for a vmcore whose own is damaged.
    pub vmcoreinfo_copy: bool,
    /// How much this attempt dared.
    pub rung: Rung,
    /// Number of the capture on its target.
    pub sequence: u64,
    /// CPUs whose registers are in the dump.
    pub cpus: u32,
    /// Pages by fate.
    pub pages: PageCounts,
    /// Pages by what they are.
    pub classes: ClassCounts,
    /// Poisoned and offline pages, which were not read.
    pub not_read: Vec<Run>,
    /// Of those, pages that are not listed: there are too many runs.
    pub not_read_unlisted: u64,
    /// Pages of users that the capture kernel took for itself (`crashkernel=N,cma`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_pages_lost: Vec<Run>,
    /// Bytes of memory in the core.
    pub memory_bytes: u64,
    /// Bytes of the dump.
    pub dump_bytes: u64,
    /// Length of the dump when all that readers need first was durable: one cut short behind that
    /// opens.
    pub vital_bytes: Option<u64>,
    /// The log.
    pub dmesg: Option<DmesgStats>,
    /// How the kernel died, by its log.
    pub death: Option<Death>,
    /// The kind of its end, by the summary.
    pub cause: Option<String>,
    /// The signature of the crash: crashes of one kind have the same.
    pub signature: Option<String>,
    /// Bytes of `triage.tar.zst`; none where it was not saved.
    pub triage_bytes: Option<u64>,
    /// Threads that read and compressed.
    pub workers: usize,
    /// Seconds by phase.
    pub seconds: Phases,
    /// Memory during the dump.
    pub memory_use: MemoryUse,
    /// Peak resident memory of the capture process, bytes.
    pub peak_memory_bytes: Option<u64>,
    /// What was made do with.
    pub degradations: Vec<Degradation>,
    /// Of the pages that the dump leaves out: how many by class, as far as that is known.
    #[serde(skip)]
    pub left_out: BTreeMap<&'static str, u64>,
    /// What was done, with when.
    #[serde(skip)]
    pub journal: Journal,
}

impl Summary {
    /// The summary of a capture that has not begun.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            afterimage: env!("CARGO_PKG_VERSION"),
            level: config.dump.exclude.level().into(),
            exclude: config.dump.exclude.names(),
            format: config.dump.format.name(),
            compress: config.dump.compress.to_string(),
            ..Self::default()
        }
    }

    /// Records what the pages are, and what damage was found on the way.
    pub fn record_classes(&mut self, classes: &ClassCounts, not_read: &[PfnRange], damage: &ScanStats) {
        log::info!("pages: {classes}");
        self.classes = *classes;
        self.not_read = not_read.iter().copied().map(Run::from).collect();
        let listed = PfnRange::count(not_read);
        let all = classes.of(PageClass::Poisoned).saturating_add(classes.of(PageClass::Offline));
        self.not_read_unlisted = if listed > 0 { all.saturating_sub(listed) } else { 0 };
        for &(pages, why) in &damage.bad_sections {
            self.degrade(Degradation::BadSection { pfn: pages.start().0, pages: pages.pages(), why });
        }
        let &ScanStats { unreadable, bad_heads, stray_tails, vital, .. } = damage;
        if [unreadable, bad_heads, stray_tails, vital] != [0; 4] {
            self.degrade(Degradation::DamagedStructPages { unreadable, bad_heads, stray_tails, vital });
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
        self.journal.note(what.to_string());
        self.degradations.push(what);
    }

    /// The text of `result.json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        base::text::json(&text)
    }
}

#[cfg(test)]
mod tests;

//! What a crash left behind: the console, the dumps, the raw copy, and checks on them that every
//! test shares.

use crate::boot::Boot;
use crate::console::Line;
use crate::extra_disk::DiskLeft;
use crate::page_check::Tally;
use crate::page_flags::PageFlags;
use crate::planted::Planted;
use crate::qmp::Ending;
use crate::scenario::{COUNTERS, PAGE_FLAGS, PLANTED};
use crate::workdir::WorkDir;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a crash left behind.
#[derive(Debug)]
pub struct Outcome {
    /// The console from the panic or the switch on.
    pub console: Vec<Line>,
    /// When that was.
    pub panic: Instant,
    /// From the panic to the end of the guest.
    pub panic_to_exit: Duration,
    /// When the guest was started.
    pub started: Instant,
    /// Where physical memory ends.
    pub memory_end: u64,
    /// What the production system said about itself, where it was asked to.
    pub first: Option<Boot>,
    /// Boot id of the production system.
    pub boot_id: String,
    /// Seed of its markers.
    pub seed: String,
    /// The directories that were made on the target.
    pub dumps: Vec<Dump>,
    /// `/proc/vmcore` as it was.
    pub raw: Option<PathBuf>,
    /// What the crashed kernel said about its memory.
    pub report: Option<Report>,
    /// How the guest ended.
    pub ending: Ending,
    /// QEMU's events.
    pub events: Vec<Value>,
    /// The extra disks, in their order.
    pub extra: Vec<DiskLeft>,
    /// Which crash of the machine it was, from 1.
    pub run: u32,
    pub(crate) work: WorkDir,
}

impl Outcome {
    /// The only dump.
    pub fn dump(&self) -> Result<&Dump> {
        match self.dumps.as_slice() {
            [dump] => Ok(dump),
            dumps => bail!("there are {} dumps instead of one: {dumps:?}\n{}", dumps.len(), self.text()),
        }
    }

    /// The raw copy of a scenario with one.
    pub fn raw(&self) -> Result<&Path> {
        self.raw.as_deref().context("the scenario makes no raw copy")
    }

    /// The report of a scenario with plants.
    pub fn report(&self) -> Result<&Report> {
        self.report.as_ref().context("the scenario plants nothing")
    }

    /// The self-checking pages in a dump.
    pub fn pages(&self, dump: &Path) -> Result<Tally> {
        Tally::of(dump, self.memory_end, &self.seed)
    }

    /// What the system that the capture handed over to says about itself, and how long after the
    /// panic or the switch.
    pub fn third(&self) -> Result<(Boot, Duration)> {
        let third = Boot::find(&self.console, "third").with_context(|| self.text())?;
        let after = third.at.saturating_duration_since(self.panic);
        Ok((third, after))
    }

    /// The line of the console that contains `pattern`, the first of them.
    pub fn line(&self, pattern: &str) -> Result<&Line> {
        let line = self.console.iter().find(|line| line.text.contains(pattern));
        line.with_context(|| format!("nobody said {pattern:?}:\n{}", self.text()))
    }

    /// The extra disk with this name.
    pub fn disk(&self, name: &str) -> Result<&DiskLeft> {
        self.extra.iter().find(|disk| disk.name == name).with_context(|| format!("there is no disk {name:?}"))
    }

    /// Fails when the panic lies further back than `limit` at the end of the guest.
    pub fn ensure_in_time(&self, limit: Duration) -> Result<()> {
        let took = self.panic_to_exit;
        ensure!(took <= limit, "panic to exit took {took:?}, more than {limit:?}:\n{}", self.text());
        Ok(())
    }

    /// A place for files made from the outcome.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// The console as one text.
    #[must_use]
    pub fn text(&self) -> String {
        let lines: Vec<_> = self.console.iter().map(|line| line.text.as_str()).collect();
        lines.join("\n")
    }

    /// Fails unless the capture kernel said `pattern`.
    pub fn ensure_said(&self, pattern: &str) -> Result<()> {
        let message = self.console.iter().any(|line| line.text.contains(pattern));
        ensure!(message, "the capture never said {pattern:?}:\n{}", self.text());
        Ok(())
    }

    /// Fails unless the kernel itself announced this final action; `reboot` and `poweroff` end a
    /// guest.
    pub fn ensure_final_action(&self, action: &str) -> Result<()> {
        match action {
            "reboot" => self.ensure_said("reboot: Restarting system"),
            "poweroff" => self.ensure_said("reboot: Power down"),
            _ => bail!("the final action {action:?} does not end a guest"),
        }
    }

    /// Removes the work directory: the run went well.
    pub fn discard(self) -> Result<()> {
        self.work.discard()
    }
}

/// What the crashed kernel said about its memory right before the panic.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where the files are.
    pub path: PathBuf,
    /// What was planted where, as far as production could tell.
    pub planted: Planted,
    /// The kernel's flags of every page.
    pub flags: PageFlags,
    counters: String,
}

impl Report {
    /// Reads its directory.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = |name: &str| {
            fs::read_to_string(path.join(name)).with_context(|| format!("reading {name} of the report"))
        };
        Ok(Self {
            planted: text(PLANTED)?.parse()?,
            flags: PageFlags::read(&path.join(PAGE_FLAGS))?,
            counters: text(COUNTERS)?,
            path: path.to_owned(),
        })
    }

    /// A counter of `/proc/vmstat` (`nr_free_pages`) or of `/proc/meminfo` (`MemFree:`, in KiB).
    pub fn counter(&self, name: &str) -> Result<u64> {
        let value = self.counters.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            if words.next() == Some(name) { words.next() } else { None }
        });
        value
            .with_context(|| format!("no counter {name}"))?
            .parse()
            .with_context(|| format!("the counter {name}"))
    }
}

/// The directory of one dump, read back from the target.
#[derive(Clone, Debug)]
pub struct Dump {
    /// Where the copy is.
    pub path: PathBuf,
}

impl Dump {
    /// The dumps in a copy of the target's directory.
    pub(crate) fn all_in(directory: &Path) -> Result<Vec<Self>> {
        let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        let mut dumps: Vec<_> =
            paths.into_iter().filter(|path| path.is_dir()).map(|path| Self { path }).collect();
        dumps.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(dumps)
    }

    /// What became of the capture, as `result.json` has it: `complete`, `incomplete`, `failed`.
    pub fn said_outcome(&self) -> Result<String> {
        let result = self.result()?;
        let message = result.get("outcome").and_then(Value::as_str).with_context(|| format!("{result:#}"))?;
        Ok(message.to_owned())
    }

    /// Its name: time, host and boot.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The copy of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The kernel log.
    pub fn dmesg(&self) -> Result<String> {
        let path = self.file("dmesg.txt");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// The report.
    pub fn result(&self) -> Result<Value> {
        let path = self.file("result.json");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} holds {text}", path.display()))
    }

    /// File names with their sizes.
    #[must_use]
    pub fn files(&self) -> Vec<(String, u64)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries
            .map(|entry| {
                let size = entry.metadata().map_or(0, |metadata| metadata.len());
                (entry.file_name().to_string_lossy().into_owned(), size)
            })
            .collect()
    }
}

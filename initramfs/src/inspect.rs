//! What a vmcore or dump holds, as text for people.

use std::fmt::Write;
use std::io;

use base::time::utc;
use vmcore::format::kdump::{Compression, PageDesc};
use vmcore::kernel::dmesg::{self, Tail};
use vmcore::kernel::uts;
use vmcore::report::Degradation;
use vmcore::session::foreign_machine;
use vmcore::source::{Form, Kdump};

use crate::input::Input;

/// Lines of the kernel log at the end of the report.
const LOG_LINES: usize = 12;
/// Memory ranges that are listed one by one.
const RANGES: usize = 16;

/// What an input holds.
#[derive(Debug)]
pub struct Report {
    /// For people.
    pub text: String,
    /// Whether all is there that the input promises.
    pub is_whole: bool,
}

/// The report. Text from the old kernel is escaped: it may hold anything.
pub fn report(input: &Input) -> io::Result<Report> {
    let mut out = String::new();
    let (kernel, info) = (input.kernel(), input.info());
    let faults = input.faults()?;
    let utsname = uts::discover(&kernel).unwrap_or_else(|_| uts::fallback(info, Some(input.machine())));
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12} {}", value.escape_debug());
    };
    row("format", &format(input));
    row("state", &state(&faults));
    if let Some(dump) = input.kdump() {
        row("dump level", &dump.header().dump_level.to_string());
    }
    if let Some(origin) = input.origin() {
        row("vmcoreinfo", &Degradation::Vmcoreinfo(origin.clone()).to_string());
    }
    if let Some(machine) = foreign_machine(input.core()) {
        row("machine", &format!("{machine}: its memory is copied, its page types are not known"));
    }
    row("kernel", &format!("{} {}", utsname.release, input.machine()));
    row("build", &utsname.version);
    row("build id", info.get("BUILD-ID").unwrap_or("unknown"));
    row("host", &utsname.nodename);
    let crashed = info.crash_time().and_then(utc);
    row("crash time", crashed.as_deref().unwrap_or("unknown: VMCOREINFO has none, so there was no panic"));
    row("registers", &format!("{} CPUs", input.core().notes().cpus()));
    row("page size", &format!("{} bytes", input.core().page_size().bytes()));
    memory(input, &mut out);
    for anomaly in input.core().anomalies() {
        let _ = writeln!(out, "{:<12} {anomaly}", "anomaly");
    }
    if let Some(dump) = input.kdump() {
        pages(dump, &mut out)?;
    }
    log_tail(input, &mut out);
    Ok(Report { text: out, is_whole: faults.is_empty() })
}

/// Whether all is there, and if not, why.
pub(crate) fn state(faults: &[String]) -> String {
    if faults.is_empty() { "complete".to_owned() } else { format!("INCOMPLETE: {}", faults.join("; ")) }
}

fn format(input: &Input) -> String {
    let Some(dump) = input.kdump() else { return input.form().map_or("", Form::name).to_owned() };
    let mut text = "kdump-compressed, version 6".to_owned();
    if dump.is_flattened() {
        text.push_str(", flattened");
    }
    if dump.is_split() {
        let files = dump.files().count();
        let _ = write!(text, ", split into {files} file{}", if files == 1 { "" } else { "s" });
    }
    text
}

fn memory(input: &Input, out: &mut String) {
    let memory = input.core();
    let bytes = vmcore::dump::memory_bytes(memory);
    let _ = writeln!(out, "{:<12} {} MiB in {} ranges", "memory", bytes >> 20, memory.ranges().len());
    for range in memory.ranges().iter().take(RANGES) {
        let at = |pfn| memory.page_size().addr_of(pfn).map_or(u64::MAX, |addr| addr.0);
        let _ = writeln!(
            out,
            "{:12} {:#014x}..{:#014x} {:>9} pages",
            "",
            at(range.start()),
            at(range.end()),
            range.pages()
        );
    }
    if let Some(more @ 1..) = memory.ranges().len().checked_sub(RANGES) {
        let _ = writeln!(out, "{:12} and {more} more", "");
    }
}

/// Descriptors of one file by what they point to.
#[derive(Clone, Copy, Default)]
struct Tally {
    lost: u64,
    packed: u64,
    raw: u64,
    bytes: u64,
    /// The descriptor with the lowest offset, and how many have it: page data starts with the block
    /// of zeros that zero pages share.
    first: PageDesc,
    same: u64,
}

impl Tally {
    /// Whether `first` is the block of zeros.
    fn has_zeros(&self, dump: &Kdump) -> bool {
        self.same > 1 && dump.header().dump_level & 1 != 0
    }

    fn add(&mut self, desc: PageDesc, times: u64) {
        let counter = if desc.flags == Compression::Raw.flag() { &mut self.raw } else { &mut self.packed };
        *counter = counter.saturating_add(times);
        self.bytes = self.bytes.saturating_add(u64::from(desc.size).saturating_mul(times));
    }

    fn see(&mut self, desc: PageDesc) {
        if desc.offset == 0 {
            self.lost = self.lost.saturating_add(1);
        } else if self.same > 0 && desc.offset == self.first.offset {
            self.same = self.same.saturating_add(1);
        } else if self.same == 0 || desc.offset < self.first.offset {
            self.add(self.first, self.same);
            (self.first, self.same) = (desc, 1);
        } else {
            self.add(desc, 1);
        }
    }
}

/// The descriptors of each file.
fn tallies(dump: &Kdump) -> io::Result<Vec<Tally>> {
    let mut tallies = vec![Tally::default(); dump.files().count()];
    dump.for_each_desc(|file, desc| tallies.get_mut(file).into_iter().for_each(|tally| tally.see(desc)))?;
    Ok(tallies)
}

/// The offset that the zero pages of each file share.
pub(crate) fn zero_blocks(dump: &Kdump) -> io::Result<Vec<Option<u64>>> {
    let offset = |tally: &Tally| tally.has_zeros(dump).then_some(tally.first.offset);
    Ok(tallies(dump)?.iter().map(offset).collect())
}

fn pages(dump: &Kdump, out: &mut String) -> io::Result<()> {
    let mut tallies = tallies(dump)?;
    let mut shared = 0_u64;
    for tally in &mut tallies {
        if tally.has_zeros(dump) {
            shared = shared.saturating_add(tally.same);
        } else {
            tally.add(tally.first, tally.same);
        }
    }
    let sum = |count: fn(&Tally) -> u64| tallies.iter().map(count).fold(0_u64, u64::saturating_add);
    let _ = writeln!(
        out,
        "{:<12} {} kept: {} compressed, {} raw, {shared} zero, {} lost; {} KiB of data",
        "pages",
        dump.kept(),
        sum(|tally| tally.packed),
        sum(|tally| tally.raw),
        sum(|tally| tally.lost),
        sum(|tally| tally.bytes) >> 10
    );
    Ok(())
}

fn log_tail(input: &Input, out: &mut String) {
    let mut tail = Tail::new(LOG_LINES);
    match dmesg::write(&input.kernel(), &mut tail) {
        Ok(stats) => {
            if let Some(death) = tail.death() {
                let _ = writeln!(out, "{:<12} {}", "died of", death.message);
                if let Some(command) = death.command {
                    let pid = death.pid.map_or_else(String::new, |pid| format!(", PID {pid}"));
                    let _ = writeln!(out, "{:<12} {command}{pid}", "in task");
                }
            }
            let older = match stats.left_out {
                0 => String::new(),
                number => format!(", {number} older ones left out"),
            };
            let _ = writeln!(
                out,
                "{:<12} {} records, {} damaged{older}; the last lines:",
                "kernel log", stats.records, stats.damaged
            );
            for line in tail.lines() {
                let _ = writeln!(out, "  {line}");
            }
        }
        Err(error) => {
            let _ = writeln!(out, "{:<12} not readable: {}", "kernel log", base::log::chain(&error));
        }
    }
}

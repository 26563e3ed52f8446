//! What a vmcore or dump holds, as text for people.

use std::fmt::Write;
use std::io;

use capture::format::kdump::Compression;
use capture::kernel::{dmesg, uts};
use capture::report::utc;
use capture::source::{Core, Kdump};

use crate::input::Input;

/// Lines of the kernel log at the end of the report.
const LOG_LINES: usize = 12;
/// Memory ranges that are listed one by one.
const RANGES: usize = 16;

/// The report. Text from the old kernel is escaped: it may hold anything.
pub fn report(input: &Input) -> io::Result<String> {
    let mut out = String::new();
    let kernel = input.kernel();
    let utsname =
        uts::discover(&kernel).unwrap_or_else(|_| uts::fallback(input.info(), Some(&input.machine())));
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12} {}", value.escape_debug());
    };
    row(
        "format",
        match input {
            Input::Vmcore(_) => "ELF64 vmcore",
            Input::Kdump(_) => "kdump-compressed, version 6",
        },
    );
    if let Input::Kdump(dump) = input {
        row(
            "state",
            if dump.header().incomplete {
                "INCOMPLETE: ends early, missing pages read as lost"
            } else {
                "complete"
            },
        );
        row("dump level", &dump.header().dump_level.to_string());
    }
    row("kernel", &format!("{} {}", utsname.release, input.machine()));
    row("build", &utsname.version);
    row("build id", input.info().get("BUILD-ID").unwrap_or("unknown"));
    row("host", &utsname.nodename);
    let crashed = input.info().crash_time().and_then(utc);
    row("crash time", crashed.as_deref().unwrap_or("unknown: VMCOREINFO has none, so there was no panic"));
    row("registers", &format!("{} CPUs", input.cpus()));
    row("page size", &format!("{} bytes", input.memory().page_size().bytes()));
    memory(input, &mut out);
    match input {
        Input::Vmcore(core) => {
            for anomaly in core.anomalies() {
                let _ = writeln!(out, "{:<12} {anomaly:?}", "anomaly");
            }
        }
        Input::Kdump(dump) => pages(dump, &mut out)?,
    }
    log_tail(input, &mut out);
    Ok(out)
}

fn memory(input: &Input, out: &mut String) {
    let memory = input.memory();
    let bytes = capture::dump::memory_bytes(memory);
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

fn pages(dump: &Kdump, out: &mut String) -> io::Result<()> {
    let (mut shared, mut lost, mut packed, mut raw, mut bytes) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    // The block of zeros is the first after the descriptors; several pages point to it.
    let zero_at = dump.layout().data_offset(dump.kept());
    let has_zero_block = dump.header().dump_level & 1 != 0;
    dump.for_each_desc(|desc| {
        let counter = match desc.offset {
            0 => &mut lost,
            at if has_zero_block && Some(at) == zero_at => &mut shared,
            _ if desc.flags == Compression::Raw.flag() => &mut raw,
            _ => &mut packed,
        };
        *counter = counter.saturating_add(1);
        if desc.offset != 0 && !(has_zero_block && Some(desc.offset) == zero_at) {
            bytes = bytes.saturating_add(u64::from(desc.size));
        }
    })?;
    let _ = writeln!(
        out,
        "{:<12} {} kept: {packed} compressed, {raw} raw, {shared} zero, {lost} lost; {} KiB of data",
        "pages",
        dump.kept(),
        bytes >> 10
    );
    Ok(())
}

fn log_tail(input: &Input, out: &mut String) {
    let mut text = Vec::new();
    match dmesg::write(&input.kernel(), &mut text) {
        Ok(stats) => {
            let _ = writeln!(
                out,
                "{:<12} {} records, {} damaged; the last lines:",
                "kernel log", stats.records, stats.damaged
            );
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
                let _ = writeln!(out, "  {line}");
            }
        }
        Err(error) => {
            let _ = writeln!(out, "{:<12} not readable: {}", "kernel log", capture::log::chain(&error));
        }
    }
}

//! Disks of device-mapper and md, made for triage to find, and what /proc and /sys show of processors,
//! interrupts, memory and disks.

use super::{read, sys};
use crate::early;
use crate::user_memory::set;
use anyhow::{Context, Result};
use qemu_tests::last_words::machine::{ARRAY, BELOW, MAPPED, MODULES, UUID};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Loads their modules, so that their types are known, in a guest that has the list of them.
pub(super) fn prepare() -> Result<()> {
    if Path::new(MODULES).exists() { early::modules(MODULES) } else { Ok(()) }
}

/// Makes them.
pub(super) fn plant() -> Result<()> {
    if !Path::new(MODULES).exists() {
        return Ok(());
    }
    let parameters = format!("/dev/{BELOW} 8");
    let mut targets = vec![(2048, "linear", parameters.as_str()), (4096, "error", "")];
    // Not every guest has so many disks.
    targets.retain(|(_, kind, _)| *kind != "linear" || Path::new("/sys/class/block").join(BELOW).exists());
    sys::mapped_disk(MAPPED, UUID, &targets).context("a disk of device-mapper")?;
    set("/sys/module/md_mod/parameters/new_array", ARRAY)
}

/// A line for each fact.
pub(super) fn snapshot(out: &mut String) -> Result<()> {
    for line in read("/proc/cpuinfo").lines() {
        let _ = writeln!(out, "cpuinfo\t{}", line.replace('\t', ""));
    }
    for (of, path) in [("interrupt", "/proc/interrupts"), ("softirq", "/proc/softirqs")] {
        for line in read(path).lines().skip(1) {
            let _ = writeln!(out, "{of}\t{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    for line in read("/proc/zoneinfo").lines() {
        let _ = writeln!(out, "zone\t{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    for line in read("/proc/buddyinfo").lines() {
        let _ = writeln!(out, "buddy\t{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    for entry in fs::read_dir("/sys/class/block").context("reading /sys/class/block")?.flatten() {
        block(&entry.path(), out);
    }
    Ok(())
}

/// A disk or a partition: what its files say, and names in its directories, in words with tabs between them.
fn block(directory: &Path, out: &mut String) {
    let file = |name: &str| read(&directory.join(name).to_string_lossy()).trim().to_owned();
    let names = |name: &str| {
        let entries = fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.join(",")
    };
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    // Of schedulers that are there the one in use is in brackets.
    let schedulers = file("queue/scheduler");
    let scheduler = schedulers.split(['[', ']']).nth(1).unwrap_or("none").to_owned();
    let words = [
        name.into_owned(),
        file("dev"),
        file("size"),
        file("ro"),
        file("partition"),
        if directory.join("partition").exists() { String::new() } else { scheduler },
        names("slaves"),
        names("holders"),
        file("dm/name"),
        file("dm/uuid"),
    ];
    let _ = writeln!(out, "block\t{}", words.join("\t"));
}

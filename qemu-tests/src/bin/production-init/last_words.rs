//! What the system says right before its end: what /proc shows, in a file of a tmpfs, and lines in files
//! that nobody writes to the disk.

mod kernel_state;
mod machine;
mod network;
mod sys;

use crate::cmdline::CommandLine;
use crate::user_memory::set;
use anyhow::{Context, Result};
use qemu_tests::last_words::{SNAPSHOT, UNSYNCED, UNSYNCED_LINES, unsynced_line};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Makes what `load` has to see; nothing if there is no `prod.last`.
pub(crate) fn prepare(line: &CommandLine) -> Result<()> {
    if line.get("prod.last").is_ok() { machine::prepare() } else { Ok(()) }
}

/// Takes down what /proc shows, and writes the lines into a file in each of the directories that `prod.last`
/// names; nothing if there is none.
pub(crate) fn say(seed: &str, line: &CommandLine) -> Result<()> {
    if line.get("prod.last").is_err() {
        return Ok(());
    }
    // The kernel begins to write back this long after a file was written to, in hundredths of a second.
    // 0 would let it begin at once: devices that were never written to have no share of dirty pages.
    set("/proc/sys/vm/dirty_writeback_centisecs", "60000")?;
    network::plant()?;
    kernel_state::plant()?;
    machine::plant()?;
    fs::write(SNAPSHOT, snapshot()?).context("writing what /proc shows")?;
    for directory in line.list("prod.last") {
        let path = Path::new(directory).join(UNSYNCED);
        let mut file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        for number in 0..UNSYNCED_LINES {
            let line = unsynced_line(seed, number);
            file.write_all(line.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
        }
        // It stays open: some file systems write a new file when it is closed.
        std::mem::forget(file);
    }
    Ok(())
}

/// A line for each fact, in words with tabs between them.
fn snapshot() -> Result<String> {
    let mut out = String::new();
    network::snapshot(&mut out)?;
    kernel_state::snapshot(&mut out)?;
    machine::snapshot(&mut out)?;
    for line in read("/proc/mounts").lines() {
        let words: Vec<&str> = line.split(' ').take(3).collect();
        let _ = writeln!(out, "mount\t{}", words.join("\t"));
    }
    for line in read("/proc/modules").lines() {
        let _ = writeln!(out, "module\t{}", line.split(' ').next().unwrap_or_default());
    }
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_ok() {
            process(&name, &mut out);
        }
    }
    Ok(out)
}

fn read(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn process(pid: &str, out: &mut String) {
    let status = read(&format!("/proc/{pid}/status"));
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        line.unwrap_or_default().split('\t').next().unwrap_or_default().to_owned()
    };
    let _ = writeln!(out, "process\t{pid}\t{}\t{}\t{}", field("PPid"), field("Uid"), field("Name"));
    for (what, file) in [("args", "cmdline"), ("env", "environ")] {
        let text = read(&format!("/proc/{pid}/{file}"));
        if !text.is_empty() {
            let words: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
            let _ = writeln!(out, "{what}\t{pid}\t{}", words.join("\t"));
        }
    }
    for what in ["exe", "cwd", "root"] {
        if let Ok(target) = fs::read_link(format!("/proc/{pid}/{what}")) {
            let _ = writeln!(out, "{what}\t{pid}\t{}", target.display());
        }
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            let number = entry.file_name().to_string_lossy().into_owned();
            let _ = writeln!(out, "fd\t{pid}\t{number}\t{}", target.display());
        }
    }
}

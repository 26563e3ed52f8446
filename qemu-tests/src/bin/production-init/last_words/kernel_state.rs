//! State of the kernel that is made for triage to find, and what /proc and /sys show of it.

use super::{read, sys};
use crate::early::{self, DISK};
use crate::swap;
use crate::user_memory::set;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use qemu_tests::last_words::kernel_state::{KEY, POINT, PROBED, PROBED_FILE, PROBED_OFFSET, SECRET, WAITING};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

const TRACING: &str = "/tracing";

/// Makes some of each kind.
pub(super) fn plant() -> Result<()> {
    sys::shared_memory(0x1234_5678, 12_288, 0o640).context("shared memory")?;
    sys::semaphores(0x0abc_def0, 3, 0o600).context("semaphores")?;
    sys::message(0x0000_4321, b"a message that nobody reads", 0o660).context("a queue of messages")?;
    sys::posix_queue("a-queue").context("a queue of POSIX")?;
    sys::key(KEY, SECRET.as_bytes()).context("a key")?;
    sys::program("a_filter", sys::SOCKET_FILTER).context("a BPF program")?;
    let program = sys::program("a_probe", sys::RAW_TRACEPOINT).context("a BPF program")?;
    sys::link(program, POINT).context("a BPF link")?;
    sys::map("an_array").context("a BPF map")?;
    let file = Path::new(DISK).join("swap-area");
    swap::make_file(&file)?;
    sys::swap_on(&file.to_string_lossy()).context("swapping to a file")?;
    fs::create_dir_all(TRACING).with_context(|| format!("making {TRACING}"))?;
    early::mount_at("tracefs", TRACING, "tracefs")?;
    set(&format!("{TRACING}/kprobe_events"), &format!("p:a_probe {PROBED}"))?;
    set(&format!("{TRACING}/events/kprobes/a_probe/enable"), "1")?;
    // Nobody runs it: no instruction is replaced.
    let file = Path::new(DISK).join(PROBED_FILE);
    fs::write(&file, [0x90; 4096]).with_context(|| format!("writing {}", file.display()))?;
    set(&format!("{TRACING}/uprobe_events"), &format!("p:an_uprobe {}:{PROBED_OFFSET:#x}", file.display()))?;
    set(&format!("{TRACING}/events/uprobes/an_uprobe/enable"), "1")?;
    thread::Builder::new().name(WAITING.to_owned()).spawn(sys::wait_for_ever).context("a thread")?;
    elsewhere()
}

/// A thread in namespaces of its own, with shared memory there.
fn elsewhere() -> Result<()> {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        let made = unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
            .map_err(std::io::Error::from)
            .and_then(|()| sys::shared_memory(0x0000_7777, 4096, 0o600));
        let _ = done.send(made.map(drop));
        loop {
            thread::park();
        }
    });
    wait.recv().context("the thread ended")?.context("namespaces of a thread")
}

/// A line for each fact.
pub(super) fn snapshot(out: &mut String) -> Result<()> {
    for line in read("/proc/keys").lines() {
        let _ = writeln!(out, "key\t{line}");
    }
    for (of, file) in [("shm", "shm"), ("sem", "sem"), ("msg", "msg")] {
        for line in read(&format!("/proc/sysvipc/{file}")).lines().skip(1) {
            let _ = writeln!(out, "{of}\t{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    for line in read("/proc/swaps").lines().skip(1) {
        let _ = writeln!(out, "swap\t{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let _ = writeln!(out, "cmdline\t{}", read("/proc/cmdline").trim_end());
    inode(out)?;
    for line in read("/proc/cgroups").lines().filter(|line| line.starts_with("memory")) {
        let _ = writeln!(out, "cgroups\t{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    settings(Path::new("/proc/sys"), out);
    for process in numbers("/proc") {
        for thread in numbers(&format!("/proc/{process}/task")) {
            let directory = format!("/proc/{process}/task/{thread}/ns");
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Ok(target) = fs::read_link(entry.path()) {
                    let _ = writeln!(out, "namespace\t{name}\t{process}\t{}", target.display());
                }
            }
        }
    }
    for entry in fs::read_dir("/proc/self/fdinfo").context("reading /proc/self/fdinfo")?.flatten() {
        let text = read(&entry.path().to_string_lossy());
        let is_wanted =
            |line: &&str| ["prog_tag:", "prog_id:", "map_id:"].iter().any(|key| line.starts_with(key));
        let mut words: Vec<&str> = text.lines().filter(is_wanted).collect();
        // A link names its program as well.
        let is_link = |line: &&str| line.starts_with("link_id:");
        if let Some(link) = text.lines().find(is_link) {
            words = vec![link];
        }
        if !words.is_empty() {
            let _ = writeln!(out, "bpf\t{}", words.join("\t"));
        }
    }
    // Objects and bytes of each move on while they are read; their names do not.
    for line in read("/proc/slabinfo").lines().skip(2) {
        let _ = writeln!(out, "slab\t{}", line.split_whitespace().take(4).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

/// The file that a probe is in, as the kernel knows it.
fn inode(out: &mut String) -> Result<()> {
    let about = fs::metadata(Path::new(DISK).join(PROBED_FILE)).context("the probed file")?;
    let _ = writeln!(out, "uprobe\t{} {PROBED_OFFSET}", about.ino());
    Ok(())
}

fn numbers(directory: &str) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.parse::<u32>().is_ok()).collect()
}

/// Settings that are one line.
fn settings(directory: &Path, out: &mut String) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            settings(&path, out);
            continue;
        }
        let text = read(&path.to_string_lossy());
        let name = path.strip_prefix("/proc/sys").unwrap_or(&path).to_string_lossy().replace('/', ".");
        if text.lines().count() == 1 {
            let _ = writeln!(out, "sysctl\t{name}\t{}", text.trim_end());
        }
    }
}

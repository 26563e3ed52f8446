//! Runs in the capture kernel before the real `/init`: copies `/proc/vmcore`, byte for byte, to the
//! second disk, takes random numbers away (`wrap.random=none`), and starts the [`jobs`] that make life
//! hard for the capture.

use crate::cmdline::CommandLine;
use crate::early;
use crate::jobs;
use crate::say::say;
use anyhow::{Context, Result};
use base::config::SEED_PATH;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MntFlags, umount2};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The capture image's own list of modules in load order (contract with `afterimage build`).
const MODULES: &str = "/etc/afterimage/modules";
const DISK: &str = "/dev/vdb";
const PIECE: usize = 4 << 20;

/// Does what the `wrap.` words of the command line say, then becomes `/init`; returns only on
/// failure.
pub(crate) fn run() -> Result<()> {
    early::kernel_mounts()?;
    let line = CommandLine::read()?;
    if line.get("wrap.copy").is_ok() {
        early::modules(MODULES)?;
        early::wait_for(Path::new(DISK))?;
        say(format!("wrapper: copied {} bytes of /proc/vmcore to {DISK}", copy()?));
    }
    if line.get("wrap.random").is_ok() {
        // What a machine has that nobody gave a seed, and no devtmpfs.
        for path in [SEED_PATH, "/dev/random", "/dev/urandom"] {
            fs::remove_file(path).with_context(|| format!("removing {path}"))?;
        }
        say("wrapper: random numbers are taken away");
    }
    let ours = ["wrap.copy=", "wrap.random="];
    for word in line.words("wrap.").filter(|word| !ours.iter().any(|own| word.starts_with(own))) {
        jobs::start(word)?;
    }
    // The real init finds the kernel as it would without us, except that the modules of a copy are
    // loaded. Lazily: the console may have been opened below /dev.
    for directory in ["/dev", "/sys", "/proc"] {
        umount2(directory, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {directory}"))?;
    }
    Err(Command::new("/init").exec()).context("starting /init")
}

fn copy() -> Result<u64> {
    let mut vmcore = File::open("/proc/vmcore").context("opening /proc/vmcore")?;
    let mut disk = File::options().write(true).open(DISK).with_context(|| format!("opening {DISK}"))?;
    let mut buffer = vec![0; PIECE];
    let mut total: u64 = 0;
    loop {
        let size = vmcore.read(&mut buffer).with_context(|| format!("reading /proc/vmcore at {total:#x}"))?;
        if size == 0 {
            break;
        }
        let piece = buffer.get(..size).context("a read longer than its buffer")?;
        disk.write_all(piece).with_context(|| format!("writing {DISK} at {total:#x}"))?;
        // Piece by piece: the capture that follows is to find its memory free.
        disk.sync_data().with_context(|| format!("syncing {DISK}"))?;
        posix_fadvise(&disk, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        total = total.saturating_add(u64::try_from(size)?);
    }
    Ok(total)
}

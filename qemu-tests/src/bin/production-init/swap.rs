//! Memory that is swapped out and comes back.

use crate::early::{self, DISK};
use crate::pagemap::of_memory;
use crate::plants::Held;
use crate::user_memory::{base_pages, set};
use anyhow::{Context, Result, ensure};
use qemu_tests::initramfs::SWAPON;
use qemu_tests::marker::PAGE;
use qemu_tests::planted::Plant;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::process::Command;

const GROUPS: &str = "/groups";
const FILE_PAGES: u32 = 4096;
const PAGES: usize = 1024;
/// Every so many pages one is read again; what the kernel reads with it are eight.
const STEP: usize = 32;

/// Base pages that were swapped out; some are read again.
pub(crate) fn swapped(seed: &str) -> Result<Held> {
    // A file on a disk: from a zram disk the kernel takes pages back past the swap cache.
    swap_file()?;
    let group = group()?;
    // What this process touches now is charged to the group, and the kernel can be asked to reclaim
    // just that.
    set(&format!("{group}/cgroup.procs"), "1")?;
    let memory = base_pages(seed, Plant::Swapped, PAGES.saturating_mul(PAGE))?;
    set(&format!("{GROUPS}/cgroup.procs"), "1")?;
    let mut left = PAGES;
    for _ in 0..50 {
        // Fails where not all could be reclaimed at once.
        let _ = fs::write(format!("{group}/memory.reclaim"), "16M");
        left = of_memory(&memory)?.len();
        if left == 0 {
            break;
        }
    }
    ensure!(left < PAGES / 4, "{left} of {PAGES} pages are not swapped out");
    for page in memory.chunks_exact(PAGE).step_by(STEP) {
        black_box(page.first().copied());
    }
    Ok(Held::Memory(memory))
}

/// Makes a file and swaps to it.
fn swap_file() -> Result<()> {
    let path = Path::new(DISK).join("swap");
    make_file(&path)?;
    let status = Command::new(SWAPON).arg(&path).status().with_context(|| format!("starting {SWAPON}"))?;
    ensure!(status.success(), "{SWAPON}: {status}");
    Ok(())
}

/// Makes a file that can be swapped to.
pub(crate) fn make_file(path: &Path) -> Result<()> {
    let mut header = vec![0; PAGE];
    // union swap_header of include/linux/swap.h: version and last page behind 1024 bytes, the magic
    // at the end.
    let [version, last] = [1, FILE_PAGES.wrapping_sub(1)].map(u32::to_ne_bytes);
    let (_, info) = header.split_at_mut(1024);
    for (to, from) in info.iter_mut().zip(version.into_iter().chain(last)) {
        *to = from;
    }
    for (to, from) in header.iter_mut().rev().zip(b"SWAPSPACE2".iter().rev()) {
        *to = *from;
    }
    let mut file = File::create(path).context("making the swap file")?;
    file.write_all(&header).context("writing the swap file")?;
    for _ in 1..FILE_PAGES {
        file.write_all(&[0; PAGE]).context("writing the swap file")?;
    }
    file.sync_all().context("syncing the swap file")
}

/// A control group for memory.
fn group() -> Result<String> {
    fs::create_dir_all(GROUPS).with_context(|| format!("making {GROUPS}"))?;
    early::mount_at("cgroup2", GROUPS, "cgroup2")?;
    set(&format!("{GROUPS}/cgroup.subtree_control"), "+memory")?;
    let group = format!("{GROUPS}/swapped");
    fs::create_dir(&group).with_context(|| format!("making {group}"))?;
    Ok(group)
}

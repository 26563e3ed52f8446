//! Memory that comes and goes while the system runs.

use crate::crowd;
use crate::early;
use crate::say::say;
use crate::steps;
use crate::user_memory::set;
use anyhow::{Context, Result};
use qemu_tests::pages::Kind;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

const BLOCKS: &str = "/sys/devices/system/memory";

/// Asks the harness for memory, waits until `mib` more are there and puts them to use.
pub(crate) fn add(mib: &str) -> Result<()> {
    let wanted = mib.parse::<u64>().context("the size of memory to come")?.saturating_mul(1 << 20);
    let size = u64::from_str_radix(read("block_size_bytes")?.trim(), 16).context("the size of a block")?;
    let before = blocks()?;
    say("production: ready for memory");
    let mut come = Vec::new();
    for _ in 0..600 {
        come = blocks()?;
        come.retain(|block| !before.contains(block));
        if u64::try_from(come.len())?.saturating_mul(size) >= wanted {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    anyhow::ensure!(!come.is_empty(), "no memory comes within a minute");
    for block in &come {
        let state = format!("memory{block}/state");
        early::wait_for(&Path::new(BLOCKS).join(&state))?;
        // Movable: it takes what user space asks for first, and can be emptied again.
        if read(&state)?.trim() == "offline" {
            set(&format!("{BLOCKS}/{state}"), "online_movable")?;
        }
    }
    say(format!("production: {} blocks of memory came", come.len()));
    Ok(())
}

/// The same when the capture is armed: half of it is filled with pages, and the capture is told
/// unless the kernel does that.
pub(crate) fn late(seed: &str, mib: &str) -> Result<()> {
    let before = blocks()?;
    add(mib)?;
    let first = blocks()?.into_iter().filter(|block| !before.contains(block)).min().context("no block")?;
    let size = u64::from_str_radix(read("block_size_bytes")?.trim(), 16).context("the size of a block")?;
    let first = first.saturating_mul(size.wrapping_div(4096));
    let count = mib.parse::<u64>()?.saturating_mul(128);
    let lowest = crowd::hold(Kind::Late, seed, count)?;
    anyhow::ensure!(
        lowest >= first,
        "pages lie at PFN {lowest:#x}, and the memory that came begins at {first:#x}"
    );
    // /sys/devices/system/memory/crash_hotplug: since 6.5 a kernel may keep the ELF core header
    // right by itself.
    let by_kernel = read("crash_hotplug").is_ok_and(|text| text.trim() == "1");
    say(format!("production: {count} late pages, the kernel says so itself: {by_kernel}"));
    if !by_kernel {
        steps::afterimage("load-again")?;
    }
    Ok(())
}

/// Takes the last block of memory offline; gives its page frames.
pub(crate) fn offline_one() -> Result<Vec<u64>> {
    let size = u64::from_str_radix(read("block_size_bytes")?.trim(), 16).context("the size of a block")?;
    let block = blocks()?.into_iter().max().context("there is no block of memory")?;
    set(&format!("{BLOCKS}/memory{block}/state"), "offline")?;
    let pages = size.wrapping_div(4096);
    let start = block.saturating_mul(pages);
    Ok((start..start.saturating_add(pages)).collect())
}

fn blocks() -> Result<Vec<u64>> {
    let entries = fs::read_dir(BLOCKS).with_context(|| format!("reading {BLOCKS}"))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter_map(|name| name.strip_prefix("memory")?.parse().ok()).collect())
}

fn read(name: &str) -> Result<String> {
    let path = Path::new(BLOCKS).join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

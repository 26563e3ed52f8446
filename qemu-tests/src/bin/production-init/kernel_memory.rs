//! Plants in memory that the kernel keeps to itself: found in a dump by their content.

use crate::early;
use crate::plants::Held;
use crate::user_memory::set;
use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use qemu_tests::marker::{PAGE, text};
use qemu_tests::planted::Plant;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The longest name a file may have is 255 bytes; one of this length comes from kmalloc-256.
const NAME: usize = 220;
const NAMES: usize = 2048;
const ZRAM_PAGES: usize = 1024;

/// Names of files on a tmpfs: its entries are never dropped.
pub(crate) fn slab(seed: &str) -> Result<Held> {
    let directory = Path::new("/tmp/names");
    fs::create_dir(directory).context("making a directory")?;
    for index in 0..NAMES {
        let name = format!("{:.<NAME$}", text(seed, Plant::Slab, index));
        File::create(directory.join(name)).context("making a file")?;
    }
    Ok(Held::Unknown)
}

/// Pages that no compressor makes smaller, so that each is stored as it is.
pub(crate) fn zram(seed: &str) -> Result<Held> {
    early::modules("/modules/zram")?;
    set("/sys/block/zram0/disksize", &ZRAM_PAGES.saturating_mul(PAGE).to_string())?;
    let path = Path::new("/dev/zram0");
    early::wait_for(path)?;
    let mut disk = File::options().write(true).open(path).context("opening the zram disk")?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for index in 0..ZRAM_PAGES {
        let mut page = text(seed, Plant::Zram, index).into_bytes();
        while page.len() < PAGE {
            // xorshift64: noise, and the same in every run.
            state ^= state.wrapping_shl(13);
            state ^= state.wrapping_shr(7);
            state ^= state.wrapping_shl(17);
            page.extend(state.to_ne_bytes());
        }
        page.truncate(PAGE);
        disk.write_all(&page).context("writing to the zram disk")?;
    }
    disk.sync_all().context("syncing the zram disk")?;
    // The copy in the page cache would be found as well.
    posix_fadvise(&disk, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(Held::Unknown)
}

//! Makes the input of scripts/bench: `/proc/vmcore` of a real crash, copied as it was, kept in the
//! cache.
//!
//! The crashed system has 2 GiB of memory. Files of the cached kernel packages lie in its page
//! cache: they come with its initramfs, whose content the kernel keeps as pages of files, and whose
//! own pages stay behind as free ones with old content. Prints the path of the copy; one that is
//! there is kept.

use afterimage::cpio::{self, Entry};
use anyhow::{Context, Result, bail};
use qemu_tests::crash_copy::{CrashCopy, kept};
use qemu_tests::kernel::Kernel;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SERIES: &str = "6.1";
const MEMORY_MIB: u32 = 2048;
/// Of the kernel with symbols: the rest would not leave the guest room to unpack it.
const SYMBOLS: usize = 400 << 20;
/// Names the content of the file: to be counted up when that changes.
const NAME: &str = "vmcore-1";
/// Emulated, on a loaded machine.
const BOOT: Duration = Duration::from_mins(5);

fn main() -> Result<()> {
    println!("{}", kept(NAME, crash)?.display());
    Ok(())
}

fn crash(copy: &Path) -> Result<()> {
    let kernel = Kernel::with_symbols(SERIES)?;
    let archive = ballast(&kernel)?;
    CrashCopy { kernel: &kernel, memory_mib: MEMORY_MIB, cpus: 1, archive, workload: None, boot: BOOT }
        .make(copy)
}

/// The modules of the kernel and a large part of its symbols, as an archive for the page cache.
fn ballast(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    let mut files = Vec::new();
    regular_files(&kernel.modules(), &mut files)?;
    files.sort();
    for (index, file) in files.iter().enumerate() {
        entries.push(Entry::file(&format!("/ballast/{index}"), 0o644, read(file)?));
    }
    let symbols = read(&kernel.vmlinux())?;
    let Some(part) = symbols.get(..SYMBOLS) else { bail!("{} is short", kernel.vmlinux().display()) };
    entries.push(Entry::file("/ballast/vmlinux", 0o644, part.to_vec()));
    Ok(cpio::write(&entries))
}

fn regular_files(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).with_context(context)? {
        let entry = entry.with_context(context)?;
        let kind = entry.file_type().with_context(context)?;
        if kind.is_dir() {
            regular_files(&entry.path(), into)?;
        } else if kind.is_file() {
            into.push(entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

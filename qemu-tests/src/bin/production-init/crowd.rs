//! Many self-checking pages (`prod.pages=COUNT`, so many of each kind), and the process that holds
//! the anonymous ones.

use crate::early::DISK;
use crate::pagemap::of_memory;
use crate::say::say;
use crate::user_memory::set;
use anyhow::{Context, Result, bail, ensure};
use memmap2::MmapMut;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use qemu_tests::initramfs::SLEEPER;
use qemu_tests::pages::{Kind, PAGE, fill};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// What the holder says when its pages are there, with the lowest page frame behind it.
const HELD: &str = "held from PFN ";
/// What a counter of the kernel may lack.
const SLACK: u64 = 256;
/// Read or written at a time.
const PIECE: usize = 256 * PAGE;

/// Makes them all; they last as long as the kernel does.
pub(crate) fn gather(seed: &str, count: &str) -> Result<()> {
    let count: u64 = count.parse().context("the number of pages")?;
    // Nothing is written back by itself.
    set("/proc/sys/vm/dirty_ratio", "90")?;
    set("/proc/sys/vm/dirty_background_ratio", "80")?;
    set("/proc/sys/vm/dirty_writeback_centisecs", "0")?;
    let _lowest = hold(Kind::Anonymous, seed, count)?;
    // A buffer of whole pages that is never given back: a part of a page found elsewhere would
    // count as a broken page.
    let mut buffer = MmapMut::map_anon(PIECE).context("mapping a buffer")?;
    write(Kind::Tmpfs, seed, count, Path::new("/tmp/crowd"), &mut buffer)?;
    clean(seed, count, &mut buffer)?;
    let before = counter("nr_dirty")?;
    write(Kind::Dirty, seed, count, &Path::new(DISK).join("crowd-dirty"), &mut buffer)?;
    std::mem::forget(buffer);
    let dirty = counter("nr_dirty")?.saturating_sub(before);
    // The counter is behind by what each CPU has not added yet (mm/vmstat.c).
    ensure!(dirty.saturating_add(SLACK) >= count, "only {dirty} of {count} pages are dirty");
    say(format!("production: {count} pages of each kind, {dirty} dirty"));
    Ok(())
}

/// Starts a process that fills pages with this kind and then sleeps; gives the lowest page frame.
pub(crate) fn hold(kind: Kind, seed: &str, count: u64) -> Result<u64> {
    let mut holder = Command::new(format!("/{SLEEPER}"))
        .args([&kind.to_string(), seed, &count.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the holder of pages")?;
    let mut message = String::new();
    holder.stdout.take().context("no output")?.read_to_string(&mut message).context("waiting for pages")?;
    let lowest = message.strip_prefix(HELD).and_then(|lowest| lowest.parse().ok());
    lowest.with_context(|| format!("the holder of pages said {message:?}"))
}

/// The holder: `KIND SEED COUNT`. Returns only on failure.
pub(crate) fn holder(arguments: &[String]) -> Result<()> {
    let [kind, seed, count] = arguments else { bail!("{arguments:?} are not kind, seed and count") };
    let tag = kind.parse::<Kind>()?.tag(seed);
    let count: usize = count.parse().context("the number of pages")?;
    let mut memory = MmapMut::map_anon(count.saturating_mul(PAGE)).context("mapping memory")?;
    for (index, page) in (0..).zip(memory.chunks_exact_mut(PAGE)) {
        fill(page, tag, index);
    }
    let lowest = of_memory(&memory)?.into_iter().min().context("no page is there")?;
    // Its end is what the one who waits reads.
    let mut out = std::io::stdout();
    write!(out, "{HELD}{lowest}")?;
    out.flush()?;
    nix::unistd::close(1).context("closing the standard output")?;
    loop {
        sleep(Duration::MAX);
    }
}

/// Page cache that is as on the disk, because it came from there.
fn clean(seed: &str, count: u64, buffer: &mut MmapMut) -> Result<()> {
    let path = Path::new(DISK).join("crowd-clean");
    let file = write(Kind::Clean, seed, count, &path, buffer)?;
    file.sync_all().context("syncing clean pages")?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut file = File::open(&path).context("opening clean pages")?;
    while file.read(buffer).context("reading clean pages")? > 0 {}
    Ok(())
}

fn write(kind: Kind, seed: &str, count: u64, path: &Path, buffer: &mut MmapMut) -> Result<File> {
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    let tag = kind.tag(seed);
    let mut indices = 0..count;
    loop {
        let mut size = 0;
        for (page, index) in buffer.chunks_exact_mut(PAGE).zip(&mut indices) {
            fill(page, tag, index);
            size = PAGE.saturating_add(size);
        }
        if size == 0 {
            return Ok(file);
        }
        let whole = buffer.get(..size).context("more pages than fit")?;
        file.write_all(whole).with_context(|| format!("writing {}", path.display()))?;
    }
}

fn counter(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat").context("reading /proc/vmstat")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .with_context(|| format!("no counter {name}"))?
        .parse()
        .with_context(|| format!("the counter {name}"))
}

//! Plants in memory that user space can map, and so tell the page frames of.

use crate::early::DISK;
use crate::pagemap::of_memory;
use crate::plants::Held;
use anyhow::{Context, Result, ensure};
use memmap2::{Advice, MmapMut, MmapOptions};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use qemu_tests::marker::{PAGE, page};
use qemu_tests::planted::Plant;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

const MIB: usize = 1 << 20;
/// Different pages among those for KSM.
const KSM_CONTENTS: usize = 16;
const KSM_PAGES: usize = 1024;
/// Mapped, of a pool with two more: hugetlb pages may also be free.
const HUGE_PAGES: usize = 4;

/// Base pages.
pub(crate) fn anonymous(seed: &str) -> Result<Held> {
    base_pages(seed, Plant::Anonymous, 4 * MIB).map(Held::Memory)
}

/// Base pages that will be given back.
pub(crate) fn to_be_freed(seed: &str) -> Result<Held> {
    base_pages(seed, Plant::Freed, 16 * MIB).map(Held::ToBeFreed)
}

/// Shared memory.
pub(crate) fn tmpfs(seed: &str) -> Result<Held> {
    let path = Path::new("/tmp/planted");
    write(seed, Plant::Tmpfs, path)?;
    map(path)
}

/// Page cache as reading fills it.
pub(crate) fn cache(seed: &str) -> Result<Held> {
    let path = Path::new(DISK).join("planted-cache");
    let file = write(seed, Plant::Cache, &path)?;
    file.sync_all().context("syncing it")?;
    // What writing left in the cache goes: it has buffers attached.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    fs::read(&path).context("reading it back")?;
    map(&path)
}

/// Page cache as writing leaves it.
pub(crate) fn cache_private(seed: &str) -> Result<Held> {
    let path = Path::new(DISK).join("planted-private");
    write(seed, Plant::CachePrivate, &path)?.sync_all().context("syncing it")?;
    map(&path)
}

/// Transparent huge pages, as many as the kernel has.
pub(crate) fn thp(seed: &str) -> Result<Held> {
    // Part of it is not aligned and stays in base pages.
    let mut memory = MmapMut::map_anon(10 * MIB).context("mapping memory")?;
    memory.advise(Advice::HugePage).context("asking for huge pages")?;
    fill(&mut memory, seed, Plant::Thp);
    Ok(Held::Memory(memory))
}

/// Huge pages of a pool.
pub(crate) fn hugetlb(seed: &str) -> Result<Held> {
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    set(pool, &HUGE_PAGES.saturating_add(2).to_string())?;
    let size = HUGE_PAGES.saturating_mul(2 * MIB);
    let mut memory = MmapOptions::new().len(size).huge(Some(21)).map_anon().context("mapping huge pages")?;
    fill(&mut memory, seed, Plant::Hugetlb);
    Ok(Held::Memory(memory))
}

/// The huge page that the kernel command line reserved.
pub(crate) fn hugetlb_1g(seed: &str) -> Result<Held> {
    let mut memory =
        MmapOptions::new().len(1024 * MIB).huge(Some(30)).map_anon().context("mapping a huge page")?;
    // Filling all of it would take an emulated processor too long.
    for (index, target) in memory.chunks_exact_mut(PAGE).enumerate().step_by(64) {
        target.copy_from_slice(&page(seed, Plant::Hugetlb1g, index));
    }
    Ok(Held::Memory(memory))
}

/// Few contents, each in many pages.
pub(crate) fn ksm(seed: &str) -> Result<Held> {
    let mut memory = map_base(KSM_PAGES.saturating_mul(PAGE))?;
    memory.advise(Advice::Mergeable).context("offering memory for merging")?;
    for (index, target) in memory.chunks_exact_mut(PAGE).enumerate() {
        target.copy_from_slice(&page(seed, Plant::Ksm, index.wrapping_rem(KSM_CONTENTS)));
    }
    set("/sys/kernel/mm/ksm/sleep_millisecs", "10")?;
    set("/sys/kernel/mm/ksm/pages_to_scan", "2000")?;
    set("/sys/kernel/mm/ksm/run", "1")?;
    let wanted = KSM_PAGES.saturating_sub(KSM_CONTENTS);
    for _ in 0..600 {
        sleep(Duration::from_millis(100));
        let sharing = fs::read_to_string("/sys/kernel/mm/ksm/pages_sharing").context("asking KSM")?;
        if sharing.trim().parse::<usize>()? >= wanted {
            // Merged pages stay merged.
            set("/sys/kernel/mm/ksm/run", "0")?;
            return Ok(Held::Memory(memory));
        }
    }
    anyhow::bail!("KSM does not merge the pages within a minute")
}

/// Base pages, declared broken from outside: PID 1 would not survive doing it with madvise(2).
pub(crate) fn poisoned(seed: &str) -> Result<Held> {
    let memory = base_pages(seed, Plant::Poisoned, 8 * PAGE)?;
    let frames = of_memory(&memory)?;
    for pfn in &frames {
        let address = pfn.saturating_mul(u64::try_from(PAGE)?);
        set("/sys/devices/system/memory/hard_offline_page", &format!("{address:#x}"))?;
    }
    // Nobody touches the mapping again. It must live on: its end would have the kernel free the
    // rest of its pages.
    std::mem::forget(memory);
    Ok(Held::Frames(frames))
}

/// Writes to a file below /proc or /sys.
pub(crate) fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("writing {value:?} to {path}"))
}

pub(crate) fn base_pages(seed: &str, plant: Plant, size: usize) -> Result<MmapMut> {
    let mut memory = map_base(size)?;
    fill(&mut memory, seed, plant);
    Ok(memory)
}

/// Huge pages may be the default; a kernel with PREEMPT_RT has none.
fn map_base(size: usize) -> Result<MmapMut> {
    let memory = MmapMut::map_anon(size).context("mapping memory")?;
    if Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        memory.advise(Advice::NoHugePage).context("asking for base pages")?;
    }
    Ok(memory)
}

fn fill(memory: &mut MmapMut, seed: &str, plant: Plant) {
    for (index, target) in memory.chunks_exact_mut(PAGE).enumerate() {
        target.copy_from_slice(&page(seed, plant, index));
    }
}

fn write(seed: &str, plant: Plant, path: &Path) -> Result<File> {
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    for index in 0..512 {
        file.write_all(&page(seed, plant, index)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(file)
}

/// Read-only, or touching it would change what the kernel keeps with the pages.
fn map(path: &Path) -> Result<Held> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mapping = MmapOptions::new().populate().map_raw_read_only(&file).context("mapping it")?;
    ensure!(mapping.len() == 512 * PAGE, "{} is short", path.display());
    Ok(Held::File(mapping))
}

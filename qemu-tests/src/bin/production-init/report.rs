//! What the crashed kernel itself said about its memory, written to the disk at the last moment.

use crate::early::DISK;
use crate::pagemap::KPageFlags;
use crate::plants::Plants;
use crate::user_memory::set;
use anyhow::{Context, Result, bail};
use memmap2::MmapMut;
use nix::fcntl::OFlag;
use nix::unistd::sync;
use qemu_tests::marker::PAGE;
use qemu_tests::scenario::{COUNTERS, PAGE_FLAGS, PLANTED, REPORT};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// For 8 GiB of memory, holes included.
const FLAGS_SIZE: usize = 16 << 20;
const SOURCES: [&str; 5] =
    ["/proc/meminfo", "/proc/vmstat", "/proc/zoneinfo", "/proc/buddyinfo", "/proc/iomem"];

/// What ends it: nobody asks for huge pages, and memory is in small pieces for no other reason than that
/// it is full (Documentation/admin-guide/sysctl/vm.rst).
const MOVERS: [(&str, &str); 4] = [
    ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
    ("/sys/kernel/mm/transparent_hugepage/defrag", "never"),
    ("/proc/sys/vm/extfrag_threshold", "1000"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];
/// How often the kernel is looked at, how often in a row it must do nothing, and how often at most.
const LOOK: Duration = Duration::from_millis(200);
const QUIET_LOOKS: u32 = 5;
const MAX_LOOKS: u32 = 300;

/// Writes where everything is, and then the flags of all pages.
pub(crate) fn write(plants: &mut Plants) -> Result<()> {
    let directory = Path::new(DISK).join(REPORT);
    fs::create_dir_all(&directory).context("making the directory of the report")?;
    // All that takes memory comes before the flags are read: they are to be those of the panic.
    let mut buffer = MmapMut::map_anon(FLAGS_SIZE).context("mapping a buffer")?;
    buffer.fill(0);
    let path = directory.join(PAGE_FLAGS);
    let mut disk = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(&path)
        .with_context(|| format!("making {}", path.display()))?;
    wait_for_movers()?;
    // Also empties the lists in which a CPU collects pages before it marks them as PG_lru.
    set("/proc/sys/vm/drop_caches", "1")?;
    // Counters are behind by what each CPU has not added yet, which it does once a second
    // (Documentation/admin-guide/sysctl/vm.rst).
    set("/proc/sys/vm/stat_refresh", "1")?;
    put(&directory.join(PLANTED), &plants.locate()?.to_string())?;
    let mut counters = String::new();
    for source in SOURCES {
        let text = fs::read_to_string(source).with_context(|| format!("reading {source}"))?;
        counters.extend(["# ", source, "\n", &text]);
    }
    put(&directory.join(COUNTERS), &counters)?;
    sync();
    let size = KPageFlags::open()?.all(&mut buffer)?;
    let whole = buffer.get(..size.next_multiple_of(PAGE)).context("more flags than fit")?;
    disk.write_all(whole).with_context(|| format!("writing {}", path.display()))?;
    disk.set_len(u64::try_from(size)?).with_context(|| format!("cutting {}", path.display()))?;
    sync();
    // Giving it back now would change what was just written down.
    std::mem::forget(buffer);
    Ok(())
}

/// Waits until the kernel moves no page to another place: a page that is on its way is in no list, so
/// it is neither free nor of a file. What was planted made the kernel collect large pieces of free
/// memory, which takes it seconds.
fn wait_for_movers() -> Result<()> {
    for (switch, value) in MOVERS.into_iter().filter(|(switch, _)| Path::new(switch).exists()) {
        set(switch, value)?;
    }
    let moved = || -> Result<Vec<String>> {
        let text = fs::read_to_string("/proc/vmstat").context("reading /proc/vmstat")?;
        let lines =
            text.lines().filter(|line| line.starts_with("compact_") || line.starts_with("pgmigrate_"));
        Ok(lines.map(str::to_owned).collect())
    };
    let (mut before, mut quiet) = (moved()?, 0);
    for _ in 0..MAX_LOOKS {
        sleep(LOOK);
        let now = moved()?;
        quiet = if now == before { u32::saturating_add(quiet, 1) } else { 0 };
        if quiet == QUIET_LOOKS {
            return Ok(());
        }
        before = now;
    }
    bail!("the kernel has moved pages for a minute")
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

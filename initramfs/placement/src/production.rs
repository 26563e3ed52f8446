//! What the core header must say of the production kernel, read from that kernel while it runs.

use std::fs;
use std::ops::Range;
use std::path::Path;

use base::facts::{MemoryRange, parse_iomem};
use kexec::machine::{hex, of_kexec, text};
use kexec::{page_down, page_up};
use vmcore::source::{Access, Core, Vmcore};

use crate::core_header;

const CPUS: &str = "/sys/devices/system/cpu";
const CRASH_KERNEL: &str = "Crash kernel";
/// Where the kernel's text is mapped (`__START_KERNEL_map`, 1 GiB with KASLR;
/// Documentation/arch/x86/x86_64/mm.rst).
const TEXT: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;
/// Nothing below it goes into a core: the capture kernel uses it, and the production kernel does
/// not.
const LOWEST: u64 = kexec::e820::ONE_MIB;

/// The production kernel, as the core header describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Production {
    /// Top level of /proc/iomem.
    pub iomem: Vec<MemoryRange>,
    /// The reservations, the one for the image first.
    pub regions: Vec<Range<u64>>,
    /// Memory that users have till the panic, and the capture kernel from then on
    /// (`crashkernel=N,cma`, 6.17); no image goes there.
    pub cma: Vec<Range<u64>>,
    /// What the core header says.
    pub core: core_header::Layout,
    /// Bytes that the kernel wants for a core header that it writes itself; 0 if it does not.
    pub header_size: u64,
}

/// Why the production kernel cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Nothing is reserved.
    #[error("/proc/iomem has no \"Crash kernel\"")]
    NoRegion,
    /// A file of the kernel's is missing or makes no sense.
    #[error("{file} {problem}")]
    File {
        /// Which.
        file: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// /proc/kcore, where the kernel shows its mappings.
    #[error("/proc/kcore: {0}")]
    Kcore(String),
}

impl Production {
    /// Describes the running kernel.
    pub fn read() -> Result<Self, MachineError> {
        let main = of_kexec("crash_size").parse().unwrap_or(0);
        let mut production = Self::of(&text("/proc/iomem"), main, &of_kexec("crash_cma_ranges"));
        if production.regions.is_empty() {
            return Err(MachineError::NoRegion);
        }
        let core = &mut production.core;
        (core.page_offset, core.text) = mappings(core.memory.first())?;
        (core.cpu_notes, core.vmcoreinfo) = (cpu_notes()?, vmcoreinfo()?);
        production.header_size = of_kexec("crash_elfcorehdr_size").parse().unwrap_or(0);
        Ok(production)
    }

    /// What the text of /proc/iomem tells; `main` is the size of the reservation for images, `ranges`
    /// the text of crash_cma_ranges.
    #[must_use]
    pub fn of(iomem: &str, main: u64, ranges: &str) -> Self {
        let (regions, cma) = (regions(iomem, main), cma(ranges));
        let iomem = parse_iomem(iomem);
        let not_saved = [regions.as_slice(), &cma].concat();
        let core = core_header::Layout { memory: memory(&iomem, &not_saved), ..Default::default() };
        Self { iomem, regions, cma, core, header_size: 0 }
    }
}

/// The reservations in /proc/iomem; the one of `main` bytes (kexec_crash_size: where images go)
/// first, or else the largest.
#[must_use]
pub fn regions(iomem: &str, main: u64) -> Vec<Range<u64>> {
    let lines = iomem.lines().filter(|line| line.trim_start().ends_with(CRASH_KERNEL));
    let ranges =
        lines.map(|line| parse_iomem(line.trim_start())).filter_map(|found| found.into_iter().next());
    let mut regions: Vec<Range<u64>> = ranges.map(|line| line.start..line.last.saturating_add(1)).collect();
    let len = |range: &Range<u64>| range.end.saturating_sub(range.start);
    // All zeros to who is not root; and the kernel reserves whole pages.
    regions.retain(|range| {
        len(range) > 1 && page_down(range.start) == range.start && page_down(range.end) == range.end
    });
    // Of two of a size the upper one: a second reservation is made below 4 GiB, and only when the
    // first lies above.
    regions.sort_by_key(|range| (len(range) != main, core::cmp::Reverse((len(range), range.start))));
    regions
}

/// The ranges of crash_cma_ranges: `start-last`, hexadecimal, one per line; whole pages.
#[must_use]
pub fn cma(ranges: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let (start, last) = line.trim().split_once('-')?;
        let end = hex(last)?.checked_add(1)?;
        Some(page_up(hex(start)?)..page_down(end))
    };
    ranges.lines().filter_map(range).filter(|range| !range.is_empty()).collect()
}

/// What is to be saved: memory from 1 MiB on, less the reservations; whole pages.
fn memory(iomem: &[MemoryRange], regions: &[Range<u64>]) -> Vec<Range<u64>> {
    let ram = iomem.iter().filter(|line| line.kind == "System RAM");
    let mut out: Vec<_> =
        ram.map(|line| page_up(line.start).max(LOWEST)..page_down(line.last.saturating_add(1))).collect();
    for region in regions {
        let cut = |range: Range<u64>| {
            let below = range.start..range.end.min(region.start);
            let above = range.start.max(region.end)..range.end;
            if range.end <= region.start || range.start >= region.end {
                [range, 0..0]
            } else {
                [below, above]
            }
        };
        out = out.into_iter().flat_map(cut).filter(|range| !range.is_empty()).collect();
    }
    out
}

/// Where the direct map begins, and the text mapping, by the program headers of /proc/kcore
/// (fs/proc/kcore.c).
fn mappings(first: Option<&Range<u64>>) -> Result<(u64, Option<core_header::Text>), MachineError> {
    let core = Vmcore::open(Path::new("/proc/kcore"), Access::Pread)
        .map_err(|error| MachineError::Kcore(base::log::chain(&error)))?;
    let first = first.map_or(LOWEST, |range| range.start);
    let (mut direct, mut text) = (None, None);
    for (at, physical, size) in core.mappings() {
        let (at, range) = (at.0, physical.0..physical.0.saturating_add(*size));
        if TEXT.contains(&at) {
            text = text.or(Some((at, range)));
        } else if direct.is_none() && range.contains(&first) {
            direct = at.checked_sub(range.start);
        }
    }
    let direct = direct.ok_or_else(|| MachineError::Kcore("no mapping of memory in it".to_owned()))?;
    Ok((direct, text))
}

/// A note for each CPU that has a directory: those that may still be plugged in have none.
fn cpu_notes() -> Result<Vec<Range<u64>>, MachineError> {
    let entries = fs::read_dir(CPUS).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok();
    let mut cpus: Vec<u32> = entries.filter_map(number).collect(); // numbers may have gaps
    cpus.sort_unstable();
    let note = |cpu: u32| {
        let file = format!("{CPUS}/cpu{cpu}/crash_notes");
        let problem = |problem| MachineError::File { file: file.clone(), problem };
        let at = hex(&text(&file)).ok_or_else(|| problem("is no address"))?;
        let size: u64 = text(&format!("{file}_size")).parse().map_err(|_| problem("has no size"))?;
        Ok(at..at.saturating_add(size))
    };
    cpus.into_iter().map(note).collect()
}

fn vmcoreinfo() -> Result<Range<u64>, MachineError> {
    let file = "/sys/kernel/vmcoreinfo";
    let line = text(file);
    let note = line.split_once(' ').and_then(|(at, size)| Some((hex(at)?, hex(size)?)));
    let (at, size) = note
        .ok_or_else(|| MachineError::File { file: file.to_owned(), problem: "is no address and length" })?;
    Ok(at..at.saturating_add(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IOMEM: &str = "00001000-0009fbff : System RAM\n00100000-3ffdffff : System RAM\n  01000000-02000000 \
                         : Kernel code\n\
        \x20 34000000-3dffffff : Crash kernel\n3ffe0000-3fffffff : Reserved\n100000000-13fffffff : System \
        RAM\n  130000000-13fffffff : Crash kernel\n";

    #[test]
    fn the_region_for_images_comes_first() {
        let (low, high) = (0x3400_0000..0x3e00_0000, 0x1_3000_0000..0x1_4000_0000);
        assert_eq!(regions(IOMEM, 0), [high.clone(), low.clone()]);
        assert_eq!(regions(IOMEM, 0x0a00_0000), [low, high]);
        let equal = IOMEM.replace("3dffffff", "43ffffff");
        assert_eq!(regions(&equal, 0x1000_0000)[0], 0x1_3000_0000..0x1_4000_0000);
        assert!(regions("00000000-00000000 : Crash kernel\n", 0).is_empty());
    }

    #[test]
    fn memory_of_users_that_the_capture_takes_is_not_saved_and_no_place_for_images() {
        let ranges = "10000000-11ffffff\n120000000-127ffffff\n";
        let production = Production::of(IOMEM, 0x0a00_0000, ranges);
        assert_eq!(production.cma, [0x1000_0000..0x1200_0000, 0x1_2000_0000..0x1_2800_0000]);
        assert_eq!(production.regions, Production::of(IOMEM, 0x0a00_0000, "").regions);
        let memory = [
            0x10_0000..0x1000_0000,
            0x1200_0000..0x3400_0000,
            0x3e00_0000..0x3ffe_0000,
            0x1_0000_0000..0x1_2000_0000,
            0x1_2800_0000..0x1_3000_0000,
        ];
        assert_eq!(production.core.memory, memory);
        assert!(cma("").is_empty() && cma("x-y\n5-4\n").is_empty());
    }

    #[test]
    fn reservations_and_low_memory_are_not_saved() {
        let memory = memory(&parse_iomem(IOMEM), &regions(IOMEM, 0));
        assert_eq!(memory, [0x10_0000..0x3400_0000, 0x3e00_0000..0x3ffe_0000, 0x1_0000_0000..0x1_3000_0000]);
    }
}
